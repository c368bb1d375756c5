"""Facts of the Fourier and Chebyshev bases."""

import jax
import numpy as np
from numpy.testing import assert_allclose

from numpyro_kaem.bases import Chebyshev, Fourier


def test_breaks():
    """Sixths of a wavelength for Fourier; uniform in the angle for Chebyshev."""
    for num_frequencies in (1, 2, 5):
        breaks = Fourier(1.5, 4.0, num_frequencies).panel_breaks
        wavelength = 2 / num_frequencies
        assert np.max(np.diff(breaks)) <= wavelength / 6 + 1e-12
        assert len(breaks) == max(4, 3 * num_frequencies) + 1
    for degree in (0, 1, 2, 9):
        breaks = np.array(Chebyshev(1.5, 4.0, degree).panel_breaks)
        num_panels = max(4, 3 * degree)
        angle = np.arccos(1 - 2 * breaks)
        expected = np.pi * np.arange(num_panels + 1) / num_panels
        assert_allclose(angle, expected, atol=1e-7)


def test_chebyshev_slopes_at_the_ends_and_degree_one():
    degree = 7
    basis = Chebyshev(1.5, 4.0, degree)
    ends = np.array([0.0, 1.0])
    slope = jax.jit(jax.vmap(jax.jacfwd(basis.unit_features)))(ends)
    n = np.arange(degree + 1)
    # d/ds T_n(2s - 1) is 2 n^2 at the right end.
    assert_allclose(slope[1], 2 * n**2, rtol=1e-6)
    assert_allclose(slope[0], 2 * n**2 * (-1.0) ** (n + 1), rtol=1e-6)
    z = np.array([1.5, 2.0, 4.0], np.float32)
    line = Chebyshev(1.5, 4.0, 1)
    assert_allclose(line(z), [[1, -1], [1, -0.6], [1, 1]], rtol=1e-5)
    combined = line.unit_combine(line.to_unit(z), [3.0, 2.0])
    assert_allclose(combined, [1, 1.8, 5], rtol=1e-5)
