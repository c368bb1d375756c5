"""Calibration of posterior draws, and posterior predictive p values."""

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
    """Ranks of true values; made by :func:`simulation_based_calibration`."""

    ranks: dict[str, np.ndarray]
    """Number of draws below the true value, 0 to ``num_samples``, shape
    ``(num_simulations, *site)`` by site."""
    num_samples: int
    """Number of posterior draws per simulation."""

    @property
    def num_simulations(self) -> int:
        """Number of simulations."""
        return len(next(iter(self.ranks.values())))

    @property
    def p_values(self) -> dict[str, np.ndarray]:
        """Kolmogorov-Smirnov tests of uniform ranks, shape ``site`` by site.

        Small values show that the posterior is not calibrated. Of many components the
        smallest is small by chance: multiply it by their number.
        """
        from scipy.stats import kstest

        found = {}
        for name, values in self._fractions().items():
            columns = values.reshape(len(values), -1).T
            tests = [kstest(column, "uniform").pvalue for column in columns]
            found[name] = np.reshape(tests, values.shape[1:])
        return found

    def _fractions(self) -> dict[str, np.ndarray]:
        return {
            name: (value + 0.5) / (self.num_samples + 1)
            for name, value in self.ranks.items()
        }

    def __repr__(self) -> str:
        values = np.concatenate([np.ravel(p) for p in self.p_values.values()])
        return (
            f"CalibrationResult({self.num_simulations} simulations of "
            f"{self.num_samples} draws, {values.size} components, smallest p value "
            f"{values.min():.3g})"
        )

    def to_arviz(
        self, *, coords: Mapping[str, Any] | None = None, dims: Any = None
    ) -> Any:
        """Ranks as fractions of 1, in the group ``prior_sbc`` that ArviZ plots.

        There is one chain, with a draw per simulation; ``coords`` and ``dims`` are as
        for :func:`to_arviz`.
        """
        groups = Groups(dims, coords)
        ranks = {name: value[None] for name, value in self._fractions().items()}
        groups.add(
            "prior_sbc", ranks, SAMPLE_DIMS, attrs={"num_samples": self.num_samples}
        )
        return groups.build()


def simulation_based_calibration(
    rng_key: jax.Array,
    model: Callable,
    *model_args: Any,
    num_simulations: int = 200,
    num_samples: int = 99,
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
    rng_key
        Random key.
    model
        NumPyro model, called with ``model_args`` and ``model_kwargs``. These include
        the data, of which only the shapes matter.
    *model_args, **model_kwargs
        Arguments of the model.
    num_simulations
        Number of simulated data sets.
    num_samples
        Number of posterior draws per simulation.
    num_warmup, thinning
        Iterations of the chain of each simulation: before its draws, and per draw.
        Correlated draws make ranks uneven, so thin until there are none.
    kernel
        Makes the kernel of a model: :class:`numpyro.infer.NUTS`, or any of
        :mod:`numpyro_kaem.infer`.
    sampler
        In place of a kernel: a function ``sampler(rng_key, model, model_args,
        model_kwargs)`` that returns ``num_samples`` independent draws by site, where
        ``model`` holds the simulated data.
    progress_bar
        Whether to show progress.

    Raises
    ------
    TypeError
        If ``rng_key`` is not a random key.
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
    ...     jax.random.key(0),
    ...     model,
    ...     jnp.zeros(()),
    ...     num_simulations=40,
    ...     num_warmup=200,
    ...     progress_bar=False,
    ... )
    >>> bool(result.p_values["mean"] > 0.01)
    True
    """
    check_key(rng_key)
    check_function("model", model, "a NumPyro model, a callable")
    num_simulations = as_count("num_simulations", num_simulations)
    num_samples = as_count("num_samples", num_samples)
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
        run = _chain(call, kernel, num_warmup, num_samples, thinning)
    else:

        def run(key: jax.Array, data: dict[str, jax.Array]) -> dict[str, jax.Array]:
            known = handlers.condition(handlers.uncondition(model), data)
            return sampler(key, known, model_args, model_kwargs)

    ranks: dict[str, list] = {name: [] for name in sites.latent}
    keys = jax.random.split(key_run, num_simulations)
    for number in tqdm(range(num_simulations), disable=not progress_bar):
        draws = run(keys[number], {n: value[number] for n, value in data.items()})
        for name, found in ranks.items():
            values = np.asarray(draws[name])
            if len(values) != num_samples:
                raise ValueError(
                    f"sampler must return {num_samples} draws, got {len(values)} of "
                    f"{name!r}."
                )
            found.append(np.sum(values < np.asarray(truth[name][number]), axis=0))
    return CalibrationResult({n: np.stack(r) for n, r in ranks.items()}, num_samples)


def _chain(
    call: ModelCall, kernel: Callable, num_warmup: int, num_samples: int, thinning: int
) -> Callable:
    """Return a function that runs one chain on given data, compiled once."""

    def known(data: dict[str, jax.Array]) -> Any:
        model = handlers.condition(handlers.uncondition(call.model), data)
        return model(*call.args, **call.kwargs)

    @jax.jit
    def run(key: jax.Array, data: dict[str, jax.Array]) -> dict[str, jax.Array]:
        mcmc = MCMC(
            kernel(known, init_strategy=init_to_sample),
            num_warmup=num_warmup,
            num_samples=num_samples * thinning,
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

    with :math:`\tilde x` from the posterior predictive distribution. Values near 0 or 1
    show that the model does not generate data like these. They are returned by name, in
    the shape of the statistic.

    Parameters
    ----------
    replicated
        Data replicated at draws of the posterior, shape ``(num_draws, *data)``.
    observed
        The data, shape ``data``.
    statistics
        Functions from one data set, of shape ``data``, to a number or an array of
        numbers, by name. By default the mean, the standard deviation, the minimum and
        the maximum.

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
        values = np.asarray(jax.vmap(statistic)(replicated))
        value = np.asarray(statistic(observed))
        if not (np.all(np.isfinite(values)) and np.all(np.isfinite(value))):
            raise ValueError(f"statistic {name!r} is not finite for some data.")
        found[name] = np.mean((values > value) + 0.5 * (values == value), axis=0)
    return found
