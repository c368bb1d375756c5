"""The distribution function of a tilted density, and its inverse."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from numpyro_kaem.energy import PlacedEnergy
from numpyro_kaem.panels import Integrand, Panels, integrand
from numpyro_kaem.quadrature import gauss_legendre, nodes_per_panel
from numpyro_kaem.references import (
    ReferenceParameters,
    log_density,
    tail_mass,
    tail_quantile,
)
from numpyro_kaem.series import clenshaw, integrate, solve_panel

__all__ = [
    "Table",
    "cdf_pair",
    "find_interval",
    "icdf_folded",
    "log_prob",
    "masses",
    "select_rows",
    "tabulate",
    "tabulate_integrand",
]


class Table(NamedTuple):
    """What the distribution function and its inverse need of a density.

    On a panel the density is the Chebyshev series through its values at the Gauss
    nodes; the integral of the series is the distribution function.
    """

    log_normalizer: jax.Array
    """Log of the total mass before normalisation, shape ``(*batch_shape,)``."""
    rows: jax.Array
    """One row a panel, shape ``(num_panels, *batch_shape, num_nodes + 4)``: Chebyshev
    coefficients of the density times half the width; the masses below and above the
    panel; its left end and its width."""
    below: jax.Array
    """Mass below each edge, shape ``(num_panels + 1, *batch_shape)``."""
    above: jax.Array
    """Mass above each edge, the same shape."""
    edges: jax.Array
    """Edges of the panels, the same shape."""
    log_tail_scales: tuple[jax.Array | None, jax.Array | None]
    """Log ratios of the density to the reference below and above the panels, each
    ``(*batch_shape,)``; ``None`` where there is no tail."""


def tabulate(
    energy: PlacedEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> Table:
    """Make the table of a density, once a parameter value."""
    return tabulate_integrand(integrand(energy, parameters, panels), panels)


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
    masses = jnp.sum(weighted, axis=1)
    below = jnp.cumsum(jnp.concatenate([tails[0][None], masses]), axis=0)
    above = jnp.cumsum(jnp.concatenate([tails[1][None], masses[::-1]]), axis=0)[::-1]
    nodes, weights = gauss_legendre(nodes_per_panel(dtype))
    num_nodes = len(nodes)
    vander = np.polynomial.chebyshev.chebvander(nodes, num_nodes - 1)
    to_series = jnp.asarray(np.linalg.inv(vander) / weights, dtype)
    series = jnp.einsum("jm,pm...->p...j", to_series, weighted, precision="highest")
    series = _without_negative(series, masses)
    shape = log_normalizer.shape
    rank = len(shape)
    edges = panels.edges.reshape(
        -1, *(1,) * (rank - panels.edges.ndim + 1), *panels.edges.shape[1:]
    )
    edges = jnp.broadcast_to(edges, (edges.shape[0], *shape)).astype(dtype)
    rest = jnp.stack([below[:-1], above[1:], edges[:-1], jnp.diff(edges, axis=0)], -1)
    scales = tuple(
        end - log_normalizer - jnp.log(total) if has else None
        for end, has in zip(values.energy_ends, panels.has_tails, strict=True)
    )
    return Table(
        log_normalizer,
        jnp.concatenate([series, rest], axis=-1),
        below,
        above,
        edges,
        scales,
    )


def _without_negative(series: jax.Array, masses: jax.Array) -> jax.Array:
    """Damp the series of panels too coarse for their density, where it rings below 0.

    It is mixed with the constant of the same mass, just enough that the distribution
    function does not decrease; a series that is nowhere negative stays as it is.
    """
    num_nodes = series.shape[-1]
    dtype = series.dtype
    points = np.polynomial.chebyshev.chebpts2(4 * num_nodes)
    vander = np.polynomial.chebyshev.chebvander(points, num_nodes - 1)
    values = series @ jnp.asarray(vander.T, dtype)
    constant = 0.5 * masses
    depth = -1.1 * jnp.min(values, -1) - 16 * jnp.finfo(dtype).eps * jnp.max(values, -1)
    rings = (depth > 0) & (constant > 0)
    share = jnp.where(rings, constant / (constant + jnp.where(rings, depth, 0)), 1)
    # A peak narrower than the panel is unresolved: no series of it can be inverted.
    share = jax.lax.stop_gradient(jnp.where(share < 0.8, 0, share))[..., None]
    damped = series * share
    head = damped[..., :1] + (1 - share) * constant[..., None]
    return jnp.concatenate([head, damped[..., 1:]], axis=-1)


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
    return energy(z) + log_reference - log_normalizer


def find_interval(
    keys: jax.Array, w: jax.Array, column: jax.Array, num_panels: int
) -> jax.Array:
    """Panel of ``w``: the number of inner edges whose key is at most ``w``.

    By bisection with a fixed number of gathers.

    Parameters
    ----------
    keys
        Keys of the edges, shape ``(num_columns, num_panels + 1)``, not decreasing along
        the last axis: those of one search lie side by side in memory.
    w
        Numbers to place, shape (...,).
    column
        Column of the keys for each of them, the same shape.
    num_panels
        Number of panels.

    Returns
    -------
    Array
        Integers from 0 to ``num_panels - 1``, shape (...,).
    """
    flat, first = keys.reshape(-1), column * (num_panels + 1)
    panel = jnp.zeros(jnp.broadcast_shapes(w.shape, column.shape), jnp.int32)
    step = 1 << max(num_panels - 1, 0).bit_length()
    while step > 1:
        step //= 2
        trial = panel + step
        index = first + jnp.minimum(trial, num_panels)
        key = flat.at[index].get(mode="promise_in_bounds")
        panel = jnp.where((trial < num_panels) & (w >= key), trial, panel)
    return panel


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
    batch_shape = table.log_normalizer.shape
    size = int(np.prod(batch_shape, dtype=np.int64))
    num_panels = table.rows.shape[0]
    # One search for both sides: the keys of the upper side stand beside the lower's.
    keys = [k.reshape(num_panels + 1, size).T for k in (table.below, -table.above)]
    column = row + jnp.where(upper, size, 0).astype(jnp.int32)
    signed = jnp.where(upper, -mass, mass)
    panel = find_interval(jnp.concatenate(keys), signed, column, num_panels)
    rows = table.rows.reshape(num_panels * size, table.rows.shape[-1])
    z = solve_panel(
        rows.at[panel * size + row].get(mode="promise_in_bounds"), mass, upper
    )
    for side, is_upper in enumerate((False, True)):
        log_scale = table.log_tail_scales[side]
        if log_scale is None:
            continue
        at = lambda array: array.reshape(-1).at[row].get(mode="promise_in_bounds")  # noqa: E731
        tail = at(table.above[-1] if is_upper else table.below[0])
        start = at(table.edges[-1] if is_upper else table.edges[0])
        chosen = _parameters_at(parameters, batch_shape, row)
        scale = jnp.exp(at(log_scale))
        # A point below may lie in the tail above, if that has most of the mass.
        beyond = jnp.where(upper == is_upper, mass, 1 - mass)
        in_tail = beyond < tail
        share = jnp.where(in_tail, beyond / jnp.where(scale > 0, scale, 1), 1)
        point = tail_quantile(chosen, share, start, is_upper)
        z = jnp.where(in_tail, point, z)
    return z


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


@jax.custom_jvp
def icdf_folded(
    table: Table,
    energy: PlacedEnergy,
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
    table, energy, parameters
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
    row = jnp.broadcast_to(_row_index(batch_shape), shape)
    return select_rows(
        table,
        parameters,
        row,
        jnp.broadcast_to(mass, shape),
        jnp.broadcast_to(upper, shape),
    )


@partial(icdf_folded.defjvp, symbolic_zeros=True)
def _icdf_folded_jvp(primals: tuple, tangents: tuple) -> tuple:
    table, energy, parameters, mass, upper = primals
    table_dot, _, parameters_dot, mass_dot, _ = tangents
    z = icdf_folded(table, energy, parameters, mass, upper)
    change = jnp.zeros_like(z)
    if not isinstance(mass_dot, SymbolicZero):
        change += jnp.where(upper, -mass_dot, mass_dot)
    if not _all_zero((table_dot, parameters_dot)):
        below, above = _pair_change(table, parameters, z, table_dot, parameters_dot)
        change -= jnp.where(upper, -above, below)
    log_density = log_prob(energy, parameters, table.log_normalizer, z)
    positive = log_density > jnp.log(jnp.finfo(z.dtype).tiny)
    density = jnp.where(positive, jnp.exp(log_density), 1)
    return z, jnp.where(positive, change / density, 0)


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


def _pair_change(
    table: Table, parameters: Any, z: jax.Array, table_dot: Table, parameters_dot: Any
) -> tuple[jax.Array, jax.Array]:
    """Change of both masses at fixed points with the parameters of the density."""
    primal = jax.tree_util.tree_map(jnp.asarray, (table, parameters))
    tangent = jax.tree_util.tree_map(
        lambda x, dot: jnp.zeros_like(x) if _is_symbolic(dot) else dot,
        primal,
        (table_dot, parameters_dot),
    )
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
    num_panels = table.rows.shape[0]
    edges = jax.lax.stop_gradient(table.edges).reshape(num_panels + 1, size)
    panel = find_interval(edges.T, z, row, num_panels)
    rows = table.rows.reshape(num_panels * size, table.rows.shape[-1])
    chosen = rows.at[panel * size + row].get(mode="promise_in_bounds")
    num_nodes = chosen.shape[-1] - 4
    series = [chosen[..., j] for j in range(num_nodes)]
    below, above, left, width = (chosen[..., num_nodes + j] for j in range(4))
    positive = width > 0
    t = 2 * (z - left) / jnp.where(positive, width, 1) - 1
    # Plain comparisons, whose gradient inside the panel is exactly one.
    t = jnp.where(t > 1, 1, jnp.where(t < -1, -1, t))
    integral = integrate(series)
    part, total = clenshaw(integral, t), sum(integral)
    # Exact at both edges: outside the support no mass is left.
    part = jnp.where(positive & (t > -1), jnp.where(t < 1, part, total), 0)
    below = below + part
    above = above + (total - part)
    for side, is_upper in enumerate((False, True)):
        log_scale = table.log_tail_scales[side]
        if log_scale is None:
            continue
        edge = table.edges[-1] if is_upper else table.edges[0]
        in_tail = (z > edge) if is_upper else (z < edge)
        point = jnp.where(in_tail, z, edge)
        mass = jnp.exp(log_scale) * tail_mass(parameters, point, is_upper)
        below = jnp.where(in_tail, 1 - mass if is_upper else mass, below)
        above = jnp.where(in_tail, mass if is_upper else 1 - mass, above)
    below, above = jnp.clip(below, 0, 1), jnp.clip(above, 0, 1)
    # The larger one from the smaller: at an end of the support it is exactly 1.
    is_low = below < above
    return jnp.where(is_low, below, 1 - above), jnp.where(is_low, 1 - below, above)
