"""State of an annealed population."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_kaem.infer.annealed_warmup import Tuning
from numpyro_kaem.infer.population import Means, Rungs
from numpyro_kaem.infer.swaps import Travels

__all__ = ["AnnealedState"]


class AnnealedState(NamedTuple):
    """State of :class:`~numpyro_kaem.infer.AnnealedLangevin`: of one chain."""

    i: jax.Array
    """Number of iterations done, those of the warm-up included."""
    z: dict[str, jax.Array]
    """Unconstrained latent values at ``t = 1``."""
    rungs: Rungs
    """All replicas, in the order of their rungs."""
    tuning: Tuning
    """Ladder, step sizes and scales."""
    travels: Travels
    """Which replica is where, and their round trips."""
    means: Means
    """Running means since the end of warm-up, in warm-up since the window's start."""
    accept_prob: jax.Array
    """Acceptance of each rung's local moves, shape ``(num_temperatures,)``; 1 where the
    prior is drawn exactly."""
    swap_acceptance: jax.Array
    """Probability that each pair of neighbours would swap, whether or not it was their
    turn, shape ``(num_temperatures - 1,)``."""
    rng_key: jax.Array
    """Random key of the next iteration."""

    @property
    def temperatures(self) -> jax.Array:
        """Ladder, shape ``(num_temperatures,)``."""
        return self.tuning.temperatures

    @property
    def rung_log_likelihood(self) -> jax.Array:
        """Log likelihood at each rung, shape ``(num_temperatures,)``."""
        return self.rungs.log_likelihood

    @property
    def potential_energy(self) -> jax.Array:
        """Potential energy at ``t = 1``, a scalar."""
        return -self.rungs.log_prior[..., -1] - self.rungs.log_likelihood[..., -1]

    @property
    def mean_log_likelihood(self) -> jax.Array:
        """Mean of the log likelihood at each rung, shape ``(num_temperatures,)``."""
        return self.means.log_likelihood

    @property
    def mean_swap_acceptance(self) -> jax.Array:
        """Mean of ``swap_acceptance``, shape ``(num_temperatures - 1,)``."""
        return self.means.swap_acceptance

    @property
    def communication_barrier(self) -> jax.Array:
        """Sum of the mean rejection rates of the swaps, a scalar."""
        return jnp.sum(1 - self.means.swap_acceptance, -1)

    @property
    def round_trips(self) -> jax.Array:
        """Round trips of all replicas since the end of warm-up, a scalar."""
        return self.travels.round_trips

    @property
    def round_trip_rate(self) -> jax.Array:
        """Round trips an iteration, a scalar."""
        return self.travels.round_trips / jnp.maximum(self.means.count, 1)
