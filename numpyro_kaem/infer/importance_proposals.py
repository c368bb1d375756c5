"""Weighted particles of a NumPyro model: one compiled function, chunk by chunk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide

from numpyro_kaem.infer import importance_units as units
from numpyro_kaem.infer.target import check_model, latent_sites, prior_is_exact

__all__ = ["Options", "Particles", "propose"]

Sites = dict[str, jax.Array]


class Options(NamedTuple):
    """What is known when the proposals are compiled."""

    unit_plate: str | None
    """Plate of independent units."""
    share_proposals: bool | None
    """Whether all units have the same proposals; None: where they can."""
    chunk_size: int
    """How many particles run at once."""


class Particles(NamedTuple):
    """Proposals and their weights."""

    samples: Sites
    """Latent values, each of shape ``(num_samples, *shape of the site)``."""
    log_weights: jax.Array
    """Shape ``(num_samples,)`` or ``(num_samples, num_units)``."""
    unit_axes: dict[str, int]
    """Axis of the units in each site's value, counted from the right."""
    gap: jax.Array
    """How much a unit's density depends on the other units' latent values."""


class _Run(NamedTuple):
    """A model with its guide and arguments."""

    model: Callable
    guide: Callable | None
    params: Sites
    args: tuple
    kwargs: dict[str, Any]
    unit_plate: str | None

    def draw_guide(self, rng_key: jax.Array) -> dict[str, dict]:
        """Sites that the guide draws, those of its own included."""
        if self.guide is None:
            return {}
        guide = units.substituted_trace(
            self.guide, rng_key, self.params, self.args, self.kwargs
        )
        return {name: site for name, site in guide.items() if site["type"] == "sample"}

    def values(self, guide_sites: dict[str, dict]) -> Sites:
        """Those of its draws that are latent values of the model."""
        return {
            name: site["value"]
            for name, site in guide_sites.items()
            if not site["is_observed"] and not site["infer"].get("is_auxiliary", False)
        }

    def draw_model(
        self, rng_key: jax.Array, values: Sites, shared: bool = False
    ) -> dict[str, dict]:
        """Trace of the model, what is not given drawn from its prior."""
        run = self.model
        if shared:
            run = units.ShareProposals(run, self.unit_plate)
        given = {**self.params, **values}
        return units.substituted_trace(run, rng_key, given, self.args, self.kwargs)

    def sum(self, sites: dict[str, dict]) -> jax.Array:
        """Log density of some sites, one for each unit if there is a plate of them."""
        if self.unit_plate is None:
            terms = (jnp.sum(units.log_prob(*item)) for item in sites.items())
        else:
            terms = (
                units.unit_sum(*item, self.unit_plate)
                for item in sites.items()
                if units.frame_of(item[1], self.unit_plate) is not None
            )
        return sum(terms, start=jnp.zeros(()))


def _observed(trace: dict[str, dict]) -> dict[str, dict]:
    return {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"]
    }


def _weigh(run: _Run, rng_key: jax.Array, shared: bool) -> tuple[Sites, jax.Array]:
    """Draw one particle: its latent values and its log weight."""
    guide_key, model_key = jax.random.split(rng_key)
    guide_sites = run.draw_guide(guide_key)
    values = run.values(guide_sites)
    trace = run.draw_model(model_key, values, shared)
    # What the guide did not draw came from its own prior, and cancels.
    latent = latent_sites(trace)
    guided = {name: latent[name] for name in values}
    log_weight = run.sum(_observed(trace)) + run.sum(guided) - run.sum(guide_sites)
    samples = {name: site["value"] for name, site in latent.items()}
    return samples, log_weight


def _check(run: _Run, rng_key: jax.Array) -> dict[str, dict]:
    """Check a model and its guide, from their sites' static facts; the model's trace.

    Raises
    ------
    ValueError
        If they are not as :class:`ImportanceSampling` says.
    """
    given = handlers.substitute(run.model, data=run.params)
    trace = check_model(given, rng_key, run.args, run.kwargs)
    latent = latent_sites(trace)
    if run.guide is None:
        if not prior_is_exact(trace):
            raise ValueError(
                "model must have latent sites whose prior can be drawn from, none "
                "improper (ImproperUniform), scaled (handlers.scale) or masked, or a "
                f"guide that draws them; its latent sites are {sorted(latent)}."
            )
    else:
        if isinstance(run.guide, AutoGuide) and run.guide.prototype_trace is None:
            raise ValueError(
                "guide must have been fitted: run SVI with it, and pass its params."
            )
        guide_sites = run.draw_guide(rng_key)
        for name, value in run.values(guide_sites).items():
            if name not in latent:
                raise ValueError(
                    f"guide must draw latent sites of the model, which are "
                    f"{sorted(latent)}, got {name!r}."
                )
            expected = jnp.shape(latent[name]["value"])
            if jnp.shape(value) != expected:
                raise ValueError(
                    f"guide must draw {name!r} in the shape {expected} that the model "
                    f"gives it, got {jnp.shape(value)}."
                )
        if run.unit_plate is not None:
            units.check_units(run.unit_plate, guide_sites, trace, "guide")
    if run.unit_plate is not None:
        units.check_units(run.unit_plate, latent, trace, "model")
    return trace


