"""What every basis must do, for every case of the table."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.bases.cases import CASES, GRIDS, WEIGHTS
from tests.helpers import with_long

# Slopes of 6th-degree polynomials and narrow wavelets amplify the rounding of z.
ATOL = (3e-5, 1e-12)
FEW = ["rbf", "bspline-3", "fourier", "chebyshev"]
# Centred bases share their sums; derivatives of the others are by the same rules.
SUMS = [*FEW, "rbf-single", "bspline-0", "bspline-one-cell", "chebyshev-constant"]
DERIVATIVES = [*FEW, "rswaf", "shannon", "bspline-0", "bspline-one-cell"]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(autouse=True)
def _no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def points(grid):
    """Points inside and outside the grid, none on a knot, shape (9, *grid_shape)."""
    low, high = np.asarray(grid[0]), np.asarray(grid[1])
    fractions = np.array([-0.4, 0.013, 0.19, 0.31, 0.52, 0.67, 0.81, 0.989, 1.3])
    z = low + (high - low) * fractions.reshape((-1,) + (1,) * low.ndim)
    return z.astype(jnp.zeros(()).dtype)


def position(z, grid):
    """The same as ``to_unit`` in float64."""
    low, high = np.asarray(grid[0]), np.asarray(grid[1])
    return np.clip((np.asarray(z, float) - low) / (high - low), 0.0, 1.0)


@jax.jit
def units_and_features(bases, z):
    return [(b.to_unit(x), b(x)) for b, x in zip(bases, z, strict=True)]


@pytest.mark.numerics
def test_values(case):
    """Inside the grid, at its ends, and beyond, where features are constant."""
    bases = [case.make(*grid) for grid in GRIDS.values()]
    z = [
        np.concatenate(
            [points((low, high)), np.stack(beyond).astype(points((0, 1)).dtype)]
        )
        for low, high in (map(np.asarray, grid) for grid in GRIDS.values())
        for beyond in [[low, low - 3, low - np.inf, high, high + 4, high + np.inf]]
    ]
    for grid, basis, x, (s, features) in zip(
        GRIDS.values(), bases, z, units_and_features(bases, z), strict=True
    ):
        assert basis.num_features == case.num_features
        assert basis.grid_shape == np.shape(grid[0])
        assert features.shape == (*x.shape, case.num_features)
        assert s.dtype == features.dtype == x.dtype
        expected = position(x, grid)
        atol = ATOL[x.dtype == np.float64]
        assert_allclose(s, expected, rtol=0, atol=atol / 20)
        assert_allclose(features, case.features(expected), rtol=0, atol=atol)
        for end in (-6, -3):
            assert_array_equal(s[end], 0.0 if end == -6 else 1.0)
            for i in (1, 2):
                assert_array_equal(features[end + i], features[end])


@pytest.mark.parametrize("case", with_long(CASES, *SUMS), indirect=True)
def test_unit_combine(case):
    """And its gradients, of one basis for all the shapes that broadcast."""
    rng = np.random.default_rng(5)
    shapes = [((7, 1), (1, 2))]
    if case is CASES["bspline-3"]:
        shapes += [((), ()), ((7,), ()), ((7, 2), (2,)), ((2,), (7, 2))]
    inputs = [
        (
            rng.uniform(size=s_shape),
            rng.normal(size=(*batch_shape, case.num_features)),
            rng.normal(size=np.broadcast_shapes(s_shape, batch_shape)),
        )
        for s_shape, batch_shape in shapes
    ]

    @jax.jit
    def both(basis, inputs):
        results = []
        for s, coefficients, weights in inputs:

            def direct(basis, s, coefficients, shape=weights.shape):
                s = jnp.broadcast_to(s, shape)
                coefficients = jnp.broadcast_to(
                    coefficients, (*shape, case.num_features)
                )
                return jnp.einsum(
                    "...g,...g->...", basis.unit_features(s), coefficients
                )

            for f in (type(basis).unit_combine, direct):
                out, pullback = jax.vjp(f, basis, s, coefficients)
                results.append((out, *pullback(weights)))
        return results[::2], results[1::2]

    with jax.enable_x64(True):
        actual, expected = both(case.make(-0.7, 2.6), jax.tree.map(jnp.asarray, inputs))
    for (out, *_), (*_, weights) in zip(actual, inputs, strict=True):
        assert out.shape == weights.shape
        assert out.dtype == np.float64
    for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert_allclose(a, e, rtol=1e-11, atol=1e-11)


@pytest.mark.float64
@pytest.mark.parametrize("case", with_long(CASES, *FEW), indirect=True)
def test_vmap_and_training(case):
    """A basis is carried through a scan and differentiated as a pytree."""
    basis = case.make(*GRIDS["columns"])
    z = points(GRIDS["columns"])
    atol = ATOL[z.dtype == np.float64]
    coefficients = np.resize(WEIGHTS, (9, 2, case.num_features)).astype(z.dtype)

    @jax.jit
    def mapped_and_trained(basis, z, coefficients):
        s = basis.to_unit(z)
        combine = basis.unit_combine

        def step(basis, _):
            gradient = jax.grad(lambda basis: jnp.sum(basis(z) ** 2))(basis)
            return jax.tree.map(lambda p, g: p - 1e-3 * g, basis, gradient), None

        return (
            jax.lax.scan(step, basis, length=2)[0],
            basis.unit_features(s),
            jax.vmap(basis)(z),
            combine(s, coefficients),
            jax.vmap(combine)(s, coefficients),
            jax.vmap(combine, 1, 1)(s, coefficients),
            jax.vmap(combine, (None, 0))(s[0], coefficients),
        )

    trained, features, mapped_features, expected, first, second, partly = (
        mapped_and_trained(basis, z, coefficients)
    )
    assert_allclose(mapped_features, features, atol=1e-6)
    assert_allclose(first, expected, atol=atol)
    assert_allclose(second, expected, atol=atol)
    assert_allclose(partly[0], expected[0], atol=atol)
    assert (trained.low, trained.high) == (basis.low, basis.high)
    for before, after in zip(*map(jax.tree.leaves, (basis, trained)), strict=True):
        assert np.isfinite(after)
        assert after != before


@pytest.mark.float64
@pytest.mark.parametrize("case", with_long(CASES, *DERIVATIVES), indirect=True)
def test_derivatives(case):
    """They are finite everywhere, and right where differences tell."""
    basis = case.make(*GRIDS["columns"])
    low, high = map(np.asarray, GRIDS["columns"])
    # Beyond the grid, its ends, and all centres and knots of the table.
    fractions = np.concatenate(
        [[-1.0, 2.0], *(np.linspace(0, 1, n) for n in (5, 6, 7))]
    )
    z = jnp.asarray(low + (high - low) * fractions[:, None], float)
    weights = WEIGHTS[: case.num_features].astype(z.dtype)

    def energy(z):
        return jnp.sum(jnp.einsum("...g,g->...", basis(z), weights))

    gradient, curvature = jax.jit(
        lambda z: jax.jvp(jax.grad(energy), (z,), (jnp.ones_like(z),))
    )(z)
    assert gradient.dtype == z.dtype
    assert np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(curvature))
    assert_array_equal(gradient[:2], 0.0)

    weights, step = WEIGHTS[: case.num_features], 1e-4
    s = position(points(GRIDS["scalar"])[1:-1], GRIDS["scalar"])
    with jax.enable_x64(True):
        basis = case.make(*GRIDS["scalar"])
        slope = jax.grad(lambda s: basis.unit_combine(s, weights))
        both = jax.vmap(lambda s: jax.jvp(slope, (s,), (jnp.ones_like(s),)))
        gradient, curvature = jax.jit(both)(s)
    left, middle, right = (case.features(s + d) @ weights for d in (-step, 0.0, step))
    for actual, expected in (
        (gradient, (right - left) / (2 * step)),
        (curvature, (left - 2 * middle + right) / step**2),
    ):
        assert_allclose(actual, expected, atol=1e-4 * (1 + np.max(np.abs(expected))))


def test_pytree(case):
    for grid in GRIDS.values():
        basis = case.make(*grid)
        leaves, structure = jax.tree.flatten(basis)
        assert len(leaves) == case.leaves
        if leaves:
            assert leaves[0] is basis.bandwidth
            assert leaves[0].shape == ()
            assert jnp.issubdtype(leaves[0].dtype, jnp.floating)
            assert not leaves[0].weak_type
        assert structure == jax.tree.structure(case.make(*grid))
        assert hash(structure) == hash(jax.tree.structure(case.make(*grid)))
        assert structure != jax.tree.structure(case.make(-2.0, 11.0))
        assert jax.tree.map(lambda leaf: leaf, basis) == basis
        assert jax.tree.unflatten(structure, leaves) == basis
        # Not an array: what masks and partitions make of a leaf.
        jax.tree.map(lambda _: None, basis)
        copy = pickle.loads(pickle.dumps(basis))
        assert type(copy) is type(basis)
        assert copy == basis
        assert jax.tree.structure(copy) == structure


def test_panel_breaks(case):
    breaks = case.make(*GRIDS["columns"]).panel_breaks
    assert isinstance(breaks, tuple)
    assert all(type(b) is float for b in breaks)
    assert (breaks[0], breaks[-1]) == (0.0, 1.0)
    assert len(breaks) >= 5
    assert np.all(np.diff(breaks) > 0)

    def integral(breaks):
        nodes, weights = np.polynomial.legendre.leggauss(16)
        width = np.diff(breaks)[:, None]
        s = np.asarray(breaks)[:-1, None] + width * (nodes + 1) / 2
        density = np.exp(case.features(s) @ (2 * WEIGHTS[: case.num_features]))
        return np.sum(density * width * weights / 2)

    middles = (np.asarray(breaks)[:-1] + np.asarray(breaks)[1:]) / 2
    refined = np.sort(np.concatenate([breaks, middles]))
    assert_allclose(integral(breaks), integral(refined), rtol=1e-9)


@pytest.mark.float64
@pytest.mark.parametrize("name", FEW)
def test_input_formats_and_shapes(name, x64):
    case = CASES[name]
    basis = case.make(-0.7, 2.6)

    def formats(z):
        ones = jnp.ones(case.num_features, basis.to_unit(z).dtype)
        out = jax.eval_shape(
            lambda: (basis(z), basis.unit_features(z), basis.unit_combine(z, ones))
        )
        return {leaf.dtype for leaf in out}

    for z in (1, 1.0, np.int32(1), jnp.asarray(1), True):
        assert formats(z) == {np.dtype("float64" if x64 else "float32")}
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        assert formats(jnp.asarray([0.5, 1.5], dtype)) == {np.dtype(dtype)}
    with pytest.raises(TypeError, match=r"z must be real numbers, got .*complex"):
        basis(1j)
    for shape in ((), (1,), (2, 3)):
        with pytest.raises(ValueError, match="last axis of coefficients"):
            basis.unit_combine(np.full(3, 0.4), np.ones(shape))


def test_grids():
    """Python floats that broadcast, refused where the format is too coarse."""
    basis = CASES["rbf"].make([[0.5], [1.0]], [2.0, 3.0, 4.0])
    assert basis.grid_shape == (2, 3)
    assert basis.low == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    assert basis.high == ((2.0, 3.0, 4.0), (2.0, 3.0, 4.0))
    expected = [[1 / 1.5, 1 / 2.5, 1 / 3.5], [0.5, 0.25, 0.5 / 3]]
    assert_allclose(basis.to_unit(1.5), expected, rtol=1e-6)
    assert basis(np.full((4, 1, 1), 1.5)).shape == (4, 2, 3, 7)
    for low, high in [
        (1, np.int64(3)),
        (np.float32(1.0), jnp.float32(3.0)),
        ([1.0], [3]),
        (np.array([1, 1]), (3.0, 3.0)),
    ]:
        basis = CASES["fourier"].make(low, high)
        for end, value in ((basis.low, 1.0), (basis.high, 3.0)):
            entries = end if isinstance(end, tuple) else (end,)
            assert all(type(e) is float and e == value for e in entries)
        hash((basis.low, basis.high))
    narrow, wide = CASES["rbf"].make(1e8, 1e8 + 1), CASES["rbf"].make(-1e300, 1e300)
    with jax.enable_x64(True):
        assert_allclose(narrow.to_unit(np.float64(1e8 + 0.25)), 0.25)
        assert_allclose(wide.to_unit(np.float64(5e299)), 0.75)
    for basis in (narrow, wide):
        with pytest.raises(ValueError, match="positive, finite number in float32"):
            basis(np.float32(1e8))
