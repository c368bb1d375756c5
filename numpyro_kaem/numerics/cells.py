"""Tables of tilted densities: polynomials of the mass within cells of the panels."""

import math
from functools import cache, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpy.polynomial import legendre, polynomial

from numpyro_kaem._quadrature import gauss_legendre
from numpyro_kaem.energy import UnitGridEnergy
from numpyro_kaem.numerics.density import Integrand, integrand
from numpyro_kaem.numerics.panels import Panels
from numpyro_kaem.references import ReferenceParameters, with_rank

__all__ = [
    "Table",
    "bracketed_step",
    "cell_polynomials",
    "evaluate",
    "find_interval",
    "find_interval_in_rows",
    "mix_table",
    "on_accelerator",
    "row_index",
    "solve_cell",
    "tabulate",
    "tabulate_at",
    "tabulate_integrand",
    "tail_key",
    "tail_keys",
]

# A polynomial of few terms is as good on a quarter of a panel as one through all nodes
# is on the panel, costs half to gather and to evaluate, and is easier to invert.
_CELLS_PER_PANEL = 4


class Table(NamedTuple):
    """What the distribution function and its inverse need of a density.

    Every panel is divided into cells. On a cell the distribution function is a
    polynomial: the integral of the series through the density's values at the Gauss
    nodes of the panel. The cells of one density lie side by side in memory.
    """

    log_normalizer: jax.Array
    """Log of the normalizing constant, shape ``batch_shape``."""
    powers: jax.Array
    """Coefficients of the mass within a cell, from its left end on, in powers 1, 2, ...
    of the position from 0 to 1, shape ``(num_terms, *batch_shape, num_cells)``."""
    below: jax.Array
    """Mass below each edge of a cell, shape ``(*batch_shape, num_cells + 1)``."""
    above: jax.Array
    """Mass above each edge, the same shape."""
    edges: jax.Array
    """Edges of the cells, the same shape."""
    log_tail_scales: tuple[jax.Array | None, jax.Array | None]
    """Log ratios of the density to the reference below and above the cells, each of
    shape ``batch_shape``; ``None`` where there is no tail."""
    log_scale: jax.Array | None = None
    """Log ratio of the density to the reference (without one, the log density) within a
    cell, in powers 0, 1, ... of the position, of the shape of ``powers``."""


