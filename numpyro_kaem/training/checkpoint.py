"""Checkpoints of a fit, and the fingerprint of what it was of."""

import contextlib
import dataclasses
import hashlib
import json
import re
import types
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
from jax.example_libraries.optimizers import (
    JoinPoint,
    OptimizerState,
    unpack_optimizer_state,
)
from numpyro.infer.elbo import ELBO

from numpyro_kaem._checks import as_count, as_path
from numpyro_kaem.files.container import (
    DamagedFileError,
    StoredArrays,
    describe_array,
    is_key,
    read_arrays,
    to_stored,
    write_arrays,
)

__all__ = [
    "Checkpoint",
    "SavedState",
    "differences",
    "fingerprint",
    "name_leaves",
    "read_newest",
]

_FILE_NAME = re.compile(r"step-(\d{8,})\.npz")
_SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often to keep the state of training.

    The state is any pytree of arrays: an ``SVIState`` with the state of an optimiser
    of :mod:`numpyro.optim` or optax, random keys of both kinds, Equinox modules. Files
    are called ``step-00001000.npz``. They hold arrays by name and a header in JSON, and
    no pickled objects, so they can be read by another process with another order of
    hashes, on another device, and by a later version of this package.

    Parameters
    ----------
    directory
        Folder for the files; made when the first is written. One run writes to it at a
        time; other files in it are left alone.
    every
        Number of steps from one checkpoint to the next.
    keep
        Number of newest checkpoints that are kept. With two or more, a damaged file
        costs ``every`` steps and not the run.

    Raises
    ------
    TypeError
        If ``directory`` is not a path, or a number not an integer.
    ValueError
        If ``directory`` is a file, or a number not positive.

    Notes
    -----
    A checkpoint holds the numbers, and not the code: :meth:`latest` is given a pytree
    of the same structure, such as the state before the first step. Names, shapes, data
    types, the classes of modules and their static numbers, such as the ends of a grid,
    must be those of the checkpoint. Each array comes back bit for bit.

    Examples
    --------
    >>> import tempfile
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> state = {"coefficients": jnp.array([0.5, -1.0]), "key": jax.random.key(0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = kaem.Checkpoint(folder, every=100)
    ...     checkpoint.save(100, state, {"loss": 2.5})
    ...     step, restored, metadata = checkpoint.latest(state)
    >>> step, restored["coefficients"], metadata
    (100, Array([ 0.5, -1. ], dtype=...), {'loss': 2.5})
    """

    directory: Path
    """Folder of the files."""
    _: KW_ONLY
    every: int = 1000
    """Number of steps from one checkpoint to the next."""
    keep: int = 2
    """Number of newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        directory = as_path("directory", self.directory)
        if directory.exists() and not directory.is_dir():
            raise ValueError(
                f"directory must be a folder for checkpoints, got the file {directory}."
            )
        object.__setattr__(self, "directory", directory)
        object.__setattr__(self, "every", as_count("every", self.every))
        object.__setattr__(self, "keep", as_count("keep", self.keep))

    def save(
        self, step: int, tree: Any, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write a checkpoint, and remove those that are no longer kept.

        Parameters
        ----------
        step
            Number of the step, at least 0. A checkpoint of this step is replaced.
        tree
            A pytree of arrays of any shapes, random keys and Python numbers.
        metadata
            What else to keep, by name, of what JSON can hold. Tuples come back as
            lists, and names as text.

        Raises
        ------
        TypeError
            If a leaf is not an array, ``metadata`` is not for JSON, or ``step`` is not
            an integer.
        ValueError
            If ``step`` is negative, if the folder holds a later checkpoint, or if the
            pytree holds a NumPyro distribution, whose arrays have no names.
        OSError
            If the file cannot be written; no other checkpoint is touched then.
        """
        step = as_count("step", step, minimum=0)
        for later, path in self._files():
            if later <= step:
                break
            # Of a run that was resumed from an earlier one. An intact file is not ours
            # to remove, and would be taken for the newest.
            try:
                _read(path, later)
            except DamagedFileError:
                path.unlink()
                continue
            raise ValueError(
                f"directory must hold no checkpoint later than step {step}, got "
                f"{path}; resume from it, or use another folder."
            )
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError(
                f"metadata must be a dictionary, got {metadata!r} of type "
                f"{type(metadata).__name__}."
            )
        metadata = dict(metadata or {})
        try:
            json.dumps(metadata)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"metadata must be made of what JSON can hold (numbers, text, lists, "
                f"dictionaries, None), got: {error}."
            ) from None
        leaves, structure = name_leaves(tree)
        header = {
            "step": step,
            "arrays": {name: describe_array(name, x) for name, x in leaves.items()},
            "structure": structure,
            "metadata": metadata,
        }
        arrays = {name: to_stored(name, leaf) for name, leaf in leaves.items()}
        write_arrays(self.directory / f"step-{step:08d}.npz", header, arrays)
        for _, path in self._files()[self.keep :]:
            path.unlink(missing_ok=True)

    def latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Read the newest checkpoint that is intact.

        Parameters
        ----------
        like
            A pytree of the structure, shapes and data types that were saved; its
            values do not matter. Leaves may be :class:`jax.ShapeDtypeStruct`.

        Returns
        -------
        tuple or None
            Step, pytree and metadata; None if there is no checkpoint.

        Raises
        ------
        TypeError
            If a leaf of ``like`` is not an array.
        ValueError
            If all checkpoints are damaged, if the newest is of another model (the
            first differences are listed) or of a newer format, or if ``like`` holds a
            NumPyro distribution.

        Warns
        -----
        UserWarning
            If a damaged checkpoint is skipped.
        """
        found = read_newest(self)
        if found is None:
            return None
        return found.header["step"], found.restore(like), found.header["metadata"]

    def _files(self) -> list[tuple[int, Path]]:
        """List steps and files of the checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        files = [
            (int(match[1]), path)
            for path in self.directory.iterdir()
            if (match := _FILE_NAME.fullmatch(path.name)) and path.is_file()
        ]
        return sorted(files, reverse=True)


def read_newest(checkpoint: Checkpoint) -> "SavedState | None":
    """Contents of the newest checkpoint that is intact; None if there is none."""
    damaged = []
    for step, path in checkpoint._files():
        try:
            return _read(path, step)
        except DamagedFileError as error:
            damaged.append(f"{path.name}: {error}")
            warnings.warn(
                f"the checkpoint {path} is damaged: {error}; going back to the one "
                "before it.",
                UserWarning,
                stacklevel=3,
            )
    if damaged:
        raise ValueError(
            f"all checkpoints in {checkpoint.directory} are damaged ("
            f"{'; '.join(damaged)}); remove them to start again."
        )
    return None


def _read(path: Path, step: int) -> "SavedState":
    """Contents of the checkpoint of a step, unless it is damaged or was renamed."""
    header, arrays = read_arrays(path)
    if "step" not in header:
        raise DamagedFileError("it is no checkpoint; numpyro_kaem.load may read it")
    if header["step"] != step:
        raise DamagedFileError(f"it is of step {header['step']}")
    return SavedState(path, header, arrays)


class SavedState(NamedTuple):
    """Contents of a checkpoint, before they are matched with a pytree."""

    path: Path
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def restore(self, like: Any) -> Any:
        """Pytree of the structure of ``like``, on the devices of its leaves."""
        leaves, structure = name_leaves(like)
        expected = {name: describe_array(name, leaf) for name, leaf in leaves.items()}
        found = self.header["arrays"]
        lines = _unlike(*map(_shapes, (expected, found)))
        # As JSON holds it.
        structure = json.loads(json.dumps(structure))
        lines += _unlike(*map(_texts, (structure, self.header["structure"])))
        if lines:
            more = len(lines) - _SHOWN_DIFFERENCES
            if more > 0:
                lines[_SHOWN_DIFFERENCES:] = [f"  and {more} more"]
            shown = "\n".join(lines)
            raise ValueError(
                f"the checkpoint {self.path} is of another model, or of another "
                f"optimizer:\n{shown}"
            )
        # Arrays of JAX, NumPy or Python as in the pytree.
        stored = StoredArrays(
            {n: found[n] | {"container": d["container"]} for n, d in expected.items()},
            self.arrays,
        )
        values = [_as_leaf(stored.take(name), leaf) for name, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(like), values)


def _shapes(descriptions: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: f"{d['dtype']}{d['shape']}" for name, d in descriptions.items()}


def _texts(structure: dict[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in structure.items()}


def _unlike(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """One line for each name with different values, in the order of the names."""
    return [
        f"  {name}: expected {expected.get(name, 'nothing')}, found "
        f"{found.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def _as_leaf(value: Any, like: Any) -> Any:
    if isinstance(like, bool | int | float | complex) and not hasattr(like, "dtype"):
        return type(like)(value.item())
    if getattr(like, "committed", False):
        return jax.device_put(value, like.sharding)
    return value


# --- names of leaves -----------------------------------------------------------------


def name_leaves(
    tree: Any, name: str = "state"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leaves of a pytree by their paths, in JAX's order, and what else a model is.

    The second are the classes of Equinox modules and distributions by name, and static
    fields of modules that are plain numbers and text, such as the ends of a grid. The
    state of an optimiser of :mod:`numpyro.optim` is one flat list; names in it are
    those of the parameters, and a number for the parameter and each of its moments.
    """
    leaves: dict[str, Any] = {}
    structure: dict[str, Any] = {}

    def visit(node: Any, name: str) -> None:
        if isinstance(node, OptimizerState):
            node = unpack_optimizer_state(node)
        if isinstance(node, JoinPoint):
            node = node.subtree
        _describe_class(node, name, structure)
        # One level: everything but the node itself counts as a leaf.
        children, _ = jax.tree_util.tree_flatten_with_path(
            node, is_leaf=lambda child: child is not node
        )
        for path, child in children:
            if path:
                visit(child, name + jax.tree_util.keystr(path))
            elif name in leaves:
                raise ValueError(
                    f"the names of leaves must differ, got two with the name {name!r}."
                )
            else:
                leaves[name] = child

    visit(tree, name)
    return leaves, structure


def _describe_class(node: Any, name: str, structure: dict[str, Any]) -> None:
    """Note the class and the static fields of a module or distribution."""
    if isinstance(node, dist.Distribution):
        if type(node).tree_flatten.__module__.startswith("numpyro."):
            raise ValueError(
                f"the pytree must hold no NumPyro distribution, got a "
                f"{type(node).__name__} at {name}: its parameters have no names, and "
                "their order differs between processes. Put its parameters into the "
                "pytree instead, as arrays."
            )
        structure[name] = type(node).__qualname__
    elif isinstance(node, eqx.Module):
        structure[name] = type(node).__qualname__
        for field in dataclasses.fields(node):
            value = getattr(node, field.name, None)
            if field.metadata.get("static", False) and _is_plain(value):
                structure[f"{name}.{field.name}"] = value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


# --- what a training is determined by ------------------------------------------------


def fingerprint(**parts: Any) -> dict[str, str]:
    """Describe the parts of a training by names and texts, the same in every process.

    Arrays are described by shape, data type and a hash of their numbers, objects by
    their class and fields, and functions by their name, the names and constants in
    their code, and what they enclose, such as the learning rate of an optimiser. An
    object of another class is known by its class alone.
    """
    found: dict[str, str] = {}
    for name, part in parts.items():
        if hasattr(part, "get_params") and hasattr(part, "__dict__"):
            # An optimiser of NumPyro.
            part = vars(part)
        _describe_part(part, name, found, set())
    return found


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """One line for each part that differs, by the name of the part.

    Of a part with several differences the first that both have is shown. A part of
    which one does not know is None.
    """
    lines: dict[str, str] = {}
    names = before.keys() | now.keys()
    for name in sorted(names, key=lambda n: (n not in before or n not in now, n)):
        was, is_now = before.get(name, "None"), now.get(name, "None")
        part = name.split(".")[0].split("[")[0]
        if was != is_now:
            lines.setdefault(part, f"  {name}: {was} before, {is_now} now")
    return lines


def _describe_part(
    value: Any, name: str, found: dict[str, str], seen: set[int]
) -> None:
    """Note what a value is, and all that is in it."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        found[name] = _of_array(value)
    elif value is None or isinstance(value, bool | int | float | complex | str):
        found[name] = repr(value)
    elif isinstance(value, type):
        found[name] = value.__qualname__
    elif isinstance(value, Mapping):
        found[name] = f"{len(value)} entries"
        for key in sorted(value, key=str):
            _describe_part(value[key], f"{name}.{key}", found, seen)
    elif isinstance(value, tuple | list):
        found[name] = f"{len(value)} entries"
        for i, entry in enumerate(value):
            _describe_part(entry, f"{name}[{i}]", found, seen)
    elif isinstance(value, partial):
        content = (value.func, value.args, value.keywords)
        _describe_part(content, name, found, seen)
    elif isinstance(value, dist.Distribution):
        _describe_distribution(value, name, found)
    elif isinstance(value, eqx.Module | ELBO) or dataclasses.is_dataclass(value):
        found[name] = type(value).__qualname__
        for field in sorted(vars(value)):
            _describe_part(vars(value)[field], f"{name}.{field}", found, seen)
    else:
        function = getattr(value, "__wrapped__", value)
        function = getattr(function, "__func__", function)
        if not isinstance(function, types.FunctionType):
            found[name] = getattr(value, "__qualname__", type(value).__qualname__)
        elif id(function) not in seen:
            seen.add(id(function))
            _describe_function(function, name, found, seen)


def _describe_distribution(
    distribution: dist.Distribution, name: str, found: dict[str, str]
) -> None:
    cls = type(distribution).__qualname__
    found[name] = f"{cls} of shape {distribution.shape()}"
    try:
        _, structure = name_leaves(distribution, name)
    except ValueError:
        # NumPyro's own, whose leaves come in an order that differs between processes.
        structure = {}
    for field, content in structure.items():
        found[field] = repr(content)
    leaves = sorted(_of_array(leaf) for leaf in jax.tree.leaves(distribution))
    words = f"{len(leaves)} arrays {_hash(repr(leaves).encode())}"
    found[f"{name}.parameters"] = words


def _describe_function(
    function: types.FunctionType, name: str, found: dict[str, str], seen: set[int]
) -> None:
    words = sorted(_words(function.__code__, function.__doc__))
    found[name] = f"{function.__qualname__} {_hash(repr(words).encode())}"
    contents: dict[str, Any] = {}
    for variable, cell in zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=True
    ):
        # Raised by a variable that is not set yet.
        with contextlib.suppress(ValueError):
            contents[variable] = cell.cell_contents
    if function.__defaults__:
        contents["defaults"] = function.__defaults__
    contents.update(function.__kwdefaults__ or {})
    for variable in sorted(contents):
        _describe_part(contents[variable], f"{name}.{variable}", found, seen)


def _words(code: types.CodeType, doc: str | None) -> set[str]:
    """Names and constants in a function; unlike its code, alike in all Pythons."""
    words = {repr(name) for name in code.co_names}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            words |= _words(constant, None)
        elif isinstance(constant, int | float | complex | str) and constant != doc:
            words.add(repr(constant))
    return words


def _of_array(array: Any) -> str:
    if isinstance(array, jax.core.Tracer):
        return type(array).__name__
    shape = list(np.shape(array))
    numbers = np.asarray(jax.random.key_data(array) if is_key(array) else array)
    dtype = getattr(array, "dtype", numbers.dtype)
    if numbers.dtype.hasobject:
        return f"{dtype}{shape}"
    return f"{dtype}{shape} {_hash(np.ascontiguousarray(numbers).tobytes())}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]
