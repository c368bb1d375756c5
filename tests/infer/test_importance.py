"""Importance sampling against closed forms of conjugate models."""

import re

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
from numpyro_kaem.infer.importance_proposals import Options, propose
from tests.helpers import assert_close, with_long

X = jnp.array([0.4, 1.9, -0.3])
LOC, SCALE, NOISE = 0.5, 1.3, 0.8


def normal(x, noise=NOISE):
    """Several measurements of one Normal value."""
    z = numpyro.sample("z", dist.Normal(LOC, SCALE))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(z, noise), obs=x)


def normal_log_evidence(x):
    x = np.asarray(x, np.float64)
    covariance = NOISE**2 * np.eye(x.size) + SCALE**2
    return stats.multivariate_normal(np.full(x.size, LOC), covariance).logpdf(x)


def normal_posterior(x, num_measurements):
    precision = num_measurements / NOISE**2 + 1 / SCALE**2
    mean = (np.sum(x, axis=-1) / NOISE**2 + LOC / SCALE**2) / precision
    return mean, precision**-0.5


def weighted_mean(result, values):
    """Mean under the weights, and its standard error."""
    weights = np.exp(result.log_normalized_weights)
    values = np.asarray(values, np.float64)
    mean = np.sum(weights * values, axis=0)
    return mean, np.sqrt(np.sum(weights**2 * (values - mean) ** 2, axis=0))


# --- one weight per particle ---------------------------------------------------------


@pytest.fixture(scope="module")
def repeats():
    """Log evidence and its reported error over 200 seeds."""
    sampler = ImportanceSampling(normal, num_samples=500)
    results = [sampler.run(jax.random.key(seed), X) for seed in range(200)]
    return np.array([result.log_evidence for result in results])


def test_evidence_is_unbiased(repeats):
    truth = normal_log_evidence(X)
    ratio = np.exp(repeats[:, 0] - truth)
    error = ratio.std(ddof=1) / np.sqrt(ratio.size)
    assert abs(ratio.mean() - 1) < 3 * error
    assert error < 0.01


def test_reported_error_is_the_actual_one(repeats):
    actual = np.sqrt(np.mean((repeats[:, 0] - normal_log_evidence(X)) ** 2))
    reported = np.sqrt(np.mean(repeats[:, 1] ** 2))
    # A standard deviation of 200 values is known to 5 per cent.
    np.testing.assert_allclose(reported, actual, rtol=0.2)
    deviations = np.abs(repeats[:, 0] - normal_log_evidence(X)) / repeats[:, 1]
    assert np.mean(deviations < 3) >= 0.98


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_posterior(make_key):
    result = ImportanceSampling(normal, num_samples=20_000).run(make_key(1), X)
    assert result.samples["z"].shape == result.log_weights.shape == (20_000,)
    mean, scale = normal_posterior(np.asarray(X), 3)
    estimate, error = weighted_mean(result, result.samples["z"])
    assert abs(estimate - mean) < 4 * error
    draws = result.resample(make_key(2), 4000)["z"]
    assert draws.shape == (4000,)
    # Both the particles and the choice among them are random.
    statistic = stats.kstest(np.asarray(draws), stats.norm(mean, scale).cdf).statistic
    assert statistic < 2.2 / np.sqrt(min(result.ess, 4000))


def test_weights_are_the_likelihood(key):
    result = ImportanceSampling(normal, num_samples=50).run(key, X)
    z = np.asarray(result.samples["z"], np.float64)
    expected = stats.norm.logpdf(np.asarray(X)[:, None], z, NOISE).sum(0)
    assert_close(result.log_weights, expected, rtol=(1e-5, 1e-12))
    weights = np.exp(expected) / np.exp(expected).sum()
    assert_close(np.exp(result.log_normalized_weights), weights, rtol=(1e-4, 1e-10))
    np.testing.assert_allclose(result.ess, 1 / np.sum(weights**2), rtol=1e-4)
    # Delta method, written out.
    raw = np.exp(expected)
    error = raw.std(ddof=1) / np.sqrt(50) / raw.mean()
    np.testing.assert_allclose(result.log_evidence.standard_error, error, rtol=1e-4)


