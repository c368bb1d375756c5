"""A model of independent units as densities of each unit's latent values."""

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
from numpyro.util import is_prng_key

from numpyro_kaem.distributions.deep import DeepEnergyPrior
from numpyro_kaem.infer import importance_units as units
from numpyro_kaem.infer.target import inside, latent_sites, prior_is_exact

__all__ = ["LatentSite", "UnitModel", "prior_positions", "without_normalizer"]

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
            axis = units.unit_axis(site, unit_plate)
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
        run = units.DrawProposals(handlers.seed(run, rng_key), None)
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
            terms = units.unit_sum(name, site, self._unit_plate) / self.weight
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
        run = units.DrawProposals(handlers.seed(run, rng_key), plate)
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
    units.check_units(unit_plate, latent, trace, "model")
    outside = [n for n, s in observed.items() if units.frame_of(s, unit_plate) is None]
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
