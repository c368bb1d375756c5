"""Priors fitted by maximum marginal likelihood."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from jax.tree_util import Partial
from scipy import optimize, stats
from scipy.special import logit

import numpyro_kaem as kaem
from numpyro_kaem.empirical_bayes import Band
from numpyro_kaem.empirical_bayes.family import Problem, maximise
from numpyro_kaem.estimation.exponential_family import RIDGE, make_design

# Thyrion's policies by their number of claims, and what bounds their log likelihood.
CLAIMS, POLICIES = np.arange(8), np.array([7840, 1317, 239, 42, 14, 4, 4, 1])
GAMMA, GAMMA_VALUE = dist.Gamma(0.70151, 1 / 0.30556), -5348.040
NONPARAMETRIC_MAXIMUM = -5340.704


def bimodal(num_units, seed=0):
    rng = np.random.default_rng(seed)
    latent = np.where(
        rng.random(num_units) < 0.6,
        rng.normal(-2.0, 0.5, num_units),
        rng.normal(1.5, 0.8, num_units),
    )
    return latent + rng.normal(size=num_units)


def normal_units(x):
    return kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)


BASIS, REFERENCE = kaem.BSpline(-6.0, 6.0, 12), dist.Normal(0.0, 3.0)


@pytest.fixture(scope="module")
def fit():
    return kaem.fit_marginal(normal_units(bimodal(300)), BASIS, REFERENCE)


def claims_units():
    return kaem.unit_log_likelihood(lambda z: dist.Poisson(z), CLAIMS)


# --- against bounds and SciPy --------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize("penalty", [None, 1e-10])
def test_claims_lie_between_their_bounds(penalty, x64):
    """Above the gamma distribution that is tilted, below the maximum over all.

    The grid that is chosen with the penalty keeps to the support.
    """
    basis = None if penalty is None else kaem.BSpline(0.0, 4.0, 24)
    options = {"counts": POLICIES, "penalty": penalty}
    fit = kaem.fit_marginal(claims_units(), basis, GAMMA, **options)
    rounding = 1e-3 if x64 else 0.02
    assert GAMMA_VALUE < fit.log_marginal_likelihood < NONPARAMETRIC_MAXIMUM + rounding
    if penalty is None:
        assert fit.prior.energy.basis.low == 0.0
        # The most of grids that end between 2 and 11, of 16 and 32 functions.
        assert fit.log_marginal_likelihood > -5341.06 - 0.5
    elif x64:
        assert fit.log_marginal_likelihood > NONPARAMETRIC_MAXIMUM - 0.05
    means = np.asarray(kaem.unit_posterior(fit.prior, claims_units()).mean)
    assert np.all(np.diff(means) > 0)
    np.testing.assert_allclose(means[:2], [0.168, 0.36], atol=0.01)


@pytest.mark.long
def test_flat_energy_has_the_gamma_priors_value():
    prior = kaem.KAEMPrior(kaem.Energy(kaem.BSpline(0.0, 4.0, 8), jnp.zeros(8)), GAMMA)
    values = np.asarray(kaem.unit_log_marginal_likelihood(prior, claims_units()), float)
    np.testing.assert_allclose(POLICIES @ values, GAMMA_VALUE, atol=0.02)
    posterior = kaem.unit_posterior(prior, claims_units())
    published = [0.164, 0.398, 0.632, 0.866, 1.100, 1.334, 1.568]
    np.testing.assert_allclose(posterior.mean[:7], published, atol=6e-4)


@pytest.mark.long
def test_maximum_is_scipys():
    """The penalised maximum by another optimiser, from the quadrature as it is."""
    with jax.enable_x64(True):
        units, penalty = normal_units(bimodal(60)), 1e-5
        fit = kaem.fit_marginal(units, BASIS, REFERENCE, penalty=penalty)
        design = make_design(BASIS, np.float64)
        transform = jnp.asarray(design.transform[:, design.used])
        ridge = jnp.asarray(penalty * design.roughness[design.used] + RIDGE)

        @jax.jit
        @jax.value_and_grad
        def loss(coordinates):
            energy = kaem.Energy(BASIS, transform @ coordinates)
            prior = kaem.KAEMPrior(energy, REFERENCE)
            value = kaem.unit_log_marginal_likelihood(prior, units).sum()
            return 0.5 * jnp.sum(ridge * coordinates**2) - value

        best = optimize.minimize(
            loss, np.zeros(len(ridge)), jac=True, method="BFGS", options={"gtol": 1e-7}
        )
        value = fit.log_posteriors.max()
        np.testing.assert_allclose(value, -best.fun, atol=1e-6)
        z = np.linspace(-5.0, 5.0, 9)
        other = kaem.KAEMPrior(kaem.Energy(BASIS, transform @ best.x), REFERENCE)
        np.testing.assert_allclose(fit.prior.log_prob(z), other.log_prob(z), atol=1e-3)
        # The covariance is the inverse of the Hessian, by differences of the gradient.
        hessian = optimize.approx_fprime(best.x, lambda c: loss(c)[1], 1e-5)
        expected = transform @ np.linalg.inv(hessian) @ transform.T
        np.testing.assert_allclose(
            fit.covariance, expected, atol=2e-3 * np.abs(expected).max()
        )


@pytest.mark.long
def test_quadratic_energies_are_normal():
    """With a huge penalty the prior is Normal, with the moments of that model."""
    x = 1.0 + 2.0 * np.random.default_rng(1).normal(size=2000)
    fit = kaem.fit_marginal(
        normal_units(x),
        kaem.BSpline(-15.0, 15.0, 12),
        dist.Normal(0.0, 5.0),
        penalty=1e6,
    )
    np.testing.assert_allclose(fit.prior.mean, x.mean(), atol=2e-3)
    np.testing.assert_allclose(fit.prior.variance, x.var() - 1.0, rtol=5e-3)
    expected = stats.norm.logpdf(x, x.mean(), x.std()).sum()
    np.testing.assert_allclose(fit.log_marginal_likelihood, expected, atol=0.05)


@pytest.mark.long
def test_fitted_reference_is_that_of_the_parametric_model():
    fit, fixed = (
        kaem.fit_marginal(
            claims_units(),
            kaem.BSpline(0.0, 4.0, 8),
            dist.Gamma(1.0, 2.0),
            counts=POLICIES,
            penalty=1e-3,
            fit_reference=fit_reference,
        )
        for fit_reference in (True, False)
    )
    assert fit.log_posteriors.max() > fixed.log_posteriors.max() + 0.1
    assert fit.log_marginal_likelihood < NONPARAMETRIC_MAXIMUM + 0.02
    assert float(fit.prior.reference.concentration) != 1.0
    # A scale and a quadratic energy do the same: rounding made -2834 of 2.0.
    rng = np.random.default_rng(1)
    effects, errors = rng.standard_t(4, size=200), rng.uniform(0.3, 1.5, size=200)
    x = effects + errors * rng.normal(size=200)
    fit = kaem.fit_marginal(
        kaem.unit_log_likelihood(lambda z: dist.Normal(z, errors), x),
        kaem.BSpline(x.min() - 0.2 * np.ptp(x), x.max() + 0.2 * np.ptp(x), 8),
        dist.Normal(np.median(x), x.std()),
        fit_reference=True,
        penalty=1.0,
    )
    # A cubic penalty of this weight leaves a Normal distribution; values of float64.
    np.testing.assert_allclose(fit.degrees_of_freedom, 2.0, atol=1e-3)
    np.testing.assert_allclose(fit.log_evidence, -407.4045, atol=2e-3)
    total = np.hypot(float(fit.prior.variance) ** 0.5, errors)
    expected = stats.norm.logpdf(x, float(fit.prior.mean), total).sum()
    np.testing.assert_allclose(fit.log_marginal_likelihood, expected, atol=0.01)


@pytest.mark.float64
def test_covariance_with_a_fitted_reference_is_of_the_hessian():
    """Guards the curvature of the log reference in its own parameters.

    That of a Normal distribution cancels at a maximum: here it is Student's.
    """
    z, x = jnp.linspace(-12.0, 12.0, 81), jnp.array([-4.0, -1.0, 0.5, 5.0])
    log_likelihood = -0.5 * (x[:, None] - z) ** 2
    counts, ridge = jnp.array([1.0, 3.0, 2.0, 2.0]), jnp.array([4.0, 0.0, 0.0])

    def log_reference(z, free):
        return -2 * jnp.log1p(((z - free[0]) / jnp.exp(free[1])) ** 2 / 3)

    def value(parameters):
        log_mass = jnp.tanh(z) * parameters[0] + log_reference(z, parameters[1:])
        marginals = logsumexp(log_likelihood + log_mass, axis=1) - logsumexp(log_mass)
        return jnp.sum(counts * marginals) - 0.5 * jnp.sum(ridge * parameters**2)

    problem = Problem(
        jnp.tanh(z)[:, None], log_likelihood, counts, Partial(log_reference, z)
    )
    found = maximise(problem, ridge, jnp.array([0.0, 0.0, 1.0]), 0.0)
    information = -np.asarray(jax.jit(jax.hessian(value))(found.parameters), float)
    expected = np.linalg.inv(information)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "reference", [None, pytest.param(dist.Normal(2.0, 3.0), marks=pytest.mark.long)]
)
def test_warns_of_units_off_the_grid(reference):
    units = normal_units(np.array([-1.0, 0.0, 1.0, 2.0, 10.0, 0.5, 1.5, 2.5]))
    with pytest.warns(UserWarning, match=r"1 units, the first of them unit 4.*grid"):
        kaem.fit_marginal(units, kaem.BSpline(-4.0, 8.0, 24), reference, penalty=1.0)


@pytest.mark.long
def test_chosen_grids_leave_out_noise():
    """Two units of no account, far off, neither widen the grid nor cost likelihood."""
    rng = np.random.default_rng(1)
    errors = np.concatenate([rng.uniform(0.3, 1.5, size=200), [20.0, 30.0]])
    x = rng.standard_t(4, size=202) + errors * rng.normal(size=202)
    x[200:] = 45.0, -60.0
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, errors), x)
    fit = kaem.fit_marginal(units)
    low, high = fit.prior.energy.basis.low, fit.prior.energy.basis.high
    assert -12.0 < low < -5.0
    assert 5.0 < high < 12.0
    # The most of grids of 16 to 48 in width, of 16 and 32 functions, is
    # -400.08.
    assert fit.log_marginal_likelihood > -400.08 - 0.5


# --- properties ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def posterior(fit):
    return kaem.unit_posterior(fit.prior, normal_units(bimodal(300)))


@pytest.mark.float64
def test_result(fit, posterior):
    """And more starts do not lose."""
    assert fit.converged
    assert len(fit.log_posteriors) == 3
    assert fit.penalty > 0
    assert 2.0 < fit.degrees_of_freedom < 12.0
    assert fit.covariance.shape == (12, 12)
    assert fit.prior.batch_shape == ()
    total = float(posterior.log_marginal_likelihood.sum())
    np.testing.assert_allclose(fit.log_marginal_likelihood, total, rtol=1e-5)
    assert "MarginalFit(log_marginal_likelihood=" in repr(fit)
    # Constants change nothing, and have no variance.
    scale = np.trace(fit.covariance)
    np.testing.assert_allclose(fit.covariance.sum(0), 0.0, atol=1e-3 * scale)
    more = kaem.fit_marginal(
        normal_units(bimodal(300)), BASIS, REFERENCE, num_starts=5, penalty=fit.penalty
    )
    assert len(more.log_posteriors) == 5
    assert more.log_posteriors.max() >= fit.log_posteriors.max() - 1e-2


def test_a_sixth_of_the_penalty_of_largest_evidence(fit):
    """The bands cover by it. And a larger penalty is smoother."""
    units, best = normal_units(bimodal(300)), 6 * fit.penalty
    below, at, above = fits = [
        kaem.fit_marginal(units, BASIS, REFERENCE, penalty=penalty)
        for penalty in (best / 2.5, best, 2.5 * best)
    ]
    assert at.log_evidence > max(below.log_evidence, above.log_evidence)
    values = [f.log_marginal_likelihood for f in (fit, *fits)]
    freedom = [f.degrees_of_freedom for f in (fit, below, at)]
    assert np.all(np.diff(values) < 0), values
    assert np.all(np.diff(freedom) < 0), freedom


@pytest.mark.long
def test_counts_are_repeated_units():
    x = bimodal(40)
    counts = np.random.default_rng(2).integers(0, 4, size=40)
    kwargs = {"basis": BASIS, "reference": REFERENCE, "penalty": 1e-5}
    weighted = kaem.fit_marginal(normal_units(x), counts=counts, **kwargs)
    repeated = kaem.fit_marginal(normal_units(np.repeat(x, counts)), **kwargs)
    z = np.linspace(-4.0, 4.0, 9)
    np.testing.assert_allclose(
        weighted.prior.log_prob(z), repeated.prior.log_prob(z), atol=2e-2
    )
    np.testing.assert_allclose(
        weighted.log_marginal_likelihood, repeated.log_marginal_likelihood, rtol=1e-5
    )


# --- bands ---------------------------------------------------------------------------


def test_bands_contain_their_estimate_and_widen_with_their_level(fit, posterior):
    z = np.linspace(-4.0, 4.0, 12).reshape(3, 4)
    bands = fit.density_band(z), fit.cdf_band(z), fit.unit_mean_band()
    values = np.exp(fit.prior.log_prob(z)), fit.prior.cdf(z), posterior.mean
    tolerances = {"rtol": 1e-5}, {"atol": 1e-5}, {"atol": 1e-3}
    for band, value, tolerance in zip(bands, values, tolerances, strict=True):
        assert isinstance(band, Band)
        assert np.all(band.lower <= band.value)
        assert np.all(band.value <= band.upper)
        np.testing.assert_allclose(band.value, value, **tolerance)
    assert np.all(bands[0].lower >= 0)
    # On log odds a band is symmetric, its half a quantile of the normal distribution.
    z, halves = np.array([-2.0, 0.0, 1.5]), []
    for level in (0.5, 0.9):
        band = fit.cdf_band(z, level)
        halves.append(logit(np.asarray(band.upper)) - logit(np.asarray(band.value)))
    expected = stats.norm.ppf(0.95) / stats.norm.ppf(0.75)
    np.testing.assert_allclose(halves[1] / halves[0], expected, rtol=1e-3)


@pytest.mark.float64
def test_unit_mean_band_is_the_delta_method(fit):
    """Against differences of posterior means along the axes of the covariance."""
    units = normal_units(bimodal(300))
    values, axes = np.linalg.eigh(np.asarray(fit.covariance, float))
    variance, step = 0.0, 0.05
    # The first axis is that of constants.
    for value, axis in zip(values[1:], axes.T[1:], strict=True):
        means = []
        for sign in (-1, 1):
            coefficients = fit.prior.energy.coefficients + sign * step * axis
            prior = kaem.KAEMPrior(
                kaem.Energy(BASIS, jnp.asarray(coefficients)), REFERENCE
            )
            means.append(np.asarray(kaem.unit_posterior(prior, units).mean, float))
        variance += value * ((means[1] - means[0]) / (2 * step)) ** 2
    band = fit.unit_mean_band(0.9)
    half = np.asarray(band.upper - band.lower, float) / 2
    np.testing.assert_allclose(half, 1.6449 * np.sqrt(variance), rtol=0.02, atol=1e-3)


def test_bootstrap(fit, key):
    bootstrap = fit.bootstrap(key, 30)
    assert bootstrap.prior.batch_shape == (30,)
    z = np.array([-2.0, 0.0, 1.5])
    delta, resampled = fit.density_band(z), fit.density_band(z, bootstrap=bootstrap)
    ratio = (resampled.upper - resampled.lower) / (delta.upper - delta.lower)
    assert np.all((ratio > 0.3) & (ratio < 2.0))
    band = fit.unit_mean_band(bootstrap=bootstrap)
    assert band.lower.shape == (300,)
    assert np.all(band.lower < band.upper)
    again = fit.bootstrap(key, 30)
    np.testing.assert_array_equal(again.parameters, bootstrap.parameters)


# --- recovery ------------------------------------------------------------------------


@pytest.mark.long
def test_recovers_a_density_better_than_a_gaussian_mixture(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    import deconvolution

    learned, mixture, covered = [], [], []
    for seed in range(12):
        x = deconvolution.simulate(5000, seed)
        fit = deconvolution.learn(x)
        density = np.exp(np.asarray(fit.prior.log_prob(jnp.array(deconvolution.GRID))))
        learned.append(deconvolution.squared_error(density))
        covered.append(deconvolution.covers(fit))
        if seed < 4:
            other = deconvolution.gaussian_mixture(x, seed, num_starts=3)
            mixture.append(deconvolution.squared_error(other))
    assert np.median(learned) < 0.7 * np.median(mixture)
    # Nominally .90; .80 to .97 over 100 data sets, less sharply over 12.
    assert 0.75 < np.mean(covered) < 0.99


# --- bad input -----------------------------------------------------------------------


def test_refuses(fit, key):
    units = normal_units(np.array([0.0, 1.0, 2.0]))
    arguments = {"log_likelihood": units, "basis": BASIS, "reference": REFERENCE}
    pair, uniform = dist.Normal(np.zeros(2), 1.0), dist.Uniform(-6.0, 6.0)
    zero = {"log_likelihood": lambda z: jnp.stack([z, z - jnp.inf]), "reference": None}
    flat = {"log_likelihood": lambda z: jnp.zeros((2, len(z))), "reference": None}
    for kwargs, message in [
        ({"counts": [1, 2]}, r"counts must have shape \(3,\).*\(2,\)"),
        ({"counts": [[1], [2], [3]]}, r"counts must have shape \(3,\)"),
        ({"counts": [1, -2, 3]}, "got -2.0 for unit 1"),
        ({"counts": [1, np.inf, 3]}, "got inf for unit 1"),
        ({"counts": [0, 0, 0]}, "must not all be zero"),
        ({"penalty": 0.0}, "penalty must be one finite number > 0"),
        ({"penalty": [1.0, 2.0]}, "penalty must be one finite number"),
        ({"num_starts": 2}, "num_starts must be an integer >= 3"),
        ({"basis": kaem.BSpline((0.0, 1.0), (1.0, 2.0), 5)}, "one grid"),
        ({"reference": pair}, "reference must have the batch shape"),
        ({"reference": None, "fit_reference": True}, "got reference=None"),
        (zero, "unit 1 has likelihood zero"),
        ({**flat, "basis": None}, "basis must be given"),
    ]:
        with pytest.raises(ValueError, match=message):
            kaem.fit_marginal(**(arguments | kwargs))
    for kwargs, message in [
        ({"basis": 3}, "basis must be a basis"),
        ({"reference": 3}, "reference must be a NumPyro distribution"),
        ({"reference": uniform, "fit_reference": True}, "got Uniform"),
        ({"log_likelihood": 3}, "log_likelihood must be a function"),
        ({"num_starts": 3.5}, "num_starts must be an integer >= 3"),
        ({"rng_key": 3}, "rng_key must be one random key"),
    ]:
        with pytest.raises(TypeError, match=message):
            kaem.fit_marginal(**(arguments | kwargs))

    def fit_under(scale):
        return kaem.fit_marginal(units, BASIS, dist.Normal(0.0, scale)).penalty

    with pytest.raises(TypeError, match="concrete arguments"):
        jax.jit(fit_under)(1.0)
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 90"):
        fit.density_band(0.0, 90)
    with pytest.raises(TypeError, match="bootstrap must be the result"):
        fit.cdf_band(0.0, bootstrap=fit.prior)
    with pytest.raises(ValueError, match="num_replicates must be an integer >= 2"):
        fit.bootstrap(key, 1)
    with pytest.raises(TypeError, match="num_replicates must be an integer >= 2"):
        fit.bootstrap(key, 2.5)
    with pytest.raises(TypeError, match="rng_key must be one random key"):
        fit.bootstrap(0)


@pytest.mark.long
def test_refuses_a_unit_without_likelihood_on_the_line():
    with pytest.raises(ValueError, match="unit 1 has likelihood zero"):
        kaem.fit_marginal(lambda z: jnp.stack([z, z - jnp.inf]), BASIS, REFERENCE)
