"""Importance weights: their effective sample size, smoothing, and resampling."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from math import ceil, floor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.util import not_jax_tracer

from numpyro_kaem._checks import as_count, as_name, as_real, check_key

__all__ = [
    "GOOD_PARETO_K",
    "MAX_PARETO_K",
    "METHODS",
    "Estimate",
    "Resampled",
    "SmoothedWeights",
    "effective_sample_size",
    "normalize",
    "pareto_smooth",
    "resample_below",
    "resample_indices",
]

GOOD_PARETO_K = 0.5
MAX_PARETO_K = 0.7
"""Tail shape above which averages under the weights are not reliable."""

# Fewest draws for which a tail is fitted: five of them are then in the tail.
_MIN_DRAWS = 25

_LOG_TINY = np.log(np.finfo(np.float64).tiny)


class Estimate(NamedTuple):
    """A value with its Monte Carlo standard error, such as a log evidence.

    Examples
    --------
    The log Bayes factor of two models, and its error:

    >>> import math
    >>> from numpyro_kaem.infer import Estimate
    >>> first, second = Estimate(-31.4, 0.03), Estimate(-29.1, 0.04)
    >>> error = math.hypot(first.standard_error, second.standard_error)
    >>> print(f"{second.value - first.value:.1f} ± {error:.2f}")
    2.3 ± 0.05
    """

    value: float | np.ndarray
    """A number, or shape ``(num_units,)``."""
    standard_error: float | np.ndarray
    """Of the same shape."""


# --- Pareto smoothing ----------------------------------------------------------------


class SmoothedWeights(NamedTuple):
    """Smoothed log weights; made by :func:`pareto_smooth`."""

    log_weights: np.ndarray
    """Normalised log weights, float64, the shape of those given."""
    pareto_k: np.ndarray
    r"""Shape :math:`\hat k` of the tail, shape () or (num_units,): -inf where the
    largest weights are all equal, inf where too few carry weight to fit a tail, NaN
    where it was not or could not be estimated."""
    notes: tuple[str, ...]
    """What was not estimated and why, one per unit; empty where it was."""


def pareto_smooth(log_weights: ArrayLike) -> SmoothedWeights:
    r"""Pareto-smoothed log weights and the shape of their tail.

    Replaces the largest :math:`\min(S/5, 3\sqrt S)` of :math:`S` weights by quantiles
    of a generalised Pareto distribution fitted to them. Above :math:`\hat k = 0.7`
    averages under the weights are not reliable.

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
        relative efficiency of one, except where there is no tail to fit:

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
    _check_shape(value.shape)
    _check_finite(value)
    columns = value.reshape(value.shape[0], -1).T
    smoothed, shapes, notes = zip(*map(_smooth, columns), strict=True)
    return SmoothedWeights(
        np.stack(smoothed, axis=-1).reshape(value.shape),
        np.array(shapes).reshape(value.shape[1:]),
        notes,
    )


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (1, 2) or shape[0] == 0:
        raise ValueError(
            "log_weights must have shape (num_samples,) or (num_samples, num_units), "
            f"got {shape}."
        )


def _check_finite(log_weights: np.ndarray) -> None:
    if np.any(np.isnan(log_weights) | (log_weights == np.inf)):
        raise ValueError("log_weights must be finite or -inf, got NaN or inf.")


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
    num_positive = int(np.sum(raw - max(np.max(raw), -1e300) > _LOG_TINY))
    tail = min(num_draws / 5, 3 * num_draws**0.5)
    if num_positive == 0:
        return raw, np.nan, "no particle carries weight"
    if num_draws < _MIN_DRAWS:
        note = f"{num_draws} draws are too few for a Pareto k, which needs {_MIN_DRAWS}"
        return raw, np.nan, note
    if num_positive <= ceil(tail):
        note = (
            f"only {num_positive} of {num_draws} draws carry weight, too few to fit a "
            "tail"
        )
        return raw, np.inf, note
    # No tail can be fitted to equal values, and none is needed: weights whose maximum
    # is reached this often have no tail beyond it.
    if np.ptp(np.sort(raw)[-floor(tail) :]) == 0:
        return raw, -np.inf, "the largest weights are all equal: they have no tail"
    # Zero weights give log(0), which is meant.
    with np.errstate(all="ignore"):
        smoothed, shape = _arviz_psislw(raw.copy())
    if np.any(np.isnan(smoothed)):
        return raw, np.inf, "the weights differ too much to fit a tail"
    note = "ArviZ could not fit a tail to the weights" if np.isnan(shape) else ""
    return np.asarray(smoothed), float(shape), note


