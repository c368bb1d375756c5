"""A NumPyro model read by units: densities of each, and draws that they may share.

Units are the entries of a plate whose latent values are independent given the model's
parameters.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from numpyro_kaem._checks import check_key
from numpyro_kaem.infer.target import (
    Sites,
    Trace,
    check_sites,
    first_trace,
    inside,
    latent_sites,
    observed_sites,
    prior_is_exact,
    unnormalised_part,
)

__all__ = [
    "LatentSite",
    "ModelRun",
    "UnitModel",
    "as_params",
    "check_params",
    "check_units",
    "frame_of",
    "param_names",
    "unit_axis",
]


class ModelRun(NamedTuple):
    """A NumPyro model with its parameters and arguments, and the plate of its units."""

    model: Callable
    params: dict[str, Any]
    args: tuple
    kwargs: dict[str, Any]
    unit_plate: str | None

    def trace(
        self, rng_key: jax.Array, values: Sites | None = None, shared: bool = False
    ) -> Trace:
        """Trace at given values of sites; other latent sites are drawn from the prior.

        With ``shared`` one draw serves all units.
        """
        given = handlers.substitute(self.model, data={**self.params, **(values or {})})
        plate = self.unit_plate if shared else None
        run = _DrawPrior(handlers.seed(given, rng_key), plate)
        return handlers.trace(run).get_trace(*self.args, **self.kwargs)

    def log_density(self, sites: Trace, weight: float = 1.0) -> jax.Array:
        """Log density of some sites: one per unit, over ``weight``, or a scalar.

        Sites outside the plate belong to no unit, and are left out.
        """
        total = jnp.zeros(())
        for name, site in sites.items():
            terms = log_prob(name, site)
            if self.unit_plate is None:
                total = total + jnp.sum(terms)
                continue
            frame = frame_of(site, self.unit_plate)
            if frame is not None:
                units = terms.ndim + frame.dim
                others = tuple(axis for axis in range(terms.ndim) if axis != units)
                terms = jnp.broadcast_to(jnp.sum(terms, axis=others), (frame.size,))
                total = total + terms / weight
        return total


class _DrawPrior(Messenger):
    """Draw latent sites from their prior, once for all units if they share draws.

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
            fn = None if frame is None else _unexpanded(msg["fn"], frame.dim)
            # NumPyro broadcasts what is computed from one draw over the plate.
            msg["fn"] = msg["fn"] if fn is None else fn
        draw = msg["fn"](*msg["args"], **msg["kwargs"])
        msg["value"] = inside(msg["fn"].support, draw)


def _unexpanded(fn: dist.Distribution, dim: int) -> dist.Distribution | None:
    """Distribution before its expansion along a batch dimension, of size one there.

    ``None`` if it is not the plate alone that gives the dimension its size.
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
        inner = _unexpanded(fn.base_dist, dim - count)
        return None if inner is None else inner.to_event(count)
    return None


# --- sites ---------------------------------------------------------------------------


def frame_of(site: dict, unit_plate: str | None) -> Any:
    """Frame of the plate around a site, or None if it is outside."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.name == unit_plate]
    return frames[0] if frames else None


def unit_axis(site: dict, unit_plate: str | None) -> int:
    """Axis of the units in a site's value, counted from the right."""
    return frame_of(site, unit_plate).dim - site["fn"].event_dim


def log_prob(name: str, site: dict) -> jax.Array:
    """Log density of a sample site, scaled as the model says, of its batch shape."""
    fn, value, intermediates = site["fn"], site["value"], site["intermediates"]
    terms = fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    if site["is_observed"]:
        shape = jnp.shape(value)[: jnp.ndim(value) - fn.event_dim]
        if jnp.shape(terms) not in (shape, fn.batch_shape):
            raise ValueError(
                f"observed site {name!r} must have a value of the shape {fn.shape()} "
                f"of its distribution, got {jnp.shape(value)}, which would broadcast."
            )
        # NumPyro's densities need not be zero outside of their support, and warn of it
        # outside of jit only.
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


# --- checks --------------------------------------------------------------------------


def as_params(params: Any, model: Callable) -> dict[str, Any]:
    """Values of parameters by name; ``None`` is the model's own, if it has any."""
    if params is None:
        params = getattr(model, "params", {})
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be values by name, got {type(params).__name__}.")
    return dict(params)


def param_names(trace: Trace) -> list[str]:
    """Names of the parameters in a trace."""
    return [name for name, site in trace.items() if site["type"] == "param"]


def check_params(role: str, names: list[str], params: dict[str, Any]) -> None:
    """Check that all parameters have a value: their initial ones would be used."""
    missing = [name for name in names if name not in params]
    if missing:
        raise ValueError(
            f"params must hold all parameters of the {role}, and misses "
            f"{', '.join(map(repr, missing))}: pass params=svi_result.params."
        )


def check_units(unit_plate: str, sites: Trace, trace: Trace, role: str) -> None:
    """Check that sites of a "model" or "guide" lie within the plate of units."""
    plates = [name for name, site in trace.items() if site["type"] == "plate"]
    if role == "model" and unit_plate not in plates:
        names = ", ".join(map(repr, plates)) or "none"
        raise ValueError(
            f"unit_plate must name a plate of the model, got {unit_plate!r}; its "
            f"plates are {names}."
        )
    outside = _outside(sites, unit_plate)
    if outside and role == "model":
        raise ValueError(
            f"model must have all latent sites within the plate {unit_plate!r}, which "
            f"makes units independent, got outside it: {outside}. Fix them with "
            "numpyro.handlers.condition, or leave unit_plate out for one weight per "
            "particle."
        )
    if outside:
        raise ValueError(
            f"guide must draw within the plate {unit_plate!r}, got outside it: "
            f"{outside}. A guide with one site for each latent, such as AutoNormal, "
            "does."
        )


