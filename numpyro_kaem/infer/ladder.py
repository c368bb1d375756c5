"""Ladders of inverse temperatures: where they start, and where they move."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_number, as_real

__all__ = ["check_ladder", "equal_rejection_ladder", "power_ladder"]

# Added to each rejection rate before the ladder is spread over their sum: pairs that
# never reject keep some distance, and a flat likelihood keeps the ladder as it is.
_SMALLEST_REJECTION = 1e-3


def power_ladder(num_temperatures: int, power: float = 5.0) -> np.ndarray:
    r"""Ladder :math:`t_k = (k / N)^p`, from 0 to 1.

    A power above 1 crowds the rungs near :math:`t = 0`, where the likelihood's mean
    changes most (Friel and Pettitt take 4 or 5).

    Parameters
    ----------
    num_temperatures
        Number of rungs :math:`N + 1`, at least 2.
    power
        Exponent :math:`p > 0`.

    Returns
    -------
    ndarray
        Inverse temperatures, shape ``(num_temperatures,)``, increasing.

    Raises
    ------
    ValueError
        If there are fewer than two rungs, or if ``power`` is not positive and finite or
        so large that two rungs are equal.

    References
    ----------
    Friel and Pettitt (2008), "Marginal likelihood estimation via power posteriors",
    *Journal of the Royal Statistical Society B* 70(3), section 3.2.

    Examples
    --------
    >>> from numpyro_kaem.infer.ladder import power_ladder
    >>> power_ladder(5, power=2.0)
    array([0.    , 0.0625, 0.25  , 0.5625, 1.    ])
    """
    if isinstance(num_temperatures, bool) or not isinstance(
        num_temperatures, int | np.integer
    ):
        raise ValueError(
            f"num_temperatures must be an integer >= 2, got {num_temperatures!r}."
        )
    if num_temperatures < 2:
        raise ValueError(
            "num_temperatures must be at least 2, the prior and the posterior, got "
            f"{num_temperatures}; of the posterior alone, draw with MALA."
        )
    power = as_number("power", power, "a finite number > 0", lambda x: x > 0)
    ladder = np.linspace(0.0, 1.0, num_temperatures) ** power
    # In float32, which the sampler may compute in.
    if not np.all(np.diff(ladder.astype(np.float32)) > 0):
        raise ValueError(
            f"power must leave {num_temperatures} rungs apart, got {power!r}, with "
            "which the lowest are equal in float32."
        )
    return ladder


def check_ladder(temperatures: ArrayLike) -> np.ndarray:
    """Check a ladder that the user gives; increasing, from 0 to 1.

    Parameters
    ----------
    temperatures
        Inverse temperatures, shape ``(num_temperatures,)``.

    Returns
    -------
    ndarray
        The same, of dtype float64.

    Raises
    ------
    ValueError
        If it is not one-dimensional, has fewer than two rungs, does not begin with 0
        and end with 1, or is not increasing.
    """
    as_real("temperatures", temperatures)
    ladder = np.asarray(temperatures, dtype=np.float64)
    if ladder.ndim != 1:
        raise ValueError(
            "temperatures must be one-dimensional, got an array of shape "
            f"{ladder.shape}."
        )
    if ladder.size < 2:
        raise ValueError(
            "temperatures must have at least 2 rungs, the prior (0) and the posterior "
            f"(1), got {ladder.size}; of the posterior alone, draw with MALA."
        )
    if ladder[0] != 0.0 or ladder[-1] != 1.0:
        raise ValueError(
            "temperatures must begin with 0 (the prior) and end with 1 (the "
            f"posterior), got {ladder[0]:g} to {ladder[-1]:g}."
        )
    if not np.all(np.diff(ladder.astype(np.float32)) > 0):
        worst = int(np.argmin(np.diff(ladder.astype(np.float32))))
        raise ValueError(
            "temperatures must be increasing (in float32 too), got "
            f"{ladder[worst]:.9g} followed by {ladder[worst + 1]:.9g}."
        )
    return ladder


def monotone_interpolation(x: jax.Array, y: jax.Array, new_x: jax.Array) -> jax.Array:
    """Piecewise cubic through points, increasing where the points are.

    The slopes are those of Fritsch and Butland (1984), so that between two points the
    curve stays between their values.

    Parameters
    ----------
    x, y
        Points, shape ``(n,)`` with ``n >= 2``; ``x`` increasing.
    new_x
        Where to evaluate, within the range of ``x``.

    Returns
    -------
    Array
        Values, of the shape of ``new_x``.
    """
    width = jnp.diff(x)
    secant = jnp.diff(y) / width
    if len(x) == 2:
        slopes = jnp.repeat(secant, 2)
    else:
        slopes = _slopes(width, secant)
    index = jnp.clip(jnp.searchsorted(x, new_x, side="right") - 1, 0, len(x) - 2)
    h = width[index]
    s = (new_x - x[index]) / h
    # Hermite's form, as an increment of y: a sum of terms of one sign keeps the digits
    # of a first step that is many powers of ten smaller than the last.
    rise = secant[index] * s**2 * (3 - 2 * s)
    bend = s * (1 - s) * ((1 - s) * slopes[index] - s * slopes[index + 1])
    return y[index] + h * (rise + bend)


def _slopes(width: jax.Array, secant: jax.Array) -> jax.Array:
    """Slopes at the points: weighted harmonic means, three-point ones at the ends."""
    left, right = secant[:-1], secant[1:]
    weight_left = 2 * width[1:] + width[:-1]
    weight_right = width[1:] + 2 * width[:-1]
    same_sign = left * right > 0
    safe_left, safe_right = (jnp.where(same_sign, s, 1.0) for s in (left, right))
    harmonic = (weight_left + weight_right) / (
        weight_left / safe_left + weight_right / safe_right
    )
    inner = jnp.where(same_sign, harmonic, 0.0)

    def at_end(h0: jax.Array, h1: jax.Array, s0: jax.Array, s1: jax.Array) -> jax.Array:
        slope = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
        slope = jnp.where(slope * s0 <= 0, 0.0, slope)
        too_steep = (s0 * s1 <= 0) & (jnp.abs(slope) > 3 * jnp.abs(s0))
        return jnp.where(too_steep, 3 * s0, slope)

    first = at_end(width[0], width[1], secant[0], secant[1])
    last = at_end(width[-1], width[-2], secant[-1], secant[-2])
    return jnp.concatenate([first[None], inner, last[None]])


def equal_rejection_ladder(temperatures: jax.Array, rejection: jax.Array) -> jax.Array:
    r"""Ladder on which all swaps would be rejected equally often.

    The cumulative rejection :math:`\Lambda(t_k) = \sum_{j<k} r_j` is interpolated by a
    monotone cubic, and the new rungs divide its range equally. Its end
    :math:`\Lambda(1)` estimates the communication barrier.

    Parameters
    ----------
    temperatures
        Present ladder, shape ``(num_temperatures,)``.
    rejection
        Mean rejection rate of the swaps of neighbours, shape
        ``(num_temperatures - 1,)``, in [0, 1].

    Returns
    -------
    Array
        New ladder, of the shape of ``temperatures``.

    References
    ----------
    Syed, Bouchard-Côté, Deligiannidis and Doucet (2022), "Non-reversible parallel
    tempering: a scalable highly parallel MCMC scheme", *Journal of the Royal
    Statistical Society B* 84(2), section 5.

    Examples
    --------
    Half of the rejections lie between the first two rungs:

    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.infer.ladder import equal_rejection_ladder
    >>> ladder = jnp.array([0.0, 0.3, 0.6, 1.0])
    >>> new = equal_rejection_ladder(ladder, jnp.array([0.6, 0.3, 0.3]))
    >>> print(" ".join(f"{t:.2f}" for t in new))
    0.00 0.17 0.49 1.00
    """
    cumulative = jnp.cumsum(rejection + _SMALLEST_REJECTION)
    cumulative = jnp.concatenate([jnp.zeros(1, cumulative.dtype), cumulative])
    share = jnp.linspace(0.0, 1.0, len(temperatures), dtype=cumulative.dtype)
    inner = monotone_interpolation(
        cumulative, temperatures, share[1:-1] * cumulative[-1]
    )
    # The ends exactly.
    return jnp.concatenate([temperatures[:1], inner, temperatures[-1:]])
