"""Results to ArviZ."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer import Predictive, init_to_sample, log_likelihood

if TYPE_CHECKING:
    import xarray
from dataclasses import dataclass, field
from functools import singledispatch

import jax.numpy as jnp
from numpyro.infer import MCMC
from numpyro.infer.svi import SVIRunResult

from numpyro_kaem._checks import as_count, check_key
from numpyro_kaem.empirical_bayes import MarginalFit, UnitPosterior, unit_posterior
from numpyro_kaem.infer import ImportanceResult, PosteriorSample
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.training import FitResult

__all__ = [
    "SAMPLE_DIMS",
    "Extracted",
    "Groups",
    "ModelCall",
    "Request",
    "Sites",
    "extract",
    "to_arviz",
]


class Sites(NamedTuple):
    """Sites of a model, by what they are."""

    latent: tuple[str, ...]
    """Names of latent sites."""
    deterministic: tuple[str, ...]
    """Names of deterministic sites."""
    observed: dict[str, jax.Array]
    """Data by name."""
    dims: dict[str, tuple[str, ...]]
    """Names of plates and of event dimensions of sites, in order."""


class ModelCall:
    """A model with its arguments.

    Parameters
    ----------
    model
        A NumPyro model.
    args, kwargs
        Arguments of the model.
    """

    def __init__(
        self, model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)

    def sites(self) -> Sites:
        """Sites of the model."""
        # A site with an improper prior cannot be drawn, but started.
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
        """Draws of all sites from the prior, the data's from its predictive law."""
        model = handlers.uncondition(self.model)
        run = Predictive(model, num_samples=num_samples)
        return run(key, *self.args, **self.kwargs)


SAMPLE_DIMS = ("chain", "draw")


class Groups:
    """Groups of named arrays on their way to ArviZ.

    Parameters
    ----------
    dims
        Names of the dimensions of a variable after those of the sample, by its name.
    coords
        Values along a dimension, by its name; 0, 1, ... where not given.
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
        """Add a group, if it holds anything.

        Parameters
        ----------
        group
            Name of the group.
        values
            Arrays by name, each of shape ``(*sample_dims, ...)``.
        sample_dims
            Names of the leading dimensions.
        attrs
            Facts about the group.

        Raises
        ------
        ValueError
            If coordinates do not fit a dimension.
        """
        if not values:
            return
        import xarray

        variables, coords = {}, {}
        for name, value in values.items():
            value = np.asarray(jax.device_get(value))
            names = self._dims_of(name, value.shape[len(sample_dims) :])
            names = (*sample_dims, *names)
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

    def _dims_of(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names of dimensions, those that nobody named as ArviZ names them."""
        named = self.dims.get(name, ())[: len(shape)]
        rest = range(len(named), len(shape))
        return (*named, *(f"{name}_dim_{axis}" for axis in rest))

    def build(self) -> Any:
        """Make an ``InferenceData`` of ArviZ 0.x, or a ``DataTree`` as of ArviZ 1.0."""
        import numpyro

        for dataset in self._datasets.values():
            dataset.attrs.setdefault("inference_library", "numpyro")
            dataset.attrs.setdefault("inference_library_version", numpyro.__version__)
        if int(version("arviz").split(".")[0]) < 1:
            import arviz

            return arviz.InferenceData(**self._datasets, warn_on_custom_groups=False)
        from xarray import DataTree

        return DataTree.from_dict(self._datasets)


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
        What was run.
    model, model_args, model_kwargs
        NumPyro model with the arguments it was run with. An ``MCMC`` knows its own, and
        a ``FitResult`` its model, not its data.
        With a model come its data, the log likelihood and deterministic sites.
    guide
        Guide of an ``SVIRunResult``.
    rng_key
        Random key of what is drawn; None is ``jax.random.key(0)``.
    num_samples
        How many to draw, where the result is not draws already: by default as many as
        there are particles, or 1000.
    prior
        Draws of the prior and of data from it, each of shape ``(num_draws, *site)``, or
        how many to draw of the model.
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
        If ``result`` is none of these, or ``rng_key`` is no random key.
    ValueError
        If a run is not finished; if ``model`` is needed and missing; if an array does
        not fit the draws, or coordinates do not fit a dimension.

    Notes
    -----
    - Statistics have ArviZ's names: ``acceptance_rate``, ``lp``, ``diverging``,
      ``n_steps``, ``tree_depth``, ``step_size``; collect them with ``extra_fields``.
    - Resampled draws keep their raw ``log_weight`` and the number of their
      ``particle`` among the statistics, whose attributes hold ``pareto_k``, ``ess`` and
      ``log_evidence``.
    - The history of training is in a group ``training``.

    Examples
    --------
    >>> import arviz
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
    found = extract(
        result, Request(call, tuple(model_args), guide, keys[0], num_samples)
    )
    sites = None if found.call is None else found.call.sites()
    named = {} if sites is None else sites.dims
    groups = Groups({**found.dims, **named, **(dims or {})}, coords)

    shape = _sample_shape(found)
    flat = {name: _merge(value) for name, value in found.posterior.items()}
    posterior = dict(found.posterior)
    if sites is not None and flat:
        extra = found.call.deterministics(flat, sites.deterministic, keys[1])
        posterior.update({name: _split(value, shape) for name, value in extra.items()})
    groups.add("posterior", posterior, attrs=found.attrs)
    groups.add("sample_stats", found.sample_stats, attrs=found.attrs)

    replicated = posterior_predictive
    if replicated is True:
        _need(sites, "posterior_predictive=True")
        replicated = found.call.replicate(flat, tuple(sites.observed), keys[2])
    if replicated:
        groups.add("posterior_predictive", _split_all(replicated, shape))
    if log_likelihood and sites is not None and sites.observed and flat:
        values = found.call.log_likelihoods(flat)
        groups.add("log_likelihood", _split_all(values, shape))

    in_prior, predicted = found.prior, found.prior_predictive
    if isinstance(prior, int) and not isinstance(prior, bool):
        _need(sites, f"prior={prior}")
        prior = found.call.prior(as_count("prior", prior), keys[3])
    if prior is not None:
        data = {} if sites is None else sites.observed
        in_prior = {n: np.asarray(v)[None] for n, v in prior.items() if n not in data}
        predicted = {n: np.asarray(v)[None] for n, v in prior.items() if n in data}
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


def _sample_shape(found: Extracted) -> tuple[int, int]:
    for value in found.posterior.values():
        return tuple(np.shape(value)[:2])
    return (1, 0)


def _merge(value: Any) -> Any:
    return value.reshape(-1, *np.shape(value)[2:])


def _split_all(values: Mapping[str, Any], shape: tuple[int, int]) -> dict[str, Any]:
    count = shape[0] * shape[1]
    for name, value in values.items():
        if np.shape(value)[:1] != (count,):
            raise ValueError(
                f"{name!r} must have one entry for each of the {count} draws, got "
                f"shape {np.shape(value)}."
            )
    return {name: _split(value, shape) for name, value in values.items()}


def _split(value: Any, shape: tuple[int, int]) -> Any:
    return np.asarray(value).reshape(*shape, *np.shape(value)[1:])
