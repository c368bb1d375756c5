"""Importance sampling against closed forms of conjugate models."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from numpyro.optim import Adam
from scipy import integrate, stats

import numpyro_kaem as kaem
from numpyro_kaem.infer import ImportanceSampling
from numpyro_kaem.infer.importance import Proposals, draw_and_weigh
from numpyro_kaem.infer.units import ModelRun
from tests.helpers import assert_close, with_long

X = np.array([0.4, 1.9, -0.3])
LOC, SCALE, NOISE = 0.5, 1.3, 0.8


def normal(x=None, noise=NOISE):
    """Three measurements of one Normal value."""
    z = numpyro.sample("z", dist.Normal(LOC, SCALE))
    numpyro.deterministic("twice", 2 * z)
    with numpyro.plate("data", 3):
        numpyro.sample("x", dist.Normal(z, noise), obs=x)


def normal_log_evidence(x, loc=LOC):
    covariance = NOISE**2 * np.eye(np.size(x)) + SCALE**2
    return stats.multivariate_normal(np.full(np.size(x), loc), covariance).logpdf(x)


def normal_posterior(x, num_measurements, loc=LOC):
    precision = num_measurements / NOISE**2 + 1 / SCALE**2
    mean = (np.sum(x, axis=-1) / NOISE**2 + loc / SCALE**2) / precision
    return mean, precision**-0.5


def weighted_mean(result, values):
    """Mean under the weights, and its standard error."""
    weights = np.exp(result.log_normalized_weights)
    values = np.asarray(values, np.float64)
    mean = np.sum(weights * values, axis=0)
    return mean, np.sqrt(np.sum(weights**2 * (values - mean) ** 2, axis=0))


# --- one weight per particle ---------------------------------------------------------


def test_evidence_is_unbiased_and_its_error_the_actual_one():
    """Over 200 seeds."""
    sampler = ImportanceSampling(normal, num_samples=500)
    runs = [sampler.run(jax.random.key(seed), X).log_evidence for seed in range(200)]
    value, reported = np.array(runs).T
    deviation = value - normal_log_evidence(X)
    ratio = np.exp(deviation)
    error = ratio.std(ddof=1) / np.sqrt(ratio.size)
    assert abs(ratio.mean() - 1) < 3 * error
    assert error < 0.01
    # A standard deviation of 200 values is known to 5 per cent.
    np.testing.assert_allclose(
        np.sqrt(np.mean(reported**2)), np.sqrt(np.mean(deviation**2)), rtol=0.2
    )
    assert np.mean(np.abs(deviation) < 3 * reported) >= 0.98


def test_posterior_and_its_predictions():
    """With keys of the old kind."""
    key = jax.random.PRNGKey(1)
    result = ImportanceSampling(normal, num_samples=20_000).run(key, X)
    assert sorted(result.samples) == ["z"]
    assert result.samples["z"].shape == result.log_weights.shape == (20_000,)
    mean, scale = normal_posterior(X, 3)
    estimate, error = weighted_mean(result, result.samples["z"])
    assert abs(estimate - mean) < 4 * error
    draws = result.resample(jax.random.PRNGKey(2), 4000)
    z = np.asarray(draws["z"])
    assert z.shape == (4000,)
    # Both the particles and the choice among them are random.
    statistic = stats.kstest(z, stats.norm(mean, scale).cdf).statistic
    assert statistic < 2.2 / np.sqrt(min(result.ess, 4000))
    predicted = Predictive(normal, draws)(key)
    assert predicted["x"].shape == (4000, 3)
    assert_close(predicted["twice"], 2 * z)


def test_weights_are_the_likelihood(key):
    result = ImportanceSampling(normal, num_samples=50).run(key, X)
    z = np.asarray(result.samples["z"], np.float64)
    expected = stats.norm.logpdf(X[:, None], z, NOISE).sum(0)
    assert_close(result.log_weights, expected, rtol=(1e-5, 1e-12))
    weights = np.exp(expected) / np.exp(expected).sum()
    assert_close(np.exp(result.log_normalized_weights), weights, rtol=(1e-4, 1e-10))
    np.testing.assert_allclose(result.ess, 1 / np.sum(weights**2), rtol=1e-4)
    # Delta method, written out.
    raw = np.exp(expected)
    error = raw.std(ddof=1) / np.sqrt(50) / raw.mean()
    np.testing.assert_allclose(result.log_evidence.standard_error, error, rtol=1e-4)


def test_scaled_and_masked_likelihood_and_factor(key):
    """What is masked may lie outside the support."""

    def model(x, y, mask):
        z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
        with numpyro.plate("data", 3), handlers.mask(mask=mask):
            numpyro.sample("y", dist.Exponential(z).expand([3]), obs=y)
            with handlers.scale(scale=2.0):
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        numpyro.factor("pull", -(z**2))

    y, mask = np.array([0.4, -1.0, 2.0]), np.array([True, False, True])
    sampler = ImportanceSampling(model, num_samples=20)
    result = sampler.run(key, X, y, mask)
    z = np.asarray(result.samples["z"], np.float64)
    expected = 2 * stats.norm.logpdf(X[mask, None], z).sum(0) - z**2
    expected += 2 * np.log(z) - 2.4 * z
    assert_close(result.log_weights, expected, rtol=(1e-5, 1e-12))
    counted = sampler.run(key, X, y, np.ones(3, bool))
    assert np.all(counted.log_weights == -jnp.inf)


# Bit for bit only as the compiler rounds for users.
@pytest.mark.optimised
def test_chunks_change_nothing(key):
    whole = ImportanceSampling(normal, num_samples=1000, chunk_size=1000).run(key, X)
    for chunk_size in (1, 7):
        parts = ImportanceSampling(normal, num_samples=1000, chunk_size=chunk_size)
        result = parts.run(key, X)
        np.testing.assert_array_equal(result.samples["z"], whole.samples["z"])
        np.testing.assert_array_equal(result.log_weights, whole.log_weights)


def test_model_is_compiled_once_and_never_stale(key):
    runs = []

    def counted(x, noise):
        runs.append(None)
        normal(x, noise)

    sampler = ImportanceSampling(counted, num_samples=2000)
    first = sampler.run(key, X, noise=jnp.asarray(NOISE))
    num_runs = len(runs)
    second = sampler.run(key, X + 1.0, noise=jnp.asarray(NOISE))
    third = sampler.run(jax.random.key(1), X - 1, noise=jnp.asarray(NOISE))
    assert len(runs) == num_runs
    for result, x in ((first, X), (second, X + 1.0), (third, X - 1.0)):
        value, error = result.log_evidence
        assert abs(value - normal_log_evidence(x)) < 4 * error


# --- evidence of other models, and guides --------------------------------------------


ENERGY = kaem.Energy(kaem.RBF(-3.0, 3.0, 4), np.array([1.5, -1.0, 0.5, 2.0]))
PRIOR = kaem.KAEMPrior(ENERGY, dist.Normal(0.0, 1.0))


def learned(x, prior):
    z = numpyro.sample("z", prior)
    numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def learned_log_evidence():
    grid = np.linspace(-4.0, 5.0, 4001)
    density = np.exp(np.asarray(jax.jit(PRIOR.log_prob)(grid)))
    return np.log(integrate.simpson(density * stats.norm.pdf(0.7, grid, 0.5), x=grid))


def between(x, y):
    """A latent site that depends on an observed one is drawn given its value."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    y = numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
    b = numpyro.sample("b", dist.Normal(y, 1.0))
    numpyro.sample("x", dist.Normal(b, 1.0), obs=x)