# Bit for bit only as the compiler rounds for users.
@pytest.mark.optimised
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_chunks_change_nothing(key, chunk_size):
    whole = ImportanceSampling(normal, num_samples=1000, chunk_size=1000).run(key, X)
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
    third = sampler.run(jax.random.key(1), np.asarray(X) - 1, noise=jnp.asarray(NOISE))
    assert len(runs) == num_runs
    for result, x in ((first, X), (second, X + 1.0), (third, X - 1.0)):
        value, error = result.log_evidence
        assert abs(value - normal_log_evidence(x)) < 4 * error


def test_kaem_prior(key):
    energy = kaem.Energy.init(jax.random.key(1), kaem.RBF(-3.0, 3.0, 4), scale=1.0)
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))

    def model(x, prior):
        z = numpyro.sample("z", prior)
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    result = ImportanceSampling(model, num_samples=8000).run(key, 0.7, prior)
    density = jax.jit(lambda z: jnp.exp(prior.log_prob(z)))
    grid = np.linspace(-4.0, 5.0, 4001)
    likelihood = np.asarray(density(grid)) * stats.norm.pdf(0.7, grid, 0.5)
    truth = np.log(integrate.simpson(likelihood, x=grid))
    assert abs(result.log_evidence.value - truth) < 4 * result.log_evidence[1]


def test_proposals_given_observed_values(key):
    """A latent site that depends on an observed one is drawn given its value."""

    def model(x, y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        y = numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
        b = numpyro.sample("b", dist.Normal(y, 1.0))
        numpyro.sample("x", dist.Normal(b, 1.0), obs=x)

    result = ImportanceSampling(model, num_samples=8000).run(key, 1.0, 2.0)
    truth = stats.norm.logpdf(2.0, 0, 2**0.5) + stats.norm.logpdf(1.0, 2, 2**0.5)
    assert abs(result.log_evidence.value - truth) < 4 * result.log_evidence[1]


def test_scaled_and_masked_likelihood_and_factor(key):
    mask = jnp.array([True, False, True])

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3), handlers.mask(mask=mask):
            with handlers.scale(scale=2.0):
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        numpyro.factor("pull", -(z**2))

    result = ImportanceSampling(model, num_samples=20).run(key, X)
    z = np.asarray(result.samples["z"], np.float64)
    kept = np.asarray(X)[np.asarray(mask)]
    expected = 2 * stats.norm.logpdf(kept[:, None], z).sum(0) - z**2
    assert_close(result.log_weights, expected, rtol=(1e-5, 1e-12))


def test_masked_values_may_be_outside_the_support(key):
    def model(x, mask):
        z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
        with numpyro.plate("data", 3), handlers.mask(mask=mask):
            numpyro.sample("x", dist.Exponential(z).expand([3]), obs=x)

    x = jnp.array([0.4, -1.0, 2.0])
    sampler = ImportanceSampling(model, num_samples=20)
    result = sampler.run(key, x, jnp.array([True, False, True]))
    z = np.asarray(result.samples["z"], np.float64)
    assert_close(result.log_weights, 2 * np.log(z) - 2.4 * z, rtol=(1e-5, 1e-12))
    counted = sampler.run(key, x, jnp.array([True, True, True]))
    assert np.all(counted.log_weights == -jnp.inf)


def test_predictions_from_resampled_draws(key):
    def model(x=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2 * z)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    draws = ImportanceSampling(model, num_samples=200).run(key, 1.0).resample(key)
    predicted = Predictive(model, draws)(key)
    assert predicted["x"].shape == (200,)
    assert_close(predicted["twice"], 2 * np.asarray(draws["z"]))


