"""Densities from samples, against SciPy, histograms and known distributions."""

import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import AffineTransform
from scipy import integrate, optimize, stats
from scipy.special import logsumexp

import numpyro_kaem as kaem
from numpyro_kaem.estimation import exponential_family
from numpyro_kaem.estimation.density import choose_parts
from numpyro_kaem.estimation.exponential_family import (
    RIDGE,
    Family,
    fit_columns,
    make_design,
    mean_features,
)
from numpyro_kaem.estimation.samples import as_float64
from numpyro_kaem.numerics.nodes import make_nodes
from tests.helpers import assert_close, with_long

SEED = 20


def divergence(distribution, prior, low, high):
    """Kullback-Leibler divergence of a prior from a SciPy distribution."""
    z = np.linspace(low, high, 20_001)
    density = distribution.pdf(z)
    log_ratio = np.log(np.maximum(density, 1e-300)) - np.asarray(prior.log_prob(z))
    return np.sum(np.where(density > 0, density * log_ratio, 0)) * (z[1] - z[0])


def normal_samples(size, loc=3.0, scale=2.0):
    return np.random.default_rng(SEED).normal(loc, scale, size)


# --- the optimum ---------------------------------------------------------------------


def third_derivatives_squared(basis):
    """Roughness of a cubic Chebyshev series by SciPy: the third derivative of T_3."""
    del basis
    matrix = np.zeros((4, 4))
    # d3/ds3 T_3(2s - 1) = 8 * 24.
    matrix[3, 3] = (8 * 24) ** 2
    return matrix


def third_differences_squared(basis):
    num_cells = basis.num_basis - basis.degree
    differences = np.diff(np.eye(basis.num_basis), 3, axis=0)
    return num_cells**5 * differences.T @ differences


@pytest.mark.parametrize(
    ("basis", "roughness"),
    [
        pytest.param(
            kaem.Chebyshev(-1.0, 6.0, degree=3),
            third_derivatives_squared,
            marks=pytest.mark.long,
        ),
        (kaem.BSpline(-1.0, 6.0, num_basis=6), third_differences_squared),
    ],
    ids=["chebyshev", "bspline"],
)
def test_optimum_is_scipys(basis, roughness, x64):
    samples = np.random.default_rng(SEED).gamma(3.0, 0.8, 60)
    weights = np.random.default_rng(1).integers(1, 5, 60)
    shares, size = weights / weights.sum(), weights.sum() ** 2 / np.sum(weights**2)
    reference, penalty = stats.norm(2.0, 3.0), 1e-3
    prior = kaem.fit_density(
        samples, basis, dist.Normal(2.0, 3.0), penalty=penalty, weights=weights
    )

    s, lengths = np.polynomial.legendre.leggauss(80)
    s, lengths = (s + 1) / 2, lengths / 2
    breaks = np.linspace(-1.0, 6.0, 13)
    x, w = np.polynomial.legendre.leggauss(30)
    nodes = (breaks[:-1, None] + np.diff(breaks)[:, None] * (x + 1) / 2).ravel()
    masses = reference.pdf(nodes) * np.tile(w * 7 / 24, 12)
    nodes = np.append(nodes, [-1.0, 6.0])
    z = np.linspace(-3.0, 8.0, 40)
    parts = [-1.0 + 7.0 * s, samples, nodes, z]
    with jax.enable_x64(True):
        features = np.asarray(basis(jnp.asarray(np.concatenate(parts), jnp.float64)))
    ends = np.cumsum([len(part) for part in parts])
    at_grid, at_samples, at_nodes, at_z = np.split(features, ends[:-1])
    masses = np.append(masses, [reference.cdf(-1.0), reference.sf(6.0)])
    centred = at_grid - lengths @ at_grid
    quadratic = penalty * roughness(basis) + RIDGE * centred.T @ (
        lengths[:, None] * centred
    )

    def loss(c):
        energy = at_nodes @ c
        top = energy.max()
        mass = masses * np.exp(energy - top)
        value = size * (np.log(mass.sum()) + top - shares @ at_samples @ c)
        gradient = size * (mass @ at_nodes / mass.sum() - shares @ at_samples)
        return value + 0.5 * c @ quadratic @ c, gradient + quadratic @ c

    found = optimize.minimize(
        loss,
        np.zeros(basis.num_features),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 2000},
    ).x
    mass = masses * np.exp(at_nodes @ found)
    log_density = at_z @ found + reference.logpdf(z) - np.log(mass.sum())
    assert_close(prior.log_prob(z), log_density, rtol=(1e-3, 1e-6), atol=(1e-3, 1e-6))


