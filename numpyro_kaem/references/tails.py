"""Densities, tail masses and quantiles of references, precise far out."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from numpyro_kaem._quadrature import gauss_legendre, nodes_per_panel
from numpyro_kaem.references.parameters import ReferenceParameters, is_concrete
from numpyro_kaem.references.traits import (
    by_sign,
    density_breaks,
    interior_point,
    kinks,
    local_length,
    mixture_parts,
    monotone_parts,
    support_bounds,
    traits_of,
    truncated_parts,
    with_rank,
)

__all__ = [
    "PowerTail",
    "far_breaks",
    "log_density",
    "log_tail_mass",
    "power_quantile",
    "power_tail",
    "scaled_tail_mass",
    "tail_mass",
    "tail_nodes",
    "tail_quantile",
]


def log_density(reference: dist.Distribution, z: jax.Array) -> jax.Array:
    """Log density; minus infinity, with zero gradient, outside the support."""
    low, high = support_bounds(reference)
    inside = (z >= low) & (z <= high)
    z = jnp.where(inside, z, interior_point(low, high, z.dtype))
    truncated = truncated_parts(reference)
    if truncated is None:
        values = reference.log_prob(z)
    else:
        base, *ends = truncated
        ends = [jnp.asarray(end, z.dtype) for end in ends]
        total = _log_between(ReferenceParameters.of(base), *ends)
        values = base.log_prob(z) - total
    return jnp.where(inside, values, -jnp.inf)


# --- masses --------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def tail_mass(parameters: ReferenceParameters, x: jax.Array, upper: bool) -> jax.Array:
    r"""Mass below (or above) a point, to full relative precision.

    .. math:: F_0(x) = \int_{-\infty}^x \pi_0 \quad\text{or}\quad
              S_0(x) = \int_x^\infty \pi_0.

    It is exactly 0 or 1 outside the support. The derivative in ``x`` is the density.
    Those in the parameters are quadratures of the density's derivatives where the mass
    has no derivative of its own: JAX's incomplete beta and gamma functions have none in
    their shape parameters.
    """
    return _mass(parameters, x, upper)


def _mass(parameters: ReferenceParameters, x: jax.Array, upper: bool) -> jax.Array:
    reference = parameters.build()
    low, high = support_bounds(reference)
    inside = (x > low) & (x < high)
    safe = jnp.where(inside, x, interior_point(low, high, x.dtype))
    mass = _inner_mass(parameters, reference, safe, upper)
    beyond = (x <= low) if upper else (x >= high)
    return jnp.where(inside, mass, jnp.where(beyond, 1.0, 0.0).astype(mass.dtype))


def _inner_mass(
    parameters: ReferenceParameters, reference: Any, x: jax.Array, upper: bool
) -> jax.Array:
    parts = monotone_parts(reference)
    if parts is not None:
        base, transforms = parts
        x, sign = _pull_back(transforms, x)
        own = ReferenceParameters.of(base)
        return by_sign(sign, lambda side: tail_mass(own, x, side), upper)
    mixture = mixture_parts(reference)
    if mixture is not None:
        weights, components, on_last_axis = mixture
        points = x[..., None] if on_last_axis else x
        rows = [
            tail_mass(ReferenceParameters.of(component), points, upper)
            for component in components
        ]
        masses = rows[0] if on_last_axis else jnp.stack(rows, axis=-1)
        return jnp.sum(weights * masses, axis=-1)
    truncated = truncated_parts(reference)
    if truncated is not None:
        base = ReferenceParameters.of(truncated[0])
        low, high = (jnp.asarray(end, x.dtype) for end in truncated[1:])
        part = _log_between(base, x, high) if upper else _log_between(base, low, x)
        return jnp.exp(part - _log_between(base, low, high))
    mass = traits_of(reference).mass
    if mass is not None:
        return mass(reference, x, upper)
    if not upper:
        return reference.cdf(x)
    return _quadrature_mass(parameters, x, upper)


def _pull_back(transforms: list, x: jax.Array) -> tuple[jax.Array, Any]:
    """Point of the base distribution, and the sign of the derivative there."""
    sign = 1
    for transform in reversed(transforms):
        x = transform.inv(x)
        sign = sign * transform.sign
    return x, sign


@partial(tail_mass.defjvp, symbolic_zeros=True)
def _tail_mass_jvp(upper: bool, primals: tuple, tangents: tuple) -> tuple:
    parameters, x = primals
    parameters_dot, x_dot = tangents
    mass = tail_mass(parameters, x, upper)
    mass_dot = jnp.zeros_like(mass)
    if not isinstance(x_dot, SymbolicZero):
        density = jnp.exp(log_density(parameters.build(), x))
        mass_dot += jnp.where(density > 0, (-density if upper else density) * x_dot, 0)
    leaves_dot, treedef = jax.tree_util.tree_flatten(
        parameters_dot, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero)
    )
    if not all(isinstance(leaf, SymbolicZero) for leaf in leaves_dot):
        leaves = jax.tree_util.tree_leaves(parameters)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        leaves_dot = [
            jnp.zeros_like(leaf) if isinstance(dot, SymbolicZero) else dot
            for leaf, dot in zip(leaves, leaves_dot, strict=True)
        ]
        reference = parameters.build()
        parts = (monotone_parts, mixture_parts, truncated_parts)
        is_made = any(of(reference) is not None for of in parts)
        closed = is_made or traits_of(reference).differentiable

        def mass_of(values: list[jax.Array]) -> jax.Array:
            moved = jax.tree_util.tree_unflatten(treedef, values)
            if closed:
                return _mass(moved, x, upper)
            return _quadrature_mass(moved, x, upper, stop=parameters)

        _, change = jax.jvp(mass_of, (leaves,), (leaves_dot,))
        mass_dot += change
    return mass, mass_dot


def log_tail_mass(
    parameters: ReferenceParameters, x: jax.Array, upper: bool
) -> jax.Array:
    """Log of :func:`tail_mass`, where it is known also for masses that underflow."""
    reference = parameters.build()
    known = traits_of(reference).log_mass
    if known is None:
        mass = tail_mass(parameters, x, upper)
        return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1)), -jnp.inf)
    low, high = support_bounds(reference)
    inside = (x > low) & (x < high)
    safe = jnp.where(inside, x, interior_point(low, high, x.dtype))
    beyond = (x <= low) if upper else (x >= high)
    outside = jnp.where(beyond, 0.0, -jnp.inf)
    return jnp.where(inside, known(reference, safe, upper), outside)


def scaled_tail_mass(
    parameters: ReferenceParameters, x: jax.Array, upper: bool, log_scale: jax.Array
) -> jax.Array:
    """Mass of a tail times a factor, at most 1, which alone may overflow."""
    mass = tail_mass(parameters, x, upper)
    # In two steps, of which neither overflows where the product does not.
    limit = jnp.log(jnp.finfo(mass.dtype).max)
    root = jnp.exp(0.5 * jnp.minimum(log_scale, 2 * limit - 1))
    scaled = mass * root * root
    if traits_of(parameters.build()).log_mass is None:
        return scaled
    is_number = mass > 16 * jnp.finfo(mass.dtype).tiny
    from_log = jnp.exp(log_scale + log_tail_mass(parameters, x, upper))
    return jnp.where(is_number, scaled, from_log)


def _log_between(
    parameters: ReferenceParameters, low: jax.Array, high: jax.Array
) -> jax.Array:
    """Log mass between two points of a distribution symmetric about ``loc``."""
    reference = parameters.build()
    below_low, above_low = (log_tail_mass(parameters, low, s) for s in (False, True))
    below_high, above_high = (log_tail_mass(parameters, high, s) for s in (False, True))
    # The difference of the smaller tails.
    is_low = below_high < above_low
    larger = jnp.where(is_low, below_high, above_low)
    smaller = jnp.where(is_low, below_low, above_high)
    # Both may be 0, so far out that even their logarithms overflow.
    gap = smaller - jnp.where(larger > -jnp.inf, larger, 0)
    near = gap > -0.1
    difference = larger + jnp.log1p(-jnp.exp(jnp.where(near, -1.0, gap)))
    # Between close points the difference has few digits: there by a Gauss rule, on both
    # sides of the centre, where a derivative may jump.
    centre, scale = (
        jnp.asarray(p, larger.dtype) for p in (reference.loc, reference.scale)
    )
    start, stop = jnp.where(near, low, centre), jnp.where(near, high, centre + scale)
    middle = jnp.clip(centre, start, stop)
    x, weights = gauss_legendre(16)
    share = jnp.asarray((x + 1) / 2, larger.dtype).reshape((-1,) + (1,) * larger.ndim)
    terms = []
    for left, right in ((start, middle), (middle, stop)):
        width = right - left
        log_width = jnp.log(jnp.where(width > 0, width, 1))
        values = reference.log_prob(left + width * share) + log_width
        terms.append(jnp.where(width > 0, values, -jnp.inf))
    log_weights = jnp.asarray(np.log(weights / 2), larger.dtype).reshape(share.shape)
    rule = logsumexp(jnp.stack(terms) + log_weights, axis=(0, 1))
    return jnp.where(near, rule, difference)


def _quadrature_mass(
    parameters: ReferenceParameters,
    x: jax.Array,
    upper: bool,
    stop: ReferenceParameters | None = None,
) -> jax.Array:
    nodes, log_weights = tail_nodes(stop or parameters, x, upper)
    reference = parameters.build()
    log_values = log_density(reference, nodes)
    # Again where it counts only: beyond, its gradient may overflow, and infinity times
    # a density of zero is not a number.
    smallest = jnp.log(jnp.finfo(log_values.dtype).tiny)
    used = jnp.isfinite(log_values) & (log_values + log_weights > smallest)
    log_values = log_density(reference, jnp.where(used, nodes, x))
    log_values = jnp.where(used & jnp.isfinite(log_values), log_values, -jnp.inf)
    return jnp.sum(jnp.exp(log_values + log_weights), 0)


def tail_nodes(
    parameters: ReferenceParameters, x: ArrayLike, upper: bool
) -> tuple[jax.Array, jax.Array]:
    """Composite Gauss rule on the tail beyond ``x``: ``(num_nodes, *batch_shape)``.

    Panels grow geometrically from ``x``, or shrink towards a finite end of the support,
    and are split at the breaks of the density. Nodes are constants with respect to the
    parameters; log weights on empty panels are minus infinity.
    """
    reference = jax.lax.stop_gradient(parameters).build()
    x = jnp.asarray(x)
    dtype = x.dtype
    sign = 1.0 if upper else -1.0
    end = jnp.asarray(support_bounds(reference)[1 if upper else 0], dtype)
    fixed = jax.lax.stop_gradient(x)
    shape = jnp.broadcast_shapes(x.shape, reference.batch_shape)
    rank = len(shape)
    column = (-1,) + (1,) * rank
    # Distances from x: geometric from the local length on, or towards the end.
    powers = jnp.asarray(2.0 ** np.arange(-3.0, 100.0), dtype).reshape(column)
    shrink = jnp.asarray(1 - 2.0 ** -np.arange(0.0, 103.0), dtype).reshape(column)
    finite = jnp.isfinite(end)
    span = jnp.where(finite, jnp.abs(end - fixed), 1.0)
    length = local_length(reference, fixed)
    distances = jnp.where(finite, shrink * span, powers * length)
    limit = jnp.where(finite, span, jnp.asarray(1e37, dtype))
    changes = [*density_breaks(reference), *(k[None] for k in kinks(reference))]
    extra = [with_rank(p, rank) - fixed for p in changes]
    extra = [jnp.broadcast_to(sign * e, (e.shape[0], *shape)) for e in extra]
    edges = jnp.concatenate(
        [
            jnp.zeros((1, *shape), dtype),
            jnp.broadcast_to(distances, (distances.shape[0], *shape)),
            jnp.broadcast_to(limit, (1, *shape)),
            *extra,
        ]
    ).astype(dtype)
    edges = jnp.sort(jnp.clip(edges, 0.0, limit), axis=0)
    nodes, weights = gauss_legendre(nodes_per_panel(dtype))
    unit = jnp.asarray((nodes + 1) / 2, dtype).reshape((1, -1) + (1,) * rank)
    log_weights = jnp.asarray(np.log(weights / 2), dtype).reshape(unit.shape)
    width = jnp.diff(edges, axis=0)[:, None]
    distance = edges[:-1, None] + width * unit
    log_weights = log_weights + jnp.where(
        width > 0, jnp.log(jnp.where(width > 0, width, 1.0)), -jnp.inf
    )
    # Towards a finite end the nodes shrink with the distance that is left.
    moved = jnp.where(finite, jnp.abs(end - x) / span, 1.0)
    to_end = end - sign * moved * (span - distance)
    points = jnp.where(finite, to_end, x + sign * distance)
    log_weights = log_weights + jnp.where(finite, jnp.log(jnp.maximum(moved, 1e-37)), 0)
    count = points.shape[0] * points.shape[1]
    log_weights = jnp.broadcast_to(log_weights, points.shape)
    return points.reshape(count, *shape), log_weights.reshape(count, *shape)


# --- quantiles -----------------------------------------------------------------------


def tail_quantile(
    parameters: ReferenceParameters, mass: jax.Array, start: jax.Array, upper: bool
) -> jax.Array:
    """Point with a given mass below (or above) it, in the tail from ``start`` on.

    Closed forms where there are any. Other distributions have panels so far into their
    tails (:func:`far_breaks`) that hardly a draw lies beyond; there the tail is a
    power. A mass of 0 gives the end of the tail.
    """
    reference = parameters.build()
    end = jnp.asarray(support_bounds(reference)[1 if upper else 0], mass.dtype)
    safe = jnp.maximum(mass, jnp.finfo(mass.dtype).tiny)
    point = _inner_quantile(parameters, reference, safe, start, upper)
    return _within_tail(point, mass, start, end, upper)


def _inner_quantile(
    parameters: ReferenceParameters,
    reference: Any,
    mass: jax.Array,
    start: jax.Array,
    upper: bool,
) -> jax.Array:
    parts = monotone_parts(reference)
    if parts is not None:
        base, transforms = parts
        start, sign = _pull_back(transforms, start)
        own = ReferenceParameters.of(base)
        point = by_sign(sign, lambda side: tail_quantile(own, mass, start, side), upper)
        for transform in transforms:
            point = transform(point)
        return point
    quantile = traits_of(reference).quantile
    if quantile is not None:
        return quantile(reference, mass, upper)
    return power_quantile(power_tail(parameters, start, upper), mass, upper)


def _within_tail(
    point: jax.Array, mass: jax.Array, start: jax.Array, end: jax.Array, upper: bool
) -> jax.Array:
    """Points that rounding leads neither back over the start nor past the end."""
    point = jnp.clip(point, start, end) if upper else jnp.clip(point, end, start)
    return jnp.where(mass > 0, point, end)


class PowerTail(NamedTuple):
    """A tail that is a power of a distance, by its slope at the start.

    Towards a finite end of the support, of the distance to it; else of the distance
    from the centre, in which an exponential tail is a high power.
    """

    start: jax.Array
    end: jax.Array
    centre: jax.Array
    total: jax.Array
    """Mass beyond the start."""
    hazard: jax.Array
    """Density at the start over that mass."""


def power_tail(
    parameters: ReferenceParameters, start: jax.Array, upper: bool
) -> PowerTail:
    """Tail of a distribution from ``start`` on."""
    reference = parameters.build()
    end = jnp.asarray(support_bounds(reference)[1 if upper else 0], start.dtype)
    location = getattr(reference, "loc", None)
    centre = jnp.zeros_like(start)
    if location is not None:
        centre = jnp.asarray(location, start.dtype)
    total = jnp.maximum(
        tail_mass(parameters, start, upper), jnp.finfo(start.dtype).tiny
    )
    hazard = jnp.exp(log_density(reference, start)) / total
    return PowerTail(start, end, centre, total, hazard)


def power_quantile(tail: PowerTail, mass: jax.Array, upper: bool) -> jax.Array:
    """Point with a given mass beyond it, elementwise; the end where that is 0."""
    start, end, centre, total, hazard = tail
    sign = 1.0 if upper else -1.0
    tiny = jnp.finfo(mass.dtype).tiny
    finite = jnp.isfinite(end)
    share = jnp.minimum(jnp.maximum(mass, tiny) / total, 1)
    span = jnp.where(finite, jnp.abs(end - start), 1)
    near = jnp.exp(jnp.log(share) / jnp.maximum(span * hazard, 1e-3))
    distance = jnp.maximum(jnp.abs(start - centre), tiny)
    power = jnp.maximum(distance * hazard, 1e-3)
    far = distance * jnp.expm1(-jnp.log(share) / power)
    point = jnp.where(finite, end - sign * span * near, start + sign * far)
    return _within_tail(point, mass, start, end, upper)


# --- panels in the tails -------------------------------------------------------------


def far_breaks(
    reference: dist.Distribution,
    breaks: list[jax.Array],
    low: jax.Array,
    high: jax.Array,
) -> list[jax.Array]:
    """Points that double their distance from a grid, into infinite tails.

    They end where the density, of which the breaks are, has no mass that the precision
    can tell from none. For tails that are not inverted in closed form; each
    ``(count, *shape)``.
    """
    far = []
    for bound, edge, sign in zip(
        support_bounds(reference), (low, high), (-1.0, 1.0), strict=True
    ):
        if is_concrete(bound) and np.all(np.isfinite(np.asarray(bound))):
            continue
        length = local_length(reference, edge)
        # Where the bulk lies far beyond the grid, over and beyond it too.
        bulk = _distance_of_bulk(reference, breaks, edge, length, sign)
        length = jnp.maximum(length, 2.0**-12 * bulk)
        powers = 2.0 ** np.arange(-2.0, 39.0).reshape((-1,) + (1,) * length.ndim)
        distance = jnp.asarray(powers, length.dtype) * length
        points = jnp.clip(edge + sign * distance, -1e30, 1e30)
        far.append(_while_massive(reference, breaks, points, distance, sign))
    return far


def _distance_of_bulk(
    reference: dist.Distribution,
    breaks: list[jax.Array],
    edge: jax.Array,
    length: jax.Array,
    sign: float,
) -> jax.Array:
    """Distance to the break beyond an edge with most mass about it, if not the edge."""
    bulk, most = jnp.zeros_like(length), log_density(reference, edge) + jnp.log(length)
    for rows in breaks:
        rows = with_rank(rows, length.ndim)
        distance = sign * (rows - edge)
        beyond = jnp.isfinite(rows) & (distance > 0)
        distance = jnp.where(beyond, distance, 1)
        log_mass = log_density(reference, rows) + jnp.log(distance)
        log_mass = jnp.where(beyond, log_mass, -jnp.inf)
        index = jnp.argmax(log_mass, axis=0)[None]
        own = jnp.take_along_axis(log_mass, index, axis=0)[0]
        there = jnp.take_along_axis(distance, index, axis=0)[0]
        bulk, most = jnp.where(own > most, there, bulk), jnp.maximum(own, most)
    return bulk


def _while_massive(
    reference: dist.Distribution,
    breaks: list[jax.Array],
    points: jax.Array,
    distance: jax.Array,
    sign: float,
) -> jax.Array:
    """Points up to the first with no mass beyond it; the rest repeat that one."""
    log_mass = log_density(reference, points) + jnp.log(distance)
    massive = log_mass > jnp.log(jnp.finfo(points.dtype).tiny)
    # The mass may lie between two points, but not beyond where the density has breaks.
    furthest = jnp.asarray(-jnp.inf)
    for rows in breaks:
        rows = sign * with_rank(rows, points.ndim - 1)
        rows = jnp.where(jnp.isfinite(rows), rows, -jnp.inf)
        furthest = jnp.maximum(furthest, jnp.max(rows, axis=0))
    massive |= sign * points < furthest
    beyond = jnp.flip(jax.lax.cummax(jnp.flip(massive, 0).astype(jnp.int32)), 0)
    # The first without mass is the end.
    end = jnp.minimum(jnp.sum(beyond, axis=0), len(points) - 1)
    end = jnp.take_along_axis(points, end[None], axis=0)
    return jnp.minimum(points, end) if sign > 0 else jnp.maximum(points, end)
