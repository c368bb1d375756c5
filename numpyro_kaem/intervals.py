"""The interval between sorted edges that a number lies in."""

import jax
import jax.numpy as jnp

__all__ = ["find_interval"]


def find_interval(
    keys: jax.Array, w: jax.Array, column: jax.Array, num_intervals: int
) -> jax.Array:
    """Interval of ``w``: the number of inner edges whose key is at most ``w``.

    By bisection with a fixed number of gathers.

    Parameters
    ----------
    keys
        Keys of the edges, shape ``(num_columns, num_intervals + 1)``, not decreasing
        along the last axis: those of one search lie side by side in memory.
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
    # Padded to a power of two with keys that are never reached, so that no index needs
    # to be checked.
    length = 1 << max(num_intervals - 1, 0).bit_length()
    keys = jnp.pad(
        keys[:, :num_intervals],
        ((0, 0), (0, length - num_intervals)),
        constant_values=jnp.inf,
    )
    flat = keys.reshape(-1)
    first = jnp.broadcast_to(column, jnp.broadcast_shapes(w.shape, column.shape))
    first = (first * length).astype(jnp.int32)

    def halve(i: jax.Array, index: jax.Array) -> jax.Array:
        middle = index + (length >> (i + 1))
        key = flat.at[middle].get(mode="promise_in_bounds")
        return jnp.where(w >= key, middle, index)

    # On a processor a loop, which the compiler keeps apart: unrolled, it would fuse all
    # gathers with what follows, compute them more than once and not with vector
    # instructions. On an accelerator every turn of a loop waits for its launch.
    unroll = jax.default_backend() != "cpu"
    num_turns = length.bit_length() - 1
    return jax.lax.fori_loop(0, num_turns, halve, first, unroll=unroll) - first
