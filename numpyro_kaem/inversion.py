"""The distribution function of a tilted density, and its inverse."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from numpyro_kaem import references
from numpyro_kaem.intervals import find_interval, find_interval_in_rows
from numpyro_kaem.panels import Integrand, Panels, integrand
from numpyro_kaem.placed_energy import PlacedEnergy
from numpyro_kaem.references import (
    ReferenceParameters,
    tail_mass,
    tail_quantile,
)
from numpyro_kaem.series import (
    CELLS_PER_PANEL,
    cell_polynomials,
    evaluate,
    interpolate_cells,
    solve_cell,
)

__all__ = [
    "Table",
    "cdf_pair",
    "icdf_folded",
    "log_prob",
    "masses",
    "select_rows",
    "tabulate",
    "tabulate_integrand",
]


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
        log_reference = references.log_density(parameters.build(), z)
    return energy(z) + log_reference - log_normalizer


def _row_index(batch_shape: tuple[int, ...]) -> jax.Array:
    size = int(np.prod(batch_shape, dtype=np.int64))
    return jnp.arange(size, dtype=jnp.int32).reshape(batch_shape)


# --- the inverse ---------------------------------------------------------------------


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
    keys = _folded_keys(table.below, table.above).reshape(-1, num_cells + 1)
    cell = find_interval(keys, _folded_place(mass, upper), row, num_cells)
    return _point_in_cell(table, parameters, row, cell, mass, upper)


def _folded_keys(below: jax.Array, above: jax.Array) -> jax.Array:
    """Integers that order edges by their mass to the nearer end, both ends alike.

    The bits of positive floating-point numbers are in the order of the numbers.
    """
    half = _bits(jnp.full_like(below, 0.5))
    from_above = jnp.maximum(2 * half + 1 - _bits(above), half + 1)
    return jnp.where(below <= 0.5, _bits(below), from_above)


def _folded_place(mass: jax.Array, upper: jax.Array) -> jax.Array:
    """Place among such keys of the point with a mass of at most 1/2 beyond it."""
    half = _bits(jnp.full_like(mass, 0.5))
    return jnp.where(upper, 2 * half + 1 - _bits(mass), _bits(mass))


def _bits(number: jax.Array) -> jax.Array:
    integer = jnp.int64 if number.dtype == jnp.float64 else jnp.int32
    return jax.lax.bitcast_convert_type(jnp.abs(number), integer)


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    """Entries of the flattened array."""
    return array.reshape(-1).at[index].get(mode="promise_in_bounds")


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
        chosen = _parameters_at(parameters, table.log_normalizer.shape, row)
        scale = jnp.exp(_take(log_scale, row))
        # A point below may lie in the tail above, if that has most of the mass.
        beyond = jnp.where(upper == is_upper, mass, 1 - mass)
        in_tail = _in_tail(table, row, mass, upper, is_upper)
        share = jnp.where(in_tail, beyond / jnp.where(scale > 0, scale, 1), 1)
        z = jnp.where(in_tail, tail_quantile(chosen, share, start, is_upper), z)
    return z


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
    # All points of a density one after another: its table stays in the fastest cache.
    mass, upper = (jnp.moveaxis(a, range(rank), range(-rank, 0)) for a in (mass, upper))
    rows = (table.log_normalizer.size, math.prod(shape[:rank]))
    z, _ = _invert(table, parameters, mass.reshape(rows), upper.reshape(rows))
    return jnp.moveaxis(z.reshape(mass.shape), range(-rank, 0), range(rank))


@jax.custom_jvp
def _invert(
    table: Table,
    parameters: ReferenceParameters | None,
    mass: jax.Array,
    upper: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Points and their cells; all arrays of shape ``(num_rows, num_points)``."""
    size, num_cells = table.log_normalizer.size, table.powers.shape[-1]
    keys = _folded_keys(table.below, table.above).reshape(size, num_cells + 1)
    cell = find_interval_in_rows(keys, _folded_place(mass, upper), num_cells)
    row = jnp.broadcast_to(_row_index((size, 1)), mass.shape)
    return _point_in_cell(table, parameters, row, cell, mass, upper), cell