def test_evidence_of_one_coordinate_is_its_integral():
    """Guards the Occam term: the evidence is compared at two penalties, by Simpson."""
    size, dtype = 200.0, jnp.zeros(()).dtype
    basis = kaem.RBF(0.0, 1.0, 1, bandwidth=0.3)
    position = np.random.default_rng(SEED).beta(4.0, 5.0, (int(size), 1))
    design = make_design(basis, dtype)
    means = mean_features(
        basis, jnp.asarray(position, dtype), jnp.full((1, 1), 1 / size).repeat(200, 0)
    )
    family = Family.of(basis, make_nodes(basis, None, (), dtype))
    penalties = np.array([0.1, 1e3]) / design.roughness[0]
    found = [
        fit_columns(family, means, jnp.array([size]), penalty) for penalty in penalties
    ]

    # In the coordinate of the design, with features by NumPy.
    def psi(s):
        features = np.exp(-0.5 * ((s - 0.5) / 0.3) ** 2)
        return (features - design.centre[0]) * design.transform[0, 0]

    grid, theta = np.linspace(0.0, 1.0, 2001), np.linspace(-4.0, 4.0, 4001)
    masses = np.exp(np.outer(theta, psi(grid)))
    log_normalizer = np.log(integrate.simpson(masses, x=grid))
    log_likelihood = psi(position).sum() * theta - size * log_normalizer
    exact = []
    for penalty in penalties:
        ridge = penalty * design.roughness[0] + RIDGE
        log_prior = 0.5 * np.log(ridge) - 0.5 * ridge * theta**2
        exact.append(logsumexp(log_likelihood + log_prior))
    evidence = [float(fit.log_evidence[0]) for fit in found]
    assert abs(exact[1] - exact[0]) > 0.5
    np.testing.assert_allclose(np.diff(evidence), np.diff(exact), atol=0.02)


def test_degree_zero_without_penalty_is_the_histogram():
    samples = np.random.default_rng(SEED).beta(2.0, 3.0, 500) * 4.0 + 1.0
    basis = kaem.BSpline(1.0, 5.0, num_basis=8, degree=0)
    prior = kaem.fit_density(samples, basis, support=(1.0, 5.0), penalty=0.0)
    heights, edges = np.histogram(samples, 8, (1.0, 5.0), density=True)
    middle = (edges[1:] + edges[:-1]) / 2
    assert heights.min() > 0
    assert_close(np.exp(prior.log_prob(middle)), heights, rtol=1e-3, atol=1e-3)
    # Energies of empty cells stay finite.
    samples = np.random.default_rng(SEED).uniform(2.0, 3.0, 500)
    for penalty in (None, 0.0):
        prior = kaem.fit_density(samples, basis, support=(1.0, 5.0), penalty=penalty)
        assert np.all(np.abs(prior.energy.coefficients) < 100)
        assert float(prior.cdf(3.0) - prior.cdf(2.0)) > 0.95


def test_coordinates_are_orthonormal():
    basis = kaem.RBF(2.0, 5.0, num_basis=6)
    design = make_design(basis, jnp.zeros(()).dtype)
    assert design.used.all()
    s, weights = np.polynomial.legendre.leggauss(100)
    values = np.asarray(basis.unit_features((s + 1) / 2))
    psi = (values - design.centre) @ design.transform
    gram = psi.T @ (weights[:, None] / 2 * psi)
    np.testing.assert_allclose(gram, np.eye(6), atol=1e-3)


# --- known distributions --------------------------------------------------------------


