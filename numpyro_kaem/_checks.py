"""Checks and conversions of the arguments of a basis, made once at construction."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

__all__ = [
    "Grid",
    "GridLike",
    "as_bandwidth",
    "as_count",
    "as_flag",
    "as_grid",
    "as_number",
    "as_path",
    "as_real",
    "as_sample_shape",
    "check_function",
    "check_key",
    "check_name",
]

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


def check_key(rng_key: Any, name: str = "rng_key") -> None:
    """Check that ``rng_key`` is one random key, old or new in style.

    Raises
    ------
    TypeError
        If it is not.
    """
    dtype, shape = getattr(rng_key, "dtype", None), getattr(rng_key, "shape", None)
    # Old keys have 2 words, or 4 with another generator than JAX's first.
    old = dtype == np.uint32 and shape in ((2,), (4,))
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (old or (new and shape == ())):
        came = f"{shape} of them" if new else _show(rng_key)
        raise TypeError(
            f"{name} must be one random key such as jax.random.key(0), got {came}."
        )


def as_sample_shape(value: Any, name: str = "sample_shape") -> tuple[int, ...]:
    """Check a shape in front of others, a tuple of integers.

    Raises
    ------
    TypeError
        If it is not a tuple or list of integers.
    ValueError
        If an integer is negative.
    """
    if not isinstance(value, tuple | list):
        hint = f", such as ({value},)" if isinstance(value, int | np.integer) else ""
        raise TypeError(
            f"{name} must be a tuple of integers{hint}, got {_show(value)}."
        )
    return tuple(as_count(f"{name}[{i}]", size, 0) for i, size in enumerate(value))


def as_real(name: str, value: Any, or_bool: bool = False) -> jax.Array:
    """Convert a number or an array of numbers, traced or not, to an array of JAX.

    Raises
    ------
    TypeError
        If it is not made of real numbers, or truth values where they are allowed.
    """
    if isinstance(value, jax.Array):
        array = value
    else:
        try:
            # By NumPy first, since JAX takes None for NaN.
            kind = np.asarray(value).dtype.kind
        except jax.errors.TracerArrayConversionError:
            kind = "f"
        except (TypeError, ValueError):
            kind = "O"
        # Formats such as bfloat16 are of kind V.
        if kind not in "fiubV":
            is_array = isinstance(value, np.ndarray | np.generic)
            came = f"dtype {value.dtype}" if is_array else _show(value)
            raise TypeError(f"{name} must be real numbers, got {came}.")
        array = jnp.asarray(value)
    # The kind is quick, and tells most formats.
    kind = getattr(array.dtype, "kind", "O")
    if not (kind in ("fiub" if or_bool else "fiu") or _is_real(array)):
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}.")
    return array


def as_number(
    name: str, value: Any, expected: str, holds: Callable[[float], bool]
) -> float:
    """Check a finite number, and return it as a ``float``.

    Parameters
    ----------
    name
        Name of the argument.
    value
        Number, or an array of one.
    expected
        What it must be, such as ``"a finite number > 0"``.
    holds
        Whether a finite number is so.

    Raises
    ------
    TypeError
        If it is not one real number, or is traced.
    ValueError
        If it is not finite, or not as expected.
    """
    kinds = int | float | np.ndarray | np.generic | jax.Array
    if not isinstance(value, kinds) or isinstance(value, bool | jax.core.Tracer):
        raise TypeError(f"{name} must be {expected}, got {_show(value)}.")
    if np.shape(value) != () or np.asarray(value).dtype.kind not in "fiuV":
        raise TypeError(f"{name} must be {expected}, got {value!r}.")
    if not (np.isfinite(float(value)) and holds(float(value))):
        raise ValueError(f"{name} must be {expected}, got {value!r}.")
    return float(value)


def check_function(name: str, value: Any, expected: str) -> None:
    """Check that ``value`` can be called, and is not a distribution, which can too.

    Raises
    ------
    TypeError
        If it cannot, or is one.
    """
    if not callable(value) or isinstance(value, dist.Distribution):
        raise TypeError(f"{name} must be {expected}, got {_show(value)}.")


def check_name(name: str, value: Any, expected: str = "the name of a site") -> None:
    """Check that ``value`` is text.

    Raises
    ------
    TypeError
        If it is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {expected}, got {_show(value)}.")


def as_path(name: str, value: Any) -> Path:
    """Convert to a path, ``~`` being the user's folder.

    Raises
    ------
    TypeError
        If it is not one.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {_show(value)}.")
    return Path(value).expanduser()


def as_flag(name: str, value: Any) -> bool:
    """Check that ``value`` is True or False.

    Raises
    ------
    TypeError
        If it is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {_show(value)}.")
    return bool(value)


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


def _show(value: Any) -> str:
    """Value, if it is short, and type, for a message."""
    kind = type(value).__name__
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return f"{value!r} of type {kind}" if is_plain else f"an object of type {kind}"


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
