"""MALA that chooses its step size anew at every step."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from numpyro_kaem.infer.kernel import LangevinKernel
from numpyro_kaem.infer.langevin import (
    LangevinInfo,
    LangevinState,
    LogDensity,
    Preconditioner,
    acceptance_of,
    choose,
    evaluate,
)

__all__ = ["AutoMALA", "step"]

# Doublings or halvings at most: chains that are vectorised wait for the slowest.
_MAX_DOUBLINGS = 12


def _randomised(rng_key: jax.Array, scale: jax.Array) -> jax.Array:
    """Scale between the learned one and 1: either, or anything in between."""
    key_kind, key_between = jax.random.split(rng_key)
    kind = jax.random.randint(key_kind, (), 0, 3)
    between = jax.random.uniform(key_between, dtype=scale.dtype)
    share = jnp.where(kind == 0, 0.0, jnp.where(kind == 1, 1.0, between))
    return 1 / (share / scale + (1 - share))


def step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, LangevinInfo]:
    """One step of autoMALA: a leapfrog step of a size that fits where the chain is.

    Two exponential numbers are drawn. From ``step_size`` on, the size is doubled while
    the log ratio of acceptance stays, either way, within the smaller, or halved until
    it is within the larger. A proposal from which another size would be chosen is
    refused, so that the step is reversible.

    Parameters
    ----------
    rng_key, log_density, state, preconditioner
        As for :func:`numpyro_kaem.infer.mala.step`; the scale is randomised between the
        learned one and 1.
    step_size
        Size to start from at every step; a positive scalar.

    Returns
    -------
    tuple
        The next state, and what the step reports: the size that was chosen.
    """
    key_scale, key_momentum, key_bounds, key_accept = jax.random.split(rng_key, 4)
    scale = _randomised(key_scale, preconditioner.scale)
    dtype = state.position.dtype
    momentum = jax.random.normal(key_momentum, state.position.shape, dtype)
    bounds = jnp.sort(jax.random.exponential(key_bounds, (2,), dtype))

    def leapfrog(
        start: LangevinState, momentum: jax.Array, doublings: jax.Array
    ) -> tuple[LangevinState, jax.Array, jax.Array]:
        size = step_size * jnp.exp2(doublings.astype(dtype))
        half = momentum + 0.5 * size * scale * start.gradient
        new = evaluate(log_density, start.position + size * scale * half)
        end = half + 0.5 * size * scale * new.gradient
        kinetic = 0.5 * jnp.sum((end - momentum) * (end + momentum))
        log_ratio = new.log_density - start.log_density - kinetic
        finite = jnp.isfinite(new.log_density) & ~jnp.isnan(log_ratio)
        return new, end, jnp.where(finite, log_ratio, -jnp.inf)

    def choose_doublings(start: LangevinState, momentum: jax.Array) -> jax.Array:
        """Doublings of the size, if negative halvings: a function of the start."""
        smaller, larger = bounds

        def change(doublings: jax.Array) -> jax.Array:
            return jnp.abs(leapfrog(start, momentum, doublings)[2])

        first = change(jnp.array(0))
        direction = jnp.where(first < smaller, 1, jnp.where(first > larger, -1, 0))

        def goes_on(loop: tuple) -> jax.Array:
            doublings, size = loop
            # Upwards the last size with less than both bounds is sought, downwards the
            # first with less than the larger.
            wanted = jnp.where(direction > 0, size < smaller, size > larger)
            return (direction != 0) & wanted & (jnp.abs(doublings) < _MAX_DOUBLINGS)

        def advance(loop: tuple) -> tuple:
            doublings = loop[0] + direction
            return doublings, change(doublings)

        doublings, size = jax.lax.while_loop(goes_on, advance, (jnp.array(0), first))
        too_far = (direction > 0) & ~(size < smaller)
        return jnp.where(too_far, doublings - 1, doublings)

    doublings = choose_doublings(state, momentum)
    new, end, log_ratio = leapfrog(state, momentum, doublings)
    reversible = choose_doublings(new, -end) == doublings
    acceptance = jnp.where(reversible, acceptance_of(log_ratio, new), 0.0)
    accepted = jax.random.uniform(key_accept, dtype=dtype) < acceptance
    size = step_size * jnp.exp2(doublings.astype(dtype))
    return choose(accepted, new, state), LangevinInfo(acceptance, size)


class AutoMALA(LangevinKernel):
    """MALA that chooses its step size anew at every step.

    For posteriors whose scale differs from place to place, as in a funnel, where no one
    step size is right. An iteration costs about five gradients, more where the step
    size is far from the one to start from; vectorised chains wait for the slowest.

    Parameters
    ----------
    model
        A NumPyro model, a callable.
    step_size
        Step size to start from, in units of the posterior's standard deviations; each
        step doubles or halves it.
    adapt_step_size
        Whether the warm-up sets it to the geometric mean of those that were chosen.
    adapt_scale, init_strategy
        As for :class:`MALA`. The scale is randomised between the learned one and 1.
    target_accept_prob
        To be left out: the step size does not follow the acceptance.

    Raises
    ------
    TypeError, ValueError
        As :class:`MALA`.

    Notes
    -----
    Chains, fields and resuming are those of :class:`MALA`; ``step_size`` among the
    ``extra_fields`` is the one to start from, ``used_step_size`` the one chosen.

    References
    ----------
    Biron-Lattes, Surjanovic, Syed, Campbell and Bouchard-Côté (2024), "autoMALA:
    locally adaptive Metropolis-adjusted Langevin algorithm", *AISTATS*. The bounds
    hold either way, as in Liu, Surjanovic, Biron-Lattes, Bouchard-Côté and Campbell
    (2024), "AutoStep: locally adaptive involutive MCMC".

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_kaem.infer import AutoMALA
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal())
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> mcmc = MCMC(
    ...     AutoMALA(model), num_warmup=500, num_samples=4000, progress_bar=False
    ... )
    >>> mcmc.run(jax.random.key(0), 2.0)
    >>> bool(abs(mcmc.get_samples()["z"].mean() - 1.0) < 0.1)
    True
    """

    default_target_accept_prob: ClassVar[float | None] = None
    averages_step_size: ClassVar[bool] = True
    step = staticmethod(step)
