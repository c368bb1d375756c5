"""Samples that were rounded: found, and fitted as the intervals that they stand for."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_kaem as kaem
from numpyro_kaem.estimation import density, exponential_family
from numpyro_kaem.estimation.samples import as_widths, spread, support_ends
from numpyro_kaem.numerics.nodes import Cells
from tests.helpers import assert_close

REAL = support_ends(None, None, ())


def fit_rounded(samples, **options):
    with pytest.warns(UserWarning, match="they are taken as rounded"):
        return kaem.fit_density(samples, **options)


def mass_between(cdf, spacing, low, high):
    """Mass of the middle halves between multiples of a spacing."""
    ends = spacing * (np.arange(low, high)[:, None] + [0.25, 0.75])
    return np.sum(np.diff(np.asarray(cdf(ends), float), axis=1))


# --- the fit -------------------------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize(
    ("samples", "spacing", "support"),
    [
        (np.round(np.random.default_rng(0).normal(0, 2, 20_000)), 1.0, None),
        (np.random.default_rng(1).poisson(3, 20_000), 1.0, None),
        pytest.param(
            np.round(9 * np.random.default_rng(2).beta(4, 2, 20_000) + 1) / 2,
            0.5,
            (0.25, 5.25),
            marks=pytest.mark.long,
        ),
    ],
    ids=["normal", "counts", "half stars"],
)
def test_rounded_samples(samples, spacing, support):
    """Peaks at ties, which the quadrature of the fit did not see."""
    prior = fit_rounded(samples, support=support)
    corrected = np.sqrt(samples.var() - spacing**2 / 12)  # Sheppard
    assert_close(np.sqrt(prior.variance), corrected, rtol=0.01)
    assert_close(prior.mean, samples.mean(), atol=0.01 * corrected)
    quarters = np.arange(-48, 72)
    masses = np.asarray(prior.cdf(spacing * quarters / 4), float)
    below = lambda x: masses[np.searchsorted(quarters, 4 * x)]  # noqa: E731
    # Smooth densities have half of the mass in the middle halves.
    low, high = samples.min() / spacing, samples.max() / spacing
    steps = np.arange(low, high)
    between = np.sum(below(steps + 0.75) - below(steps + 0.25))
    assert abs(between - 0.5) < 0.01
    ends = np.arange(low - 0.5, high + 1)
    seen = np.histogram(samples, ends * spacing)[0] / len(samples)
    assert np.max(np.abs(np.diff(below(ends)) - seen)) < 2 / np.sqrt(len(samples))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("spacing", "shares", "found"),
    [(1.0, {5: 0.2, 10: 0.3}, "20% to 5, 30% to 10"), (0.0, {1: 0.3, 5: 0.2}, "to 5")],
    ids=["ages", "exact ones too"],
)
def test_heaps_count_for_wider_intervals(spacing, shares, found):
    """Heaps, taken as rounded to the finest spacing, stood out as peaks."""
    rng = np.random.default_rng(0)
    samples = rng.normal(45.0, 12.0, 20_000)
    widths = rng.choice([spacing, *shares], 20_000, p=[0.5, *shares.values()])
    rounded = widths * np.round(samples / np.where(widths > 0, widths, 1))
    samples = np.where(widths > 0, rounded, samples)
    with pytest.warns(UserWarning, match=rf"heaps of coarser rounding \(.*{found}\)"):
        prior = kaem.fit_density(samples)
    corrected = np.sqrt(samples.var() - np.mean(widths**2) / 12)  # Sheppard
    assert_close(np.sqrt(prior.variance), corrected, rtol=0.01)
    z = np.arange(0.0, 90.0, 0.5)
    np.testing.assert_allclose(prior.cdf(z), stats.norm(45, 12).cdf(z), atol=0.01)


def test_shares_of_cells_of_little_mass():
    """Running sums of their weights, and of masses, left nothing of them."""
    num_nodes = exponential_family.nodes_per_panel(jnp.zeros(()).dtype)
    masses = np.repeat([0.5, 0.5, 1e-20, 1e-25], num_nodes) / num_nodes
    position = (np.arange(masses.size) + 0.5) / masses.size
    cells = np.array([0, 1, 2, 3]), np.array([2, 2, 4, 4])
    shares = np.array([0.25, 0.25, 0.25, 0.25])
    _, pooled = density._of_cells(position, masses, *cells, shares)
    panels = pooled.reshape(4, -1).sum(1)
    np.testing.assert_allclose(panels, [0.125, 0.375, 0.25, 0.25], rtol=1e-4)


def test_ties_taken_as_exact_leave_no_peaks():
    samples = np.random.default_rng(1).poisson(3, 20_000)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        prior = kaem.fit_density(samples, rounding="none")
    assert_close(np.sqrt(prior.variance), samples.std(), rtol=0.03)


def test_cells_of_a_histogram_have_the_masses_of_the_samples():
    samples = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], [10, 40, 0, 25, 25])
    basis = kaem.BSpline(0.5, 5.5, num_basis=10, degree=0)
    prior = kaem.fit_density(
        samples, basis, support=(0.5, 5.5), penalty=0.0, rounding=1.0
    )
    masses = np.diff(np.asarray(prior.cdf(np.arange(0.5, 6.0)), float))
    np.testing.assert_allclose(masses, [0.1, 0.4, 0.0, 0.25, 0.25], atol=2e-3)
    # Of energies that fit alike the weak last term takes the flattest.
    assert_close(prior.log_prob(1.2), prior.log_prob(0.7), atol=1e-2)


@pytest.mark.long
def test_columns_and_an_open_end_of_rounded_samples():
    rng = np.random.default_rng(3)
    samples = rng.normal([1.0, 5.0, 9.0], [1.0, 2.0, 3.0], (2000, 3))
    weights = np.where(samples > [1.0, 5.0, 9.0], 2.0, 1.0)
    samples[:, 1] = np.round(samples[:, 1] / 2.0) * 2.0
    half = rng.random(2000) < 0.4
    samples[half, 2] = np.round(samples[half, 2] / 3.0) * 3.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prior = kaem.fit_density(samples, weights=weights)
    messages = [str(one.message) for one in caught]
    assert any("of column (1,) are at values of one spacing, 2" in m for m in messages)
    assert any("and those of 1 more columns" in m for m in messages)
    shares = weights / weights.sum(0)
    mean = np.sum(shares * samples, 0)
    variance = np.sum(shares * (samples - mean) ** 2, 0)
    variance -= np.array([0.0, 2.0**2, 0.4 * 3.0**2]) / 12
    assert_close(prior.mean, mean, atol=0.1)
    assert_close(prior.variance, variance, rtol=0.06)
    # Zero lies at the open end, but its interval has mass inside.
    samples = np.random.default_rng(1).poisson(3, 5000)
    prior = fit_rounded(samples, support="positive")
    assert_close(prior.cdf(0.5), np.mean(samples == 0), atol=0.01)
    with pytest.raises(ValueError, match=r"first of them 0\.0"):
        kaem.fit_density(samples, support="positive", rounding="none")


@pytest.mark.float64
def test_derivatives_are_those_of_the_likelihood():
    dtype = jnp.zeros(()).dtype
    num_nodes = exponential_family.nodes_per_panel(dtype)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    cells = Cells(
        jnp.array([0, 2, 0]), jnp.array([2, 5, 0]), jnp.array([0.3, 0.5, 0.0], dtype)
    )
    log_mass = draw(6 * num_nodes).at[-num_nodes:].set(-60.0)
    psi = draw(6 * num_nodes, 4)
    problem = exponential_family._Column(
        psi, log_mass, (psi, log_mass), 0.2 * draw(4), jnp.asarray(50.0, dtype), cells
    )
    ridge, theta = jnp.exp(draw(4)), draw(4)

    @jax.jit
    def derivatives(theta):
        value_of = lambda theta: exponential_family._objective(problem, ridge, theta)  # noqa: E731
        expected = jax.grad(value_of)(theta), -jax.hessian(value_of)(theta)
        return exponential_family._derivatives(problem, ridge, theta), expected

    (gradient, _, observed), expected = derivatives(theta)
    assert_close(gradient, expected[0], rtol=1e-3, atol=1e-4)
    assert_close(observed, expected[1], rtol=1e-3, atol=1e-4)


# --- what is found -------------------------------------------------------------------


def found(samples):
    """Spacing that most rounded samples have, and their share."""
    samples = np.asarray(samples)
    widths = as_widths(None, samples.astype(float), np.ones(1))
    widths = np.broadcast_to(widths, samples.shape)
    return (np.median(widths[widths > 0]) if widths.any() else 0), np.mean(widths > 0)


@pytest.mark.parametrize("size", [50, 100_000])
def test_spacings_are_found(size):
    rng = np.random.default_rng(4)
    normal = rng.normal(170.0, 1.0, size)
    mixed = np.where(rng.random(size) < 0.4, np.round(normal * 2) / 2, normal)
    cases = [
        (np.round(normal / 0.05) * 0.05, 0.05, 1.0),
        ((np.round(normal / 0.05) * 0.05).astype(np.float32), 0.05, 1.0),
        (2.54 * np.round(normal / 2.54), 2.54, 1.0),
        (np.round(rng.gamma(3.0, 10.0, size) / 10.0) * 10.0 + 8.99, 10.0, 1.0),
        (np.round(rng.gamma(3.0, 20.0, size)) / 60.0, 1 / 60, 1.0),
        (rng.choice(5, size, p=[0.32, 0.01, 0.34, 0.01, 0.32]), 1.0, 1.0),
        (rng.integers(0, 2, size), 1.0, 1.0),
        (mixed, 0.5, np.mean(mixed != normal)),
    ]
    for samples, spacing, share in cases:
        width, part = found(samples)
        np.testing.assert_allclose(width, spacing, rtol=1e-4)
        assert abs(part - share) < 0.005
    # No heaps: modes far apart, counts, and draws from few values.
    modes = rng.normal(np.where(rng.random(size) < 0.5, 0.0, 20.0), 2.0)
    few = rng.choice(np.round(rng.normal(0.0, 30.0, size)), size)
    for samples in (
        np.round(modes),
        rng.poisson(3, size),
        rng.geometric(0.1, size),
        few,
    ):
        widths = as_widths(None, samples.astype(float), np.ones(1))
        np.testing.assert_array_equal(widths, 1.0)
    # Values cut off between the multiples.
    samples = np.minimum(np.round(rng.normal(10.0, 3.0, 2000)), 12.75)
    widths = as_widths(None, samples, np.ones(1))
    assert_close(widths[samples == 12.75][0], 0.5)
    assert_close(widths[samples == 12.0][0], 1.0)


@pytest.mark.parametrize("size", [50, 100_000])
def test_other_ties_are_exact(size):
    """Resampled and rejected draws, heaps at one value, single precision."""
    rng = np.random.default_rng(5)
    normal = rng.normal(10.0, 1.0, size)
    cases = [
        normal,
        normal.astype(np.float32),
        rng.choice(normal, size),
        rng.choice(normal.astype(np.float32), size),
        np.repeat(normal, 3),
        np.where(rng.random(size) < 0.3, 0.0, normal),
        np.clip(normal, 9.0, 11.0),
    ]
    # Heaps at three values of single precision, which spacings fit by chance.
    for _ in range(10):
        heaps = np.repeat(1e3 + rng.normal(size=3), size // 10)
        mixed = np.concatenate([heaps, 990.0 + normal[:50]])
        cases.append(mixed.astype(np.float32))
    for samples in cases:
        assert found(samples) == (0, 0)


def test_spread_keeps_cells_and_dependence():
    samples = np.array([[0.0, 5.0], [0.0, 5.1], [2.0, 5.2], [0.0, 5.3]])
    widths = np.array([[2.0, 0.0]])
    low = support_ends("positive", None, (2,))
    even = spread(samples, widths, low)
    np.testing.assert_allclose(even[:, 0], [1 / 6, 3 / 6, 2.0, 5 / 6])
    np.testing.assert_array_equal(even[:, 1], samples[:, 1])
    other = spread(samples, widths, low, np.random.default_rng(0))
    np.testing.assert_allclose(np.sort(other[:, 0]), np.sort(even[:, 0]))
    # Joint samples stay as dependent as they are.
    rng = np.random.default_rng(9)
    first = rng.normal(size=2000)
    samples = np.round(np.stack([first, first + rng.normal(size=2000)], axis=1))
    widths = as_widths(None, samples, np.full((2000, 1), 1 / 2000))
    assert np.all(widths == 1.0)
    even = spread(samples, widths, REAL, rng)
    noise = even - samples
    assert np.max(np.abs(noise)) < 0.5
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.09
    widths = as_widths("none", samples, np.ones((2000, 1)))
    assert not np.any(widths)
    assert spread(samples, widths, REAL, rng) is samples


@pytest.mark.long
def test_mixture_of_rounded_samples():
    rng = np.random.default_rng(8)
    first = rng.normal(size=2000)
    exact = np.stack([first, 0.8 * first + 0.6 * rng.normal(size=2000)], axis=1)
    with pytest.warns(UserWarning, match=r"column \(0,\) .*spacing, 0.5"):
        mixture = kaem.fit_mixture(np.round(exact * 2) / 2, 6)
    draws = np.asarray(mixture.sample(jax.random.key(0), (4000,)))
    # A spread over the interval adds the variance of rounding.
    np.testing.assert_allclose(draws.std(0), np.sqrt(1 + 0.25 / 6), rtol=0.06)
    assert 0.68 < np.corrcoef(draws.T)[0, 1] < 0.85


# --- what is refused or told ---------------------------------------------------------


def test_bad_rounding():
    for rounding, error, message in (
        ("all", ValueError, 'rounding must be a spacing, None or "none"'),
        (-1.0, ValueError, "rounding must be finite and not negative"),
        ([1.0, 1.0], ValueError, "rounding must broadcast"),
        (1j, TypeError, "rounding must be real"),
    ):
        with pytest.raises(error, match=message):
            kaem.fit_density([1.0, 2.0, 3.0], rounding=rounding)


def test_fits_that_samples_do_not_support_are_told():
    """Those that differ from them, and those of cells too wide for a shape within."""
    rng = np.random.default_rng(7)
    samples = rng.normal(np.where(rng.random(4000) < 0.5, 0.0, 6.0), 1.0)
    with pytest.warns(UserWarning, match="differs from its samples by more than"):
        kaem.fit_density(samples, None, dist.Normal(3.0, 5.0), penalty=1e6)
    samples = 2 * np.round(np.random.default_rng(0).normal(size=4000) / 2)
    with pytest.warns(UserWarning, match=r"a spacing of [\d.]+ standard deviations"):
        prior = kaem.fit_density(samples, rounding=2.0)
    # Masses of cells of two deviations leave the deviation open by some per cent.
    corrected = np.sqrt(samples.var() - 4 / 12)
    assert abs(np.sqrt(prior.variance) / corrected - 1) < 0.15
    # The remedy that is named, a reference of the shape.
    exact = np.random.default_rng(0).gamma(2.0, 1.0, 4000)
    with pytest.warns(UserWarning, match="or a reference of the shape"):
        prior = kaem.fit_density(
            np.round(exact / 2.8) * 2.8, None, dist.Gamma(2.0, 1.0), rounding=2.8
        )
    assert_close(np.sqrt(prior.variance), exact.std(), rtol=0.03)


# --- all spacings and sizes ----------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("size", [50, 500, 5000, 100_000])
def test_divergence_is_below_that_of_kernels(size):
    """Normal, gamma and beta at spacings of 0.05 to 2 standard deviations."""
    better = []
    for distribution, support, ends in (
        (stats.norm(3.0, 2.0), None, (-9.0, 15.0)),
        (stats.gamma(3.0, scale=2.0), "positive", (1e-4, 50.0)),
        (stats.beta(2.0, 5.0, 1.0, 4.0), (1.0, 5.0), (1.0001, 4.9999)),
    ):
        z = np.linspace(*ends, 4001)
        density, step = distribution.pdf(z), z[1] - z[0]
        divergence = lambda log_q: np.sum(  # noqa: E731
            density * (np.log(density) - log_q) * step  # noqa: B023
        )
        for part in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0):
            spacing = part * distribution.std()
            random = np.random.RandomState(size + int(100 * part))
            exact = distribution.rvs(size, random_state=random)
            samples = np.round(exact / spacing) * spacing
            samples = samples if support != (1.0, 5.0) else np.clip(samples, 1.0, 5.0)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".* taken as rounded")
                warnings.filterwarnings("ignore", message=".* to a spacing of")
                prior = kaem.fit_density(samples, support=support)
            values, counts = np.unique(samples, return_counts=True)
            width = samples.std(ddof=1) * size**-0.2
            kernels = stats.norm.pdf((z[:, None] - values) / width) / width
            kernels = np.maximum(kernels @ (counts / size), 1e-300)
            ours = np.asarray(prior.log_prob(z), float)
            better.append(divergence(ours) < divergence(np.log(kernels)))
            # Wider intervals leave the shape within them open.
            if part <= 1:
                if size >= 500:
                    corrected = np.sqrt(samples.var() - spacing**2 / 12)
                    # On the range of the distribution: LogNormal tails reach further.
                    mass = np.exp(ours) / np.sum(np.exp(ours))
                    deviation = np.sqrt(mass @ z**2 - (mass @ z) ** 2)
                    assert abs(deviation / corrected - 1) < 0.03
                low, high = np.floor(ends[0] / spacing), np.ceil(ends[1] / spacing)
                mass = mass_between(prior.cdf, spacing, low, high)
                assert (
                    abs(mass - mass_between(distribution.cdf, spacing, low, high))
                    < 0.01
                )
    assert np.mean(better) >= 0.9
