"""``cdf``, ``icdf`` and ``sample`` against the distribution functions of SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_array_equal
from scipy import stats

from numpyro_kaem import Chebyshev, Energy, KAEMPrior
from tests.distributions.cases import BASES, DIAGONAL, REFERENCES, build, ulp
from tests.helpers import with_long

NUM_LEVELS = 20_000


def levels(dtype):
    """Increasing masses from 1e-7 to 1 - 1e-7, many of them neighbouring numbers."""
    tails = np.geomspace(1e-7, 0.1, 2_000)
    coarse = np.concatenate([tails, np.linspace(0.1, 0.9, 3_600), 1 - tails])
    coarse = np.sort(coarse).astype(dtype)
    starts = np.linspace(0.001, 0.99, 124, dtype=dtype)
    runs = starts + np.arange(100, dtype=dtype)[:, None] * np.spacing(starts)
    u = np.sort(np.concatenate([coarse, runs.ravel()]))
    u = np.clip(u, dtype.type(1e-7), dtype.type(1) - np.spacing(dtype.type(0.5)) * 2)
    return u[:NUM_LEVELS]


# A smooth density on the line, and one with a singular end inside its grid.
FEW = [("bspline-3", "normal"), ("rbf", "gamma-singular")]


@pytest.fixture(scope="module", params=with_long(DIAGONAL, *FEW), ids="-".join)
def inverted(request):
    """A batch of densities, masses, and the quantiles of both."""
    built = build(*request.param)
    u = levels(built.dtype)
    return built, u, built.prior.icdf(u[:, None])


def tolerance(built, z, smallest):
    """Bar of an error in mass: rounding of ``z`` alone costs density times spacing."""
    density = np.exp(built.oracle.log_prob(z))
    floor = np.maximum(smallest, 4 * density * ulp(z.astype(built.dtype)))
    return floor + (0.0 if built.dtype == np.float64 else built.reference_error)


@pytest.mark.numerics
def test_quantiles_and_masses(inverted, x64):
    """Of the distribution by SciPy, of each other, in order, and at the ends."""
    built, u, quantiles = inverted
    z = np.asarray(quantiles)
    eps = np.finfo(built.dtype).eps
    # The masses of quantiles are the masses asked for.
    below, above = (np.asarray(m, float)[::20] for m in built.prior.cdf_pair(quantiles))
    bar = tolerance(built, z[::20], 1e-12 if x64 else 1e-6)
    assert np.all(np.abs(below - u[::20, None]) <= bar)
    assert np.all(np.abs((1 - u[::20, None]) - above) <= bar + eps)
    # By SciPy: the Kolmogorov distance of the draws, computed and not sampled.
    below, above = built.oracle.cdf_pair(z[::40])
    few = u[::40, None].astype(float)
    error = np.where(few < 0.5, below - few, (1 - few) - above)
    bar = 1e-11 if x64 else 2e-6
    if x64 and built.reference.singular:
        bar = 1e-10
    density = np.exp(built.oracle.log_prob(z[::40]))
    bar = bar + 4 * density * ulp(z[::40].astype(built.dtype))
    given = 0.0 if x64 else built.reference_error + built.energy_error
    assert np.all(np.abs(error) <= bar + given)
    # Quantiles do not decrease. Inside the grid a point is its panel's left end plus a
    # part of its width, so near 0 it is as coarse as those; the reference's own
    # quantiles decide in the tails.
    assert z.size >= 0.9e6
    assert np.all(np.diff(u) >= 0)
    assert np.all(np.isfinite(z))
    low, high = built.oracle.edges[[0, -1]]
    coarse = np.full((), (high - low) / 8, z.dtype)
    inside = (z[1:] > low) & (z[1:] < high)
    allowed = np.where(inside, 2, 6) * ulp(np.maximum(np.abs(z[1:]), coarse))
    assert np.all(np.diff(z, axis=0) >= -allowed)
    # The ends, in the shape of the fixture, which is compiled.
    q = np.resize(np.array([0.0, 1.0, np.nan, -0.5, 1.5], u.dtype), u.shape)
    z = np.asarray(built.prior.icdf(q[:, None]))[:5]
    low, high = built.reference.distribution.support()
    assert_array_equal(z[0], np.full(z.shape[1], low, z.dtype))
    assert_array_equal(z[1], np.full(z.shape[1], high, z.dtype))
    assert np.all(np.isnan(z[2:]))


@pytest.mark.numerics
def test_draws_reach_far_and_are_no_ends(x64):
    """Also where nearly all mass lies in the first or the last panel."""
    slopes = np.array([0.0, 20.0, -20.0, 90.0, -90.0])
    coefficients = np.stack([np.zeros(5), slopes], -1)
    energy = Energy(Chebyshev(1.5, 5.0, 1), jnp.asarray(coefficients))
    for reference in (None, dist.Uniform(1.0, 6.0)):
        low, high = (1.5, 5.0) if reference is None else (reference.low, reference.high)
        draws = np.asarray(
            KAEMPrior(energy, reference).sample(jax.random.key(1), (50_000,))
        )
        assert draws.dtype == (np.float64 if x64 else np.float32)
        assert np.all((draws > float(low)) & (draws < float(high)))
    # Draws reach far into both tails of an unbounded distribution, as fine in one as in
    # the other: far below the spacing of numbers at one. The first energy is zero.
    prior, exact = KAEMPrior(energy, dist.Normal(3.0, 2.0)), stats.norm(3.0, 2.0)
    z = np.array([-16.0, -9.0, 1.0, 16.0, 22.0])
    masses = zip(prior.cdf_pair(z[:, None]), (exact.cdf(z), exact.sf(z)), strict=True)
    for actual, expected in masses:
        np.testing.assert_allclose(actual[:, 0], expected, rtol=3e-5)
    draws = np.asarray(prior.sample(jax.random.key(2), (1_000_000,)))
    assert np.all(np.isfinite(draws))
    deepest = exact.cdf(draws[:, 0].min()), exact.sf(draws[:, 0].max())
    # The least of a million masses is Exponential(1e6) in distribution.
    assert 1e-11 < min(deepest) < max(deepest) < 2e-5


def test_a_single_draw_and_an_empty_one():
    case, distribution = BASES["rbf"], REFERENCES["normal"]
    energy = Energy(case.make(*distribution.grid), jnp.ones((0, case.num_features)))
    prior = KAEMPrior(energy, distribution.make())
    assert prior.sample(jax.random.key(0), (3,)).shape == (3, 0)
    assert prior.icdf(jnp.full((2, 0), 0.5)).shape == (2, 0)
    assert prior.cdf(jnp.zeros((2, 0))).shape == (2, 0)
    assert prior.log_normalizer.shape == (0,)
    single = KAEMPrior(
        Energy(case.make(*distribution.grid), jnp.ones(7)), distribution.make()
    )
    assert single.sample(jax.random.key(0), (0,)).shape == (0,)
    # Traced, where one draw goes another way than many.
    traced = jax.jit(lambda prior: prior.sample(jax.random.key(0), (0,)))(single)
    assert traced.shape == (0,)
    assert single.sample(jax.random.key(0)).shape == ()
