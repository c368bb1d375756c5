"""What an annealed population learns in warm-up: ladder, step sizes, scales."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.hmc_util import build_adaptation_schedule, dual_averaging

from numpyro_kaem.infer.ladder import equal_rejection_ladder
from numpyro_kaem.infer.langevin import Preconditioner
from numpyro_kaem.infer.population import Means

__all__ = ["Rules", "Tuning"]

_start_averaging, _update_averaging = dual_averaging()

# Weight of what is known already, in iterations, beside a window's squared gradients.
_PRIOR_WEIGHT = 5


class Tuning(NamedTuple):
    """What is learned for each rung; constant after warm-up."""

    temperatures: jax.Array
    """Ladder, shape ``(num_temperatures,)``."""
    step_size: jax.Array
    """Shape ``(num_temperatures,)``."""
    preconditioner: Preconditioner
    """Its arrays have the shape ``(num_temperatures, dim)``."""
    averaging: tuple
    """State of NumPyro's dual averaging of the log step sizes."""

    @classmethod
    def start(
        cls, temperatures: jax.Array, step_size: float, position: jax.Array
    ) -> "Tuning":
        """Nothing learned yet."""
        sizes = jnp.full_like(temperatures, step_size)
        unit = Preconditioner(jnp.ones_like(position))
        averaging = jax.vmap(_start_averaging)(jnp.log(sizes))
        return cls(temperatures, sizes, unit, averaging)


class Rules(NamedTuple):
    """Rules of the warm-up, with NumPyro's schedule of windows.

    In every window the step size of each rung follows its acceptance. At the end of an
    inner window the ladder is moved to equal rejection, and each rung's scales become
    the inverse root of its mean squared gradient: the distance over which the density
    varies, which, unlike a variance, does not count the distance between modes.

    References
    ----------
    Titsias (2023), "Optimal preconditioning and Fisher adaptive Langevin sampling",
    *Advances in Neural Information Processing Systems* 36.
    """

    num_warmup: int
    """Number of iterations of warm-up."""
    target: float | None
    """Acceptance at which the step sizes aim; ``None`` leaves them as they are."""
    adapt_ladder: bool
    """Whether to move the ladder."""
    has_exact_prior: bool
    """Whether the first rung draws exactly, and takes no steps."""

    def learn(
        self, iteration: jax.Array, tuning: Tuning, means: Means, accept_prob: jax.Array
    ) -> tuple[Tuning, Means]:
        """Learn from one iteration of the warm-up.

        Parameters
        ----------
        iteration
            Its number, from 0 to ``num_warmup - 1``.
        tuning
            What is known before it.
        means
            Over the present window, this iteration included.
        accept_prob
            Acceptance of each rung's local moves, shape ``(num_temperatures,)``.

        Returns
        -------
        Tuning, Means
            What is known after it; the means restart after a window.
        """
        windows = build_adaptation_schedule(self.num_warmup)
        if self.target is not None:
            missing = self.target - accept_prob
            if self.has_exact_prior:
                missing = missing.at[0].set(0.0)
            averaging = jax.vmap(_update_averaging)(missing, tuning.averaging)
            # The average of the last window is what stays.
            last = iteration == self.num_warmup - 1
            log_size = jnp.where(last, averaging[1], averaging[0])
            tuning = tuning._replace(averaging=averaging, step_size=_positive(log_size))
        # The first window leaves the start behind; the last settles the step sizes.
        inner_ends = jnp.array([window.end for window in windows[1:-1]], int)
        tuning = jax.lax.cond(
            jnp.any(iteration == inner_ends), self._renew, lambda t, _: t, tuning, means
        )
        ends = jnp.array([window.end for window in windows], int)
        means = jax.lax.cond(
            jnp.any(iteration == ends),
            lambda m: Means.start(m.squared_gradient),
            lambda m: m,
            means,
        )
        return tuning, means

    def _renew(self, tuning: Tuning, means: Means) -> Tuning:
        """Ladder and scales from the means over a window."""
        old = tuning.temperatures
        new = old
        if self.adapt_ladder:
            new = equal_rejection_ladder(old, 1 - means.swap_acceptance)

        def at_new(values: jax.Array) -> jax.Array:
            return jnp.interp(new, old, values)

        known = tuning.preconditioner.scale**-2.0
        count = means.count
        learned = count * means.squared_gradient + _PRIOR_WEIGHT * known
        precision = learned / (count + _PRIOR_WEIGHT)
        precision = jnp.where(jnp.isfinite(precision), precision, known)
        log_scale = -0.5 * jnp.log(precision)
        scale = jnp.exp(jax.vmap(at_new, 1, 1)(log_scale))
        if self.target is None:
            return tuning._replace(
                temperatures=new, preconditioner=Preconditioner(scale)
            )
        # From here again, a little above: too long a step is noticed sooner.
        known_size = tuning.averaging[1]
        if self.has_exact_prior:
            # It takes no steps, but the rungs that come closer to it do.
            known_size = known_size.at[0].set(known_size[1])
        log_size = at_new(known_size)
        averaging = jax.vmap(_start_averaging)(log_size + jnp.log(2.0))
        return Tuning(new, _positive(averaging[4]), Preconditioner(scale), averaging)


def _positive(log_size: jax.Array) -> jax.Array:
    """Step size that is a positive finite number, as NumPyro's HMC keeps it."""
    limits = jnp.finfo(log_size.dtype)
    return jnp.clip(jnp.exp(log_size), limits.tiny, limits.max)
