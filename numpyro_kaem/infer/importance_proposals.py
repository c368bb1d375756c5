"""Weighted particles of a NumPyro model: one compiled function, chunk by chunk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide

from numpyro_kaem.infer import units
from numpyro_kaem.infer.target import check_model, latent_sites, prior_is_exact

__all__ = [
    "Options",
    "Particles",
    "check_fitted",
    "check_guide",
    "check_params",
    "check_prior",
    "find_dependence",
    "propose",
]


def check_params(role: str, trace: dict[str, dict], params: dict[str, Any]) -> None:
    """Check that all parameters have a value.

    Parameters
    ----------
    role
        ``"model"`` or ``"guide"``, for the message.
    trace
        Its trace.
    params
        Values by name.

    Raises
    ------
    ValueError
        If one has none: its initial value would be used without notice.
    """
    missing = [
        name
        for name, site in trace.items()
        if site["type"] == "param" and name not in params
    ]
    if missing:
        raise ValueError(
            f"params must hold all parameters of the {role}, and misses "
            f"{', '.join(map(repr, missing))}: pass params=svi_result.params."
        )


def check_prior(trace: dict[str, dict], guided: dict[str, Any]) -> None:
    """Check that latent sites that no guide draws can be drawn from their prior.

    Parameters
    ----------
    trace
        Trace of the model.
    guided
        Latent sites that a guide draws.

    Raises
    ------
    ValueError
        If one cannot.
    """
    left = {n: site for n, site in latent_sites(trace).items() if n not in guided}
    if not prior_is_exact(left):
        raise ValueError(
            "model must have latent sites whose prior can be drawn from, none "
            "improper (ImproperUniform), scaled (handlers.scale), masked or without a "
            "normaliser (DeepEnergyPrior), or a "
            f"guide that draws them; got {sorted(left)}."
        )


def check_fitted(guide: Callable) -> None:
    """Check that an automatic guide has seen its model.

    Raises
    ------
    ValueError
        If not.
    """
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise ValueError(
            "guide must have been fitted: run SVI with it, and pass its params."
        )


def check_guide(
    guide_trace: dict[str, dict], trace: dict[str, dict], guided: dict[str, Any]
) -> None:
    """Check that a guide draws latent sites of the model, from a known density.

    Parameters
    ----------
    guide_trace, trace
        Traces of the guide and of the model.
    guided
        Latent sites that the guide draws.

    Raises
    ------
    ValueError
        If a site is not the model's or has another shape, or has no density.
    """
    latent, drawn = latent_sites(trace), latent_sites(guide_trace)
    for name, value in guided.items():
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
    if not prior_is_exact(guide_trace):
        raise ValueError(
            "guide must draw from the density that it states, without handlers.scale, "
            f"handlers.mask or ImproperUniform; its sites are {sorted(drawn)}."
        )
    # A guide with sites of its own may map them to the model's, as Delta sites.
    if drawn.keys() == guided.keys():
        for name, site in drawn.items():
            if isinstance(site["fn"], dist.Delta):
                raise ValueError(
                    f"guide must have a density at its sites, got a Delta at {name!r}: "
                    "use AutoNormal, for instance."
                )


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


class _Run(NamedTuple):
    """A model with its guide and arguments."""

    model: Callable
    guide: Callable | None
    params: Sites
    args: tuple
    kwargs: dict[str, Any]
    unit_plate: str | None

    def trace(self, run: Callable) -> dict[str, dict]:
        """Trace of the model or the guide, seeded."""
        run = handlers.substitute(run, data=self.params)
        return handlers.trace(run).get_trace(*self.args, **self.kwargs)

    def draw_guide(self, rng_key: jax.Array) -> dict[str, dict]:
        """Trace of the guide; empty without one."""
        if self.guide is None:
            return {}
        return self.trace(handlers.seed(self.guide, rng_key))

    def draw_model(
        self, rng_key: jax.Array, values: Sites, shared: bool = False
    ) -> dict[str, dict]:
        """Trace of the model, what is not given drawn from its prior."""
        given = handlers.substitute(self.model, data=values)
        seeded = handlers.seed(given, rng_key)
        return self.trace(
            units.DrawProposals(seeded, self.unit_plate if shared else None)
        )

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


def _sample_sites(trace: dict[str, dict]) -> dict[str, dict]:
    return {name: site for name, site in trace.items() if site["type"] == "sample"}


def _observed(trace: dict[str, dict]) -> dict[str, dict]:
    sites = _sample_sites(trace)
    return {name: site for name, site in sites.items() if site["is_observed"]}


def _latent_values(guide_trace: dict[str, dict]) -> Sites:
    """Latent values of the model that a guide drew."""
    return {
        name: site["value"]
        for name, site in latent_sites(guide_trace).items()
        if not site["infer"].get("is_auxiliary", False)
    }


def _weigh(run: _Run, rng_key: jax.Array, shared: bool) -> tuple[Sites, jax.Array]:
    """Draw one particle: its latent values and its log weight."""
    guide_key, model_key = jax.random.split(rng_key)
    guide_trace = run.draw_guide(guide_key)
    values = _latent_values(guide_trace)
    trace = run.draw_model(model_key, values, shared)
    # What the guide did not draw came from its own prior, and cancels.
    latent = latent_sites(trace)
    guided = {name: latent[name] for name in values}
    log_weight = run.sum(_observed(trace)) + run.sum(guided)
    log_weight = log_weight - run.sum(_sample_sites(guide_trace))
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
    check_params("model", trace, run.params)
    guided = {}
    if run.guide is not None:
        check_fitted(run.guide)
        guide_trace = run.draw_guide(rng_key)
        check_params("guide", guide_trace, run.params)
        guided = _latent_values(guide_trace)
        check_guide(guide_trace, trace, guided)
        if run.unit_plate is not None:
            sites = _sample_sites(guide_trace)
            units.check_units(run.unit_plate, sites, trace, "guide")
    if run.unit_plate is not None:
        units.check_units(run.unit_plate, latent_sites(trace), trace, "model")
    check_prior(trace, guided)
    return trace


def _can_share(run: _Run, rng_key: jax.Array) -> bool:
    """Whether one draw of each latent site serves all units."""
    if run.guide is not None:
        return False
    try:
        latent = latent_sites(run.draw_model(rng_key, {}, shared=True))
    except Exception as error:
        error.add_note(
            "The model ran with one latent value for all units, of size one along the "
            f"plate {run.unit_plate!r}; share_proposals=False gives each its own."
        )
        raise
    return all(
        jnp.shape(site["value"])[units.unit_axis(site, run.unit_plate)] == 1
        for site in latent.values()
    )


def _plan(
    run: _Run, rng_key: jax.Array, share_proposals: bool | None
) -> tuple[bool, dict[str, int]]:
    """Whether all units get the same proposals, and the axis of units in each site.

    Raises
    ------
    ValueError
        As :class:`ImportanceSampling`.
    """
    shared, axes = False, {}

    def look(rng_key: jax.Array) -> None:
        nonlocal shared, axes
        latent = latent_sites(_check(run, rng_key))
        if run.unit_plate is None:
            return
        axes = {n: units.unit_axis(site, run.unit_plate) for n, site in latent.items()}
        shared = share_proposals is not False and _can_share(run, rng_key)

    # Nothing is computed, nor is what the model may print or send elsewhere.
    jax.eval_shape(look, rng_key)
    if share_proposals and not shared:
        raise ValueError(
            "share_proposals=True needs proposals from one prior for all units, got "
            + ("a guide." if run.guide else "a prior with parameters for each unit.")
        )
    return shared, axes


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
    shared, axes = _plan(run, rng_key, options.share_proposals)

    def weigh(key: jax.Array) -> tuple[Sites, jax.Array]:
        return _weigh(run, key, shared)

    keys = jax.random.split(rng_key, num_samples)
    if options.chunk_size >= num_samples:
        samples, log_weights = jax.vmap(weigh)(keys)
    else:
        samples, log_weights = jax.lax.map(weigh, keys, batch_size=options.chunk_size)
    return Particles(samples, log_weights, axes)


# --- are the units independent? ------------------------------------------------------


@eqx.filter_jit
def find_dependence(
    model: Callable,
    guide: Callable | None,
    params: Sites,
    options: Options,
    rng_key: jax.Array,
    args: tuple,
    kwargs: dict[str, Any],
) -> jax.Array:
    """How far a model with a plate of units is from having independent ones.

    Compares a few runs of the model with all units, which shared proposals otherwise
    avoid: to be called once for a model, not with every data set.

    Parameters
    ----------
    model, guide, params, options, rng_key, args, kwargs
        As of :func:`propose`.

    Returns
    -------
    jax.Array
        Largest relative change of a unit's density when the others' latent values
        change, a scalar: no more than rounding if they are independent.
    """
    run = _Run(model, guide, params, args, kwargs, options.unit_plate)
    shared, axes = _plan(run, rng_key, options.share_proposals)
    first_key, second_key = jax.random.split(rng_key)
    # Whatever else the model draws is the same in all runs.
    model_key = jax.random.split(first_key)[1]

    def terms(values: Sites) -> tuple[jax.Array, jax.Array, jax.Array]:
        trace = run.draw_model(model_key, values)
        observed = _observed(trace)
        outside = [
            jnp.sum(units.log_prob(name, site))
            for name, site in observed.items()
            if units.frame_of(site, run.unit_plate) is None
        ]
        likelihood = run.sum(observed)
        density = run.sum(latent_sites(trace)) + likelihood
        return density, likelihood, sum(outside, start=jnp.zeros(()))

    first, second = (_weigh(run, key, False)[0] for key in (first_key, second_key))
    one = _weigh(run, first_key, True) if shared else None
    points = {}
    for name, value in first.items():
        mixed = units.alternate(value, second[name], axes[name])
        stack = [value, second[name], mixed]
        if one is not None:
            stack.append(jnp.broadcast_to(one[0][name], value.shape))
        points[name] = jnp.stack(stack)
    density, likelihood, outside = jax.vmap(terms)(points)
    gap = jnp.maximum(
        units.relative_gap(density[0, ::2], density[2, ::2]),
        units.relative_gap(outside[:1], outside),
    )
    if one is None:
        return gap
    # A model that counts its units itself may not take one proposal for all.
    return jnp.maximum(gap, units.relative_gap(likelihood[3], one[1]))