def between_log_evidence():
    return stats.norm.logpdf(2.0, 0, 2**0.5) + stats.norm.logpdf(1.0, 2, 2**0.5)


def two_sites(x):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    z = numpyro.sample("z", dist.Normal(0.0, scale).expand([2]).to_event(1))
    numpyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x[:2])


def two_sites_log_evidence():
    def integrand(scale):
        density = stats.norm.pdf(X[:2], 0, np.sqrt(0.1**2 + scale**2)).prod()
        return density * stats.lognorm.pdf(scale, 0.5)

    return np.log(integrate.quad(integrand, 0, 30)[0])


def guide_of_one_site(x):
    """The other comes from its prior."""
    numpyro.sample("scale", dist.LogNormal(0.2, 0.6))


def improper(x):
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def scaled(x):
    with handlers.scale(scale=2.0):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def wide_guide(x):
    """Draws what the prior cannot."""
    numpyro.sample("z", dist.Normal(0.0, 1.5))


def log_evidence_of_power(power):
    def integrand(z):
        return stats.norm.pdf(z) ** power * stats.norm.pdf(X[0], z)

    return np.log(integrate.quad(integrand, -15, 15)[0])


CASES = {
    "learned prior": (learned, None, (0.7, PRIOR), learned_log_evidence),
    "observed between": (between, None, (1.0, 2.0), between_log_evidence),
    "guide of one site": (two_sites, guide_of_one_site, (X,), two_sites_log_evidence),
    "improper": (improper, wide_guide, (X,), partial(log_evidence_of_power, 0)),
    "scaled": (scaled, wide_guide, (X,), partial(log_evidence_of_power, 2)),
}


