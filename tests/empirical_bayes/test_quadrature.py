"""Marginal likelihoods and unit posteriors against SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import interpolate, special, stats

import numpyro_kaem as kaem
from tests.helpers import with_long

COEFFICIENTS = 1.5 * np.random.default_rng(0).normal(size=12)


def spline(low, high, coefficients=COEFFICIENTS):
    """The energy of these tests in float64, constant beyond the grid."""
    knots = low + (high - low) * np.arange(-3, 13) / 9
    curve = interpolate.BSpline(knots, coefficients, 3)
    return lambda z: curve(np.clip(z, low, high))


def make_prior(low, high, reference=None):
    basis = kaem.BSpline(low, high, 12)
    return kaem.KAEMPrior(kaem.Energy(basis, jnp.asarray(COEFFICIENTS)), reference)


# Observations and their extremes: none and all of n, an outlier at 8 deviations.
SUCCESSES, TRIALS = np.array([0, 20, 7, 0, 123]), np.array([20, 20, 20, 500, 500])
EVENTS = np.array([0, 1, 7, 30])
VALUES = np.array([0.0, 1.0, -12.0, 12.0, 3.3])
CASES = {
    "binomial": (
        (0.0, 1.0, None),
        stats.uniform(),
        lambda z: dist.Binomial(TRIALS, probs=z),
        SUCCESSES,
        lambda z, i: stats.binom.logpmf(SUCCESSES[i], TRIALS[i], z),
    ),
    "poisson": (
        (0.0, 6.0, dist.LogNormal(0.0, 1.0)),
        stats.lognorm(1.0),
        lambda z: dist.Poisson(z),
        EVENTS,
        lambda z, i: stats.poisson.logpmf(EVENTS[i], z),
    ),
    "normal": (
        (-4.0, 4.0, dist.Normal(0.0, 1.5)),
        stats.norm(0.0, 1.5),
        lambda z: dist.Normal(z, 1.0),
        VALUES,
        lambda z, i: stats.norm.logpdf(VALUES[i], z),
    ),
    "narrow normal": (
        (-4.0, 4.0, dist.Normal(0.0, 1.5)),
        stats.norm(0.0, 1.5),
        lambda z: dist.Normal(z, 0.03),
        VALUES[[0, 1, 4]],
        lambda z, i: stats.norm.logpdf(VALUES[[0, 1, 4]][i], z, 0.03),
    ),
    "student-t": (
        (-4.0, 4.0, dist.Normal(0.0, 1.5)),
        stats.norm(0.0, 1.5),
        lambda z: dist.StudentT(3.0, z, 0.5),
        VALUES,
        lambda z, i: stats.t.logpdf(VALUES[i], 3.0, z, 0.5),
    ),
}


class Oracle:
    """The posterior of one unit, by SciPy and a Gauss rule on many pieces."""

    def __init__(self, name, unit):
        (low, high, _), distribution, _, _, log_likelihood = CASES[name]
        energy = spline(low, high)
        bottom, top = distribution.support()
        bottom, top = max(bottom, -30.0), min(top, 200.0)
        self.log_joint = lambda z: (
            energy(z) + distribution.logpdf(z) + log_likelihood(z, unit)
        )
        self.log_prior = lambda z: energy(z) + distribution.logpdf(z)
        self.tails = np.exp(energy(bottom)) * distribution.cdf(bottom)
        self.tails += np.exp(energy(top)) * distribution.sf(top)
        # Split at the knots and about the mode, so that nothing narrow is missed.
        z = np.linspace(bottom, top, 40_001)[1:-1]
        with np.errstate(divide="ignore"):
            values = self.log_joint(z)
        self.peak = values.max()
        active = z[values > self.peak - 60]
        knots = np.linspace(low, high, 10)
        inner = [*knots, *np.linspace(active[0], active[-1], 25)]
        self.points = np.unique(np.clip([bottom, *inner, top], bottom, top))

    def integrate(self, function, log_density, shift, stop=np.inf):
        nodes, weights = np.polynomial.legendre.leggauss(100)
        ends = np.minimum(self.points, stop)
        half = np.diff(ends)[:, None] / 2
        z = ends[:-1, None] + half * (nodes + 1)
        return np.sum(half * weights * function(z) * np.exp(log_density(z) - shift))

    def log_marginal(self):
        one = lambda z: 1.0  # noqa: E731
        joint = self.integrate(one, self.log_joint, self.peak)
        # The prior's tails, where its energy is constant.
        prior = self.integrate(one, self.log_prior, 0.0) + self.tails
        return self.peak + np.log(joint) - np.log(prior)

    def mean(self, function=lambda z: z, stop=np.inf):
        one = lambda z: 1.0  # noqa: E731
        total = self.integrate(one, self.log_joint, self.peak)
        return self.integrate(function, self.log_joint, self.peak, stop) / total


def built(name):
    (low, high, reference), _, observation, data, _ = CASES[name]
    prior = make_prior(low, high, reference)
    return prior, kaem.unit_log_likelihood(observation, data)


def assert_log_marginals(actual, name, x64):
    expected = [Oracle(name, i).log_marginal() for i in range(len(actual))]
    if name == "binomial":
        # What NumPyro's own distribution is off by, for log n! is large.
        z = np.clip(SUCCESSES / TRIALS, 0.01, 0.99)
        distribution = dist.Binomial(TRIALS, probs=jnp.asarray(z))
        own = np.asarray(distribution.log_prob(SUCCESSES), float)
        expected = expected + own - stats.binom.logpmf(SUCCESSES, TRIALS, z)
    # In float32 the log likelihood itself is rounded.
    np.testing.assert_allclose(
        actual, expected, rtol=1e-10 if x64 else 1e-5, atol=1e-9 if x64 else 1e-5
    )


@pytest.mark.float64
@pytest.mark.parametrize("name", with_long(CASES, "poisson"))
def test_marginal_likelihoods_and_posteriors(name, x64):
    prior, units = built(name)
    posterior = kaem.unit_posterior(prior, units)
    marginals = kaem.unit_log_marginal_likelihood(prior, units)
    for actual in (marginals, posterior.log_marginal_likelihood):
        assert_log_marginals(np.asarray(actual, float), name, x64)
    bar = 1e-9 if x64 else 2e-5
    q = np.array([0.01, 0.5, 0.9])
    quantiles = np.asarray(posterior.quantile(q), float)
    assert quantiles.shape == (3, posterior.num_units)
    for unit in (0, 1, 2):
        oracle = Oracle(name, unit)
        mean = oracle.mean()
        scale = np.sqrt(oracle.mean(lambda z, mean=mean: (z - mean) ** 2))
        np.testing.assert_allclose(posterior.mean[unit], mean, atol=bar * (1 + scale))
        deviation = np.sqrt(posterior.variance[unit])
        np.testing.assert_allclose(deviation, scale, rtol=10 * bar)
        masses = [oracle.mean(lambda z: 1.0, stop) for stop in quantiles[:, unit]]
        # A quantile in float32 is rounded to the spacing of numbers there.
        spacing = np.spacing(np.abs(quantiles[:, unit]).astype(np.float32)) / scale
        np.testing.assert_allclose(
            masses, q, atol=1e-9 if x64 else 2e-5 + spacing.max()
        )
    np.testing.assert_allclose(
        posterior.cdf(posterior.quantile(0.3)), 0.3, atol=1e-10 if x64 else 1e-4
    )
    np.testing.assert_allclose(posterior.cdf(1.0) + posterior.sf(1.0), 1.0, rtol=1e-6)
    moment = posterior.expectation(lambda z: z)
    np.testing.assert_allclose(moment, posterior.mean, rtol=1e-5, atol=1e-6)


# Laws with a parameter that is the exponential of the latent value: for some |z| it is
# infinite or zero, and the log likelihood not a number.
LOG_LINKS = {
    "poisson": (dist.Poisson, [0.0, 3.0, 30.0], stats.poisson.logpmf),
    "normal": (
        lambda s, **k: dist.Normal(0.0, s, **k),
        [0.01, -1.0, 40.0],
        lambda x, s: stats.norm.logpdf(x, 0.0, s),
    ),
    "gamma": (
        lambda r, **k: dist.Gamma(2.0, r, **k),
        [0.01, 1.0, 40.0],
        lambda x, r: stats.gamma.logpdf(x, 2.0, scale=1 / r),
    ),
    "exponential": (
        dist.Exponential,
        [0.01, 1.0, 40.0],
        lambda x, r: stats.expon.logpdf(x, scale=1 / r),
    ),
    "weibull": (
        lambda k, **kwargs: dist.Weibull(2.0, k, **kwargs),
        [0.3, 1.0, 6.0],
        lambda x, k: stats.weibull_min.logpdf(x, k, scale=2.0),
    ),
    "student-t": (
        lambda s, **k: dist.StudentT(3.0, 0.0, s, **k),
        [0.01, -1.0, 40.0],
        lambda x, s: stats.t.logpdf(x, 3.0, 0.0, s),
    ),
    "negative binomial": (
        lambda m, **k: dist.NegativeBinomial2(m, 2.0, **k),
        [0.0, 3.0, 30.0],
        lambda x, m: stats.nbinom.logpmf(x, 2.0, 2.0 / (2.0 + m)),
    ),
    "beta": (
        lambda a, **k: dist.Beta(a, 2.0, **k),
        [0.01, 0.3, 0.99],
        lambda x, a: stats.beta.logpdf(x, a, 2.0),
    ),
}


def log_masses(low, high, distribution):
    """Nodes and masses of a Gauss rule on so many panels that it need not adapt."""
    x, weights = np.polynomial.legendre.leggauss(20)
    mean, scale = distribution.mean(), distribution.std()
    edges = mean + scale * np.linspace(-14.0, 14.0, 4001)
    edges = np.union1d(edges, np.linspace(low, high, 10))
    z = (edges[:-1, None] + np.diff(edges)[:, None] * (x + 1) / 2).ravel()
    log_mass = spline(low, high)(z) + distribution.logpdf(z)
    log_mass += np.log(np.diff(edges)[:, None] * weights / 2).ravel()
    return z, log_mass - special.logsumexp(log_mass)


@pytest.mark.float64
@pytest.mark.parametrize(
    "case",
    with_long(
        list(itertools.product(LOG_LINKS, [1.0, 20.0])),
        ("poisson", 20.0),
        ("normal", 20.0),
        ("weibull", 20.0),
    ),
    ids=str,
)
def test_latent_values_that_are_logarithms(case, x64):
    """No NaN of the far tails, nor its loss, moves the marginal likelihood."""
    name, scale = case
    distribution, data, log_pdf = LOG_LINKS[name]
    low, high, data = -3 * scale, 3 * scale, np.array(data)
    prior = make_prior(low, high, dist.Normal(0.3, scale))
    z, log_mass = log_masses(low, high, stats.norm(0.3, scale))
    with np.errstate(all="ignore"):
        values = log_pdf(data[:, None], np.exp(z))
    values = np.where(np.isnan(values), -np.inf, values)
    expected = special.logsumexp(values + log_mass, 1)
    # NumPyro's own log density of counts and shapes is good to a few 1e-6.
    bar = 3e-6 if x64 else 3e-5
    for options in ({}, {"validate_args": False}):
        units = kaem.unit_log_likelihood(
            lambda z, options=options: distribution(jnp.exp(z), **options), data
        )
        actual = kaem.unit_log_marginal_likelihood(prior, units)
        np.testing.assert_allclose(actual, expected, atol=bar)


@pytest.mark.float64
def test_nodes_lie_where_the_prior_or_a_unit_has_mass(x64):
    """A unit thirty deviations out is found, without nodes there for the others."""
    flat = kaem.Energy(kaem.BSpline(-4.0, 4.0, 12), jnp.zeros(12))
    prior = kaem.KAEMPrior(flat, dist.Normal(0.0, 1.0))
    for data in (np.array([0.0, 3.0]), np.array([0.0, 30.0])):
        units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 0.1), data)
        posterior = kaem.unit_posterior(prior, units)
        np.testing.assert_allclose(
            posterior.log_marginal_likelihood,
            stats.norm.logpdf(data, 0.0, np.sqrt(1.01)),
            rtol=1e-9 if x64 else 1e-5,
        )
        np.testing.assert_allclose(posterior.mean, data / 1.01, rtol=1e-6, atol=1e-6)
        assert np.ptp(posterior._units.panels.edges) < 8 * (1 + data.max())


def test_posterior_draws_follow_the_posterior(key):
    prior, units = built("normal")
    posterior = kaem.unit_posterior(prior, units)
    draws = posterior.sample(key, (4000,))
    assert draws.shape == (4000, posterior.num_units)
    for unit, sample in enumerate(np.asarray(posterior.cdf(draws)).T):
        assert stats.kstest(sample, "uniform").pvalue > 1e-4, unit
    # Values that are not one a unit.
    assert posterior.cdf(np.zeros((2, 1))).shape == (2, 5)
    with pytest.raises(ValueError, match="broadcast with the units, of shape \\(5,\\)"):
        posterior.cdf(np.zeros(2))
    assert np.all(np.isnan(posterior.quantile(1.5)))
    assert np.all(posterior.quantile(0.0) == -np.inf)


@pytest.mark.float64
def test_log_marginal_likelihood_under_jit_and_grad(x64):
    low, high, reference = CASES["normal"][0]
    units = built("normal")[1]
    basis = kaem.BSpline(low, high, 12)

    def total(coefficients):
        prior = kaem.KAEMPrior(kaem.Energy(basis, coefficients), reference)
        return kaem.unit_log_marginal_likelihood(prior, units).sum()

    start = jnp.asarray(COEFFICIENTS)
    prior = make_prior(low, high, reference)
    concrete = np.asarray(kaem.unit_log_marginal_likelihood(prior, units))
    value, gradient = jax.jit(jax.value_and_grad(total))(start)
    np.testing.assert_allclose(value, concrete.sum(), rtol=1e-5)
    # Of each feature: its posterior means, less its prior means.
    z, log_mass = log_masses(low, high, stats.norm(0.0, 1.5))
    features = spline(low, high, np.eye(12))(z)
    log_joint = stats.norm.logpdf(VALUES[:, None], z) + log_mass
    difference = special.softmax(log_joint, axis=1).sum(0) - 5 * np.exp(log_mass)
    expected = difference @ features
    np.testing.assert_allclose(gradient, expected, atol=1e-8 if x64 else 2e-3)
    # A constant in the energy changes nothing.
    np.testing.assert_allclose(np.sum(gradient), 0.0, atol=1e-3)

    # Traced likelihoods are taken on the panels of the prior.
    @jax.jit
    def traced(scale):
        units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, scale), VALUES)
        return kaem.unit_log_marginal_likelihood(prior, units)

    np.testing.assert_allclose(traced(1.0), concrete, rtol=2e-5)


def test_finds_a_jump_and_warns_of_units_that_are_too_narrow():
    prior = make_prior(-4.0, 4.0, dist.Normal(0.0, 1.5))
    jump = lambda z: jnp.where(z > 0.1234567, 0.0, -1e4)[None]  # noqa: E731
    np.testing.assert_allclose(
        kaem.unit_log_marginal_likelihood(prior, jump)[0],
        np.log(prior.cdf_pair(0.1234567)[1]),
        rtol=1e-4,
    )
    data = np.linspace(-3.0, 3.0, 700)
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 2e-4), data)
    with pytest.warns(UserWarning, match=r"the likelihood of unit \d+ is too narrow"):
        kaem.unit_log_marginal_likelihood(prior, units)


@pytest.mark.float64
def test_units_far_narrower_than_the_panels():
    """Large counts were rounded, and peaks nearest to a node of the next panel lost."""
    is_double = jnp.zeros(()).dtype == np.float64
    flat = kaem.Energy(kaem.BSpline(-4.0, 14.0, 12), jnp.zeros(12))
    prior = kaem.KAEMPrior(flat, dist.Normal(8.0, 2.0))
    counts = np.array([300, 3000, 30_000, 1_000_000])
    units = kaem.unit_log_likelihood(lambda z: dist.Poisson(jnp.exp(z)), counts)
    z = np.log(counts) + np.linspace(-12, 12, 2001)[:, None] / np.sqrt(counts)
    joint = stats.poisson.logpmf(counts, np.exp(z)) + stats.norm.logpdf(z, 8.0, 2.0)
    exact = special.logsumexp(joint, axis=0) + np.log(z[1] - z[0])
    got = kaem.unit_log_marginal_likelihood(prior, units)
    np.testing.assert_allclose(got, exact, rtol=1e-9 if is_double else 1e-5)

    data = np.linspace(5.0, 11.0, 7)
    known = lambda error: kaem.unit_log_likelihood(  # noqa: E731
        lambda z: dist.Normal(z, error), data
    )
    error = 1e-7 if is_double else 1e-3
    got = kaem.unit_log_marginal_likelihood(prior, known(error))
    exact = stats.norm.logpdf(data, 8.0, 2.0)
    np.testing.assert_allclose(got, exact, rtol=1e-7 if is_double else 1e-5)
    with pytest.warns(UserWarning, match=r"lies between numbers .* Use float64"):
        kaem.unit_log_marginal_likelihood(prior, known(1e-3 * error))


# --- bad input -----------------------------------------------------------------------


def test_refuses_log_likelihoods():
    prior = make_prior(0.0, 1.0)
    for log_likelihood, message in [
        (lambda z: z, r"got \(5,\) for 5"),
        (lambda z: z[:, None], r"got \(5, 1\) for 5"),
        (lambda z: jnp.zeros((0, len(z))), "at least one unit"),
        (lambda z: z[:, None] * jnp.ones(3), r"\(num_units, num_nodes\)"),
        (lambda z: jnp.stack([z, z - jnp.inf]), "unit 1 has likelihood zero"),
        (lambda z: jnp.stack([z, jnp.log(z - 0.5)]), "nan for unit 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            kaem.unit_log_marginal_likelihood(prior, log_likelihood)
    for log_likelihood, message in [
        (3.0, "must be a function"),
        (dist.Normal(0.0, 1.0), "must be a function.*of type Normal"),
    ]:
        with pytest.raises(TypeError, match=message):
            kaem.unit_log_marginal_likelihood(prior, log_likelihood)
    # Where a heavy tail has mass: the maximum over nodes must not lose it.
    prior = make_prior(-4.0, 4.0, dist.Normal(0.0, 1.5))
    units = lambda z: jnp.where(z > 2.0, jnp.nan, -(z**2))[None]  # noqa: E731
    with pytest.raises(ValueError, match=r"nan for unit 0 at .* 2\..*clip"):
        kaem.unit_log_marginal_likelihood(prior, units)


def test_refuses_priors():
    units = built("normal")[1]
    with pytest.raises(TypeError, match=r"must be a numpyro_kaem\.KAEMPrior"):
        kaem.unit_log_marginal_likelihood(dist.Normal(0.0, 1.0), units)
    basis = kaem.BSpline(-4.0, 4.0, 5)
    batch = kaem.KAEMPrior(kaem.Energy(basis, jnp.zeros((2, 5))))
    with pytest.raises(ValueError, match="batch shape \\(\\), got \\(2,\\)"):
        kaem.unit_posterior(batch, units)
    with pytest.raises(TypeError, match="concrete prior"):
        jax.jit(
            lambda c: (
                kaem.unit_posterior(kaem.KAEMPrior(kaem.Energy(basis, c)), units).mean
            )
        )(jnp.zeros(5))


def test_refuses_observations():
    def normal(z, scale=1.0, **options):
        return dist.Normal(z, scale, **options)

    zeros, ones = np.zeros(3), np.ones((3, 1))
    shapes = r"latent values of shape \(n, 1\).*Give what differs.*shape \(3,\)"
    for observation, data, message in [
        (normal, 0.5, "got a single number"),
        (normal, ones, r"got \(3, 1\)"),
        (lambda z: normal(z, ones), zeros, shapes),
        (lambda z: normal(z[..., None], np.ones(4)), zeros, "one batch axis"),
        (normal, np.array([0.0, np.nan]), "nan for unit 1"),
        (lambda z: normal(z, zeros), zeros, "A standard error must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            kaem.unit_log_likelihood(observation, data)
    for observation, message in [
        (lambda z: z, "must return a NumPyro distribution"),
        (dist.Normal(0.0, 1.0), "must be a function.*lambda"),
    ]:
        with pytest.raises(TypeError, match=message):
            kaem.unit_log_likelihood(observation, zeros)
    prior = make_prior(-4.0, 4.0, dist.Normal(0.0, 1.5))
    for deviation in (0.0, np.inf):
        scale = np.array([1.0, deviation])
        unchecked = kaem.unit_log_likelihood(
            lambda z, scale=scale: normal(z, scale, validate_args=False),
            np.array([1.0, 2.0]),
        )
        with pytest.raises(ValueError, match=r"unit 1 has .*standard error"):
            kaem.unit_log_marginal_likelihood(prior, unchecked)
