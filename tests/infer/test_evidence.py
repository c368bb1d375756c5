"""The two estimators of the evidence, their errors, and what they refuse."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from scipy import integrate, stats

from numpyro_kaem.infer import AnnealedLangevin, log_evidence
from numpyro_kaem.infer.evidence import (
    _compare,
    combine,
    steppingstone,
    thermodynamic_integral,
    why_replicas_stay,
)
from numpyro_kaem.infer.ladder import power_ladder
from numpyro_kaem.infer.weights import Estimate
from tests.helpers import assert_close, with_long


def annealed(
    model,
    *args,
    num_chains=2,
    num_warmup=300,
    num_samples=500,
    init_params=None,
    **options,
):
    """Run a population quietly."""
    mcmc = MCMC(
        AnnealedLangevin(model, **{"num_temperatures": 6, **options}),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), *args, init_params=init_params)
    return mcmc


# --- the estimators by themselves -----------------------------------------------------


def normal_log_likelihood(ladder, num_draws, dim, seed=0):
    """Independent draws of the log likelihood at each temperature of a Normal model.

    With a standard Normal prior and the likelihood exp(-|z|^2 / (2 s^2)), z has the
    variance 1 / (1 + t / s^2) at the temperature t, and the evidence is known.
    """
    rng = np.random.default_rng(seed)
    precision = 50.0
    variance = 1 / (1 + ladder * precision)
    squares = variance * rng.chisquare(dim, size=(num_draws, len(ladder)))
    truth = -0.5 * dim * np.log1p(precision)
    return -0.5 * precision * squares, truth


ESTIMATORS = [thermodynamic_integral, steppingstone]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_errors_are_those_of_many_repeats(estimator):
    ladder = power_ladder(12, 3.0)
    runs = [normal_log_likelihood(ladder, 400, 3, seed) for seed in range(200)]
    estimates = [combine([estimator(ladder, draws)]) for draws, _ in runs]
    value, reported = np.array([estimate for estimate, _ in estimates]).T
    discretisation = np.array([size for _, size in estimates])
    actual = value.std(ddof=1)
    np.testing.assert_allclose(np.sqrt((reported**2).mean()), actual, rtol=0.2)
    # The mean of 200, within its error and what is said of the discretisation.
    bound = 4 * actual / 200**0.5 + 2 * discretisation.mean()
    assert abs(value.mean() - runs[0][1]) < bound


def test_integral_of_fourth_order_knows_its_error():
    """Exact means and variances, from quantiles instead of draws."""
    quantiles = stats.chi2(4).ppf((np.arange(200_000) + 0.5) / 200_000)
    precision = 3.0
    truth = -0.5 * 4 * np.log1p(precision)
    for num_temperatures in (3, 4, 5, 8):
        ladder = np.linspace(0.0, 1.0, num_temperatures)
        variance = 1 / (1 + ladder * precision)
        log_likelihood = -0.5 * precision * variance * quantiles[:, None]
        series = thermodynamic_integral(ladder, log_likelihood)
        trapezoid = integrate.trapezoid(log_likelihood.mean(0), ladder)
        error = series.value - truth
        assert abs(error) < 0.2 * abs(trapezoid - truth)
        assert 0.3 * abs(error) < abs(series.discretisation) < 3 * abs(error)
    # Two temperatures are enough to integrate: the correction bounds the error.
    draws, _ = normal_log_likelihood(np.array([0.0, 1.0]), 100, 1)
    mean, variance = draws.mean(0), draws.var(0)
    series = thermodynamic_integral(np.array([0.0, 1.0]), draws)
    correction = (variance[1] - variance[0]) / 12
    assert_close(series.value, mean.mean() - correction, rtol=1e-10)
    assert abs(series.discretisation) == pytest.approx(abs(correction))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_error_counts_autocorrelation_and_differences_of_chains(estimator):
    ladder = power_ladder(6, 3.0)
    # Each draw ten times: ten times the draws, and no smaller an error.
    draws, _ = normal_log_likelihood(ladder, 500, 2)
    once, _ = combine([estimator(ladder, draws)])
    again, _ = combine([estimator(ladder, np.repeat(draws, 10, axis=0))])
    assert_close(again.value, once.value, rtol=1e-9)
    assert 0.8 < again.standard_error / once.standard_error < 1.25
    chains = [normal_log_likelihood(ladder, 400, 2, seed)[0] for seed in (0, 1)]
    one, other = (estimator(ladder, draws) for draws in chains)
    both, single = combine([one, other])[0], combine([one])[0]
    assert_close(both.value, (one.value + other.value) / 2, rtol=1e-12)
    assert 0.5 < both.standard_error / single.standard_error < 0.95
    apart, _ = combine([one, other._replace(value=other.value + 10.0)])
    assert apart.standard_error > 3.0
    # A constant likelihood is known exactly.
    estimate, _ = combine([estimator(power_ladder(4, 2.0), np.full((50, 4), -1.25))])
    assert_close(estimate.value, -1.25, rtol=1e-12)
    assert estimate.standard_error == 0.0


# --- against closed forms -------------------------------------------------------------

RNG = np.random.default_rng(20)
COVARIATE = np.linspace(-1.0, 1.0, 15)
DESIGN = np.stack([COVARIATE**0, COVARIATE, COVARIATE**2], 1)
PRIOR_MEAN, PRIOR_SCALE = np.array([0.5, 0.0, -1.0]), np.array([2.0, 3.0, 4.0])


def normal(y):
    z = numpyro.sample("z", dist.Normal(1.0, 3.0).expand([y.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(z, 0.7).to_event(1), obs=y)


def normal_evidence(y):
    covariance = 0.49 * np.eye(len(y)) + 9.0
    return stats.multivariate_normal(np.ones(len(y)), covariance).logpdf(y.T).sum()


def binomial(y):
    p = numpyro.sample("p", dist.Beta(2.0, 3.0).expand(y.shape).to_event(1))
    numpyro.sample("y", dist.Binomial(12, p).to_event(1), obs=y)


def binomial_evidence(y):
    return stats.betabinom(12, 2.0, 3.0).logpmf(y).sum()


def regression(y):
    prior = dist.Normal(jnp.asarray(PRIOR_MEAN), jnp.asarray(PRIOR_SCALE))
    coefficients = numpyro.sample("coefficients", prior.to_event(1))
    mean = jnp.asarray(DESIGN) @ coefficients
    numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def regression_evidence(y):
    covariance = (DESIGN * PRIOR_SCALE**2) @ DESIGN.T + 0.25 * np.eye(15)
    return stats.multivariate_normal(DESIGN @ PRIOR_MEAN, covariance).logpdf(y)


def normal_data(dim):
    return (RNG.normal(1.0, 3.0, dim) + RNG.normal(0.0, 0.7, (4, dim))).round(2)


CASES = {
    "normal, dimension 1": (normal, normal_evidence, normal_data(1)),
    "normal, dimension 20": (normal, normal_evidence, normal_data(20)),
    "binomial, dimension 1": (binomial, binomial_evidence, np.array([10])),
    "binomial, dimension 8": (binomial, binomial_evidence, RNG.integers(0, 13, 8)),
    "regression": (
        regression,
        regression_evidence,
        (DESIGN @ [1.0, -2.0, 1.0] + RNG.normal(0.0, 0.5, 15)).round(2),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_evidence_over_a_hundred_seeds(case):
    """Each of a hundred populations has its own key, ladder and estimate."""
    model, exact, y = CASES[case]
    options = {"num_temperatures": 12, "num_local_steps": 3}
    mcmc = annealed(model, y, num_chains=100, num_samples=400, **options)
    truth = exact(y)
    ladders = np.asarray(mcmc.last_state.temperatures, dtype=float)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    draws = np.asarray(fields["replica_log_likelihood"], dtype=float)
    for estimator in ESTIMATORS:
        estimates = [combine([estimator(*c)]) for c in zip(ladders, draws, strict=True)]
        value, reported = np.array([estimate for estimate, _ in estimates]).T
        error = value - truth
        assert np.sum(np.abs(error) <= 3 * reported) >= 95, estimator.__name__
        ratio = np.sqrt((reported**2).mean() / (error**2).mean())
        assert 1 / 3 < ratio < 3, estimator.__name__
    together = log_evidence(mcmc)
    for estimate, discretisation in (
        (together.thermodynamic, together.discretisation_error),
        (together.steppingstone, 0.0),
    ):
        bound = 4 * estimate.standard_error + 2 * discretisation
        assert abs(estimate.value - truth) < bound


@pytest.fixture(scope="module")
def two_chains():
    return annealed(normal, np.array([[1.5], [0.3]]), num_temperatures=8)


def test_evidence_of_two_chains(two_chains):
    evidence = log_evidence(two_chains)
    truth = normal_evidence(np.array([[1.5], [0.3]]))
    for estimate in (
        evidence.thermodynamic,
        evidence.steppingstone,
        evidence.backward_steppingstone,
    ):
        assert abs(estimate.value - truth) < 4 * estimate.standard_error
        assert 0.0 < estimate.standard_error < 0.1
    assert 0.0 < evidence.discretisation_error < 0.05
    assert evidence.temperatures.shape == evidence.mean_log_likelihood.shape == (2, 8)
    assert np.all(np.diff(evidence.mean_log_likelihood, axis=1) > 0)
    assert "steppingstone=" in repr(evidence)


# --- warnings and errors --------------------------------------------------------------


def test_disagreement_is_told():
    """Three temperatures, kept where they are, cannot carry this integral."""
    options = {"temperatures": [0.0, 0.5, 1.0], "adapt_ladder": False}
    mcmc = annealed(normal, normal_data(3), num_temperatures=3, **options)
    with (
        pytest.warns(UserWarning, match=r"disagree: thermodynamic .*\(bias up to"),
        pytest.warns(UserWarning, match="disagree: backward steppingstone"),
        pytest.warns(UserWarning, match=r"0 round trips .* num_temperatures=5 or more"),
    ):
        log_evidence(mcmc)

    steps, back = Estimate(-3.0, 0.1), Estimate(-2.5, 0.1)
    with pytest.warns(UserWarning, match=r"disagree: backward steppingstone -2.500"):
        _compare(steps, back, Estimate(-2.0, 0.1), 0.8, 0.0, 2)
    # Within three errors of both.
    _compare(steps, Estimate(-2.6, 0.1), Estimate(-2.6, 0.1), 0.0, 0.0, 2)


def test_replicas_that_stay_are_told(two_chains):
    """Each remedy where it helps; the expected number is that of independent draws."""
    state = two_chains.last_state
    assert why_replicas_stay(two_chains) == ""

    def stay(trips, acceptance, count=500):
        mcmc = copy.copy(two_chains)
        means = state.means._replace(
            num_iterations=np.full(2, count),
            swap_acceptance=np.full((2, 7), acceptance),
        )
        tracker = state.tracker._replace(round_trips=np.array(trips))
        mcmc._last_state = state._replace(means=means, tracker=tracker)
        return why_replicas_stay(mcmc)

    # Two chains of 500 iterations, each with 1 / (2 + 2 * 7 * .25 / .75) round trips.
    told = stay([4, 3], 0.75)
    assert "made 7 round trips" in told
    assert "would allow 150 (communication barrier 1.8" in told
    assert "Raise num_local_steps" in told
    assert "Raise num_samples" in stay([2, 1], 0.75, count=20)
    assert "Use num_temperatures=15 or more, not 8" in stay([0, 0], 0.02)
    assert stay([10, 5], 0.75) == ""
    assert stay([7, 5], 0.75) != ""


@pytest.mark.long
def test_spike_is_found_from_a_start_beside_it_and_told():
    """It holds .99 of the mass, which no population finds by itself."""

    def spike_and_slab():
        z = numpyro.sample("z", dist.Uniform(-0.5, 0.5).expand([10]).to_event(1))
        narrow = dist.Normal(0.0, 0.01).log_prob(z).sum()
        broad = dist.Normal(0.0, 0.1).log_prob(z).sum()
        numpyro.factor("likelihood", jnp.logaddexp(jnp.log(100.0) + narrow, broad))

    options = {"num_chains": 8, "num_warmup": 500, "num_temperatures": 16}
    start = np.random.default_rng(0).logistic(size=(8, 10))
    start[:4] = 0.0
    mcmc = annealed(spike_and_slab, init_params={"z": start}, **options)
    with pytest.warns(UserWarning, match="some have found what others have not"):
        log_evidence(mcmc)
    far = np.abs(mcmc.get_samples(group_by_chain=True)["z"]).max(-1)
    assert np.all((far < 0.05).mean(1)[:4] > 0.8)
    mcmc = annealed(spike_and_slab, init_params={"z": np.zeros((8, 10))}, **options)
    with (
        pytest.warns(UserWarning, match="Chains give log evidences"),
        pytest.warns(UserWarning, match="Raise num_local_steps"),
    ):
        value, error = log_evidence(mcmc).steppingstone
    assert abs(value - np.log(101)) < 4 * error < 10


def test_chains_that_differ_are_told(two_chains):
    mcmc, fields = copy.copy(two_chains), two_chains.get_extra_fields(True)
    draws = np.array(fields["replica_log_likelihood"])
    draws[1] += 2.0
    mcmc.get_extra_fields = lambda group_by_chain: {"replica_log_likelihood": draws}
    with pytest.warns(UserWarning, match=r"Chains give .* some have found what others"):
        evidence = log_evidence(mcmc)
    # Two nats apart.
    assert 0.5 < evidence.steppingstone.standard_error < 5.0


def test_likelihood_that_is_zero_somewhere():
    """Only the steppingstone estimates the probability of an interval."""

    def interval():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("inside", jnp.where(jnp.abs(z) < 1.0, 0.0, -jnp.inf))

    mcmc = annealed(interval, num_temperatures=3, num_samples=2000, num_chains=1)
    with pytest.warns(UserWarning, match="likelihood zero"):
        evidence = log_evidence(mcmc)
    assert np.isnan(evidence.thermodynamic.value)
    assert np.isnan(evidence.backward_steppingstone.value)
    truth = np.log(stats.norm.cdf(1.0) - stats.norm.cdf(-1.0))
    estimate = evidence.steppingstone
    assert abs(estimate.value - truth) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.1
    assert evidence.temperatures.shape == (1, 3)


PRIORS = {
    "half-normal": dist.HalfNormal(1.0),
    "exponential": dist.Exponential(1.0),
    "gamma": dist.Gamma(2.0, 2.0),
}


@pytest.mark.parametrize("name", with_long(PRIORS, "exponential"))
def test_mean_log_likelihood_that_the_prior_has_not(name):
    """A scale near zero makes it minus infinity, or nearly so."""
    prior = PRIORS[name]
    y = np.random.default_rng(0).normal(0.3, 1.2, 40).round(2)

    def noise(y):
        scale = numpyro.sample("scale", prior)
        numpyro.sample("y", dist.Normal(0.0, scale).expand(y.shape).to_event(1), obs=y)

    def likelihood(scale):
        return np.exp(stats.norm(0.0, scale).logpdf(y).sum() + 70.0)

    def integrand(scale):
        return likelihood(scale) * float(np.exp(prior.log_prob(scale)))

    truth = np.log(integrate.quad(integrand, 1e-3, 20.0, limit=200)[0]) - 70.0
    mcmc = annealed(noise, y, num_temperatures=10, num_samples=1000)
    with pytest.warns(UserWarning, match=r"too heavy a tail .* not estimated"):
        evidence = log_evidence(mcmc)
    assert np.isnan(evidence.thermodynamic.value)
    assert np.isnan(evidence.backward_steppingstone.value)
    estimate = evidence.steppingstone
    assert abs(estimate.value - truth) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.2


def test_what_is_not_a_run_of_a_population(two_chains):
    nuts = MCMC(NUTS(normal), num_warmup=1, num_samples=1)
    kernel = AnnealedLangevin(normal, num_temperatures=3)
    fields = two_chains.get_extra_fields(group_by_chain=True)
    few = copy.copy(two_chains)
    few.get_extra_fields = lambda group_by_chain: {
        k: v[:, :4] for k, v in fields.items()
    }
    for mcmc, error, message in (
        ({}, TypeError, r"mcmc must be a numpyro.infer.MCMC .* got dict"),
        (nuts, TypeError, r"AnnealedLangevin kernel.* got NUTS"),
        (MCMC(kernel, num_warmup=1, num_samples=9), ValueError, "must have been run"),
        (few, ValueError, "at least 8 draws of each chain, got 4"),
    ):
        with pytest.raises(error, match=message):
            log_evidence(mcmc)


def with_prior(prior, **options):
    def model(y):
        with numpyro.handlers.scale(**options):
            z = numpyro.sample("z", prior)
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return model


def test_prior_of_unknown_integral_has_no_evidence():
    improper = with_prior(dist.ImproperUniform(dist.constraints.real, (), ()), scale=1)
    mcmc = annealed(improper, 0.7, num_temperatures=3, num_warmup=20, num_samples=10)
    assert np.all(np.isfinite(mcmc.get_samples()["z"]))
    with pytest.raises(ValueError, match=r"normalised prior .* is improper"):
        log_evidence(mcmc)
    for model in (
        with_prior(dist.Normal(0.0, 1.0), scale=0.5),
        with_prior(dist.Normal(0.0, 1.0).mask(False), scale=1),
    ):
        kernel = AnnealedLangevin(model, num_temperatures=3)
        kernel.init(jax.random.key(0), 0, None, (0.7,), {})
        with pytest.raises(ValueError, match=r"normalised prior .* scaled or masked"):
            kernel.check_evidence()
