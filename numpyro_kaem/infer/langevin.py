"""What the Langevin moves share: their state, a proposal, and its correction.

All of it takes one chain, or many that are independent, with leading axes for these.
"""

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
"""Log density, up to a constant: from ``(*chains, dim)`` to ``(*chains,)``."""


class LangevinState(NamedTuple):
    """A point and what a step needs to know of the density there."""

    position: jax.Array
    """Points in unconstrained space, shape ``(*chains, dim)``."""
    log_density: jax.Array
    """Log density there, shape ``(*chains,)``."""
    gradient: jax.Array
    """Its gradient, shape ``(*chains, dim)``."""


class Preconditioner(NamedTuple):
    """Diagonal scale of the target, learned in warm-up and fixed after it."""

    scale: jax.Array
    """Standard deviations, shape ``(dim,)`` or ``(*chains, dim)``."""


class LangevinInfo(NamedTuple):
    """What a step reports."""

    acceptance: jax.Array
    """Probability with which the proposal is accepted, shape ``(*chains,)``."""
    step_size: jax.Array
    """Step size that was used, a scalar or of shape ``(*chains,)``."""


def evaluate(log_density: LogDensity, position: jax.Array) -> LangevinState:
    """State at a point."""
    value, pull_back = jax.vjp(log_density, position)
    # The chains are independent, so one sweep gives the gradient of each.
    (gradient,) = pull_back(jnp.ones_like(value))
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
        Log density, up to a constant.
    state
        Where the chain is.
    drift, diffusion
        The factors :math:`a` and :math:`b`, positive, scalars or of shape
        ``(*chains,)``.
    preconditioner
        The scale.

    Returns
    -------
    tuple
        The state at the new point; the log of the ratio of Metropolis and Hastings.
    """
    scale = preconditioner.scale
    shape, dtype = state.position.shape, state.position.dtype
    drift, diffusion = (jnp.asarray(x)[..., None] for x in (drift, diffusion))
    noise = jax.random.normal(rng_key, shape, dtype)
    step = drift * scale * state.gradient + diffusion * noise
    new = evaluate(log_density, state.position + scale * step)
    # The noise that leads back, up to its sign. The two squared norms, of which the
    # difference is wanted, may be large: they are subtracted element by element.
    change = drift / diffusion * scale * (state.gradient + new.gradient)
    log_ratio = new.log_density - state.log_density
    log_ratio = log_ratio - 0.5 * jnp.sum(change * (2 * noise + change), axis=-1)
    return new, log_ratio


def is_finite(state: LangevinState) -> jax.Array:
    """Whether the density and its gradient are finite."""
    finite = jnp.all(jnp.isfinite(state.gradient), axis=-1)
    return finite & jnp.isfinite(state.log_density)


def acceptance_of(log_ratio: jax.Array, new: LangevinState) -> jax.Array:
    """Probability of acceptance; none where the density is not finite."""
    finite = is_finite(new)
    finite = finite & ~jnp.isnan(log_ratio)
    return jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)


def choose(
    accepted: jax.Array, new: LangevinState, old: LangevinState
) -> LangevinState:
    """Take the new state where it is accepted."""

    def where(new: jax.Array, old: jax.Array) -> jax.Array:
        axes = tuple(range(accepted.ndim, new.ndim))
        return jnp.where(jnp.expand_dims(accepted, axes), new, old)

    return jax.tree.map(where, new, old)


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
    uniform = jax.random.uniform(rng_key, acceptance.shape, acceptance.dtype)
    accepted = uniform < acceptance
    return choose(accepted, new, old), acceptance
