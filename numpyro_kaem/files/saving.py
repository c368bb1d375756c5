"""Save a tree of arrays and objects of the package, and load it again."""

import math
import os
import warnings
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from numpyro.distributions import constraints

from numpyro_kaem._checks import as_path
from numpyro_kaem.files.container import (
    DamagedFileError,
    StoredArrays,
    describe_array,
    is_array,
    read_arrays,
    to_stored,
    write_arrays,
)
from numpyro_kaem.files.kinds import CONSTANTS, Registry

__all__ = ["load", "save"]

_ROOT = "tree"
_MAX_DEPTH = 100
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def save(path: str | os.PathLike, tree: Any, *, classes: Iterable[type] = ()) -> None:
    """Save a model, a fit or any tree of them to one file, without pickle.

    Parameters
    ----------
    path
        Where to write. Folders are made. An existing file, or the one to which a
        symbolic link leads, is replaced when the new one is complete; it keeps its
        permissions. Several threads, processes and hosts may save and load one path.
    tree
        A prior, energy, basis, decoder, likelihood, :class:`KAEM`, :class:`FitResult`,
        :class:`UnitPosterior`, a distribution of NumPyro, the parameters or the state
        of ``SVI``, arrays, random keys, numbers, text and None, in tuples, lists and
        dictionaries.
    classes
        Classes of your own Equinox modules that occur in ``tree``.

    Raises
    ------
    TypeError
        If something in ``tree`` is of another class, such as a function, or is a
        distribution that does not keep its arguments: its place is named. If something
        is traced, ``path`` is not a path, or ``classes`` are not classes of Equinox
        modules.
    ValueError
        If something could not be loaded again, such as a distribution whose parameters
        its constructor refuses, or if two classes have one name.
    OSError
        If the file cannot be written; a file that was there is not touched then.

    Notes
    -----
    - The file is an ``.npz`` archive, whatever its name: each array by its place in the
      tree, such as ``tree.energy.coefficients``, and a header in JSON with the classes,
      static values such as the ends of grids, shapes, and versions. It ends with a
      checksum of all its bytes.
    - A fit with code in it cannot be saved as a whole. Of a :class:`MarginalFit` save
      ``fit.prior``, of a guide or of a model of your own the parameters. To continue
      training from where it stopped, use :class:`Checkpoint`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(
    ...     kaem.BSpline(-1.0, 3.0, 4), jnp.array([0.0, 1.0, 2.0, 0.0])
    ... )
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "effects.npz")
    ...     kaem.save(path, {"prior": prior, "source": "trial of 2019"})
    ...     saved = kaem.load(path)
    >>> saved["source"], bool(saved["prior"].log_prob(0.5) == prior.log_prob(0.5))
    ('trial of 2019', True)
    """
    path = as_path("path", path)
    registry = Registry(classes)
    arrays: dict[str, Any] = {}
    description = describe(tree, _ROOT, arrays, registry)
    described = {name: describe_array(name, a) for name, a in arrays.items()}
    stored = {name: to_stored(name, a) for name, a in arrays.items()}
    try:
        _build(description, _ROOT, StoredArrays(described, stored), registry)
    except ValueError as error:
        raise ValueError(f"tree could not be loaded again: {error}.") from error
    write_arrays(path, {_ROOT: description, "arrays": described}, stored)


def load(
    path: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    classes: Iterable[type] = (),
) -> Any:
    """Load what :func:`save` wrote, in any process and on any device.

    Nothing in the file is executed: classes are looked up in a list, never imported by
    a name in the file.

    Parameters
    ----------
    path
        A file of :func:`save`.
    dtype
        Floating-point format for all real JAX arrays; ``None`` keeps that of each.
    classes
        Classes of your own Equinox modules, as given to :func:`save`.

    Returns
    -------
    Any
        The tree, with arrays on the default device.

    Raises
    ------
    TypeError
        If ``path`` is not a path, or ``classes`` are not classes of Equinox modules.
    ValueError
        If the file is truncated, damaged or changed, is from a newer version, or was
        not written by :func:`save`; if it holds a class that is not known; if a number
        is too large for the precision; if ``dtype`` is not a floating-point format that
        is enabled.
    OSError
        If the file cannot be read.

    Warns
    -----
    UserWarning
        If numbers are rounded because 64-bit formats are not enabled.

    Notes
    -----
    - In the precision in which it was saved, every array and every ``log_prob`` comes
      back bit for bit.
    - Arrays in float32 stay so in a process with float64, where they act as in any
      expression of JAX; ``dtype="float64"`` widens them. Where 64-bit formats are not
      enabled, JAX arrays are rounded to the nearest 32-bit number, with a warning if
      digits are lost, and none if ``dtype="float32"`` asks for it.
    - NumPy's arrays, and static numbers such as the ends of grids, keep all digits.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "basis.npz")
    ...     kaem.save(path, (kaem.Fourier(-1.0, 1.0, 3), jnp.arange(3)))
    ...     kaem.load(path)
    (Fourier(low=-1.0, high=1.0, num_frequencies=3), Array([0, 1, 2], dtype=...))
    """
    path = as_path("path", path)
    registry = Registry(classes)
    dtype = _as_format(dtype)
    try:
        header, stored = read_arrays(path)
    except DamagedFileError as error:
        raise ValueError(
            f"the file {path} is damaged, or was not written by numpyro_kaem: {error}."
        ) from error
    if _ROOT not in header:
        raise ValueError(
            f"the file {path} is a checkpoint of training; use Checkpoint.latest."
        )
    try:
        arrays = StoredArrays(header.get("arrays"), stored, dtype)
        tree = _build(header[_ROOT], _ROOT, arrays, registry)
        if arrays.left:
            raise ValueError(f"{sorted(arrays.left)} are not used")
    except ValueError as error:
        raise ValueError(f"the file {path} cannot be loaded: {error}.") from error
    if arrays.num_rounded:
        warnings.warn(
            f"{arrays.num_rounded} arrays of {path} were rounded to 32 bits; call "
            "numpyro.enable_x64() before loading to keep all digits, or pass "
            "dtype='float32'.",
            UserWarning,
            stacklevel=2,
        )
    return tree