# --- guides --------------------------------------------------------------------------


def test_exact_guide_has_equal_weights(key):
    mean, scale = normal_posterior(np.asarray(X), 3)

    def guide(x):
        numpyro.sample("z", dist.Normal(mean, scale))

    result = ImportanceSampling(normal, guide, num_samples=400).run(key, X)
    np.testing.assert_allclose(result.ess, 400, rtol=1e-4)
    assert abs(result.log_evidence.value - normal_log_evidence(X)) < 1e-4


def two_sites(x):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    z = numpyro.sample("z", dist.Normal(0.0, scale).expand([2]).to_event(1))
    numpyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)


def two_sites_log_evidence(x):
    def integrand(scale):
        density = stats.norm.pdf(x, 0, np.sqrt(0.1**2 + scale**2)).prod()
        return density * stats.lognorm.pdf(scale, 0.5)

    return np.log(integrate.quad(integrand, 0, 30)[0])


@pytest.mark.long
@pytest.mark.parametrize(
    "make_guide",
    [AutoNormal, pytest.param(AutoDiagonalNormal, marks=pytest.mark.long)],
)
def test_fitted_guide(key, make_guide):
    x = jnp.array([1.5, -0.4])
    guide = make_guide(two_sites)
    svi = SVI(two_sites, guide, Adam(0.03), Trace_ELBO())
    params = svi.run(key, 1000, x, progress_bar=False).params
    sampler = ImportanceSampling(two_sites, guide, params=params, num_samples=8000)
    result = sampler.run(key, x)
    assert sorted(result.samples) == ["scale", "z"]
    assert result.samples["z"].shape == (8000, 2)
    truth = two_sites_log_evidence(np.asarray(x))
    assert abs(result.log_evidence.value - truth) < 4 * result.log_evidence[1]
    prior = ImportanceSampling(two_sites, num_samples=8000).run(key, x)
    assert result.ess > 5 * prior.ess


def test_sites_that_the_guide_leaves_out_come_from_the_prior(key):
    x = jnp.array([1.5, -0.4])

    def guide(x):
        numpyro.sample("scale", dist.LogNormal(0.2, 0.6))

    result = ImportanceSampling(two_sites, guide, num_samples=20_000).run(key, x)
    truth = two_sites_log_evidence(np.asarray(x))
    assert abs(result.log_evidence.value - truth) < 4 * result.log_evidence[1]


# --- one weight per unit -------------------------------------------------------------

NUM_UNITS, NUM_REPEATS = 5, 2
UNITS = jax.random.normal(jax.random.key(5), (NUM_UNITS, NUM_REPEATS)) * 1.2 + 0.4


def grouped(x, loc=LOC, shapes=None):
    """Two measurements of each unit."""
    with numpyro.plate("units", len(x)):
        z = numpyro.sample("z", dist.Normal(loc, SCALE))
        if shapes is not None:
            shapes.append(z.shape)
        mean = jnp.stack([z] * NUM_REPEATS, axis=-1)
        numpyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)


@pytest.mark.parametrize("share_proposals", with_long([True, False], True))
def test_units_have_their_own_posteriors(key, share_proposals):
    sampler = ImportanceSampling(
        grouped, num_samples=6000, unit_plate="units", share_proposals=share_proposals
    )
    result = sampler.run(key, UNITS)
    assert result.log_weights.shape == (6000, NUM_UNITS)
    assert result.samples["z"].shape == (6000, 1 if share_proposals else NUM_UNITS)
    for estimate in (result.pareto_k, result.ess, *result.log_evidence):
        assert estimate.shape == (NUM_UNITS,)
    mean, scale = normal_posterior(np.asarray(UNITS), NUM_REPEATS)
    estimate, error = weighted_mean(result, result.samples["z"])
    assert np.all(np.abs(estimate - mean) < 4 * error)
    truth = np.array([normal_log_evidence(unit) for unit in UNITS])
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
    sampler = ImportanceSampling(grouped, num_samples=300, unit_plate="units")
    together = sampler.run(key, UNITS)
    for unit in range(NUM_UNITS):
        alone = sampler.run(key, UNITS[unit : unit + 1])
        np.testing.assert_array_equal(alone.samples["z"], together.samples["z"])
        assert_close(together.log_weights[:, unit], np.asarray(alone.log_weights[:, 0]))


