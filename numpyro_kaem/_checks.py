"""Checks of arguments: one clear error that names the argument."""

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
    "OUTPUT_ACTIVATIONS",
    "Grid",
    "GridLike",
    "as_bandwidth",
    "as_count",
    "as_flag",
    "as_generator",
    "as_grid",
    "as_latents",
    "as_name",
    "as_number",
    "as_path",
    "as_positive",
    "as_real",
    "as_sample_shape",
    "as_shape",
    "check_alphabet",
    "check_function",
    "check_key",
    "check_name",
    "existing_file",
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


OUTPUT_ACTIVATIONS: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
}
"""Output activations by name: static, hashable, and saved as text."""


def as_shape(name: str, value: Any) -> tuple[int, ...]:
    """Check a shape, an integer or a sequence of them, and return it as a tuple.

    Raises
    ------
    TypeError
        If it is neither, or an entry is not an integer.
    ValueError
        If an entry is not positive.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (as_count(name, value),)
    return tuple(as_count(f"{name}[{i}]", size) for i, size in enumerate(value))


def as_name(name: str, value: Any, table: Mapping[Any, Any]) -> Any:
    """Check that ``value`` is a key of ``table``, and return it.

    Raises
    ------
    ValueError
        If it is not.
    """
    if not isinstance(value, str | None) or value not in table:
        known = ", ".join(repr(entry) for entry in table)
        raise ValueError(f"{name} must be one of {known}, got {value!r}.")
    return value


def as_latents(z: ArrayLike, num_latents: int, dtype: jnp.dtype) -> jax.Array:
    """Convert latents to floating point; their shape is ``(*batch, num_latents)``.

    Raises
    ------
    ValueError
        If the last axis has another size.
    """
    z = as_real("z", z)
    if z.ndim == 0 or z.shape[-1] != num_latents:
        raise ValueError(
            f"z must have shape (*batch, {num_latents}), one entry for each latent, "
            f"got {z.shape}."
        )
    return z if jnp.issubdtype(z.dtype, jnp.floating) else z.astype(dtype)


def as_generator(rng: Any) -> np.random.Generator:
    """Return a generator itself, or the one that a seed starts.

    Parameters
    ----------
    rng
        A NumPy generator, or a whole number from 0.

    Returns
    -------
    numpy.random.Generator

    Raises
    ------
    TypeError
        If it is neither: without a seed nothing could be drawn again.
    ValueError
        If a seed is negative.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool | np.bool_) or not isinstance(rng, int | np.integer):
        raise TypeError(
            "rng must be a numpy.random.Generator or an integer seed, got "
            f"{rng!r} of type {type(rng).__name__}."
        )
    if rng < 0:
        raise ValueError(f"rng must be a seed >= 0, got {rng}.")
    return np.random.default_rng(int(rng))


def as_positive(name: str, value: Any) -> float:
    """Return a positive and finite number as a ``float``.

    Parameters
    ----------
    name
        Name of the argument, for the message.
    value
        Its value.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not positive and finite.
    """
    numeric = isinstance(value, int | float | np.integer | np.floating)
    if not numeric or isinstance(value, bool):
        raise TypeError(
            f"{name} must be a positive number, got {value!r} of type "
            f"{type(value).__name__}."
        )
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return float(value)


def check_alphabet(alphabet: Any) -> str:
    """Return an alphabet: a string of different characters.

    Parameters
    ----------
    alphabet
        What should be one.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        If it is not a string.
    ValueError
        If it is empty, or has a character twice.
    """
    if not isinstance(alphabet, str):
        raise TypeError(
            f"alphabet must be a string of characters, got {alphabet!r} of type "
            f"{type(alphabet).__name__}."
        )
    if not alphabet:
        raise ValueError("alphabet must have at least one character, got ''.")
    twice = [character for character in alphabet if alphabet.count(character) > 1]
    if twice:
        raise ValueError(
            f"alphabet must have each character once, got {twice[0]!r} "
            f"{alphabet.count(twice[0])} times."
        )
    return alphabet


def existing_file(path: Any, expected: str) -> Path:
    """Return the path of a file that is there.

    Parameters
    ----------
    path
        Path, as a string or path object.
    expected
        What the file should be, for the message, such as ``"an IDX file"``.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    TypeError
        If it is not a path.
    FileNotFoundError
        If nothing is there.
    ValueError
        If it is a folder.
    """
    path = as_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {expected}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected {expected}.")
    return path
