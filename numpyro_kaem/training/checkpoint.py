"""Checkpoints of a fit, and the fingerprint of what it was of."""

import dataclasses
import hashlib
import inspect
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
import jax.numpy as jnp
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
    as_weak,
    describe_array,
    is_key,
    read_arrays,
    to_stored,
    write_arrays,
)

__all__ = [
    "Checkpoint",
    "DamagedFileError",
    "NamedLeaves",
    "StateFile",
    "differences",
    "fingerprint",
    "name_leaves",
    "read_state",
    "restore_state",
    "write_state",
]


def fingerprint(**parts: Any) -> dict[str, str]:
    """Describe the parts of a training by names and texts, the same in every process.

    Arrays are described by shape, data type and a hash of their numbers, objects by
    their class and fields, and functions by their name, the names and constants in
    their code, and what they enclose, such as the learning rate of an optimiser. An
    object of another class is known by its class alone.

    Parameters
    ----------
    parts
        Parts by name.

    Returns
    -------
    dict
        A text for each part, and for what is in it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> from numpyro_kaem.training.checkpoint import fingerprint
    >>> found = fingerprint(
    ...     data=jnp.zeros(3), objective=kaem.objectives.LangevinMLE(5, num_chains=2)
    ... )
    >>> found["data"], found["objective.num_chains"]
    ('float...[3] ...', '2')
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

    Of a part with several differences the first that both have is shown.
    """
    lines: dict[str, str] = {}
    names = before.keys() | now.keys()
    for name in sorted(names, key=lambda n: (n not in before or n not in now, n)):
        was, is_now = before.get(name, "nothing"), now.get(name, "nothing")
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
        _describe_law(value, name, found)
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


def _describe_law(law: dist.Distribution, name: str, found: dict[str, str]) -> None:
    found[name] = f"{type(law).__qualname__} of shape {law.shape()}"
    try:
        structure = name_leaves(law).structure
    except ValueError:
        # NumPyro's own, whose leaves come in an order that differs between processes.
        structure = {}
    for field, content in structure.items():
        found[name + field] = repr(content)
    leaves = sorted(_of_array(leaf) for leaf in jax.tree.leaves(law))
    words = f"{len(leaves)} arrays {_hash(repr(leaves).encode())}"
    found[f"{name}.parameters"] = words


def _describe_function(
    function: types.FunctionType, name: str, found: dict[str, str], seen: set[int]
) -> None:
    words = sorted(_words(function.__code__, function.__doc__))
    found[name] = f"{function.__qualname__} {_hash(repr(words).encode())}"
    enclosed = zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=True
    )
    contents: dict[str, Any] = {}
    for variable, cell in enclosed:
        try:
            contents[variable] = cell.cell_contents
        except ValueError:
            # Not set yet.
            contents[variable] = None
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


class NamedLeaves(NamedTuple):
    """What :func:`name_leaves` finds."""

    leaves: dict[str, Any]
    """Leaves by name, in the order in which JAX flattens the pytree."""
    structure: dict[str, Any]
    """What is not an array and yet belongs to a model: the classes of Equinox modules
    and distributions by their name, and the static fields of modules that are plain
    numbers and text, such as the ends of a grid."""


def name_leaves(tree: Any) -> NamedLeaves:
    """Name the leaves of a pytree by their paths.

    The names are those of :func:`jax.tree_util.keystr`. In the state of an optimiser of
    :mod:`numpyro.optim`, which holds one flat list, they are those of the parameters,
    followed by a number for the parameter itself and each of its moments.

    Parameters
    ----------
    tree
        A pytree. Its leaves are not looked at.

    Returns
    -------
    NamedLeaves
        The leaves by name, and a description of the structure.

    Raises
    ------
    ValueError
        If two leaves have one name, or the pytree holds a NumPyro distribution: its
        parameters have no names, and their order depends on the seed of Python's
        hashes. The distributions of this package have a fixed order.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro.optim import Momentum
    >>> import numpyro_kaem as kaem
    >>> from numpyro_kaem.training.checkpoint import name_leaves
    >>> energy = kaem.Energy(kaem.BSpline(-1.0, 3.0, 6), jnp.zeros(6))
    >>> state = Momentum(1e-2, mass=0.9).init({"prior": energy})
    >>> list(name_leaves(state).leaves)
    ['[0]', "[1]['prior'].coefficients[0]", "[1]['prior'].coefficients[1]"]
    """
    found = NamedLeaves({}, {})
    _visit(tree, "", found)
    return found