@pytest.mark.parametrize("case", with_long(CASES, *list(CASES)[:-1]))
def test_evidence(key, case):
    model, guide, args, truth = CASES[case]
    num_samples = 20_000 if model is two_sites else 8000
    result = ImportanceSampling(model, guide, num_samples=num_samples).run(key, *args)
    assert abs(result.log_evidence.value - truth()) < 4 * result.log_evidence[1]


@pytest.mark.long
@pytest.mark.parametrize("make_guide", [AutoNormal, AutoDiagonalNormal])
def test_fitted_guide(key, make_guide):
    guide = make_guide(two_sites)
    svi = SVI(two_sites, guide, Adam(0.03), Trace_ELBO())
    params = svi.run(key, 1000, X, progress_bar=False).params
    sampler = ImportanceSampling(two_sites, guide, params=params, num_samples=8000)
    result = sampler.run(key, X)
    assert sorted(result.samples) == ["scale", "z"]
    assert result.samples["z"].shape == (8000, 2)
    truth = two_sites_log_evidence()
    assert abs(result.log_evidence.value - truth) < 4 * result.log_evidence[1]
    prior = ImportanceSampling(two_sites, num_samples=8000).run(key, X)
    assert result.ess > 5 * prior.ess


def test_exact_guide_has_equal_weights(key):
    mean, scale = normal_posterior(X, 3)

    def guide(x):
        numpyro.sample("z", dist.Normal(mean, scale))

    result = ImportanceSampling(normal, guide, num_samples=400).run(key, X)
    np.testing.assert_allclose(result.ess, 400, rtol=1e-4)
    assert abs(result.log_evidence.value - normal_log_evidence(X)) < 1e-4
    unit_mean, unit_scale = normal_posterior(UNITS, NUM_REPEATS)

    def of_units(x):
        with numpyro.plate("units", len(x)):
            numpyro.sample("z", dist.Normal(unit_mean, unit_scale))

    sampler = ImportanceSampling(grouped, of_units, num_samples=99, unit_plate="units")
    ess = sampler.run(key, UNITS).ess
    np.testing.assert_allclose(ess, np.full(NUM_UNITS, 99), rtol=1e-4)


# --- one weight per unit -------------------------------------------------------------

NUM_UNITS, NUM_REPEATS = 5, 2
UNITS = np.random.default_rng(5).normal(0.4, 1.2, (NUM_UNITS, NUM_REPEATS))


def grouped(x, loc=LOC):
    """Two measurements of each unit."""
    with numpyro.plate("units", len(x)):
        z = numpyro.sample("z", dist.Normal(loc, SCALE))
        mean = jnp.stack([z] * NUM_REPEATS, axis=-1)
        numpyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)


LOCS = np.linspace(-1.0, 1.0, NUM_UNITS)


