"""Facts of B-splines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import interpolate

from numpyro_kaem.bases import BSpline

pytestmark = pytest.mark.float64


@pytest.mark.parametrize("degree", range(8))
def test_partition_of_unity_and_local_support(degree):
    basis = BSpline(1.5, 4.0, degree + 4, degree)
    features = np.asarray(jax.jit(basis)(np.linspace(1.0, 4.5, 101)))
    assert_allclose(features.sum(-1), 1.0, rtol=1e-5)
    assert np.all(features >= 0)
    assert np.all(np.count_nonzero(features, axis=-1) <= degree + 1)


def test_knots_belong_to_the_cell_on_their_right_and_the_last_end_to_the_last():
    basis = BSpline(1.5, 4.0, 4, degree=0)
    expected = np.eye(4)[[0, 1, 2, 3, 3]]
    s = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    assert_array_equal(basis.unit_features(s), expected)
    assert_array_equal(basis.unit_combine(s, np.arange(4.0)), [0, 1, 2, 3, 3])


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_against_scipy_at_and_between_knots(degree):
    with jax.enable_x64(True):
        num_basis = degree + 5
        basis = BSpline(1.5, 4.0, num_basis, degree)
        coefficients = np.random.default_rng(1).normal(size=num_basis)
        width = 2.5 / 5
        knots = 1.5 + width * np.arange(-degree, num_basis + 1)
        spline = interpolate.BSpline(knots, coefficients, degree)
        z = np.linspace(1.5, 4.0, 21)

        def value(z):
            return basis.unit_combine(basis.to_unit(z), coefficients)

        assert_allclose(value(z), spline(z), atol=1e-13)
        # Between the knots, where also the slope of degree 1 is defined.
        z = z[:-1] + 0.03
        slope = jax.vmap(jax.grad(value))(z)
        assert_allclose(slope, spline.derivative()(z), atol=1e-11)


@pytest.mark.parametrize("degree", [0, 3])
def test_knots_are_breaks(degree):
    basis = BSpline(1.5, 4.0, 8, degree)
    cells = 8 - degree
    assert len(basis.panel_breaks) == 2 * cells + 1
    assert {j / cells for j in range(cells + 1)} <= set(basis.panel_breaks)
    assert BSpline(1.5, 4.0, 4).panel_breaks == (0.0, 0.25, 0.5, 0.75, 1.0)


def test_nan_stays_nan():
    basis = BSpline(1.5, 4.0, 6)
    assert np.isnan(basis.unit_combine(basis.to_unit(np.nan), np.ones(6)))
    assert np.any(np.isnan(basis(np.nan)))


def test_combine_gathers_only_the_local_coefficients():
    basis = BSpline(1.5, 4.0, 2000)
    points, coefficients = jnp.zeros(1000), jnp.zeros((1, 2000))
    compiled = jax.jit(basis.unit_combine).lower(points, coefficients).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1000 * 100 * 4
