"""The normaliser against SciPy: every basis, every reference, and their own errors."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, interpolate, stats

from numpyro_kaem import BSpline, Energy, KAEMPrior
from tests.bases.cases import CASES as BASES
from tests.distributions.cases import (
    DIAGONAL,
    REFERENCES,
    SHORT,
    Oracle,
    build,
    unit_energy,
)
from tests.helpers import assert_close, with_long

numerics = pytest.mark.numerics


def check(built, x64):
    """The error of the normaliser, and for how many energies its own estimate holds."""
    difference = np.asarray(built.prior.log_normalizer, float)
    error = np.abs(np.expm1(difference - built.oracle.log_normalizer))
    if x64:
        bar = 1e-8 if built.reference.singular else 1e-11
    else:
        bar = 5e-6 + built.reference_error
    assert error.max() <= bar
    # At a singular end the mass is the reference's own ``cdf``, with its error.
    estimate = np.asarray(built.prior.quadrature_error, float)
    if built.reference.singular:
        error = np.maximum(error - built.reference_error, 0)
    eps = np.finfo(built.dtype).eps
    assert np.all(estimate <= 1e4 * np.maximum(error, eps))
    return np.mean(estimate >= np.maximum(error, eps))


@numerics
@pytest.mark.parametrize("pair", with_long(DIAGONAL, *SHORT), ids="-".join)
def test_normalizer(pair, x64):
    holds = check(build(*pair), x64)
    assert holds >= 0.95 or pair not in SHORT


# Where float32 misses a bar, and by how much.
MISSES = {
    ("chebyshev", "uniform"): "relative error 5.27e-6, bar 5.05e-6",
    ("shannon", "beta-singular"): "estimate holds for .86 of energies, bar .9",
    ("morlet", "beta-singular"): "estimate holds for .82 of energies, bar .9",
}
OTHERS = [
    (basis, reference)
    for basis in BASES
    for reference in REFERENCES
    if (basis, reference) not in DIAGONAL
]


@pytest.mark.float64
@pytest.mark.long
@pytest.mark.parametrize(("basis", "reference"), OTHERS)
def test_normalizer_of_pairs(basis, reference, x64, request):
    """The bases with the other references; most of this is compiling."""
    if not x64 and (basis, reference) in MISSES:
        reason = MISSES[basis, reference]
        # Not strict: the miss is by rounding, which differs between processors.
        request.applymarker(pytest.mark.xfail(reason=reason, strict=False))
    assert check(build.__wrapped__(basis, reference), x64) >= 0.9


@numerics
@pytest.mark.parametrize(
    ("basis", "reference"),
    [("bspline-1", "laplace"), ("morlet", "student-t"), ("rbf", "gamma-singular")],
)
def test_the_oracle_itself(basis, reference):
    """The dense rule behind these tests agrees with adaptive quadrature."""
    distribution, case = REFERENCES[reference], BASES[basis]
    low, high = distribution.grid
    rng = np.random.default_rng(1)
    coefficients = 3 * rng.normal(size=(2, case.num_features))
    energy = unit_energy(case, coefficients, low, high)
    oracle = Oracle(energy, distribution.distribution, low, high, distribution.breaks)
    start = max(low, distribution.distribution.support()[0])
    points = sorted({*distribution.breaks, *(low + (high - low) * np.arange(1, 6) / 6)})

    def density(z, column):
        return np.exp(energy(np.array([z]))[column]) * distribution.distribution.pdf(z)

    for column in range(2):
        if distribution.singular:
            # In t with z = t^2 the singularity at 0 is gone.
            inner = integrate.quad(
                lambda t, c=column: 2 * t * density(t * t, c) if t > 0 else 0.0,
                0.0,
                np.sqrt(high),
                points=np.sqrt([p for p in points if p > 0]),
                epsabs=0,
                epsrel=1e-12,
                limit=500,
            )[0]
        else:
            inner = integrate.quad(
                density,
                start,
                high,
                (column,),
                points=points,
                epsabs=0,
                epsrel=1e-12,
                limit=500,
            )[0]
        tails = (
            distribution.distribution.cdf(low) * np.exp(energy(np.array([low])))[column]
        )
        tails += (
            distribution.distribution.sf(high)
            * np.exp(energy(np.array([high])))[column]
        )
        np.testing.assert_allclose(
            np.log(inner + tails), oracle.log_normalizer[column], atol=1e-9
        )


@numerics
@pytest.mark.parametrize("activation", with_long(["silu", "relu"], "relu"))
def test_base_activation(activation):
    low, high = -6.0, 10.0
    case, distribution = BASES["bspline-3"], stats.norm(1.25, 3.0)
    rng = np.random.default_rng(2)
    coefficients = jnp.asarray(rng.normal(size=(5, case.num_features)))
    scale = 0.1 if activation == "square" else 1.0
    weight = jnp.asarray(scale * np.array([-1.5, -0.5, 0.5, 1.0, 1.5]))
    energy = Energy(case.make(low, high), coefficients, weight, activation)
    prior = KAEMPrior(energy, dist.Normal(1.25, 3.0))
    oracle = Oracle(
        unit_energy(case, coefficients, low, high, activation, weight),
        distribution,
        low,
        high,
        breaks=(0.0,),
    )
    assert_close(
        prior.log_normalizer, oracle.log_normalizer, rtol=(3e-6, 1e-12), atol=(5e-6, 0)
    )


@numerics
def test_batches_of_grids_and_references():
    """Columns with a grid, an energy and a reference of their own, and a table."""
    lows, highs = [-0.75, 1.5], [2.5, 1.875]
    locs, scales = [1.25, 1.75], [0.75, 0.5]
    case = BASES["rbf"]
    coefficients = jnp.asarray(np.random.default_rng(3).normal(size=(2, 7)) * 2)
    energy = Energy(case.make(lows, highs), coefficients)
    prior = KAEMPrior(energy, dist.Normal(jnp.asarray(locs), jnp.asarray(scales)))
    assert prior.batch_shape == (2,)
    z = np.array([[-0.5, 1.0], [1.0, 1.625], [3.0, 2.0]])
    oracles = [
        Oracle(
            unit_energy(case, coefficients[i : i + 1], lows[i], highs[i]),
            stats.norm(locs[i], scales[i]),
            lows[i],
            highs[i],
        )
        for i in range(2)
    ]
    expected = np.concatenate([oracle.log_normalizer for oracle in oracles])
    assert_close(prior.log_normalizer, expected, atol=(5e-6, 1e-12))
    columns = list(zip(oracles, np.split(z, 2, axis=1), strict=True))
    expected = np.concatenate([oracle.log_prob(c) for oracle, c in columns], 1)
    assert_close(prior.log_prob(z), expected, atol=(2e-5, 1e-11), rtol=1e-6)
    expected = np.concatenate([oracle.cdf_pair(c)[0] for oracle, c in columns], 1)
    assert_close(prior.cdf(z), expected, atol=(2e-6, 1e-12))
    # The batch of a reference broadcasts with that of the energy.
    distribution = REFERENCES["normal"]
    coefficients = jnp.asarray(np.random.default_rng(4).normal(size=(3, 1, 7)))
    energy = Energy(case.make(*distribution.grid), coefficients)
    prior = KAEMPrior(energy, dist.Normal(jnp.array([0.25, 1.0]), 0.75))
    assert prior.batch_shape == (3, 2)
    unit = unit_energy(case, coefficients[:, 0], *distribution.grid)
    distributions = [stats.norm(loc, 0.75) for loc in (0.25, 1.0)]
    expected = [
        Oracle(unit, one, *distribution.grid).log_normalizer for one in distributions
    ]
    assert_close(prior.log_normalizer, np.stack(expected, 1), atol=(5e-6, 1e-12))


@numerics
@pytest.mark.parametrize("name", with_long(["Normal", "Cauchy"], "Normal"))
def test_a_reference_narrower_than_the_panels(name):
    """Breaks at the reference's scale points resolve it, wherever it lies."""
    loc, scale = 1.375, 0.0078125
    coefficients = jnp.asarray([1.0, -1.0, 2.0, 0.0, 1.0])
    energy = Energy(BSpline(-3.0, 5.0, 5), coefficients)
    prior = KAEMPrior(energy, getattr(dist, name)(loc, scale))
    distribution = {"Normal": stats.norm, "Cauchy": stats.cauchy}[name](loc, scale)
    spline = interpolate.BSpline(np.arange(-3.0, 6.0) / 2, np.asarray(coefficients), 3)

    def density(z):
        return np.exp(spline((z + 3) / 8)) * distribution.pdf(z)

    steps = np.concatenate([[0], 2.0 ** np.arange(-3, 10)]) * scale
    inner = np.clip([*(loc - steps), *(loc + steps), 1.0], -3, 5)
    points = np.unique([-3.0, *inner, 5.0])
    total = sum(
        integrate.quad(density, a, b, epsabs=0, epsrel=1e-13)[0]
        for a, b in itertools.pairwise(points)
    )
    total += distribution.cdf(-3) * np.exp(spline(0.0)) + distribution.sf(5) * np.exp(
        spline(1.0)
    )
    assert_close(prior.log_normalizer, np.log(total), atol=(1e-5, 1e-11))
