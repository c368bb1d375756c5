"""Ladders of temperatures, and the swaps of replicas between them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_positive, as_real

__all__ = [
    "ReplicaTracker",
    "check_ladder",
    "equal_rejection_ladder",
    "even_odd_permutation",
    "power_ladder",
    "swap_probabilities",
]

# Added to each rejection rate before the ladder is spread over their sum: pairs that
# never reject keep some distance, and a flat likelihood keeps the ladder as it is.
_SMALLEST_REJECTION = 1e-3


# --- ladders -------------------------------------------------------------------------


def power_ladder(num_temperatures: int, power: float = 5.0) -> np.ndarray:
    """Ladder t_k = (k / N)**power of ``num_temperatures`` values from 0 to 1."""
    # A power above 1 crowds them near 0, where the likelihood's mean changes most:
    # Friel and Pettitt (2008), section 3.2, take 4 or 5.
    num_temperatures = as_count("num_temperatures", num_temperatures, 2)
    power = as_positive("power", power)
    ladder = np.linspace(0.0, 1.0, num_temperatures) ** power
    # In float32, which the sampler may compute in.
    if not np.all(np.diff(ladder.astype(np.float32)) > 0):
        raise ValueError(
            f"power must leave {num_temperatures} temperatures distinct, got "
            f"{power!r}, with which the lowest are equal in float32."
        )
    return ladder


def check_ladder(temperatures: ArrayLike) -> np.ndarray:
    """Convert a ladder given by the user, increasing from 0 to 1, to float64."""
    as_real("temperatures", temperatures)
    ladder = np.asarray(temperatures, dtype=np.float64)
    if ladder.ndim != 1:
        raise ValueError(
            "temperatures must be one-dimensional, got an array of shape "
            f"{ladder.shape}."
        )
    if ladder.size < 2:
        raise ValueError(
            "temperatures must hold at least 2 values, the prior (0) and the posterior "
            f"(1), got {ladder.size}; of the posterior alone, draw with MALA."
        )
    if ladder[0] != 0.0 or ladder[-1] != 1.0:
        raise ValueError(
            "temperatures must begin with 0 (the prior) and end with 1 (the "
            f"posterior), got {ladder[0]:g} to {ladder[-1]:g}."
        )
    steps = np.diff(ladder.astype(np.float32))
    if not np.all(steps > 0):
        worst = int(np.argmin(steps))
        raise ValueError(
            "temperatures must be increasing (in float32 too), got "
            f"{ladder[worst]:.9g} followed by {ladder[worst + 1]:.9g}."
        )
    return ladder


def equal_rejection_ladder(temperatures: jax.Array, rejection: jax.Array) -> jax.Array:
    r"""Ladder on which all swaps would be rejected equally often.

    The cumulative rejection :math:`\Lambda(t_k) = \sum_{j<k} r_j` of neighbours is
    interpolated by a monotone cubic, and the new temperatures divide its range equally.
    Its end :math:`\Lambda(1)` estimates the communication barrier (Syed et al. 2022,
    *Journal of the Royal Statistical Society B* 84(2), section 5).
    """
    cumulative = jnp.cumsum(rejection + _SMALLEST_REJECTION)
    cumulative = jnp.concatenate([jnp.zeros(1, cumulative.dtype), cumulative])
    share = jnp.linspace(0.0, 1.0, len(temperatures), dtype=cumulative.dtype)
    inner = _monotone_interpolation(
        cumulative, temperatures, share[1:-1] * cumulative[-1]
    )
    # The ends exactly.
    return jnp.concatenate([temperatures[:1], inner, temperatures[-1:]])


def _monotone_interpolation(x: jax.Array, y: jax.Array, new_x: jax.Array) -> jax.Array:
    """Piecewise cubic through two or more points, increasing where they are.

    The slopes are those of Fritsch and Butland (1984), so that between two points the
    curve stays between their values.
    """
    width = jnp.diff(x)
    secant = jnp.diff(y) / width
    slopes = jnp.repeat(secant, 2) if len(x) == 2 else _slopes(width, secant)
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


# --- swaps ---------------------------------------------------------------------------


def swap_probabilities(temperatures: jax.Array, log_likelihood: jax.Array) -> jax.Array:
    r"""Probability that neighbours swap, shape ``(num_temperatures - 1,)``.

    .. math:: \min\bigl(1, e^{(t_{k+1} - t_k) (\ell_k - \ell_{k+1})}\bigr),

    with :math:`\ell_k` the log likelihood of the replica at :math:`t_k`; the prior
    cancels. Minus infinity is allowed, NaN never swaps.
    """
    lower, upper = log_likelihood[:-1], log_likelihood[1:]
    log_ratio = jnp.diff(temperatures) * (lower - upper)
    probability = jnp.exp(jnp.minimum(log_ratio, 0.0))
    return jnp.where(jnp.isnan(log_ratio), 0.0, probability)


def even_odd_permutation(
    rng_key: jax.Array, iteration: jax.Array, probabilities: jax.Array
) -> jax.Array:
    """Swap pairs whose lower index is even in even iterations, odd in odd ones.

    This deterministic order makes replicas keep their direction (Syed et al. 2022,
    algorithm 1). Entry k is the index from which temperature k takes its replica.
    """
    pairs = jnp.arange(len(probabilities))
    asked = pairs % 2 == jnp.asarray(iteration) % 2
    uniform = jax.random.uniform(rng_key, probabilities.shape, probabilities.dtype)
    swap = (asked & (uniform < probabilities)).astype(pairs.dtype)
    up = jnp.pad(swap, (0, 1))
    down = jnp.pad(swap, (1, 0))
    return jnp.arange(len(up)) + up - down


class ReplicaTracker(NamedTuple):
    """Where the replicas are, and the round trips that they have made.

    ``replica`` is the replica at each temperature. ``stage`` of each replica is 0
    before it has been at ``t = 0``, 1 on its way up from there, 2 on its way down from
    ``t = 1``. ``round_trips`` counts those from ``t = 0`` to 1 and back, of all.
    """

    replica: jax.Array
    stage: jax.Array
    round_trips: jax.Array

    @classmethod
    def start(cls, num_temperatures: int) -> "ReplicaTracker":
        """Every replica at the temperature of its number."""
        replica = jnp.arange(num_temperatures)
        stage = jnp.zeros_like(replica).at[0].set(1)
        return cls(replica, stage, jnp.zeros_like(replica[0]))

    def restart(self) -> "ReplicaTracker":
        """Count from here: replicas stay, what they have done is forgotten."""
        stage = jnp.zeros_like(self.stage).at[self.replica[0]].set(1)
        return ReplicaTracker(self.replica, stage, jnp.zeros_like(self.round_trips))

    def follow(self, permutation: jax.Array) -> "ReplicaTracker":
        """Record the swaps of one iteration."""
        replica = self.replica[permutation]
        bottom, top = replica[0], replica[-1]
        returned = self.stage[bottom] == 2
        stage = self.stage.at[bottom].set(1)
        arrived = stage[top] == 1
        stage = stage.at[top].set(jnp.where(arrived, 2, stage[top]))
        trips = self.round_trips + returned.astype(self.round_trips.dtype)
        return ReplicaTracker(replica, stage, trips)
