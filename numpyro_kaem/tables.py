"""Tables of tilted densities, from which they are inverted."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_kaem.panels import Integrand, Panels, integrand
from numpyro_kaem.placed_energy import PlacedEnergy
from numpyro_kaem.references import ReferenceParameters
from numpyro_kaem.series import (
    CELLS_PER_PANEL,
    cell_polynomials,
    interpolate_cells,
)

__all__ = ["Table", "row_index", "tabulate", "tabulate_integrand"]


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
    shift = table.log_normalizer
    if parameters is None:
        low, high = energy.ends(shift.dtype)
        shift = shift + jnp.log(high - low)
    energies = jnp.broadcast_to(values.energy, values.log_mass.shape)
    log_scale = jnp.moveaxis(interpolate_cells(energies - shift), 1, -1)
    return table._replace(log_scale=log_scale)


def tabulate_integrand(values: Integrand, panels: Panels) -> Table:
    """Make the table of a density from its values on the panels."""
    dtype = values.log_mass.dtype
    log_normalizer = values.log_normalizer
    weighted = jnp.exp(values.log_mass - log_normalizer)
    tails = [
        jnp.zeros_like(log_normalizer) if t is None else jnp.exp(t - log_normalizer)
        for t in values.log_tails
    ]
    # The log of a large normaliser is rounded: divided again, all masses sum to 1.
    total = jnp.sum(weighted, axis=(0, 1)) + sum(tails)
    weighted, tails = weighted / total, [tail / total for tail in tails]
    powers, masses = cell_polynomials(weighted)
    below = jnp.cumsum(jnp.concatenate([tails[0][None], masses]), axis=0)
    above = jnp.cumsum(jnp.concatenate([tails[1][None], masses[::-1]]), axis=0)[::-1]
    shape = log_normalizer.shape
    edges = _cell_edges(panels.edges.astype(dtype))
    edges = edges.reshape(-1, *(1,) * (len(shape) - edges.ndim + 1), *edges.shape[1:])
    scales = tuple(
        end - log_normalizer - jnp.log(total) if has else None
        for end, has in zip(values.energy_ends, panels.has_tails, strict=True)
    )
    edges = jnp.broadcast_to(edges, (edges.shape[0], *shape))
    powers = jnp.moveaxis(powers, 1, -1)
    below, above, edges = (jnp.moveaxis(a, 0, -1) for a in (below, above, edges))
    return Table(log_normalizer, powers, below, above, edges, scales)


def _cell_edges(edges: jax.Array) -> jax.Array:
    """Edges of equal cells, among which those of the panels are unchanged."""
    parts = jnp.arange(CELLS_PER_PANEL, dtype=edges.dtype) / CELLS_PER_PANEL
    parts = parts.reshape(-1, *(1,) * (edges.ndim - 1))
    inner = edges[:-1, None] + parts * jnp.diff(edges, axis=0)[:, None]
    return jnp.concatenate([inner.reshape(-1, *edges.shape[1:]), edges[-1:]])


def row_index(batch_shape: tuple[int, ...]) -> jax.Array:
    """Give each density of a batch its number in the flattened batch."""
    size = math.prod(batch_shape)
    return jnp.arange(size, dtype=jnp.int32).reshape(batch_shape)
