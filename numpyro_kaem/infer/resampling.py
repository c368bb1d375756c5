"""Equally weighted draws from weighted ones: four unbiased ways to choose them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.util import not_jax_tracer

from numpyro_kaem._checks import as_real, check_key

__all__ = [
    "METHODS",
    "Resampled",
    "effective_sample_size",
    "multinomial",
    "resample_below",
    "resample_indices",
    "residual",
    "stratified",
    "systematic",
]


def _select(log_weights: jax.Array, positions: jax.Array) -> jax.Array:
    """Find in whose share of the unit interval the positions lie."""
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    ends = jnp.cumsum(weights)
    # side="right" never chooses an empty share. A position that rounding has put at
    # the very end belongs to the last share that is not empty.
    last = weights.size - 1 - jnp.argmax(weights[::-1] > 0)
    indices = jnp.searchsorted(ends, positions * ends[-1], side="right")
    return jnp.minimum(indices, last)


def multinomial(
    rng_key: jax.Array, log_weights: jax.Array, num_samples: int
) -> jax.Array:
    """Independent choices, shape ``(num_samples,)``, in random order."""
    uniforms = jax.random.uniform(rng_key, (num_samples,), log_weights.dtype)
    return _select(log_weights, uniforms)


def stratified(
    rng_key: jax.Array, log_weights: jax.Array, num_samples: int
) -> jax.Array:
    """One choice from each of ``num_samples`` equal parts, in ascending order."""
    uniforms = jax.random.uniform(rng_key, (num_samples,), log_weights.dtype)
    parts = jnp.arange(num_samples).astype(log_weights.dtype)
    return _select(log_weights, (parts + uniforms) / num_samples)


def systematic(
    rng_key: jax.Array, log_weights: jax.Array, num_samples: int
) -> jax.Array:
    """Choices at equal distances from one random start, in ascending order."""
    uniform = jax.random.uniform(rng_key, (), log_weights.dtype)
    parts = jnp.arange(num_samples).astype(log_weights.dtype)
    return _select(log_weights, (parts + uniform) / num_samples)


def residual(rng_key: jax.Array, log_weights: jax.Array, num_samples: int) -> jax.Array:
    """Whole parts of the expected counts first, the rest by independent choices."""
    expected = num_samples * jax.nn.softmax(log_weights)
    # A whole number that rounding has put just below itself is still whole.
    tolerance = 8 * jnp.finfo(expected.dtype).eps
    whole = jnp.floor(expected * (1 + tolerance))
    rest = jnp.maximum(expected - whole, 0)
    ends = jnp.cumsum(whole.astype(int))
    positions = jnp.arange(num_samples)
    fixed = jnp.searchsorted(ends, positions, side="right")
    drawn = multinomial(rng_key, jnp.log(rest), num_samples)
    return jnp.where(positions < ends[-1], fixed, drawn)


METHODS: dict[str, Callable] = {
    "multinomial": multinomial,
    "residual": residual,
    "stratified": stratified,
    "systematic": systematic,
}
"""The methods by name."""


def _method(name: str) -> Callable:
    if not isinstance(name, str) or name not in METHODS:
        names = ", ".join(map(repr, METHODS))
        raise ValueError(f"method must be one of {names}, got {name!r}.")
    return METHODS[name]


def check_count(name: str, value: int) -> int:
    """Return a positive whole number as an ``int``.

    Raises
    ------
    ValueError
        If it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
    return int(value)


def _check_weights(log_weights: ArrayLike) -> jax.Array:
    log_weights = as_real("log_weights", log_weights)
    if log_weights.ndim not in (1, 2) or log_weights.shape[0] == 0:
        raise ValueError(
            "log_weights must have shape (num_samples,) or (num_samples, num_units), "
            f"got {log_weights.shape}."
        )
    if not jnp.issubdtype(log_weights.dtype, jnp.floating):
        log_weights = log_weights.astype(float)
    if not_jax_tracer(log_weights):
        value = np.asarray(log_weights)
        if np.any(np.isnan(value) | (value == np.inf)):
            raise ValueError("log_weights must be finite or -inf, got NaN or inf.")
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
        Log weights, normalised or not, shape ``(num_particles,)``, or one column for
        each unit in the shape ``(num_particles, num_units)``; -inf is a weight of zero.
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
    choose = _method(method)
    log_weights = _check_weights(log_weights)
    if num_samples is None:
        num_samples = log_weights.shape[0]
    choose = partial(choose, num_samples=check_count("num_samples", num_samples))
    if log_weights.ndim == 1:
        return choose(rng_key, log_weights)
    keys = jax.random.split(rng_key, log_weights.shape[1])
    return jax.vmap(choose, in_axes=(0, 1), out_axes=1)(keys, log_weights)


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    r"""Kish's :math:`1 / \sum_i w_i^2` over the first axis, shape () or (num_units,).

    Zero where no particle carries weight.
    """
    top = jnp.max(log_weights, axis=0)
    weights = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0))
    squares = jnp.sum(weights**2, axis=0)
    return jnp.sum(weights, axis=0) ** 2 / jnp.where(squares > 0, squares, 1)


class Resampled(NamedTuple):
    """Particles after :func:`resample_below`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.infer import resample_below
    >>> values = jnp.array([1.0, 2.0, 3.0, 4.0])
    >>> particles = resample_below(jax.random.key(0), jnp.array([9.0, 0.0, 0.0, 0.0]))
    >>> bool(particles.resampled), values[particles.indices].tolist()
    (True, [1.0, 1.0, 1.0, 1.0])
    >>> print(jnp.exp(particles.log_weights))
    [0.25 0.25 0.25 0.25]
    """

    indices: jax.Array
    """Which particle now stands in each place, the shape of the log weights."""
    log_weights: jax.Array
    """Normalised log weights now: equal where resampled."""
    resampled: jax.Array
    """Whether the particles, or those of each unit, were resampled."""


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
    ValueError
        As :func:`resample_indices`, or if the threshold is not within [0, 1].

    References
    ----------
    Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers", *Journal of
    the Royal Statistical Society B* 68(3), section 3.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.infer import resample_below
    >>> even_and_uneven = jnp.array([[0.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
    >>> resample_below(jax.random.key(0), even_and_uneven).resampled.tolist()
    [False, True]
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
