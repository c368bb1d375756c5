"""Distribution functions of tilted densities and their inverses."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from numpyro_kaem.energy import PlacedEnergy
from numpyro_kaem.numerics.cells import (
    Table,
    evaluate,
    find_interval,
    find_interval_in_rows,
    folded_keys,
    folded_place,
    row_index,
    solve_cell,
)
from numpyro_kaem.references import (
    PowerTail,
    ReferenceParameters,
    log_density,
    power_quantile,
    power_tail,
    scaled_tail_mass,
    tail_mass,
    tail_quantile,
)

__all__ = [
    "all_zero",
    "cdf_pair",
    "icdf_folded",
    "icdf_of_rows",
    "instantiate",
    "is_symbolic",
    "log_prob",
    "masses",
    "select_rows",
]


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


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    """Entries of the flattened array."""
    return array.reshape(-1).at[index].get(mode="promise_in_bounds")


def select_rows(
    table: Table,
    parameters: ReferenceParameters | None,
    row: jax.Array,
    mass: jax.Array,
    upper: jax.Array,
) -> jax.Array:
    """Points with a given mass below (or above) them, one chosen density a point.

    Parameters
    ----------
    table, parameters
        Of the densities, ``batch_shape``.
    row
        Index of the density in the flattened batch, shape (...,).
    mass
        Mass below the point, or above it where ``upper``, shape (...,); of the nearer
        end, so that both tails are resolved alike.
    upper
        Which of the two, shape (...,).

    Returns
    -------
    Array
        Points, shape (...,).
    """
    num_cells = table.powers.shape[-1]
    keys = folded_keys(table.below, table.above).reshape(-1, num_cells + 1)
    cell = find_interval(keys, folded_place(mass, upper), row, num_cells)
    return _point_in_cell(table, parameters, row, cell, mass, upper)


def _at_left_edge(
    table: Table, row: jax.Array, cell: jax.Array, upper: jax.Array
) -> jax.Array:
    """Mass below the left edge of a cell, or above it where ``upper``."""
    sides = jnp.stack([table.below, table.above])
    num_rows, num_edges = table.log_normalizer.size, table.below.shape[-1]
    side = row + jnp.where(upper, num_rows, 0).astype(jnp.int32)
    return _take(sides, side * num_edges + cell)


def _point_in_cell(
    table: Table,
    parameters: ReferenceParameters | None,
    row: jax.Array,
    cell: jax.Array,
    mass: jax.Array,
    upper: jax.Array,
) -> jax.Array:
    """Point with a given mass below or above it, in a known cell or in a tail."""
    at_left = _at_left_edge(table, row, cell, upper)
    target = jnp.where(upper, at_left - mass, mass - at_left)
    index = row * table.powers.shape[-1] + cell
    s = solve_cell([_take(power, index) for power in table.powers], target)
    left, width = table.edges[..., :-1], jnp.diff(table.edges)
    z = _take(left, index) + _take(width, index) * s
    for is_upper in (False, True):
        log_scale = table.log_tail_scales[is_upper]
        if log_scale is None:
            continue
        start = _take(table.edges[..., -is_upper], row)
        scale = jnp.exp(_take(log_scale, row))
        # A point below may lie in the tail above, if that has most of the mass.
        beyond = jnp.where(upper == is_upper, mass, 1 - mass)
        in_tail = _in_tail(table, row, mass, upper, is_upper)
        share = jnp.where(in_tail, beyond / jnp.where(scale > 0, scale, 1), 1)
        point = _tail_point(table, parameters, row, share, start, is_upper)
        z = jnp.where(in_tail, point, z)
    return z


def _tail_point(
    table: Table,
    parameters: ReferenceParameters,
    row: jax.Array,
    mass: jax.Array,
    start: jax.Array,
    upper: bool,
) -> jax.Array:
    """Point of a tail of the reference of a chosen density."""
    shape = table.log_normalizer.shape
    if parameters.is_elementwise:
        chosen = _parameters_at(parameters, shape, row)
        return tail_quantile(chosen, mass, start, upper)
    # Arrays with axes of their own: the tail once a density, chosen by its numbers.
    tail = power_tail(parameters, table.edges[..., -upper], upper)
    tail = PowerTail(*(_take(jnp.broadcast_to(part, shape), row) for part in tail))
    return power_quantile(tail, mass, upper)


def _in_tail(
    table: Table, row: jax.Array, mass: jax.Array, upper: jax.Array, is_upper: bool
) -> jax.Array:
    """Whether the point lies below the cells, or above them if ``is_upper``."""
    tail = table.above[..., -1] if is_upper else table.below[..., 0]
    beyond = jnp.where(upper == is_upper, mass, 1 - mass)
    return beyond < _take(tail, row)


def _parameters_at(
    parameters: ReferenceParameters, batch_shape: tuple[int, ...], row: jax.Array
) -> ReferenceParameters:
    """Parameters of the chosen densities; those without a batch shape are shared."""

    def take(leaf: Any) -> Any:
        if np.ndim(leaf) == 0:
            return leaf
        leaf = jnp.broadcast_to(leaf, batch_shape).reshape(-1)
        return leaf.at[row].get(mode="promise_in_bounds")

    return jax.tree_util.tree_map(take, parameters)


def _of_rows(
    function: Callable[[ReferenceParameters, jax.Array], jax.Array],
    parameters: ReferenceParameters,
    batch_shape: tuple[int, ...],
    z: jax.Array,
) -> jax.Array:
    """Evaluate a function of the reference of every row at its points.

    These have the shape ``(num_rows, num_points)``, as has the result.
    """
    if parameters.is_elementwise:
        # Of one row each, which broadcasts over its points.
        row = row_index((z.shape[0], 1))
        return function(_parameters_at(parameters, batch_shape, row), z)
    points = z.T.reshape(z.shape[1], *batch_shape)
    return function(parameters, points).reshape(z.T.shape).T


def icdf_folded(
    table: Table,
    parameters: ReferenceParameters | None,
    mass: jax.Array,
    upper: jax.Array,
) -> jax.Array:
    r"""Inverse of the distribution function, from the nearer end.

    Its derivatives are implicit: with :math:`z = F^{-1}(u; \theta)`,

    .. math:: \mathrm{d}z = \frac{\mathrm{d}u - \partial_\theta F(z; \theta)\,
              \mathrm{d}\theta}{\pi(z; \theta)}.

    Parameters
    ----------
    table, parameters
        The density, of ``batch_shape``; the dependence on parameters is the table's.
    mass
        Mass below the point, or above it where ``upper``, shape (..., *batch_shape).
    upper
        Which of the two, the same shape.

    Returns
    -------
    Array
        Points, shape (..., *batch_shape).
    """
    batch_shape = table.log_normalizer.shape
    shape = jnp.broadcast_shapes(mass.shape, upper.shape, batch_shape)
    rank = len(shape) - len(batch_shape)
    mass, upper = (jnp.broadcast_to(a, shape) for a in (mass, upper))
    mass, upper = (jnp.moveaxis(a, range(rank), range(-rank, 0)) for a in (mass, upper))
    z = icdf_of_rows(table, parameters, mass, upper)
    z = jnp.where(jnp.isnan(mass), mass, z)
    return jnp.moveaxis(z, range(-rank, 0), range(rank))


def icdf_of_rows(
    table: Table,
    parameters: ReferenceParameters | None,
    mass: jax.Array,
    upper: jax.Array,
) -> jax.Array:
    """Do as :func:`icdf_folded`, with arrays of shape ``(*batch_shape, ...)``.

    All points of a density lie one after another: its table stays in the fastest cache.
    """
    rows = (
        table.log_normalizer.size,
        math.prod(mass.shape[table.log_normalizer.ndim :]),
    )
    z, _ = _invert(table, parameters, mass.reshape(rows), upper.reshape(rows))
    return z.reshape(mass.shape)


@jax.custom_jvp
def _invert(
    table: Table,
    parameters: ReferenceParameters | None,
    mass: jax.Array,
    upper: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Points and their cells; all arrays of shape ``(num_rows, num_points)``."""
    size, num_cells = table.log_normalizer.size, table.powers.shape[-1]
    keys = folded_keys(table.below, table.above).reshape(size, num_cells + 1)
    cell = find_interval_in_rows(keys, folded_place(mass, upper), num_cells)
    row = jnp.broadcast_to(row_index((size, 1)), mass.shape)
    return _point_in_cell(table, parameters, row, cell, mass, upper), cell