@partial(_invert.defjvp, symbolic_zeros=True)
def _invert_jvp(primals: tuple, tangents: tuple) -> tuple:
    table, parameters, mass, upper = primals
    table_dot, _, mass_dot, _ = tangents
    z, cell = _invert(*primals)
    own_row = _row_index((z.shape[0], 1))
    row = jnp.broadcast_to(own_row, z.shape)
    index = row * table.powers.shape[-1] + cell
    # The position again, but as a function of the point, for second derivatives.
    left, width = table.edges[..., :-1], jnp.diff(table.edges)
    span = _take(width, index)
    s = jnp.clip((z - _take(left, index)) / jnp.where(span > 0, span, 1), 0, 1)
    log_density = _take(table.log_scale[0], index)
    log_density += evaluate([_take(c, index) for c in table.log_scale[1:]], s)
    if parameters is not None:
        # Of one row each, which broadcasts over its points.
        own = _parameters_at(parameters, table.log_normalizer.shape, own_row)
        log_density += references.log_density(own.build(), z)
    # How the mass below a point that stays changes, and how a point of its cell moves.
    change = jnp.zeros_like(z)
    if not all(map(_is_symbolic, (table_dot.below, table_dot.above, table_dot.powers))):
        dot = _instantiate(table, table_dot)
        at_left = _at_left_edge(dot, row, cell, upper)
        change += jnp.where(upper, -at_left, at_left)
        change += evaluate([_take(power, index) for power in dot.powers], s)
    motion = jnp.zeros_like(z)
    if not _is_symbolic(table_dot.edges):
        edges_dot = jnp.asarray(table_dot.edges)
        motion += _take(edges_dot[..., :-1], index)
        motion += _take(jnp.diff(edges_dot), index) * s
    for is_upper in (False, True):
        if table.log_tail_scales[is_upper] is not None:
            in_tail = _in_tail(table, row, mass, upper, is_upper)
            tail_change = _tail_change(primals, tangents, z, is_upper)
            change = jnp.where(in_tail, tail_change, change)
            motion = jnp.where(in_tail, 0, motion)
    if not _is_symbolic(mass_dot):
        change -= jnp.where(upper, -mass_dot, mass_dot)
    positive = log_density > jnp.log(jnp.finfo(z.dtype).tiny)
    density = jnp.where(positive, jnp.exp(log_density), 1)
    z_dot = motion - jnp.where(positive, change / density, 0)
    return (z, cell), (z_dot, np.zeros(cell.shape, jax.dtypes.float0))


def _tail_change(
    primals: tuple, tangents: tuple, z: jax.Array, is_upper: bool
) -> jax.Array:
    """Change of the mass below points of a tail that stay."""
    table, parameters, mass, upper = primals
    table_dot, parameters_dot = tangents[:2]
    row = _row_index((z.shape[0], 1))
    beyond = jnp.where(upper == is_upper, mass, 1 - mass)
    change = jnp.zeros_like(z)
    scale_dot = table_dot.log_tail_scales[is_upper]
    if not _is_symbolic(scale_dot):
        change += beyond * _take(scale_dot, row)
    if not _all_zero(parameters_dot):
        in_tail = _in_tail(table, row, mass, upper, is_upper)
        point = jnp.where(in_tail, z, _take(table.edges[..., -is_upper], row))

        def reference_mass(parameters: ReferenceParameters) -> jax.Array:
            own = _parameters_at(parameters, table.log_normalizer.shape, row)
            return tail_mass(own, point, is_upper)

        dot = _instantiate(parameters, parameters_dot)
        _, mass_dot = jax.jvp(reference_mass, (parameters,), (dot,))
        change += jnp.exp(_take(table.log_tail_scales[is_upper], row)) * mass_dot
    return -change if is_upper else change


# --- the distribution function -------------------------------------------------------


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
    if not isinstance(z_dot, SymbolicZero):
        density = jnp.exp(log_prob(energy, parameters, table.log_normalizer, z))
        below_dot += density * z_dot
        above_dot -= density * z_dot
    if not _all_zero((table_dot, parameters_dot)):
        change = _pair_change(table, parameters, z, table_dot, parameters_dot)
        below_dot += change[0]
        above_dot += change[1]
    return (below, above), (below_dot, above_dot)


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _all_zero(tree: Any) -> bool:
    return all(map(_is_symbolic, jax.tree_util.tree_leaves(tree, is_leaf=_is_symbolic)))


def _instantiate(primals: Any, tangents: Any) -> Any:
    """Tangents with zeros in the place of symbols."""
    return jax.tree_util.tree_map(
        lambda x, dot: jnp.zeros_like(x) if _is_symbolic(dot) else dot,
        primals,
        tangents,
    )


def _pair_change(
    table: Table, parameters: Any, z: jax.Array, table_dot: Table, parameters_dot: Any
) -> tuple[jax.Array, jax.Array]:
    """Change of both masses at fixed points with the parameters of the density."""
    primal = (table, parameters)
    tangent = _instantiate(primal, (table_dot, parameters_dot))
    return jax.jvp(lambda *args: masses(*args, z), primal, tangent)[1]


def masses(
    table: Table, parameters: ReferenceParameters | None, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Masses below and above ``z``, differentiated as the formula that they are."""
    batch_shape = table.log_normalizer.shape
    shape = jnp.broadcast_shapes(z.shape, batch_shape)
    z = jnp.broadcast_to(z, shape)
    size = int(np.prod(batch_shape, dtype=np.int64))
    row = jnp.broadcast_to(_row_index(batch_shape), shape)
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
    part = jnp.where(positive & (s > 0), jnp.where(s < 1, part, total), 0)
    below = below + part
    above = above + (total - part)
    for side, is_upper in enumerate((False, True)):
        log_scale = table.log_tail_scales[side]
        if log_scale is None:
            continue
        edge = table.edges[..., -1 if is_upper else 0]
        in_tail = (z > edge) if is_upper else (z < edge)
        point = jnp.where(in_tail, z, edge)
        mass = jnp.exp(log_scale) * tail_mass(parameters, point, is_upper)
        below = jnp.where(in_tail, 1 - mass if is_upper else mass, below)
        above = jnp.where(in_tail, mass if is_upper else 1 - mass, above)
    below, above = jnp.clip(below, 0, 1), jnp.clip(above, 0, 1)
    # The larger one from the smaller: at an end of the support it is exactly 1.
    is_low = below < above
    return jnp.where(is_low, below, 1 - above), jnp.where(is_low, 1 - below, above)
