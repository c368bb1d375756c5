"""Cells of a panel: polynomials of a density's mass there, and the inverse of them."""

from functools import cache, reduce

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import legendre, polynomial

from numpyro_kaem.quadrature import gauss_legendre

__all__ = [
    "CELLS_PER_PANEL",
    "bracketed_step",
    "cell_polynomials",
    "evaluate",
    "interpolate_cells",
    "solve_cell",
]

# A polynomial of few terms is as good on a quarter of a panel as one through all nodes
# is on the panel, costs half to gather and to evaluate, and is easier to invert.
CELLS_PER_PANEL = 4


def _num_terms(num_nodes: int) -> int:
    """Terms of a cell's polynomial that err no more than ``num_nodes`` on a panel.

    If the coefficients of the density's series on the panel fall like ``ratio**-j``,
    those on a cell fall four times faster. What is cut, ``(4 * ratio)**-terms``, is
    below what the panel's series has cut, ``ratio**-num_nodes``, or below rounding.
    """
    return 10 if num_nodes > 8 else 5


@cache
def _to_cells(num_nodes: int) -> np.ndarray:
    """Legendre coefficients on every cell from the masses at the Gauss nodes."""
    nodes, weights = gauss_legendre(num_nodes)
    points, point_weights = gauss_legendre(num_nodes + 1)
    num_terms = _num_terms(num_nodes)
    vander = legendre.legvander(points, num_terms - 1) * point_weights[:, None]
    project = vander.T * (np.arange(num_terms)[:, None] + 0.5)
    density = np.linalg.inv(legendre.legvander(nodes, num_nodes - 1)) / weights
    cells = np.arange(CELLS_PER_PANEL)[:, None]
    at = -1 + 2 * (cells + (points + 1) / 2) / CELLS_PER_PANEL
    values = legendre.legvander(at, num_nodes - 1) @ density
    return project @ values * (2 / CELLS_PER_PANEL)


@cache
def _to_powers(num_terms: int) -> np.ndarray:
    """Powers of the position in (0, 1), integrated from 0, from Legendre's series."""
    matrix = np.zeros((num_terms, num_terms))
    for j in range(num_terms):
        powers = np.zeros(1)
        for k, value in enumerate(legendre.leg2poly(np.eye(num_terms)[j])):
            powers = polynomial.polyadd(
                powers, value * polynomial.polypow([-1.0, 2.0], k)
            )
        matrix[: len(powers), j] = powers
    return matrix / np.arange(1, num_terms + 1)[:, None]


