"""Terms of a model's log density by unit, where a plate makes units independent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from numpyro_kaem.infer.target import inside

__all__ = [
    "DrawProposals",
    "alternate",
    "check_units",
    "frame_of",
    "log_prob",
    "relative_gap",
    "unexpanded",
    "unit_axis",
    "unit_sum",
]


def log_prob(name: str, site: dict) -> jax.Array:
    """Log density of a sample site, scaled as the model says, of its batch shape.

    Outside the support of an observed site it is -inf: NumPyro's densities need not be
    zero there, and warn of it outside ``jit`` only.

    Raises
    ------
    ValueError
        If the observed value is repeated to the shape of its distribution.
    """
    fn, value, intermediates = site["fn"], site["value"], site["intermediates"]
    terms = fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    if site["is_observed"]:
        shape = jnp.shape(value)[: jnp.ndim(value) - fn.event_dim]
        if jnp.shape(terms) not in (shape, fn.batch_shape):
            raise ValueError(
                f"observed site {name!r} must have a value of the shape {fn.shape()} "
                f"of its distribution, got {jnp.shape(value)}, which would broadcast."
            )
        terms = jnp.where(_in_support(fn, value), terms, -jnp.inf)
    return terms if site["scale"] is None else site["scale"] * terms


def _in_support(fn: dist.Distribution, value: jax.Array) -> jax.Array:
    """Whether a value lies in the support, or is masked."""
    if isinstance(fn, dist.Unit):  # numpyro.factor
        return jnp.ones((), bool)
    if isinstance(fn, dist.MaskedDistribution):
        # Placeholders of masked values may be anything.
        return _in_support(fn.base_dist, value) | ~jnp.asarray(fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        return _in_support(fn.base_dist, value)
    if isinstance(fn, dist.Independent):
        axes = tuple(range(-fn.reinterpreted_batch_ndims, 0))
        inner = _in_support(fn.base_dist, value)
        shape = fn.base_dist.batch_shape
        return jnp.all(jnp.broadcast_to(inner, shape), axis=axes)
    return fn.support(value)


# --- the plate of units --------------------------------------------------------------


def frame_of(site: dict, unit_plate: str) -> Any:
    """Frame of the plate around a site, or None if it is outside."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.name == unit_plate]
    return frames[0] if frames else None


def unit_axis(site: dict, unit_plate: str) -> int:
    """Axis of the units in a site's value, counted from the right."""
    return frame_of(site, unit_plate).dim - site["fn"].event_dim


def unit_sum(name: str, site: dict, unit_plate: str) -> jax.Array:
    """Log density of a site within the plate, summed for each unit."""
    terms = log_prob(name, site)
    frame = frame_of(site, unit_plate)
    units = terms.ndim + frame.dim
    others = tuple(axis for axis in range(terms.ndim) if axis != units)
    return jnp.broadcast_to(jnp.sum(terms, axis=others), (frame.size,))


def check_units(
    unit_plate: str, sites: dict[str, dict], trace: dict[str, dict], role: str
) -> None:
    """Check that sites lie within the plate of units.

    Parameters
    ----------
    unit_plate
        Name of the plate.
    sites
        Sites that are drawn.
    trace
        Trace that they are from.
    role
        ``"model"`` or ``"guide"``, for the message.

    Raises
    ------
    ValueError
        If there is no such plate, or a site is outside.
    """
    plates = [name for name, site in trace.items() if site["type"] == "plate"]
    if role == "model" and unit_plate not in plates:
        names = ", ".join(map(repr, plates)) or "none"
        raise ValueError(
            f"unit_plate must name a plate of the model, got {unit_plate!r}; its "
            f"plates are {names}."
        )
    outside = [
        name for name, site in sites.items() if frame_of(site, unit_plate) is None
    ]
    if outside and role == "model":
        raise ValueError(
            f"model must have all latent sites within the plate {unit_plate!r}, which "
            "makes units independent, got outside it: "
            f"{', '.join(map(repr, outside))}. Fix them with numpyro.handlers.condition"
            ", or leave unit_plate out for one weight per particle."
        )
    if outside:
        raise ValueError(
            f"guide must draw within the plate {unit_plate!r}, got outside it: "
            f"{', '.join(map(repr, outside))}. A guide with one site for each latent, "
            "such as AutoNormal, does."
        )


# --- one proposal for all units ------------------------------------------------------


def unexpanded(fn: dist.Distribution, dim: int) -> dist.Distribution | None:
    """Distribution before its expansion along one batch dimension, of size one there.

    Parameters
    ----------
    fn
        Distribution of a site in a plate.
    dim
        Batch dimension of the plate, counted from the right.

    Returns
    -------
    Distribution or None
        None if it is not the plate alone that gives the dimension its size.
    """
    batch_shape = fn.batch_shape
    if len(batch_shape) < -dim or batch_shape[dim] == 1:
        return fn
    if isinstance(fn, dist.ExpandedDistribution):
        base = fn.base_dist
        if len(base.batch_shape) >= -dim and base.batch_shape[dim] != 1:
            return None
        shape = list(batch_shape)
        shape[dim] = 1
        return base.expand(tuple(shape))
    if isinstance(fn, dist.Independent):
        count = fn.reinterpreted_batch_ndims
        inner = unexpanded(fn.base_dist, dim - count)
        return None if inner is None else inner.to_event(count)
    return None


class DrawProposals(Messenger):
    """Draw latent sites from their prior, once for all units if they share proposals.

    Belongs outside :class:`numpyro.handlers.seed`, which gives the keys. A draw that
    rounding has put on an end of its support is moved to the next number within.
    """

    def __init__(self, fn: Callable, shared_plate: str | None):
        self.shared_plate = shared_plate
        super().__init__(fn)

    def process_message(self, msg: dict) -> None:
        """Undo the plate's expansion of a latent site's distribution, and draw."""
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        if self.shared_plate is not None:
            frame = frame_of(msg, self.shared_plate)
            fn = None if frame is None else unexpanded(msg["fn"], frame.dim)
            # NumPyro broadcasts what is computed from one draw over the plate.
            msg["fn"] = msg["fn"] if fn is None else fn
        draw = msg["fn"](*msg["args"], **msg["kwargs"])
        msg["value"] = inside(msg["fn"].support, draw)


# --- are the units independent? ------------------------------------------------------


def relative_gap(first: jax.Array, second: jax.Array) -> jax.Array:
    """Largest difference of two arrays, relative where they are large."""
    equal = (first == second) | (jnp.isnan(first) & jnp.isnan(second))
    gap = jnp.abs(first - second) / (1 + jnp.abs(first))
    gap = jnp.where(jnp.isnan(gap), jnp.inf, gap)
    return jnp.max(jnp.where(equal, 0, gap), initial=0)


def alternate(first: jax.Array, second: jax.Array, axis: int) -> jax.Array:
    """Values of one array for even units and of another for odd ones."""
    shape = [1] * first.ndim
    shape[axis] = first.shape[axis]
    return jnp.where(jnp.arange(shape[axis]).reshape(shape) % 2 == 0, first, second)
