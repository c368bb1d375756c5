"""Energies: values against NumPy, transfer to other bases, and the pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from numpyro_kaem import RBF, BSpline, Chebyshev, Energy, Fourier
from numpyro_kaem.placed_energy import BASE_ACTIVATIONS
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


@pytest.mark.parametrize("name", FEW)
def test_values(name):
    case = BASES[name]
    coefficients = random(case.num_features)
    energy = Energy(case.make(LOW, HIGH), coefficients)
    assert energy.batch_shape == ()
    assert energy.dtype == coefficients.dtype
    expected = case.features(unit(Z)) @ np.asarray(coefficients, float)
    assert_close(energy(Z), expected, atol=(3e-5, 1e-11))


@pytest.mark.parametrize("name", BASE_ACTIVATIONS)
def test_base_activations(name):
    low, high = -3.0, 5.0
    energy = Energy(BSpline(low, high, 5), jnp.zeros(5), -1.5, name)
    z = np.array([-9.0, -3.0, -1.3, 0.2, 4.1, 5.0, 8.0])
    expected = -1.5 * ACTIVATIONS[name](np.clip(z, low, high))
    assert_close(energy(z), expected, atol=(1e-5, 1e-12))


def test_every_base_activation_has_an_oracle():
    assert set(BASE_ACTIVATIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", FEW)
def test_continues_as_a_constant(name):
    case = BASES[name]
    energy = Energy(case.make(LOW, HIGH), random(case.num_features), 0.7, "tanh")
    ends = energy(jnp.asarray([LOW, HIGH]))
    outside = energy(jnp.asarray([LOW - 1e-3, HIGH + 1e-3]))
    assert_array_equal(outside, ends)
    assert_array_equal(energy(jnp.asarray([-1e30, 1e30])), ends)
    assert_array_equal(energy(jnp.asarray([-jnp.inf, jnp.inf])), ends)
    slopes = jax.vmap(jax.grad(energy))(jnp.asarray([LOW - 1.0, HIGH + 1.0]))
    assert_array_equal(slopes, [0.0, 0.0])


@pytest.mark.parametrize(
    ("grid", "coefficients", "weight", "expected"),
    [
        ((), (), (), ()),
        ((), (4,), None, (4,)),
        ((2,), (), None, (2,)),
        ((2,), (3, 1), (2,), (3, 2)),
        ((), (0,), (), (0,)),
    ],
    ids=str,
)
def test_batch_shape(grid, coefficients, weight, expected):
    low = np.full(grid, LOW) - np.arange(np.prod(grid, dtype=int)).reshape(grid)
    energy = Energy(
        RBF(low, low + 3.0, 5),
        random(*coefficients, 5),
        None if weight is None else random(*weight),
    )
    assert energy.batch_shape == expected
    for leading in ((), (6, 1)):
        z = jnp.linspace(-1.0, 2.0, int(np.prod(leading)))
        z = z.reshape(leading + (1,) * len(expected))
        shape = np.broadcast_shapes(z.shape, expected)
        assert energy(z).shape == shape
        assert energy(jnp.broadcast_to(z, shape)).shape == shape
    assert energy.placed.at_shared(jnp.linspace(0.0, 1.0, 7)).shape == (7, *expected)


def test_columns_are_densities_of_their_own():
    lows, highs = np.array([-0.75, 1.5]), np.array([2.5, 2.0])
    coefficients, weight = random(2, 7), random(2, seed=1)
    energy = Energy(RBF(lows, highs, 7), coefficients, weight, "gelu")
    z = np.array([[0.3, 1.7], [1.9, 1.55]])
    for i in range(2):
        single = Energy(RBF(lows[i], highs[i], 7), coefficients[i], weight[i], "gelu")
        assert_close(energy(z)[:, i], single(z[:, i]))


@pytest.mark.parametrize("name", FEW)
def test_shared_positions(name):
    """One matrix product gives what the call gives, for all columns."""
    case = BASES[name]
    # No position on a knot: rounding decides on which side of a jump it lies.
    s = jnp.asarray([0.0, 0.013, 0.31, 0.52, 0.67, 0.989, 1.0])
    for low, high, batch in (
        (LOW, HIGH, ()),
        (LOW, HIGH, (3, 2)),
        ([LOW, 1.5], [HIGH, 2.0], (2,)),
    ):
        coefficients = random(*batch, case.num_features)
        energy = Energy(case.make(low, high), coefficients, 0.5, "silu")
        column = s.reshape((-1,) + (1,) * len(batch))
        z = jnp.broadcast_to(energy.placed.from_unit(column), (7, *batch))
        assert_close(energy.placed.at_shared(s), energy(z), atol=(5e-5, 1e-10))


def test_shared_positions_with_a_batch_of_bandwidths():
    """As :func:`jax.vmap` over a basis, or a batch of trained ones, leaves them."""
    coefficients = random(3, 5)
    bandwidths = jnp.asarray([0.5, 1.0, 2.0])
    stacked = jax.vmap(lambda c, b: Energy(RBF(LOW, HIGH, 5, bandwidth=b), c))(
        coefficients, bandwidths
    )
    assert stacked.batch_shape == (3,)
    s = jnp.linspace(0.0, 1.0, 6)
    for i in range(3):
        single = Energy(RBF(LOW, HIGH, 5, bandwidth=bandwidths[i]), coefficients[i])
        assert_close(stacked.placed.at_shared(s)[:, i], single.placed.at_shared(s))
        assert_close(stacked(Z[:, None])[:, i], single(Z))


def test_init(key):
    basis = RBF(LOW, HIGH, 200)
    energy = Energy.init(key, basis, (3, 4), scale=0.5, base_scale=2.0)
    assert energy.coefficients.shape == (3, 4, 200)
    assert energy.base_weight.shape == (3, 4)
    assert energy.base_activation == "silu"
    # 2400 draws: the standard deviation is within 1.5 per cent, one in 700 off by 3.
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


def test_refit_to_a_finer_grid():
    """Splines of one cell are splines of half a cell: the transfer is exact."""
    coarse = Energy(BSpline(LOW, HIGH, 8), random(3, 8))
    fine = coarse.refit(BSpline(LOW, HIGH, 13))
    assert fine.coefficients.shape == (3, 13)
    z = np.linspace(LOW - 1, HIGH + 1, 200)[:, None]
    assert_close(fine(z), coarse(z), atol=(2e-5, 1e-12), rtol=1e-6)


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


def test_refit_of_columns():
    """From one grid to a grid a column, each fitted for itself."""
    energy = Energy(BSpline(0.0, 4.0, 7), random(2, 7))
    basis = BSpline([0.0, 1.0], [4.0, 3.0], 11)
    moved = energy.refit(basis)
    assert moved.batch_shape == (2,)
    z = np.stack([np.linspace(0.0, 4.0, 50), np.linspace(1.0, 3.0, 50)], -1)
    assert_close(moved(z), energy(z), atol=(2e-5, 1e-12), rtol=1e-6)
    single = Energy(BSpline(0.0, 4.0, 7), energy.coefficients[0]).refit(basis)
    assert single.batch_shape == (2,)
    assert_close(single(z)[:, 1], single(z[:, 1:])[:, 1])


def test_refit_under_jit():
    basis = BSpline(LOW, HIGH, 13)
    coarse = Energy(BSpline(LOW, HIGH, 8), random(8))
    fine = jax.jit(lambda energy: energy.refit(basis))(coarse)
    assert fine.basis == basis
    assert_close(fine(Z), coarse(Z), atol=(2e-5, 1e-12), rtol=1e-6)


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


def test_jit_vmap_grad():
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


def test_input_formats(x64):
    energy = Energy(RBF(LOW, HIGH, 5), jnp.ones(5, jnp.float32))
    assert energy.dtype == jnp.float32
    for z in (1, np.int32(1), jnp.asarray(1), np.float32(1.0)):
        assert energy(z).dtype == jnp.float32
    assert Energy(RBF(LOW, HIGH, 2), [1, 2]).dtype == (
        jnp.float64 if x64 else jnp.float32
    )


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((3.0, [1.0]), TypeError, "basis must be a basis such as .*got float"),
        ((RBF(0.0, 1.0, 3), "abc"), TypeError, "coefficients must be real numbers|JAX"),
        (
            (RBF(0.0, 1.0, 3), np.ones(3) * 1j),
            TypeError,
            "coefficients must be real numbers, got dtype complex",
        ),
        (
            (RBF(0.0, 1.0, 3), np.ones(3), np.array([1j])),
            TypeError,
            "base_weight must be real numbers, got dtype complex",
        ),
        (
            (RBF(0.0, 1.0, 3), np.ones((2, 4))),
            ValueError,
            r"shape \(\*batch_shape, 3\), one for each feature of RBF, got shape "
            r"\(2, 4\)",
        ),
        ((RBF(0.0, 1.0, 3), 1.0), ValueError, r"got shape \(\)"),
        (
            (RBF(0.0, 1.0, 3), [1.0, np.nan, np.inf]),
            ValueError,
            "coefficients must be finite, got 2 entries that are not",
        ),
        (
            (RBF(0.0, 1.0, 3), np.ones(3), np.inf),
            ValueError,
            "base_weight must be finite, got 1 entries",
        ),
        (
            (RBF(0.0, 1.0, 3), np.ones((2, 3)), np.ones(5)),
            ValueError,
            r"must broadcast to one batch_shape, got grid shape \(\)",
        ),
        (
            (RBF([0.0, 1.0], 2.0, 3), np.ones((5, 3))),
            ValueError,
            r"must broadcast to one batch_shape, got grid shape \(2,\)",
        ),
        (
            (RBF(0.0, 1.0, 3), np.ones(3), 1.0, "sin"),
            ValueError,
            "base_activation must be one of silu, gelu, .*got 'sin'",
        ),
    ],
)
def test_errors(arguments, error, match):
    with pytest.raises(error, match=match):
        Energy(*arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", -1.0), ("scale", np.inf), ("base_scale", -0.5), ("base_scale", np.nan)],
)
def test_init_errors(key, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a finite number >= 0, got"):
        Energy.init(key, RBF(0.0, 1.0, 3), **{name: value})


def test_refit_errors():
    energy = Energy(RBF(0.0, 1.0, 3), np.ones(3))
    with pytest.raises(TypeError, match="basis must be a basis, got int"):
        energy.refit(5)


def test_traced_values_are_not_checked():
    """Under jit the numbers are not known: NaN goes in and comes out."""
    value = jax.jit(lambda c: Energy(RBF(0.0, 1.0, 3), c)(0.5))(jnp.full(3, jnp.nan))
    assert np.isnan(value)
