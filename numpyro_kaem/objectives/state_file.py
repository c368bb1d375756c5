"""One file with the arrays of a pytree: written as a whole, and without pickle."""

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from numpyro_kaem._version import __version__
from numpyro_kaem.objectives.named_leaves import name_leaves

__all__ = [
    "FORMAT_VERSION",
    "TEMPORARY_SUFFIX",
    "DamagedFileError",
    "StateFile",
    "read_state",
    "restore_state",
    "write_state",
]

FORMAT_VERSION = 1
"""Version of the layout of the file; readers refuse a newer one."""
TEMPORARY_SUFFIX = ".tmp"
"""Ending of a file that is being written."""

_HEADER = "header"
# In front of each name: a pytree that is one array has the empty name.
_ROOT = "state"
_SHOWN_DIFFERENCES = 5


class DamagedFileError(ValueError):
    """A file that is not complete, or not as it was written."""


class StateFile(NamedTuple):
    """Contents of a file, before they are matched with a pytree."""

    header: dict[str, Any]
    """Format, versions of the libraries, step, metadata, a description of each array,
    the structure of the pytree, and the checksum."""
    arrays: dict[str, np.ndarray]
    """Arrays by name."""


def write_state(
    path: Path, step: int, tree: Any, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write the arrays of a pytree to a file that appears only when it is complete.

    The file is an ``.npz`` archive: each array under its name, and a header in JSON. It
    is written under another name, flushed to the disk and renamed.

    Parameters
    ----------
    path
        Where to write; an existing file is replaced.
    step
        Number of the step.
    tree
        A pytree of JAX or NumPy arrays of any shape, random keys, and Python numbers.
    metadata
        Anything that JSON can hold, by name.

    Raises
    ------
    TypeError
        If a leaf is not an array, or ``metadata`` is not a dictionary for JSON.
    ValueError
        If the leaves cannot be named; see :func:`name_leaves`.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from numpyro_kaem.objectives.state_file import read_state, write_state
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "state.npz")
    ...     write_state(path, 3, {"loc": np.array([0.5, -1.0])}, {"seed": 7})
    ...     state = read_state(path)
    >>> state.header["step"], state.header["metadata"], state.arrays
    (3, {'seed': 7}, {"state['loc']": array([ 0.5, -1. ])})
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(
            f"metadata must be a dictionary, got {metadata!r} of type "
            f"{type(metadata).__name__}."
        )
    named = name_leaves(tree)
    described = _describe_arrays(named.leaves)
    arrays = {_ROOT + name: _to_array(name, v) for name, v in named.leaves.items()}
    header = {
        "format": FORMAT_VERSION,
        "versions": {
            "numpyro_kaem": __version__,
            "numpyro": numpyro.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "equinox": eqx.__version__,
        },
        "step": step,
        "arrays": described,
        "structure": {_ROOT + name: v for name, v in named.structure.items()},
    }
    try:
        given = json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"metadata must be made of what JSON can hold (numbers, text, lists, "
            f"dictionaries, None), got: {error}."
        ) from None
    # As it will be read, because the checksum is taken of the text.
    header = json.loads(json.dumps(header)) | {"metadata": json.loads(given)}
    header["sha256"] = _checksum(header, arrays)
    entries = {_HEADER: np.array(json.dumps(header)), **arrays}
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **entries)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        # The number of the error gives the same subclass, such as PermissionError.
        reason = f"cannot write the checkpoint, {error.strerror or error}"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        # Still there only if something failed.
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_state(path: Path) -> StateFile:
    """Read a file and check that it is as it was written.

    Parameters
    ----------
    path
        A file of :func:`write_state`.

    Returns
    -------
    StateFile
        Its header and arrays.

    Raises
    ------
    DamagedFileError
        If it is truncated or changed, or was not written by :func:`write_state`.
    ValueError
        If its format is newer than this version of the package.
    """
    with path.open("rb") as file:
        try:
            # Each entry as a whole, so that its checksum comes before its contents.
            with zipfile.ZipFile(file) as archive:
                entries = {
                    name.removesuffix(".npy"): np.load(
                        io.BytesIO(archive.read(name)), allow_pickle=False
                    )
                    for name in archive.namelist()
                }
        # What zipfile and NumPy raise depends on which byte is wrong.
        except Exception as error:
            raise DamagedFileError(f"it cannot be read ({error})") from error
    if _HEADER not in entries:
        raise DamagedFileError("it has no header")
    try:
        header = json.loads(str(entries.pop(_HEADER)))
        version = int(header["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError("its header cannot be read") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"the checkpoint {path} has format {version}, and this version of "
            f"numpyro_kaem ({__version__}) reads formats up to {FORMAT_VERSION}; "
            f"it was written by {header.get('versions', {}).get('numpyro_kaem')}."
        )
    expected = header.pop("sha256", None)
    if _checksum(header, entries) != expected:
        raise DamagedFileError("its checksum does not match")
    return StateFile(header | {"sha256": expected}, entries)


def restore_state(path: Path, state: StateFile, like: Any) -> Any:
    """Put the arrays of a file into a pytree of the same structure.

    Parameters
    ----------
    path
        Where the file is; for messages.
    state
        Contents of the file.
    like
        A pytree of the structure, shapes and data types that were written. Leaves may
        be arrays or :class:`jax.ShapeDtypeStruct`.

    Returns
    -------
    Any
        A pytree of the structure of ``like``, with the kinds of array and the devices
        of its leaves.

    Raises
    ------
    TypeError
        If a leaf of ``like`` is not an array.
    ValueError
        If names, shapes, data types or static values differ; the first are listed.
    """
    named = name_leaves(like)
    descriptions = state.header["arrays"]
    differences = _differences(
        _show(_describe_arrays(named.leaves)), _show(descriptions)
    )
    structure = json.loads(json.dumps(named.structure))
    differences += _differences(
        {_ROOT + name: repr(value) for name, value in structure.items()},
        {name: repr(value) for name, value in state.header["structure"].items()},
    )
    if differences:
        shown = "\n".join(differences[:_SHOWN_DIFFERENCES])
        more = len(differences) - _SHOWN_DIFFERENCES
        raise ValueError(
            f"the checkpoint {path} is of another model, or of another optimizer:\n"
            f"{shown}{f'{chr(10)}  and {more} more' if more > 0 else ''}"
        )
    leaves = [
        _from_array(state.arrays[_ROOT + name], leaf, descriptions[_ROOT + name])
        for name, leaf in named.leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _to_array(name: str, leaf: Any) -> np.ndarray:
    """Array as it is stored, with a data type that NumPy knows by itself.

    Raises
    ------
    TypeError
        If the leaf is traced.
    """
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f"the leaf {_ROOT}{name} must be concrete, got a traced array; write "
            "checkpoints outside of jit."
        )
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    # Formats such as bfloat16, as their bits.
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.itemsize}")


