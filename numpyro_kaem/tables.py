"""Tables of tilted densities, from which they are inverted."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_kaem.intervals import folded_keys, folded_place
from numpyro_kaem.panels import Integrand, Panels, integrand
from numpyro_kaem.placed_energy import PlacedEnergy
from numpyro_kaem.references import ReferenceParameters
from numpyro_kaem.series import (
    CELLS_PER_PANEL,
    cell_polynomials,
    interpolate_cells,
)

__all__ = ["Table", "row_index", "tabulate", "tabulate_at", "tabulate_integrand"]


class Table(NamedTuple):
    """What the distribution function and its inverse need of a density.

    Every panel is cut into cells. On a cell the distribution function is a polynomial:
    the integral of the series through the density's values at the Gauss nodes of the
    panel. The cells of one density lie side by side in memory.
    """

    log_normalizer: jax.Array
    """Log of the total mass before normalisation, shape ``(*batch_shape,)``."""
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
    """Log ratios of the density to the reference below and above the cells, each
    ``(*batch_shape,)``; ``None`` where there is no tail."""
    log_scale: jax.Array | None = None
    """Log ratio of the density to the reference (of none, the density) within a cell,
    in powers 0, 1, ... of the position, of the shape of ``powers``."""


def tabulate(
    energy: PlacedEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> Table:
    """Make the table of a density, once a parameter value."""
    values = integrand(energy, parameters, panels)
    table = tabulate_integrand(values, panels)
    log_scale = interpolate_cells(_log_scale(values, energy, parameters))
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
    energy: PlacedEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    mass: jax.Array,
    upper: jax.Array,
) -> Table:
    """Make the part of a table that one point of each density needs.

    Parameters
    ----------
    energy, parameters, panels
        Of the densities, ``batch_shape``.
    mass
        Mass below the point, or above it where ``upper``, shape ``batch_shape``; of
        the nearer end.
    upper
        Which of the two, the same shape.

    Returns
    -------
    Table
        With the cells of the panel that holds the point, and one empty cell in place of
        all panels on either side. It inverts this mass only.
    """
    values = integrand(energy, parameters, panels)
    weighted, tails, scales = _normalised(values, panels)
    below, above = _cumulative(jnp.sum(weighted, axis=1), tails)
    edges = _of_all(panels.edges, values)
    inner_keys = folded_keys(below, above)[1:-1]
    panel = jnp.sum(folded_place(mass, upper) >= inner_keys, axis=0, dtype=jnp.int32)

    def at(array: jax.Array, index: jax.Array) -> jax.Array:
        index = index.reshape((1,) * (array.ndim - index.ndim) + index.shape)
        return jnp.take_along_axis(array, index, axis=0, mode="promise_in_bounds")

    powers, masses = cell_polynomials(at(weighted, panel))
    log_scale = interpolate_cells(at(_log_scale(values, energy, parameters), panel))
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
    # The log of a large normaliser is rounded: divided again, all masses sum to 1.
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
    values: Integrand, energy: PlacedEnergy, parameters: ReferenceParameters | None
) -> jax.Array:
    """Log ratio of density and reference (of none, the density) at the nodes."""
    shift = values.log_normalizer
    if parameters is None:
        low, high = energy.ends(shift.dtype)
        shift = shift + jnp.log(high - low)
    return jnp.broadcast_to(values.energy, values.log_mass.shape) - shift


def _of_all(edges: jax.Array, values: Integrand) -> jax.Array:
    """Edges of every density, shape ``(num_edges, *batch_shape)``."""
    shape = values.log_normalizer.shape
    edges = edges.astype(values.log_mass.dtype)
    edges = edges.reshape(-1, *(1,) * (len(shape) - edges.ndim + 1), *edges.shape[1:])
    return jnp.broadcast_to(edges, (edges.shape[0], *shape))


def _cell_edges(edges: jax.Array) -> jax.Array:
    """Edges of equal cells, among which those of the panels are unchanged."""
    parts = jnp.arange(CELLS_PER_PANEL).astype(edges.dtype) / CELLS_PER_PANEL
    parts = parts.reshape(-1, *(1,) * (edges.ndim - 1))
    inner = edges[:-1, None] + parts * jnp.diff(edges, axis=0)[:, None]
    # Counted, not inferred: an empty batch leaves nothing to infer from.
    inner = inner.reshape(parts.shape[0] * inner.shape[0], *edges.shape[1:])
    return jnp.concatenate([inner, edges[-1:]])


def row_index(batch_shape: tuple[int, ...]) -> jax.Array:
    """Give each density of a batch its number in the flattened batch."""
    size = math.prod(batch_shape)
    return jnp.arange(size, dtype=jnp.int32).reshape(batch_shape)
