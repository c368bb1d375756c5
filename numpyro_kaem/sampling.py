"""Uniform numbers that are as fine at one as at zero, and draws in chunks."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["draw", "folded_uniform"]

# Draws at a time: their intermediate arrays stay in the caches of a processor.
_CHUNK = 1 << 16


def folded_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Uniform numbers in (0, 1) as the distance to the nearer end, and which end.

    Returns
    -------
    tuple
        Distances in (0, 1/2], to which the smallest are multiples of 2**-32 (float32)
        or 2**-64 (float64), and whether the end is 1; both of the given shape.
    """
    width = 64 if jnp.dtype(dtype) == jnp.float64 else 32
    bits = jax.random.bits(key, shape, f"uint{width}")
    upper = (bits >> (width - 1)).astype(bool)
    distance = (bits & ((1 << (width - 1)) - 1)).astype(dtype)
    return (distance + 0.5) * 2.0**-width, upper


def draw(
    key: jax.Array,
    invert: Callable[[jax.Array, tuple[int, ...]], Any],
    sample_shape: tuple[int, ...],
    batch_shape: tuple[int, ...],
) -> Any:
    """Draw in chunks, so that no array but the result grows with the number of draws.

    Parameters
    ----------
    key
        Random key.
    invert
        Makes draws of a given shape ``(num_samples, *batch_shape)`` from a key: an
        array, or a tree of arrays, of this shape.
    sample_shape, batch_shape
        Shape of the draws.

    Returns
    -------
    Array
        Shape ``sample_shape + batch_shape``; a tree, if ``invert`` makes one.
    """
    num_samples, size = math.prod(sample_shape), math.prod(batch_shape)
    rows = max(1, _CHUNK // max(size, 1))
    num_chunks = -(-num_samples // rows)
    if num_chunks <= 1:
        draws = invert(key, (num_samples, *batch_shape))
    else:
        keys = jax.random.split(key, num_chunks)
        draws = jax.lax.map(lambda k: invert(k, (rows, *batch_shape)), keys)

    def shaped(array: jax.Array) -> jax.Array:
        # Counted, not inferred: an empty batch leaves nothing to infer from.
        count = num_samples if num_chunks <= 1 else num_chunks * rows
        array = array.reshape(count, *batch_shape)[:num_samples]
        return array.reshape(*sample_shape, *batch_shape)

    return jax.tree_util.tree_map(shaped, draws)
