"""The density and the distribution function of a tilted density at points."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from numpyro_kaem.energy import PlacedEnergy
from numpyro_kaem.numerics.cells import Table, evaluate, find_interval, row_index
from numpyro_kaem.references import (
    ReferenceParameters,
    log_density,
    scaled_tail_mass,
)

__all__ = ["all_zero", "cdf_pair", "instantiate", "is_symbolic", "log_prob", "masses"]


def log_prob(
    energy: PlacedEnergy,
    parameters: ReferenceParameters | None,
    log_normalizer: jax.Array,
    z: jax.Array,
) -> jax.Array:
    """Log density at ``z``: (..., *batch_shape) -> (..., *batch_shape)."""
    if parameters is None:
        low, high = energy.ends(z.dtype)
        log_reference = jnp.where(
            (z >= low) & (z <= high), -jnp.log(high - low), -jnp.inf
        )
    else:
        log_reference = log_density(parameters.build(), z)
    value = energy(z) + log_reference - log_normalizer
    # Not minus infinity, as beyond the support.
    return jnp.where(jnp.isnan(z), z, value)


@jax.custom_jvp
def cdf_pair(
    table: Table,
    energy: PlacedEnergy,
    parameters: ReferenceParameters | None,
    z: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Masses below and above ``z``: (..., *batch_shape), each to its own precision."""
    return masses(table, parameters, z)


@partial(cdf_pair.defjvp, symbolic_zeros=True)
def _cdf_pair_jvp(primals: tuple, tangents: tuple) -> tuple:
    table, energy, parameters, z = primals
    table_dot, _, parameters_dot, z_dot = tangents
    below, above = cdf_pair(table, energy, parameters, z)
    below_dot, above_dot = jnp.zeros_like(below), jnp.zeros_like(above)
    if not is_symbolic(z_dot):
        density = jnp.exp(log_prob(energy, parameters, table.log_normalizer, z))
        below_dot += density * z_dot
        above_dot -= density * z_dot
    if not all_zero((table_dot, parameters_dot)):
        change = _pair_change(table, parameters, z, table_dot, parameters_dot)
        below_dot += change[0]
        above_dot += change[1]
    return (below, above), (below_dot, above_dot)


def _pair_change(
    table: Table, parameters: Any, z: jax.Array, table_dot: Table, parameters_dot: Any
) -> tuple[jax.Array, jax.Array]:
    """Change of both masses at fixed points with the parameters of the density."""
    primal = (table, parameters)
    tangent = instantiate(primal, (table_dot, parameters_dot))
    return jax.jvp(
        lambda table, parameters: masses(table, parameters, z), primal, tangent
    )[1]


def masses(
    table: Table, parameters: ReferenceParameters | None, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Masses below and above ``z``, differentiated as the formula that they are."""
    batch_shape = table.log_normalizer.shape
    shape = jnp.broadcast_shapes(z.shape, batch_shape)
    z = jnp.broadcast_to(z, shape)
    size = int(np.prod(batch_shape, dtype=np.int64))
    row = jnp.broadcast_to(row_index(batch_shape), shape)
    num_cells = table.powers.shape[-1]
    edges = jax.lax.stop_gradient(table.edges).reshape(size, num_cells + 1)
    cell = find_interval(edges, z, row, num_cells)
    # Gathered together, since their derivatives are scattered together.
    lefts, rights = table.edges[..., :-1], table.edges[..., 1:]
    fields = [table.below[..., :-1], table.above[..., 1:], lefts, rights]
    fields = jnp.concatenate([table.powers, jnp.stack(fields)])
    fields = fields.reshape(fields.shape[0], size * num_cells)
    chosen = fields.at[:, row * num_cells + cell].get(mode="promise_in_bounds")
    powers = list(chosen[:-4])
    below, above, left, right = chosen[-4:]
    width = right - left
    positive = width > 0
    s = (z - left) / jnp.where(positive, width, 1)
    # Plain comparisons, whose gradient inside the cell is exactly one.
    s = jnp.where(s > 1, 1, jnp.where(s < 0, 0, s))
    part, total = evaluate(powers, s), sum(powers)
    # Exact at both edges: outside the support no mass is left.
    part = jnp.where(positive, jnp.where(s < 1, part, total), 0)
    below = below + part
    above = above + (total - part)
    for side, is_upper in enumerate((False, True)):
        log_scale = table.log_tail_scales[side]
        if log_scale is None:
            continue
        edge = table.edges[..., -1 if is_upper else 0]
        in_tail = (z > edge) if is_upper else (z < edge)
        point = jnp.where(in_tail, z, edge)
        mass = scaled_tail_mass(parameters, point, is_upper, log_scale)
        below = jnp.where(in_tail, 1 - mass if is_upper else mass, below)
        above = jnp.where(in_tail, mass if is_upper else 1 - mass, above)
    below, above = jnp.clip(below, 0, 1), jnp.clip(above, 0, 1)
    # The larger one from the smaller: at an end of the support it is exactly 1.
    is_low = below < above
    below, above = (
        jnp.where(is_low, below, 1 - above),
        jnp.where(is_low, 1 - below, above),
    )
    return jnp.where(jnp.isnan(z), z, below), jnp.where(jnp.isnan(z), z, above)


def is_symbolic(leaf: Any) -> bool:
    """Whether a tangent is a symbol for zeros."""
    return isinstance(leaf, SymbolicZero)


def all_zero(tree: Any) -> bool:
    """Whether all tangents are."""
    return all(map(is_symbolic, jax.tree_util.tree_leaves(tree, is_leaf=is_symbolic)))


def instantiate(primals: Any, tangents: Any) -> Any:
    """Tangents with zeros in the place of symbols."""
    return jax.tree_util.tree_map(
        lambda x, dot: jnp.zeros_like(x) if is_symbolic(dot) else dot,
        primals,
        tangents,
    )
