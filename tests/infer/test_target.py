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

import numpyro_kaem as kaem
from numpyro_kaem.infer import target
from tests.helpers import assert_close, with_long

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


MODELS = [hierarchical, bounded, learned, scaled]


def start_of(model, key=0, **options):
    options = {"init_strategy": init_to_uniform, **options}
    return target.initialize(jax.random.key(key), model, (Y,), {}, **options)


@pytest.mark.parametrize("model", with_long(MODELS, hierarchical, learned, scaled))
def test_both_parts_are_the_potential_energy(model):
    start = start_of(model)
    parts = target.log_prior_and_likelihood(model, (Y,), {}, start.values)
    energy = potential_energy(model, (Y,), {}, start.values)
    assert_close(sum(parts), -energy)
    assert_close(
        start.position,
        np.concatenate([start.values[n].ravel() for n in sorted(start.values)]),
    )


def test_the_likelihood_is_that_of_observed_sites_and_factors():
    values = {"scale": jnp.array(0.3), "mean": jnp.array([0.1, -1.0, 2.0, 0.0])}
    prior, likelihood = target.log_prior_and_likelihood(hierarchical, (Y,), {}, values)
    mean, scale = np.array([0.1, -1.0, 2.0, 0.0]), np.exp(0.3)
    expected = stats.t.logpdf(np.asarray(Y), 4, mean).sum() - 0.5 * np.sum(mean**2)
    assert_close(likelihood, expected)
    expected = stats.halfcauchy.logpdf(scale, scale=2.0) + 0.3
    assert_close(prior, expected + stats.norm.logpdf(mean, 1.0, scale).sum())


@pytest.mark.parametrize("model", [bounded, hierarchical, learned])
def test_draws_of_the_prior(model):
    assert target.prior_is_exact(start_of(model).trace)
    draw = jax.vmap(lambda key: target.draw_prior(key, model, (Y,), {}))
    values = draw(jax.random.split(jax.random.key(0), 2000))
    assert all(np.all(np.isfinite(v)) for v in values.values())
    if model is bounded:
        low = -5 + 2 / (1 + np.exp(-np.asarray(values["low"], float)))
        assert stats.kstest((low + 5) / 2, "uniform").pvalue > 1e-4
        share = 1 / (1 + np.exp(-np.asarray(values["value"], float)))
        assert stats.kstest(share, "uniform").pvalue > 1e-4
    elif model is hierarchical:
        scale = np.exp(np.asarray(values["scale"], float))
        assert stats.kstest(scale, stats.halfcauchy(scale=2.0).cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    ("support", "ends"),
    [
        (dist.constraints.interval(2.0, 3.0), [2.0, 3.0]),
        (dist.constraints.interval(-1.0, 0.0), [-1.0, 0.0]),
        (dist.constraints.unit_interval, [0.0, 1.0]),
        (dist.constraints.positive, [0.0]),
        (dist.constraints.simplex, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    ],
)
def test_a_draw_at_an_end_of_its_support_is_moved_within(support, ends):
    for end in ends:
        move = partial(target.inside, support)
        for held in (move(jnp.array(end)), jax.jit(move)(jnp.array(end))):
            assert np.all(np.isfinite(dist.biject_to(support).inv(held)))
            assert_close(held, np.asarray(end))


def test_draws_that_underflow_are_finite_in_unconstrained_space():
    def model():
        numpyro.sample("z", dist.Gamma(0.02, 1.0))

    draw = jax.vmap(lambda key: target.draw_prior(key, model, (), {})["z"])
    assert np.all(np.isfinite(draw(jax.random.split(jax.random.key(0), 20_000))))


def test_priors_that_a_run_does_not_draw_from():
    def improper(y):
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    def masked(y):
        z = numpyro.sample("z", dist.Normal().mask(jnp.array(False)))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    for model in (improper, masked, scaled):
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


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (no_latent, r"at least one latent site.*sites are 'y'"),
        (discrete, r"continuous latent sites, got the discrete 'k' \(Poisson"),
        (delta, r"got a Delta at 'z'"),
        (unobserved, r"an observed site .* latent sites are 'z'"),
        (subsampled, r"'rows' with subsample_size=2 of 4"),
        (impossible, r"finite log density .* init_to_uniform"),
    ],
)
@pytest.mark.filterwarnings("ignore:Out-of-support")
def test_models_that_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        start_of(model, needs_observed=True)


def test_bad_points_to_start_from():
    with pytest.raises(ValueError, match=r"latent sites \['z'\], got \['w'\]"):
        start_of(learned, init_params={"w": 0.0})
    far = float(jnp.finfo(jnp.zeros(()).dtype).max) ** 0.75
    with pytest.raises(ValueError, match=r"finite log density .* got -inf"):
        start_of(learned, init_params={"z": jnp.full(4, far)})
