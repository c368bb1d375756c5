"""Energies fitted by SVI, and KAEM densities as guides, against exact posteriors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.reparam import NeuTraReparam
from scipy import integrate, optimize, stats

import numpyro_kaem as kaem
from tests.helpers import assert_close, assert_within_mcse


def run_svi(model, guide, num_steps, step_size=0.03, num_particles=16):
    optimizer = optax.adam(optax.cosine_decay_schedule(step_size, num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=num_particles))
    return svi.run(jax.random.key(0), num_steps, progress_bar=False)


# --- coefficients as parameters -------------------------------------------------------


@pytest.mark.long
def test_marginal_likelihood_is_maximised():
    """SVI with the units integrated out finds the maximum that SciPy finds."""
    x = np.array([-1.1, 0.4, 1.9, 2.2, 2.6, 2.7, 3.1, 3.4, 4.5])
    knots = np.array([-1.0, 2.0, 5.0])
    flat = kaem.Energy(kaem.BSpline(-1.0, 5.0, num_basis=3, degree=1), jnp.zeros(3))
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 0.7), x)

    def model():
        energy = eqx_module("energy", flat)
        # Without a prior on the coefficients the maximum is at infinity.
        penalty = 0.5 * jnp.sum(jnp.square(jnp.diff(energy.coefficients)))
        prior = kaem.KAEMPrior(energy, dist.Normal(2.0, 2.5))
        marginals = kaem.unit_log_marginal_likelihood(prior, units)
        numpyro.factor("units", marginals.sum() - penalty)

    result = run_svi(model, lambda: None, 400, 0.05, num_particles=1)
    energy = eqx.combine(
        result.params["energy$params"], eqx.filter(flat, eqx.is_array, inverse=True)
    )

    z = np.linspace(-9.0, 13.0, 1101)
    reference = stats.norm.pdf(z, 2.0, 2.5)
    likelihood = stats.norm.pdf(x[:, None], z, 0.7) * reference

    def objective(steps):
        tilt = np.exp(np.interp(z, knots, np.concatenate([[0.0], np.cumsum(steps)])))
        marginals = np.log(likelihood @ tilt) - np.log(reference @ tilt)
        return 0.5 * np.sum(np.square(steps)) - np.sum(marginals)

    expected = optimize.minimize(objective, np.zeros(2)).x
    assert_close(np.diff(energy.coefficients), expected, rtol=1e-3, atol=1e-3)


# --- densities as guides --------------------------------------------------------------


def bimodal_model():
    z = numpyro.sample("z", dist.Normal(0.5, 1.5))
    numpyro.sample("y", dist.Normal(jnp.square(z), 1.0), obs=2.0)


def skewed_model():
    rate = numpyro.sample("rate", dist.Gamma(1.5, 0.5))
    numpyro.sample("y", dist.Poisson(rate), obs=2)


def bimodal_log_joint(z):
    return stats.norm.logpdf(z, 0.5, 1.5) + stats.norm.logpdf(2.0, z**2, 1.0)


def skewed_log_joint(z):
    """Of the logarithm of the rate, the unconstrained latent value."""
    rate = np.exp(z)
    return stats.gamma.logpdf(rate, 1.5, scale=2.0) + stats.poisson.logpmf(2, rate) + z


def divergence(log_guide, log_joint):
    """Kullback-Leibler divergence of a guide from the exact posterior."""
    options = {"limit": 500, "epsabs": 1e-9}
    evidence = integrate.quad(lambda z: np.exp(log_joint(z)), -9, 9, **options)[0]
    z = np.linspace(-9.0, 9.0, 6001)
    log_q = np.asarray(log_guide(z), float)
    assert_close(np.float32(integrate.simpson(np.exp(log_q), x=z)), 1.0, rtol=1e-4)
    terms = np.exp(log_q) * (log_q - log_joint(z) + np.log(evidence))
    return integrate.simpson(terms, x=z)


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "log_joint", "bound", "gain"),
    [
        (bimodal_model, bimodal_log_joint, 0.02, 20.0),
        (skewed_model, skewed_log_joint, 0.005, 4.0),
    ],
)
def test_guide_is_closer_than_the_normal_one(model, log_joint, bound, gain):
    normal = AutoNormal(model)
    params = run_svi(model, normal, 1500).params
    loc, scale = (
        next(float(v) for k, v in params.items() if k.endswith(end))
        for end in ("_loc", "_scale")
    )
    of_normal = divergence(lambda z: stats.norm.logpdf(z, loc, scale), log_joint)

    guide = kaem.AutoKAEM(model)
    posterior = guide.get_posterior(run_svi(model, guide, 1500).params)
    of_guide = divergence(
        lambda z: posterior.log_prob(jnp.asarray(z)[:, None]), log_joint
    )
    print(f"divergence {of_guide:.5f} in place of {of_normal:.5f}")
    assert 0.0 < of_guide < bound
    assert gain * of_guide < of_normal


# --- the automatic guide --------------------------------------------------------------


def three_latents():
    numpyro.sample("rate", dist.Gamma(1.5, 0.5))
    with numpyro.plate("probabilities", 2):
        numpyro.sample("p", dist.Beta(2.0, 5.0))


def prepared(model, coefficients=None):
    """A guide with parameters that no optimiser chose."""
    guide = kaem.AutoKAEM(model, kaem.BSpline(-2.0, 2.0, 6))
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
        guide()
    names = ("auto_loc", "auto_scale", "auto_coefficients")
    params = {name: trace[name]["value"] for name in names}
    params["auto_loc"] = jnp.array([0.7, -1.0, -0.5])
    params["auto_scale"] = jnp.array([0.5, 1.5, 0.8])
    if coefficients is not None:
        params["auto_coefficients"] = coefficients
    return guide, params


COEFFICIENTS = jnp.asarray(np.random.default_rng(3).normal(size=(3, 6)))


def test_transform_carries_normal_draws_to_the_guide():
    """Of parameters with the documented shapes; flat energies are Normal."""
    guide, params = prepared(three_latents)
    assert guide.latent_dim == 3
    assert {name: value.shape for name, value in params.items()} == {
        "auto_loc": (3,),
        "auto_scale": (3,),
        "auto_coefficients": (3, 6),
    }
    z = jnp.array([[0.1, -2.0, 0.4], [1.2, 3.0, -1.5]])
    expected = stats.norm(params["auto_loc"], params["auto_scale"]).logpdf(z).sum(-1)
    assert_close(guide.get_posterior(params).log_prob(z), expected, rtol=(1e-5, 1e-9))
    guide, params = prepared(three_latents, COEFFICIENTS)
    base, transform = guide.get_base_dist(), guide.get_transform(params)
    assert base.event_shape == (3,)
    latent = transform(z)
    expected = base.log_prob(z) - transform.log_abs_det_jacobian(z, latent)
    actual = guide.get_posterior(params).log_prob(latent)
    assert_close(actual, expected, rtol=(1e-4, 1e-8), atol=(1e-4, 1e-8))


def test_draws_and_quantiles_are_of_one_law(key):
    guide, params = prepared(three_latents, COEFFICIENTS)
    draws = guide.sample_posterior(key, params, sample_shape=(4000,))
    assert draws["rate"].shape == (4000,)
    assert draws["p"].shape == (4000, 2)
    draws = {name: np.asarray(value) for name, value in draws.items()}
    assert np.all(draws["rate"] > 0)
    assert np.all((draws["p"] > 0) & (draws["p"] < 1))
    quantiles = guide.quantiles(params, [0.2, 0.5, 0.9])
    assert quantiles["p"].shape == (3, 2)
    for name, median in guide.median(params).items():
        np.testing.assert_array_equal(median, quantiles[name][1])
    for q, row in zip([0.2, 0.5, 0.9], range(3), strict=True):
        for name, values in draws.items():
            assert_within_mcse(values < quantiles[name][row], q)


@pytest.mark.long
def test_guide_as_a_transport_map():
    def model():
        numpyro.sample("rate", dist.Gamma(1.5, 0.5))
        bimodal_model()

    guide = kaem.AutoKAEM(model)
    neutra = NeuTraReparam(guide, run_svi(model, guide, 600).params)
    mcmc = MCMC(
        NUTS(neutra.reparam(model)),
        num_warmup=300,
        num_samples=1500,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1))
    latent = mcmc.get_samples()["auto_shared_latent"]
    draws = neutra.transform_sample(latent)
    assert_within_mcse(draws["rate"], 3.0)
    z = np.linspace(-8.0, 8.0, 4001)
    density = np.exp(bimodal_log_joint(z))
    above = integrate.trapezoid(density * (z > 0), z) / integrate.trapezoid(density, z)
    # Chains that hardly jump between modes would fail.
    assert_within_mcse(draws["z"] > 0, above)
    assert np.mean(np.diff(np.asarray(draws["z"]) > 0)) > 0.05


def test_bad_arguments_are_refused():
    scale_match = r"init_scale must be a finite number > 0"
    batch = kaem.BSpline([0.0, 1.0], [2.0, 3.0], 6)
    for options, error, match in [
        ({"basis": 5}, TypeError, r"basis must be a basis such as"),
        ({"basis": "bspline"}, TypeError, r"basis must be a basis such as"),
        ({"basis": batch}, ValueError, r"basis must have one grid, in units"),
        ({"init_scale": 0.0}, ValueError, scale_match),
        ({"init_scale": -1.0}, ValueError, scale_match),
        ({"init_scale": np.inf}, ValueError, scale_match),
    ]:
        with pytest.raises(error, match=match):
            kaem.AutoKAEM(three_latents, **options)
