"""Checks and conversions of the arguments of a basis, made once at construction."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from numpyro.util import is_prng_key

__all__ = ["Grid", "GridLike", "as_bandwidth", "as_count", "as_grid", "check_key"]

Grid: TypeAlias = float | tuple[Any, ...]
"""An end of the grid as stored: a float or nested tuples of floats, hence hashable."""

GridLike: TypeAlias = ArrayLike | Sequence[Any]
"""An end of the grid as a user may pass it."""


def as_grid(low: GridLike, high: GridLike) -> tuple[Grid, Grid]:
    """Check the ends of a grid and return them as floats or tuples of one shape.

    Raises
    ------
    TypeError
        If an end is not a real number, or is traced.
    ValueError
        If an end is empty, ragged or not finite, if the shapes do not broadcast, or if
        ``low`` is not less than ``high``.
    """
    lows, highs = _as_numpy("low", low), _as_numpy("high", high)
    try:
        lows, highs = np.broadcast_arrays(lows, highs)
    except ValueError:
        raise ValueError(
            "low and high must broadcast against each other, got shapes "
            f"{lows.shape} and {highs.shape}."
        ) from None
    bad = np.argwhere(lows >= highs)
    if len(bad) > 0:
        column = tuple(int(i) for i in bad[0])
        where = f" in column {column}" if column else ""
        raise ValueError(
            f"low must be less than high, got low={lows[column]} and "
            f"high={highs[column]}{where}."
        )
    return _as_tuples(lows.tolist()), _as_tuples(highs.tolist())


def check_key(rng_key: Any) -> None:
    """Check that ``rng_key`` is one random key, old or new in style.

    Raises
    ------
    TypeError
        If it is not.
    """
    if not is_prng_key(rng_key):
        raise TypeError(
            "rng_key must be one random key such as jax.random.key(0), got "
            f"{type(rng_key).__name__}."
        )


def as_count(name: str, value: Any, minimum: int = 1) -> int:
    """Check that ``value`` is an integer of at least ``minimum``.

    Raises
    ------
    TypeError
        If it is not an integer, or is a bool.
    ValueError
        If it is too small.
    """
    expected = "a positive integer" if minimum == 1 else f"an integer >= {minimum}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name} must be {expected}, got {value!r} of type {type(value).__name__}."
        )
    if value < minimum:
        raise ValueError(f"{name} must be {expected}, got {value}.")
    return int(value)


def as_bandwidth(bandwidth: ArrayLike) -> Float[Array, ""]:
    """Check a bandwidth, its sign only if it is not traced, and return it as an array.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not a scalar, or not positive and finite.
    """
    numeric = isinstance(bandwidth, int | float | np.ndarray | np.generic | jax.Array)
    if not numeric or isinstance(bandwidth, bool) or not _is_real(bandwidth):
        raise TypeError(
            "bandwidth must be a real number or a scalar array, got "
            f"{bandwidth!r} of type {type(bandwidth).__name__}."
        )
    if np.shape(bandwidth) != ():
        raise ValueError(
            "bandwidth must be a scalar, one for the whole basis, got shape "
            f"{np.shape(bandwidth)}."
        )
    # An explicit dtype, because a weakly typed leaf changes its type inside a scan.
    dtype = jnp.result_type(bandwidth)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    if not isinstance(bandwidth, jax.core.Tracer):
        # By NumPy, because under jit even a constant is traced once JAX has it.
        bandwidth = np.asarray(bandwidth, dtype)
        if not (np.isfinite(bandwidth) and bandwidth > 0):
            raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}.")
    return jnp.asarray(bandwidth, dtype)


def _is_real(array: ArrayLike) -> bool:
    dtype = jnp.result_type(array)
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _as_numpy(name: str, value: GridLike) -> np.ndarray:
    """Convert one end of a grid to float64.

    Raises
    ------
    TypeError
        If it is not a real number, or is traced.
    ValueError
        If it is empty, ragged or not finite.
    """
    try:
        array = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        raise TypeError(
            f"{name} must be concrete because the grid is static, got the traced "
            f"value {value}; build the basis outside of jit."
        ) from None
    except ValueError:
        raise ValueError(
            f"{name} must be a number or a rectangular array of numbers, got {value!r}."
        ) from None
    if array.dtype.kind in "OSU" or not _is_real(array):
        raise TypeError(
            f"{name} must be a real number or an array of real numbers, got {value!r}."
        )
    if array.size == 0:
        raise ValueError(
            f"{name} must have at least one entry, got shape {array.shape}."
        )
    array = array.astype(float)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {value!r}.")
    return array


def _as_tuples(value: Any) -> Grid:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, list) else value
