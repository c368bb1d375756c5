"""Draws and statistics of every kind of result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC, Predictive
from numpyro.infer.svi import SVIRunResult

from numpyro_kaem.diagnostics.sites import ModelCall
from numpyro_kaem.empirical_bayes import MarginalFit, UnitPosterior, unit_posterior
from numpyro_kaem.infer import ImportanceResult, PosteriorSample
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.training import FitResult

__all__ = ["Extracted", "Request", "extract"]

# ArviZ's names for what NumPyro's kernels call otherwise.
_STATISTICS = {
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
}
_LADDER = {
    "temperatures": "rung",
    "mean_log_likelihood": "rung",
    "rung_log_likelihood": "rung",
    "accept_prob": "rung",
    "swap_acceptance": "swap",
}


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    call: ModelCall | None
    """Model with its arguments."""
    args: tuple[Any, ...]
    """Arguments of the model, also of one that the result knows."""
    guide: Callable | None
    """Guide of variational inference."""
    rng_key: jax.Array
    """Random key of what is drawn."""
    num_samples: int | None
    """How many draws, where the result is not draws already."""


@dataclass
class Extracted:
    """What a result holds."""

    posterior: dict[str, Any] = field(default_factory=dict)
    """Draws by site, shape ``(num_chains, num_draws, *site)``."""
    sample_stats: dict[str, Any] = field(default_factory=dict)
    """Statistics of the draws, shape ``(num_chains, num_draws, ...)``."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """Facts about the draws, also of the statistics."""
    prior: dict[str, Any] = field(default_factory=dict)
    """Draws of a learned prior, shape ``(1, num_draws, ...)``."""
    prior_predictive: dict[str, Any] = field(default_factory=dict)
    """Data generated with it."""
    training: dict[str, Any] = field(default_factory=dict)
    """History of training, shape ``(num_steps,)``."""
    constant_data: dict[str, Any] = field(default_factory=dict)
    """Other facts about the data."""
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of dimensions."""
    call: ModelCall | None = None
    """Model with its arguments, where the result knows them."""


@singledispatch
def extract(result: Any, request: Request) -> Extracted:
    """Take draws and statistics out of a result.

    Raises
    ------
    TypeError
        If it is none of those that are known.
    """
    raise TypeError(
        "result must be an MCMC, an ImportanceResult, a PosteriorSample, an "
        "SVIRunResult, a FitResult, a MarginalFit, a UnitPosterior or a dict of draws, "
        f"got {type(result).__name__}."
    )


