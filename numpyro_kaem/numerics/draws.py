"""Uniform numbers that are as fine at one as at zero, and draws in chunks."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from numpyro_kaem.numerics.device import on_accelerator

__all__ = ["draw", "folded_uniform"]

# Draws at a time: their intermediate arrays stay in the caches of a processor. That
# does not fill an accelerator: there many chunks are drawn side by side, and are the
# same.
_CHUNK = 1 << 18
_CHUNKS_AT_ONCE = 16


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
    invert: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    sample_shape: tuple[int, ...],
    batch_shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> jax.Array:
    """Draw in chunks, so that no array but the result grows with the number of draws.

    Parameters
    ----------
    key
        Random key.
    invert
        Makes draws of a given shape ``(*batch_shape, num_samples)`` from a key. All
        draws of one density lie side by side, so that its table stays in the fastest
        cache.
    sample_shape, batch_shape, dtype
        Of the draws.

    Returns
    -------
    Array
        Shape ``sample_shape + batch_shape``.
    """
    num_samples, size = math.prod(sample_shape), math.prod(batch_shape)
    num_rows = max(1, _CHUNK // max(size, 1))

    # For derivatives drawn again, which is faster than to keep what they need.
    @jax.checkpoint
    def one_chunk(key: jax.Array) -> jax.Array:
        return invert(key, (*batch_shape, num_rows))

    # Drawn in a loop of its own, whose end keeps the compiler from fusing the change of
    # order into it: it would visit the densities in turn, draw by draw. The draws are
    # carried by the loop rather than stacked: what is written into a part of an array
    # is computed by one core only.
    def pair_of_chunks(key: jax.Array) -> jax.Array:
        def step(pair: tuple, key: jax.Array) -> tuple:
            return (pair[1], one_chunk(key)), None

        empty = jnp.zeros((*batch_shape, num_rows), dtype)
        pair, _ = jax.lax.scan(step, (empty, empty), jax.random.split(key))
        return jnp.moveaxis(jnp.stack(pair), -1, 1)

    if num_samples <= num_rows:
        draws = jnp.moveaxis(invert(key, (*batch_shape, num_samples)), -1, 0)
        count = num_samples
    else:
        # Chunks without a remainder, if there are such, save a copy of the draws.
        candidates = range(num_rows, num_rows // 2, -1)
        whole = (r for r in candidates if num_samples % (2 * r) == 0)
        num_rows = next(whole, num_rows)
        num_pairs = -(-num_samples // (2 * num_rows))
        at_once = _CHUNKS_AT_ONCE if on_accelerator() else None
        keys = jax.random.split(key, num_pairs)
        draws = jax.lax.map(pair_of_chunks, keys, batch_size=at_once)
        count = 2 * num_pairs * num_rows

    # Counted, not inferred: an empty batch leaves nothing to infer from.
    draws = draws.reshape(count, *batch_shape)[:num_samples]
    return draws.reshape(*sample_shape, *batch_shape)
