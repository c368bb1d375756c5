"""Chains of conditional densities, each given the coordinates before its own."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem.bases import AbstractBasis, on_unit_grid
from numpyro_kaem.energy import Energy, UnitGridEnergy
from numpyro_kaem.numerics import density
from numpyro_kaem.numerics.cells import tabulate, tabulate_at
from numpyro_kaem.numerics.inverse import cdf_pair, icdf_of_tail, inside
from numpyro_kaem.numerics.panels import Panels, make_panels
from numpyro_kaem.references import ReferenceParameters, support_bounds

__all__ = ["Chain", "from_unit", "log_prob", "make_chain", "positions", "to_unit"]

# Densities at a time: every dimension of every point has a table of its own.
_CHUNK = 8192


class Chain(NamedTuple):
    """What the conditional densities of all dimensions share."""

    conditioner: Callable[[jax.Array], jax.Array]
    """Coefficients of each dimension from positions in [-1, 1] of those before."""
    basis: AbstractBasis
    """Features on the unit grid."""
    parameters: ReferenceParameters | None
    """Of the reference: leaves of shape ``(dim,)``, or of one distribution for all
    dimensions if its arrays have axes of their own."""
    panels: Panels
    """Panels of every dimension, or the same ones for all."""
    ends: tuple[jax.Array, jax.Array]
    """Ends of the grids, each ``(dim,)``."""
    bounds: tuple[jax.Array, jax.Array]
    """Ends of the supports, each ``(dim,)``."""


def make_chain(
    basis: AbstractBasis,
    conditioner: Any,
    parameters: ReferenceParameters | None,
    refinement: int,
    dtype: Any,
) -> Chain:
    """Gather the static parts; panels are those of the reference itself."""
    dim = conditioner.dim
    flat = Energy(basis, jnp.zeros((dim, basis.num_features), dtype))
    panels = make_panels(flat, parameters, refinement)
    low, high = (jnp.broadcast_to(end, (dim,)) for end in basis.ends(dtype))
    bounds = ends = low, high
    if parameters is not None:
        low, high = (
            jnp.broadcast_to(jnp.asarray(bound, dtype), (dim,))
            for bound in support_bounds(parameters.build())
        )
        bounds = low, high
        if parameters.is_elementwise:
            parameters = jax.tree_util.tree_map(
                lambda leaf: jnp.broadcast_to(leaf, (dim,)), parameters
            )
    return Chain(conditioner, on_unit_grid(basis), parameters, panels, ends, bounds)


def positions(chain: Chain, z: jax.Array) -> jax.Array:
    """Positions of points in the grids, from -1 to 1, as the network takes them."""
    low, high = (end.astype(z.dtype) for end in chain.ends)
    return 2 * jnp.clip((z - low) / (high - low), 0, 1) - 1


def _energies(chain: Chain, z: jax.Array) -> UnitGridEnergy:
    """Energies of all dimensions, of batch shape (..., dim)."""
    coefficients = chain.conditioner(positions(chain, z))
    return UnitGridEnergy(chain.basis, coefficients, None, "silu", *chain.ends)


def _in_chunks(function: Callable, *points: jax.Array) -> Any:
    """Apply to points of shape (..., dim), a limited number at a time."""
    shape = points[0].shape[:-1]
    size = int(np.prod(shape, dtype=np.int64))
    chunk = max(1, _CHUNK // points[0].shape[-1])
    if size <= chunk:
        return function(*points)
    flat = tuple(point.reshape(size, -1) for point in points)
    values = jax.lax.map(lambda args: function(*args), flat, batch_size=chunk)
    return jax.tree_util.tree_map(
        lambda value: value.reshape(*shape, *value.shape[1:]), values
    )


# --- density and distribution function: all dimensions at once -----------------------


@jax.jit
def log_prob(chain: Chain, z: jax.Array) -> jax.Array:
    """Log density: (..., dim) -> (...,)."""

    def of(z: jax.Array) -> jax.Array:
        energies = _energies(chain, z)
        normalizer = density.log_normalizer(energies, chain.parameters, chain.panels)
        values = density.log_prob(energies, chain.parameters, normalizer, z)
        return jnp.sum(values, axis=-1)

    return _in_chunks(of, z)


@jax.jit
def to_unit(chain: Chain, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Masses below and above each coordinate given those before, each (..., dim)."""

    def of(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        energies = _energies(chain, z)
        table = tabulate(energies, chain.parameters, chain.panels)
        return cdf_pair(table, energies, chain.parameters, z)

    return _in_chunks(of, z)


# --- its inverse: one dimension after the other --------------------------------------


@partial(jax.jit, static_argnames="is_draw")
def from_unit(
    chain: Chain, mass: jax.Array, upper: jax.Array, is_draw: bool
) -> jax.Array:
    """Points with given masses, at most 1/2, below (or above) their coordinates.

    All of shape (..., dim). A draw is moved off the ends of the support.
    """
    return _in_chunks(partial(_from_unit, chain, is_draw), mass, upper)


def _from_unit(
    chain: Chain, is_draw: bool, mass: jax.Array, upper: jax.Array
) -> jax.Array:
    dim = mass.shape[-1]
    own_panels = chain.panels.edges.ndim > 1
    shared = chain.parameters is None or not chain.parameters.is_elementwise

    def step(z: jax.Array, column: tuple) -> tuple[jax.Array, None]:
        index, mass, upper, own, (low, high), bounds, edges = column
        parameters = chain.parameters if shared else own
        coefficients = chain.conditioner(positions(chain, z))
        coefficients = jax.lax.dynamic_index_in_dim(
            coefficients, index, axis=-2, keepdims=False
        )
        energy = UnitGridEnergy(chain.basis, coefficients, None, "silu", low, high)
        panels = chain.panels
        if own_panels:
            panels = Panels(edges, panels.unit_edges, panels.has_tails)
        table = tabulate_at(energy, parameters, panels, mass, upper)
        value = icdf_of_tail(table, parameters, mass, upper)
        if is_draw:
            value = inside(value, bounds)
        else:
            # Exact ends, which the transport of 0 and 1 reaches.
            least, most = bounds
            end = jnp.where(upper, most, least)
            value = jnp.where(mass == 0, end, value)
        return jnp.where(jnp.arange(dim) == index, value[..., None], z), None

    columns = (
        jnp.arange(dim),
        jnp.moveaxis(mass, -1, 0),
        jnp.moveaxis(upper, -1, 0),
        jnp.zeros(dim) if shared else chain.parameters,
        chain.ends,
        chain.bounds,
        jnp.moveaxis(chain.panels.edges, -1, 0) if own_panels else jnp.zeros(dim),
    )
    # Coordinates not yet drawn have no effect; the start is a point of the grid.
    start = jnp.broadcast_to(chain.ends[0], mass.shape).astype(mass.dtype)
    return jax.lax.scan(step, start, columns)[0]
