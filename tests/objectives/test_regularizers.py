"""Penalties against NumPy, and their gradients where shares are zero."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer.util import log_density

from numpyro_kaem import BSpline, Energy, KAEMPrior
from numpyro_kaem.objectives import coefficient_differences, entropy, kan_penalty, l1
from tests.helpers import assert_close

SHAPES = [(4,), (3, 5), (2, 3, 4)]


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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape):
    c = random(*shape)
    assert_close(l1(jnp.asarray(c)), sum(loop_norms(c)))
    assert_close(entropy(jnp.asarray(c)), loop_entropy(c))
    for order in (1, 2, 3):
        value = coefficient_differences(jnp.asarray(c), order)
        assert_close(value, loop_differences(c, order), rtol=(1e-5, 1e-12))


def test_differences_do_not_see_polynomials():
    grid = jnp.arange(6.0)
    assert coefficient_differences(3.0 * jnp.ones((2, 6))) == 0
    assert coefficient_differences(jnp.stack([2 * grid, 1 - grid]), 2) == 0
    assert_close(coefficient_differences(grid**2, 2), 4 * 4.0)


def test_entropy_at_its_extremes():
    assert_close(
        entropy(jnp.array([[1.0, -1.0], [0.0, 2.0], [-2.0, 0.0]])), np.log(3.0)
    )
    assert entropy(jnp.array([[0.0, 0.0], [3.0, 1.0]])) == 0
    assert entropy(jnp.zeros((3, 2))) == 0
    c = jnp.asarray(random(3, 4))
    assert_close(entropy(1e-3 * c), np.asarray(entropy(c)))


@pytest.mark.parametrize("penalty", [l1, entropy, coefficient_differences])
def test_gradients_against_differences(penalty):
    c, step = random(3, 4), 1e-3
    gradient = jax.grad(penalty)(jnp.asarray(c))
    loops = {
        l1: lambda c: sum(loop_norms(c)),
        entropy: loop_entropy,
        coefficient_differences: lambda c: loop_differences(c, 1),
    }
    numerical = np.zeros_like(c)
    for index in np.ndindex(c.shape):
        move = np.zeros_like(c)
        move[index] = step
        numerical[index] = (loops[penalty](c + move) - loops[penalty](c - move)) / (
            2 * step
        )
    assert_close(gradient, numerical, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("penalty", [l1, entropy, coefficient_differences])
def test_gradients_at_zero_are_finite(penalty):
    some = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, -2.0], [1e-30, 0.0, 0.0]])
    for c in (jnp.zeros((3, 3)), some):
        for value in (jax.grad(penalty)(c), jax.jit(jax.grad(penalty))(c)):
            assert np.all(np.isfinite(value))
            np.testing.assert_array_equal(value[0], 0.0)


def test_entropy_of_a_subnormal_share_has_a_finite_gradient():
    c = jnp.array([[1.0], [jnp.finfo(jnp.result_type(float)).tiny]])
    assert np.all(np.isfinite(jax.grad(entropy)(c)))


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


@pytest.mark.parametrize("order", [1, 2])
def test_sum_over_a_model(order):
    arrays = [random(2, 4, seed=1), random(5, seed=2), random(3, 3, 6, seed=3)]
    basis = BSpline(-1.0, 3.0, 4)
    tree = {
        "energy": Energy(basis, jnp.asarray(arrays[0]), jnp.array([3.0, 4.0])),
        "other": [Layer(jnp.asarray(arrays[1]), jnp.ones(7))],
        "coefficients": jnp.asarray(arrays[2]),
        "none": None,
        "rest": jnp.ones(3),
    }
    expected = sum(weighted(c, order) for c in arrays)
    assert_close(
        kan_penalty(tree, **WEIGHTS, order=order), expected, rtol=(1e-5, 1e-11)
    )


def test_other_places_of_coefficients():
    first, second = random(2, 4, seed=1), random(5, seed=2)
    energy = Energy(BSpline(-1.0, 3.0, 4), jnp.asarray(first))
    assert_close(kan_penalty(KAEMPrior(energy), **WEIGHTS), weighted(first))
    parameters = eqx.filter(energy, eqx.is_inexact_array)
    assert_close(kan_penalty({"energy$params": parameters}, **WEIGHTS), weighted(first))
    layers = Layer((jnp.asarray(first), jnp.asarray(second)), jnp.ones(2))
    expected = weighted(first) + weighted(second)
    assert_close(kan_penalty(layers, **WEIGHTS), expected)


def test_weights_of_zero_and_traced_weights():
    energy = Energy(BSpline(-1.0, 3.0, 4), jnp.asarray(random(2, 4)))
    none = kan_penalty(energy)
    assert none == 0
    assert none.dtype == energy.dtype
    value = jax.jit(lambda w: kan_penalty(energy, l1=w))(jnp.array(0.5))
    assert_close(value, np.asarray(kan_penalty(energy, l1=0.5)))
    assert kan_penalty(energy, l1=np.float64(0.5)).dtype == energy.dtype
    # One feature has no differences, and none are asked for.
    assert kan_penalty({"coefficients": jnp.ones((2, 1))}, l1=1.0) == 2


def test_gradient_of_a_model():
    c = random(2, 4)
    energy = Energy(BSpline(-1.0, 3.0, 4), jnp.asarray(c), 1.5)
    gradient = jax.grad(lambda energy: kan_penalty(energy, l1=2.0))(energy)
    assert_close(gradient.coefficients, 2.0 * np.sign(c) / 4)
    assert gradient.base_weight == 0
    assert gradient.basis == energy.basis


def test_as_a_factor():
    energy = Energy(BSpline(-1.0, 3.0, 4), jnp.asarray(random(2, 4)))

    def model():
        numpyro.factor("penalty", -kan_penalty(energy, differences=0.1))

    density, _ = log_density(model, (), {}, {})
    assert_close(density, -0.1 * loop_differences(random(2, 4), 1))


@pytest.mark.parametrize("penalty", [l1, entropy, coefficient_differences])
def test_coefficients_must_be_real_numbers_with_features(penalty):
    with pytest.raises(TypeError, match="coefficients must be real numbers, got dtype"):
        penalty(jnp.array([1j, 2.0]))
    with pytest.raises(ValueError, match=r"at least one feature, got shape \(\)"):
        penalty(jnp.array(1.0))
    with pytest.raises(ValueError, match=r"at least one feature, got shape \(3, 0\)"):
        penalty(jnp.zeros((3, 0)))


def test_integers_are_converted():
    assert l1(jnp.array([[1, -3]])) == 2
    assert coefficient_differences([[1, -3]]) == 16


def test_order():
    with pytest.raises(ValueError, match="order must be a positive integer, got 0"):
        coefficient_differences(jnp.ones(3), 0)
    with pytest.raises(TypeError, match=r"order must be a positive integer, got 1.5"):
        kan_penalty({"coefficients": jnp.ones(3)}, order=1.5)
    message = r"order must be less than the number of features, got order 3 .*\(2, 3\)"
    with pytest.raises(ValueError, match=message):
        kan_penalty({"coefficients": jnp.ones((2, 3))}, differences=1.0, order=3)


@pytest.mark.parametrize("name", ["l1", "entropy", "differences"])
def test_weights_are_checked(name):
    tree = {"coefficients": jnp.ones(3)}
    with pytest.raises(
        ValueError, match=f"{name} must be a finite number >= 0, got -1"
    ):
        kan_penalty(tree, **{name: -1.0})
    with pytest.raises(
        ValueError, match=f"{name} must be a finite number >= 0, got nan"
    ):
        kan_penalty(tree, **{name: np.nan})
    with pytest.raises(ValueError, match=rf"{name} must be a scalar, got shape \(2,\)"):
        kan_penalty(tree, **{name: np.ones(2)})


def test_a_pytree_without_coefficients():
    message = r"name 'coefficients', got the names \['a'\], \['b'\]\.$"
    with pytest.raises(ValueError, match=message):
        kan_penalty({"b": jnp.ones(3), "a": jnp.ones(2)}, l1=1.0)
    with pytest.raises(ValueError, match="got a pytree without leaves"):
        kan_penalty(None, l1=1.0)
    with pytest.raises(ValueError, match=r"\[4\], \.\.\.\.$"):
        kan_penalty([1.0] * 6, l1=1.0)
