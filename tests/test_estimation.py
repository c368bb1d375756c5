"""Densities from samples, against SciPy's optimiser, histograms and known laws."""

import warnings

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
from numpyro_kaem.coordinates import make_design
from numpyro_kaem.estimation import choose_parts
from numpyro_kaem.estimation_checks import as_real
from numpyro_kaem.exponential_family import RIDGE, fit_columns, mean_features
from numpyro_kaem.reference_nodes import make_nodes
from tests.helpers import assert_close

SEED = 20


def divergence(law, prior, low, high):
    """Kullback-Leibler divergence of a prior from a SciPy law."""
    z = np.linspace(low, high, 20_001)
    density = law.pdf(z)
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
    reference, penalty = stats.norm(2.0, 3.0), 1e-3
    prior = kaem.fit_density(samples, basis, dist.Normal(2.0, 3.0), penalty=penalty)

    with jax.enable_x64(True):
        s, weights = np.polynomial.legendre.leggauss(80)
        s, weights = (s + 1) / 2, weights / 2
        features = lambda z: np.asarray(basis(jnp.asarray(z, jnp.float64)))  # noqa: E731
        at_grid, at_samples = features(-1.0 + 7.0 * s), features(samples)
        breaks = np.linspace(-1.0, 6.0, 13)
        x, w = np.polynomial.legendre.leggauss(30)
        nodes = (breaks[:-1, None] + np.diff(breaks)[:, None] * (x + 1) / 2).ravel()
        masses = reference.pdf(nodes) * np.tile(w * 7 / 24, 12)
        at_nodes = np.concatenate([features(nodes), features([-1.0, 6.0])])
    masses = np.append(masses, [reference.cdf(-1.0), reference.sf(6.0)])
    centred = at_grid - weights @ at_grid
    quadratic = penalty * roughness(basis) + RIDGE * centred.T @ (
        weights[:, None] * centred
    )

    def loss(c):
        energy = at_nodes @ c
        top = energy.max()
        mass = masses * np.exp(energy - top)
        value = len(samples) * (np.log(mass.sum()) + top) - np.sum(at_samples @ c)
        gradient = len(samples) * mass @ at_nodes / mass.sum() - at_samples.sum(0)
        return value + 0.5 * c @ quadratic @ c, gradient + quadratic @ c

    found = optimize.minimize(
        loss,
        np.zeros(basis.num_features),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 2000},
    ).x
    z = np.linspace(-3.0, 8.0, 40)
    with jax.enable_x64(True):
        energy = features(z) @ found
    mass = masses * np.exp(at_nodes @ found)
    log_density = energy + reference.logpdf(z) - np.log(mass.sum())
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
    nodes = make_nodes(basis, None, (), dtype)
    penalties = np.array([0.1, 1e3]) / design.roughness[0]
    found = [
        fit_columns(basis, design, nodes, means, jnp.array([size]), penalty)
        for penalty in penalties
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
    assert_close(jnp.exp(prior.log_prob(middle)), heights, rtol=1e-3, atol=1e-3)


def test_empty_cells_stay_finite():
    samples = np.random.default_rng(SEED).uniform(2.0, 3.0, 100)
    basis = kaem.BSpline(0.0, 10.0, num_basis=20, degree=0)
    for penalty in (None, 0.0):
        prior = kaem.fit_density(samples, basis, support=(0.0, 10.0), penalty=penalty)
        assert np.all(np.abs(prior.energy.coefficients) < 100)
        assert float(prior.cdf(3.0) - prior.cdf(2.0)) > 0.95


def test_coefficients_have_no_constant():
    prior = kaem.fit_density(normal_samples(300))
    assert_close(jnp.sum(prior.energy.coefficients), 0.0, atol=(1e-2, 1e-8))


def test_coordinates_are_orthonormal():
    basis = kaem.RBF(2.0, 5.0, num_basis=6)
    design = make_design(basis, jnp.zeros(()).dtype)
    assert design.used.all()
    s, weights = np.polynomial.legendre.leggauss(100)
    values = np.asarray(basis.unit_features((s + 1) / 2))
    psi = (values - design.centre) @ design.transform
    gram = psi.T @ (weights[:, None] / 2 * psi)
    np.testing.assert_allclose(gram, np.eye(6), atol=1e-3)


# --- known laws ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "support", "low", "high", "bound"),
    [
        (stats.norm(3.0, 2.0), None, -13.0, 19.0, 0.003),
        (stats.norm(3e3, 2.0), "real", 2984.0, 3016.0, 0.003),
        pytest.param(
            *(stats.gamma(3.0, scale=2.0), "positive", 1e-6, 60.0, 0.01),
            marks=pytest.mark.long,
        ),
        pytest.param(
            stats.expon(scale=0.5), "positive", 1e-3, 12.0, 0.01, marks=pytest.mark.long
        ),
        pytest.param(
            stats.lognorm(1.0), "positive", 1e-6, 200.0, 0.01, marks=pytest.mark.long
        ),
        pytest.param(
            stats.lognorm(0.5, 2.5),
            (2.5, np.inf),
            2.5001,
            40.0,
            0.01,
            marks=pytest.mark.long,
        ),
        (stats.beta(2.0, 5.0, 1.0, 4.0), (1.0, 5.0), 1.0, 5.0, 0.01),
        pytest.param(
            *(stats.uniform(1.0, 4.0), (1.0, 5.0), 1.0, 5.0, 0.01),
            marks=pytest.mark.long,
        ),
    ],
    ids=[
        "normal",
        "far",
        "gamma",
        "exponential",
        "lognormal",
        "above",
        "beta",
        "uniform",
    ],
)
def test_recovers_a_known_law(law, support, low, high, bound):
    samples = law.rvs(2000, random_state=np.random.RandomState(SEED))
    prior = kaem.fit_density(samples, support=support)
    assert prior.batch_shape == ()
    assert divergence(law, prior, low, high) < bound


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


