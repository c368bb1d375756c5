"""Checks of arguments: one clear error that names the argument.

A value of the wrong type, such as 2.5 for a count, raises ``TypeError``, and a value of
the right type that is not allowed, such as 0, raises ``ValueError``. ``as_*`` returns
the value in the form in which it is used; ``check_*`` returns nothing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = [
    "Grid",
    "GridLike",
    "as_bandwidth",
    "as_count",
    "as_flag",
    "as_generator",
    "as_grid",
    "as_name",
    "as_number",
    "as_numpy",
    "as_path",
    "as_positive",
    "as_real",
    "as_sample_shape",
    "as_shape",
    "as_tuples",
    "as_vectors",
    "check_alphabet",
    "check_function",
    "check_key",
    "check_name",
    "existing_file",
]


def _show(value: Any) -> str:
    """Value, if it is short, and type, for a message."""
    kind = type(value).__name__
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return f"{value!r} of type {kind}" if is_plain else f"an object of type {kind}"


def _is_real(array: ArrayLike) -> bool:
    dtype = jnp.result_type(array)
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


# --- numbers -------------------------------------------------------------------------


def as_count(name: str, value: Any, minimum: int = 1) -> int:
    """Check an integer of at least ``minimum``."""
    expected = "a positive integer" if minimum == 1 else f"an integer >= {minimum}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be {expected}, got {_show(value)}.")
    if value < minimum:
        raise ValueError(f"{name} must be {expected}, got {value}.")
    return int(value)


def as_number(
    name: str, value: Any, expected: str, holds: Callable[[float], bool]
) -> float:
    """Check a concrete finite number, or array of one, of which ``holds`` is true."""
    kinds = int | float | np.ndarray | np.generic | jax.Array
    if not isinstance(value, kinds) or isinstance(value, bool | jax.core.Tracer):
        raise TypeError(f"{name} must be {expected}, got {_show(value)}.")
    if np.shape(value) != () or np.asarray(value).dtype.kind not in "fiuV":
        raise TypeError(f"{name} must be {expected}, got {value!r}.")
    if not (np.isfinite(float(value)) and holds(float(value))):
        raise ValueError(f"{name} must be {expected}, got {value!r}.")
    return float(value)


def as_positive(name: str, value: Any, or_zero: bool = False) -> float:
    """Check a concrete finite number > 0, or >= 0."""
    if or_zero:
        return as_number(name, value, "a finite number >= 0", lambda x: x >= 0)
    return as_number(name, value, "a finite number > 0", lambda x: x > 0)


def as_flag(name: str, value: Any) -> bool:
    """Check ``True`` or ``False``."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {_show(value)}.")
    return bool(value)


# --- arrays and shapes ---------------------------------------------------------------


def as_real(name: str, value: Any, or_bool: bool = False) -> jax.Array:
    """Convert real numbers, traced or not, to a JAX array; truth values if allowed."""
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


def as_numpy(name: str, value: Any) -> np.ndarray:
    """Convert to a NumPy array what is one: no parts of several shapes."""
    try:
        return np.asarray(value)
    except ValueError:
        kind, count = type(value).__name__, len(value)
        raise ValueError(
            f"{name} must be one array, got a {kind} of {count} parts that differ in "
            "shape: pass data without their labels, all of one shape."
        ) from None


