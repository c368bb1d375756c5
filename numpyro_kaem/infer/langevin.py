"""What the Langevin moves share: their state, their scale, and what a step reports."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "LangevinInfo",
    "LangevinState",
    "LogDensity",
    "Preconditioner",
    "evaluate",
]

LogDensity = Callable[[jax.Array], jax.Array]
"""Log density, up to a constant, of a point of shape ``(dim,)``."""


class LangevinState(NamedTuple):
    """A point and what a step needs to know of the density there."""

    position: jax.Array
    """Point in unconstrained space, shape ``(dim,)``."""
    log_density: jax.Array
    """Log density there, a scalar."""
    gradient: jax.Array
    """Its gradient, shape ``(dim,)``."""


class Preconditioner(NamedTuple):
    """Centre and scale of the target, learned in warm-up and fixed after it."""

    mean: jax.Array
    """Shape ``(dim,)``."""
    scale: jax.Array
    """Standard deviations, shape ``(dim,)``."""


class LangevinInfo(NamedTuple):
    """What a step reports."""

    acceptance: jax.Array
    """Probability with which the proposal is accepted, a scalar."""
    step_size: jax.Array
    """Step size that was used, a scalar."""


def evaluate(log_density: LogDensity, position: jax.Array) -> LangevinState:
    """State at a point."""
    value, gradient = jax.value_and_grad(log_density)(position)
    return LangevinState(position, value, gradient)


def accept_or_stay(
    rng_key: jax.Array,
    log_ratio: jax.Array,
    proposal: LangevinState,
    state: LangevinState,
) -> tuple[LangevinState, jax.Array]:
    """Take the proposal with the probability of Metropolis and Hastings.

    Where the density is not a number, the proposal is refused.

    Returns
    -------
    tuple
        The next state, and the probability.
    """
    acceptance = jnp.where(
        jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0))
    )
    finite = jnp.all(jnp.isfinite(proposal.gradient))
    acceptance = jnp.where(finite, acceptance, 0.0)
    accepted = jax.random.uniform(rng_key, dtype=acceptance.dtype) < acceptance
    state = jax.tree_util.tree_map(
        lambda new, old: jnp.where(accepted, new, old), proposal, state
    )
    return state, acceptance
