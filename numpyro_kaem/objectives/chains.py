"""Langevin chains of many units at once, each with its own step size."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_kaem.infer import mala, ula
from numpyro_kaem.infer.langevin import LangevinState, Preconditioner, evaluate

__all__ = ["TARGET_ACCEPT_PROB", "Chains", "advance", "check_move"]

TARGET_ACCEPT_PROB = 0.6
"""Acceptance at which step sizes aim."""

# How much a log step size follows one acceptance.
_GAIN = 0.2

_STEPS = {"mala": mala.step, "ula": ula.step}


class Chains(NamedTuple):
    """Where chains are, and how far they step."""

    position: jax.Array
    """Shape ``(*chains, dim)``."""
    log_step_size: jax.Array
    """Shape ``(*chains,)``."""


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
        carry: tuple[LangevinState, jax.Array], key: jax.Array
    ) -> tuple[tuple[LangevinState, jax.Array], jax.Array]:
        state, log_size = carry
        state, info = step(key, log_density, state, jnp.exp(log_size), unit_scale)
        if local_move == "mala":
            log_size = log_size + _GAIN * (info.acceptance - TARGET_ACCEPT_PROB)
        return (state, log_size), info.acceptance

    keys = jax.random.split(rng_key, num_steps)
    start = (evaluate(log_density, chains.position), chains.log_step_size)
    (state, log_size), acceptance = jax.lax.scan(body, start, keys)
    return Chains(state.position, log_size), acceptance.mean(0)
