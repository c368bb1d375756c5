"""What the results of importance sampling give."""

from typing import NamedTuple

import jax
import numpy as np

__all__ = ["LogEvidence", "ResampledDraws"]


class LogEvidence(NamedTuple):
    """Log marginal likelihood of the data, as estimated from importance weights.

    Examples
    --------
    Its two fields unpack:

    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro_kaem.infer import ImportanceSampling
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> result = ImportanceSampling(model).run(jax.random.key(0), 1.5)
    >>> value, standard_error = result.log_evidence
    >>> print(f"{value:.1f}", standard_error < 0.02)
    -1.8 True
    """

    value: float | np.ndarray
    """Log of the mean weight, a number, or shape ``(num_units,)``. The mean weight is
    unbiased; its log is lower on average."""
    standard_error: float | np.ndarray
    """Monte Carlo standard error of the log, by the delta method: the standard
    deviation of the weights over their mean and the root of their number. Not to be
    trusted where the Pareto k is above 0.7; inf where no particle carries weight."""


class ResampledDraws(NamedTuple):
    """Draws after :meth:`ImportanceResult.resample_below`.

    Examples
    --------
    Weights that are nearly equal are kept:

    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro_kaem.infer import ImportanceSampling
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 3.0), obs=y)
    >>> result = ImportanceSampling(model, num_samples=500).run(jax.random.key(0), 0.5)
    >>> draws = result.resample_below(jax.random.key(1))
    >>> draws.samples["z"].shape, bool(draws.resampled)
    ((500,), False)
    """

    samples: dict[str, jax.Array]
    """Latent values, one for each particle (and unit)."""
    log_weights: jax.Array
    """Their normalised log weights, equal where resampled."""
    resampled: jax.Array
    """Whether they were resampled, shape () or ``(num_units,)``."""
