"""Quadrature of a reference law on the grid of a basis, tails included."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.energy import Energy
from numpyro_kaem.panels import Panels, integrand, make_panels
from numpyro_kaem.placed_energy import PlacedEnergy
from numpyro_kaem.quadrature import gauss_legendre, nodes_per_panel
from numpyro_kaem.references import ReferenceParameters

__all__ = ["Nodes", "make_nodes"]

# The nodes are padded to a multiple of this: a compiled fit serves many data sets.
_PADDING = 256


class Nodes(NamedTuple):
    """Quadrature of the reference law, tails included, columns flattened."""

    position: jax.Array
    """Unit positions, shape ``(num_columns or 1, num_nodes)``."""
    log_mass: jax.Array
    """Log masses, minus infinity where there is none, the same shape."""


def make_nodes(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    batch_shape: tuple[int, ...],
    dtype: Any,
) -> Nodes:
    """Quadrature of the reference on the panels of a prior, tails as two nodes."""
    flat = Energy(basis, jnp.zeros(basis.num_features, dtype))
    panels = make_panels(flat, parameters, 1)
    return _make_nodes(flat.placed, parameters, panels, batch_shape)


@partial(jax.jit, static_argnames="batch_shape")
def _make_nodes(
    flat: PlacedEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    batch_shape: tuple[int, ...],
) -> Nodes:
    dtype = flat.dtype
    values = integrand(flat, parameters, panels)
    if panels.unit_edges is not None:
        # The positions are those of all columns.
        edges = np.asarray(panels.unit_edges)
        x, _ = gauss_legendre(nodes_per_panel(dtype))
        inner = edges[:-1, None] + np.diff(edges)[:, None] * (x + 1) / 2
        positions = [jnp.asarray(inner.reshape(-1), dtype)]
        ends = jnp.asarray(edges[[0, -1]], dtype)
    else:
        inner = flat.to_unit(values.nodes)
        positions = [inner.reshape(-1, *inner.shape[2:])]
        ends = flat.to_unit(panels.edges[jnp.asarray([0, -1])])
    masses = [values.log_mass.reshape(-1, *values.log_mass.shape[2:])]
    for side, tail in enumerate(values.log_tails):
        if tail is not None:
            positions.append(ends[side][None])
            masses.append(tail[None])
    return Nodes(
        _columns(positions, batch_shape, 0.0), _columns(masses, batch_shape, -jnp.inf)
    )


def _columns(
    parts: list[jax.Array], batch_shape: tuple[int, ...], fill: float
) -> jax.Array:
    """Join along the first axis; one row a column, or one row if they are all alike."""
    joined = jnp.concatenate(parts)
    if joined[0].size == 1:
        rows = joined.reshape(1, -1)
    else:
        rank = len(batch_shape) - joined.ndim + 1
        joined = joined.reshape(-1, *(1,) * rank, *joined.shape[1:])
        rows = jnp.broadcast_to(joined, (joined.shape[0], *batch_shape))
        rows = rows.reshape(rows.shape[0], -1).T
    missing = -rows.shape[1] % _PADDING
    return jnp.pad(rows, ((0, 0), (0, missing)), constant_values=fill)
