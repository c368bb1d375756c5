"""A NumPyro model as the target of samplers: log prior, log likelihood, start."""

import functools
import hashlib
import types
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import (
    _unconstrain_reparam,
    compute_log_probs,
    initialize_model,
)
from numpyro.primitives import Messenger
from numpyro.util import is_prng_key, not_jax_tracer

from numpyro_kaem._checks import check_function

__all__ = [
    "ModelKernel",
    "Sites",
    "Start",
    "check_model",
    "check_sites",
    "compile_with_model",
    "draw_prior",
    "first_trace",
    "initialize",
    "inside",
    "latent_sites",
    "log_prior_and_likelihood",
    "observed_sites",
    "prior_is_exact",
    "prior_is_proper",
    "sample_sites",
    "unnormalised_part",
]

Sites = dict[str, jax.Array]
"""Values of sites by name."""

Trace = dict[str, dict]
"""What NumPyro records of one run of a model: its sites by name."""


# --- compilation ---------------------------------------------------------------------


class _Outside:
    """What functions read beside their arguments; equal if it would be read again."""

    def __init__(self, functions: list[Callable]) -> None:
        values: list[Any] = []
        seen: set[int] = set()
        for function in functions:
            _read_outside(function, values, seen)
        # Kept, so that no other object gets the identity of one of them.
        self._kept: list[Any] = []
        self._key = _key_of(values, self._kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Outside) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _read_outside(function: Any, values: list[Any], seen: set[int]) -> None:
    """Add the values of the free and global names of a function and of its helpers."""
    if isinstance(function, functools.partial):
        values.append((function.args, function.keywords))
        return _read_outside(function.func, values, seen)
    if isinstance(function, Messenger):
        return _read_outside(function.fn, values, seen)
    if isinstance(function, types.MethodType):
        values.append(function.__self__)
        return _read_outside(function.__func__, values, seen)
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        return None
    seen.add(id(function))
    found = [part for cell in function.__closure__ or () for part in _contents(cell)]
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names = (name for name in code.co_names if name in function.__globals__)
        found += [function.__globals__[name] for name in names]
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    for value in found:
        values.append(value)
        # Of a library no names are followed: they do not change.
        if getattr(value, "__module__", None) == function.__module__:
            _read_outside(value, values, seen)
    return None


