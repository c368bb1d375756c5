"""The two estimators of the evidence, their errors, and what they refuse."""

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
    combine,
    steppingstone,
    thermodynamic_integral,
)
from numpyro_kaem.infer.ladder import power_ladder
from tests.helpers import assert_close


def annealed(model, *args, seed=0, num_chains=2, kernel=None, **kwargs):
    """Run a population quietly."""
    sizes = {"num_warmup": 300, "num_samples": 500}
    sizes |= {name: kwargs.pop(name) for name in sizes if name in kwargs}
    if kernel is None:
        kernel = AnnealedLangevin(model, **{"num_temperatures": 6, **kwargs})
    mcmc = MCMC(
        kernel,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
        **sizes,
    )
    mcmc.run(jax.random.key(seed), *args)
    return mcmc


# --- the estimators by themselves -----------------------------------------------------


def normal_log_likelihood(ladder, num_draws, dim, seed=0):
    """Independent draws of the log likelihood at each rung of a Normal model.

    With a standard Normal prior and the likelihood exp(-|z|^2 / (2 s^2)), z has the
    variance 1 / (1 + t / s^2) at the rung t, and the evidence is known.
    """
    rng = np.random.default_rng(seed)
    precision = 50.0
    variance = 1 / (1 + ladder * precision)
    squares = variance * rng.chisquare(dim, size=(num_draws, len(ladder)))
    truth = -0.5 * dim * np.log1p(precision)
    return -0.5 * precision * squares, truth


@pytest.mark.parametrize("estimator", [thermodynamic_integral, steppingstone])
def test_errors_are_those_of_many_repeats(estimator):
    ladder = power_ladder(12, 3.0)
    runs = [normal_log_likelihood(ladder, 400, 3, seed) for seed in range(200)]
    estimates = [combine([estimator(ladder, draws)]) for draws, _ in runs]
    truth = runs[0][1]
    value = np.array([estimate.value for estimate in estimates])
    reported = np.array([estimate.standard_error for estimate in estimates])
    actual = value.std(ddof=1)
    np.testing.assert_allclose(np.sqrt((reported**2).mean()), actual, rtol=0.2)
    discretisation = np.mean([e.discretisation_error for e in estimates])
    # The mean of 200, within its error and what is said of the discretisation.
    assert abs(value.mean() - truth) < 4 * actual / 200**0.5 + 2 * discretisation


@pytest.mark.parametrize("num_temperatures", [3, 4, 5, 8])
def test_integral_of_fourth_order_knows_its_error(num_temperatures):
    """Exact means and variances, from quantiles instead of draws."""
    ladder = np.linspace(0.0, 1.0, num_temperatures)
    precision = 3.0
    quantiles = stats.chi2(4).ppf((np.arange(200_000) + 0.5) / 200_000)
    variance = 1 / (1 + ladder * precision)
    log_likelihood = -0.5 * precision * variance * quantiles[:, None]
    series = thermodynamic_integral(ladder, log_likelihood)
    truth = -0.5 * 4 * np.log1p(precision)
    trapezoid = integrate.trapezoid(log_likelihood.mean(0), ladder)
    error = series.value - truth
    assert abs(error) < 0.2 * abs(trapezoid - truth)
    assert 0.3 * abs(error) < abs(series.discretisation) < 3 * abs(error)


def test_two_rungs_are_enough_to_integrate():
    ladder = np.array([0.0, 1.0])
    draws, _ = normal_log_likelihood(ladder, 100, 1)
    mean, variance = draws.mean(0), draws.var(0)
    series = thermodynamic_integral(ladder, draws)
    expected = mean.mean() - (variance[1] - variance[0]) / 12
    assert_close(series.value, expected, rtol=1e-10)
    assert abs(series.discretisation) == pytest.approx(
        abs(variance[1] - variance[0]) / 12
    )


def test_autocorrelation_widens_the_error():
    """Each draw ten times: ten times the draws, and no smaller an error."""
    ladder = power_ladder(6, 3.0)
    draws, _ = normal_log_likelihood(ladder, 500, 2)
    repeated = np.repeat(draws, 10, axis=0)
    for estimator in (thermodynamic_integral, steppingstone):
        once = combine([estimator(ladder, draws)])
        again = combine([estimator(ladder, repeated)])
        assert_close(again.value, once.value, rtol=1e-9)
        ratio = again.standard_error / once.standard_error
        assert 0.8 < ratio < 1.25


def test_chains_that_differ_widen_the_error():
    ladder = power_ladder(6, 3.0)
    chains = [normal_log_likelihood(ladder, 400, 2, seed)[0] for seed in (0, 1)]
    for estimator in (thermodynamic_integral, steppingstone):
        one, other = (estimator(ladder, draws) for draws in chains)
        both = combine([one, other])
        single = combine([one])
        assert_close(both.value, (one.value + other.value) / 2, rtol=1e-12)
        assert 0.5 < both.standard_error / single.standard_error < 0.95
        apart = combine([one, other._replace(value=other.value + 10.0)])
        assert apart.standard_error > 3.0


