"""Distribution functions of tilted densities, their inverses, and draws.

A point is given by the mass of a tail, at most 1/2, and by which tail it is, so that
both ends of a density are resolved alike.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from numpyro_kaem.energy import UnitGridEnergy
from numpyro_kaem.numerics.cells import (
    Table,
    evaluate,
    find_interval,
    find_interval_in_rows,
    on_accelerator,
    row_index,
    solve_cell,
    tabulate_at,
    tail_key,
    tail_keys,
)
from numpyro_kaem.numerics.density import log_prob
from numpyro_kaem.numerics.panels import Panels
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
    "cdf_pair",
    "icdf",
    "icdf_of_tail",
    "inside",
    "masses",
    "sample",
    "sample_mixture",
    "sample_once",
    "uniform_tail_mass",
]

# Draws at a time: their intermediate arrays stay in the caches of a CPU. That does not
# fill an accelerator: there many chunks are drawn side by side, and are the same.
_CHUNK = 1 << 18
_CHUNKS_AT_ONCE = 16


# --- distribution function -----------------------------------------------------------


@jax.custom_jvp
def _cdf_pair(
    table: Table,
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    z: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Masses below and above ``z``: (..., *batch_shape), each to its own precision."""
    return masses(table, parameters, z)


@partial(_cdf_pair.defjvp, symbolic_zeros=True)
def _cdf_pair_jvp(primals: tuple, tangents: tuple) -> tuple:
    table, energy, parameters, z = primals
    table_dot, _, parameters_dot, z_dot = tangents
    below, above = _cdf_pair(table, energy, parameters, z)
    below_dot, above_dot = jnp.zeros_like(below), jnp.zeros_like(above)
    if not _is_zero(z_dot):
        density = jnp.exp(log_prob(energy, parameters, table.log_normalizer, z))
        below_dot += density * z_dot
        above_dot -= density * z_dot
    if not _all_zero((table_dot, parameters_dot)):
        primal = (table, parameters)
        tangent = _instantiate(primal, (table_dot, parameters_dot))
        change = jax.jvp(lambda t, p: masses(t, p, z), primal, tangent)[1]
        below_dot += change[0]
        above_dot += change[1]
    return (below, above), (below_dot, above_dot)


cdf_pair = jax.jit(_cdf_pair)


