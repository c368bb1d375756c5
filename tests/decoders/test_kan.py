"""KAN layers and decoders: values against NumPy, how they start, grids, memory."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numpyro_kaem import RBF, BSpline, Fourier
from numpyro_kaem.decoders import KANDecoder, KANLayer
from tests.bases.cases import CASES as BASES
from tests.distributions.cases import ACTIVATIONS
from tests.helpers import assert_close, with_long

LOW, HIGH = -0.75, 2.5
FEW = ["rbf", "bspline-3", "fourier", "chebyshev"]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


both = jax.jit(lambda first, second, z: (first(z), second(z)))


def unit(z, low=LOW, high=HIGH):
    return np.clip((np.asarray(z, float) - low) / (high - low), 0.0, 1.0)


def by_loops(layer, features, x, lows, highs, activation):
    """One output and one input at a time, in float64."""
    coefficients = np.asarray(layer.coefficients, float)
    weight = np.asarray(layer.base_weight, float)
    out = np.zeros((len(x), coefficients.shape[0]))
    for j in range(coefficients.shape[0]):
        for i in range(coefficients.shape[1]):
            column = np.asarray(x[:, i], float)
            expansion = features(unit(column, lows[i], highs[i])) @ coefficients[j, i]
            out[:, j] += expansion + weight[j, i] * activation(column)
    return out


# --- the layer -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("columns", [False, True], ids=["one-grid", "grid-an-input"])
def test_values(name, columns):
    case = BASES[name]
    lows = [-0.75, 0.25, -4.0] if columns else [LOW] * 3
    highs = [2.5, 1.25, 3.0] if columns else [HIGH] * 3
    basis = case.make(lows, highs) if columns else case.make(LOW, HIGH)
    layer = KANLayer(basis, random(2, 3, case.num_features), random(2, 3, seed=1))
    assert (layer.num_inputs, layer.num_outputs) == (3, 2)
    # Many of them outside the grid, where the base activation carries on.
    x = 3 * random(7, 3, seed=2)
    expected = by_loops(layer, case.features, x, lows, highs, ACTIVATIONS["silu"])
    assert_close(layer(x), expected, rtol=(1e-4, 1e-10), atol=(3e-5, 1e-11))


def test_layer_errors(key):
    basis = RBF(LOW, HIGH, 5)
    two, column = RBF([LOW, 0.0], HIGH, 5), RBF([[LOW], [0.0]], HIGH, 5)
    good, narrow = (np.ones((2, 3, 5)), np.ones((2, 3))), np.ones((2, 1, 5))
    one = "one grid, or one for each of the {} inputs, got grid shape {}"
    for arguments, error, match in [
        ((3.0, *good), TypeError, "basis must be a basis such as .*got float"),
        ((basis, np.ones((3, 5)), np.ones(3)), ValueError, r"\(num_outputs, num_inp"),
        ((basis, np.ones((2, 3, 4)), good[1]), ValueError, r"\*batch_shape, 5"),
        ((basis, good[0], np.ones((1, 3))), ValueError, r"\(2, 3\), got \(1, 3\)"),
        ((basis, good[0] * np.nan, good[1]), ValueError, "coefficients must be finite"),
        ((basis, good[0], good[1] * 1j), TypeError, "base_weight must be real"),
        ((basis, *good, "sin"), ValueError, "base_activation must be one of 'silu'"),
        ((two, narrow, narrow[..., 0]), ValueError, one.format(1, r"\(2,\)|broadc")),
        ((column, *good), ValueError, one.format(3, r"\(2, 1\)")),
    ]:
        with pytest.raises(error, match=match):
            KANLayer(*arguments)
    layer = KANLayer(basis, *good)
    for call, error, match in [
        (lambda: layer(np.zeros(2)), ValueError, r"x must have shape \(\.\.\., 3\)"),
        (lambda: layer.refit(3), TypeError, "basis must be a basis such .*got int"),
        (lambda: layer.refit(two), ValueError, r"the 3 inputs, got grid shape \(2,\)"),
    ]:
        with pytest.raises(error, match=match):
            call()
    good = {"basis": basis, "num_inputs": 3, "num_outputs": 2}
    for options, error, match in [
        ({"basis": None}, TypeError, "basis must be a basis such as .*got NoneType"),
        ({"num_inputs": 0}, ValueError, "num_inputs must be a positive integer"),
        ({"num_outputs": 2.0}, TypeError, "num_outputs must be a positive integer"),
        ({"base_activation": "sin"}, ValueError, "base_activation must be one of"),
        ({"basis": two}, ValueError, "one for each of the 3 inputs"),
    ]:
        with pytest.raises(error, match=match):
            KANLayer.init(key, **{**good, **options})


STARTS = {
    "silu": RBF(-3.0, 3.0, 8),
    "tanh": BSpline(-1.0, 4.0, 9),
    "relu": Fourier([-2.0, -5.0, -1.0], [2.0, 1.0, 3.0], 3),
}


@pytest.mark.parametrize("activation", with_long(STARTS, "silu"))
def test_start_keeps_the_variance(key, activation):
    basis = STARTS[activation]
    layer = KANLayer.init(key, basis, 3, 2000, activation)
    x = random(3000, 3)
    expansion = KANLayer(basis, layer.coefficients, jnp.zeros((2000, 3)))
    total = KANLayer(basis, layer.coefficients, layer.base_weight, activation)
    expansion, total = both(expansion, total, x)
    # Half from either part; the mean of 6000 random edges has an error of 2 per cent.
    np.testing.assert_allclose(np.mean(expansion**2), 0.5, rtol=0.08)
    np.testing.assert_allclose(np.mean(total**2), 1.0, rtol=0.08)
    # No expansion has an offset: what is left is the error of the mean of the draws.
    assert np.std(np.mean(expansion, axis=0)) < 0.03


def test_start_of_features_that_do_not_vary(key):
    for basis in (RBF(60.0, 90.0, 4), BSpline(0.0, 1.0, 1, degree=0)):
        layer = KANLayer.init(key, basis, 2, 3)
        assert_array_equal(layer.coefficients, np.zeros((3, 2, basis.num_features)))
        assert np.all(np.isfinite(layer.base_weight))
        assert np.all(layer.base_weight != 0)


def largest_array(function, *arguments):
    """Number of entries of the largest array in the lowered code."""
    code = jax.jit(function).lower(*arguments).as_text()
    shapes = re.findall(r"tensor<([\dx]+)xf", code)
    return max(np.prod([int(size) for size in shape.split("x")]) for shape in shapes)


@pytest.mark.parametrize("basis", [RBF(-3.0, 3.0, 8), BSpline(-3.0, 3.0, 8)])
def test_memory(basis):
    """Neither values nor gradients hold points x inputs x outputs x features."""
    batch, inputs, outputs = 23, 5, 11
    layer = KANLayer(basis, random(outputs, inputs, 8), random(outputs, inputs, seed=1))
    x = np.zeros((batch, inputs))
    assert largest_array(lambda layer, x: layer(x), layer, x) == batch * inputs * 8
    gradient = jax.grad(lambda layer, x: jnp.sum(layer(x) ** 2), argnums=(0, 1))
    assert largest_array(gradient, layer, x) == batch * inputs * 8

    # The search does see such an array where there is one.
    def dense(layer, x):
        return jnp.sum(layer.basis(x)[:, None] * layer.coefficients, axis=(-2, -1))

    assert largest_array(dense, layer, x) == batch * inputs * outputs * 8


# --- the decoder ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    basis = BSpline(-3.0, 3.0, 5)
    return KANDecoder(jax.random.key(0), 2, 3, hidden=(4,), basis=basis)


def test_layers_in_a_row(key):
    bases = (BSpline(-2.0, 2.0, 6), RBF(-3.0, 3.0, 5), Fourier(-3.0, 3.0, 2))
    options = dict(hidden=(7, 4), basis=bases, base_activation="tanh")
    z = random(5, 3)
    for layer_norm in (False, True):
        decoder = KANDecoder(key, 3, 2, layer_norm=layer_norm, **options)
        assert tuple(layer.basis for layer in decoder.layers)[2] == bases[2]
        assert [layer.num_outputs for layer in decoder.layers] == [7, 4, 2]
        assert decoder.layers[0].base_activation == "tanh"
        x = z
        for i, layer in enumerate(decoder.layers):
            if i > 0 and layer_norm:
                x = np.asarray(x, float)
                mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
                x = jnp.asarray((x - mean) / np.sqrt(variance + 1e-5))
            x = layer(x)
        assert_close(decoder(z), x, rtol=(1e-4, 1e-9), atol=(1e-4, 1e-9))
    # With no hidden layer: one layer, reshaped.
    decoder = KANDecoder(key, 3, (2, 4), hidden=(), basis=bases[0])
    (layer,) = decoder.layers
    assert_close(decoder(z), np.asarray(layer(z)).reshape(5, 2, 4))
    for shape, expected in (((), (5,)), (4, (5, 4))):
        made = jax.eval_shape(lambda s=shape: KANDecoder(key, 3, s, hidden=())(z))
        assert made.shape == expected


def test_refit(key, small):
    """Splines of one cell are splines of half a cell: the transfer is exact."""
    decoder = small
    fine = decoder.refit(BSpline(-3.0, 3.0, 7))
    assert [layer.basis.num_features for layer in fine.layers] == [7, 7]
    z = 2 * random(40, 2)
    fine_values, values = both(fine, decoder, z)
    assert_close(fine_values, values, rtol=(1e-3, 1e-9), atol=(3e-4, 1e-9))
    for old, new in zip(decoder.layers, fine.layers, strict=True):
        assert_array_equal(new.base_weight, old.base_weight)
    # Each layer to a basis of its own.
    decoder = KANDecoder(
        key, 2, 3, hidden=(4,), basis=BSpline(-3.0, 3.0, 5), output_activation="tanh"
    )
    wide = RBF(-5.0, 5.0, 40)
    own = BSpline([-3.0, -4.0], [3.0, 4.0], 40)
    moved = decoder.refit((own, wide))
    assert moved.layers[0].basis == own
    assert moved.layers[1].basis.num_features == 40
    z = random(40, 2)
    moved_values, values = both(moved, decoder, z)
    assert moved_values.shape == (40, 3)
    # The old functions have corners at the ends of the old grid.
    assert np.max(np.abs(moved_values - values)) < 0.05


def test_errors(key, small):
    for basis, error, match in [
        (3.0, TypeError, "basis must be a basis such as .*got float"),
        ("rbf", TypeError, "basis must be a basis such as .*got str"),
        ((RBF(0.0, 1.0, 3), None), TypeError, "got NoneType"),
        ((RBF(0.0, 1.0, 3),) * 3, ValueError, "one for each of the 2 layers, got 3"),
        (RBF([0.0, 0.5], 1.0, 3), ValueError, r"each of the 4 inputs, got grid shape"),
    ]:
        with pytest.raises(error, match=match):
            KANDecoder(key, 2, 3, hidden=(4,), basis=basis)
        with pytest.raises(error, match=match):
            small.refit(basis)
    for options, error, match in [
        ({"output_shape": (2, 0)}, ValueError, r"output_shape\[1\] must be a positive"),
        ({"output_shape": 2.5}, TypeError, "output_shape must be a positive integer"),
        ({"output_shape": "ab"}, TypeError, "output_shape must be a positive integer"),
        ({"hidden": (4, -1)}, ValueError, r"hidden\[1\] must be a positive integer"),
        (dict(hidden=1, layer_norm=True), ValueError, "layer_norm needs hidden layers"),
        ({"base_activation": "sin"}, ValueError, "base_activation must be one of"),
    ]:
        with pytest.raises(error, match=match):
            KANDecoder(key, 2, **{"output_shape": 3, **options})


def test_compilation_does_not_grow_with_width(key):
    def lowered(width):
        make = lambda key: KANDecoder(key, 8, width, hidden=(width,))  # noqa: E731
        decoder = jax.eval_shape(make, key)
        gradient = jax.grad(lambda decoder, z: jnp.sum(decoder(z) ** 2))
        return jax.jit(gradient).lower(decoder, jnp.zeros((100, 8)))

    wide = lowered(64)
    assert len(wide.as_text().splitlines()) == len(lowered(6).as_text().splitlines())
    start = time.perf_counter()
    wide.compile()
    # About 0.3 seconds on an idle machine.
    assert time.perf_counter() - start < 10
