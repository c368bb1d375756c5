"""Whether inference and model are calibrated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, init_to_sample
from tqdm import tqdm

from numpyro_kaem._checks import as_count, as_real, check_function, check_key
from numpyro_kaem.diagnostics.conversion import SAMPLE_DIMS, Groups, ModelCall

__all__ = [
    "CalibrationResult",
    "posterior_predictive_p_values",
    "simulation_based_calibration",
]


@dataclass(frozen=True, repr=False)
class CalibrationResult:
    """Ranks of true values; made by :func:`simulation_based_calibration`.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari and Gelman (2018), "Validating Bayesian
    inference algorithms with simulation-based calibration", arXiv:1804.06788.

    Examples
    --------
    Ranks of a posterior that is too narrow gather at both ends:

    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> ranks = np.random.default_rng(0).beta(0.5, 0.5, size=200) * 99
    >>> result = kaem.CalibrationResult({"mean": ranks.round()}, num_draws=99)
    >>> result.num_simulations, bool(result.p_values["mean"] < 0.01)
    (200, True)
    """

    ranks: dict[str, np.ndarray]
    """How many of the draws are below the value that made the data, 0 to ``num_draws``,
    shape ``(num_simulations, *site)`` by site."""
    num_draws: int
    """Number of posterior draws of each simulation."""

    @property
    def num_simulations(self) -> int:
        """Number of simulations."""
        return len(next(iter(self.ranks.values())))

    @property
    def p_values(self) -> dict[str, np.ndarray]:
        """Kolmogorov-Smirnov test of uniform ranks, shape ``site`` by site.

        Small values say that the posterior is not calibrated. Of many components the
        smallest is small by chance: multiply it by their number.
        """
        return {name: _uniformity(value) for name, value in self._fractions().items()}

    def _fractions(self) -> dict[str, np.ndarray]:
        return {
            name: (value + 0.5) / (self.num_draws + 1)
            for name, value in self.ranks.items()
        }

    def __repr__(self) -> str:
        values = np.concatenate([np.ravel(p) for p in self.p_values.values()])
        return (
            f"CalibrationResult({self.num_simulations} simulations of "
            f"{self.num_draws} draws, {values.size} components, smallest p value "
            f"{values.min():.3g})"
        )

    def to_arviz(
        self, *, coords: Mapping[str, Any] | None = None, dims: Any = None
    ) -> Any:
        """Ranks as shares of 1, in the group ``prior_sbc`` that ArviZ plots.

        Parameters
        ----------
        coords, dims
            As for :func:`to_arviz`.

        Returns
        -------
        InferenceData or DataTree
            Of dimensions chain (one) and draw (a simulation each).

        Raises
        ------
        ValueError
            If coordinates do not fit a dimension.
        """
        groups = Groups(dims, coords)
        ranks = {name: value[None] for name, value in self._fractions().items()}
        groups.add("prior_sbc", ranks, SAMPLE_DIMS, attrs={"num_draws": self.num_draws})
        return groups.build()


def _uniformity(fractions: np.ndarray) -> np.ndarray:
    from scipy.stats import kstest

    columns = fractions.reshape(len(fractions), -1).T
    values = [kstest(column, "uniform").pvalue for column in columns]
    return np.reshape(values, fractions.shape[1:])


def simulation_based_calibration(
    model: Callable,
    rng_key: jax.Array,
    *model_args: Any,
    num_simulations: int = 200,
    num_draws: int = 99,
    num_warmup: int = 500,
    thinning: int = 5,
    kernel: Callable = NUTS,
    sampler: Callable | None = None,
    progress_bar: bool = True,
    **model_kwargs: Any,
) -> CalibrationResult:
    """Check posterior draws against data whose latent values are known.

    Values of the latent sites are drawn from the prior, data from the model, and the
    posterior is sampled given these data. If all is right, the rank of a value among
    the posterior draws is uniform.

    Parameters
    ----------
    model
        NumPyro model, called with ``model_args`` and ``model_kwargs``, data included:
        their values are replaced by simulated ones, only their shapes matter.
    rng_key
        Random key.
    *model_args, **model_kwargs
        Arguments of the model.
    num_simulations
        Number of simulations.
    num_draws
        Number of posterior draws of each.
    num_warmup, thinning
        Of the chain of each simulation: iterations before, and for each draw. Draws
        that depend on each other make ranks uneven, so thin as much as it takes.
    kernel
        Makes the kernel of a model: :class:`numpyro.infer.NUTS`, or any of
        :mod:`numpyro_kaem.infer`.
    sampler
        In place of a kernel: a function ``sampler(rng_key, model, model_args,
        model_kwargs)`` that returns ``num_draws`` independent draws by site, where
        ``model`` holds the simulated data.
    progress_bar
        Whether to show progress.

    Returns
    -------
    CalibrationResult
        Ranks and tests of their uniformity.

    Raises
    ------
    TypeError
        If ``rng_key`` is no random key.
    ValueError
        If the model has no data or no latent site, a number is not positive, or a
        sampler returns another number of draws.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari and Gelman (2018), "Validating Bayesian
    inference algorithms with simulation-based calibration", arXiv:1804.06788.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> result = kaem.simulation_based_calibration(
    ...     model,
    ...     jax.random.key(0),
    ...     jnp.zeros(()),
    ...     num_simulations=40,
    ...     num_warmup=200,
    ...     progress_bar=False,
    ... )
    >>> bool(result.p_values["mean"] > 0.01)
    True
    """
    check_function("model", model, "a NumPyro model, a callable")
    check_key(rng_key)
    num_simulations = as_count("num_simulations", num_simulations)
    num_draws = as_count("num_draws", num_draws)
    call = ModelCall(model, model_args, model_kwargs)
    sites = call.sites()
    if not sites.observed:
        raise ValueError("model must have an observed site to simulate, it has none.")
    if not sites.latent:
        raise ValueError("model must have a latent site to rank, it has none.")
    key_prior, key_run = jax.random.split(rng_key)
    truth = call.prior(num_simulations, key_prior)
    data = {name: truth[name] for name in sites.observed}
    if sampler is None:
        num_warmup = as_count("num_warmup", num_warmup)
        thinning = as_count("thinning", thinning)
        run = _chain(call, kernel, num_warmup, num_draws, thinning)
    else:

        def run(key: jax.Array, data: dict[str, jax.Array]) -> dict[str, jax.Array]:
            known = handlers.condition(handlers.uncondition(model), data)
            return sampler(key, known, model_args, model_kwargs)

    ranks = {name: [] for name in sites.latent}
    keys = jax.random.split(key_run, num_simulations)
    for number in tqdm(range(num_simulations), disable=not progress_bar):
        draws = run(keys[number], {n: value[number] for n, value in data.items()})
        for name, found in ranks.items():
            values = np.asarray(draws[name])
            if len(values) != num_draws:
                raise ValueError(
                    f"sampler must return {num_draws} draws, got {len(values)} of "
                    f"{name!r}."
                )
            found.append(np.sum(values < np.asarray(truth[name][number]), axis=0))
    return CalibrationResult({n: np.stack(r) for n, r in ranks.items()}, num_draws)


def _chain(
    call: ModelCall, kernel: Callable, num_warmup: int, num_draws: int, thinning: int
) -> Callable:
    """One chain for given data, compiled once for all."""

    def known(data: dict[str, jax.Array]) -> Any:
        model = handlers.condition(handlers.uncondition(call.model), data)
        return model(*call.args, **call.kwargs)

    @jax.jit
    def run(key: jax.Array, data: dict[str, jax.Array]) -> dict[str, jax.Array]:
        mcmc = MCMC(
            kernel(known, init_strategy=init_to_sample),
            num_warmup=num_warmup,
            num_samples=num_draws * thinning,
            thinning=thinning,
            progress_bar=False,
        )
        mcmc.run(key, data)
        return mcmc.get_samples()

    return run


def posterior_predictive_p_values(
    replicated: Any,
    observed: Any,
    statistics: Mapping[str, Callable] | None = None,
) -> dict[str, np.ndarray]:
    r"""Probability that replicated data exceed the data in a statistic.

    .. math:: p = \Pr(T(\tilde x) > T(x)) + \tfrac{1}{2} \Pr(T(\tilde x) = T(x))

    with :math:`\tilde x` from the posterior predictive law. Values near 0 or 1 say that
    the model does not make data like these.

    Parameters
    ----------
    replicated
        Data replicated at draws of the posterior, shape ``(num_draws, *data)``.
    observed
        The data, shape ``data``.
    statistics
        Functions from one data set, of shape ``data``, to a number or an array of
        numbers, by name. By default the mean, the standard deviation, the smallest and
        the largest value.

    Returns
    -------
    dict
        p values by name, of the shape of the statistic.

    Raises
    ------
    ValueError
        If shapes do not fit, or a statistic is not finite.

    References
    ----------
    Gelman, Meng and Stern (1996), "Posterior predictive assessment of model fitness via
    realized discrepancies", *Statistica Sinica* 6.

    Examples
    --------
    Data with two outliers, and Normal replicates:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> observed = jnp.linspace(-1.0, 1.0, 50).at[:2].set(9.0)
    >>> replicated = jax.random.normal(jax.random.key(0), (500, 50))
    >>> values = kaem.posterior_predictive_p_values(replicated, observed)
    >>> float(values["maximum"])
    0.0
    """
    replicated = as_real("replicated", replicated, or_bool=True)
    observed = as_real("observed", observed, or_bool=True)
    if replicated.ndim == 0 or replicated.shape[1:] != observed.shape:
        expected = ", ".join(["num_draws", *map(str, observed.shape)])
        raise ValueError(
            f"replicated must have shape ({expected}), got {replicated.shape}."
        )
    if len(replicated) == 0:
        raise ValueError("replicated must hold draws, it holds none.")
    if statistics is None:
        statistics = {
            "mean": jnp.mean,
            "standard_deviation": jnp.std,
            "minimum": jnp.min,
            "maximum": jnp.max,
        }
    found = {}
    for name, statistic in statistics.items():
        there = np.asarray(jax.vmap(statistic)(replicated))
        here = np.asarray(statistic(observed))
        if not (np.all(np.isfinite(there)) and np.all(np.isfinite(here))):
            raise ValueError(f"statistic {name!r} is not finite for some data.")
        found[name] = np.mean((there > here) + 0.5 * (there == here), axis=0)
    return found