@pytest.mark.parametrize(
    ("support", "far"),
    [
        pytest.param("real", [-1e3, 1e3], marks=pytest.mark.long),
        ("positive", [1e-4, 1e4]),
        pytest.param((-2.0, np.inf), [-1.999, 1e4], marks=pytest.mark.long),
        pytest.param((0.0, 50.0), [0.0, 50.0], marks=pytest.mark.long),
    ],
)
def test_next_observation_has_positive_density(support, far):
    samples = np.random.default_rng(SEED).gamma(9.0, 0.5, 82)
    prior = kaem.fit_density(samples, support=support)
    assert np.all(np.isfinite(prior.log_prob(jnp.array(far))))


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
    prior = kaem.fit_density(normal_samples(400))
    z = np.linspace(-20.0, 26.0, 20_001)
    mass = np.trapezoid(np.asarray(jnp.exp(prior.log_prob(z)), float), z)
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)
    u = jnp.array([0.01, 0.3, 0.9])
    assert_close(prior.cdf(prior.icdf(u)), u, atol=(1e-5, 1e-10))


def test_samples_at_a_grid_of_heavy_tails():
    samples = stats.cauchy(2.0, 1.0).rvs(2000, random_state=np.random.RandomState(SEED))
    basis = kaem.BSpline(-8.0, 12.0, num_basis=20)
    prior = kaem.fit_density(samples, basis, dist.Cauchy(2.0, 1.0))
    assert divergence(stats.cauchy(2.0, 1.0), prior, -1e4, 1e4) < 0.01


# --- weights, columns, options -------------------------------------------------------


@pytest.mark.long
def test_weights_are_replicated_samples():
    samples = normal_samples(200)
    counts = np.random.default_rng(1).integers(0, 4, 200)
    basis, reference = kaem.BSpline(-5.0, 11.0, 7), dist.Normal(3.0, 3.0)
    weighted, repeated = (
        kaem.fit_density(x, basis, reference, penalty=0.0, weights=w)
        for x, w in ((samples, counts), (np.repeat(samples, counts), None))
    )
    z = np.linspace(-1.0, 7.0, 20)
    # The term that bounds the energy counts against other numbers of samples.
    assert_close(weighted.log_prob(z), repeated.log_prob(z), rtol=1e-2, atol=1e-2)


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


def test_scale_of_weights_does_not_matter():
    samples = normal_samples(200)
    ones = kaem.fit_density(samples)
    for scale in (1e-200, 1e200):
        weighted = kaem.fit_density(samples, weights=np.full(200, scale))
        z = np.linspace(-3.0, 9.0, 20)
        assert_close(weighted.log_prob(z), ones.log_prob(z), rtol=1e-3, atol=1e-3)


def test_few_effective_samples_are_smoothed_more():
    samples = normal_samples(2000)
    weights = np.where(np.arange(2000) < 20, 1.0, 1e-9)
    weighted = kaem.fit_density(samples, weights=weights)
    alone = kaem.fit_density(samples[:20])
    assert abs(float(weighted.mean - alone.mean)) < 0.2
    assert abs(float(weighted.variance / alone.variance) - 1) < 0.3