def masses(
    table: Table, parameters: ReferenceParameters | None, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Masses below and above ``z``, differentiated as the formula that they are."""
    batch_shape = table.log_normalizer.shape
    shape = jnp.broadcast_shapes(z.shape, batch_shape)
    z = jnp.broadcast_to(z, shape)
    size = math.prod(batch_shape)
    row = jnp.broadcast_to(row_index(batch_shape), shape)
    num_cells = table.powers.shape[-1]
    edges = jax.lax.stop_gradient(table.edges).reshape(size, num_cells + 1)
    cell = find_interval(edges, z, row, num_cells)
    # Gathered together, since their derivatives are scattered together.
    lefts, rights = table.edges[..., :-1], table.edges[..., 1:]
    rest = jnp.stack([table.below[..., :-1], table.above[..., 1:], lefts, rights])
    fields = jnp.concatenate([table.powers, rest])
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
        if parameters is None or log_scale is None:
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


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _all_zero(tree: Any) -> bool:
    return all(map(_is_zero, jax.tree_util.tree_leaves(tree, is_leaf=_is_zero)))


def _instantiate(primals: Any, tangents: Any) -> Any:
    """Directions of derivatives, with zeros in the place of symbols."""
    return jax.tree_util.tree_map(
        lambda x, dot: jnp.zeros_like(x) if _is_zero(dot) else dot,
        primals,
        tangents,
    )


# --- its inverse ---------------------------------------------------------------------


def icdf(of_tail: Callable, ends: tuple[ArrayLike, ArrayLike], u: jax.Array) -> Any:
    """Quantiles by :func:`icdf_of_tail` of a density: its ends at 0 and 1, or NaN."""
    upper = u > 0.5
    value = of_tail(jnp.where(upper, 1 - u, u), upper)
    low, high = (jnp.asarray(end, value.dtype) for end in ends)
    value = jnp.where(u == 0, low, jnp.where(u == 1, high, value))
    return jnp.where((u >= 0) & (u <= 1), value, jnp.nan)


@jax.jit
def icdf_of_tail(
    table: Table,
    parameters: ReferenceParameters | None,
    mass: jax.Array,
    upper: jax.Array,
) -> jax.Array:
    r"""Points with a given mass below (or above) them: (..., *batch_shape), as both.

    Derivatives are implicit: with :math:`z = F^{-1}(u; \theta)`,

    .. math:: \mathrm{d}z = \frac{\mathrm{d}u - \partial_\theta F(z; \theta)\,
              \mathrm{d}\theta}{\pi(z; \theta)}.
    """
    batch_shape = table.log_normalizer.shape
    shape = jnp.broadcast_shapes(mass.shape, upper.shape, batch_shape)
    rank = len(shape) - len(batch_shape)
    mass, upper = (jnp.broadcast_to(a, shape) for a in (mass, upper))
    mass, upper = (jnp.moveaxis(a, range(rank), range(-rank, 0)) for a in (mass, upper))
    z = _icdf_of_rows(table, parameters, mass, upper)
    z = jnp.where(jnp.isnan(mass), mass, z)
    return jnp.moveaxis(z, range(-rank, 0), range(rank))


def _icdf_of_rows(
    table: Table,
    parameters: ReferenceParameters | None,
    mass: jax.Array,
    upper: jax.Array,
) -> jax.Array:
    """Do as :func:`icdf_of_tail`, with arrays of shape ``(*batch_shape, ...)``.

    All points of a density lie one after another: its table stays in the fastest cache.
    """
    num_points = math.prod(mass.shape[table.log_normalizer.ndim :])
    rows = table.log_normalizer.size, num_points
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
    keys = tail_keys(table.below, table.above).reshape(size, num_cells + 1)
    cell = find_interval_in_rows(keys, tail_key(mass, upper), num_cells)
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
    if not all(map(_is_zero, (table_dot.below, table_dot.above, table_dot.powers))):
        dot = _instantiate(table, table_dot)
        at_left = _at_left_edge(dot, row, cell, upper)
        change += jnp.where(upper, -at_left, at_left)
        change += evaluate([_take(power, index) for power in dot.powers], s)
    motion = jnp.zeros_like(z)
    if not _is_zero(table_dot.edges):
        edges_dot = jnp.asarray(table_dot.edges)
        motion += _take(edges_dot[..., :-1], index)
        motion += _take(jnp.diff(edges_dot), index) * s
    for is_upper in (False, True):
        if table.log_tail_scales[is_upper] is not None:
            in_tail = _in_tail(table, row, mass, upper, is_upper)
            tail_change = _tail_change(primals, tangents, z, in_tail, is_upper)
            change = jnp.where(in_tail, tail_change, change)
            motion = jnp.where(in_tail, 0, motion)
    if not _is_zero(mass_dot):
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
    if not _is_zero(scale_dot):
        change += beyond * _take(scale_dot, row)
    if not _all_zero(parameters_dot):
        point = jnp.where(in_tail, z, _take(table.edges[..., -is_upper], row))

        def reference_mass(parameters: ReferenceParameters) -> jax.Array:
            return _of_rows(
                lambda own, point: tail_mass(own, point, is_upper),
                parameters,
                table.log_normalizer.shape,
                point,
            )

        dot = _instantiate(parameters, parameters_dot)
        _, mass_dot = jax.jvp(reference_mass, (parameters,), (dot,))
        change += jnp.exp(_take(table.log_tail_scales[is_upper], row)) * mass_dot
    return -change if is_upper else change


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
        if parameters is None or log_scale is None:
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
    # Arrays with axes of their own: one tail per density, chosen by its numbers.
    tail = power_tail(parameters, table.edges[..., -upper], upper)
    tail = PowerTail(*(_take(jnp.broadcast_to(part, shape), row) for part in tail))
    return power_quantile(tail, mass, upper)


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


def _in_tail(
    table: Table, row: jax.Array, mass: jax.Array, upper: jax.Array, is_upper: bool
) -> jax.Array:
    """Whether the point lies below the cells, or above them if ``is_upper``."""
    tail = table.above[..., -1] if is_upper else table.below[..., 0]
    beyond = jnp.where(upper == is_upper, mass, 1 - mass)
    return beyond < _take(tail, row)


def _parameters_at(tree: Any, batch_shape: tuple[int, ...], row: jax.Array) -> Any:
    """Arrays at the chosen densities; those without a batch shape are shared."""

    def take(leaf: Any) -> Any:
        if np.ndim(leaf) == 0:
            return leaf
        return _take(jnp.broadcast_to(leaf, batch_shape), row)

    return jax.tree_util.tree_map(take, tree)


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


# --- draws ---------------------------------------------------------------------------


def uniform_tail_mass(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Uniform numbers in (0, 1) as masses in (0, 1/2] of a tail, and whether the upper.

    To the smallest they are multiples of 2**-32 (float32) or 2**-64 (float64).
    """
    width = 64 if jnp.dtype(dtype) == jnp.float64 else 32
    bits = jax.random.bits(key, shape, f"uint{width}")
    upper = (bits >> (width - 1)).astype(bool)
    mass = (bits & ((1 << (width - 1)) - 1)).astype(dtype)
    return (mass + 0.5) * 2.0**-width, upper


@partial(jax.jit, static_argnames="sample_shape")
def sample(
    table: Table,
    parameters: ReferenceParameters | None,
    ends: tuple,
    key: jax.Array,
    sample_shape: tuple[int, ...],
) -> jax.Array:
    """Draws between the ends of the support, shape ``sample_shape + batch_shape``."""
    dtype = table.log_normalizer.dtype

    def invert(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        mass, upper = uniform_tail_mass(key, shape, dtype)
        z = _icdf_of_rows(table, parameters, mass, upper)
        return inside(z, tuple(jnp.expand_dims(end, -1) for end in ends))

    return _draw(key, invert, sample_shape, table.log_normalizer.shape, dtype)


@jax.jit
def sample_once(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    ends: tuple,
    key: jax.Array,
) -> jax.Array:
    """One draw of each density, for which no whole table is made: ``batch_shape``.

    To rounding it is the draw of :func:`sample` with this key.
    """
    reference = () if parameters is None else parameters.build().batch_shape
    batch_shape = jnp.broadcast_shapes(energy.batch_shape, reference)
    mass, upper = uniform_tail_mass(key, batch_shape, energy.dtype)
    table = tabulate_at(energy, parameters, panels, mass, upper)
    return inside(icdf_of_tail(table, parameters, mass, upper), ends)


@partial(jax.jit, static_argnames=("sample_shape", "batch_shape"))
def sample_mixture(
    table: Table,
    parameters: ReferenceParameters | None,
    ends: tuple,
    log_weights: jax.Array,
    key: jax.Array,
    sample_shape: tuple[int, ...],
    batch_shape: tuple[int, ...],
) -> jax.Array:
    """Choose a component and invert it, shape ``sample_shape + batch_shape``."""
    dtype = table.log_normalizer.dtype
    num_components, num_cells = log_weights.shape[-1], table.powers.shape[-1]
    prior_shape = table.log_normalizer.shape
    size = math.prod(batch_shape)
    weights = jnp.broadcast_to(jnp.exp(log_weights), (*batch_shape, num_components))
    weights = weights.reshape(size, num_components).T
    # One uniform number chooses the component; none without weight, at either end.
    keys = jnp.concatenate([jnp.zeros((1, size), dtype), jnp.cumsum(weights, axis=0)])
    left = jnp.cumsum(weights[::-1], axis=0)[::-1]
    keys = keys.at[:-1].set(jnp.where(left > 0, keys[:-1], jnp.inf))
    member = row_index((*batch_shape, 1))
    rows = jnp.broadcast_to(row_index(prior_shape), (*batch_shape, num_components))

    def invert(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        choice_key, point_key = jax.random.split(key)
        mass, upper = uniform_tail_mass(choice_key, shape, dtype)
        u = jnp.where(upper, 1 - mass, mass).reshape(size, shape[-1])
        component = find_interval_in_rows(keys.T, u, num_components).reshape(shape)
        row = jnp.broadcast_to(member, shape) * num_components + component
        if prior_shape != (*batch_shape, num_components):
            row = _take(rows, row)
        mass, upper = uniform_tail_mass(point_key, shape, dtype)
        edge_keys = tail_keys(table.below, table.above).reshape(-1, num_cells + 1)
        cell = find_interval(edge_keys, tail_key(mass, upper), row, num_cells)
        z = _point_in_cell(table, parameters, row, cell, mass, upper)
        return inside(z, _parameters_at(ends, prior_shape, row))

    return _draw(key, invert, sample_shape, batch_shape, dtype)


def inside(z: jax.Array, ends: tuple) -> jax.Array:
    """Points off the ends of the support, where rounding may lead but no draw lies."""
    # Ends that move leave a draw where it is: it follows them by its own derivative.
    low, high = (jnp.asarray(end, z.dtype) for end in jax.lax.stop_gradient(ends))
    return jnp.clip(z, jnp.nextafter(low, high), jnp.nextafter(high, low))


def _draw(
    key: jax.Array,
    invert: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    sample_shape: tuple[int, ...],
    batch_shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> jax.Array:
    """Draw in chunks, so that no array but the result grows with the number of draws.

    ``invert`` makes draws of a shape ``(*batch_shape, num_samples)`` from a key: those
    of one density lie side by side, so that its table stays in the fastest cache.
    """
    num_samples, size = math.prod(sample_shape), math.prod(batch_shape)
    num_rows = max(1, _CHUNK // max(size, 1))

    # For derivatives drawn again, which is faster than to keep what they need.
    @jax.checkpoint
    def one_chunk(key: jax.Array) -> jax.Array:
        return invert(key, (*batch_shape, num_rows))

    # Drawn in a loop of its own, whose end keeps the compiler from fusing the change of
    # order into it: it would visit the densities in turn, draw by draw. The draws are
    # carried by the loop rather than stacked: what is written into a part of an array
    # is computed by one core only.
    def pair_of_chunks(key: jax.Array) -> jax.Array:
        def step(pair: tuple, key: jax.Array) -> tuple:
            return (pair[1], one_chunk(key)), None

        empty = jnp.zeros((*batch_shape, num_rows), dtype)
        pair, _ = jax.lax.scan(step, (empty, empty), jax.random.split(key))
        return jnp.moveaxis(jnp.stack(pair), -1, 1)

    if num_samples <= num_rows:
        draws = jnp.moveaxis(invert(key, (*batch_shape, num_samples)), -1, 0)
        count = num_samples
    else:
        # Chunks without a remainder, if there are such, save a copy of the draws.
        candidates = range(num_rows, num_rows // 2, -1)
        whole = (r for r in candidates if num_samples % (2 * r) == 0)
        num_rows = next(whole, num_rows)
        num_pairs = -(-num_samples // (2 * num_rows))
        at_once = _CHUNKS_AT_ONCE if on_accelerator() else None
        keys = jax.random.split(key, num_pairs)
        draws = jax.lax.map(pair_of_chunks, keys, batch_size=at_once)
        count = 2 * num_pairs * num_rows

    # Counted, not inferred: an empty batch leaves nothing to infer from.
    draws = draws.reshape(count, *batch_shape)[:num_samples]
    return draws.reshape(*sample_shape, *batch_shape)
