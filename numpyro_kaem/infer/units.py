"""A model read by units, whose latent values are independent given its parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import init_to_uniform
from numpyro.primitives import Messenger
from numpyro.util import is_prng_key

from numpyro_kaem.distributions.deep import DeepEnergyPrior
from numpyro_kaem.infer.target import inside, latent_sites, prior_is_exact

__all__ = [
    "DrawProposals",
    "LatentSite",
    "UnitModel",
    "alternate",
    "check_units",
    "frame_of",
    "log_prob",
    "prior_positions",
    "relative_gap",
    "unexpanded",
    "unit_axis",
    "unit_sum",
    "without_normalizer",
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


Sites = dict[str, jax.Array]


class LatentSite(NamedTuple):
    """Where the values of a latent site stand in the vector of a unit."""

    support: Any
    """Its support."""
    axis: int
    """Axis of the units in the site's value, counted from the right."""
    shape: tuple[int, ...]
    """Unconstrained shape for one unit, without the axis of units."""
    offset: int
    """Where it begins in the vector."""

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape))


class UnitModel:
    """A NumPyro model with a plate of units, and how its parts belong to the units.

    Latent values are arrays ``(num_units, dim)`` in unconstrained space. Log densities
    are those of single units: the scale by which a plate counts a subsample for all of
    its units is left out.

    Parameters
    ----------
    rng_key
        Random key of the run that is traced; it chooses the units of a plate that
        subsamples.
    params
        Values of the ``param`` and ``mutable`` sites by name.
    model, args, kwargs
        A NumPyro model and its arguments.
    unit_plate
        Name of the plate.

    Raises
    ------
    ValueError
        If there is no such plate, a latent or observed site is outside of it, a latent
        site is discrete or has a prior that cannot be drawn from, or there is no latent
        or no observed site.
    """

    def __init__(
        self,
        rng_key: jax.Array,
        params: dict[str, Any],
        model: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        unit_plate: str,
    ) -> None:
        if not is_prng_key(rng_key):
            raise TypeError(
                f"rng_key must be one random key, got {type(rng_key).__name__}."
            )
        self._model, self._args, self._kwargs = model, args, kwargs
        self._unit_plate = unit_plate
        self._rng_key = rng_key
        self._params = params
        # Started as NumPyro starts its chains: an improper prior cannot be drawn from.
        run = handlers.seed(handlers.substitute(model, data=params), rng_key)
        started = handlers.substitute(run, substitute_fn=init_to_uniform())
        trace = handlers.trace(started).get_trace(*args, **kwargs)
        _check(trace, unit_plate)
        plate = trace[unit_plate]
        self._params = {**params, unit_plate: plate["value"]}
        self.index = plate["value"]
        """Which of the plate's units are in the batch, shape ``(num_units,)``."""
        self.num_data = plate["args"][0]
        """Number of all units of the plate."""
        self.observed: Sites = {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] == "sample" and site["is_observed"]
        }
        """What was observed of the batch, by site."""
        self.without_normalizer = [
            name
            for name, site in latent_sites(trace).items()
            if without_normalizer(site["fn"]) is not None
        ]
        """Latent sites whose log density lacks a constant."""
        self.latent: dict[str, LatentSite] = {}
        """Latent sites by name, in the order of the model."""
        offset = 0
        for name, site in latent_sites(trace).items():
            support = site["fn"].support
            axis = unit_axis(site, unit_plate)
            # The change of variables may change the shape of an event, not the axes
            # before it.
            bijection = biject_to(support)
            shape = list(bijection.inverse_shape(jnp.shape(site["value"])))
            axis_free = axis + len(jnp.shape(site["value"])) - len(shape)
            del shape[axis_free]
            self.latent[name] = LatentSite(support, axis_free, tuple(shape), offset)
            offset += self.latent[name].size
        self.dim = offset
        """Number of unconstrained latent numbers of a unit."""

    @property
    def num_units(self) -> int:
        """Number of units in the batch."""
        return len(self.index)

    @property
    def weight(self) -> float:
        """How many of the plate's units each unit of the batch stands for."""
        return self.num_data / self.num_units

    def _trace(self, params: Any, values: Sites, rng_key: jax.Array) -> dict:
        run = handlers.substitute(self._model, data={**params, **values})
        run = DrawProposals(handlers.seed(run, rng_key), None)
        return handlers.trace(run).get_trace(*self._args, **self._kwargs)

    # --- between the two spaces ------------------------------------------------------

    def constrain(self, position: jax.Array) -> tuple[Sites, jax.Array]:
        """Values of the sites, and each unit's log Jacobian determinant."""
        values, log_det = {}, jnp.zeros(position.shape[0], position.dtype)
        for name, site in self.latent.items():
            flat = position[:, site.offset : site.offset + site.size]
            free = flat.reshape(-1, *site.shape)
            free = jnp.moveaxis(free, 0, free.ndim + site.axis)
            bijection = biject_to(site.support)
            value = bijection(free)
            terms = bijection.log_abs_det_jacobian(free, value)
            # What is left of the axes behind that of the units is summed.
            terms = jnp.moveaxis(
                terms, terms.ndim + site.axis + bijection.domain.event_dim, 0
            )
            log_det = log_det + terms.reshape(len(position), -1).sum(-1)
            values[name] = value
        return values, log_det

    def unconstrain(self, values: Sites) -> jax.Array:
        """Inverse of :meth:`constrain`, shape ``(num_units, dim)``."""
        parts = []
        for name, site in self.latent.items():
            free = biject_to(site.support).inv(values[name])
            free = jnp.moveaxis(free, free.ndim + site.axis, 0)
            parts.append(free.reshape(free.shape[0], -1))
        return jnp.concatenate(parts, axis=-1)

    # --- densities -------------------------------------------------------------------

    def log_densities(
        self, position: jax.Array, params: dict[str, Any] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log prior in unconstrained space, and log likelihood, of each unit.

        Parameters
        ----------
        position
            Shape ``(num_units, dim)``.
        params
            In place of the parameters that the object was made with.

        Returns
        -------
        tuple
            Both of shape ``(num_units,)``.
        """
        values, log_det = self.constrain(position)
        log_prior, log_likelihood = self.log_densities_of(values, params)
        return log_prior + log_det, log_likelihood

    def log_densities_of(
        self, values: Sites, params: dict[str, Any] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log prior and log likelihood of each unit at values of the sites."""
        given = self._params if params is None else {**self._params, **params}
        trace = self._trace(given, values, self._rng_key)
        log_prior = log_likelihood = jnp.zeros(self.num_units)
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            terms = unit_sum(name, site, self._unit_plate) / self.weight
            if site["is_observed"]:
                log_likelihood = log_likelihood + terms
            else:
                log_prior = log_prior + terms
        return log_prior, log_likelihood

    def draw_prior(self, rng_key: jax.Array, shared: bool = False) -> Sites:
        """Draw every latent site from its prior, once for all units if shared.

        A draw that rounding has put on an end of its support is moved within.
        """
        run = handlers.substitute(self._model, data=self._params)
        plate = self._unit_plate if shared else None
        run = DrawProposals(handlers.seed(run, rng_key), plate)
        trace = handlers.trace(run).get_trace(*self._args, **self._kwargs)
        return {
            name: inside(site["fn"].support, site["value"])
            for name, site in latent_sites(trace).items()
        }

    def trace_at(self, values: Sites, params: dict[str, Any]) -> dict[str, dict]:
        """NumPyro's trace of the model at values of the latent sites."""
        return self._trace({**self._params, **params}, values, self._rng_key)


def without_normalizer(law: dist.Distribution) -> DeepEnergyPrior | None:
    """Law within a distribution whose log density lacks a constant, if there is one."""
    while not isinstance(law, DeepEnergyPrior):
        if not hasattr(law, "base_dist"):
            return None
        law = law.base_dist
    return law


def _check(trace: dict[str, dict], unit_plate: str) -> None:
    """Check that the sites are those of independent units.

    Raises
    ------
    ValueError
        As :class:`UnitModel`.
    """
    latent = latent_sites(trace)
    observed = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"]
    }
    for what, sites in (("a latent", latent), ("an observed", observed)):
        if not sites:
            raise ValueError(
                f"model must have {what} site, got none. Were the data passed to it?"
            )
    check_units(unit_plate, latent, trace, "model")
    outside = [n for n, s in observed.items() if frame_of(s, unit_plate) is None]
    if outside:
        names = ", ".join(map(repr, outside))
        raise ValueError(
            f"model must have all observed sites within the plate {unit_plate!r}, "
            f"which makes units independent, got outside it: {names}."
        )
    for name, site in latent.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"model must have continuous latent sites, got the discrete {name!r} "
                f"({type(site['fn']).__name__})."
            )
    # A scale is taken off, and a prior without normaliser is drawn from nearly enough.
    exact = {
        name: {**site, "scale": None}
        for name, site in latent.items()
        if without_normalizer(site["fn"]) is None
    }
    if not prior_is_exact(exact):
        raise ValueError(
            "model must have latent sites whose prior can be drawn from, none improper "
            f"(ImproperUniform) or masked; its latent sites are {sorted(latent)}."
        )


def prior_positions(
    rng_key: jax.Array, unit_model: UnitModel, shape: tuple[int, ...]
) -> jax.Array:
    """Draws of the prior in unconstrained space, shape ``(*shape, dim)``.

    The first axis counts units, of the batch or of all data.
    """
    num_runs = -(-math.prod(shape) // unit_model.num_units)

    def draw(key: jax.Array) -> jax.Array:
        return unit_model.unconstrain(unit_model.draw_prior(key))

    # Run by run over the units of the batch, so that these get draws of their own.
    drawn = jax.vmap(draw)(jax.random.split(rng_key, num_runs))
    if shape[0] == unit_model.num_units:
        drawn = jnp.moveaxis(drawn, 0, 1)
    drawn = drawn.reshape(-1, unit_model.dim)[: math.prod(shape)]
    return drawn.reshape(*shape, unit_model.dim)
