r"""Pareto-smoothed importance sampling by the installed ArviZ.

The two lines of ArviZ differ: the one before 1.0 takes log weights, the later one their
negative, and their estimates of :math:`\hat k` differ in the second or third decimal.
Neither handles weights without a tail, which is done here before either is asked.
"""

from importlib.metadata import version
from math import ceil, floor
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

__all__ = ["MIN_DRAWS", "SmoothedWeights", "pareto_smooth"]

MIN_DRAWS = 25
"""Fewest draws for which a tail is fitted: five of them are then in the tail."""

LOG_TINY = np.log(np.finfo(np.float64).tiny)


class SmoothedWeights(NamedTuple):
    """Smoothed log weights; made by :func:`pareto_smooth`.

    Examples
    --------
    Too few weights to fit their tail:

    >>> import numpy as np
    >>> from numpyro_kaem.infer import pareto_smooth
    >>> smoothed = pareto_smooth(np.zeros(10))
    >>> np.exp(smoothed.log_weights).sum().round(3), np.isnan(smoothed.pareto_k).item()
    (np.float64(1.0), True)
    >>> len(smoothed.notes)
    1
    """

    log_weights: np.ndarray
    """Normalised log weights, float64, the shape of those given."""
    pareto_k: np.ndarray
    r"""Shape :math:`\hat k` of the tail, shape () or (num_units,): -inf where the
    largest weights are all equal, inf where too few carry weight to fit a tail, NaN
    where it was not or could not be estimated."""
    notes: tuple[str, ...]
    """What was not estimated and why, one for each unit; empty where it was."""


def pareto_smooth(log_weights: ArrayLike) -> SmoothedWeights:
    r"""Pareto-smoothed log weights and the shape of their tail.

    Replaces the largest :math:`\min(S/5, 3\sqrt S)` of :math:`S` weights by quantiles
    of a generalised Pareto law fitted to them. Above :math:`\hat k = 0.7` averages
    under the weights are not reliable.

    Parameters
    ----------
    log_weights
        Log weights, normalised or not, shape ``(num_samples,)``, or
        ``(num_samples, num_units)`` to treat each column alone. -inf is a weight of
        zero, and counts as a draw.

    Returns
    -------
    SmoothedWeights
        Normalised log weights and :math:`\hat k`, those of the installed ArviZ with a
        relative efficiency of one, but where there is no tail to fit:

        - none finite: nothing to normalise, all stay -inf, :math:`\hat k` is NaN;
        - fewer than 25 draws: not smoothed, :math:`\hat k` is NaN;
        - fewer that are above zero (in float64, beside the largest) than a tail and one
          more: not smoothed, :math:`\hat k` is inf;
        - the whole tail equal, so that the weights are bounded: not smoothed,
          :math:`\hat k` is -inf.

    Raises
    ------
    ValueError
        If the shape is another, or a log weight is NaN or inf.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance
    sampling", *Journal of Machine Learning Research* 25(72).

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.infer import pareto_smooth
    >>> log_weights = np.random.default_rng(0).exponential(0.3, size=1000)
    >>> smoothed = pareto_smooth(log_weights)
    >>> print(f"{np.exp(smoothed.log_weights).sum():.3f}")
    1.000
    >>> bool(smoothed.pareto_k < 0.7)
    True
    """
    value = np.array(log_weights, np.float64)
    if value.ndim not in (1, 2) or value.shape[0] == 0:
        raise ValueError(
            "log_weights must have shape (num_samples,) or (num_samples, num_units), "
            f"got {value.shape}."
        )
    if np.any(np.isnan(value) | (value == np.inf)):
        raise ValueError("log_weights must be finite or -inf, got NaN or inf.")
    columns = value.reshape(value.shape[0], -1).T
    smoothed, shapes, notes = zip(*map(_smooth, columns), strict=True)
    return SmoothedWeights(
        np.stack(smoothed, axis=-1).reshape(value.shape),
        np.array(shapes).reshape(value.shape[1:]),
        notes,
    )


def normalize(log_weights: np.ndarray) -> np.ndarray:
    """Log weights that sum to one over the first axis; all -inf stays as it is."""
    top = np.max(log_weights, axis=0)
    shifted = log_weights - np.where(np.isfinite(top), top, 0.0)
    total = np.exp(shifted).sum(axis=0)
    return shifted - np.log(np.where(total > 0, total, 1.0))


def _smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float, str]:
    """Smooth the weights of one unit, where they have a tail."""
    num_draws = log_weights.size
    raw = normalize(log_weights)
    # Weights too small beside the largest to be numbers are zero to every average.
    num_positive = int(np.sum(raw - max(np.max(raw), -1e300) > LOG_TINY))
    tail = min(num_draws / 5, 3 * num_draws**0.5)
    if num_positive == 0:
        return raw, np.nan, "no particle carries weight"
    if num_draws < MIN_DRAWS:
        note = f"{num_draws} draws are too few for a Pareto k, which needs {MIN_DRAWS}"
        return raw, np.nan, note
    if num_positive <= ceil(tail):
        note = (
            f"only {num_positive} of {num_draws} draws carry weight, too few to fit a "
            "tail"
        )
        return raw, np.inf, note
    # No law can be fitted to equal values, and none is needed: weights whose maximum is
    # reached this often have no tail beyond it.
    if np.ptp(np.sort(raw)[-floor(tail) :]) == 0:
        return raw, -np.inf, "the largest weights are all equal: they have no tail"
    # Zero weights give log(0), which is meant.
    with np.errstate(all="ignore"):
        smoothed, shape = _arviz_psislw(raw.copy())
    if np.any(np.isnan(smoothed)):
        return raw, np.inf, "the weights differ too much to fit a tail"
    note = "ArviZ could not fit a tail to the weights" if np.isnan(shape) else ""
    return np.asarray(smoothed), float(shape), note


def _arviz_psislw(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log weights and tail shape, by whichever line of ArviZ is installed."""
    if int(version("arviz").split(".")[0]) < 1:
        from arviz import psislw

        return psislw(log_weights, reff=1.0)
    from arviz_stats.base import array_stats

    # It takes log likelihoods that are left out, so the negative of log weights.
    return array_stats.psislw(-log_weights, r_eff=1)
