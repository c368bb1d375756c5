"""Swaps of neighbouring rungs, and the travels of the replicas that they make."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "Travels",
    "even_odd_permutation",
    "ideal_round_trip_rate",
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
    >>> from numpyro_kaem.infer.swaps import swap_probabilities
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
    >>> from numpyro_kaem.infer.swaps import even_odd_permutation
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
    >>> from numpyro_kaem.infer.swaps import ideal_round_trip_rate
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