POSITIVE, INTERVAL = {"support": "positive"}, {"support": (1.0, 5.0)}
ABOVE = {"support": (2.5, np.inf)}
CAUCHY = {"basis": kaem.BSpline(-8.0, 12.0, 40), "reference": dist.Cauchy(2.0, 1.0)}
# Law, options of the fit, ends and bound of the divergence, and later observations.
KNOWN_DISTRIBUTIONS = {
    "normal": (stats.norm(3.0, 2.0), {}, -13.0, 19.0, 0.003, -1e3, 1e3),
    "far": (stats.norm(3e3, 2.0), {"support": "real"}, 2984, 3016, 0.003, 2e3, 4e3),
    "gamma": (stats.gamma(3.0, scale=2.0), POSITIVE, 1e-6, 60.0, 0.01, 1e-4, 1e4),
    "exponential": (stats.expon(scale=0.5), POSITIVE, 1e-3, 12.0, 0.01, 1e-4, 1e4),
    "lognormal": (stats.lognorm(1.0), POSITIVE, 1e-6, 200.0, 0.01, 1e-4, 1e4),
    "above": (stats.lognorm(0.5, 2.5), ABOVE, 2.5001, 40.0, 0.01, 2.501, 1e4),
    "beta": (stats.beta(2.0, 5.0, 1.0, 4.0), INTERVAL, 1.0, 5.0, 0.01, 1.0, 5.0),
    "uniform": (stats.uniform(1.0, 4.0), INTERVAL, 1.0, 5.0, 0.01, 1.0, 5.0),
    "heavy tails": (stats.cauchy(2.0, 1.0), CAUCHY, -1e4, 1e4, 0.01, -1e6, 1e6),
}


@pytest.mark.parametrize(
    "name",
    with_long(KNOWN_DISTRIBUTIONS, "normal", "far", "gamma", "beta", "heavy tails"),
)
def test_recovers_a_known_distribution(name):
    distribution, options, low, high, bound, *later = KNOWN_DISTRIBUTIONS[name]
    samples = distribution.rvs(2000, random_state=np.random.RandomState(SEED))
    prior = kaem.fit_density(samples, **options)
    assert prior.batch_shape == ()
    assert divergence(distribution, prior, low, high) < bound
    assert np.all(np.isfinite(prior.log_prob(np.array(later))))


def test_recovers_two_modes():
    rng = np.random.default_rng(SEED)
    samples = np.where(
        rng.random(3000) < 0.3, rng.normal(-2, 0.5, 3000), rng.normal(3, 0.8, 3000)
    )
    prior = kaem.fit_density(samples)
    at = np.asarray(jnp.exp(prior.log_prob(jnp.array([-2.0, 0.0, 3.0]))))
    truth = 0.3 * stats.norm(-2, 0.5).pdf([-2, 3]) + 0.7 * stats.norm(3, 0.8).pdf(
        [-2, 3]
    )
    np.testing.assert_allclose(at[[0, 2]], truth, rtol=0.12)
    assert at[1] < 0.02
    assert stats.kstest(samples, lambda z: np.asarray(prior.cdf(z))).statistic < 0.02


@pytest.mark.long
def test_lower_bounds_of_columns():
    """The support is static, so that mixtures take such densities as components."""
    low = np.array([2.5, -1.0])
    samples = low + np.random.default_rng(SEED).lognormal(0.0, 0.5, (300, 2))
    with pytest.warns(UserWarning, match="marginals"):
        prior = kaem.fit_density(samples, support=(low, np.inf))
    draws = np.asarray(prior.sample(jax.random.key(0), (1000,)))
    assert np.all(draws > low)
    onto = biject_to(prior.support)
    inside = onto(jnp.array([-3.0, 2.0]))
    assert_close(onto.inv(inside), jnp.array([-3.0, 2.0]), atol=(1e-4, 1e-10))
    assert np.all(prior.support(prior.support.feasible_like(prior.mean)))
    assert not np.any(prior.support(low - 0.1))
    mixture = kaem.fit_mixture(samples, 2, support=(low, np.inf))
    assert np.all(mixture.sample(jax.random.key(0), (1000,)) > low)


