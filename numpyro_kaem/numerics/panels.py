"""The panels of a tilted density, integrals on them, and how well they resolve it."""

import warnings
from functools import reduce
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpy.polynomial.legendre import legvander

from numpyro_kaem._quadrature import gauss_kronrod, gauss_legendre, nodes_per_panel
from numpyro_kaem.energy import Energy, PlacedEnergy
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
    log_density,
    log_tail_mass,
    support_bounds,
    with_rank,
)

__all__ = [
    "Integrand",
    "Panels",
    "Resolution",
    "check_number",
    "integrand",
    "make_panels",
    "resolution_of",
    "wanted",
    "warn_of_error",
    "warn_of_reference",
    "warn_of_spacing",
]


class Panels(eqx.Module):
    """Panels of the grid of an energy, cut to the support of a reference."""

    edges: jax.Array
    """Ends of the panels, shape ``(num_panels + 1, *edge_shape)``, not decreasing."""
    unit_edges: tuple[float, ...] | None = eqx.field(static=True)
    """The same in unit positions, where all columns share them; else ``None``."""
    has_tails: tuple[bool, bool] = eqx.field(static=True)
    """Whether the support may reach below, and above, the panels."""


class Integrand(NamedTuple):
    """The unnormalised density at the nodes of a composite rule, and its tails."""

    nodes: jax.Array
    """Nodes, shape ``(num_panels, num_nodes, *edge_shape)``."""
    energy: jax.Array
    """Energies at the nodes, shape ``(num_panels, num_nodes, *batch_shape)``."""
    log_mass: jax.Array
    """Log of weight times density at the nodes, the same shape."""
    log_tails: tuple[jax.Array | None, jax.Array | None]
    """Log masses below and above the panels, each ``(*batch_shape,)``, if there are."""
    energy_ends: tuple[jax.Array, jax.Array]
    """Energies at both ends of the panels, each ``(*batch_shape,)``."""

    @property
    def log_normalizer(self) -> jax.Array:
        """Log of the total mass, shape ``(*batch_shape,)``."""
        terms = [logsumexp(self.log_mass, axis=(0, 1))]
        terms += [tail for tail in self.log_tails if tail is not None]
        return terms[0] if len(terms) == 1 else logsumexp(jnp.stack(terms), axis=0)


def make_panels(
    energy: Energy,
    parameters: ReferenceParameters | None,
    refinement: int,
    into_tails: bool = False,
) -> Panels:
    """Panels on which both the energy and the reference are smooth.

    Those of the energy are static. The reference adds its kinks, multiples of its scale
    about its centre, and panels that shrink geometrically to an end of its support
    where it may be singular; those known not to matter are left out.

    Parameters
    ----------
    energy
        Energy, of ``batch_shape``.
    parameters
        Parameters of the reference; ``None`` is the uniform law on the grid.
    refinement
        Number of parts into which every panel of the energy is divided.
    into_tails
        Whether panels cover the tails of the reference too, as far as they have mass,
        for integrands that change there. They do so for every law without a closed
        quantile function.

    Returns
    -------
    Panels
    """
    breaks = energy.unit_breaks
    parts = np.arange(refinement).reshape((-1,) + (1,) * breaks.ndim) / refinement
    inner = breaks[:-1] + parts * np.diff(breaks, axis=0)
    inner = np.moveaxis(inner, 0, 1).reshape(-1, *breaks.shape[1:])
    unit = np.concatenate([inner, breaks[-1:]])
    low, high = np.asarray(energy.basis.low), np.asarray(energy.basis.high)
    edges = unit.reshape(-1, *unit.shape[1:], *(1,) * (low.ndim - unit.ndim + 1))
    edges = low * (1 - edges) + high * edges
    shared = tuple(unit.tolist()) if unit.ndim == 1 else None
    if parameters is None:
        return Panels(jnp.asarray(edges, energy.dtype), shared, (False, False))
    cut = _cut_to_reference(edges, parameters, energy, into_tails)
    has_tails = _tails_beyond(parameters.build(), low, high)
    if cut is None:
        return Panels(jnp.asarray(edges, energy.dtype), shared, has_tails)
    return Panels(jnp.asarray(cut, energy.dtype), None, has_tails)


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

    bounds: tuple[jax.Array, jax.Array]
    kinks: list[jax.Array]
    breaks: list[jax.Array]
    far: list[jax.Array]
    scale: jax.Array


