"""Metropolis-adjusted Langevin steps."""

import jax
import jax.numpy as jnp

from numpyro_kaem.infer.langevin import (
    LangevinInfo,
    LangevinState,
    LogDensity,
    Preconditioner,
    accept_or_stay,
    evaluate,
)

__all__ = ["TARGET_ACCEPT_PROB", "propose", "step"]

# The acceptance at which many independent dimensions move fastest (Roberts and
# Rosenthal 1998).
TARGET_ACCEPT_PROB = 0.574


def propose(
    rng_key: jax.Array,
    state: LangevinState,
    step_size: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[jax.Array, jax.Array]:
    """Euler step of the Langevin diffusion.

    Returns
    -------
    tuple
        The new point, and the standard Normal noise in it, each of shape ``(dim,)``.
    """
    scale = preconditioner.scale
    noise = jax.random.normal(rng_key, state.position.shape, state.position.dtype)
    drift = 0.5 * step_size**2 * scale**2 * state.gradient
    return state.position + drift + step_size * scale * noise, noise


def step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, LangevinInfo]:
    r"""One step of the Metropolis-adjusted Langevin algorithm.

    The proposal is

    .. math:: z' = z + \tfrac{\varepsilon^2}{2} S^2 \nabla \log p(z)
              + \varepsilon S \xi, \qquad \xi \sim \mathcal N(0, I),

    with the diagonal scale :math:`S` of the preconditioner.

    Parameters
    ----------
    rng_key
        Random key.
    log_density
        Log density of a point of shape ``(dim,)``, up to a constant.
    state
        Where the chain is.
    step_size
        Step size, in units of the scale; a positive scalar.
    preconditioner
        Its scale is the proposal's.

    Returns
    -------
    tuple
        The next state, and what the step reports.

    References
    ----------
    Roberts and Tweedie (1996), "Exponential convergence of Langevin distributions and
    their discrete approximations", *Bernoulli* 2(4).
    """
    key_noise, key_accept = jax.random.split(rng_key)
    position, noise = propose(key_noise, state, step_size, preconditioner)
    proposal = evaluate(log_density, position)
    # The noise that leads back. The two squared norms, of which the difference is
    # wanted, may be large: they are subtracted element by element.
    change = proposal.gradient + state.gradient
    back = noise + 0.5 * step_size * preconditioner.scale * change
    log_ratio = proposal.log_density - state.log_density
    log_ratio = log_ratio - 0.5 * jnp.sum((back - noise) * (back + noise))
    state, acceptance = accept_or_stay(key_accept, log_ratio, proposal, state)
    return state, LangevinInfo(acceptance, jnp.asarray(step_size))
