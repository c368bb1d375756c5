"""Panels on which the energy and the reference of a density are smooth."""

from functools import reduce
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem.energy import Energy
from numpyro_kaem.references import (
    ReferenceParameters,
    concretely,
    density_breaks,
    far_breaks,
    finest_scale,
    has_quantile,
    has_regular_ends,
    is_concrete,
    kinks,
    log_tail_mass,
    support_bounds,
    with_rank,
)

__all__ = ["Panels", "make_panels"]


class Panels(eqx.Module):
    """Panels of the grid of an energy, cut to the support of a reference.

    ``edges`` has shape ``(num_panels + 1, *edge_shape)`` and does not decrease;
    ``unit_edges`` are the same in unit positions, or ``None`` where columns differ;
    ``has_tails`` says whether the support may reach below, and above, the panels.
    """

    edges: jax.Array
    unit_edges: tuple[float, ...] | None = eqx.field(static=True)
    has_tails: tuple[bool, bool] = eqx.field(static=True)


def make_panels(
    energy: Energy,
    parameters: ReferenceParameters | None,
    refinement: int,
    into_tails: bool = False,
) -> Panels:
    """Panels of an energy in ``refinement`` parts each, with those of the reference.

    Those of the energy are static. The reference adds its kinks, multiples of its scale
    about its centre, and panels that shrink geometrically to an end of its support
    where it may be singular; those known not to matter are left out. Panels cover the
    tails too where no closed form inverts them, or where ``into_tails`` asks for it,
    for integrands that change there.
    """
    breaks = energy.unit_breaks
    parts = np.arange(refinement).reshape((-1,) + (1,) * breaks.ndim) / refinement
    inner = breaks[:-1] + parts * np.diff(breaks, axis=0)
    inner = np.moveaxis(inner, 0, 1).reshape(-1, *breaks.shape[1:])
    unit = np.concatenate([inner, breaks[-1:]])
    low, high = np.asarray(energy.basis.low), np.asarray(energy.basis.high)
    edges = unit.reshape(-1, *unit.shape[1:], *(1,) * (low.ndim - unit.ndim + 1))
    edges = low * (1 - edges) + high * edges
    unit_edges = tuple(unit.tolist()) if unit.ndim == 1 else None
    has_tails = (False, False)
    if parameters is not None:
        has_tails = _tails_beyond(parameters.build(), low, high)
        cut = _cut_to_reference(edges, parameters, energy, into_tails)
        if cut is not None:
            return Panels(jnp.asarray(cut, energy.dtype), None, has_tails)
    return Panels(jnp.asarray(edges, energy.dtype), unit_edges, has_tails)


def _tails_beyond(
    reference: Any, low: np.ndarray, high: np.ndarray
) -> tuple[bool, bool]:
    """Whether the support may reach beyond the panels; yes, where that is not known."""
    if not has_regular_ends(reference):
        # The last cell before an end of the support counts as a tail.
        return True, True
    bounds = support_bounds(reference)
    return (
        not is_concrete(bounds[0]) or bool(np.any(np.asarray(bounds[0]) < low)),
        not is_concrete(bounds[1]) or bool(np.any(np.asarray(bounds[1]) > high)),
    )


class _Points(NamedTuple):
    """Where a reference asks for panels; rows are ``(count, *batch_shape)``."""

    bounds: tuple[jax.Array, ...]
    kinks: list[jax.Array]
    breaks: list[jax.Array]
    far: list[jax.Array]
    scale: jax.Array


def _points(
    parameters: ReferenceParameters,
    low: jax.Array | np.ndarray,
    high: jax.Array | np.ndarray,
    closed: bool,
) -> _Points:
    bounds = support_bounds(parameters.build())
    # Fixed for derivatives: the density is continuous at a kink, and a moving edge
    # beside a fixed one would leave an empty panel, which has no derivative.
    reference = jax.lax.stop_gradient(parameters).build()
    scale = finest_scale(reference)
    breaks = density_breaks(reference)
    return _Points(
        tuple(jnp.asarray(bound, low.dtype) for bound in bounds),
        [kink[None] for kink in kinks(reference)],
        breaks,
        [] if closed else far_breaks(reference, breaks, *map(jnp.asarray, (low, high))),
        # An unknown scale is 0: no panel is that fine.
        jnp.asarray(0.0 if scale is None else scale, low.dtype),
    )


_compiled_points = jax.jit(_points, static_argnames="closed")


