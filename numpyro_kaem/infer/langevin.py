"""What the Langevin moves share: their state, a proposal, and its correction."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "LangevinInfo",
    "LangevinState",
    "LogDensity",
    "Preconditioner",
    "accept_or_stay",
    "evaluate",
    "propose",
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
    """Diagonal scale of the target, learned in warm-up and fixed after it."""

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


def propose(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    drift: jax.Array,
    diffusion: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, jax.Array]:
    r"""Draw a Langevin proposal, and the log ratio by which it is accepted.

    The proposal is

    .. math:: z' = z + a S^2 \nabla \log p(z) + b S \xi,
              \qquad \xi \sim \mathcal N(0, I),

    with the diagonal scale :math:`S` of the preconditioner.

    Parameters
    ----------
    rng_key
        Random key.
    log_density
        Log density of a point of shape ``(dim,)``, up to a constant.
    state
        Where the chain is.
    drift, diffusion
        The factors :math:`a` and :math:`b`, positive scalars.
    preconditioner
        The scale.

    Returns
    -------
    tuple
        The state at the new point; the log of the ratio of Metropolis and Hastings.
    """
    scale = preconditioner.scale
    shape, dtype = state.position.shape, state.position.dtype
    noise = jax.random.normal(rng_key, shape, dtype)
    step = drift * scale * state.gradient + diffusion * noise
    new = evaluate(log_density, state.position + scale * step)
    # The noise that leads back, up to its sign. The two squared norms, of which the
    # difference is wanted, may be large: they are subtracted element by element.
    change = drift / diffusion * scale * (state.gradient + new.gradient)
    log_ratio = new.log_density - state.log_density
    log_ratio = log_ratio - 0.5 * jnp.sum(change * (2 * noise + change))
    return new, log_ratio


def acceptance_of(log_ratio: jax.Array, new: LangevinState) -> jax.Array:
    """Probability of acceptance; none where the density is not finite."""
    finite = jnp.isfinite(new.log_density) & jnp.all(jnp.isfinite(new.gradient))
    finite = finite & ~jnp.isnan(log_ratio)
    return jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)


def choose(
    accepted: jax.Array, new: LangevinState, old: LangevinState
) -> LangevinState:
    """Take the new state where it is accepted."""
    return jax.tree_util.tree_map(lambda n, o: jnp.where(accepted, n, o), new, old)


def accept_or_stay(
    rng_key: jax.Array, log_ratio: jax.Array, new: LangevinState, old: LangevinState
) -> tuple[LangevinState, jax.Array]:
    """Take the proposal with the probability of Metropolis and Hastings.

    Returns
    -------
    tuple
        The next state, and the probability.
    """
    acceptance = acceptance_of(log_ratio, new)
    accepted = jax.random.uniform(rng_key, dtype=acceptance.dtype) < acceptance
    return choose(accepted, new, old), acceptance