def _arviz_psislw(log_weights: np.ndarray) -> tuple[np.ndarray, Any]:
    """Smoothed log weights and tail shape, by whichever line of ArviZ is installed."""
    if int(version("arviz").split(".")[0]) < 1:
        from arviz import psislw

        return psislw(log_weights, reff=1.0)
    from arviz_stats.base import array_stats

    # It takes log likelihoods that are left out, so the negative of log weights.
    return array_stats.psislw(-log_weights, r_eff=1)


# --- resampling ----------------------------------------------------------------------


def _select(log_weights: jax.Array, positions: jax.Array) -> jax.Array:
    """Find in whose share of the unit interval the positions lie."""
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    ends = jnp.cumsum(weights)
    # side="right" never chooses an empty share. A position that rounding has put at
    # the very end belongs to the last share that is not empty.
    last = weights.size - 1 - jnp.argmax(weights[::-1] > 0)
    indices = jnp.searchsorted(ends, positions * ends[-1], side="right")
    return jnp.minimum(indices, last)


def _multinomial(
    rng_key: jax.Array, log_weights: jax.Array, num_samples: int
) -> jax.Array:
    """Independent choices, shape ``(num_samples,)``, in random order."""
    uniforms = jax.random.uniform(rng_key, (num_samples,), log_weights.dtype)
    return _select(log_weights, uniforms)


def _stratified(
    rng_key: jax.Array, log_weights: jax.Array, num_samples: int
) -> jax.Array:
    """One choice from each of ``num_samples`` equal parts, in ascending order."""
    uniforms = jax.random.uniform(rng_key, (num_samples,), log_weights.dtype)
    parts = jnp.arange(num_samples).astype(log_weights.dtype)
    return _select(log_weights, (parts + uniforms) / num_samples)


def _systematic(
    rng_key: jax.Array, log_weights: jax.Array, num_samples: int
) -> jax.Array:
    """Choices at equal distances from one random start, in ascending order."""
    uniform = jax.random.uniform(rng_key, (), log_weights.dtype)
    parts = jnp.arange(num_samples).astype(log_weights.dtype)
    return _select(log_weights, (parts + uniform) / num_samples)


def _residual(
    rng_key: jax.Array, log_weights: jax.Array, num_samples: int
) -> jax.Array:
    """Whole parts of the expected counts first, the rest by independent choices."""
    expected = num_samples * jax.nn.softmax(log_weights)
    # A whole number that rounding has put just below itself is still whole.
    tolerance = 8 * jnp.finfo(expected.dtype).eps
    whole = jnp.floor(expected * (1 + tolerance))
    rest = jnp.maximum(expected - whole, 0)
    ends = jnp.cumsum(whole.astype(int))
    positions = jnp.arange(num_samples)
    fixed = jnp.searchsorted(ends, positions, side="right")
    drawn = _multinomial(rng_key, jnp.log(rest), num_samples)
    return jnp.where(positions < ends[-1], fixed, drawn)


METHODS: dict[str, Callable] = {
    "multinomial": _multinomial,
    "residual": _residual,
    "stratified": _stratified,
    "systematic": _systematic,
}
"""Resampling methods by name."""


def _check_weights(log_weights: ArrayLike) -> jax.Array:
    log_weights = as_real("log_weights", log_weights)
    _check_shape(log_weights.shape)
    if not jnp.issubdtype(log_weights.dtype, jnp.floating):
        log_weights = log_weights.astype(float)
    if not_jax_tracer(log_weights):
        value = np.asarray(log_weights)
        _check_finite(value)
        empty = ~np.any(np.isfinite(value), axis=0)
        if np.any(empty):
            where = "" if value.ndim == 1 else f" in unit {int(np.argmax(empty))}"
            raise ValueError(
                "log_weights must hold a finite value to resample from: no particle "
                f"carries weight{where}."
            )
    return log_weights