def test_reference_that_is_not_a_number_in_its_support():
    affine = AffineTransform(2.5, 1.0)  # of which NumPyro is not told the domain
    reference = dist.TransformedDistribution(dist.LogNormal(0.0, 1.0), affine)
    energy = kaem.Energy(kaem.BSpline(2.0, 5.0, 8), jnp.zeros(8))
    with pytest.raises(ValueError, match=r"reference must have a log_prob .* is NaN"):
        kaem.KAEMPrior(energy, reference)


def test_is_one_density():
    """Normalised, with quantiles; the energy has no constant."""
    prior = kaem.fit_density(normal_samples(400))
    z = np.linspace(-20.0, 26.0, 20_001)
    mass = np.trapezoid(np.exp(np.asarray(prior.log_prob(z), float)), z)
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)
    u = np.array([0.01, 0.3, 0.9], prior.mean.dtype)
    assert_close(prior.cdf(prior.icdf(u)), u, atol=(1e-5, 1e-10))
    assert_close(np.sum(prior.energy.coefficients), 0.0, atol=(1e-2, 1e-8))


# --- weights, columns, options -------------------------------------------------------


def test_default_reference_and_grid_of_weighted_samples():
    """Quantiles count half of a sample on either side; the median is the middle."""
    data, weights = np.array([-4.0, -1.0, 0.0, 1.0, 4.0]), np.array([1, 2, 3, 2, 1])
    shares = weights / weights.sum()
    _, reference, _ = choose_parts(data, shares, None, None, None)
    assert_close(reference.loc, 0.0, atol=1e-6)
    assert_close(reference.scale, 1.5 * np.sqrt(shares @ data**2), rtol=1e-5)
    # An outlier does not stretch the grid beyond twice the distance of quantiles.
    data = np.append(np.arange(100.0), 1e4)
    basis, _, _ = choose_parts(data, np.full(101, 1 / 101), None, None, None)
    lower, upper = np.quantile(data, [0.05, 0.95])
    np.testing.assert_allclose(basis.high, upper + 2 * (upper - lower))


