"""Log likelihoods of single data by annealing, against closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.special import logsumexp
from scipy import stats

import numpyro_kaem as kaem
from numpyro_kaem.infer import held_out_log_likelihood
from numpyro_kaem.objectives import LangevinMLE
from tests.objectives import closed_model

KEY = jax.random.key(3)
OPTIONS = {"progress_bar": False}
WEIGHT = np.array([[1.0, 0.5, 0.0, -0.3], [0.2, 0.5, 1.0, 0.8]])


def linear_model():
    prior = dist.Normal(jnp.array([0.5, -0.2]), 1.2)
    weight = jnp.asarray(WEIGHT, jnp.result_type(float))
    return kaem.KAEM(prior, lambda z: z @ weight, kaem.NormalLikelihood(0.4))


def linear_log_prob(x):
    covariance = 1.44 * WEIGHT.T @ WEIGHT + 0.4**2 * np.eye(4)
    mean = np.array([0.5, -0.2]) @ WEIGHT
    return stats.multivariate_normal(mean, covariance).logpdf(x)


# --- against other ways --------------------------------------------------------------


def test_linear_model_in_closed_form():
    model = linear_model()
    x = model.sample(jax.random.key(0), 10)
    # The last chunk is not full.
    result = held_out_log_likelihood(KEY, model, x, chunk_size=4, **OPTIONS)
    error = result.values - linear_log_prob(x)
    np.testing.assert_array_less(np.abs(error), 4 * result.standard_errors)
    assert abs(error.mean()) < 4 * result.standard_error
    assert result.mean == result.values.mean()
    assert np.all(result.standard_errors < 0.1)
    assert np.all((result.ess > 10) & (result.ess <= result.num_particles))
    assert repr(result).startswith("HeldOutLogLikelihood(10 data, mean=-")


@pytest.mark.long
def test_likelihood_is_unbiased_however_few_the_temperatures_and_particles():
    """Steps that follow the acceptance in the estimate itself would bias it."""
    model = linear_model()
    x = jnp.array([[0.5, 0.3, -0.2, 0.1], [2.0, -1.0, 0.5, 0.5]])
    num_copies = 20_000
    result = held_out_log_likelihood(
        KEY,
        model,
        jnp.repeat(x, num_copies, axis=0),
        num_temperatures=8,
        num_particles=2,
        num_steps=10,
        chunk_size=2 * num_copies,
        **OPTIONS,
    )
    ratios = np.exp(result.values - linear_log_prob(jnp.repeat(x, num_copies, axis=0)))
    ratios = ratios.reshape(2, num_copies)
    error = ratios.std(1, ddof=1) / np.sqrt(num_copies)
    np.testing.assert_array_less(np.abs(ratios.mean(1) - 1), 4 * error)
    # The test can tell: the error is small, and single estimates are rough.
    assert np.all(error < 0.01)
    assert np.all(ratios.std(1) > 0.5)


def energies(*shape):
    rng = np.random.default_rng(1)
    basis = kaem.RBF(-2.0, 2.5, 6)
    return kaem.Energy(basis, jnp.asarray(rng.normal(size=(*shape, 6)) * 1.5))


def make_prior(form):
    if form == "independent":
        return kaem.KAEMPrior(energies(2))
    if form == "kart":
        return kaem.KAEMPrior(energies(3, 1))
    if form == "mixture":
        component = kaem.KAEMPrior(energies(3, 2)).to_event(1)
        mixing = dist.Categorical(logits=jnp.array([0.0, 1.0, -0.5]))
        return dist.MixtureSameFamily(mixing, component)
    conditioner = kaem.MaskedConditioner(jax.random.key(0), 2, 6, width=8, depth=1)
    return kaem.AutoregressiveKAEMPrior(energies().basis, conditioner)


def nonlinear(z):
    z = jnp.concatenate([z, z**2, jnp.tanh(2 * z)], axis=-1)
    return z @ jnp.linspace(-1.0, 1.0, 3 * z.shape[-1]).reshape(z.shape[-1], 3)


def by_quadrature(model, x):
    """Log likelihoods by the midpoint rule over the latents, or the base latent."""
    if model.joint == "kart":
        v = jnp.linspace(-7.0, 7.0, 4001)
        z = model.prior.icdf(dist.Normal().cdf(v)[:, None, None])
        log_prior, volume = dist.Normal().log_prob(v), v[1] - v[0]
    else:
        edges = jnp.linspace(-2.0, 2.5, 301)
        middle = (edges[1:] + edges[:-1]) / 2
        z = jnp.stack(jnp.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
        log_prior = model.prior.log_prob(z)
        log_prior = log_prior if log_prior.ndim == 1 else log_prior.sum(-1)
        volume = (edges[1] - edges[0]) ** 2
    log_joint = log_prior[:, None] + model.conditional(z[:, None]).log_prob(x)
    return np.asarray(logsumexp(log_joint, axis=0) + jnp.log(volume))


@pytest.mark.long
@pytest.mark.parametrize("form", ["independent", "mixture", "autoregressive", "kart"])
def test_energy_priors_by_quadrature(form):
    model = kaem.KAEM(
        make_prior(form),
        nonlinear,
        kaem.NormalLikelihood(0.3),
        joint="kart" if form == "kart" else None,
    )
    x = model.sample(jax.random.key(1), 6)
    result = held_out_log_likelihood(KEY, model, x, **OPTIONS)
    error = np.abs(result.values - by_quadrature(model, x))
    np.testing.assert_array_less(error, 4 * result.standard_errors + 1e-3)
    assert np.all(result.standard_errors < 0.3)


@pytest.mark.long
def test_a_model_of_numpyro_with_its_parameters():
    params = closed_model.initial_params()
    result = held_out_log_likelihood(
        KEY, closed_model.model, closed_model.X, params=params, **OPTIONS
    )
    error = np.abs(result.values - closed_model.log_likelihood(params))
    np.testing.assert_array_less(error, 4 * result.standard_errors)


@pytest.mark.long
def test_it_rises_in_training():
    decoder = kaem.KANDecoder(
        jax.random.key(0), 2, 4, hidden=(), basis=kaem.RBF(-3, 3, 4)
    )
    model = kaem.KAEM(
        dist.Normal(jnp.zeros(2), 1.0), decoder, kaem.NormalLikelihood(0.4)
    )
    x = linear_model().sample(jax.random.key(5), 220)
    train, held_out = x[:200], x[200:]
    before = held_out_log_likelihood(KEY, model, held_out, **OPTIONS)
    params = kaem.fit(
        model, train, LangevinMLE(3), optax.adam(0.05), 200, progress_bar=False
    ).params
    after = held_out_log_likelihood(KEY, model, held_out, params=params, **OPTIONS)
    assert after.mean > before.mean + 1
    # No model is better in the mean than the one that made the data, but by chance.
    exact = linear_log_prob(held_out)
    chance = np.std(after.values - exact) / np.sqrt(len(held_out))
    assert after.mean < exact.mean() + 4 * chance


@pytest.mark.long
def test_data_that_cannot_be():
    prior = kaem.KAEMPrior(energies(2))
    model = kaem.KAEM(prior, lambda z: dist.Uniform(z[..., 0], z[..., 0] + 1.0))
    with pytest.warns(
        UserWarning, match="1 of 2 data have an effective sample size below 5%"
    ):
        result = held_out_log_likelihood(
            KEY, model, jnp.array([0.3, 50.0]), num_temperatures=4, **OPTIONS
        )
    assert np.isfinite(result.values[0])
    assert result.values[1] == -np.inf
    assert result.standard_errors[1] == np.inf
    assert result.ess[1] == 0


# --- bad input -----------------------------------------------------------------------


def test_wrong_arguments():
    prior = kaem.DeepEnergyPrior.init(jax.random.key(0), dim=2, width=4, depth=1)
    deep = kaem.KAEM(prior, nonlinear, kaem.NormalLikelihood(0.3))
    cases = [
        ({"model": 3}, TypeError, "model must be a NumPyro model, a callable, got 3"),
        ({"rng_key": 3}, TypeError, "rng_key must be one random key such as"),
        ({"num_temperatures": 1}, ValueError, "num_temperatures must be an integer >="),
        ({"num_particles": 1}, ValueError, "num_particles must be an integer >= 2"),
        ({"num_steps": 0}, ValueError, "num_steps must be a positive integer, got 0"),
        ({"chunk_size": 2.5}, TypeError, "chunk_size must be a positive integer"),
        ({"data": np.zeros((0, 4))}, ValueError, "x must"),
        ({"data": np.zeros((5, 3))}, ValueError, r"x must have shape \(num_data, 4\)"),
        (
            {"model": closed_model.model, "data": np.zeros((0, 2))},
            ValueError,
            "data must have shape",
        ),
        (
            {"model": closed_model.model, "data": closed_model.X},
            ValueError,
            "params must hold all parameters of the model, and misses 'energy",
        ),
        (
            {"model": deep, "data": np.zeros((5, 3))},
            ValueError,
            r"priors with a normalizing constant.*at 'z'",
        ),
    ]
    given = {"model": linear_model(), "data": np.zeros((5, 4)), **OPTIONS}
    given["rng_key"] = KEY
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            held_out_log_likelihood(**{**given, **options})