@extract.register(dict)
def _(result: Mapping[str, Any], request: Request) -> Extracted:
    if not result:
        raise ValueError("result must hold draws, got an empty dict.")
    lengths = {name: np.shape(value)[:1] for name, value in result.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise ValueError(
            "result must hold draws of shape (num_draws, *site), of one length, got "
            f"lengths {lengths}."
        )
    return Extracted(posterior=_one_chain(result), call=request.call)


@extract.register
def _(result: MCMC, request: Request) -> Extracted:
    try:
        posterior = result.get_samples(group_by_chain=True)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError("result must be a finished run of MCMC; run it.") from error
    if not isinstance(posterior, dict):
        # Of a potential function, whose values have no names.
        leaves = jax.tree_util.tree_leaves_with_path(posterior)
        posterior = {f"z{jax.tree_util.keystr(p)}": leaf for p, leaf in leaves}
    statistics, dims = {}, {}
    for name, value in _flat(result.get_extra_fields(group_by_chain=True)):
        own = _STATISTICS.get(name, name)
        if name == "potential_energy":
            own, value = "lp", -value
        if name == "num_steps":
            # A doubling a level, as NUTS makes them.
            statistics["tree_depth"] = np.log2(np.asarray(value)).astype(int) + 1
        if name in _LADDER and np.ndim(value) > 2:
            dims[own] = (_LADDER[name],)
        statistics[own] = value
    kernel = result.sampler
    call = request.call
    if call is None and getattr(kernel, "model", None) is not None:
        call = ModelCall(kernel.model, result._args, result._kwargs)
    attrs = {"sampler": type(kernel).__name__}
    return Extracted(posterior, statistics, attrs, dims=dims, call=call)


def _flat(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arrays among the collected fields, nested ones by their path."""
    found = []
    for name, value in fields.items():
        leaves = jax.tree_util.tree_leaves_with_path(value)
        for path, leaf in leaves:
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            found.append((name + jax.tree_util.keystr(path), leaf))
    return found


@extract.register
def _(result: ImportanceResult, request: Request) -> Extracted:
    indices = result._indices(request.rng_key, request.num_samples)
    weights = np.asarray(result.log_weights)
    chosen = np.take_along_axis(
        weights.reshape(len(weights), -1),
        np.asarray(indices).reshape(len(indices), -1),
        axis=0,
    ).reshape(indices.shape)
    statistics = {"log_weight": chosen, "particle": np.asarray(indices)}
    units = () if result.unit_plate is None else (result.unit_plate,)
    attrs = {
        "sampler": "ImportanceSampling",
        "num_particles": result.num_samples,
        "pareto_k": result.pareto_k,
        "ess": result.ess,
        "log_evidence": result.log_evidence.value,
        "log_evidence_standard_error": result.log_evidence.standard_error,
    }
    return Extracted(
        _one_chain(result._take(indices)),
        _one_chain(statistics),
        attrs,
        dims=dict.fromkeys(statistics, units),
        call=request.call,
    )


@extract.register
def _(result: PosteriorSample, request: Request) -> Extracted:
    if result.mcmc is not None:
        found = extract(result.mcmc, request)
    else:
        found = extract(result.importance, request)
    found.attrs["report"] = "\n".join(result.report)
    return found


@extract.register
def _(result: SVIRunResult, request: Request) -> Extracted:
    if request.guide is None or request.call is None:
        raise ValueError(
            "guide and model must be given for a result of SVI, which does not know "
            "them."
        )
    call = request.call
    run = Predictive(request.guide, params=result.params, num_samples=_count(request))
    draws = run(request.rng_key, *call.args, **call.kwargs)
    latent = set(call.sites().latent)
    posterior = {name: value for name, value in draws.items() if name in latent}
    if not posterior:
        raise ValueError(
            f"guide must draw the latent sites of the model, {sorted(latent)}, got "
            f"{sorted(draws)}."
        )
    return Extracted(
        _one_chain(posterior),
        attrs={"sampler": "SVI"},
        training={"loss": np.asarray(result.losses)},
        dims={"loss": ()},
        call=call,
    )


@extract.register
def _(result: FitResult, request: Request) -> Extracted:
    count, model = _count(request), result.model
    if not isinstance(model, KAEM):
        raise TypeError(
            "result must be the fit of a KAEM; of another model's fit, the losses are "
            "result.losses."
        )
    found = Extracted(
        # With one key these belong together.
        prior=_one_chain({"z": model.latents(request.rng_key, count)}),
        prior_predictive=_one_chain({"x": model.sample(request.rng_key, count)}),
        training={"loss": result.losses},
    )
    position = result.memory.get("position")
    if position is None or not request.args:
        return found
    if "temperatures" in result.memory:
        # The chain of the posterior.
        position = position[:, -1:]
    found.call = ModelCall(model, request.args, {})
    units = UnitModel(jax.random.key(0), result.params, model, request.args, {}, "data")
    latents = jax.vmap(lambda chain: units.constrain(chain)[0], 1)(position)
    found.posterior = _one_chain(latents)
    return found


@extract.register
def _(result: UnitPosterior, request: Request) -> Extracted:
    keys = jax.random.split(request.rng_key)
    shape = (1, _count(request))
    return Extracted(
        {"z": result.sample(keys[0], shape)},
        prior={"z": result.prior.sample(keys[1], shape)},
        constant_data={"log_marginal_likelihood": result.log_marginal_likelihood},
        dims={"z": ("unit",), "log_marginal_likelihood": ("unit",)},
    )


@extract.register
def _(result: MarginalFit, request: Request) -> Extracted:
    found = extract(unit_posterior(result.prior, result.log_likelihood), request)
    found.constant_data["count"] = result.counts
    found.dims["count"] = ("unit",)
    return found


def _one_chain(draws: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value)[None] for name, value in draws.items()}


def _count(request: Request) -> int:
    return 1000 if request.num_samples is None else request.num_samples
