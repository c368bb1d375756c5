"""Langevin chains of many units at once, each with its own step size."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_kaem.infer import mala, ula
from numpyro_kaem.infer.langevin import LangevinState, Preconditioner, evaluate

__all__ = ["TARGET_ACCEPT_PROB", "Chains", "advance", "check_move"]

TARGET_ACCEPT_PROB = 0.6
"""Acceptance at which step sizes aim."""

# How much a log step size follows one acceptance, first and at last. A chain whose step
# size keeps following where it is has a biased law; at a small gain it still follows
# parameters that are trained.
_FIRST_GAIN, _LAST_GAIN, _GAIN_POWER = 0.5, 1e-3, 0.6

_STEPS = {"mala": mala.step, "ula": ula.step}


class Chains(NamedTuple):
    """Where chains are, and how far they step."""

    position: jax.Array
    """Shape ``(*chains, dim)``."""
    log_step_size: jax.Array
    """Shape ``(*chains,)``."""
    num_steps: jax.Array
    """Number of steps made, shape ``(*chains,)``."""

    @classmethod
    def start(cls, position: jax.Array, step_size: float) -> "Chains":
        """Chains that have made no step."""
        shape = position.shape[:-1]
        log_size = jnp.full(shape, math.log(step_size), position.dtype)
        return cls(position, log_size, jnp.zeros(shape, int))


def check_move(local_move: str) -> str:
    """Name of a step.

    Raises
    ------
    ValueError
        If there is none.
    """
    if local_move not in _STEPS:
        raise ValueError(
            f"local_move must be one of {', '.join(map(repr, _STEPS))}, got "
            f"{local_move!r}."
        )
    return local_move


def advance(
    rng_key: jax.Array,
    log_density: Callable[[jax.Array], jax.Array],
    chains: Chains,
    num_steps: int,
    local_move: str = "mala",
    *,
    adapts: bool | jax.Array = True,
) -> tuple[Chains, jax.Array]:
    """Make Langevin steps in all chains.

    Parameters
    ----------
    rng_key
        Random key.
    log_density
        From ``(*chains, dim)`` to ``(*chains,)``.
    chains
        Where they are.
    num_steps
        How many steps.
    local_move
        ``"mala"``, whose step sizes follow the acceptance, or ``"ula"``, whose stay.
    adapts
        Whether they do; if not, they stay, and the steps are exact.

    Returns
    -------
    chains
        After the steps.
    acceptance
        Mean acceptance of each chain, shape ``(*chains,)``.
    """
    step = _STEPS[local_move]
    unit_scale = Preconditioner(jnp.ones(chains.position.shape[-1]))

    def body(
        carry: tuple[LangevinState, jax.Array, jax.Array], key: jax.Array
    ) -> tuple[tuple[LangevinState, jax.Array, jax.Array], jax.Array]:
        state, log_size, count = carry
        count = count + 1
        state, info = step(key, log_density, state, jnp.exp(log_size), unit_scale)
        if local_move == "mala":
            gain = jnp.maximum(
                _FIRST_GAIN * count.astype(log_size.dtype) ** -_GAIN_POWER, _LAST_GAIN
            )
            log_size = log_size + adapts * gain * (info.acceptance - TARGET_ACCEPT_PROB)
        return (state, log_size, count), info.acceptance

    keys = jax.random.split(rng_key, num_steps)
    start = (evaluate(log_density, chains.position), *chains[1:])
    (state, log_size, count), acceptance = jax.lax.scan(body, start, keys)
    return Chains(state.position, log_size, count), acceptance.mean(0)
