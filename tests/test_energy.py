"""Energies: values against NumPy, transfer to other bases, and the pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from numpyro_kaem import RBF, BSpline, Chebyshev, Energy, Fourier
from numpyro_kaem.energy import BASE_ACTIVATIONS
from tests.bases.cases import CASES as BASES
from tests.distributions.cases import ACTIVATIONS
from tests.helpers import assert_close

pytestmark = pytest.mark.float64

LOW, HIGH = -0.75, 2.5
FEW = ["rbf", "bspline-0", "bspline-3", "fourier", "chebyshev"]
Z = np.array([-4.0, -0.75, -0.31, 0.4, 1.1, 1.93, 2.5, 7.0])


def unit(z, low=LOW, high=HIGH):
    return np.clip((np.asarray(z, float) - low) / (high - low), 0.0, 1.0)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@jax.jit
def at_shared(energy, s):
    """Values where columns share unit positions, and those of a call there."""
    column = s.reshape((-1,) + (1,) * len(energy.batch_shape))
    z = jnp.broadcast_to(energy.from_unit(column), (len(s), *energy.batch_shape))
    return energy.at_shared(s), energy(z)


@pytest.mark.parametrize("name", FEW)
def test_values(name):
    """Within the grid, and beyond it as constants that have no slope."""
    case = BASES[name]
    coefficients = random(case.num_features)
    energy = Energy(case.make(LOW, HIGH), coefficients, 0.7, "tanh")
    assert energy.batch_shape == ()
    assert energy.dtype == coefficients.dtype
    outside = [LOW - 1e-3, -1e30, -np.inf, HIGH + 1e-3, 1e30, np.inf]
    z = jnp.asarray([*Z, LOW, HIGH, *outside])
    values = np.asarray(energy(z))
    expected = case.features(unit(Z)) @ np.asarray(coefficients, float)
    expected += 0.7 * np.tanh(np.clip(Z, LOW, HIGH))
    assert_close(values[: len(Z)], expected, atol=(3e-5, 1e-11))
    low, high = values[len(Z) : len(Z) + 2]
    assert_array_equal(values[len(Z) + 2 :], [low] * 3 + [high] * 3)
    slopes = jax.jit(jax.vmap(jax.grad(energy)))(jnp.asarray([LOW - 1.0, HIGH + 1.0]))
    assert_array_equal(slopes, [0.0, 0.0])


def test_base_activations():
    assert set(BASE_ACTIVATIONS) == set(ACTIVATIONS)
    low, high = -3.0, 5.0
    z = np.array([-9.0, -3.0, -1.3, 0.2, 4.1, 5.0, 8.0])
    for name in BASE_ACTIVATIONS:
        energy = Energy(BSpline(low, high, 5), np.zeros(5), -1.5, name)
        expected = -1.5 * ACTIVATIONS[name](np.clip(z, low, high))
        assert_close(energy(z), expected, atol=(1e-5, 1e-12))


def test_batches():
    for grid, coefficients, weight, expected in [
        ((), (), (), ()),
        ((), (4,), None, (4,)),
        ((2,), (), None, (2,)),
        ((2,), (3, 1), (2,), (3, 2)),
        ((), (0,), (), (0,)),
    ]:
        low = np.full(grid, LOW) - np.arange(np.prod(grid, dtype=int)).reshape(grid)
        energy = Energy(
            RBF(low, low + 3.0, 5),
            random(*coefficients, 5),
            None if weight is None else random(*weight),
        )
        assert energy.batch_shape == expected
        for leading in ((), (6, 1)):
            z = np.zeros(leading + (1,) * len(expected))
            shape = np.broadcast_shapes(z.shape, expected)
            assert jax.eval_shape(energy, z).shape == shape
            assert jax.eval_shape(energy, np.broadcast_to(z, shape)).shape == shape
        shared = jax.eval_shape(energy.on_unit_grid.at_shared, np.linspace(0.0, 1.0, 7))
        assert shared.shape == (7, *expected)
    # Weights and bandwidths of their own, as :func:`jax.vmap` over a basis leaves them.
    coefficients, weight = random(3, 5), random(3, seed=1)
    bandwidths = jnp.asarray([0.5, 1.0, 2.0])

    def make(c, w, b):
        return Energy(RBF(LOW, HIGH, 5, bandwidth=b), c, w, "gelu")

    stacked = jax.vmap(make)(coefficients, weight, bandwidths)
    assert stacked.batch_shape == (3,)
    s = jnp.linspace(0.0, 1.0, 6)
    shared, called = at_shared(stacked.on_unit_grid, s)
    for i in range(3):
        single = make(coefficients[i], weight[i], bandwidths[i])
        expected = at_shared(single.on_unit_grid, s)
        assert_close(shared[:, i], expected[0])
        assert_close(called[:, i], expected[1])


@pytest.mark.parametrize("name", FEW)
def test_columns(name):
    """One matrix product gives the energies of all columns."""
    case = BASES[name]
    # No position on a knot: rounding decides on which side of a jump it lies.
    s = jnp.asarray([0.0, 0.013, 0.31, 0.52, 0.67, 0.989, 1.0])
    for low, high, batch in (
        (LOW, HIGH, ()),
        (LOW, HIGH, (3, 2)),
        ([LOW, 1.5], [HIGH, 2.0], (2,)),
    ):
        energy = Energy(
            case.make(low, high), random(*batch, case.num_features), 0.5, "silu"
        )
        shared, called = at_shared(energy.on_unit_grid, s)
        assert_close(shared, called, atol=(5e-5, 1e-10))
    # The last of them, of two grids.
    for i in range(2):
        single = Energy(case.make(low[i], high[i]), energy.coefficients[i], 0.5, "silu")
        expected = at_shared(single.on_unit_grid, s)[1]
        assert_close(called[:, i], expected, atol=(5e-5, 1e-10))


def test_init(key):
    basis = RBF(LOW, HIGH, 200)
    energy = Energy.init(key, basis, (3, 4), scale=0.5, base_scale=2.0)
    assert energy.coefficients.shape == (3, 4, 200)
    assert energy.base_weight.shape == (3, 4)
    assert energy.base_activation == "silu"
    # 2400 draws: the standard deviation is within 1.5 per cent, one in 700 is off by 3.
    assert_allclose(np.std(energy.coefficients), 0.5, rtol=0.06)
    assert_allclose(np.mean(energy.coefficients), 0.0, atol=0.06)
    assert not np.any(energy.base_weight == energy.coefficients[..., 0])
    other = Energy.init(jax.random.key(1), basis, (3, 4), scale=0.5)
    assert not np.any(other.coefficients == energy.coefficients)
    again = Energy.init(key, basis, (3, 4), scale=0.5)
    assert again.base_weight is None
    assert_array_equal(again.coefficients, energy.coefficients)
    flat = Energy.init(key, basis, scale=0.0)
    assert flat.batch_shape == ()
    assert_array_equal(flat(Z), np.zeros(len(Z)))
    named = Energy.init(key, basis, base_scale=0.0, base_activation="tanh")
    assert (named.base_activation, float(named.base_weight)) == ("tanh", 0.0)


def test_refit_is_exact_where_it_can_be():
    """Splines of one cell are splines of half a cell."""
    coarse = Energy(BSpline(LOW, HIGH, 8), random(3, 8))
    basis = BSpline(LOW, HIGH, 13)
    fine = jax.jit(lambda energy: energy.refit(basis))(coarse)
    assert fine.basis == basis
    assert fine.coefficients.shape == (3, 13)
    z = np.linspace(LOW - 1, HIGH + 1, 200)[:, None]
    assert_close(fine(z), coarse(z), atol=(2e-5, 1e-12), rtol=1e-6)
    # From one grid to one per column, each fitted for itself.
    energy = Energy(BSpline(0.0, 4.0, 7), random(2, 7))
    basis = BSpline([0.0, 1.0], [4.0, 3.0], 11)
    z = np.stack([np.linspace(0.0, 4.0, 50), np.linspace(1.0, 3.0, 50)], -1)
    first = Energy(energy.basis, energy.coefficients[0])
    for old in (energy, first):
        moved = old.refit(basis)
        assert moved.batch_shape == (2,)
        assert_close(moved(z), old(z), atol=(2e-5, 1e-12), rtol=1e-6)


@pytest.mark.long
def test_refit_to_another_basis():
    cubic = Energy(Chebyshev(LOW, HIGH, 3), random(2, 4))
    z = np.linspace(LOW, HIGH, 99)[:, None]
    spline = cubic.refit(BSpline(LOW, HIGH, 4))
    assert_close(spline(z), cubic(z), atol=(2e-5, 1e-12), rtol=1e-6)
    # The best approximation in the norm of the mean square, as NumPy finds it.
    dense = np.linspace(LOW, HIGH, 4001)
    target = np.asarray(cubic(dense[:, None]), float)
    bells = np.exp(-0.5 * (unit(dense)[:, None] * 9 - np.arange(10)) ** 2)
    best = bells @ np.linalg.lstsq(bells, target, rcond=None)[0]
    assert_allclose(cubic.refit(RBF(LOW, HIGH, 10))(dense[:, None]), best, atol=0.05)


def test_refit_to_a_wider_grid():
    """The constant continuation is fitted, and the base activation keeps its weight."""
    # Constant beyond both ends, which the wider splines of degree 0 can follow.
    energy = Energy(BSpline(0.0, 2.0, 4, degree=0), jnp.asarray([1.0, -1.0, 2.0, 0.5]))
    wide = energy.refit(BSpline(-1.0, 3.0, 8, degree=0))
    z = np.array([-3.0, -0.75, 0.25, 0.75, 1.25, 1.75, 2.75, 5.0])
    assert_close(wide(z), energy(z), atol=(1e-5, 1e-12))
    based = Energy(BSpline(0.0, 2.0, 6), random(6), 0.8, "softplus")
    wider = based.refit(BSpline(-1.0, 3.0, 43))
    assert wider.base_activation == "softplus"
    assert_array_equal(wider.base_weight, based.base_weight)
    z = np.linspace(-2.0, 4.0, 301)
    # The old energy has corners at the ends of its grid.
    assert np.max(np.abs(wider(z) - based(z))) < 0.05


def test_pytree():
    energy = Energy(RBF(LOW, HIGH, 5), random(2, 5), 0.5)
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(energy)
    ]
    assert paths == [".basis.bandwidth", ".coefficients", ".base_weight"]
    leaves, structure = jax.tree.flatten(energy)
    assert leaves[1] is energy.coefficients
    assert len(jax.tree.leaves(Energy(Fourier(0.0, 1.0, 2), random(4)))) == 1
    same = Energy(RBF(LOW, HIGH, 5), random(2, 5, seed=9), 0.1)
    assert jax.tree.structure(same) == structure
    assert hash(jax.tree.structure(same)) == hash(structure)
    for other in (
        Energy(RBF(LOW, HIGH, 5), random(2, 5)),
        Energy(RBF(LOW, HIGH, 5), random(2, 5), 0.5, "tanh"),
        Energy(RBF(LOW, HIGH + 1, 5), random(2, 5), 0.5),
    ):
        assert jax.tree.structure(other) != structure
    # Leaves that are no arrays pass through: masks, axes, optimiser states.
    assert jax.tree.map(lambda _: None, energy).coefficients is None


def test_jit_vmap_grad_and_formats(x64):
    energies = Energy(RBF(LOW, HIGH, 5), random(3, 5), random(3, seed=1))
    z = jnp.asarray(Z)[:, None]
    jitted = jax.jit(lambda energy, z: energy(z))
    assert_close(jitted(energies, z), energies(z))
    single = Energy(RBF(LOW, HIGH, 5), random(5), random(seed=1))
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, energies)
    mapped = jax.vmap(lambda energy, z: energy(z), (axes, None))(energies, z[:, 0])
    assert_close(mapped.T, energies(z))
    gradient = jax.grad(lambda energy: energy(jnp.asarray(0.4)))(single)
    # Linear in the coefficients, so that the gradient is the features.
    features = np.exp(-0.5 * ((unit(0.4) - np.linspace(0, 1, 5)) * 4) ** 2)
    assert_close(gradient.coefficients, features)
    assert_close(gradient.base_weight, ACTIVATIONS["silu"](0.4))
    assert np.isfinite(gradient.basis.bandwidth)
    single = Energy(RBF(LOW, HIGH, 5), np.ones(5, np.float32))
    assert single.dtype == jnp.float32
    for z in (1, np.int32(1), jnp.asarray(1), np.float32(1.0)):
        assert jax.eval_shape(single, z).dtype == jnp.float32
    default = jnp.float64 if x64 else jnp.float32
    assert Energy(RBF(LOW, HIGH, 2), [1, 2]).dtype == default
    # Under jit the numbers are not known: NaN goes in and comes out.
    value = jax.jit(lambda c: Energy(RBF(LOW, HIGH, 5), c)(0.5))(np.full(5, np.nan))
    assert np.isnan(value)


def test_errors(key):
    basis, ones = RBF(0.0, 1.0, 3), np.ones(3)
    grids = RBF([0.0, 1.0], 2.0, 3)
    real, one = (
        "must be real numbers, got dtype complex",
        "broadcast to one batch_shape",
    )
    shape = (
        r"shape \(\*batch_shape, 3\), one for each feature of RBF, got shape \(2, 4\)"
    )
    finite = "coefficients must be finite, got 2 entries that are not"
    activation = "base_activation must be one of 'silu', 'gelu', .*got 'sin'"
    for arguments, error, match in [
        ((3.0, [1.0]), TypeError, "basis must be a basis such as .*got float"),
        ((basis, "abc"), TypeError, "coefficients must be real numbers"),
        ((basis, ones * 1j), TypeError, f"coefficients {real}"),
        ((basis, ones, np.array([1j])), TypeError, f"base_weight {real}"),
        ((basis, np.ones((2, 4))), ValueError, shape),
        ((basis, 1.0), ValueError, r"got shape \(\)"),
        ((basis, [1.0, np.nan, np.inf]), ValueError, finite),
        (
            (basis, ones, np.inf),
            ValueError,
            "base_weight must be finite, got 1 entries",
        ),
        (
            (basis, np.ones((2, 3)), np.ones(5)),
            ValueError,
            rf"{one}, got grid shape \(\)",
        ),
        ((grids, np.ones((5, 3))), ValueError, rf"{one}, got grid shape \(2,\)"),
        ((basis, ones, 1.0, "sin"), ValueError, activation),
    ]:
        with pytest.raises(error, match=match):
            Energy(*arguments)
    for name, value in [
        ("scale", -1.0),
        ("scale", np.inf),
        ("base_scale", -0.5),
        ("base_scale", np.nan),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must be a finite number >= 0,"):
            Energy.init(key, basis, **{name: value})
    with pytest.raises(TypeError, match=r"basis must be a basis such as .*got int"):
        Energy(basis, ones).refit(5)