def as_vectors(
    name: str, value: Any, size: int, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Convert to an array of shape ``(..., size)``, integers to ``dtype`` if given."""
    array = as_real(name, value)
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(f"{name} must have shape (..., {size}), got {array.shape}.")
    if dtype is not None and not jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(dtype)
    return array


def as_shape(name: str, value: Any) -> tuple[int, ...]:
    """Convert a positive integer, or a sequence of them, to a tuple."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (as_count(name, value),)
    return tuple(as_count(f"{name}[{i}]", size) for i, size in enumerate(value))


def as_sample_shape(value: Any, name: str = "sample_shape") -> tuple[int, ...]:
    """Check a shape in front of others: a tuple of integers, which may be 0."""
    if not isinstance(value, tuple | list):
        hint = f", such as ({value},)" if isinstance(value, int | np.integer) else ""
        raise TypeError(
            f"{name} must be a tuple of integers{hint}, got {_show(value)}."
        )
    return tuple(as_count(f"{name}[{i}]", size, 0) for i, size in enumerate(value))


# --- keys, functions, names and files ------------------------------------------------


def check_key(rng_key: Any, name: str = "rng_key") -> jax.Array:
    """Return one random key, old or new in style."""
    dtype, shape = getattr(rng_key, "dtype", None), getattr(rng_key, "shape", None)
    # Old keys have 2 words, or 4 with another generator than JAX's first.
    old = dtype == np.uint32 and shape in ((2,), (4,))
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (old or (new and shape == ())):
        came = f"{shape} of them" if new else _show(rng_key)
        raise TypeError(
            f"{name} must be one random key such as jax.random.key(0), got {came}."
        )
    return rng_key


def as_generator(rng: Any) -> np.random.Generator:
    """Return a NumPy generator itself, or the one that an integer seed starts."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool | np.bool_) or not isinstance(rng, int | np.integer):
        raise TypeError(
            "rng must be a numpy.random.Generator or an integer seed, got "
            f"{_show(rng)}."
        )
    return np.random.default_rng(as_count("rng", rng, minimum=0))


def check_function(name: str, value: Any, expected: str) -> None:
    """Check what can be called and is not a distribution, which can be called too."""
    if not callable(value) or isinstance(value, dist.Distribution):
        raise TypeError(f"{name} must be {expected}, got {_show(value)}.")


def check_name(name: str, value: Any, expected: str = "the name of a site") -> None:
    """Check a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {expected}, got {_show(value)}.")


def as_name(name: str, value: Any, table: Mapping[Any, Any]) -> Any:
    """Check a key of a table of strings, and perhaps ``None``."""
    known = ", ".join(repr(entry) for entry in table)
    if not isinstance(value, str | None):
        raise TypeError(f"{name} must be one of {known}, got {_show(value)}.")
    if value not in table:
        raise ValueError(f"{name} must be one of {known}, got {value!r}.")
    return value


def check_alphabet(alphabet: Any) -> str:
    """Check a string of different characters, and return it."""
    check_name("alphabet", alphabet, "a string of characters")
    if not alphabet:
        raise ValueError("alphabet must have at least one character, got ''.")
    twice = [character for character in alphabet if alphabet.count(character) > 1]
    if twice:
        raise ValueError(
            f"alphabet must have each character once, got {twice[0]!r} "
            f"{alphabet.count(twice[0])} times."
        )
    return alphabet


def as_path(name: str, value: Any) -> Path:
    """Convert to a path, ``~`` being the user's folder."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {_show(value)}.")
    return Path(value).expanduser()


def existing_file(path: Any, expected: str) -> Path:
    """Check the path of a file that is there; ``expected`` says what it should hold."""
    path = as_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {expected}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected {expected}.")
    return path


# --- grids of bases ------------------------------------------------------------------

Grid: TypeAlias = float | tuple[Any, ...]
"""An end of the grid as stored: a float or nested tuples of floats, hence hashable."""

GridLike: TypeAlias = ArrayLike | Sequence[Any]
"""An end of the grid as a user may pass it."""


def as_grid(low: GridLike, high: GridLike) -> tuple[Grid, Grid]:
    """Check the ends of a grid, ``low < high``; floats or tuples of one shape."""
    lows, highs = _as_grid_end("low", low), _as_grid_end("high", high)
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
    return as_tuples(lows.tolist()), as_tuples(highs.tolist())


def _as_grid_end(name: str, value: GridLike) -> np.ndarray:
    """Convert finite concrete numbers to float64."""
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


def as_tuples(value: Any) -> Grid:
    """Convert nested lists, as of ``tolist``, to tuples."""
    return tuple(as_tuples(v) for v in value) if isinstance(value, list) else value


def as_bandwidth(bandwidth: ArrayLike) -> Float[Array, ""]:
    """Convert to a floating-point scalar, positive and finite where it is concrete."""
    numeric = isinstance(bandwidth, int | float | np.ndarray | np.generic | jax.Array)
    if not numeric or isinstance(bandwidth, bool) or not _is_real(bandwidth):
        raise TypeError(
            f"bandwidth must be a real number or a scalar array, got {_show(bandwidth)}"
            "."
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