def resample_indices(
    rng_key: jax.Array,
    log_weights: ArrayLike,
    num_samples: int | None = None,
    *,
    method: str = "systematic",
) -> jax.Array:
    r"""Choose equally weighted draws from weighted ones.

    Every method is unbiased: particle :math:`i` is chosen :math:`n w_i` times on
    average, :math:`w_i` being the normalised weights. Multinomial choices vary most.

    Parameters
    ----------
    rng_key
        Random key.
    log_weights
        Log weights, normalised or not, shape ``(num_particles,)``, or one column per
        unit in the shape ``(num_particles, num_units)``; -inf is a weight of zero.
    num_samples
        How many to choose; by default as many as there are particles.
    method
        ``"multinomial"``, ``"residual"``, ``"stratified"`` or ``"systematic"``.

    Returns
    -------
    jax.Array
        Indices, shape ``(num_samples,)`` or ``(num_samples, num_units)``, units being
        resampled independently. The last two methods give them in ascending order.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If an argument is not as above, if a log weight is NaN or inf, or if no particle
        of a unit carries weight. Weights are not checked under ``jit``.

    References
    ----------
    Douc, Cappé and Moulines (2005), "Comparison of resampling schemes for particle
    filtering", *ISPA 2005*.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.infer import resample_indices
    >>> log_weights = jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25]))
    >>> resample_indices(jax.random.key(0), log_weights, method="residual").tolist()
    [0, 0, 2, 3]
    """
    check_key(rng_key)
    choose = METHODS[as_name("method", method, METHODS)]
    log_weights = _check_weights(log_weights)
    if num_samples is None:
        num_samples = log_weights.shape[0]
    choose = partial(choose, num_samples=as_count("num_samples", num_samples))
    if log_weights.ndim == 1:
        return choose(rng_key, log_weights)
    keys = jax.random.split(rng_key, log_weights.shape[1])
    return jax.vmap(choose, in_axes=(0, 1), out_axes=1)(keys, log_weights)


def effective_sample_size(log_weights: jax.Array | np.ndarray) -> jax.Array:
    r"""Kish's :math:`1 / \sum_i w_i^2` over the first axis, shape () or (num_units,).

    Zero where no particle carries weight.
    """
    top = jnp.max(log_weights, axis=0)
    weights = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0))
    squares = jnp.sum(weights**2, axis=0)
    return jnp.sum(weights, axis=0) ** 2 / jnp.where(squares > 0, squares, 1)


class Resampled(NamedTuple):
    """Particles after :func:`resample_below`; those of each unit in a column."""

    indices: jax.Array
    """Which particle now stands in each place, the shape of the log weights."""
    log_weights: jax.Array
    """Normalised log weights now: equal where resampled."""
    resampled: jax.Array
    """Whether they were resampled, shape () or ``(num_units,)``."""


def resample_below(
    rng_key: jax.Array,
    log_weights: ArrayLike,
    threshold: float = 0.5,
    *,
    method: str = "systematic",
) -> Resampled:
    """Resample only where the effective sample size has become small.

    Parameters
    ----------
    rng_key, log_weights, method
        As for :func:`resample_indices`.
    threshold
        Fraction of the number of particles below which the effective sample size calls
        for resampling, in [0, 1].

    Returns
    -------
    Resampled
        Indices, log weights, and what was resampled.

    Raises
    ------
    TypeError
        As :func:`resample_indices`.
    ValueError
        As :func:`resample_indices`, or if the threshold is not within [0, 1].

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.infer import resample_below
    >>> even_and_uneven = jnp.array([[0.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
    >>> result = resample_below(jax.random.key(0), even_and_uneven)
    >>> result.resampled.tolist(), result.indices.T.tolist()
    ([False, True], [[0, 1, 2], [1, 1, 1]])
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be within [0, 1], got {threshold!r}.")
    log_weights = _check_weights(log_weights)
    chosen = resample_indices(rng_key, log_weights, method=method)
    num_particles = log_weights.shape[0]
    small = effective_sample_size(log_weights) < threshold * num_particles
    kept = jnp.arange(num_particles).reshape((-1,) + (1,) * (log_weights.ndim - 1))
    return Resampled(
        jnp.where(small, chosen, kept),
        jnp.where(
            small,
            -jnp.log(jnp.asarray(num_particles, log_weights.dtype)),
            jax.nn.log_softmax(log_weights, axis=0),
        ),
        small,
    )