def _outside(sites: Trace, unit_plate: str) -> str:
    names = [name for name, s in sites.items() if frame_of(s, unit_plate) is None]
    return ", ".join(map(repr, names))


def _check_unit_model(trace: Trace, unit_plate: str) -> None:
    """Check that the sites are those of independent units."""
    check_sites(trace)
    latent = latent_sites(trace)
    check_units(unit_plate, latent, trace, "model")
    outside = _outside(observed_sites(trace), unit_plate)
    if outside:
        raise ValueError(
            f"model must have all observed sites within the plate {unit_plate!r}, "
            f"which makes units independent, got outside it: {outside}."
        )
    # A scale is taken off, and an unnormalised prior is drawn from nearly enough.
    exact = {
        name: {**site, "scale": None}
        for name, site in latent.items()
        if unnormalised_part(site["fn"]) is None
    }
    if not prior_is_exact(exact):
        raise ValueError(
            "model must have latent sites whose prior can be drawn from, none improper "
            f"(ImproperUniform) or masked; its latent sites are {sorted(latent)}."
        )


# --- a batch of units ----------------------------------------------------------------


class LatentSite(NamedTuple):
    """Where the values of a latent site stand in the vector of a unit.

    ``axis`` is that of the units in the value, counted from the right; ``shape`` that
    of the unconstrained values of one unit, without it.
    """

    support: Any
    axis: int
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class UnitModel:
    """A batch of units, whose latent values are vectors in unconstrained space.

    Latent values have the shape ``(num_units, dim)``. Log densities are those of single
    units: the scale by which a plate counts a subsample for all of its units is left
    out. ``rng_key`` chooses the units of a plate that subsamples; ``params`` are values
    of ``param`` and ``mutable`` sites.
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
        check_key(rng_key)
        given = handlers.substitute(model, data=params)
        trace = first_trace(given, rng_key, args, kwargs)
        _check_unit_model(trace, unit_plate)
        plate, latent = trace[unit_plate], latent_sites(trace)
        self._rng_key = rng_key
        self._run = ModelRun(
            model, {**params, unit_plate: plate["value"]}, args, kwargs, unit_plate
        )
        self.index = plate["value"]
        """Which of the plate's units are in the batch, shape ``(num_units,)``."""
        self.num_data = plate["args"][0]
        """Number of all units of the plate."""
        self.observed: Sites = {n: s["value"] for n, s in observed_sites(trace).items()}
        """What was observed of the batch, by site."""
        self.param_names = param_names(trace)
        """Names of the parameters of the model."""
        self.unnormalised = [
            name
            for name, site in latent.items()
            if unnormalised_part(site["fn"]) is not None
        ]
        """Latent sites whose log density lacks a constant."""
        self.latent: dict[str, LatentSite] = {}
        """Latent sites by name, in the order of the model."""
        offset = 0
        for name, site in latent.items():
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

    def log_densities(
        self, position: jax.Array, params: dict[str, Any] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log prior in unconstrained space, and log likelihood, of each unit.

        ``params`` take the place of those that the object was made with.
        """
        values, log_det = self.constrain(position)
        log_prior, log_likelihood = self.log_densities_of(values, params)
        return log_prior + log_det, log_likelihood

    def log_densities_of(
        self, values: Sites, params: dict[str, Any] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log prior and log likelihood of each unit at values of the sites."""
        trace = self.trace_at(values, params)
        # How many of the plate's units each unit of the batch stands for.
        weight = self.num_data / self.num_units
        zero = jnp.zeros(self.num_units)
        log_prior, log_likelihood = (
            zero + self._run.log_density(sites, weight)
            for sites in (latent_sites(trace), observed_sites(trace))
        )
        return log_prior, log_likelihood

    def trace_at(self, values: Sites, params: dict[str, Any] | None = None) -> Trace:
        """NumPyro's trace of the model at values of the latent sites."""
        run = self._run._replace(params={**self._run.params, **(params or {})})
        return run.trace(self._rng_key, values)

    def draw_prior(self, rng_key: jax.Array, shared: bool = False) -> Sites:
        """Draw every latent site from its prior, once for all units if shared."""
        trace = self._run.trace(rng_key, shared=shared)
        return {name: site["value"] for name, site in latent_sites(trace).items()}

    def prior_positions(self, rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the prior in unconstrained space, shape ``(*shape, dim)``.

        The first axis counts units, of the batch or of all data.
        """
        num_runs = -(-math.prod(shape) // self.num_units)

        def draw(key: jax.Array) -> jax.Array:
            return self.unconstrain(self.draw_prior(key))

        # Run by run over the units of the batch, so that these get draws of their own.
        drawn = jax.vmap(draw)(jax.random.split(rng_key, num_runs))
        if shape[0] == self.num_units:
            drawn = jnp.moveaxis(drawn, 0, 1)
        drawn = drawn.reshape(-1, self.dim)[: math.prod(shape)]
        return drawn.reshape(*shape, self.dim)
