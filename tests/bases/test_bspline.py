"""Facts of B-splines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import interpolate

from numpyro_kaem.bases import BSpline


def test_partition_of_unity_and_local_support():
    bases = [BSpline(1.5, 4.0, degree + 4, degree) for degree in range(8)]
    z = np.linspace(1.0, 4.5, 101)
    of_all = jax.jit(lambda z: [basis(z) for basis in bases])(z)
    for degree, features in enumerate(map(np.asarray, of_all)):
        assert_allclose(features.sum(-1), 1.0, rtol=1e-5)
        assert np.all(features >= 0)
        assert np.all(np.count_nonzero(features, axis=-1) <= degree + 1)


def test_knots():
    """They belong to the cell on their right, the last end to the last, and break."""
    basis = BSpline(1.5, 4.0, 4, degree=0)
    expected = np.eye(4)[[0, 1, 2, 3, 3]]
    s = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    assert_array_equal(basis.unit_features(s), expected)
    assert_array_equal(basis.unit_combine(s, np.arange(4.0)), [0, 1, 2, 3, 3])
    for degree in (0, 3):
        breaks, cells = BSpline(1.5, 4.0, 8, degree).panel_breaks, 8 - degree
        assert len(breaks) == 2 * cells + 1
        assert {j / cells for j in range(cells + 1)} <= set(breaks)
    assert BSpline(1.5, 4.0, 4).panel_breaks == (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_against_scipy_at_and_between_knots(degree):
    num_basis = degree + 5
    basis = BSpline(1.5, 4.0, num_basis, degree)
    coefficients = np.random.default_rng(1).normal(size=num_basis)
    width = 2.5 / 5
    knots = 1.5 + width * np.arange(-degree, num_basis + 1)
    spline = interpolate.BSpline(knots, coefficients, degree)
    z = np.linspace(1.5, 4.0, 21)
    # Between the knots, where also the slope of degree 1 is defined.
    between = z[:-1] + 0.03

    def value(z):
        return basis.unit_combine(basis.to_unit(z), coefficients)

    with jax.enable_x64(True):
        slope = jax.vmap(jax.grad(value))
        values, slopes, of_nan, features_of_nan = jax.jit(
            lambda: (value(z), slope(between), value(np.nan), basis(np.nan))
        )()
    assert_allclose(values, spline(z), atol=1e-13)
    assert_allclose(slopes, spline.derivative()(between), atol=1e-11)
    assert np.isnan(of_nan)
    assert np.any(np.isnan(features_of_nan))


def test_combine_gathers_only_the_local_coefficients():
    basis = BSpline(1.5, 4.0, 2000)
    points, coefficients = jnp.zeros(1000), jnp.zeros((1, 2000))
    compiled = jax.jit(basis.unit_combine).lower(points, coefficients).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1000 * 100 * 4