def _cut_to_reference(
    edges: np.ndarray,
    parameters: ReferenceParameters,
    energy: Energy,
    into_tails: bool,
) -> ArrayLike | None:
    """Edges with the reference's added; ``None`` if the energy's are enough."""
    reference = parameters.build()
    dtype = energy.dtype
    low, high = np.asarray(energy.basis.low), np.asarray(energy.basis.high)
    # NumPy's arrays: a trace would make tracers of JAX's.
    ends = np.asarray(low, dtype), np.asarray(high, dtype)
    concrete = is_concrete(parameters)
    closed = has_quantile(reference) and not into_tails
    if concrete:
        with concretely():
            points = _compiled_points(parameters, *ends, closed=closed)
            if closed and _tail_mass_underflows(points, parameters, ends):
                closed = False
                points = _compiled_points(parameters, *ends, closed=closed)
            points = jax.tree_util.tree_map(lambda x: np.asarray(x, float), points)
            bulk = _bulk(points, reference, low, high)
    else:
        points = _points(parameters, *ends, closed)
    xp: Any = np if concrete else jnp
    start, stop = low, high
    # Where no closed form inverts the tails, panels cover them.
    for far in points.far:
        start, stop = xp.minimum(start, far[-1]), xp.maximum(stop, far[-1])
    # Panels that halve towards an end of the support, down to a cell that is treated as
    # a tail, with constant energy: there the density may be infinite.
    depth = 36 if dtype == np.float64 else 20
    added = [*points.kinks, *points.far]
    for side, bound in enumerate(support_bounds(reference)):
        if isinstance(bound, float) and np.isinf(bound):
            continue
        bound, inward = points.bounds[side], (1.0, -1.0)[side]
        edge = bound
        if not has_regular_ends(reference):
            span = abs((high, low)[side] - bound)
            cells = depth
            if concrete:
                near = np.minimum(*(abs(end - bound) for end in bulk))
                far = np.maximum(*(abs(end - bound) for end in bulk))
                near = np.where(near > 0, near, far)
                cells += _doublings(*np.broadcast_arrays(span, near))
            spacing = 64 * float(jnp.finfo(dtype).eps) * abs(bound)
            edge = bound + inward * xp.maximum(span * 2.0**-cells, spacing)
            powers = 2.0 ** -np.arange(1.0, cells).reshape((-1,) + (1,) * span.ndim)
            added.append(bound + inward * powers * span)
        if side == 0:
            start = xp.maximum(low, edge) if closed else edge
        else:
            stop = xp.minimum(high, edge) if closed else edge
    start, stop = xp.minimum(start, high), xp.maximum(stop, low)
    width = np.max(np.diff(edges, axis=0))
    if not (concrete and closed and np.all(width <= 0.5 * points.scale)):
        added += points.breaks
    if concrete:
        added += _bridges(bulk, low, high)
        added = [rows for rows in (_inside(a, start, stop) for a in added) if len(rows)]
        if not added and np.all(start == low) and np.all(stop == high):
            return None
    else:
        # Breaks counted in moments are NaN where the distribution has none.
        added = [jnp.nan_to_num(rows) for rows in added]
    if not closed:
        # The ends of panels that cover the tails.
        added += [xp.asarray(start)[None], xp.asarray(stop)[None]]
    shape = np.broadcast_shapes(
        edges.shape[1:], np.shape(start), np.shape(stop), *(a.shape[1:] for a in added)
    )
    rows = [with_rank(a, len(shape)) for a in (edges, *added)]
    rows = [xp.broadcast_to(a, (a.shape[0], *shape)) for a in rows]
    merged = xp.sort(xp.clip(xp.concatenate(rows), start, stop), axis=0)
    if concrete and merged.ndim == 1:
        # Empty panels cost as much as others.
        merged = np.unique(merged.astype(dtype))
        merged = np.repeat(merged, 2) if len(merged) == 1 else merged
    return merged


def _tail_mass_underflows(
    points: _Points, parameters: ReferenceParameters, ends: tuple
) -> bool:
    """Whether the reference's mass beyond the grid is positive, but underflows.

    An energy may lift it: then panels cover the tails, with densities as logarithms.
    """
    low, high = ends
    if all(
        np.min(low) >= np.min(rows) and np.max(high) <= np.max(rows)
        for rows in map(np.asarray, points.breaks)
    ):
        return False
    masses = _compiled_log_tails(parameters, *ends)
    tiny = np.log(np.finfo(low.dtype).tiny)
    return any(np.any((m > -np.inf) & (m < tiny)) for m in map(np.asarray, masses))


@jax.jit
def _compiled_log_tails(
    parameters: ReferenceParameters, low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    below = log_tail_mass(parameters, low, False)
    return below, log_tail_mass(parameters, high, True)


def _bulk(
    points: _Points, reference: Any, low: np.ndarray, high: np.ndarray
) -> tuple[ArrayLike, ArrayLike]:
    """Return the ends of the bulk: of the breaks, the median or the grid."""
    rows = (np.where(np.isfinite(b), b, np.nan) for b in points.breaks if len(b))
    known = [row for row in rows if not np.all(np.isnan(row), axis=0).any()]
    if not known:
        try:
            known = [np.asarray(reference.icdf(0.5), float)[None]]
        # NumPyro takes some quantile functions from an optional package.
        except (NotImplementedError, ImportError):
            return low, high
    first = reduce(np.minimum, (np.nanmin(row, axis=0) for row in known))
    return first, reduce(np.maximum, (np.nanmax(row, axis=0) for row in known))


def _doublings(whole: ArrayLike, distance: ArrayLike) -> int:
    """How often a distance is doubled to reach across a far wider grid; 0 if not."""
    whole, distance = np.asarray(whole), np.asarray(distance)
    is_wide = (distance > 0) & (whole > 4 * distance)
    if not np.any(is_wide):
        return 0
    return int(np.ceil(np.log2(np.max(whole[is_wide] / distance[is_wide]))))


def _bridges(
    bulk: tuple[ArrayLike, ArrayLike], low: np.ndarray, high: np.ndarray
) -> list[np.ndarray]:
    """Points that double their distance from the bulk to the ends of the grid."""
    first, last = bulk
    added = []
    for end, edge in ((first, low), (last, high)):
        centre = 0.5 * (first + last)
        distance, whole = np.broadcast_arrays(end - centre, edge - centre)
        sides = np.sign(distance) == np.sign(whole)
        count = _doublings(np.where(sides, np.abs(whole), 0), np.abs(distance))
        if count > 0:
            powers = 2.0 ** np.arange(count).reshape((-1,) + (1,) * distance.ndim)
            added.append(centre + powers * distance)
    return added


def _inside(points: np.ndarray, start: ArrayLike, stop: ArrayLike) -> np.ndarray:
    """Rows of which at least one column lies inside."""
    rank = max(points.ndim - 1, np.ndim(start), np.ndim(stop))
    columns = with_rank(points, rank)
    inside = np.isfinite(columns) & (columns > start) & (columns < stop)
    return points[inside.reshape(len(points), -1).any(axis=1)]