def _points(
    parameters: ReferenceParameters, low: jax.Array, high: jax.Array, closed: bool
) -> _Points:
    reference = parameters.build()
    bounds = support_bounds(reference)
    # Fixed for derivatives: the density is continuous at a kink, and a moving edge
    # beside a fixed one would leave an empty panel, which has no derivative.
    reference = jax.lax.stop_gradient(parameters).build()
    scale = finest_scale(reference)
    breaks = density_breaks(reference)
    far = [] if closed else far_breaks(reference, breaks, low, high)
    return _Points(
        tuple(jnp.asarray(bound, low.dtype) for bound in bounds),
        [kink[None] for kink in kinks(reference)],
        breaks,
        far,
        # Not known is 0: no panel is that fine.
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
    # Not JAX arrays, which a trace would make tracers of.
    ends = np.asarray(low, dtype), np.asarray(high, dtype)
    concrete = is_concrete(parameters)
    closed = has_quantile(reference) and not into_tails
    regular = has_regular_ends(reference)
    if concrete:
        with concretely():
            points = _compiled_points(parameters, *ends, closed=closed)
            if closed and _reaches_nothing(points, parameters, ends):
                closed = False
                points = _compiled_points(parameters, *ends, closed=closed)
            points = jax.tree_util.tree_map(lambda x: np.asarray(x, float), points)
        xp = np
    else:
        points, xp = _points(parameters, *ends, closed), jnp
    start, stop = low, high
    # Where no closed form inverts the tails, panels cover them.
    for far in points.far:
        start, stop = xp.minimum(start, far[-1]), xp.maximum(stop, far[-1])
    # Panels that halve towards an end of the support, down to a cell that is treated as
    # a tail, with constant energy: there the density may be infinite.
    depth = 36 if dtype == np.float64 else 20
    added = [*points.kinks, *points.far]
    if concrete:
        with concretely():
            bulk = _bulk(points, reference, low, high)
    for side, bound in enumerate(support_bounds(reference)):
        if isinstance(bound, float) and np.isinf(bound):
            continue
        bound, inward = points.bounds[side], (1.0, -1.0)[side]
        edge = bound
        if not regular:
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
        # Breaks counted in moments are no numbers where the law has none.
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


def _reaches_nothing(
    points: _Points, parameters: ReferenceParameters, ends: tuple
) -> bool:
    """Whether a grid ends where the reference has a mass that is no number any more.

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
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the bulk of a law: its breaks, its median or the grid."""
    rows = (np.where(np.isfinite(b), b, np.nan) for b in points.breaks if len(b))
    known = [row for row in rows if not np.all(np.isnan(row), axis=0).any()]
    if not known:
        try:
            known = [np.asarray(reference.icdf(0.5), float)[None]]
        # NumPyro has some quantile functions from another package.
        except (NotImplementedError, ImportError):
            return low, high
    first = reduce(np.minimum, (np.nanmin(row, axis=0) for row in known))
    return first, reduce(np.maximum, (np.nanmax(row, axis=0) for row in known))


def _doublings(whole: np.ndarray, distance: np.ndarray) -> int:
    """How often a distance is doubled to reach across a far wider grid; 0 if not."""
    is_wide = (distance > 0) & (whole > 4 * distance)
    if not np.any(is_wide):
        return 0
    return int(np.ceil(np.log2(np.max(whole[is_wide] / distance[is_wide]))))


def _bridges(
    bulk: tuple[np.ndarray, np.ndarray], low: np.ndarray, high: np.ndarray
) -> list[np.ndarray]:
    """Points that double their distance from a law's centre to the ends of the grid."""
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


def _inside(points: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Rows of which at least one column lies inside."""
    rank = max(points.ndim - 1, np.ndim(start), np.ndim(stop))
    columns = with_rank(points, rank)
    inside = np.isfinite(columns) & (columns > start) & (columns < stop)
    return points[inside.reshape(len(points), -1).any(axis=1)]


def integrand(
    energy: PlacedEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    rule: tuple[np.ndarray, np.ndarray] | None = None,
) -> Integrand:
    """Evaluate the unnormalised density at the nodes of a rule on every panel.

    Parameters
    ----------
    energy
        Energy, of ``batch_shape``.
    parameters
        Parameters of the reference; ``None`` is the uniform law on the grid.
    panels
        Panels of both.
    rule
        Nodes in (-1, 1) and weights; the Gauss rule of the energy's precision if
        ``None``.

    Returns
    -------
    Integrand
    """
    dtype = energy.dtype
    reference = None if parameters is None else parameters.build()
    batch_shape = (
        energy.batch_shape
        if reference is None
        else jnp.broadcast_shapes(energy.batch_shape, reference.batch_shape)
    )
    x, weights = rule if rule is not None else gauss_legendre(nodes_per_panel(dtype))
    if panels.unit_edges is not None:
        left, width = np.asarray(panels.unit_edges[:-1]), np.diff(panels.unit_edges)
        s = left[:, None] + width[:, None] * (x + 1) / 2
        flat = s.reshape((-1,) + (1,) * len(batch_shape))
        values = energy.at_shared(jnp.asarray(s.reshape(-1), dtype))
        nodes = energy.from_unit(jnp.asarray(flat, dtype))
        nodes = nodes.reshape(*s.shape, *nodes.shape[1:])
        values = values.reshape(
            *s.shape,
            *(1,) * (len(batch_shape) - values.ndim + 1),
            *values.shape[1:],
        )
    else:
        edges = panels.edges
        rank = edges.ndim - 1
        left, width = edges[:-1, None], jnp.diff(edges, axis=0)[:, None]
        unit = jnp.asarray((x + 1) / 2, dtype).reshape((1, -1) + (1,) * rank)
        nodes = left + width * unit
        nodes = nodes.reshape(
            *nodes.shape[:2], *(1,) * (len(batch_shape) - rank), *nodes.shape[2:]
        )
        values = energy(nodes)
    width = jnp.diff(panels.edges, axis=0)[:, None]
    width = width.reshape(
        *width.shape[:2],
        *(1,) * (len(batch_shape) - width.ndim + 2),
        *width.shape[2:],
    )
    log_weights = jnp.asarray(np.log(weights / 2), dtype).reshape(
        (1, -1) + (1,) * len(batch_shape)
    )
    positive = width > 0
    log_width = jnp.where(positive, jnp.log(jnp.where(positive, width, 1)), -jnp.inf)
    if reference is None:
        low, high = energy.ends(dtype)
        log_reference = -jnp.log(high - low)
    else:
        log_reference = log_density(reference, nodes)
    log_mass = values + log_reference + (log_weights + log_width)
    log_mass = jnp.broadcast_to(log_mass, (*log_mass.shape[:2], *batch_shape))
    ends = [
        jnp.broadcast_to(energy(e), batch_shape)
        for e in (panels.edges[0], panels.edges[-1])
    ]
    tails: list[jax.Array | None] = [None, None]
    for side, upper in enumerate((False, True)):
        if panels.has_tails[side]:
            log_tail = log_tail_mass(parameters, panels.edges[-side], upper)
            tails[side] = jnp.broadcast_to(ends[side] + log_tail, batch_shape)
    return Integrand(nodes, values, log_mass, tuple(tails), tuple(ends))


# The change of the energy within a panel that its Gauss rule and series resolve, to
# 1e-6 in float32 and to 1e-12 in float64.
_CHANGE_PER_PANEL = {False: 5.0, True: 4.0}
_MAX_REFINEMENT = 8
_WARN_ABOVE = 1e-4
_SPACING_ABOVE = 1e-3


class Resolution(NamedTuple):
    """How well panels resolve a density, and how well its energies are known."""

    change: jax.Array
    """Largest change of the energy within a panel, a scalar."""
    panels: jax.Array
    """Relative difference of the normaliser between the Gauss rule and its Kronrod
    extension on the same panels, shape ``(*batch_shape,)``."""
    series: jax.Array
    """Largest error of a mass within a panel, the last terms of the density's series
    there, shape ``(*batch_shape,)``."""
    rounding: jax.Array
    """What rounding of the energies alone may cost, the same shape."""
    reference: jax.Array
    """Relative difference from 1 of the mass of the reference alone, the same shape."""
    spacing: jax.Array
    """Largest mass between two neighbouring numbers of the precision, a scalar."""

    @property
    def error(self) -> jax.Array:
        """Estimated error of the normaliser, relative, and of masses."""
        return self.panels + self.series + self.rounding + self.reference


def resolution_of(
    energy: PlacedEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> Resolution:
    """Say how well panels resolve a density."""
    dtype = energy.dtype
    num_nodes = nodes_per_panel(dtype)
    fine = integrand(energy, parameters, panels, gauss_kronrod(num_nodes))
    # Every second node of the extension is a Gauss node, with another weight.
    gauss_nodes, gauss_weights = gauss_legendre(num_nodes)
    _, kronrod_weights = gauss_kronrod(num_nodes)
    ratio = jnp.asarray(gauss_weights / kronrod_weights[1::2], dtype)
    ratio = ratio.reshape((1, -1) + (1,) * (fine.log_mass.ndim - 2))
    masses = jnp.exp(fine.log_mass - fine.log_normalizer)
    panel_masses = jnp.sum(masses, axis=1)
    coarse = masses[:, 1::2] * ratio
    coarse_masses = jnp.sum(coarse, axis=1)
    # What a series leaves out goes on as its terms fell, two by two for even densities;
    # the integral of a Legendre polynomial of the term that follows is below a half.
    last = jnp.asarray(legvander(gauss_nodes, num_nodes - 1)[:, -4:].T, dtype)
    last = last.reshape((4, *ratio.shape[1:]))
    terms = [jnp.abs(jnp.sum(coarse * row, axis=1)) for row in last]
    before, after = jnp.maximum(*terms[:2]), jnp.maximum(*terms[2:])
    fall = after / jnp.maximum(jnp.maximum(before, after), jnp.finfo(dtype).tiny)
    series = jnp.max(0.5 * after * fall, axis=0, initial=0.0)
    difference = jnp.abs(jnp.sum(coarse_masses - panel_masses, axis=0))
    eps = jnp.finfo(dtype).eps
    # Rounding of the energies costs where there is mass; elsewhere they may be huge.
    scale = jnp.max(jnp.where(masses > eps, jnp.abs(fine.energy), 0), axis=(0, 1))
    nodes = fine.energy[:, 1::2]
    change = jnp.max(jnp.max(nodes, 1) - jnp.min(nodes, 1), initial=0.0)
    own_error = jnp.zeros_like(difference)
    if parameters is not None:
        own_error = _error_of_reference(fine, parameters, panels)
        own_error = jnp.where(own_error > 64 * eps, own_error, 0)
        own_error = jnp.broadcast_to(own_error, difference.shape)
    width = jnp.diff(panels.edges, axis=0)
    gap = eps * jnp.maximum(jnp.abs(panels.edges[:-1]), jnp.abs(panels.edges[1:]))
    share = jnp.minimum(gap / jnp.where(width > 0, width, 1), 1)
    share = share.reshape(
        len(share), *(1,) * (difference.ndim + 1 - share.ndim), *share.shape[1:]
    )
    spacing = jnp.max(share * panel_masses, initial=0.0)
    rounding = eps * (24 + 2 * scale)
    return Resolution(change, difference, series, rounding, own_error, spacing)


def _error_of_reference(
    values: Integrand, parameters: ReferenceParameters, panels: Panels
) -> jax.Array:
    """Difference from 1 of the mass of the reference, which is left at energy 0.

    Once for all densities that share it and its panels: of shape 1 along their axes.
    """
    rank = values.log_mass.ndim - 2
    shape = np.broadcast_shapes(
        (1,) * rank, parameters.build().batch_shape, panels.edges.shape[1:]
    )
    shared = (..., *(slice(0, 1) if size == 1 else slice(None) for size in shape))
    terms = [logsumexp((values.log_mass - values.energy)[shared], axis=(0, 1))]
    for tail, end in zip(values.log_tails, values.energy_ends, strict=True):
        if tail is not None:
            terms.append((tail - end)[shared])
    return jnp.abs(jnp.expm1(logsumexp(jnp.stack(terms), axis=0)))


def check_number(resolution: Resolution, parameters: ReferenceParameters) -> None:
    """Refuse a reference with which the density is not a number.

    Raises
    ------
    ValueError
        If the normaliser is NaN.
    """
    # Not of the sum, which a trace would make a tracer of.
    if np.any(np.isnan(np.asarray(resolution.panels))):
        support = parameters.build().support
        raise ValueError(
            "reference must have a log_prob and a cdf that are numbers everywhere in "
            f"its support, which it says is {support}; the normaliser is NaN. A "
            "transform may lack its domain."
        )


def warn_of_reference(resolution: Resolution, parameters: Any, dtype: Any) -> None:
    """Warn of a reference that is not of mass 1, or that the precision cannot place."""
    name, precision = parameters.law.__name__, np.dtype(dtype).name
    worst = float(np.max(np.asarray(resolution.reference), initial=0.0))
    if worst > _WARN_ABOVE:
        warnings.warn(
            f"the {name} reference has a mass that differs from 1 by {worst:.1e} in "
            f"{precision}, by its own log_prob and cdf on the panels of the grid: the "
            "density between and beyond the ends of the grid is off by as much. Use "
            "float64 (jax.config.update('jax_enable_x64', True)), a grid about as wide "
            "as the reference, or a reference whose bulk is nearer to its support.",
            UserWarning,
            stacklevel=5,
        )


def wanted(resolution: Resolution, dtype: np.dtype) -> int:
    """Return the parts of every panel that such an energy needs, at most 8."""
    limit = _CHANGE_PER_PANEL[np.dtype(dtype) == np.float64]
    parts = int(np.ceil(float(resolution.change) / limit))
    return min(max(parts, 1), _MAX_REFINEMENT)


def warn_of_spacing(resolution: Resolution, dtype: Any) -> None:
    """Warn where the numbers of the precision are too far apart for the density."""
    spacing = float(resolution.spacing)
    if spacing > _SPACING_ABOVE:
        warnings.warn(
            f"positions are too coarse in {np.dtype(dtype).name}: neighbouring numbers "
            f"have up to {spacing:.1e} of the mass between them, and draws and masses "
            "err by as much. Subtract an offset from z, such as its mean, or use "
            "float64 (jax.config.update('jax_enable_x64', True)).",
            UserWarning,
            stacklevel=5,
        )


def warn_of_error(
    error: jax.Array, change: float, refinement: int, stacklevel: int
) -> None:
    """Warn of a normaliser whose estimated relative error is above 1e-4."""
    worst = float(np.max(np.asarray(error)))
    if not worst <= _WARN_ABOVE:
        warnings.warn(
            f"the normaliser has an estimated relative error of {worst:.1e}: the "
            f"energy changes by {change:.3g} within a panel of the quadrature. Use "
            "smaller coefficients, a smoother basis or a larger refinement than "
            f"{refinement}.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