def _contents(cell: types.CellType) -> list[Any]:
    """Value of a free name; nothing before it has one."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _key_of(value: Any, kept: list[Any]) -> Any:
    """Contents of what may be changed in place, and numbers; else the identity."""
    if isinstance(value, list | tuple):
        # None is no data: a model may count its runs in a list.
        parts = ((i, part) for i, part in enumerate(value) if part is not None)
        return type(value), *((i, _key_of(part, kept)) for i, part in parts)
    if isinstance(value, dict):
        return dict, tuple(_key_of(item, kept) for item in value.items())
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).digest()
    if isinstance(value, bool | int | float | complex | str | bytes):
        return type(value), value
    kept.append(value)
    return id(value)


def compile_with_model(function: Callable) -> Callable:
    """Compile a function of models, anew where what a model reads outside has changed.

    A compiled function is kept for its model; without this, data that the model takes
    from a global name would stay those of the first run.
    """

    @eqx.filter_jit
    def compiled(outside: _Outside, args: tuple) -> Any:
        return function(*args)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        functions = [leaf for leaf in leaves if callable(leaf)]
        return compiled(_Outside(functions), args)

    return call


# --- densities -----------------------------------------------------------------------


def log_prior_and_likelihood(
    model: Callable, model_args: tuple, model_kwargs: dict[str, Any], values: Sites
) -> tuple[jax.Array, jax.Array]:
    """Log prior and log likelihood of a point in unconstrained space, two scalars.

    Their sum is minus NumPyro's potential energy. The prior's part are the latent sites
    and the changes of variables that constrain them; the likelihood's are the observed
    sites and the factors.
    """
    substituted = handlers.substitute(
        model, substitute_fn=partial(_unconstrain_reparam, values)
    )
    log_probs, trace = compute_log_probs(substituted, model_args, model_kwargs, {})
    changes = {f"_{name}_log_det" for name in values}
    log_prior, log_likelihood = jnp.zeros(()), jnp.zeros(())
    for name, log_prob in log_probs.items():
        if trace[name]["is_observed"] and name not in changes:
            log_likelihood = log_likelihood + log_prob
        else:
            log_prior = log_prior + log_prob
    return log_prior, log_likelihood


# --- what a model may hold -----------------------------------------------------------


def sample_sites(trace: Trace) -> Trace:
    """Latent and observed sites of a trace, factors among these."""
    return {name: site for name, site in trace.items() if site["type"] == "sample"}


def latent_sites(trace: Trace) -> Trace:
    """Latent sites of a trace."""
    sites = sample_sites(trace).items()
    return {name: site for name, site in sites if not site["is_observed"]}


def observed_sites(trace: Trace) -> Trace:
    """Observed sites and factors of a trace."""
    sites = sample_sites(trace).items()
    return {name: site for name, site in sites if site["is_observed"]}


def first_trace(
    model: Callable, rng_key: jax.Array, model_args: tuple, model_kwargs: dict[str, Any]
) -> Trace:
    """Trace of a run that is started as NumPyro starts its chains.

    Its latent values are not draws: an improper prior cannot be drawn from.
    """
    started = handlers.substitute(
        handlers.seed(model, rng_key), substitute_fn=init_to_uniform()
    )
    return handlers.trace(started).get_trace(*model_args, **model_kwargs)


def check_sites(trace: Trace, needs_observed: bool = True) -> None:
    """Check that there are latent sites, all continuous, and observed ones."""
    latent, observed = latent_sites(trace), observed_sites(trace)
    if not latent:
        raise ValueError(
            "model must have a latent site to sample, got none: its sample sites are "
            f"{_names(observed)}."
        )
    for name, site in latent.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"model must have continuous latent sites, got the discrete {name!r} "
                f"({type(site['fn']).__name__}): sum over it in the model, for "
                "instance with numpyro.distributions.MixtureSameFamily."
            )
    if needs_observed and not observed:
        raise ValueError(
            "model must have an observed site (obs=...) or a numpyro.factor, which "
            f"are its likelihood, got none: its latent sites are {_names(latent)}. "
            "Were the data passed to the model?"
        )


def check_model(
    model: Callable,
    rng_key: jax.Array,
    model_args: tuple,
    model_kwargs: dict[str, Any],
    *,
    needs_observed: bool = True,
) -> Trace:
    """Trace of a model, checked to be one that the samplers can run."""
    trace = first_trace(model, rng_key, model_args, model_kwargs)
    check_sites(trace, needs_observed)
    for name, site in latent_sites(trace).items():
        if isinstance(site["fn"], dist.Delta):
            raise ValueError(
                "model must have latent sites with a density, got a Delta at "
                f"{name!r}: use numpyro.deterministic there."
            )
    for name, site in trace.items():
        if site["type"] != "plate":
            continue
        size, subsample_size = site["args"]
        if subsample_size not in (None, size):
            raise ValueError(
                f"model must not subsample, got the plate {name!r} with "
                f"subsample_size={subsample_size} of {size}: each run would see other "
                "data. Use a plate without subsample_size."
            )
    return trace


def _names(sites: Trace) -> str:
    return ", ".join(map(repr, sites)) or "none"


def _parts(fn: Any) -> list[Any]:
    """List a distribution and those that it wraps."""
    parts = [fn]
    while hasattr(parts[-1], "base_dist"):
        parts.append(parts[-1].base_dist)
    return parts


def unnormalised_part(fn: Any) -> Any | None:
    """Return the distribution within ``fn`` that lacks its normalizing constant.

    Such a one (``DeepEnergyPrior``) has a method ``contrast``, the gradient of the
    constant; its draws are approximate.
    """
    return next((part for part in _parts(fn) if hasattr(part, "contrast")), None)


def prior_is_proper(trace: Trace) -> bool:
    """Whether no latent site has a density that cannot be normalised."""
    return not any(
        isinstance(part, dist.ImproperUniform)
        for site in latent_sites(trace).values()
        for part in _parts(site["fn"])
    )


def prior_is_exact(trace: Trace) -> bool:
    """Whether a run of the model draws its latent sites from the prior's density.

    It does not if a site's density is scaled or masked, or cannot be normalised, or if
    its draws are approximate. A latent site that depends on an observed one is drawn
    given the observed value, as its density is.
    """
    if not prior_is_proper(trace):
        return False
    for site in latent_sites(trace).values():
        scale = site["scale"]
        # A traced scale is not known to be one.
        if scale is not None and not (
            not_jax_tracer(scale) and bool(np.all(np.asarray(scale) == 1))
        ):
            return False
        if unnormalised_part(site["fn"]) is not None or any(
            isinstance(part, dist.MaskedDistribution) for part in _parts(site["fn"])
        ):
            return False
    return True


# --- points --------------------------------------------------------------------------


def draw_prior(
    rng_key: jax.Array, model: Callable, model_args: tuple, model_kwargs: dict[str, Any]
) -> Sites:
    """Exact draw from the prior, in unconstrained space, within the support."""
    trace = handlers.trace(handlers.seed(model, rng_key)).get_trace(
        *model_args, **model_kwargs
    )
    values = {}
    for name, site in latent_sites(trace).items():
        support = site["fn"].support
        value = inside(support, jnp.asarray(site["value"]))
        values[name] = biject_to(support).inv(value)
    return values


def inside(support: constraints.Constraint, value: jax.Array) -> jax.Array:
    """Move draws that rounding has put on an end of the support to the next number."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    low = getattr(support, "lower_bound", None)
    high = getattr(support, "upper_bound", None)
    if support is constraints.simplex:
        low = 0.0
    if low is not None:
        value = jnp.maximum(value, _next(jnp.asarray(low, value.dtype), jnp.inf))
    if high is not None:
        high = jnp.asarray(high, value.dtype)
        value = jnp.minimum(value, _next(high, -jnp.inf))
        if low is not None:
            # Also seen from the other end, as the change of variables sees it.
            margin = jnp.finfo(value.dtype).eps * (high - low)
            value = jnp.minimum(value, high - margin)
    return value