def test_weights_count_by_their_ratios():
    """Samples of little or no weight have no part in the likelihood and in the number
    that the penalty is chosen by; squares of weights may be no numbers."""
    samples, few = normal_samples(600), np.arange(600) < 30
    parts = (kaem.BSpline(-5.0, 11.0, 40), dist.Normal(3.0, 3.0))
    z = np.linspace(-1.0, 7.0, 20)
    alone = kaem.fit_density(samples[:30], *parts).log_prob(z)
    for weights in (2.0 * few, 1e-200 * few, 1e200 * few, np.where(few, 1.0, 1e-9)):
        weighted = kaem.fit_density(samples, *parts, weights=weights)
        assert_close(weighted.log_prob(z), alone, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_columns_are_separate_fits():
    rng = np.random.default_rng(SEED)
    samples = rng.normal(size=(250, 2, 3)) * np.array([1.0, 2.0, 5.0]) + 3.0
    weights = rng.random(samples.shape)
    with pytest.warns(UserWarning, match="only the marginals are kept"):
        together = kaem.fit_density(samples, weights=weights)
    assert together.batch_shape == (2, 3)
    z = np.linspace(-2.0, 8.0, 9)
    values = together.log_prob(np.broadcast_to(z[:, None, None], (len(z), 2, 3)))
    for place in ((0, 0), (1, 2)):
        column = (slice(None), *place)
        alone = kaem.fit_density(samples[column], weights=weights[column])
        close = {"rtol": (1e-2, 1e-7), "atol": (1e-2, 1e-7)}
        assert_close(values[column], alone.log_prob(z), **close)
    # On intervals of their own, and on one grid.
    samples = rng.beta(2.0, 3.0, size=(400, 2)) * np.array([1.0, 4.0]) + 1.0
    ends = (1.0, np.array([2.0, 5.0]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only the marginals")
        own = kaem.fit_density(samples, support=ends)
        basis = kaem.Fourier(1.0, 5.0, 5)
        shared = kaem.fit_density(
            samples[:, 1:] + [0.0, 0.0], basis, support=(1.0, 5.0)
        )
    assert own.energy.basis.low == (1.0, 1.0)
    assert own.energy.basis.high == (2.0, 5.0)
    assert_close(own.mean, samples.mean(0), rtol=2e-2)
    assert_close(shared.mean, np.repeat(samples[:, 1].mean(), 2), rtol=2e-2)


@pytest.mark.long
@pytest.mark.parametrize(
    "basis",
    [
        kaem.RBF(-5.0, 11.0, 12),
        kaem.RSWAF(-5.0, 11.0, 12),
        kaem.Fourier(-5.0, 11.0, 6),
        kaem.Chebyshev(-5.0, 11.0, 10),
        kaem.Wavelet(-5.0, 11.0, 12, kind="mexican_hat"),
        kaem.BSpline(-5.0, 11.0, 12, degree=1),
    ],
    ids=lambda basis: type(basis).__name__,
)
def test_every_basis(basis):
    prior = kaem.fit_density(normal_samples(1000), basis)
    assert divergence(stats.norm(3.0, 2.0), prior, -13.0, 19.0) < 0.03


@pytest.mark.long
def test_few_distinct_values():
    prior = kaem.fit_density([2.0], kaem.BSpline(-1.0, 5.0, 8), dist.Normal(1.0, 2.0))
    assert np.isfinite(prior.log_prob(2.0))
    assert np.all(np.isfinite(prior.energy.coefficients))
    rounded = pytest.warns(UserWarning, match="taken as rounded")
    with rounded, pytest.warns(UserWarning, match="spacing of 5.8 standard deviations"):
        prior = kaem.fit_density(np.repeat([1, 2, 3, 4], [3, 80, 3, 1]))
    assert np.all(np.isfinite(prior.log_prob(np.arange(-3.0, 9.0))))


# --- errors --------------------------------------------------------------------------

GRID = kaem.BSpline(-5.0, 11.0, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([],), {}, ValueError, "samples must have at least one"),
        ((2.0,), {}, ValueError, "samples must have shape"),
        (([1.0, np.nan, np.inf],), {}, ValueError, "samples must be finite, got 2"),
        ((["a"],), {}, TypeError, "samples must be real"),
        (([1.0 + 1j],), {}, TypeError, "samples must be real"),
        (([[1.0], [1.0, 2.0]],), {}, ValueError, "samples must be a rectangular"),
        (([2.0],), {}, ValueError, "at least 2 distinct .* basis and reference"),
        (([2.0, 2.0], GRID), {}, ValueError, "at least 2 distinct .* reference"),
        (([[1.0, 2.0], [3.0, 2.0]],), {}, ValueError, "got only 2.0 in column"),
        (([1.0, 2.0],), {"weights": [1.0, 0.0]}, ValueError, "at least 2 distinct"),
        (([1.0, 2.0],), {"weights": [1.0, -1.0]}, ValueError, "weights .* -1.0"),
        (([1.0, 2.0],), {"weights": [1.0, np.inf]}, ValueError, "weights .* inf"),
        (([1.0, 2.0],), {"weights": [0.0, 0.0]}, ValueError, "weights must not all"),
        (([1.0, 2.0],), {"weights": [1.0]}, ValueError, "weights must have shape"),
        (([1.0, 2.0],), {"support": "whole"}, ValueError, "support must be 'real'"),
        (([1.0, 2.0],), {"support": 3.0}, ValueError, "support must be 'real'"),
        (([1.0, 2.0],), {"support": (2.0, 1.0)}, ValueError, "low < high"),
        (([1.0, 2.0],), {"support": (-np.inf, 3.0)}, ValueError, "negate samples"),
        (([1.0, 2.0],), {"support": (1.0, np.inf)}, ValueError, "got 1 of 2 outside"),
        (([1.0, 2.0],), {"support": ([0.0, 0.0], 3.0)}, ValueError, "ends of support"),
        (([1.0, 2.0],), {"support": (0.0, 1.5)}, ValueError, "got 1 of 2 outside"),
        (([0.0, 2.0],), {"support": "positive"}, ValueError, "first of them 0.0"),
        (([1.0, 2.0],), {"penalty": -1.0}, ValueError, "penalty must be"),
        (([1.0, 2.0],), {"penalty": np.nan}, ValueError, "penalty must be"),
        (([1.0, 2.0],), {"penalty": [1.0, 1.0]}, ValueError, "penalty must broadcast"),
        (([1.0, 2.0], 3), {}, TypeError, "basis must be a basis"),
        (([1.0, 2.0], None, 3), {}, TypeError, "reference must be"),
        (([20.0, 21.0], GRID), {}, ValueError, "grid of basis must contain"),
        (
            *(([1.0, 2.0], kaem.BSpline([0.0, 0.0], 3.0, 8)), {}),
            *(ValueError, "grid of basis must broadcast"),
        ),
        (
            *(([1.0, 2.0], GRID, dist.Normal(0.0, 1.0)), {"support": "real"}),
            *(ValueError, "exclude each other"),
        ),
        (
            *(([1.0, 2.0], GRID, dist.Normal(jnp.zeros(2), 1.0)), {}),
            *(ValueError, "batch shape of reference"),
        ),
        (
            *(([-1.0, 2.0], GRID, dist.LogNormal(0.0, 1.0)), {}),
            *(ValueError, "outside, the first of them -1.0"),
        ),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=message):
        kaem.fit_density(*arguments, **options)


def test_arrays_of_other_kinds():
    """NumPy's conversion drops masks; objects may be numbers; chains are told."""
    masked = np.ma.masked_greater([1.0, 2.0, 99.0], 90.0)
    match = "must have no masked entries, got 1"
    with pytest.raises(ValueError, match=f"samples {match}"):
        kaem.fit_density(masked)
    with pytest.raises(ValueError, match=f"weights {match}"):
        kaem.fit_density([1.0, 2.0, 3.0], weights=masked)
    with pytest.raises(ValueError, match=f"samples {match}"):
        kaem.fit_mixture(masked[:, None], 1)
    values = np.array([1, 2.5, Fraction(7, 2)], dtype=object)
    np.testing.assert_array_equal(as_float64("samples", values), [1.0, 2.5, 3.5])
    with pytest.raises(TypeError, match="dtype object; drop missing values"):
        as_float64("samples", np.array([1.0, None], dtype=object))
    draws = np.random.default_rng(SEED).normal(size=(4, 40))
    # The warning is an error, before the fit.
    with pytest.raises(UserWarning, match=r"4 samples of 40 .*samples.reshape\(-1\)"):
        kaem.fit_density(draws, GRID, dist.Normal(0.0, 3.0))


def test_traced_samples():
    pairs = np.stack([np.arange(12.0), np.arange(12.0) ** 2], axis=-1)
    for fit, samples, match in (
        (kaem.fit_density, pairs[:, 0], "fit_density needs concrete .* outside jit"),
        (lambda x: kaem.fit_mixture(x, 2), pairs, "fit_mixture needs concrete"),
        (kaem.fit_autoregressive, pairs, "fit_autoregressive needs concrete"),
    ):
        with pytest.raises(TypeError, match=match):
            jax.jit(lambda x, fit=fit: fit(x).log_prob(x))(samples)


@pytest.mark.long
def test_debug_nans():
    """Two infinities of opposite signs were added for a point inside a support."""
    basis = kaem.BSpline(-5.0, 11.0, 8)
    with jax.debug_nans(True):
        for support in ("real", (-6.0, np.inf)):
            prior = kaem.fit_density(normal_samples(60), basis, support=support)
            z = jnp.array([-4.0, 3.0, 20.0])
            assert np.all(np.isfinite(prior.log_prob(z)))
            assert np.all(np.isfinite(jax.vmap(jax.grad(prior.log_prob))(z)))
            assert np.all(np.diff(prior.cdf(z)) > 0)
            assert np.all(np.isfinite(prior.icdf(jnp.array([0.01, 0.5, 0.99]))))
            assert np.all(np.isfinite(prior.sample(jax.random.key(0), (8,))))


def test_warns_without_convergence(monkeypatch):
    monkeypatch.setattr(exponential_family, "_MAX_STEPS", 1)
    exponential_family._fit_columns.clear_cache()
    with pytest.warns(UserWarning, match="did not converge"):
        kaem.fit_density(normal_samples(101), kaem.BSpline(-5.0, 11.0, 9), penalty=1e-7)
    exponential_family._fit_columns.clear_cache()