def cell_polynomials(masses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mass within each cell from its left end on, as a polynomial without constant.

    Parameters
    ----------
    masses
        Weights times densities at the Gauss nodes of every panel, shape
        ``(num_panels, num_nodes, *batch_shape)``.

    Returns
    -------
    tuple
        Coefficients of the powers 1, 2, ... of the position in a cell, from 0 to 1,
        shape ``(num_terms, num_cells, *batch_shape)``; the masses of the cells, their
        sums, shape ``(num_cells, *batch_shape)``.
    """
    num_panels, num_nodes, *batch_shape = masses.shape
    dtype = masses.dtype
    to_cells = jnp.asarray(_to_cells(num_nodes), dtype)
    num_terms = to_cells.shape[1]
    # In two steps: Legendre's coefficients fall, so that the large numbers of the
    # second matrix meet small ones, and rounding is not magnified.
    series = jnp.einsum("ktm,pm...->tpk...", to_cells, masses, precision="highest")
    series = _without_negative(series, jnp.sum(masses, axis=1))
    series = series.reshape(num_terms, num_panels * CELLS_PER_PANEL, *batch_shape)
    powers = jnp.stack(_combine(_to_powers(num_terms), series))
    # The series' first coefficient is the cell's mass, exactly.
    cell_masses = jnp.maximum(series[0], 0)
    change = cell_masses - jnp.sum(powers, axis=0)
    return powers.at[0].add(change), cell_masses


def _combine(matrix: np.ndarray, terms: jax.Array) -> list[jax.Array]:
    """Product of a small matrix and the first axis: written out, it is one fast loop.

    Its rows are used at once, and need no place in memory.
    """
    return [
        sum(float(c) * term for c, term in zip(row, terms, strict=True) if c != 0)
        for row in matrix
    ]


@cache
def _interpolation(num_nodes: int) -> np.ndarray:
    """Powers of the position in every cell from values at the Gauss nodes."""
    _, weights = gauss_legendre(num_nodes)
    to_cells = _to_cells(num_nodes) * weights * (CELLS_PER_PANEL / 2)
    num_terms = to_cells.shape[1]
    # The derivative of the integrated series is the series.
    to_powers = _to_powers(num_terms) * np.arange(1, num_terms + 1)[:, None]
    return np.einsum("st,ktm->skm", to_powers, to_cells)


def interpolate_cells(values: jax.Array) -> jax.Array:
    """Smooth function within each cell from its values at the Gauss nodes of panels.

    Parameters
    ----------
    values
        Shape ``(num_panels, num_nodes, *batch_shape)``.

    Returns
    -------
    Array
        Coefficients of the powers 0, 1, ... of the position in a cell, from 0 to 1,
        shape ``(num_terms, num_cells, *batch_shape)``.
    """
    num_panels, num_nodes, *batch_shape = values.shape
    matrix = jnp.asarray(_interpolation(num_nodes), values.dtype)
    # Changes within the panel, so that its level adds no rounding.
    level = values[:, num_nodes // 2]
    changes = values - level[:, None]
    powers = jnp.einsum("skm,pm...->spk...", matrix, changes, precision="highest")
    powers = powers.at[0].add(level[:, None])
    return powers.reshape(len(matrix), num_panels * CELLS_PER_PANEL, *batch_shape)


def _without_negative(series: jax.Array, masses: jax.Array) -> jax.Array:
    """Damp the series of panels too coarse for their density, where it rings below 0.

    It is mixed with the constant of the same mass, just enough that the distribution
    function does not decrease; a series that is nowhere negative stays as it is.

    Parameters
    ----------
    series
        Legendre coefficients on the cells of each panel, shape
        ``(num_terms, num_panels, CELLS_PER_PANEL, *batch_shape)``.
    masses
        Masses of the panels, shape ``(num_panels, *batch_shape)``.
    """
    num_terms, dtype = series.shape[0], series.dtype
    points = np.polynomial.chebyshev.chebpts2(2 * num_terms)
    values = _combine(legendre.legvander(points, num_terms - 1), series)
    constant = masses / CELLS_PER_PANEL
    low = jnp.min(reduce(jnp.minimum, values), axis=1)
    high = jnp.max(reduce(jnp.maximum, values), axis=1)
    depth = -1.1 * low - 16 * jnp.finfo(dtype).eps * high
    rings = (depth > 0) & (constant > 0)
    share = jnp.where(rings, constant / (constant + jnp.where(rings, depth, 0)), 1)
    # A peak narrower than the panel is unresolved: no series of it can be inverted.
    share = jax.lax.stop_gradient(jnp.where(share < 0.8, 0, share))[:, None]
    return (series * share).at[0].add((1 - share) * constant[:, None])


def evaluate(powers: list[jax.Array], s: jax.Array) -> jax.Array:
    """Value at ``s`` of a polynomial without constant, by Horner's rule."""
    value = jnp.zeros_like(s)
    for coefficient in reversed(powers):
        value = (value + coefficient) * s
    return value


def _slope(powers: list[jax.Array], s: jax.Array) -> jax.Array:
    value = jnp.zeros_like(s)
    for k in range(len(powers), 0, -1):
        value = value * s + k * powers[k - 1]
    return value


def _start(
    fraction: jax.Array, left_slope: jax.Array, right_slope: jax.Array
) -> jax.Array:
    """Inverse of the monotone rational quadratic with given end slopes, on [0, 1].

    Gregory and Delbourgo (1982), "Piecewise rational quadratic interpolation to
    monotonic data", *IMA Journal of Numerical Analysis* 2(2).
    """
    bend = left_slope + right_slope - 2
    a = 1 - left_slope + fraction * bend
    b = left_slope - fraction * bend
    root = jnp.sqrt(jnp.maximum(b * b + 4 * a * fraction, 0))
    return 2 * fraction / jnp.maximum(b + root, 1e-30)


def bracketed_step(
    point: jax.Array,
    error: jax.Array,
    slope: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Newton's step where it stays in the bracket, else the middle of the bracket.

    A compiler may compute a number twice, rounded differently, so that a step from a
    point that has converged leaves the bracket by a few last digits: it is cut there.

    Returns
    -------
    tuple
        The next point, and the ends of the bracket; all of the shape of ``point``.
    """
    low = jnp.where(error > 0, low, point)
    high = jnp.where(error > 0, point, high)
    eps, tiny = jnp.finfo(point.dtype).eps, jnp.finfo(point.dtype).tiny
    proposal = point - error / jnp.maximum(slope, tiny)
    margin = 0.01 * (high - low) + 4 * eps * (jnp.abs(low) + jnp.abs(high))
    inside = (proposal >= low - margin) & (proposal <= high + margin)
    point = jnp.where(inside, jnp.clip(proposal, low, high), 0.5 * (low + high))
    return point, low, high


def solve_cell(powers: list[jax.Array], target: jax.Array) -> jax.Array:
    """Position in a cell, from 0 to 1, up to which it has a given mass.

    Parameters
    ----------
    powers
        Coefficients of the cell's polynomial, each of shape (...,).
    target
        Mass from the left end of the cell on, shape (...,); cut to that of the cell.
    """
    total = sum(powers)
    positive = total > 0
    tiny = jnp.finfo(target.dtype).tiny
    scale = 1 / jnp.maximum(total, tiny)
    # As parts of the cell's mass, so that rounding does not depend on its size.
    powers = [power * scale for power in powers]
    target = jnp.where(positive, jnp.clip(target * scale, 0, 1), 0)
    end = jnp.maximum(sum(k * power for k, power in enumerate(powers, 1)), 0)
    s = jnp.clip(_start(target, jnp.maximum(powers[0], 0), end), 0, 1)
    low, high = jnp.zeros_like(s), jnp.ones_like(s)
    for _ in range(6 if s.dtype == jnp.float64 else 3):
        error = evaluate(powers, s) - target
        s, low, high = bracketed_step(s, error, _slope(powers, s), low, high)
    return jnp.where(positive, s, 0)