def num_decodes(share_proposals):
    """Latent values that reach the decoder, one count for each compiled run."""
    shapes = []
    sampler = ImportanceSampling(
        lambda x: grouped(x, shapes=shapes),
        num_samples=64,
        unit_plate="units",
        share_proposals=share_proposals,
    )
    sampler.run(jax.random.key(0), UNITS)
    # The last run of the model is that of the particles; the checks come before.
    return 64 * int(np.prod(shapes[-1]))


def test_shared_proposals_are_decoded_once_for_all_units():
    assert num_decodes(True) == num_decodes(None) == 64
    assert num_decodes(False) == 64 * NUM_UNITS


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
        options = Options("units", share, chunk_size)
        lowered = propose.lower(model, None, {}, options, 64, key, arguments, {})
        shapes = re.findall(rf"tensor<([\dx]*)x{hidden}xf", lowered.as_text())
        return max(np.prod([int(size) for size in s.split("x")]) for s in shapes)

    assert largest(True, 64) == 64
    assert largest(False, 64) == 64 * NUM_UNITS
    # The check of independence computes four points for all units.
    assert largest(True, 30) == 30
    assert largest(False, 8) == 8 * NUM_UNITS


def test_units_with_their_own_priors_are_not_shared(key):
    loc = jnp.linspace(-1.0, 1.0, NUM_UNITS)
    sampler = ImportanceSampling(grouped, num_samples=4000, unit_plate="units")
    result = sampler.run(key, UNITS, loc)
    assert result.samples["z"].shape == (4000, NUM_UNITS)
    precision = NUM_REPEATS / NOISE**2 + 1 / SCALE**2
    mean = (np.sum(UNITS, -1) / NOISE**2 + np.asarray(loc) / SCALE**2) / precision
    estimate, error = weighted_mean(result, result.samples["z"])
    assert np.all(np.abs(estimate - mean) < 4 * error)
    shared = ImportanceSampling(grouped, unit_plate="units", share_proposals=True)
    with pytest.raises(ValueError, match="a prior with parameters for each unit"):
        shared.run(key, UNITS, loc)