@pytest.mark.parametrize(
    ("loc", "share_proposals"),
    [
        (LOC, True),
        # Units with their own priors are not shared.
        (LOCS, None),
        pytest.param(LOC, False, marks=pytest.mark.long),
    ],
)
def test_units_have_their_own_posteriors(key, loc, share_proposals):
    sampler = ImportanceSampling(
        grouped, num_samples=6000, unit_plate="units", share_proposals=share_proposals
    )
    result = sampler.run(key, UNITS, loc)
    assert result.log_weights.shape == (6000, NUM_UNITS)
    assert result.samples["z"].shape == (6000, 1 if share_proposals else NUM_UNITS)
    for estimate in (result.pareto_k, result.ess, *result.log_evidence):
        assert estimate.shape == (NUM_UNITS,)
    mean, scale = normal_posterior(UNITS, NUM_REPEATS, loc)
    estimate, error = weighted_mean(result, result.samples["z"])
    assert np.all(np.abs(estimate - mean) < 4 * error)
    locs = np.broadcast_to(loc, NUM_UNITS)
    truth = [normal_log_evidence(*unit) for unit in zip(UNITS, locs, strict=True)]
    value, error = result.log_evidence
    assert np.all(np.abs(value - truth) < 4 * error)
    draws = np.asarray(result.resample(key, 3000)["z"])
    assert draws.shape == (3000, NUM_UNITS)
    error = scale / np.sqrt(np.minimum(result.ess, 3000))
    assert np.all(np.abs(draws.mean(0) - mean) < 6 * error)
    # Draws of different units are not paired by the particles that they share.
    correlation = np.corrcoef(draws.T)[~np.eye(NUM_UNITS, dtype=bool)]
    assert np.max(np.abs(correlation)) < 0.1


def test_shared_weights_are_those_of_each_unit_alone(key):
    """And so is whether a unit is resampled."""
    x = np.where(np.arange(NUM_UNITS)[:, None] == 0, 9.0, UNITS)
    sampler = ImportanceSampling(grouped, num_samples=500, unit_plate="units")
    result = sampler.run(key, x)
    shared = np.asarray(result.samples["z"])
    assert shared.shape == (500, 1)
    for unit in range(NUM_UNITS):
        alone = sampler.run(key, x[unit : unit + 1])
        np.testing.assert_array_equal(alone.samples["z"], shared)
        assert_close(result.log_weights[:, unit], np.asarray(alone.log_weights[:, 0]))
    low = result.ess < 100
    assert low[0]
    assert not low.all()
    after = result.resample_below(key, 0.2, smoothed=False)
    np.testing.assert_array_equal(after.resampled, low)
    kept = np.flatnonzero(~low)
    for unit in kept:
        np.testing.assert_array_equal(after.samples["z"][:, unit], shared[:, 0])
    assert_close(after.log_weights[:, 0], np.full(500, -np.log(500)))
    assert_close(
        after.log_weights[:, kept],
        result.log_normalized_weights[:, kept],
        rtol=(1e-4, 1e-10),
    )


def test_size_of_what_the_model_computes(key):
    """The hidden values in memory are those of a chunk, and of one unit if shared."""
    hidden = 37

    def model(x, weights):
        with numpyro.plate("units", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            mean = jnp.tanh(z @ weights) @ weights.T
            numpyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    arguments = (jnp.zeros((NUM_UNITS, 3)), jnp.ones((3, hidden)))

    def largest(share, chunk_size):
        """Number of hidden values in the largest array that holds them."""
        run = ModelRun(model, {}, arguments, {}, "units")
        proposals = Proposals(run, None, share)
        compiled = eqx.filter_jit(draw_and_weigh.__wrapped__)
        lowered = compiled.lower(proposals, 64, chunk_size, key)
        shapes = re.findall(rf"tensor<([\dx]*)x{hidden}xf", lowered.as_text())
        return max(np.prod([int(size) for size in s.split("x")]) for s in shapes)

    assert largest(True, 64) == largest(None, 64) == 64
    assert largest(False, 64) == 64 * NUM_UNITS
    # The check of independence computes four points for all units.
    assert largest(True, 30) == 30
    assert largest(False, 8) == 8 * NUM_UNITS


def hierarchical(x):
    """A location for all units; two latent sites in each, one given the other."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
    with numpyro.plate("units", len(x), dim=-2):
        a = numpyro.sample("a", dist.Normal(loc, 1.0))
        with numpyro.plate("repeats", NUM_REPEATS, dim=-1):
            b = numpyro.sample("b", dist.Normal(a, 0.5))
            numpyro.sample("x", dist.Normal(b, 0.5), obs=x)


def test_conditioned_global_site(key):
    fixed = handlers.condition(hierarchical, data={"loc": jnp.asarray(0.3)})
    sampler = ImportanceSampling(fixed, num_samples=8000, unit_plate="units")
    result = sampler.run(key, UNITS)
    # One prior once the location is fixed, for each site given the one before.
    assert result.samples["a"].shape == (8000, 1, 1)
    assert result.samples["b"].shape == (8000, 1, NUM_REPEATS)
    covariance = np.eye(NUM_REPEATS) * 0.5 + 1.0
    distribution = stats.multivariate_normal(np.full(NUM_REPEATS, 0.3), covariance)
    value, error = result.log_evidence
    assert np.all(np.abs(value - distribution.logpdf(UNITS)) < 4 * error)
    draws = result.resample(key, 50)
    assert draws["a"].shape == (50, NUM_UNITS, 1)
    assert draws["b"].shape == (50, NUM_UNITS, NUM_REPEATS)


# --- the verdict ---------------------------------------------------------------------


def many(x):
    """Precise measurements of many values: the prior is a hopeless proposal."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([x.size]).to_event(1))
    numpyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)