def test_samples_without_weight_do_not_count():
    """Neither in the likelihood nor in the number that the penalty is chosen by."""
    samples = normal_samples(600)
    basis, reference = kaem.BSpline(-5.0, 11.0, 12), dist.Normal(3.0, 3.0)
    weights = np.where(np.arange(600) < 30, 2.0, 0.0)
    weighted = kaem.fit_density(samples, basis, reference, weights=weights)
    alone = kaem.fit_density(samples[:30], basis, reference)
    z = np.linspace(-1.0, 7.0, 20)
    assert_close(weighted.log_prob(z), alone.log_prob(z), rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_columns_are_separate_fits():
    rng = np.random.default_rng(SEED)
    samples = rng.normal(size=(250, 2, 3)) * np.array([1.0, 2.0, 5.0]) + 3.0
    weights = rng.random(samples.shape)
    with pytest.warns(UserWarning, match="only the marginals are kept"):
        together = kaem.fit_density(samples, weights=weights)
    assert together.batch_shape == (2, 3)
    z = np.linspace(-2.0, 8.0, 9)
    for row, column in ((0, 0), (1, 2)):
        alone = kaem.fit_density(
            samples[:, row, column], weights=weights[:, row, column]
        )
        shape = (len(z), 2, 3)
        values = together.log_prob(np.broadcast_to(z[:, None, None], shape))
        assert_close(
            values[:, row, column],
            alone.log_prob(z),
            rtol=(1e-2, 1e-7),
            atol=(1e-2, 1e-7),
        )


@pytest.mark.long
def test_columns_on_one_grid_with_intervals():
    rng = np.random.default_rng(SEED)
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
def test_bandwidth_search_does_not_lose():
    samples = normal_samples(1000)
    basis = kaem.RBF(-5.0, 11.0, 20, bandwidth=0.5)
    kept = kaem.fit_density(samples, basis)
    assert float(kept.energy.basis.bandwidth) == 0.5
    chosen = kaem.fit_density(samples, basis, fit_bandwidth=True)
    assert 0.25 <= float(chosen.energy.basis.bandwidth) <= 2.0
    law, ends = stats.norm(3.0, 2.0), (-13.0, 19.0)
    assert divergence(law, chosen, *ends) <= divergence(law, kept, *ends) + 1e-3


@pytest.mark.long
def test_larger_penalty_is_smoother():
    samples = normal_samples(200)
    basis = kaem.BSpline(-5.0, 11.0, 20)

    def roughness(penalty):
        prior = kaem.fit_density(samples, basis, penalty=penalty)
        return np.sum(np.diff(np.asarray(prior.energy.coefficients), 3) ** 2)

    assert roughness(1e-9) > roughness(1e-6) > roughness(1e-3)


@pytest.mark.long
def test_one_value_with_basis_and_reference():
    prior = kaem.fit_density([2.0], kaem.BSpline(-1.0, 5.0, 8), dist.Normal(1.0, 2.0))
    assert np.isfinite(prior.log_prob(2.0))
    assert np.all(np.isfinite(prior.energy.coefficients))


@pytest.mark.long
def test_ties_and_integers():
    with pytest.warns(UserWarning, match="taken as rounded"):
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
        (([1.0, 2.0], GRID), {"fit_bandwidth": True}, TypeError, "with a bandwidth"),
        (
            ([1.0, 2.0], kaem.BSpline([0.0, 0.0], 3.0, 8)),
            {},
            ValueError,
            "grid of basis must broadcast",
        ),
        (
            ([1.0, 2.0], GRID, dist.Normal(0.0, 1.0)),
            {"support": "real"},
            ValueError,
            "exclude each other",
        ),
        (
            ([1.0, 2.0], GRID, dist.Normal(jnp.zeros(2), 1.0)),
            {},
            ValueError,
            "batch shape of reference",
        ),
        (
            ([-1.0, 2.0], GRID, dist.LogNormal(0.0, 1.0)),
            {},
            ValueError,
            "outside, the first of them -1.0",
        ),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=message):
        kaem.fit_density(*arguments, **options)


def test_masked_entries_are_refused():
    """NumPy's conversion drops the mask."""
    masked = np.ma.masked_greater([1.0, 2.0, 99.0], 90.0)
    for arguments in (
        {"samples": masked},
        {"samples": [1.0, 2.0, 3.0], "weights": masked},
    ):
        with pytest.raises(ValueError, match="must have no masked entries, got 1"):
            kaem.fit_density(**arguments)
    with pytest.raises(ValueError, match="samples must have no masked entries"):
        kaem.fit_mixture(masked[:, None], 1)


def test_objects_that_are_numbers_are_samples():
    from fractions import Fraction

    values = np.array([1, 2.5, Fraction(7, 2)], dtype=object)
    np.testing.assert_array_equal(as_real("samples", values), [1.0, 2.5, 3.5])
    with pytest.raises(TypeError, match="dtype object; drop missing values"):
        as_real("samples", np.array([1.0, None], dtype=object))


def test_chains_of_draws_are_told():
    draws = np.random.default_rng(SEED).normal(size=(4, 40))
    with pytest.warns(UserWarning, match=r"4 samples of 40 .*samples.reshape\(-1\)"):
        kaem.fit_density(draws, GRID, dist.Normal(0.0, 3.0))


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


def test_traced_samples():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: kaem.fit_density(x).mean)(jnp.array([1.0, 2.0]))


def test_warns_without_convergence(monkeypatch):
    import numpyro_kaem.exponential_family as family

    monkeypatch.setattr(family, "_MAX_STEPS", 1)
    jax.clear_caches()
    with pytest.warns(UserWarning, match="did not converge"):
        kaem.fit_density(normal_samples(101), kaem.BSpline(-5.0, 11.0, 9), penalty=1e-7)
    jax.clear_caches()
