"""The interval between sorted keys that a number lies in."""

import jax
import jax.numpy as jnp

from numpyro_kaem.backend import on_accelerator

__all__ = [
    "find_interval",
    "find_interval_in_rows",
    "folded_keys",
    "folded_place",
]

# Comparisons with keys that stand in registers take less time than a turn of bisection,
# which gathers them: up to this number of blocks.
_NUM_BLOCKS = 20


def find_interval(
    keys: jax.Array, w: jax.Array, column: jax.Array, num_intervals: int
) -> jax.Array:
    """Interval of ``w``: the number of inner edges whose key is at most ``w``.

    By bisection with a fixed number of gathers.

    Parameters
    ----------
    keys
        Keys of the edges, numbers or integers, shape ``(num_columns, num_intervals +
        1)``, not decreasing along the last axis: those of one search lie side by side
        in memory.
    w
        Numbers to place, shape (...,).
    column
        Column of the keys for each of them, the same shape.
    num_intervals
        Number of intervals.

    Returns
    -------
    Array
        Integers from 0 to ``num_intervals - 1``, shape (...,).
    """
    length = 1 << max(num_intervals - 1, 0).bit_length()
    first = jnp.broadcast_to(column, jnp.broadcast_shapes(w.shape, column.shape))
    first = (first * length).astype(jnp.int32)
    return _bisect(_padded(keys[:, :num_intervals], length), w, first, length) - first


def find_interval_in_rows(
    keys: jax.Array, w: jax.Array, num_intervals: int
) -> jax.Array:
    """Interval of ``w`` among the keys of its own row.

    Blocks of keys by comparison, all at once, and within a block by bisection.

    Parameters
    ----------
    keys
        Keys of the edges, as for :func:`find_interval`.
    w
        Numbers to place, shape ``(num_columns, num_numbers)``.
    num_intervals
        Number of intervals.

    Returns
    -------
    Array
        Integers from 0 to ``num_intervals - 1``, of the shape of ``w``.
    """
    num_columns = keys.shape[0]
    least = -(-num_intervals // _NUM_BLOCKS)
    length = 1 << max(least - 1, 0).bit_length()
    num_blocks = -(-num_intervals // length)
    keys = _padded(keys[:, :num_intervals], num_blocks * length)
    block = jnp.zeros(w.shape, jnp.int32)
    for key in keys.T[length::length]:
        block += (w >= key[:, None]).astype(jnp.int32)
    first = num_blocks * length * jnp.arange(num_columns, dtype=jnp.int32)[:, None]
    return _bisect(keys, w, first + block * length, length) - first


def folded_keys(below: jax.Array, above: jax.Array) -> jax.Array:
    """Integers that order edges by their mass to the nearer end, both ends alike.

    The bits of positive floating-point numbers are in the order of the numbers.
    """
    half = _bits(jnp.full_like(below, 0.5))
    from_above = jnp.maximum(2 * half + 1 - _bits(above), half + 1)
    return jnp.where(below <= 0.5, _bits(below), from_above)


def folded_place(mass: jax.Array, upper: jax.Array) -> jax.Array:
    """Place among such keys of the point with a mass of at most 1/2 beyond it."""
    half = _bits(jnp.full_like(mass, 0.5))
    return jnp.where(upper, 2 * half + 1 - _bits(mass), _bits(mass))


def _bits(number: jax.Array) -> jax.Array:
    integer = jnp.int64 if number.dtype == jnp.float64 else jnp.int32
    return jax.lax.bitcast_convert_type(jnp.abs(number), integer)


def _padded(keys: jax.Array, length: int) -> jax.Array:
    """Keys with others after them that are never reached: no index is checked."""
    is_integer = jnp.issubdtype(keys.dtype, jnp.integer)
    largest = jnp.iinfo(keys.dtype).max if is_integer else jnp.inf
    missing = ((0, 0), (0, length - keys.shape[1]))
    return jnp.pad(keys, missing, constant_values=largest)


def _bisect(keys: jax.Array, w: jax.Array, first: jax.Array, length: int) -> jax.Array:
    """Last of a power of two of keys, from ``first`` on, that is at most ``w``."""
    flat = keys.reshape(-1)

    def halve(i: jax.Array, index: jax.Array) -> jax.Array:
        middle = index + (length >> (i + 1))
        key = flat.at[middle].get(mode="promise_in_bounds")
        return jnp.where(w >= key, middle, index)

    # On a processor a loop, which the compiler keeps apart: unrolled, it would fuse all
    # gathers with what follows, compute them more than once and not with vector
    # instructions.
    num_turns = length.bit_length() - 1
    return jax.lax.fori_loop(0, num_turns, halve, first, unroll=on_accelerator())