@jax.jit
def tabulate(
    energy: UnitGridEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> Table:
    """Make the table of a density, once per parameter value."""
    values = integrand(energy, parameters, panels)
    table = tabulate_integrand(values, panels)
    log_scale = _interpolate_cells(_log_scale(values, energy, parameters))
    return table._replace(log_scale=jnp.moveaxis(log_scale, 1, -1))


def tabulate_integrand(values: Integrand, panels: Panels) -> Table:
    """Make the table of a density from its values on the panels."""
    weighted, tails, scales = _normalised(values, panels)
    powers, masses = cell_polynomials(weighted)
    below, above = _cumulative(masses, tails)
    edges = _of_all(_cell_edges(panels.edges), values)
    powers = jnp.moveaxis(powers, 1, -1)
    below, above, edges = (jnp.moveaxis(a, 0, -1) for a in (below, above, edges))
    return Table(values.log_normalizer, powers, below, above, edges, scales)


def tabulate_at(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    mass: jax.Array,
    upper: jax.Array,
) -> Table:
    """Make the part of a table that inverts one tail mass of each density.

    The masses, at most 1/2, and their sides have the shape ``batch_shape``. The table
    has the cells of the panel that holds the point, and one empty cell in place of all
    panels on either side.
    """
    values = integrand(energy, parameters, panels)
    weighted, tails, scales = _normalised(values, panels)
    below, above = _cumulative(jnp.sum(weighted, axis=1), tails)
    edges = _of_all(panels.edges, values)
    inner_keys = tail_keys(below, above)[1:-1]
    panel = jnp.sum(tail_key(mass, upper) >= inner_keys, axis=0, dtype=jnp.int32)

    def at(array: jax.Array, index: jax.Array) -> jax.Array:
        index = index.reshape((1,) * (array.ndim - index.ndim) + index.shape)
        return jnp.take_along_axis(array, index, axis=0, mode="promise_in_bounds")

    powers, masses = cell_polynomials(at(weighted, panel))
    log_scale = _interpolate_cells(at(_log_scale(values, energy, parameters), panel))
    # In the tails the energy is that of the ends: at positions 0, and 1, of a cell.
    first, last = log_scale[:, :1], log_scale[:, -1:]
    last = jnp.zeros_like(last).at[0].set(jnp.sum(last, axis=0))
    left, right = panel, panel + 1
    from_left = jnp.cumsum(masses[:-1], axis=0) + at(below, left)
    from_right = jnp.cumsum(masses[:0:-1], axis=0)[::-1] + at(above, right)
    between = (
        jnp.minimum(from_left, at(below, right)),
        jnp.minimum(from_right, at(above, left)),
        _cell_edges(jnp.concatenate([at(edges, left), at(edges, right)]))[1:-1],
    )
    below, above, edges = (
        jnp.concatenate([a[:1], at(a, left), inner, at(a, right), a[-1:]])
        for a, inner in zip((below, above, edges), between, strict=True)
    )
    powers = jnp.pad(powers, ((0, 0), (1, 1)) + ((0, 0),) * panel.ndim)
    log_scale = jnp.concatenate([first, log_scale, last], axis=1)
    powers, log_scale = (jnp.moveaxis(a, 1, -1) for a in (powers, log_scale))
    below, above, edges = (jnp.moveaxis(a, 0, -1) for a in (below, above, edges))
    normalizer = values.log_normalizer
    return Table(normalizer, powers, below, above, edges, scales, log_scale)


@jax.jit
def mix_table(table: Table, log_weights: jax.Array) -> Table:
    """Table of a mixture over the last axis of the batch, of densities on equal cells.

    The normalized log weights broadcast with the batch. ``log_scale`` is left out.
    """
    weights = jnp.exp(log_weights)

    def mix(masses: jax.Array) -> jax.Array:
        # As a sum over components in one order, which keeps what increases increasing.
        return jnp.sum(weights[..., None] * masses, axis=-2)

    below = mix(table.below)
    low, high = (
        None if scale is None else logsumexp(log_weights + scale, axis=-1)
        for scale in table.log_tail_scales
    )
    return Table(
        log_normalizer=jnp.zeros(below.shape[:-1], below.dtype),
        powers=jax.vmap(mix)(table.powers),
        below=below,
        above=mix(table.above),
        edges=jnp.broadcast_to(table.edges[..., 0, :], below.shape),
        log_tail_scales=(low, high),
    )


def row_index(batch_shape: tuple[int, ...]) -> jax.Array:
    """Return the number of each density of a batch in the flattened batch."""
    size = math.prod(batch_shape)
    return jnp.arange(size, dtype=jnp.int32).reshape(batch_shape)


def _normalised(
    values: Integrand, panels: Panels
) -> tuple[jax.Array, list[jax.Array], tuple]:
    """Masses at the nodes and of the tails, of sum 1, and log scales of the tails."""
    log_normalizer = values.log_normalizer
    weighted = jnp.exp(values.log_mass - log_normalizer)
    tails = [
        jnp.zeros_like(log_normalizer) if t is None else jnp.exp(t - log_normalizer)
        for t in values.log_tails
    ]
    # The log of a large normalizing constant is rounded: divided again, the masses sum
    # to 1.
    total = jnp.sum(weighted, axis=(0, 1)) + sum(tails)
    scales = tuple(
        end - log_normalizer - jnp.log(total) if has else None
        for end, has in zip(values.energy_ends, panels.has_tails, strict=True)
    )
    return weighted / total, [tail / total for tail in tails], scales


def _cumulative(
    masses: jax.Array, tails: list[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Masses below and above the edges of what has these masses, along axis 0."""
    below = jnp.cumsum(jnp.concatenate([tails[0][None], masses]), axis=0)
    above = jnp.cumsum(jnp.concatenate([tails[1][None], masses[::-1]]), axis=0)[::-1]
    return below, above


def _log_scale(
    values: Integrand, energy: UnitGridEnergy, parameters: ReferenceParameters | None
) -> jax.Array:
    """Log ratio of density and reference (without one, log density) at the nodes."""
    shift = values.log_normalizer
    if parameters is None:
        low, high = energy.ends(shift.dtype)
        shift = shift + jnp.log(high - low)
    return jnp.broadcast_to(values.energy, values.log_mass.shape) - shift


def _of_all(edges: jax.Array, values: Integrand) -> jax.Array:
    """Edges of every density, shape ``(num_edges, *batch_shape)``."""
    shape = values.log_normalizer.shape
    edges = with_rank(edges.astype(values.log_mass.dtype), len(shape))
    return jnp.broadcast_to(edges, (len(edges), *shape))


def _cell_edges(edges: jax.Array) -> jax.Array:
    """Edges of equal cells, among which those of the panels are unchanged."""
    parts = jnp.arange(_CELLS_PER_PANEL).astype(edges.dtype) / _CELLS_PER_PANEL
    parts = parts.reshape(-1, *(1,) * (edges.ndim - 1))
    inner = edges[:-1, None] + parts * jnp.diff(edges, axis=0)[:, None]
    # Counted, not inferred: an empty batch leaves nothing to infer from.
    inner = inner.reshape(parts.shape[0] * inner.shape[0], *edges.shape[1:])
    return jnp.concatenate([inner, edges[-1:]])


# --- the polynomials of the cells ----------------------------------------------------


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
    cells = np.arange(_CELLS_PER_PANEL)[:, None]
    at = -1 + 2 * (cells + (points + 1) / 2) / _CELLS_PER_PANEL
    values = legendre.legvander(at, num_nodes - 1) @ density
    return project @ values * (2 / _CELLS_PER_PANEL)


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
    """Mass within each cell from its left end on, as a polynomial, and of each cell.

    From weights times densities at the Gauss nodes of the panels, shape
    ``(num_panels, num_nodes, *batch_shape)``: coefficients of the powers 1, 2, ... of
    the position in a cell, shape ``(num_terms, num_cells, *batch_shape)``.
    """
    num_panels, num_nodes, *batch_shape = masses.shape
    dtype = masses.dtype
    to_cells = jnp.asarray(_to_cells(num_nodes), dtype)
    num_terms = to_cells.shape[1]
    # In two steps: Legendre's coefficients fall, so that the large numbers of the
    # second matrix meet small ones, and rounding is not magnified.
    series = jnp.einsum("ktm,pm...->tpk...", to_cells, masses, precision="highest")
    series = _without_negative(series, jnp.sum(masses, axis=1))
    series = series.reshape(num_terms, num_panels * _CELLS_PER_PANEL, *batch_shape)
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


def _without_negative(series: jax.Array, masses: jax.Array) -> jax.Array:
    """Damp the series of panels too coarse for their density, where it rings below 0.

    It is mixed with the constant of the same mass, just enough that the distribution
    function does not decrease. ``series`` are Legendre coefficients, of shape
    ``(num_terms, num_panels, cells_per_panel, *batch_shape)``.
    """
    num_terms, dtype = series.shape[0], series.dtype
    points = np.polynomial.chebyshev.chebpts2(2 * num_terms)
    values = _combine(legendre.legvander(points, num_terms - 1), series)
    constant = masses / _CELLS_PER_PANEL
    low = jnp.min(reduce(jnp.minimum, values), axis=1)
    high = jnp.max(reduce(jnp.maximum, values), axis=1)
    depth = -1.1 * low - 16 * jnp.finfo(dtype).eps * high
    rings = (depth > 0) & (constant > 0)
    share = jnp.where(rings, constant / (constant + jnp.where(rings, depth, 0)), 1)
    # A peak narrower than the panel is unresolved: no series of it can be inverted.
    share = jax.lax.stop_gradient(jnp.where(share < 0.8, 0, share))[:, None]
    return (series * share).at[0].add((1 - share) * constant[:, None])


@cache
def _interpolation(num_nodes: int) -> np.ndarray:
    """Powers of the position in every cell from values at the Gauss nodes."""
    _, weights = gauss_legendre(num_nodes)
    to_cells = _to_cells(num_nodes) * weights * (_CELLS_PER_PANEL / 2)
    num_terms = to_cells.shape[1]
    # The derivative of the integrated series is the series.
    to_powers = _to_powers(num_terms) * np.arange(1, num_terms + 1)[:, None]
    return np.einsum("st,ktm->skm", to_powers, to_cells)


def _interpolate_cells(values: jax.Array) -> jax.Array:
    """Powers 0, 1, ... of a smooth function in each cell, from values at Gauss nodes.

    ``(num_panels, num_nodes, *batch_shape)`` -> ``(num_terms, num_cells, ...)``.
    """
    num_panels, num_nodes, *batch_shape = values.shape
    matrix = jnp.asarray(_interpolation(num_nodes), values.dtype)
    # Changes within the panel, so that its level adds no rounding.
    level = values[:, num_nodes // 2]
    changes = values - level[:, None]
    powers = jnp.einsum("skm,pm...->spk...", matrix, changes, precision="highest")
    powers = powers.at[0].add(level[:, None])
    return powers.reshape(len(matrix), num_panels * _CELLS_PER_PANEL, *batch_shape)


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
    """Newton's step where it stays in the bracket, else its middle; and the bracket.

    A compiler may compute a number twice, rounded differently, so that a step from a
    point that has converged leaves the bracket by a few last digits: it is cut there.
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
    """Position in a cell, from 0 to 1, up to which it has a given mass, elementwise."""
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


# --- the search for a cell -----------------------------------------------------------

# Comparisons with keys that stand in registers take less time than a turn of bisection,
# which gathers them: up to this number of blocks.
_NUM_BLOCKS = 20


def find_interval(
    keys: jax.Array, w: jax.Array, row: jax.Array, num_intervals: int
) -> jax.Array:
    """Count the inner edges of a row whose key is at most ``w``, elementwise.

    By bisection. The keys of a row, numbers or integers, do not decrease; their shape
    is ``(num_rows, num_intervals + 1)``.
    """
    length = 1 << max(num_intervals - 1, 0).bit_length()
    first = jnp.broadcast_to(row, jnp.broadcast_shapes(w.shape, row.shape))
    first = (first * length).astype(jnp.int32)
    return _bisect(_padded(keys[:, :num_intervals], length), w, first, length) - first


def find_interval_in_rows(
    keys: jax.Array, w: jax.Array, num_intervals: int
) -> jax.Array:
    """Do as :func:`find_interval`, for numbers of shape ``(num_rows, num_numbers)``.

    Blocks of keys by comparison, all at once, and within a block by bisection.
    """
    num_rows = keys.shape[0]
    least = -(-num_intervals // _NUM_BLOCKS)
    length = 1 << max(least - 1, 0).bit_length()
    num_blocks = -(-num_intervals // length)
    keys = _padded(keys[:, :num_intervals], num_blocks * length)
    block = jnp.zeros(w.shape, jnp.int32)
    for key in keys.T[length::length]:
        block += (w >= key[:, None]).astype(jnp.int32)
    first = num_blocks * length * jnp.arange(num_rows, dtype=jnp.int32)[:, None]
    return _bisect(keys, w, first + block * length, length) - first


def tail_keys(below: jax.Array, above: jax.Array) -> jax.Array:
    """Integers that order edges by their smaller tail mass, with all of its digits.

    The bits of positive floating-point numbers are in the order of the numbers.
    """
    half = _bits(jnp.full_like(below, 0.5))
    from_above = jnp.maximum(2 * half + 1 - _bits(above), half + 1)
    return jnp.where(below <= 0.5, _bits(below), from_above)


def tail_key(mass: jax.Array, upper: jax.Array) -> jax.Array:
    """Key of the point with a mass of at most 1/2 below, or above it if ``upper``."""
    half = _bits(jnp.full_like(mass, 0.5))
    return jnp.where(upper, 2 * half + 1 - _bits(mass), _bits(mass))


def _bits(number: jax.Array) -> jax.Array:
    integer = jnp.int64 if number.dtype == jnp.float64 else jnp.int32
    return jax.lax.bitcast_convert_type(jnp.abs(number), integer)


def _padded(keys: jax.Array, length: int) -> jax.Array:
    """Keys with others after them that are never reached: no index is checked."""
    is_integer = jnp.issubdtype(keys.dtype, jnp.integer)
    largest = jnp.iinfo(keys.dtype).max if is_integer else jnp.inf
    missing = ((0, 0), (0, length - keys.shape[1]))
    return jnp.pad(keys, missing, constant_values=largest)


def _bisect(keys: jax.Array, w: jax.Array, first: jax.Array, length: int) -> jax.Array:
    """Last of a power of two of keys, from ``first`` on, that is at most ``w``."""
    flat = keys.reshape(-1)

    def halve(i: jax.Array, index: jax.Array) -> jax.Array:
        middle = index + (length >> (i + 1))
        key = flat.at[middle].get(mode="promise_in_bounds")
        return jnp.where(w >= key, middle, index)

    # On a CPU a loop, which the compiler keeps apart: unrolled, it would fuse all
    # gathers with what follows, compute them more than once and not with vector
    # instructions.
    num_turns = length.bit_length() - 1
    return jax.lax.fori_loop(0, num_turns, halve, first, unroll=on_accelerator())


def on_accelerator() -> bool:
    """Whether the default device is not a CPU: there every turn of a loop is launched.

    Loops are unrolled, and more is computed side by side, with the same results.
    """
    return jax.default_backend() != "cpu"
