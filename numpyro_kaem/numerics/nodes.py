"""Quadrature of a reference alone, as fits to samples need it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem._quadrature import gauss_kronrod, gauss_legendre, nodes_per_panel
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.energy import Energy, UnitGridEnergy
from numpyro_kaem.numerics.density import integrand
from numpyro_kaem.numerics.panels import Panels, make_panels
from numpyro_kaem.references import ReferenceParameters, with_rank

__all__ = ["Cells", "Nodes", "make_cell_nodes", "make_nodes"]

# The nodes are padded to a multiple of this: a compiled fit serves many data sets.
_PADDING = 256


class Nodes(NamedTuple):
    """Quadrature of a reference, tails included; the batch is flattened to columns.

    Unit positions and log masses, minus infinity where there is none, of the Gauss
    rule, and to check it of the Kronrod rule on the same panels. Each has the shape
    ``(num_columns or 1, num_nodes)``.
    """

    position: jax.Array
    log_mass: jax.Array
    finer_position: jax.Array
    finer_log_mass: jax.Array


class Cells(NamedTuple):
    """Samples of which only intervals are known: each a run of panels of the nodes.

    The first panel of each cell, and one after the last, the same where there is no
    cell; the weights of its samples, which with those of exact samples sum to 1. Each
    has the shape ``(num_columns, num_cells)``.
    """

    first: jax.Array
    last: jax.Array
    shares: jax.Array


def make_nodes(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    batch_shape: tuple[int, ...],
    dtype: Any,
    refinement: int = 1,
) -> Nodes:
    """Quadrature of the reference on the panels of a prior, tails as two more."""
    flat = Energy(basis, jnp.zeros(basis.num_features, dtype))
    panels = make_panels(flat, parameters, refinement)
    return _make_nodes(flat.on_unit_grid, parameters, panels, batch_shape)


def make_cell_nodes(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    low: np.ndarray,
    high: np.ndarray,
    shares: np.ndarray,
    ends: tuple,
    refinement: int = 1,
) -> tuple[Nodes, Cells, np.ndarray]:
    """Quadrature on panels that end at the cells of samples; the cells.

    The ends of the cells, equal for exact samples, have the shape ``(n, *batch_shape)``
    and the weights one that broadcasts to it; ``ends`` are those of the support. Each
    panel of the nodes, and each tail, is a run. Also says which samples have no cell,
    shape ``(n, num_columns)``: one beyond the grid is exact, because the energy is
    constant there.
    """
    batch_shape, num_columns = low.shape[1:], low[0].size
    dtype = jnp.zeros(()).dtype
    flat = Energy(basis, jnp.zeros(basis.num_features, dtype))
    panels = make_panels(flat, parameters, refinement)

    def columns(array: Any) -> np.ndarray:
        array = np.asarray(array, float)
        array = with_rank(array, len(batch_shape))
        shape = (len(array), *batch_shape)
        return np.broadcast_to(array, shape).reshape(len(array), num_columns)

    edges, below, above = columns(panels.edges), columns(low), columns(high)
    weights = columns(np.broadcast_to(shares, low.shape))
    grid = [columns(np.asarray(end)[None])[0] for end in (basis.low, basis.high)]
    bounds = [columns(np.asarray(end)[None])[0] for end in ends[:2]]
    inside = (below < above) & (below < grid[1]) & (above > grid[0])
    cells, all_edges = [], []
    for i in range(num_columns):
        rows = inside[:, i]
        pairs = np.stack([below[rows, i], above[rows, i]], axis=1)
        pairs, place = np.unique(pairs, axis=0, return_inverse=True)
        counts = np.bincount(place.reshape(-1), weights[rows, i], len(pairs))
        # The last piece before an end of the support may be counted as a tail.
        new = np.unique(pairs[(pairs > bounds[0][i]) & (pairs < bounds[1][i])])
        merged = _merged(edges[:, i], new, 1e-6 * (grid[1][i] - grid[0][i]))
        middle = 0.5 * (merged[1:] + merged[:-1])
        first, last = (np.searchsorted(middle, end) + 1 for end in pairs.T)
        first[pairs[:, 0] <= bounds[0][i]] = 0
        cells.append((first, last, counts, pairs[:, 1] >= bounds[1][i]))
        all_edges.append(merged)
    # Powers of two, so that a compiled fit serves many data sets. Two are tails.
    num_panels = _power_of_two(max(map(len, all_edges)) + 1)
    num_cells = _power_of_two(max(len(cell[0]) for cell in cells))
    merged = np.stack(
        [np.pad(e, (0, num_panels - 1 - len(e)), mode="edge") for e in all_edges], 1
    )
    table = np.zeros((3, num_columns, num_cells))
    for i, (first, last, counts, to_end) in enumerate(cells):
        table[:, i, : len(first)] = first, np.where(to_end, num_panels, last), counts
    first, last = (jnp.asarray(part, jnp.int32) for part in table[:2])
    stacked = jnp.asarray(merged.reshape(-1, *batch_shape), dtype)
    panels = Panels(stacked, None, panels.has_tails)
    nodes = _make_nodes(flat.on_unit_grid, parameters, panels, batch_shape)
    return nodes, Cells(first, last, jnp.asarray(table[2], dtype)), ~inside


def _merged(edges: np.ndarray, new: np.ndarray, least: float) -> np.ndarray:
    """Add edges that are not nearly there."""
    new = new[np.diff(new, prepend=-np.inf) > least]
    place = np.clip(np.searchsorted(edges, new), 1, len(edges) - 1)
    near = np.minimum(np.abs(new - edges[place - 1]), np.abs(new - edges[place]))
    return np.unique(np.concatenate([edges, new[near > least]]))


def _power_of_two(count: int) -> int:
    return max(32, 1 << (count - 1).bit_length())


@partial(jax.jit, static_argnames="batch_shape")
def _make_nodes(
    flat: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    batch_shape: tuple[int, ...],
) -> Nodes:
    num_nodes = nodes_per_panel(flat.dtype)
    parts = []
    for rule in (gauss_legendre(num_nodes), gauss_kronrod(num_nodes)):
        positions, masses = _with_tails(flat, parameters, panels, rule)
        parts.append(_columns(positions, batch_shape, 0.0))
        parts.append(_columns(masses, batch_shape, -jnp.inf))
    return Nodes(*parts)


def _with_tails(
    flat: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    rule: tuple[np.ndarray, np.ndarray],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """List unit positions and log masses of panels; the first and last are the tails.

    A tail has all its mass at one node.
    """
    dtype = flat.dtype
    values = integrand(flat, parameters, panels, rule)
    if panels.unit_edges is not None:
        # The positions are those of all columns.
        edges = np.asarray(panels.unit_edges)
        inner = edges[:-1, None] + np.diff(edges)[:, None] * (rule[0] + 1) / 2
        positions = [jnp.asarray(inner.reshape(-1), dtype)]
        ends = jnp.asarray(edges[[0, -1]], dtype)
    else:
        inner = flat.to_unit(values.nodes)
        positions = [inner.reshape(-1, *inner.shape[2:])]
        ends = flat.to_unit(panels.edges[jnp.asarray([0, -1])])
    masses = [values.log_mass.reshape(-1, *values.log_mass.shape[2:])]
    shape, count = masses[0].shape[1:], len(rule[0])
    for side, tail in enumerate(values.log_tails):
        end = jnp.broadcast_to(ends[side], (count, *positions[0].shape[1:]))
        mass = jnp.full((count, *shape), -jnp.inf, dtype)
        mass = mass if tail is None else mass.at[0].set(tail)
        positions.insert(side * 2, end)
        masses.insert(side * 2, mass)
    return positions, masses


def _columns(
    parts: list[jax.Array], batch_shape: tuple[int, ...], fill: float
) -> jax.Array:
    """Join along the first axis; one row per column, or one if they are all alike."""
    joined = jnp.concatenate(parts)
    if joined[0].size == 1:
        rows = joined.reshape(1, -1)
    else:
        joined = with_rank(joined, len(batch_shape))
        rows = jnp.broadcast_to(joined, (joined.shape[0], *batch_shape))
        rows = rows.reshape(rows.shape[0], -1).T
    missing = -rows.shape[1] % _PADDING
    return jnp.pad(rows, ((0, 0), (0, missing)), constant_values=fill)