def _from_array(array: np.ndarray, like: Any, description: dict[str, Any]) -> Any:
    """Leaf of the kind of ``like``."""
    if isinstance(like, bool | int | float | complex) and not hasattr(like, "dtype"):
        return type(like)(array.item())
    if _is_key(like):
        key_data = jnp.asarray(array)
        value = jax.random.wrap_key_data(key_data, impl=description["key"])
    else:
        array = array if array.dtype == like.dtype else array.view(like.dtype)
        if isinstance(like, np.ndarray):
            return array
        if isinstance(like, np.generic):
            return array[()]
        value = jnp.asarray(array)
        if description["weak_type"]:
            value = _as_weak(value)
    if getattr(like, "committed", False):
        return jax.device_put(value, like.sharding)
    return value


def _as_weak(array: jax.Array) -> jax.Array:
    """Give an array the weak type that a Python number has.

    Counters such as ``jnp.array(0)`` have it. With a strong type a function would be
    compiled anew, and what a counter is combined with could be promoted.
    """
    zero = jnp.asarray(np.zeros((), array.dtype).item())
    weak = jax.lax.full_like(zero, 0, shape=array.shape).at[...].set(array)
    return weak if weak.dtype == array.dtype else array


def _describe_arrays(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe each array by data type and shape, and a key by its implementation.

    Raises
    ------
    TypeError
        If a leaf is not an array.
    """
    described = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, bool | int | float | complex):
            leaf = np.asarray(leaf)
        dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
        numeric = _is_key(leaf) or getattr(dtype, "kind", "O") not in "OSUMm"
        if shape is None or not numeric:
            raise TypeError(
                f"the leaf {_ROOT}{name} must be an array of numbers or a random key, "
                f"got {leaf!r} of type {type(leaf).__name__}; filter modules first, as "
                "in equinox.filter(module, equinox.is_array)."
            )
        description = {"dtype": str(dtype), "shape": list(shape)}
        if not _is_key(leaf):
            description["weak_type"] = bool(getattr(leaf, "weak_type", False))
        elif isinstance(leaf, jax.Array):
            description["key"] = str(jax.random.key_impl(leaf))
        described[_ROOT + name] = description
    return described


def _show(descriptions: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: f"{d['dtype']}{d['shape']}" for name, d in descriptions.items()}


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """One line for each name with different values, in the order of the names."""
    names = sorted(expected.keys() | found.keys())
    return [
        f"  {name}: expected {expected.get(name, 'nothing')}, found "
        f"{found.get(name, 'nothing')}"
        for name in names
        if expected.get(name) != found.get(name)
    ]


def _checksum(header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the header and of all arrays, in the order of their names."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a loss of power, where the system allows it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