def hierarchical(x):
    """A location for all units; two latent sites in each, one given the other."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
    with numpyro.plate("units", len(x), dim=-2):
        a = numpyro.sample("a", dist.Normal(loc, 1.0))
        with numpyro.plate("repeats", NUM_REPEATS, dim=-1):
            b = numpyro.sample("b", dist.Normal(a, 0.5))
            numpyro.sample("x", dist.Normal(b, 0.5), obs=x)


def test_global_site_is_refused_or_conditioned(key):
    sampler = ImportanceSampling(hierarchical, unit_plate="units")
    with pytest.raises(ValueError, match="got outside it: 'loc'"):
        sampler.run(key, UNITS)
    fixed = handlers.condition(hierarchical, data={"loc": jnp.asarray(0.3)})
    sampler = ImportanceSampling(fixed, num_samples=8000, unit_plate="units")
    result = sampler.run(key, UNITS)
    # One prior once the location is fixed, for each site given the one before.
    assert result.samples["a"].shape == (8000, 1, 1)
    assert result.samples["b"].shape == (8000, 1, NUM_REPEATS)
    covariance = np.eye(NUM_REPEATS) * 0.5 + 1.0
    law = stats.multivariate_normal(np.full(NUM_REPEATS, 0.3), covariance)
    value, error = result.log_evidence
    assert np.all(np.abs(value - law.logpdf(np.asarray(UNITS))) < 4 * error)
    draws = result.resample(key, 50)
    assert draws["a"].shape == (50, NUM_UNITS, 1)
    assert draws["b"].shape == (50, NUM_UNITS, NUM_REPEATS)


def test_guide_of_units(key):
    mean, scale = normal_posterior(np.asarray(UNITS), NUM_REPEATS)

    def guide(x):
        with numpyro.plate("units", len(x)):
            numpyro.sample("z", dist.Normal(mean, scale))

    sampler = ImportanceSampling(grouped, guide, num_samples=100, unit_plate="units")
    result = sampler.run(key, UNITS)
    np.testing.assert_allclose(result.ess, np.full(NUM_UNITS, 100), rtol=1e-4)
    shared = ImportanceSampling(
        grouped, guide, unit_plate="units", share_proposals=True
    )
    with pytest.raises(ValueError, match="got a guide"):
        shared.run(key, UNITS)

    def outside(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
        assert z.shape == (len(x),)

    with pytest.raises(ValueError, match="guide must draw within the plate"):
        ImportanceSampling(grouped, outside, unit_plate="units").run(key, UNITS)


def test_dependent_units_are_found(key):
    def centred(x):
        with numpyro.plate("units", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z - z.mean(), 1.0), obs=x)

    def summed(x):
        with numpyro.plate("units", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x[0])

    for model in (centred, summed):
        sampler = ImportanceSampling(model, num_samples=10, unit_plate="units")
        with pytest.raises(ValueError, match="must make units independent"):
            sampler.run(key, UNITS[:, 0])


def test_resample_only_units_with_few_effective_draws(key):
    x = UNITS.at[0].set(9.0)
    sampler = ImportanceSampling(grouped, num_samples=500, unit_plate="units")
    result = sampler.run(key, x)
    low = result.ess < 100
    assert low[0]
    assert not low.all()
    after = result.resample_below(key, 0.2, smoothed=False)
    np.testing.assert_array_equal(after.resampled, low)
    kept = np.flatnonzero(~low)
    shared = np.asarray(result.samples["z"])
    for unit in kept:
        np.testing.assert_array_equal(after.samples["z"][:, unit], shared[:, 0])
    assert_close(after.log_weights[:, 0], np.full(500, -np.log(500)))
    assert_close(
        after.log_weights[:, kept],
        result.log_normalized_weights[:, kept],
        rtol=(1e-4, 1e-10),
    )


# --- the verdict ---------------------------------------------------------------------


def many(x):
    """Precise measurements of many values: the prior is a hopeless proposal."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([x.size]).to_event(1))
    numpyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)


@pytest.mark.arviz
def test_verdict(key):
    sampler = ImportanceSampling(normal, num_samples=2000)
    good = sampler.run(key, X)
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


@pytest.mark.arviz
def test_verdict_of_units(key):
    sampler = ImportanceSampling(grouped, num_samples=500, unit_plate="units")
    assert "Reliable in all 5 units" in sampler.run(key, UNITS).verdict
    x = UNITS.at[2].set(8.0)
    result = sampler.run(key, x)
    assert result.pareto_k[2] > 0.7
    assert "Not reliable in 1 of 5 units" in result.verdict
    assert "in unit 2" in result.verdict
    assert "5 units" in str(result)


def test_verdict_of_few_draws_and_of_equal_weights(key):
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
    with pytest.raises(ValueError, match="no particle carries weight"):
        result.resample(key)
    with pytest.raises(ValueError, match="no particle carries weight"):
        result.resample_below(key)
    if unit_plate is not None:
        np.testing.assert_array_equal(result.carries_weight, [True, False])
        assert np.isfinite(value[0])
        with pytest.raises(ValueError, match="in unit 1"):
            result.resample(key)


# --- bad input -----------------------------------------------------------------------


def subsampled(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("units", 3, subsample_size=2) as indices:
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[indices])


