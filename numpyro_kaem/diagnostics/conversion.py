"""Results as objects of ArviZ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer import MCMC, Predictive, init_to_sample, log_likelihood
from numpyro.infer.svi import SVIRunResult

from numpyro_kaem._checks import as_count, check_key
from numpyro_kaem.empirical_bayes import MarginalFit, UnitPosterior, unit_posterior
from numpyro_kaem.infer import ImportanceResult, PosteriorSample, TemperedSMCResult
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.training import FitResult

if TYPE_CHECKING:
    import xarray

__all__ = ["SAMPLE_DIMS", "Groups", "ModelCall", "to_arviz"]

SAMPLE_DIMS = ("chain", "draw")
# ArviZ's names for what NumPyro's kernels call otherwise.
_STATISTICS = {
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
}
# Dimension of the statistics of annealed populations.
_LADDER = {
    "temperatures": "rung",
    "mean_log_likelihood": "rung",
    "replica_log_likelihood": "rung",
    "accept_prob": "rung",
    "swap_acceptance": "swap",
}


def to_arviz(
    result: Any,
    *,
    model: Callable | None = None,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    guide: Callable | None = None,
    rng_key: jax.Array | None = None,
    num_samples: int | None = None,
    prior: Mapping[str, Any] | int | None = None,
    posterior_predictive: Mapping[str, Any] | bool = False,
    log_likelihood: bool = True,
    constant_data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Convert a result to the object that ArviZ works with.

    ========================  =========================================================
    result                    posterior
    ========================  =========================================================
    ``MCMC``                  draws of NUTS or of any kernel of this library, by chain
    ``ImportanceResult``      draws resampled by the smoothed weights
    ``TemperedSMCResult``     draws resampled by the weights of the islands
    ``PosteriorSample``       all draws of the run that was chosen
    ``SVIRunResult``          draws of the ``guide``
    ``FitResult``             last states of the chains of the training data, if they
                              are kept and given as ``model_args=(data,)``; with them
                              the learned prior, generated data, history of training
    ``MarginalFit``           latent value of every unit, under the fitted prior
    ``UnitPosterior``         the same
    ``dict``                  draws, each of shape ``(num_draws, *site)``
    ========================  =========================================================

    Parameters
    ----------
    result
        Any of these.
    model, model_args, model_kwargs
        NumPyro model and the arguments it was run with, which add its data, the log
        likelihood and deterministic sites. An ``MCMC`` knows them, and a ``FitResult``
        the model, but not the data.
    guide
        Guide of an ``SVIRunResult``.
    rng_key
        Random key of what is drawn; ``None`` is ``jax.random.key(0)``.
    num_samples
        Number of draws, where the result does not consist of draws: by default the
        number of particles, or 1000.
    prior
        Draws of the prior and of data from it, each of shape ``(num_draws, *site)``, or
        the number to draw of the model.
    posterior_predictive
        Data replicated at the draws of the posterior, each of shape
        ``(num_chains * num_draws, *site)``; True draws them of the model.
    log_likelihood
        Whether to evaluate the log likelihood of each datum at each draw, which
        ``arviz.loo`` and ``arviz.compare`` need.
    constant_data
        Other data, such as covariates.
    coords
        Values along a dimension, by its name.
    dims
        Names of the dimensions of a site, by the site's name. Plates name their own.

    Returns
    -------
    InferenceData or DataTree
        That of the installed ArviZ: ``InferenceData`` before 1.0, a ``DataTree`` of
        xarray since. Draws are those of the sampler, bit for bit.

    Raises
    ------
    TypeError
        If ``result`` is none of these, or ``rng_key`` is not a random key.
    ValueError
        If a run is not finished; if ``model`` is needed and missing; if an array does
        not fit the draws, or coordinates do not fit a dimension.

    Notes
    -----
    - Statistics have ArviZ's names: ``acceptance_rate``, ``lp``, ``diverging``,
      ``n_steps``, ``tree_depth``, ``step_size``; collect them with ``extra_fields``.
    - Resampled draws keep their raw ``log_weight`` and the index of their ``particle``
      among the statistics, whose attributes hold ``pareto_k``, ``ess`` and
      ``log_evidence``.
    - The history of training is in a group ``training``.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    ...     with numpyro.plate("person", len(y)):
    ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> y = jnp.array([0.8, 1.4, 1.9])
    >>> sampler = kaem.infer.ImportanceSampling(model, num_samples=2000)
    >>> result = sampler.run(jax.random.key(0), y)
    >>> data = kaem.to_arviz(result, model=model, model_args=(y,), num_samples=500)
    >>> data["posterior"]["mean"].shape, data["log_likelihood"]["y"].dims
    ((1, 500), ('chain', 'draw', 'person'))
    """
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key(rng_key)
    if num_samples is not None:
        num_samples = as_count("num_samples", num_samples)
    call = None if model is None else ModelCall(model, model_args, model_kwargs or {})
    keys = jax.random.split(rng_key, 4)
    found = _extract(
        result, _Request(call, tuple(model_args), guide, keys[0], num_samples)
    )
    of_model: Any = found.call
    sites: Any = None if of_model is None else of_model.sites()
    named = {} if sites is None else sites.dims
    groups = Groups({**found.dims, **named, **(dims or {})}, coords)

    posterior = dict(found.posterior)
    shape = next((np.shape(value)[:2] for value in posterior.values()), (1, 0))
    flat = {n: value.reshape(-1, *value.shape[2:]) for n, value in posterior.items()}
    if sites is not None and flat:
        extra = of_model.deterministics(flat, sites.deterministic, keys[1])
        posterior.update(_by_chain(extra, shape))
    groups.add("posterior", posterior, attrs=found.attrs)
    groups.add("sample_stats", found.sample_stats, attrs=found.attrs)

    replicated = posterior_predictive
    if replicated is True:
        _need(sites, "posterior_predictive=True")
        replicated = of_model.replicate(flat, tuple(sites.observed), keys[2])
    if replicated:
        groups.add("posterior_predictive", _by_chain(replicated, shape))
    if log_likelihood and sites is not None and sites.observed and flat:
        values = of_model.log_likelihoods(flat)
        groups.add("log_likelihood", _by_chain(values, shape))

    in_prior, predicted = found.prior, found.prior_predictive
    if isinstance(prior, int):
        _need(sites, f"prior={prior}")
        prior = dict(of_model.prior(as_count("prior", prior), keys[3]))
    if prior is not None:
        data = {} if sites is None else sites.observed
        draws = _one_chain(prior)
        in_prior = {name: value for name, value in draws.items() if name not in data}
        predicted = {name: value for name, value in draws.items() if name in data}
    groups.add("prior", in_prior)
    groups.add("prior_predictive", predicted)

    if sites is not None:
        groups.add("observed_data", sites.observed, ())
    groups.add("constant_data", {**found.constant_data, **(constant_data or {})}, ())
    groups.add("training", found.training, ("step",))
    return groups.build()