@partial(_invert.defjvp, symbolic_zeros=True)
def _invert_jvp(primals: tuple, tangents: tuple) -> tuple:
    table, parameters, mass, upper = primals
    table_dot, _, mass_dot, _ = tangents
    z, cell = _invert(*primals)
    row = jnp.broadcast_to(row_index((z.shape[0], 1)), z.shape)
    index = row * table.powers.shape[-1] + cell
    # The position again, but as a function of the point, for second derivatives.
    left, width = table.edges[..., :-1], jnp.diff(table.edges)
    span = _take(width, index)
    s = jnp.clip((z - _take(left, index)) / jnp.where(span > 0, span, 1), 0, 1)
    log_value = _take(table.log_scale[0], index)
    log_value += evaluate([_take(c, index) for c in table.log_scale[1:]], s)
    if parameters is not None:
        log_value += _of_rows(
            lambda own, z: log_density(own.build(), z),
            parameters,
            table.log_normalizer.shape,
            z,
        )
    # How the mass below a point that stays changes, and how a point of its cell moves.
    change = jnp.zeros_like(z)
    if not all(map(is_symbolic, (table_dot.below, table_dot.above, table_dot.powers))):
        dot = instantiate(table, table_dot)
        at_left = _at_left_edge(dot, row, cell, upper)
        change += jnp.where(upper, -at_left, at_left)
        change += evaluate([_take(power, index) for power in dot.powers], s)
    motion = jnp.zeros_like(z)
    if not is_symbolic(table_dot.edges):
        edges_dot = jnp.asarray(table_dot.edges)
        motion += _take(edges_dot[..., :-1], index)
        motion += _take(jnp.diff(edges_dot), index) * s
    for is_upper in (False, True):
        if table.log_tail_scales[is_upper] is not None:
            in_tail = _in_tail(table, row, mass, upper, is_upper)
            tail_change = _tail_change(primals, tangents, z, in_tail, is_upper)
            change = jnp.where(in_tail, tail_change, change)
            motion = jnp.where(in_tail, 0, motion)
    if not is_symbolic(mass_dot):
        change -= jnp.where(upper, -mass_dot, mass_dot)
    positive = log_value > jnp.log(jnp.finfo(z.dtype).tiny)
    density = jnp.where(positive, jnp.exp(log_value), 1)
    z_dot = motion - jnp.where(positive, change / density, 0)
    return (z, cell), (z_dot, np.zeros(cell.shape, jax.dtypes.float0))


def _tail_change(
    primals: tuple, tangents: tuple, z: jax.Array, in_tail: jax.Array, is_upper: bool
) -> jax.Array:
    """Change of the mass below points of a tail that stay."""
    table, parameters, mass, upper = primals
    table_dot, parameters_dot = tangents[:2]
    row = row_index((z.shape[0], 1))
    beyond = jnp.where(upper == is_upper, mass, 1 - mass)
    change = jnp.zeros_like(z)
    scale_dot = table_dot.log_tail_scales[is_upper]
    if not is_symbolic(scale_dot):
        change += beyond * _take(scale_dot, row)
    if not all_zero(parameters_dot):
        point = jnp.where(in_tail, z, _take(table.edges[..., -is_upper], row))

        def reference_mass(parameters: ReferenceParameters) -> jax.Array:
            return _of_rows(
                lambda own, point: tail_mass(own, point, is_upper),
                parameters,
                table.log_normalizer.shape,
                point,
            )

        dot = instantiate(parameters, parameters_dot)
        _, mass_dot = jax.jvp(reference_mass, (parameters,), (dot,))
        change += jnp.exp(_take(table.log_tail_scales[is_upper], row)) * mass_dot
    return -change if is_upper else change