def _as_format(dtype: Any) -> Any:
    """Convert to a floating-point format that is enabled."""
    if dtype is None:
        return None
    try:
        wanted = jnp.dtype(dtype)
    except TypeError:
        wanted = None
    if wanted is None or not jnp.issubdtype(wanted, jnp.floating):
        raise ValueError(
            f"dtype must be a floating-point format such as 'float32', got {dtype!r}."
        )
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"dtype must be enabled, got {wanted}; call numpyro.enable_x64() first."
        )
    return wanted


# --- values as JSON, and back --------------------------------------------------------


def describe(
    value: Any, name: str, arrays: dict[str, Any], registry: Registry, depth: int = 0
) -> Any:
    """Describe a value by what JSON can hold, and add its arrays to ``arrays``."""
    # Numbers, text and None stand for themselves; all else is a dictionary of ``kind``
    # and ``parts``.
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"tree must be nested at most {_MAX_DEPTH} deep, got more at {name[:80]}."
        )

    def part(value: Any, name: str) -> Any:
        return describe(value, name, arrays, registry, depth + 1)

    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else _node("float", repr(value))
    if is_array(value):
        arrays[name] = value
        return _node("array", name)
    if type(value) in (tuple, list):
        entries = [part(v, f"{name}[{i}]") for i, v in enumerate(value)]
        return _node(type(value).__name__, entries)
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{name} must have names as keys, got {key!r}.")
        return _node("dict", {k: part(v, f"{name}[{k!r}]") for k, v in value.items()})
    constant = _constant(value)
    if constant is not None:
        return _node("constant", constant)
    kind = registry.of(value)
    if kind is None:
        raise TypeError(f"{name} cannot be saved: {_advice(value)}")
    try:
        parts = kind.describe(value)
    except TypeError as error:
        raise TypeError(f"{name} cannot be saved: {error}.") from error
    return _node(kind.name, {k: part(v, f"{name}.{k}") for k, v in parts.items()})


def _node(kind: str, parts: Any) -> dict[str, Any]:
    return {"kind": kind, "parts": parts}


def _constant(value: Any) -> str | None:
    """Name of a function or constraint."""
    is_constraint = isinstance(value, constraints.ParameterFreeConstraint)
    for name, constant in CONSTANTS.items():
        # A constraint is not the same object after a transformation of its tree.
        if value is constant or (is_constraint and type(value) is type(constant)):
            return name
    return None


def _advice(value: Any) -> str:
    """Say what to do about a value of an unknown class."""
    cls = type(value)
    if isinstance(value, eqx.Module):
        return (
            f"its class {cls.__qualname__} is not one of numpyro_kaem's; pass "
            f"classes=[{cls.__qualname__}] to save and to load."
        )
    if isinstance(value, jax.tree_util.Partial) or cls.__name__ == "function":
        return (
            f"a file holds no code, got the function {value!r}; make it an Equinox "
            "module and pass its class, or save the parts without it."
        )
    return f"a file holds no {cls.__module__}.{cls.__qualname__}; save its parts."


def _build(
    node: Any, name: str, arrays: StoredArrays, registry: Registry, depth: int = 0
) -> Any:
    """Inverse of :func:`describe`."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    if node is None or type(node) in (bool, int, str):
        return node
    if type(node) is float and math.isfinite(node):
        return node
    is_node = type(node) is dict and node.keys() == {"kind", "parts"}
    if not is_node or type(node["kind"]) is not str:
        raise ValueError(f"{name} is not a description of a value")
    kind, parts = node["kind"], node["parts"]

    def part(node: Any, name: str) -> Any:
        return _build(node, name, arrays, registry, depth + 1)

    if kind in ("tuple", "list") and type(parts) is list:
        entries = [part(p, f"{name}[{i}]") for i, p in enumerate(parts)]
        return tuple(entries) if kind == "tuple" else entries
    if kind == "dict" and type(parts) is dict:
        return {key: part(p, f"{name}[{key!r}]") for key, p in parts.items()}
    if kind == "array":
        try:
            return arrays.take(parts)
        # Whatever is wrong in a description of an array.
        except Exception as error:
            raise ValueError(f"{name}: {error}") from error
    named = {"float": _FLOATS, "constant": CONSTANTS}
    if kind in named and type(parts) is str and parts in named[kind]:
        return named[kind][parts]
    found = registry.named(kind)
    if found is None or type(parts) is not dict:
        hint = ""
        if kind.startswith("user."):
            hint = f"; pass classes=[{kind.removeprefix('user.')}] to load"
        elif kind.startswith("optax."):
            hint = "; it needs optax"
        raise ValueError(
            f"{name} is of a class that this version cannot load, {kind!r}{hint}"
        )
    values = {key: part(p, f"{name}.{key}") for key, p in parts.items()}
    try:
        return found.build(values)
    # The constructors of other libraries raise whatever their code runs into.
    except Exception as error:
        raise ValueError(f"{name} has parts that do not fit: {error}") from error