def _need(sites: Any, what: str) -> None:
    if sites is None:
        raise ValueError(
            f"model must be given for {what}: the result does not know it."
        )


def _one_chain(draws: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value)[None] for name, value in draws.items()}


def _by_chain(values: Mapping[str, Any], shape: tuple[int, int]) -> dict[str, Any]:
    """Arrays with an entry per draw, with axes of the chains and of their draws."""
    count = shape[0] * shape[1]
    for name, value in values.items():
        if np.shape(value)[:1] != (count,):
            raise ValueError(
                f"{name!r} must have one entry per draw, {count} in all, got shape "
                f"{np.shape(value)}."
            )
    return {
        name: np.asarray(value).reshape(*shape, *np.shape(value)[1:])
        for name, value in values.items()
    }


class Groups:
    """Groups of named arrays for ArviZ.

    ``dims`` are names of a variable's dimensions after those of the sample, by its
    name; ``coords`` are values along a dimension, by its name: 0, 1, ... by default.
    """

    def __init__(
        self,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Any] | None = None,
    ) -> None:
        self.dims = {name: tuple(names) for name, names in (dims or {}).items()}
        self.coords = {
            name: np.asarray(values) for name, values in (coords or {}).items()
        }
        self._datasets: dict[str, xarray.Dataset] = {}

    def add(
        self,
        group: str,
        values: Mapping[str, Any],
        sample_dims: Sequence[str] = SAMPLE_DIMS,
        *,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a group of arrays with leading dimensions, unless it is empty."""
        if not values:
            return
        import xarray

        variables: dict[str, Any] = {}
        coords: dict[str, np.ndarray] = {}
        for name, value in values.items():
            value = np.asarray(jax.device_get(value))
            num_own = value.ndim - len(sample_dims)
            named = self.dims.get(name, ())[:num_own]
            # As ArviZ names those that nobody did.
            rest = (f"{name}_dim_{axis}" for axis in range(len(named), num_own))
            names = (*sample_dims, *named, *rest)
            for dim, size in zip(names, value.shape, strict=True):
                known = coords.get(dim, self.coords.get(dim, np.arange(size)))
                if len(known) != size:
                    raise ValueError(
                        f"dimension {dim!r} of {name!r} in the group {group!r} has "
                        f"size {size}, but {len(known)} coordinates."
                    )
                coords[dim] = known
            variables[name] = (names, value)
        self._datasets[group] = xarray.Dataset(variables, coords, dict(attrs or {}))

    def build(self) -> Any:
        """Make an ``InferenceData`` of ArviZ 0.x, or a ``DataTree`` as of ArviZ 1.0."""
        for dataset in self._datasets.values():
            dataset.attrs.setdefault("inference_library", "numpyro")
            dataset.attrs.setdefault("inference_library_version", numpyro.__version__)
        if int(version("arviz").split(".")[0]) < 1:
            import arviz

            return arviz.InferenceData(**self._datasets, warn_on_custom_groups=False)
        from xarray import DataTree

        return DataTree.from_dict(self._datasets)


# --- models --------------------------------------------------------------------------


class Sites(NamedTuple):
    """Sites of a model: names, data by name, and names of dimensions in order."""

    latent: tuple[str, ...]
    deterministic: tuple[str, ...]
    observed: dict[str, jax.Array]
    dims: dict[str, tuple[str, ...]]


class ModelCall:
    """A NumPyro model with its arguments."""

    def __init__(
        self, model: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.model, self.args, self.kwargs = model, tuple(args), dict(kwargs)

    def sites(self) -> Sites:
        """Sites of the model."""
        # A site with an improper prior cannot be drawn, but has initial values.
        model = handlers.substitute(
            handlers.seed(self.model, jax.random.key(0)), substitute_fn=init_to_sample
        )
        with handlers.block():
            trace = handlers.trace(model).get_trace(*self.args, **self.kwargs)
        latent, deterministic, observed, dims = [], [], {}, {}
        for name, site in trace.items():
            if site["type"] == "deterministic":
                deterministic.append(name)
            elif site["type"] != "sample":
                continue
            elif site["is_observed"]:
                # A factor has no data.
                if np.size(site["value"]):
                    observed[name] = site["value"]
            else:
                latent.append(name)
            frames = sorted(site["cond_indep_stack"], key=lambda frame: frame.dim)
            named = site.get("infer", {}).get("event_dims", [])
            dims[name] = (*(frame.name for frame in frames), *named)
        return Sites(tuple(latent), tuple(deterministic), observed, dims)

    def deterministics(
        self, draws: Mapping[str, jax.Array], names: tuple[str, ...], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Deterministic sites at draws of shape ``(num_draws, *site)``."""
        missing = [name for name in names if name not in draws]
        if not missing:
            return {}
        run = Predictive(self.model, dict(draws), return_sites=missing)
        return run(key, *self.args, **self.kwargs)

    def log_likelihoods(self, draws: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Log likelihood of each datum, ``(num_draws, *batch_shape)`` by site."""
        return log_likelihood(self.model, dict(draws), *self.args, **self.kwargs)

    def replicate(
        self, draws: Mapping[str, jax.Array], names: tuple[str, ...], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Draw new data at draws of the latent sites, shaped as the data."""
        run = Predictive(
            handlers.uncondition(self.model), dict(draws), return_sites=list(names)
        )
        return run(key, *self.args, **self.kwargs)

    def prior(self, num_samples: int, key: jax.Array) -> dict[str, jax.Array]:
        """Draws of all sites from the prior, of data from the prior predictive."""
        model = handlers.uncondition(self.model)
        run = Predictive(model, num_samples=num_samples)
        return run(key, *self.args, **self.kwargs)


# --- what each kind of result holds --------------------------------------------------


class _Request(NamedTuple):
    """Arguments of ``to_arviz``; ``args`` are also for a model that the result has."""

    call: ModelCall | None
    args: tuple[Any, ...]
    guide: Callable | None
    rng_key: jax.Array
    num_samples: int | None

    @property
    def num_draws(self) -> int:
        """Number of draws from a result that has no number of its own."""
        return 1000 if self.num_samples is None else self.num_samples


@dataclass
class _Extracted:
    """What a result holds, by name: draws of shape ``(num_chains, num_draws, ...)``.

    ``attrs`` are facts about the draws, ``training`` is of shape ``(num_steps,)``.
    """

    posterior: dict[str, Any] = field(default_factory=dict)
    sample_stats: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    prior_predictive: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    constant_data: dict[str, Any] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    call: ModelCall | None = None


@singledispatch
def _extract(result: Any, request: _Request) -> _Extracted:
    """Take draws and statistics out of a result."""
    raise TypeError(
        "result must be an MCMC, an ImportanceResult, a TemperedSMCResult, a "
        "PosteriorSample, an SVIRunResult, a FitResult, a MarginalFit, a UnitPosterior "
        f"or a dict of draws, got {type(result).__name__}."
    )


@_extract.register(dict)
def _of_draws(result: Mapping[str, Any], request: _Request) -> _Extracted:
    if not result:
        raise ValueError("result must hold draws, got an empty dict.")
    lengths = {name: np.shape(value)[:1] for name, value in result.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise ValueError(
            "result must hold draws of shape (num_draws, *site), of one length, got "
            f"lengths {lengths}."
        )
    return _Extracted(posterior=_one_chain(result), call=request.call)


@_extract.register
def _of_mcmc(result: MCMC, request: _Request) -> _Extracted:
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
            # Each level of NUTS doubles their number.
            statistics["tree_depth"] = np.log2(np.asarray(value)).astype(int) + 1
        if name in _LADDER and np.ndim(value) > 2:
            dims[own] = (_LADDER[name],)
        statistics[own] = value
    kernel = result.sampler
    call = request.call
    if call is None and getattr(kernel, "model", None) is not None:
        call = ModelCall(kernel.model, result._args, result._kwargs)
    attrs = {"sampler": type(kernel).__name__}
    return _Extracted(posterior, statistics, attrs, dims={**dims}, call=call)


def _flat(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arrays among the collected fields, nested ones by their path."""
    found = []
    for name, value in fields.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            found.append((name + jax.tree_util.keystr(path), leaf))
    return found


@_extract.register
def _of_importance(result: ImportanceResult, request: _Request) -> _Extracted:
    indices = result._indices(request.rng_key, request.num_samples)
    particle = np.asarray(indices)
    chosen = np.take_along_axis(np.asarray(result.log_weights), particle, axis=0)
    statistics = {"log_weight": chosen, "particle": particle}
    units = () if result.unit_plate is None else (result.unit_plate,)
    attrs = {
        "sampler": "ImportanceSampling",
        "num_particles": result.num_samples,
        "pareto_k": result.pareto_k,
        "ess": result.ess,
        "log_evidence": result.log_evidence.value,
        "log_evidence_standard_error": result.log_evidence.standard_error,
    }
    return _Extracted(
        _one_chain(result._take(indices)),
        _one_chain(statistics),
        attrs,
        dims=dict.fromkeys(statistics, units),
        call=request.call,
    )


@_extract.register
def _of_tempered(result: TemperedSMCResult, request: _Request) -> _Extracted:
    particle = np.asarray(result._indices(request.rng_key, request.num_samples))
    draws = {name: value[particle] for name, value in result.samples.items()}
    statistics = {
        "log_weight": result.log_weights[particle],
        "log_likelihood": result.log_likelihood[-1][particle],
        "particle": particle,
    }
    attrs = {
        "sampler": "TemperedSMC",
        "num_particles": result.num_particles,
        "ess": result.ess,
        "log_evidence": result.log_evidence.value,
        "log_evidence_standard_error": result.log_evidence.standard_error,
    }
    return _Extracted(
        _one_chain(draws), _one_chain(statistics), attrs, call=request.call
    )


@_extract.register
def _of_posterior(result: PosteriorSample, request: _Request) -> _Extracted:
    run = {"importance": result.importance, "TemperedSMC": result.tempered}
    found = _extract(run.get(result.sampler, result.mcmc), request)
    found.attrs["report"] = "\n".join(result.report)
    return found


@_extract.register
def _of_svi(result: SVIRunResult, request: _Request) -> _Extracted:
    if request.guide is None or request.call is None:
        raise ValueError(
            "guide and model must be given for a result of SVI, which does not know "
            "them."
        )
    call = request.call
    run = Predictive(request.guide, params=result.params, num_samples=request.num_draws)
    draws = run(request.rng_key, *call.args, **call.kwargs)
    latent = set(call.sites().latent)
    posterior = {name: value for name, value in draws.items() if name in latent}
    if not posterior:
        raise ValueError(
            f"guide must draw the latent sites of the model, {sorted(latent)}, got "
            f"{sorted(draws)}."
        )
    return _Extracted(
        _one_chain(posterior),
        attrs={"sampler": "SVI"},
        training={"loss": np.asarray(result.losses)},
        dims={"loss": ()},
        call=call,
    )


@_extract.register
def _of_fit(result: FitResult, request: _Request) -> _Extracted:
    count, model = request.num_draws, result.model
    if not isinstance(model, KAEM):
        raise TypeError(
            "result must be the fit of a KAEM; of another model's fit, the losses are "
            "result.losses."
        )
    found = _Extracted(
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


@_extract.register
def _of_units(result: UnitPosterior, request: _Request) -> _Extracted:
    keys = jax.random.split(request.rng_key)
    shape = (1, request.num_draws)
    found = _Extracted(
        {"z": result.sample(keys[0], shape)},
        prior={"z": result.prior.sample(keys[1], shape)},
        constant_data={"log_marginal_likelihood": result.log_marginal_likelihood},
        dims={"z": ("unit",), "log_marginal_likelihood": ("unit",)},
    )
    if result.atom_probabilities.shape[1] > 0:
        found.constant_data["atom_probability"] = result.atom_probabilities
        found.dims["atom_probability"] = ("unit", "atom")
    return found


@_extract.register
def _of_marginal_fit(result: MarginalFit, request: _Request) -> _Extracted:
    found = _extract(unit_posterior(result.prior, result.log_likelihood), request)
    found.constant_data["count"] = result.counts
    found.dims["count"] = ("unit",)
    return found
