"""Ladders of temperatures, and the swaps between their rungs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_number, as_real

__all__ = [
    "Travels",
    "check_ladder",
    "equal_rejection_ladder",
    "even_odd_permutation",
    "ideal_round_trip_rate",
    "power_ladder",
    "swap_probabilities",
]


def swap_probabilities(temperatures: jax.Array, log_likelihood: jax.Array) -> jax.Array:
    r"""Probability that neighbours swap, if they are asked to.

    .. math::

        \alpha_k = \min\bigl(1, e^{(t_{k+1} - t_k) (\ell_k - \ell_{k+1})}\bigr),

    with :math:`\ell_k` the log likelihood of the replica at rung :math:`k`: the prior
    cancels.

    Parameters
    ----------
    temperatures
        Ladder, shape ``(num_temperatures,)``.
    log_likelihood
        Log likelihood at each rung, shape ``(num_temperatures,)``; minus infinity is
        allowed, NaN never swaps.

    Returns
    -------
    Array
        Shape ``(num_temperatures - 1,)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.infer.ladder import swap_probabilities
    >>> likelihood = jnp.array([0.2, 0.1, 0.3])
    >>> print(swap_probabilities(jnp.array([0.0, 0.5, 1.0]), jnp.log(likelihood)))
    [1.        0.5773503]
    """
    lower, upper = log_likelihood[:-1], log_likelihood[1:]
    log_ratio = jnp.diff(temperatures) * (lower - upper)
    probability = jnp.exp(jnp.minimum(log_ratio, 0.0))
    return jnp.where(jnp.isnan(log_ratio), 0.0, probability)


def even_odd_permutation(
    rng_key: jax.Array, iteration: jax.Array, probabilities: jax.Array
) -> jax.Array:
    """Swap the pairs whose lower rung is even in even iterations, odd in odd ones.

    This deterministic order makes replicas keep their direction; each population
    decides by its own random numbers.

    Parameters
    ----------
    rng_key
        Random key.
    iteration
        Number of the iteration, of which the parity counts.
    probabilities
        Of each pair, shape ``(num_temperatures - 1,)``.

    Returns
    -------
    Array
        Integers, shape ``(num_temperatures,)``: the rung from which each rung takes its
        replica. An involution.

    References
    ----------
    Okabe, Kawata, Okamoto and Mikami (2001), "Replica-exchange Monte Carlo method for
    the isobaric-isothermal ensemble", *Chemical Physics Letters* 335;
    Syed et al. (2022), *Journal of the Royal Statistical Society B* 84(2), algorithm 1.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.infer.ladder import even_odd_permutation
    >>> even_odd_permutation(jax.random.key(0), 1, jnp.ones(4)).tolist()
    [0, 2, 1, 4, 3]
    """
    pairs = jnp.arange(len(probabilities))
    asked = pairs % 2 == jnp.asarray(iteration) % 2
    uniform = jax.random.uniform(rng_key, probabilities.shape, probabilities.dtype)
    swap = (asked & (uniform < probabilities)).astype(pairs.dtype)
    up = jnp.pad(swap, (0, 1))
    down = jnp.pad(swap, (1, 0))
    return jnp.arange(len(up)) + up - down


def ideal_round_trip_rate(rejection: jax.Array) -> jax.Array:
    r"""Round trips an iteration, over all replicas, if local moves were perfect.

    .. math:: \tau = \Bigl(2 + 2 \sum_k \frac{r_k}{1 - r_k}\Bigr)^{-1}

    Parameters
    ----------
    rejection
        Mean rejection rate of the swaps of neighbours, shape
        ``(..., num_temperatures - 1)``.

    Returns
    -------
    Array
        Shape ``(...)``.

    References
    ----------
    Syed et al. (2022), *Journal of the Royal Statistical Society B* 84(2), corollary 2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.infer.ladder import ideal_round_trip_rate
    >>> print(f"{ideal_round_trip_rate(jnp.array([0.5, 0.5, 0.5])):.3f}")
    0.125
    """
    return 1 / (2 + 2 * jnp.sum(rejection / (1 - rejection), -1))


class Travels(NamedTuple):
    """Where the replicas are and have been."""

    replica: jax.Array
    """Replica at each rung, integers of shape ``(num_temperatures,)``."""
    stage: jax.Array
    """Stage of each replica, integers of shape ``(num_temperatures,)``: 0 before it has
    been at ``t = 0``, 1 on its way up from there, 2 on its way down from ``t = 1``."""
    round_trips: jax.Array
    """Number of travels from ``t = 0`` to ``t = 1`` and back, of all replicas."""

    @classmethod
    def start(cls, num_temperatures: int) -> "Travels":
        """Every replica at the rung of its number, none of which has travelled."""
        replica = jnp.arange(num_temperatures)
        stage = jnp.zeros_like(replica).at[0].set(1)
        return cls(replica, stage, jnp.zeros_like(replica[0]))

    def restart(self) -> "Travels":
        """Count from here: replicas stay, what they have done is forgotten."""
        stage = jnp.zeros_like(self.stage).at[self.replica[0]].set(1)
        return Travels(self.replica, stage, jnp.zeros_like(self.round_trips))

    def follow(self, permutation: jax.Array) -> "Travels":
        """Take note of the swaps of one iteration."""
        replica = self.replica[permutation]
        bottom, top = replica[0], replica[-1]
        returned = self.stage[bottom] == 2
        stage = self.stage.at[bottom].set(1)
        arrived = stage[top] == 1
        stage = stage.at[top].set(jnp.where(arrived, 2, stage[top]))
        trips = self.round_trips + returned.astype(self.round_trips.dtype)
        return Travels(replica, stage, trips)


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
