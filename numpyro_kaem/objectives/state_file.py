"""The file of a checkpoint: the arrays of a pytree, matched with one like it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem.array_file import DamagedFileError, read_arrays, write_arrays
from numpyro_kaem.objectives.named_leaves import name_leaves
from numpyro_kaem.stored_arrays import as_weak, describe_array, is_key, to_stored

__all__ = [
    "DamagedFileError",
    "StateFile",
    "read_state",
    "restore_state",
    "write_state",
]

# In front of each name: a pytree that is one array has the empty name.
_ROOT = "state"
_SHOWN_DIFFERENCES = 5


class StateFile(NamedTuple):
    """Contents of a file, before they are matched with a pytree."""

    header: dict[str, Any]
    """Format, versions of the libraries, step, metadata, a description of each array,
    and the structure of the pytree."""
    arrays: dict[str, np.ndarray]
    """Arrays by name."""


def write_state(
    path: Path, step: int, tree: Any, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write the arrays of a pytree to a file that appears only when it is complete.

    See :func:`numpyro_kaem.array_file.write_arrays`.

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
    header = {
        "step": step,
        "arrays": _describe_arrays(named.leaves),
        "structure": {_ROOT + name: v for name, v in named.structure.items()},
    }
    try:
        json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"metadata must be made of what JSON can hold (numbers, text, lists, "
            f"dictionaries, None), got: {error}."
        ) from None
    arrays = {_ROOT + n: to_stored(_ROOT + n, v) for n, v in named.leaves.items()}
    write_arrays(path, {**header, "metadata": dict(metadata or {})}, arrays)


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
    header, arrays = read_arrays(path)
    if "step" not in header:
        raise DamagedFileError("it is no checkpoint; numpyro_kaem.load may read it")
    return StateFile(header, arrays)


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


def _from_array(array: np.ndarray, like: Any, description: dict[str, Any]) -> Any:
    """Leaf of the kind of ``like``."""
    if isinstance(like, bool | int | float | complex) and not hasattr(like, "dtype"):
        return type(like)(array.item())
    if is_key(like):
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
            value = as_weak(value)
    if getattr(like, "committed", False):
        return jax.device_put(value, like.sharding)
    return value


def _describe_arrays(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        _ROOT + name: describe_array(_ROOT + name, leaf)
        for name, leaf in leaves.items()
    }


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