def _shares(options: Options, run: _Run, rng_key: jax.Array) -> bool:
    """Whether all units get the same proposals.

    Raises
    ------
    ValueError
        If they should and cannot.
    """
    unit_plate, wanted = options.unit_plate, options.share_proposals
    if unit_plate is None or wanted is False:
        return False
    possible = run.guide is None
    if possible:
        try:
            latent = latent_sites(run.draw_model(rng_key, {}, shared=True))
        except Exception as error:
            error.add_note(
                "The model ran with one latent value for all units, of size one along "
                f"the plate {unit_plate!r}; share_proposals=False gives each its own."
            )
            raise
        possible = all(
            jnp.shape(site["value"])[units.unit_axis(site, unit_plate)] == 1
            for site in latent.values()
        )
    if wanted and not possible:
        raise ValueError(
            "share_proposals=True needs proposals from one prior for all units, got "
            + ("a guide." if run.guide else "a prior with parameters for each unit.")
        )
    return possible


def _independence_gap(
    run: _Run, rng_key: jax.Array, axes: dict[str, int], shared: Particles | None
) -> jax.Array:
    """How much a unit's density changes when only others' latent values change."""
    draw_key, model_key = jax.random.split(rng_key)

    def terms(values: Sites) -> tuple[jax.Array, jax.Array, jax.Array]:
        trace = run.draw_model(model_key, values)
        observed = _observed(trace)
        outside = [
            jnp.sum(units.log_prob(name, site))
            for name, site in observed.items()
            if units.frame_of(site, run.unit_plate) is None
        ]
        likelihood = run.sum(observed)
        prior = run.sum(latent_sites(trace))
        return prior + likelihood, likelihood, sum(outside, start=jnp.zeros(()))

    draws = jax.vmap(lambda key: _weigh(run, key, False)[0])(
        jax.random.split(draw_key, 2)
    )
    points = {}
    for name, (first, second) in draws.items():
        stack = [first, second, units.alternate(first, second, axes[name])]
        if shared is not None:
            stack.append(jnp.broadcast_to(shared.samples[name][0], first.shape))
        points[name] = jnp.stack(stack)
    density, likelihood, outside = jax.vmap(terms)(points)
    gap = jnp.maximum(
        units.relative_gap(density[0, ::2], density[2, ::2]),
        units.relative_gap(outside[:1], outside),
    )
    if shared is None:
        return gap
    # A model that counts its units itself may not take one proposal for all.
    return jnp.maximum(gap, units.relative_gap(likelihood[3], shared.log_weights[0]))


@eqx.filter_jit
def propose(
    model: Callable,
    guide: Callable | None,
    params: Sites,
    options: Options,
    num_samples: int,
    rng_key: jax.Array,
    args: tuple,
    kwargs: dict[str, Any],
) -> Particles:
    """Draw particles and weigh them.

    Compiled once for a model, a guide and the shapes of arrays; the arrays themselves,
    in arguments and parameters, may change. Only the particles of one chunk are run
    through the model at a time.

    Parameters
    ----------
    model, guide, params
        As of :class:`ImportanceSampling`.
    options, num_samples
        What is static.
    rng_key
        Random key.
    args, kwargs
        Arguments of the model and the guide.

    Returns
    -------
    Particles
        All proposals and weights.

    Raises
    ------
    ValueError
        As :class:`ImportanceSampling`, while it is compiled.
    """
    run = _Run(model, guide, params, args, kwargs, options.unit_plate)
    # Checked while tracing: what is only checked is never computed.
    latent = latent_sites(_check(run, rng_key))
    shared = _shares(options, run, rng_key)

    def weigh(key: jax.Array) -> tuple[Sites, jax.Array]:
        return _weigh(run, key, shared)

    keys = jax.random.split(rng_key, num_samples)
    if options.chunk_size >= num_samples:
        samples, log_weights = jax.vmap(weigh)(keys)
    else:
        samples, log_weights = jax.lax.map(weigh, keys, batch_size=options.chunk_size)
    particles = Particles(samples, log_weights, {}, jnp.zeros(()))
    if options.unit_plate is None:
        return particles
    axes = {
        name: units.unit_axis(site, options.unit_plate) for name, site in latent.items()
    }
    gap = _independence_gap(
        run, jax.random.fold_in(rng_key, 1), axes, particles if shared else None
    )
    return particles._replace(unit_axes=axes, gap=gap)