@pytest.mark.arviz
def test_verdict(key):
    good = ImportanceSampling(normal, num_samples=2000).run(key, X)
    assert good.reliable is True
    assert good.pareto_k <= 0.7
    assert "independent draws" in good.verdict
    bad = ImportanceSampling(many, num_samples=2000).run(key, jnp.ones(10))
    assert bad.pareto_k > 0.7
    assert bad.reliable is False
    assert "Not reliable" in bad.verdict
    for name in ("NUTS", "MALA", "AnnealedLangevin"):
        assert name in bad.verdict
    for result in (good, bad):
        text = str(result)
        for part in ("2000 particles", "log evidence", "Pareto k", result.verdict):
            assert part in text
        assert repr(result).startswith("ImportanceResult(num_samples=2000, pareto_k=")
    few = ImportanceSampling(normal, num_samples=10).run(key, X)
    assert np.isnan(few.pareto_k)
    assert few.reliable is False
    assert "10 draws are too few" in few.verdict

    def flat(x):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    equal = ImportanceSampling(flat, num_samples=100).run(key, 0.5)
    assert equal.pareto_k == -np.inf
    assert equal.reliable is True
    assert equal.log_evidence.standard_error == 0
    assert "no tail" in equal.verdict
    # Of units.
    sampler = ImportanceSampling(grouped, num_samples=500, unit_plate="units")
    assert "Reliable in all 5 units" in sampler.run(key, UNITS).verdict
    result = sampler.run(key, np.where(np.arange(5)[:, None] == 2, 8.0, UNITS))
    assert result.pareto_k[2] > 0.7
    assert "Not reliable in 1 of 5 units" in result.verdict
    assert "in unit 2" in result.verdict
    assert "5 units" in str(result)
    expected = "(proposals='prior', num_samples=500, unit_plate='units')"
    assert repr(sampler) == f"ImportanceSampling{expected}"


def bounded(x):
    with numpyro.plate("units", len(x)):
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.sample("x", dist.Uniform(z, z + 1.0), obs=x)


@pytest.mark.parametrize("unit_plate", [None, "units"])
def test_no_particle_carries_weight(key, unit_plate):
    sampler = ImportanceSampling(bounded, num_samples=100, unit_plate=unit_plate)
    result = sampler.run(key, jnp.array([0.5, 7.0]))
    value, error = result.log_evidence
    assert np.max(np.atleast_1d(error)) == np.inf
    assert np.min(np.atleast_1d(value)) == -np.inf
    assert np.min(np.atleast_1d(result.ess)) == 0
    assert "o particle carries weight" in result.verdict
    assert result.verdict in str(result)
    assert "NUTS" in result.verdict
    where = "" if unit_plate is None else " in unit 1"
    for resample in (result.resample, result.resample_below):
        with pytest.raises(ValueError, match=f"no particle carries weight{where}"):
            resample(key)
    if unit_plate is not None:
        np.testing.assert_array_equal(result.carries_weight, [True, False])
        assert np.isfinite(value[0])
