"""Quantiles in the tails of a reference."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from numpyro_kaem.references.laws import by_sign, law_of, monotone_parts
from numpyro_kaem.references.parameters import ReferenceParameters
from numpyro_kaem.references.shape import support_bounds
from numpyro_kaem.references.tails import log_density, tail_mass

__all__ = [
    "PowerTail",
    "power_quantile",
    "power_tail",
    "tail_quantile",
]


def tail_quantile(
    parameters: ReferenceParameters, mass: jax.Array, start: jax.Array, upper: bool
) -> jax.Array:
    """Point with a given mass below (or above) it, in the tail from ``start`` on.

    Closed forms where there are any. Other laws have panels so far into their tails
    (:func:`far_breaks`) that hardly a draw lies beyond; there the tail is a power.

    Parameters
    ----------
    parameters
        Parameters of the law.
    mass
        Mass beyond the point, at most that beyond ``start``, shape (...,).
    start
        Start of the tail, shape broadcasting with that of ``mass``.
    upper
        Whether the mass above is meant.

    Returns
    -------
    Array
        Points in the tail; its end where the mass is 0.
    """
    reference = parameters.build()
    end = jnp.asarray(support_bounds(reference)[1 if upper else 0], mass.dtype)
    tiny = jnp.finfo(mass.dtype).tiny
    safe = jnp.maximum(mass, tiny)
    point = _inner_quantile(parameters, reference, safe, start, upper)
    # Rounding must not lead back over the start of the tail, nor past its end.
    point = jnp.clip(point, start, end) if upper else jnp.clip(point, end, start)
    return jnp.where(mass > 0, point, end)


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
        sign = 1
        for transform in reversed(transforms):
            start = transform.inv(start)
            sign = sign * transform.sign
        base_parameters = ReferenceParameters.of(base)
        point = by_sign(
            sign,
            lambda side: tail_quantile(base_parameters, mass, start, side),
            upper,
        )
        for transform in transforms:
            point = transform(point)
        return point
    law = law_of(reference)
    if law.quantile is not None:
        return law.quantile(reference, mass, upper)
    return power_quantile(power_tail(parameters, start, upper), mass, upper)


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
    """Tail of a law from ``start`` on."""
    reference = parameters.build()
    end = jnp.asarray(support_bounds(reference)[1 if upper else 0], start.dtype)
    total = jnp.maximum(
        tail_mass(parameters, start, upper), jnp.finfo(start.dtype).tiny
    )
    hazard = jnp.exp(log_density(reference, start)) / total
    return PowerTail(start, end, _centre(reference, start), total, hazard)


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
    # Rounding must not lead back over the start of the tail, nor past its end.
    point = jnp.clip(point, start, end) if upper else jnp.clip(point, end, start)
    return jnp.where(mass > 0, point, end)


def _centre(reference: dist.Distribution, x: jax.Array) -> jax.Array:
    """Location of the law, from which its tails are measured."""
    location = getattr(reference, "loc", None)
    return jnp.zeros_like(x) if location is None else jnp.asarray(location, x.dtype)
