"""Penalties against NumPy, and their gradients where shares are zero."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_kaem import BSpline, Energy, KAEMPrior
from numpyro_kaem.training.regularizers import (
    coefficient_differences,
    entropy,
    kan_regularizer,
    l1,
)
from tests.helpers import assert_close


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 2.0, shape)


def loop_norms(c):
    edges = c.reshape(-1, c.shape[-1]).tolist()
    return [sum(abs(v) for v in edge) / len(edge) for edge in edges]


def loop_entropy(c):
    norms = loop_norms(c)
    shares = [n / sum(norms) for n in norms if n > 0]
    return -sum(s * np.log(s) for s in shares)


def loop_differences(c, order):
    # The binomial form of a difference of any order.
    total = 0.0
    signs = [(-1) ** (order - j) * _choose(order, j) for j in range(order + 1)]
    for edge in c.reshape(-1, c.shape[-1]).tolist():
        for g in range(len(edge) - order):
            total += sum(s * edge[g + j] for j, s in enumerate(signs)) ** 2
    return total


def _choose(n, k):
    return 1 if k in (0, n) else _choose(n - 1, k - 1) + _choose(n - 1, k)


@jax.jit
def all_terms(c):
    return l1(c), entropy(c), [coefficient_differences(c, k) for k in (1, 2, 3)]


def test_values():
    for shape in ((4,), (3, 5), (2, 3, 4)):
        c = random(*shape)
        norms, shares, differences = all_terms(c)
        assert_close(norms, sum(loop_norms(c)))
        assert_close(shares, loop_entropy(c))
        for order, value in enumerate(differences, 1):
            assert_close(value, loop_differences(c, order), rtol=(1e-5, 1e-12))
    # The entropy at its extremes, whatever the scale.
    assert_close(entropy(np.array([[1.0, -1.0], [0.0, 2.0], [-2.0, 0.0]])), np.log(3.0))
    assert entropy(np.array([[0.0, 0.0], [3.0, 1.0], [0.0, 0.0]])) == 0
    assert entropy(np.zeros((3, 2))) == 0
    c = random(3, 5)
    assert_close(all_terms(1e-3 * c)[1], loop_entropy(c))


def test_gradients_against_differences_and_at_zero():
    c, step = random(3, 4), 1e-3
    some = np.zeros((3, 4))
    some[1, ::2], some[2, 0] = (1.0, -2.0), 1e-30
    for regularizer, loop in (
        (l1, lambda c: sum(loop_norms(c))),
        (entropy, loop_entropy),
        (coefficient_differences, lambda c: loop_differences(c, 1)),
    ):
        gradient = jax.jit(jax.grad(regularizer))
        numerical = np.zeros_like(c)
        for index in np.ndindex(c.shape):
            move = np.zeros_like(c)
            move[index] = step
            numerical[index] = (loop(c + move) - loop(c - move)) / (2 * step)
        assert_close(gradient(c), numerical, rtol=1e-4, atol=1e-4)
        for zeros in (np.zeros((3, 4)), some):
            value = gradient(zeros)
            assert np.all(np.isfinite(value))
            np.testing.assert_array_equal(value[0], 0.0)
    # The share of the smallest normal number is subnormal.
    some[1:] = [[1.0], [np.finfo(jnp.result_type(float)).tiny]]
    assert np.all(np.isfinite(jax.jit(jax.grad(entropy))(some)))


# --- over a model --------------------------------------------------------------------


class Layer(eqx.Module):
    coefficients: object
    scale: jax.Array


def weighted(c, order=1):
    return (
        0.5 * sum(loop_norms(c))
        + 0.25 * loop_entropy(c)
        + 2.0 * loop_differences(c, order)
    )


WEIGHTS = {"l1": 0.5, "entropy": 0.25, "differences": 2.0}


def test_sum_over_a_model():
    arrays = [random(2, 4, seed=1), random(5, seed=2), random(3, 3, 6, seed=3)]
    energy = Energy(BSpline(-1.0, 3.0, 4), jnp.asarray(arrays[0]), np.array([3.0, 4.0]))
    tree = {
        "energy": energy,
        "other": [Layer(jnp.asarray(arrays[1]), np.ones(7))],
        "coefficients": jnp.asarray(arrays[2]),
        "none": None,
        "rest": np.ones(3),
    }
    for order in (1, 2):
        value = kan_regularizer(tree, **WEIGHTS, order=order)
        expected = sum(weighted(c, order) for c in arrays)
        assert_close(value, expected, rtol=(1e-5, 1e-11))
        assert value.shape == ()
    # Other places of coefficients.
    first, both = weighted(arrays[0]), weighted(arrays[0]) + weighted(arrays[1])
    parameters = {"energy$params": eqx.filter(energy, eqx.is_inexact_array)}
    layers = Layer(tuple(map(jnp.asarray, arrays[:2])), np.ones(2))
    prior = KAEMPrior.tree_unflatten((1, False), (energy, None))
    for tree, expected in ((prior, first), (parameters, first), (layers, both)):
        assert_close(kan_regularizer(tree, **WEIGHTS), expected)


def test_weights_of_zero_and_traced_weights():
    energy = Energy(BSpline(-1.0, 3.0, 4), jnp.asarray(random(2, 4)))
    none = kan_regularizer(energy)
    assert none == 0
    assert none.dtype == energy.dtype
    value = jax.jit(lambda w: kan_regularizer(energy, l1=w))(jnp.array(0.5))
    assert_close(value, np.asarray(kan_regularizer(energy, l1=0.5)))
    assert kan_regularizer(energy, l1=np.float64(0.5)).dtype == energy.dtype
    # One feature has no differences, and none are asked for.
    assert kan_regularizer({"coefficients": jnp.ones((2, 1))}, l1=1.0) == 2


def test_gradient_of_a_model():
    c = random(2, 4)
    energy = Energy(BSpline(-1.0, 3.0, 4), jnp.asarray(c), 1.5)
    gradient = jax.grad(lambda energy: kan_regularizer(energy, l1=2.0))(energy)
    assert_close(gradient.coefficients, 2.0 * np.sign(c) / 4)
    assert gradient.base_weight == 0
    assert gradient.basis == energy.basis


def test_wrong_arguments():
    for regularizer in (l1, entropy, coefficient_differences):
        for c, error, message in (
            (np.array([1j, 2.0]), TypeError, "must be real numbers, got dtype"),
            (1.0, ValueError, r"must .* at least one feature, got shape \(\)"),
            (np.zeros((3, 0)), ValueError, r"must .* one feature, got shape \(3, 0\)"),
        ):
            with pytest.raises(error, match=f"coefficients {message}"):
                regularizer(c)
    one = {"coefficients": np.ones((2, 3))}
    for name in WEIGHTS:
        for weight, message in (
            (-1.0, "a finite number >= 0, got -1"),
            (np.nan, "a finite number >= 0, got nan"),
            (np.ones(2), r"a scalar, got shape \(2,\)"),
        ):
            with pytest.raises(ValueError, match=f"{name} must be {message}"):
                kan_regularizer(one, **{name: weight})
    with pytest.raises(TypeError, match="l1 must be real numbers, got 'a'"):
        kan_regularizer(one, l1="a")
    with pytest.raises(ValueError, match="order must be a positive integer, got 0"):
        kan_regularizer(one, order=0)
    with pytest.raises(TypeError, match=r"order must be a positive integer, got 1.5"):
        kan_regularizer(one, order=1.5)
    message = r"order must be less than the number of features, got order 3 .*\(2, 3\)"
    with pytest.raises(ValueError, match=message):
        kan_regularizer(one, differences=1.0, order=3)
    names = r"name 'coefficients', got the names \['a'\], \['b'\]\.$"
    for tree, message in (
        ({"b": np.ones(3), "a": np.ones(2)}, names),
        (None, "got a pytree without leaves"),
        ([1.0] * 6, r"\[4\], \.\.\.\.$"),
    ):
        with pytest.raises(ValueError, match=message):
            kan_regularizer(tree, l1=1.0)
    # Integers are converted.
    assert l1(np.array([[1, -3]])) == 2
    assert coefficient_differences([[1, -3]]) == 16
