"""The description of a tree in the header of its file, and the tree from it."""

import math
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
from numpyro.distributions import constraints

from numpyro_kaem.files.arrays import LoadedArrays, is_array
from numpyro_kaem.files.kinds import Kind, module_kind
from numpyro_kaem.files.library_kinds import CONSTANTS, LIBRARY_KINDS, optax_kinds
from numpyro_kaem.files.package_kinds import PACKAGE_KINDS

__all__ = ["Registry", "build", "describe"]

_MAX_DEPTH = 100
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Registry:
    """The classes that a file may hold.

    Parameters
    ----------
    classes
        Equinox modules of the user, added to those of the package and its libraries.

    Raises
    ------
    TypeError
        If one is not a class of Equinox modules.
    ValueError
        If two have one name.
    """

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._kinds = {**LIBRARY_KINDS, **PACKAGE_KINDS}
        for cls in classes:
            if not (isinstance(cls, type) and issubclass(cls, eqx.Module)):
                raise TypeError(
                    f"classes must be classes of Equinox modules, got {cls!r}."
                )
            if cls not in self._kinds:
                self._kinds[cls] = module_kind(cls, name=f"user.{cls.__qualname__}")
        self._named = {kind.name: kind for kind in self._kinds.values()}
        if len(self._named) < len(self._kinds):
            raise ValueError("classes must have different names.")

    def of(self, value: Any) -> Kind | None:
        """Kind of a value; None if its class is unknown."""
        cls = type(value)
        if cls not in self._kinds and cls.__module__.partition(".")[0] == "optax":
            return optax_kinds().get(cls)
        return self._kinds.get(cls)

    def named(self, name: str) -> Kind | None:
        """Kind of a name; None if it is unknown."""
        if name.startswith("optax."):
            return {k.name: k for k in optax_kinds().values()}.get(name)
        return self._named.get(name)


def describe(
    value: Any, name: str, arrays: dict[str, Any], registry: Registry, depth: int = 0
) -> Any:
    """Describe a value by what JSON can hold, and collect its arrays.

    Numbers, text and None stand for themselves; all else is a dictionary of ``kind``
    and ``parts``.

    Parameters
    ----------
    value
        What to describe.
    name
        Where it is.
    arrays
        Filled with arrays by name.
    registry
        Classes that may occur.
    depth
        Number of parts that it is inside of.

    Returns
    -------
    Any
        What JSON can hold.

    Raises
    ------
    TypeError
        If something is of a class that is not in the registry.
    ValueError
        If it is nested too deeply, as a list that holds itself is.
    """
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
    if isinstance(value, jax.tree_util.Partial) or type(value).__name__ == "function":
        return (
            f"a file holds no code, got the function {value!r}; make it an Equinox "
            "module and pass its class, or save the parts without it."
        )
    return f"a file holds no {cls.__module__}.{cls.__qualname__}; save its parts."


def build(
    node: Any, name: str, arrays: LoadedArrays, registry: Registry, depth: int = 0
) -> Any:
    """Inverse of :func:`describe`.

    Parameters
    ----------
    node
        What JSON held.
    name
        Where it is; for messages.
    arrays
        Arrays of the file.
    registry
        Classes that may occur.
    depth
        Number of parts that it is inside of.

    Returns
    -------
    Any
        The value.

    Raises
    ------
    ValueError
        If it is not a description of a value, or its parts do not fit together.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    if node is None or type(node) in (bool, int, str):
        return node
    if type(node) is float and math.isfinite(node):
        return node
    if type(node) is not dict or node.keys() != {"kind", "parts"}:
        raise ValueError(f"{name} is not a description of a value")
    kind, parts = node["kind"], node["parts"]
    if type(kind) is not str:
        raise ValueError(f"{name} is not a description of a value")

    def part(node: Any, name: str) -> Any:
        return build(node, name, arrays, registry, depth + 1)

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
        raise ValueError(
            f"{name} is of a class that this version cannot load, {kind!r}{_hint(kind)}"
        )
    values = {key: part(p, f"{name}.{key}") for key, p in parts.items()}
    try:
        return found.build(values)
    # The constructors of other libraries raise whatever their code runs into.
    except Exception as error:
        raise ValueError(f"{name} has parts that do not fit: {error}") from error


def _hint(kind: str) -> str:
    if kind.startswith("user."):
        return f"; pass classes=[{kind.removeprefix('user.')}] to load"
    if kind.startswith("optax."):
        return "; it needs optax"
    return ""