def _next(end: jax.Array, direction: float) -> jax.Array:
    """Next normal number: XLA takes the subnormal ones beside 0 for 0."""
    step = jnp.copysign(jnp.finfo(end.dtype).tiny, direction)
    beside = jnp.nextafter(end, jnp.full_like(end, direction))
    return jnp.where(end == 0, step, beside)


class Start(NamedTuple):
    """Where chains start, and what a kernel must know of its model.

    ``position`` and ``values``, the same by site, are unconstrained, with an axis of
    chains in front; ``postprocess`` maps model arguments to the function from such
    values to sites.
    """

    position: jax.Array
    values: Sites
    trace: Trace
    postprocess: Callable


def initialize(
    rng_key: jax.Array,
    model: Callable,
    model_args: tuple,
    model_kwargs: dict[str, Any],
    *,
    init_strategy: Callable,
    init_params: Sites | None = None,
    needs_observed: bool = False,
) -> Start:
    """Check a model and find points with a finite density, one per key.

    The strategy is tried up to a hundred times; ``init_params``, unconstrained values
    of each chain, takes its place.

    Raises
    ------
    ValueError
        If there is no such point, or the model is not one that samplers can run.
    """
    single = is_prng_key(rng_key)
    trace = check_model(
        model,
        rng_key if single else rng_key[0],
        model_args,
        model_kwargs,
        needs_observed=needs_observed,
    )
    try:
        info = initialize_model(
            rng_key,
            model,
            init_strategy=init_strategy,
            dynamic_args=True,
            model_args=model_args,
            model_kwargs=model_kwargs,
        )
    except RuntimeError as error:
        strategy = getattr(init_strategy, "func", init_strategy)
        raise ValueError(
            "model must have a finite log density where the chains start, got none in "
            f"a hundred draws of {getattr(strategy, '__name__', repr(strategy))}: are "
            "the data within the support of the likelihood? Where it is zero over most "
            "of the prior, give init_params, or use TemperedSMC."
        ) from error
    values = info.param_info.z
    if init_params is not None:
        if set(init_params) != set(values):
            raise ValueError(
                f"init_params must hold the latent sites {sorted(values)}, got "
                f"{sorted(init_params)}."
            )
        values = {
            name: jnp.broadcast_to(
                jnp.asarray(init_params[name], value.dtype), value.shape
            )
            for name, value in values.items()
        }

        def log_density(values: Sites) -> jax.Array:
            log_prior, log_likelihood = log_prior_and_likelihood(
                model, model_args, model_kwargs, values
            )
            return log_prior + log_likelihood

        # Compiled as a whole: one operation at a time, it is several times slower.
        start = jax.jit(log_density if single else jax.vmap(log_density))(values)
        if not_jax_tracer(start) and not np.all(np.isfinite(start)):
            raise ValueError(
                "model must have a finite log density where the chains start, got "
                f"{np.asarray(start)} at init_params."
            )

    def flat(values: Sites) -> jax.Array:
        return ravel_pytree(values)[0]

    position = (flat if single else jax.vmap(flat))(values)
    return Start(position, values, trace, info.postprocess_fn)


# --- kernels -------------------------------------------------------------------------


class ModelKernel(MCMCKernel):
    """What all kernels here share: a model, and the way back from unconstrained space.

    ``init`` of a subclass sets ``_postprocess`` and ``_sample_fn``.
    """

    def __init__(self, model: Callable, init_strategy: Callable) -> None:
        check_function("model", model, "a NumPyro model, a callable")
        check_function("init_strategy", init_strategy, "such as init_to_uniform")
        self._model = model
        self._init_strategy = init_strategy
        self._postprocess: Callable | None = None
        # NumPyro's MCMC initialises a kernel that has none, even where it resumes.
        self._sample_fn: Callable | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Functions made from the model are not pickled, but made again.
        return {**self.__dict__, "_sample_fn": None, "_postprocess": None}

    @property
    def model(self) -> Callable:
        """The model."""
        return self._model

    @property
    def sample_field(self) -> str:
        """Name of the field of the state that is collected."""
        return "z"

    def postprocess_fn(self, args: tuple, kwargs: dict[str, Any] | None) -> Callable:
        """Make the map from unconstrained values to the sites of the model."""
        if self._postprocess is None:
            return lambda values: values
        return self._postprocess(*args, **(kwargs or {}))
