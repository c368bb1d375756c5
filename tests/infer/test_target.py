"""The split of models into prior and likelihood, and the models that are refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import init_to_sample, init_to_uniform
from numpyro.infer.util import potential_energy
from scipy import stats
from scipy.special import expit

import numpyro_kaem as kaem
from numpyro_kaem.infer import target
from tests.helpers import assert_close

Y = jnp.array([0.3, -1.2, 2.5, 0.4])


def hierarchical(y):
    scale = numpyro.sample("scale", dist.HalfCauchy(2.0))
    with numpyro.plate("units", 4):
        mean = numpyro.sample("mean", dist.Normal(1.0, scale))
        numpyro.sample("y", dist.StudentT(4.0, mean, 1.0), obs=y)
    numpyro.factor("pull", -0.5 * jnp.sum(mean**2))


def bounded(y):
    low = numpyro.sample("low", dist.Uniform(-5.0, -3.0))
    value = numpyro.sample("value", dist.Uniform(low, 4.0))
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
    numpyro.deterministic("twice", 2 * value)
    numpyro.sample("y", dist.Normal(value + shares @ jnp.arange(3.0), 1.0), obs=y[0])


def learned(y):
    energy = kaem.Energy.init(jax.random.key(1), kaem.RBF(-3.0, 3.0, 8), scale=1.0)
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    with numpyro.plate("units", 4):
        z = numpyro.sample("z", prior)
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


def scaled(y):
    with handlers.scale(scale=3.0):
        z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
    with handlers.mask(mask=jnp.array([True, False, True, True])):
        numpyro.sample("y", dist.Normal(z, 1.0).expand([4]), obs=y)


def start_of(model, key=0, **options):
    options = {"init_strategy": init_to_uniform, **options}
    return target.initialize(jax.random.key(key), model, (Y,), {}, **options)


@pytest.mark.parametrize("model", [hierarchical, bounded, learned, scaled])
def test_prior_and_likelihood_and_draws_of_the_prior(model):
    """Both parts are NumPyro's potential energy; draws follow the prior."""
    start = start_of(model)
    parts_at = jax.jit(partial(target.log_prior_and_likelihood, model, (Y,), {}))
    energy_at = jax.jit(partial(potential_energy, model, (Y,), {}))
    assert_close(sum(parts_at(start.values)), -energy_at(start.values))
    values = [start.values[name].ravel() for name in sorted(start.values)]
    assert_close(start.position, np.concatenate(values))
    if model is hierarchical:
        mean, scale = np.array([0.1, -1.0, 2.0, 0.0]), np.exp(0.3)
        prior, likelihood = parts_at({"scale": np.log(scale), "mean": mean})
        expected = stats.t.logpdf(np.asarray(Y), 4, mean).sum() - 0.5 * np.sum(mean**2)
        assert_close(likelihood, expected)
        expected = stats.halfcauchy.logpdf(scale, scale=2.0) + 0.3
        assert_close(prior, expected + stats.norm.logpdf(mean, 1.0, scale).sum())

    assert target.prior_is_exact(start.trace) is (model is not scaled)
    if model is scaled:
        return
    draw = jax.jit(jax.vmap(lambda key: target.draw_prior(key, model, (Y,), {})))
    values = draw(jax.random.split(jax.random.key(0), 2000))
    assert all(np.all(np.isfinite(v)) for v in values.values())
    values = {name: np.asarray(v, float) for name, v in values.items()}
    if model is bounded:
        for name in ("low", "value"):
            assert stats.kstest(expit(values[name]), "uniform").pvalue > 1e-4
    elif model is hierarchical:
        distribution = stats.halfcauchy(scale=2.0)
        assert stats.kstest(np.exp(values["scale"]), distribution.cdf).pvalue > 1e-4