def discrete(x):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def unobserved(x):
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def all_observed(x):
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)


def improper(x):
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def masked(x):
    with handlers.mask(mask=False):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def scaled(x):
    with handlers.scale(scale=2.0):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def broadcasting(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0).expand([3]), obs=x[:, None])


def undefined(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("x", jnp.where(z > 0, jnp.nan, 0.0))


def infinite(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("x", jnp.where(z > 0, jnp.inf, 0.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (subsampled, "subsample"),
        (discrete, "continuous latent sites"),
        (unobserved, "observed site"),
        (all_observed, "at least one latent site"),
        (improper, "whose prior can be drawn from"),
        (masked, "whose prior can be drawn from"),
        (scaled, "whose prior can be drawn from"),
        (broadcasting, "which would broadcast"),
        (undefined, "finite or -inf, got nan"),
        (infinite, "finite or -inf, got inf"),
    ],
)
def test_bad_model(key, model, message):
    sampler = ImportanceSampling(model, num_samples=50)
    with pytest.raises(ValueError, match=message):
        sampler.run(key, X)


@pytest.mark.parametrize("model", with_long([improper, scaled], improper))
def test_guide_draws_what_the_prior_cannot(key, model):
    def guide(x):
        numpyro.sample("z", dist.Normal(0.0, 1.5))

    result = ImportanceSampling(model, guide, num_samples=8000).run(key, X)
    power = {improper: 0, scaled: 2}[model]
    truth = integrate.quad(
        lambda z: stats.norm.pdf(z) ** power * stats.norm.pdf(float(X[0]), z), -15, 15
    )[0]
    assert abs(result.log_evidence.value - np.log(truth)) < 4 * result.log_evidence[1]


def wrong_name(x):
    numpyro.sample("w", dist.Normal(0.0, 1.0))


def wrong_shape(x):
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (wrong_name, r"which are \['z'\], got 'w'"),
        (wrong_shape, r"in the shape \(\) that the model gives it, got \(2,\)"),
        (AutoNormal(normal), "must have been fitted"),
    ],
)
def test_bad_guide(key, guide, message):
    with pytest.raises(ValueError, match=message):
        ImportanceSampling(normal, guide, num_samples=10).run(key, X)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be a positive"),
        ({"num_samples": 10.0}, ValueError, "num_samples must be a positive"),
        ({"chunk_size": -1}, ValueError, "chunk_size must be a positive"),
        ({"unit_plate": 3}, TypeError, "unit_plate must be the name"),
        ({"share_proposals": True}, ValueError, "share_proposals=True needs"),
        ({"guide": 3}, TypeError, "guide must be a function"),
        ({"model": None}, TypeError, "model must be a function"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        ImportanceSampling(**{"model": normal, **options})


def test_bad_key_and_plate(key):
    with pytest.raises(TypeError, match="rng_key must be one random key"):
        ImportanceSampling(normal).run(0, X)
    sampler = ImportanceSampling(normal, unit_plate="groups")
    with pytest.raises(ValueError, match="got 'groups'; its plates are 'data'"):
        sampler.run(key, X)


def test_model_that_needs_all_units_says_so(key):
    def model(x):
        with numpyro.plate("units", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z.reshape(len(x)), 1.0), obs=x)

    sampler = ImportanceSampling(model, num_samples=10, unit_plate="units")
    with pytest.raises(TypeError) as error:
        sampler.run(key, X)
    assert "share_proposals=False" in error.value.__notes__[0]
    sampler = ImportanceSampling(
        model, num_samples=10, unit_plate="units", share_proposals=False
    )
    assert sampler.run(key, X).log_weights.shape == (10, 3)


def test_repr():
    sampler = ImportanceSampling(grouped, num_samples=7, unit_plate="units")
    expected = (
        "ImportanceSampling(proposals='prior', num_samples=7, unit_plate='units')"
    )
    assert repr(sampler) == expected