def test_constant_likelihood_has_no_error():
    draws = np.full((50, 4), -1.25)
    for estimator in (thermodynamic_integral, steppingstone):
        estimate = combine([estimator(power_ladder(4, 2.0), draws)])
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
    mcmc = annealed(
        model,
        y,
        num_chains=100,
        num_temperatures=12,
        num_local_steps=3,
        num_warmup=300,
        num_samples=400,
    )
    truth = exact(y)
    ladders = np.asarray(mcmc.last_state.temperatures, dtype=float)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    draws = np.asarray(fields["rung_log_likelihood"], dtype=float)
    for estimator in (thermodynamic_integral, steppingstone):
        estimates = [combine([estimator(*c)]) for c in zip(ladders, draws, strict=True)]
        value, reported, _ = map(np.array, zip(*estimates, strict=True))
        error = value - truth
        assert np.sum(np.abs(error) <= 3 * reported) >= 95, estimator.__name__
        ratio = np.sqrt((reported**2).mean() / (error**2).mean())
        assert 1 / 3 < ratio < 3, estimator.__name__
    together = log_evidence(mcmc)
    for estimate in (together.thermodynamic, together.steppingstone):
        bound = 4 * estimate.standard_error + 2 * estimate.discretisation_error
        assert abs(estimate.value - truth) < bound


def test_evidence_of_two_chains():
    y = np.array([[1.5], [0.3]])
    mcmc = annealed(normal, y, num_temperatures=8)
    evidence = log_evidence(mcmc)
    truth = normal_evidence(y)
    for estimate in (evidence.thermodynamic, evidence.steppingstone):
        assert abs(estimate.value - truth) < 4 * estimate.standard_error
        assert 0.0 < estimate.standard_error < 0.1
    assert evidence.steppingstone.discretisation_error == 0.0
    assert 0.0 < evidence.thermodynamic.discretisation_error < 0.05
    assert evidence.temperatures.shape == evidence.mean_log_likelihood.shape == (2, 8)
    assert np.all(np.diff(evidence.mean_log_likelihood, axis=1) > 0)
    assert "steppingstone=" in repr(evidence)


# --- warnings and errors --------------------------------------------------------------


def test_disagreement_is_told():
    """Three rungs, kept where they are, cannot carry this integral."""
    kernel = AnnealedLangevin(normal, temperatures=[0.0, 0.5, 1.0], adapt_ladder=False)
    mcmc = annealed(normal, normal_data(3), kernel=kernel)
    with pytest.warns(UserWarning, match="two estimates of the log evidence disagree"):
        log_evidence(mcmc)


def test_likelihood_that_is_zero_somewhere():
    """Only the steppingstone estimates the probability of an interval."""

    def interval():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("inside", jnp.where(jnp.abs(z) < 1.0, 0.0, -jnp.inf))

    mcmc = annealed(interval, num_temperatures=3, num_samples=2000, num_chains=1)
    with pytest.warns(UserWarning, match="likelihood zero"):
        evidence = log_evidence(mcmc)
    assert np.isnan(evidence.thermodynamic.value)
    truth = np.log(stats.norm.cdf(1.0) - stats.norm.cdf(-1.0))
    estimate = evidence.steppingstone
    assert abs(estimate.value - truth) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.1
    assert evidence.temperatures.shape == (1, 3)


@pytest.mark.parametrize(
    "prior",
    [
        pytest.param(dist.HalfNormal(1.0), marks=pytest.mark.long),
        dist.Exponential(1.0),
        pytest.param(dist.Gamma(2.0, 2.0), marks=pytest.mark.long),
    ],
)
def test_mean_log_likelihood_that_the_prior_has_not(prior):
    """A scale near zero makes it minus infinity, or nearly so."""
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
    estimate = evidence.steppingstone
    assert abs(estimate.value - truth) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.2


def test_what_is_not_a_run_of_a_population():
    with pytest.raises(
        TypeError, match=r"mcmc must be a numpyro.infer.MCMC .* got dict"
    ):
        log_evidence({})
    nuts = MCMC(NUTS(normal), num_warmup=1, num_samples=1)
    with pytest.raises(TypeError, match=r"AnnealedLangevin kernel.* got NUTS"):
        log_evidence(nuts)
    kernel = AnnealedLangevin(normal, num_temperatures=3)
    mcmc = MCMC(kernel, num_warmup=1, num_samples=4, progress_bar=False)
    with pytest.raises(ValueError, match="mcmc must have been run"):
        log_evidence(mcmc)
    mcmc.run(jax.random.key(0), np.ones((1, 1)))
    with pytest.raises(ValueError, match="at least 8 draws of each chain, got 4"):
        log_evidence(mcmc)


def improper(y):
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def scaled(y):
    with numpyro.handlers.scale(scale=0.5):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def masked(y):
    with numpyro.handlers.mask(mask=False):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_improper_prior_has_no_evidence():
    mcmc = annealed(improper, 0.7, num_temperatures=3, num_warmup=20, num_samples=10)
    assert np.all(np.isfinite(mcmc.get_samples()["z"]))
    with pytest.raises(ValueError, match=r"normalised prior .* is improper"):
        log_evidence(mcmc)


@pytest.mark.parametrize("model", [scaled, masked])
def test_prior_of_unknown_integral_has_no_evidence(model):
    kernel = AnnealedLangevin(model, num_temperatures=3)
    kernel.init(jax.random.key(0), 0, None, (0.7,), {})
    with pytest.raises(ValueError, match=r"normalised prior .* is scaled or masked"):
        kernel.check_evidence()