def test_a_draw_at_an_end_of_its_support_is_moved_within():
    for support, ends in (
        (dist.constraints.interval(2.0, 3.0), [2.0, 3.0]),
        (dist.constraints.interval(-1.0, 0.0), [-1.0, 0.0, -0.0]),
        (dist.constraints.unit_interval, [0.0, -0.0, 1.0]),
        (dist.constraints.positive, [0.0, -0.0]),
        (dist.constraints.simplex, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    ):

        def move(end, support=support):
            held = target.inside(support, end)
            return held, dist.biject_to(support).inv(held)

        for end in map(jnp.array, ends):
            for held, inverse in (move(end), jax.jit(move)(end)):
                assert np.all(np.isfinite(inverse))
                assert_close(held, np.asarray(end))
                # XLA takes numbers below the smallest normal one for zero.
                assert np.all(np.abs(held) >= np.finfo(held.dtype).tiny)
                assert np.all(support(held))

    def model():
        numpyro.sample("z", dist.Gamma(0.02, 1.0))

    # Many draws of such a small shape underflow.
    draw = jax.jit(jax.vmap(lambda key: target.draw_prior(key, model, (), {})["z"]))
    assert np.all(np.isfinite(draw(jax.random.split(jax.random.key(0), 20_000))))


def test_priors_that_a_run_does_not_draw_from():
    def improper(y):
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    def masked(y):
        z = numpyro.sample("z", dist.Normal().mask(jnp.array(False)))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    for model in (improper, masked):
        assert not target.prior_is_exact(start_of(model).trace)
    assert not target.prior_is_proper(start_of(improper).trace)
    assert target.prior_is_proper(start_of(masked).trace)

    def scaled_by_one(y):
        with handlers.scale(scale=1.0):
            z = numpyro.sample("z", dist.Normal())
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    assert target.prior_is_exact(start_of(scaled_by_one).trace)


def test_one_start_for_each_key():
    keys = jax.random.split(jax.random.key(0), 3)
    start = target.initialize(keys, bounded, (Y,), {}, init_strategy=init_to_sample)
    assert start.position.shape == (3, 4)
    assert start.values["shares"].shape == (3, 2)
    assert len(np.unique(start.position[:, 0])) == 3
    sites = start.postprocess(Y)({n: v[1] for n, v in start.values.items()})
    assert_close(sites["twice"], 2 * np.asarray(sites["value"]))
    given = {n: jnp.zeros_like(v) for n, v in start.values.items()}
    start = target.initialize(
        keys, bounded, (Y,), {}, init_strategy=init_to_sample, init_params=given
    )
    assert np.all(np.asarray(start.position) == 0)


def no_latent(y):
    numpyro.sample("y", dist.Normal(), obs=y[0])


def discrete(y):
    k = numpyro.sample("k", dist.Poisson(3.0))
    numpyro.sample("y", dist.Normal(k, 1.0), obs=y[0])


def delta(y):
    z = numpyro.sample("z", dist.Delta(1.0))
    numpyro.sample("w", dist.Normal())
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y[0])


def unobserved(y):
    numpyro.sample("z", dist.Normal())


def subsampled(y):
    z = numpyro.sample("z", dist.Normal())
    with numpyro.plate("rows", 4, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def impossible(y):
    z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
    numpyro.sample("y", dist.Uniform(z + 10, 20.0), obs=y[0])


@pytest.mark.filterwarnings("ignore:Out-of-support")
def test_models_and_starts_that_are_refused():
    far = float(jnp.finfo(jnp.zeros(()).dtype).max) ** 0.75
    for model, init_params, message in (
        (no_latent, None, r"a latent site to sample.*sites are 'y'"),
        (discrete, None, r"continuous latent sites, got the discrete 'k' \(Poisson"),
        (delta, None, r"got a Delta at 'z'"),
        (unobserved, None, r"an observed site .* latent sites are 'z'"),
        (subsampled, None, r"'rows' with subsample_size=2 of 4"),
        (impossible, None, r"finite log density .* init_to_uniform"),
        (learned, {"w": 0.0}, r"latent sites \['z'\], got \['w'\]"),
        (learned, {"z": jnp.full(4, far)}, r"finite log density .* got -inf"),
    ):
        with pytest.raises(ValueError, match=message):
            start_of(model, needs_observed=True, init_params=init_params)


# --- compilation ---------------------------------------------------------------------

OUTSIDE = np.array([1.0, 2.0])
NOISE = 1.0


def _helper():
    return OUTSIDE.sum()


def test_what_a_model_reads_outside_is_not_kept_from_an_earlier_run(monkeypatch):
    """Global and free names, arrays changed in place, names of helpers."""
    free = [3.0]

    def model():
        return [_helper() + free[0] + part for part in (NOISE,)]

    traced = []

    @target.compile_with_model
    def evaluate(model, x):
        traced.append(1)
        return model()[0] * x

    def value():
        return float(evaluate(model, jnp.ones(())))

    assert (value(), value(), len(traced)) == (7.0, 7.0, 1)
    monkeypatch.setitem(globals(), "NOISE", 2.0)
    assert value() == 8.0
    free[0] = 4.0
    assert value() == 9.0
    monkeypatch.setitem(globals(), "OUTSIDE", np.zeros(2))
    assert value() == 6.0
    OUTSIDE[0] = 10.0
    assert value() == 16.0
    shifted = partial(lambda shift: [shift], 5.0)
    assert float(evaluate(shifted, jnp.ones(()))) == 5.0
    assert (value(), len(traced)) == (16.0, 6)

    # Keys that have no order; distributions of equal parameters; a handler's model.
    options = {1: dist.Normal(0.0, 1.0), "other": None}

    def density():
        return [options[1].log_prob(2.0)]

    blocked = handlers.block(density)
    peers = ((options[1], stats.norm), (dist.Cauchy(0.0, 1.0), stats.cauchy))
    for distribution, peer in peers:
        options[1] = distribution
        for model in (density, blocked):
            assert_close(evaluate(model, jnp.ones(())), peer.logpdf(2.0), rtol=1e-5)


def test_samplers_take_data_that_a_model_closes_over():
    """Each run by those of its time, though the compiled function is kept."""
    data = [np.array(1.5)]

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=data[0])

    sampler = kaem.infer.ImportanceSampling(model, num_samples=1000)
    first = sampler.run(jax.random.key(0)).log_evidence.value
    data[0] = np.array(-3.0)
    second = sampler.run(jax.random.key(0)).log_evidence.value
    for y, found in ((1.5, first), (-3.0, second)):
        truth = stats.norm(0, 2**0.5).logpdf(y)
        assert abs(found - truth) < 0.1
