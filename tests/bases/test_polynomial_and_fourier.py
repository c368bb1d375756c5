"""Facts of the Fourier and Chebyshev bases."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from numpyro_kaem.bases import Chebyshev, Fourier

pytestmark = pytest.mark.float64


def test_fourier_ends_are_free():
    basis = Fourier(1.5, 4.0, 3)
    low, high = np.asarray(basis(np.array([1.5, 4.0])))
    assert_allclose(low, [1, 1, 1, 0, 0, 0], atol=1e-6)
    assert_allclose(high, [-1, 1, -1, 0, 0, 0], atol=1e-5)


def test_fourier_breaks_are_sixths_of_wavelengths():
    for num_frequencies in (1, 2, 5):
        breaks = Fourier(1.5, 4.0, num_frequencies).panel_breaks
        wavelength = 2 / num_frequencies
        assert np.max(np.diff(breaks)) <= wavelength / 6 + 1e-12
        assert len(breaks) == max(4, 3 * num_frequencies) + 1


def test_chebyshev_slopes_at_the_ends():
    degree = 7
    basis = Chebyshev(1.5, 4.0, degree)
    slope = jax.vmap(jax.jacfwd(basis.unit_features))(np.array([0.0, 1.0]))
    n = np.arange(degree + 1)
    # d/ds T_n(2s - 1) is 2 n^2 at the right end.
    assert_allclose(slope[1], 2 * n**2, rtol=1e-6)
    assert_allclose(slope[0], 2 * n**2 * (-1.0) ** (n + 1), rtol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 9])
def test_chebyshev_breaks_are_uniform_in_the_angle(degree):
    breaks = np.array(Chebyshev(1.5, 4.0, degree).panel_breaks)
    num_panels = max(4, 3 * degree)
    angle = np.arccos(1 - 2 * breaks)
    assert_allclose(angle, np.pi * np.arange(num_panels + 1) / num_panels, atol=1e-7)


def test_low_degrees():
    z = np.array([1.5, 2.0, 4.0], np.float32)
    assert_array_equal(Chebyshev(1.5, 4.0, 0)(z), np.ones((3, 1)))
    line = Chebyshev(1.5, 4.0, 1)
    assert_allclose(line(z), [[1, -1], [1, -0.6], [1, 1]], rtol=1e-5)
    assert_allclose(
        line.unit_combine(line.to_unit(z), [3.0, 2.0]), [1, 1.8, 5], rtol=1e-5
    )
