"""Arrays of JAX and NumPy and random keys, as arrays that a file can hold."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["as_weak", "describe_array", "is_key", "to_stored"]


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys of the new kind."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def to_stored(name: str, leaf: Any) -> np.ndarray:
    """Array as it is stored, with a data type that NumPy knows by itself.

    Raises
    ------
    TypeError
        If the leaf is traced.
    """
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f"the leaf {name} must be concrete, got a traced array; write files "
            "outside of jit."
        )
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    # Formats such as bfloat16, as their bits.
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.itemsize}")


def describe_array(name: str, leaf: Any) -> dict[str, Any]:
    """Describe an array by data type and shape, and a key by its implementation.

    Raises
    ------
    TypeError
        If the leaf is not an array.
    """
    if isinstance(leaf, bool | int | float | complex):
        leaf = np.asarray(leaf)
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    numeric = is_key(leaf) or getattr(dtype, "kind", "O") not in "OSUMm"
    if shape is None or not numeric:
        raise TypeError(
            f"the leaf {name} must be an array of numbers or a random key, got "
            f"{leaf!r} of type {type(leaf).__name__}; filter modules first, as in "
            "equinox.filter(module, equinox.is_array)."
        )
    description = {"dtype": str(dtype), "shape": list(shape)}
    if not is_key(leaf):
        description["weak_type"] = bool(getattr(leaf, "weak_type", False))
    elif isinstance(leaf, jax.Array):
        description["key"] = str(jax.random.key_impl(leaf))
    return description


def as_weak(array: jax.Array) -> jax.Array:
    """Give an array the weak type that a Python number has.

    Counters such as ``jnp.array(0)`` have it. With a strong type a function would be
    compiled anew, and what a counter is combined with could be promoted.
    """
    zero = jnp.asarray(np.zeros((), array.dtype).item())
    weak = jax.lax.full_like(zero, 0, shape=array.shape).at[...].set(array)
    return weak if weak.dtype == array.dtype else array
