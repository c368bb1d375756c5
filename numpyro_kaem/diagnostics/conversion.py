"""Every result as one ArviZ object."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from numpyro_kaem._checks import as_count, check_key
from numpyro_kaem.diagnostics.groups import Groups
from numpyro_kaem.diagnostics.results import Extracted, Request, extract
from numpyro_kaem.diagnostics.sites import ModelCall

__all__ = ["to_arviz"]


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
