"""What a Langevin chain learns in warm-up: a step size and a diagonal scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.hmc_util import (
    build_adaptation_schedule,
    dual_averaging,
    welford_covariance,
)

from numpyro_kaem.infer.langevin import LangevinInfo, Preconditioner

__all__ = ["Adaptation", "Rules"]

_start_averaging, _update_averaging = dual_averaging()
_start_covariance, _update_covariance, _finish_covariance = welford_covariance(
    diagonal=True
)


class Adaptation(NamedTuple):
    """What is known; constant after warm-up."""

    step_size: jax.Array
    """A scalar."""
    preconditioner: Preconditioner
    """Scale of the steps."""
    averaging: tuple
    """State of NumPyro's dual averaging of the log step size."""
    covariance: tuple
    """State of NumPyro's running variances."""
    window_log_size: jax.Array
    """Mean of the log step sizes used since the last window began, a scalar."""
    window_length: jax.Array
    """Number of steps in it, a scalar."""

    @classmethod
    def start(cls, step_size: float, position: jax.Array) -> "Adaptation":
        """Nothing learned yet."""
        zero = jnp.zeros((), position.dtype)
        return cls(
            zero + step_size,
            Preconditioner(jnp.ones_like(position)),
            _start_averaging(jnp.log(10.0 * (zero + step_size))),
            _start_covariance(position.shape[-1]),
            zero,
            jnp.array(0),
        )


class Rules(NamedTuple):
    """Rules of the warm-up, with NumPyro's schedule of windows.

    The scales are the standard deviations of the draws of a window, renewed at its end.
    """

    num_warmup: int
    """Number of iterations of warm-up."""
    target_accept_prob: float | None
    """Acceptance to which dual averaging tunes the step size; ``None``: it does not."""
    averages_step_size: bool
    """Whether the step size becomes, at the end of a window, the geometric
    mean of those used."""
    adapt_scale: bool
    """Whether to learn the scale."""
    final_step_size: float | None = None
    """Step size after the warm-up, if it is fixed."""

    def learn(
        self,
        iteration: jax.Array,
        adaptation: Adaptation,
        position: jax.Array,
        info: LangevinInfo,
    ) -> Adaptation:
        """Learn from one iteration.

        Parameters
        ----------
        iteration
            Its number, from 0 to ``num_warmup - 1``.
        adaptation
            What is known before it.
        position
            Where the chain is after it, shape ``(dim,)``.
        info
            What its step reports.
        """
        windows = build_adaptation_schedule(self.num_warmup)
        ends = jnp.array([window.end for window in windows], int)
        inner_ends = jnp.array([window.end for window in windows[1:-1]], int)
        count = adaptation.window_length + 1
        mean = adaptation.window_log_size
        mean = mean + (jnp.log(info.step_size) - mean) / count
        adaptation = adaptation._replace(window_log_size=mean, window_length=count)
        if self.target_accept_prob is not None:
            missing = self.target_accept_prob - info.acceptance
            averaging = _update_averaging(missing, adaptation.averaging)
            # The average of the last window is what stays.
            last = iteration == self.num_warmup - 1
            log_size = jnp.where(last, averaging[1], averaging[0])
            adaptation = adaptation._replace(
                averaging=averaging, step_size=_positive(jnp.exp(log_size))
            )
        # The first window leaves the start behind, the last settles the step size.
        if len(windows) > 2:
            inside = (iteration > windows[0].end) & (iteration < windows[-1].start)
            adaptation = jax.lax.cond(
                inside & self.adapt_scale,
                lambda a: a._replace(
                    covariance=_update_covariance(position, a.covariance)
                ),
                lambda a: a,
                adaptation,
            )
        at_end = jnp.any(iteration == ends)
        at_inner_end = jnp.any(iteration == inner_ends)
        adaptation = jax.lax.cond(at_end, self._next_window, lambda a: a, adaptation)
        adaptation = jax.lax.cond(at_inner_end, self._renew, lambda a: a, adaptation)
        if self.final_step_size is None:
            return adaptation
        size = jnp.where(
            iteration == self.num_warmup - 1, self.final_step_size, adaptation.step_size
        )
        return adaptation._replace(step_size=size)

    def _next_window(self, adaptation: Adaptation) -> Adaptation:
        if self.averages_step_size:
            size = _positive(jnp.exp(adaptation.window_log_size))
            adaptation = adaptation._replace(step_size=size)
        return adaptation._replace(
            window_log_size=jnp.zeros_like(adaptation.window_log_size),
            window_length=jnp.zeros_like(adaptation.window_length),
        )

    def _renew(self, adaptation: Adaptation) -> Adaptation:
        """Scale of the window, from which on the step size is sought again."""
        if self.adapt_scale:
            *_, scale = _finish_covariance(adaptation.covariance, regularize=True)
            start = _start_covariance(scale.shape[-1])
            adaptation = adaptation._replace(
                preconditioner=Preconditioner(scale), covariance=start
            )
        if self.target_accept_prob is not None:
            start = _start_averaging(jnp.log(10.0) + jnp.log(adaptation.step_size))
            adaptation = adaptation._replace(averaging=start)
        return adaptation


def _positive(size: jax.Array) -> jax.Array:
    """Step size that is a positive finite number, as NumPyro's HMC keeps it."""
    limits = jnp.finfo(size.dtype)
    return jnp.clip(size, limits.tiny, limits.max)
