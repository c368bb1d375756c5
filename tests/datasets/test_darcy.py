"""Darcy flow: against series, a made-up solution, sparse algebra and conservation."""

import numpy as np
import pytest
import scipy.sparse as sparse
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse.linalg import spsolve

from numpyro_kaem.datasets import darcy_flow, gaussian_random_field, solve_darcy


def middles(size):
    """Coordinates of the middles of the cells, x first."""
    return np.meshgrid(*2 * [(np.arange(size) + 0.5) / size], indexing="ij")


def poisson_series(size):
    """Solution of -div grad p = 1: a parabola in x, less a series that mends y."""
    x, y = middles(size)
    total = x * (1 - x) / 2
    for m in np.arange(1, 200, 2) * np.pi:
        total -= 4 * np.sin(m * x) / m**3 * np.cosh(m * (y - 0.5)) / np.cosh(m / 2)
    return total


def made_up(size):
    """Log permeability, pressure, and the source that the equation gives for them."""
    x, y = middles(size)
    u, v = np.pi * x, 2 * np.pi * y
    a = 0.7 * np.sin(3 * x + 1) + x * np.cos(2 * y)
    a_x, a_y = 2.1 * np.cos(3 * x + 1) + np.cos(2 * y), -2 * x * np.sin(2 * y)
    p = np.sin(u) * np.sin(v)
    p_x, p_y = np.pi * np.cos(u) * np.sin(v), 2 * np.pi * np.sin(u) * np.cos(v)
    laplacian = -5 * np.pi**2 * p
    return a, p, -np.exp(a) * (a_x * p_x + a_y * p_y + laplacian)


def by_cells(a, source):
    """Go from cell to cell, and write down what flows out of each."""
    n = len(a)
    k = np.exp(a)
    matrix = sparse.lil_array((n * n, n * n))
    for i, j in np.ndindex(n, n):
        for u, v in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            row = i * n + j
            if 0 <= u < n and 0 <= v < n:
                flow = 1 / (0.5 / k[i, j] + 0.5 / k[u, v])
                matrix[row, u * n + v] -= flow
            else:
                flow = k[i, j] / 0.5
            matrix[row, row] += flow
    return spsolve(matrix.tocsr(), source.ravel() / n**2).reshape(n, n)


def test_converges_to_the_series_and_to_a_made_up_solution():
    def series_error(size, level=0.7):
        found = solve_darcy(np.full((size, size), level), 2.5)
        return found * np.exp(level) / 2.5 - poisson_series(size)

    def made_up_error(size):
        a, p, source = made_up(size)
        return solve_darcy(a, source) - p

    for error, bound in ((series_error, 2e-4), (made_up_error, 0.01)):
        coarse, fine = (np.abs(error(size)).max() for size in (16, 32))
        assert fine < bound
        assert 3.5 < coarse / fine < 4.5


@pytest.mark.parametrize("size", [9, 16])
def test_matches_sparse_algebra(size):
    """So it keeps what flows, and turns and scales with the permeability."""
    rng = np.random.default_rng(3)
    a = 2 * rng.normal(size=(2, size, size)) - 1
    source = rng.normal(size=(size, size))
    found = solve_darcy(a, source)
    for one, field in zip(found, a, strict=True):
        assert_allclose(one, by_cells(field, source), rtol=1e-10, atol=1e-12)
    # Inside an island of high permeability the pressure is all but constant, and sparse
    # algebra has an error of 3e-5.
    a = np.zeros((size, size))
    a[3:6, 2:5] = 26.0
    island = solve_darcy(a)[3:6, 2:5]
    assert_allclose(island, island[1, 1], rtol=1e-9)
    expected = by_cells(a, np.ones((size, size)))[3:6, 2:5]
    assert_allclose(island, expected, rtol=1e-3)


def test_generator(capsys):
    flow = darcy_flow(0, 50, 16, variance=6.0, length_scale=0.1)
    assert flow.pressure.dtype == flow.log_permeability.dtype == np.float32
    assert flow.pressure.shape == flow.log_permeability.shape == (50, 16, 16)
    assert np.all(flow.pressure > 0)
    # It passes the distribution on.
    options = dict(length_scale=0.1, variance=0.3)
    flow = darcy_flow(4, 2, 8, **options)
    field = gaussian_random_field(4, 2, 8, **options)
    assert_allclose(flow.log_permeability, field, rtol=1e-6)
    assert_allclose(flow.pressure, solve_darcy(field), rtol=1e-6)
    # The same seed, the same fields.
    few, many = darcy_flow(7, 2, 16), darcy_flow(np.random.default_rng(7), 5, 16)
    assert_array_equal(few.pressure, many.pressure[:2])
    assert np.any(few.pressure != darcy_flow(8, 2, 16).pressure)
    assert capsys.readouterr().err == ""
    darcy_flow(0, 3, 4, progress_bar=True)
    assert "3/3" in capsys.readouterr().err


def test_errors():
    for field, source, message in [
        (np.zeros(4), 1.0, r"got \(4,\)"),
        (np.zeros((4, 5)), 1.0, r"got \(4, 5\)"),
        (np.zeros((1, 1)), 1.0, r"size >= 2"),
        (np.zeros((0, 4, 4)), 1.0, "at least one field"),
        (np.zeros((4, 4)), np.ones(3), r"source must broadcast .* got shape \(3,\)"),
        (np.zeros((4, 4)), np.ones((2, 4, 4)), r"source must broadcast"),
        (np.zeros((4, 4)), np.nan, "source must be finite"),
        (np.diag([0.0, 0.0, np.inf]), 1.0, "log_permeability must be finite"),
        (np.stack([np.eye(4), 40 * np.eye(4)]), 1.0, r"spans 40\.0 in field 1"),
        (np.full((4, 4), 700.0), 1.0, "from -600 to 600, got 700 to 700"),
    ]:
        with pytest.raises(ValueError, match=message):
            solve_darcy(field, source)
    with pytest.raises(ValueError, match="varies too much"):
        darcy_flow(0, 1, 16, variance=200.0)
