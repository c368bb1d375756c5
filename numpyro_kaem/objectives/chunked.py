"""Gradients of a batch that is too large to be computed at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer.elbo import ELBO

from numpyro_kaem.objectives.base import MaximumLikelihood

__all__ = ["Chunked"]

# What objectives keep that changes once in a step, not in every chunk: the place in a
# schedule, and a ladder.
_OF_STEP = ("step", "temperatures")


class Chunked(ELBO):
    """Objective of a batch, computed chunk by chunk.

    The gradient of a chunk is taken before the next is run, so that memory is that of
    one chunk. For :class:`~numpyro_kaem.objectives.training.Trainer`, whose model and
    guide take the indices of a chunk.

    Parameters
    ----------
    objective
        NumPyro ``ELBO``, whose loss counts a subsample for all units.
    chunk_size
        Number of units of a chunk, a divisor of the number of the batch.
    """

    def __init__(self, objective: ELBO, chunk_size: int) -> None:
        super().__init__()
        self.objective, self.chunk_size = objective, chunk_size

    def loss(self, *args: Any, **kwargs: Any) -> jax.Array:
        """Mean loss of the chunks."""
        return self.loss_with_mutable_state(*args, **kwargs)["loss"]

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        data: Any,
        index: jax.Array,
        fixed: dict[str, Any],
    ) -> dict[str, Any]:
        """Mean loss of the chunks, and what the objective keeps after the last."""
        name = MaximumLikelihood.memory_name
        params = {key: value for key, value in param_map.items() if key != name}
        memory = param_map.get(name)

        def loss_of(
            params: dict[str, Any], memory: Any, key: jax.Array, index: jax.Array
        ) -> tuple[jax.Array, Any]:
            given = params if memory is None else {**params, name: memory}
            done = self.objective.loss_with_mutable_state(
                key, given, model, guide, data, index, fixed
            )
            return done["loss"], (done["mutable_state"] or {}).get(name)

        def of_step(new: Any, old: Any) -> Any:
            kept = {} if old is None else {k: old[k] for k in _OF_STEP if k in old}
            return {**new, **kept} if kept else new

        def add(carry: tuple, this: tuple) -> tuple[tuple, None]:
            loss, gradient, kept, _ = carry
            (value, new), slope = jax.value_and_grad(loss_of, has_aux=True)(
                fixed_params, kept, *this
            )
            gradient = jax.tree.map(jnp.add, gradient, slope)
            return (loss + value, gradient, of_step(new, memory), new), None

        fixed_params = jax.lax.stop_gradient(params)
        chunks = index.reshape(-1, self.chunk_size)
        keys = jax.random.split(rng_key, len(chunks))
        start = (
            jnp.zeros(()),
            jax.tree.map(jnp.zeros_like, fixed_params),
            memory,
            memory,
        )
        (loss, gradient, _, memory), _ = jax.lax.scan(add, start, (keys, chunks))
        # The value of the loss, with a derivative that is known already.
        slope = sum(
            jnp.vdot(known, value - jax.lax.stop_gradient(value))
            for known, value in zip(
                jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True
            )
        )
        kept = None if memory is None else {name: memory}
        return {"loss": (loss + slope) / len(chunks), "mutable_state": kept}