def _visit(node: Any, name: str, found: NamedLeaves) -> None:
    """Visit a node and all below it, in the order in which JAX flattens them.

    Raises
    ------
    ValueError
        If a name is taken.
    """
    if isinstance(node, OptimizerState):
        node = unpack_optimizer_state(node)
    if isinstance(node, JoinPoint):
        node = node.subtree
    _describe(node, name, found.structure)
    # One level: everything but the node itself counts as a leaf.
    children, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda child: child is not node
    )
    for path, child in children:
        if path:
            _visit(child, name + jax.tree_util.keystr(path), found)
        elif name in found.leaves:
            raise ValueError(
                f"the names of leaves must differ, got two with the name {name!r}."
            )
        else:
            found.leaves[name] = child


def _describe(node: Any, name: str, structure: dict[str, Any]) -> None:
    """Note the class and the static fields of a node.

    Raises
    ------
    ValueError
        If it is a distribution with an order that is not fixed.
    """
    if isinstance(node, dist.Distribution):
        flatten = type(node).tree_flatten
        if flatten.__module__.startswith("numpyro."):
            raise ValueError(
                f"the pytree must hold no NumPyro distribution, got a "
                f"{type(node).__name__}{f' at {name}' if name else ''}: its parameters "
                "have no names, and their order differs between processes. Put its "
                "parameters into the pytree instead, as arrays."
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

    See :func:`numpyro_kaem.files.container.write_arrays`.

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
    >>> from numpyro_kaem.training.checkpoint import read_state, write_state
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


_NAME = re.compile(r"step-(\d{8,})\.npz")


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
    >>> from numpyro_kaem.training.checkpoint import Checkpoint
    >>> state = {"coefficients": jnp.array([0.5, -1.0]), "key": jax.random.key(0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(folder, every=100)
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
            # Of a run that went on from an earlier one. A sound file is not ours to
            # remove, and would be taken for the newest.
            if _is_sound(path, later):
                raise ValueError(
                    f"directory must hold no checkpoint later than step {step}, got "
                    f"{path}; resume from it, or use another folder."
                )
            path.unlink()
        write_state(self.directory / f"step-{step:08d}.npz", step, tree, metadata)
        for _, path in self._files()[self.keep :]:
            path.unlink(missing_ok=True)

    def latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Read the newest checkpoint that is sound.

        Parameters
        ----------
        like
            A pytree of the structure, shapes and data types that were saved; its
            values do not matter. Leaves may be :class:`jax.ShapeDtypeStruct`. Or a
            plain function from the metadata to such a pytree.

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
            If a damaged checkpoint is passed over.
        """
        damaged = []
        for step, path in self._files():
            try:
                state = _read(path, step)
            except DamagedFileError as error:
                damaged.append(f"{path.name}: {error}")
                warnings.warn(
                    f"the checkpoint {path} is damaged: {error}; going back to "
                    "the one before it.",
                    UserWarning,
                    stacklevel=2,
                )
                continue
            metadata = state.header["metadata"]
            tree = like(metadata) if inspect.isroutine(like) else like
            return step, restore_state(path, state, tree), metadata
        if damaged:
            raise ValueError(
                f"all checkpoints in {self.directory} are damaged ("
                f"{'; '.join(damaged)}); remove them to start anew."
            )
        return None

    def _files(self) -> list[tuple[int, Path]]:
        """List steps and files of the checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        files = [
            (int(match[1]), path)
            for path in self.directory.iterdir()
            if (match := _NAME.fullmatch(path.name)) and path.is_file()
        ]
        return sorted(files, reverse=True)


def _read(path: Path, step: int) -> StateFile:
    """Contents of the checkpoint of a step.

    Raises
    ------
    DamagedFileError
        If it is not as it was written, or was renamed.
    """
    state = read_state(path)
    if state.header["step"] != step:
        raise DamagedFileError(f"it is of step {state.header['step']}")
    return state


def _is_sound(path: Path, step: int) -> bool:
    try:
        _read(path, step)
    except DamagedFileError:
        return False
    return True
