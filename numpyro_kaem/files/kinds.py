"""How an object of a class is taken apart by name, and made again from its parts."""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.references import arguments_of

__all__ = ["Kind", "constructor_kind", "law_kind", "module_kind", "record_kind"]

# No name of a field has parentheses.
_COMPLETE = "(complete)"


class Kind(NamedTuple):
    """What a file can hold beside arrays, numbers, text and containers."""

    name: str
    """Name in files."""
    describe: Callable[[Any], dict[str, Any]]
    """From an object to its parts by name."""
    build: Callable[[dict[str, Any]], Any]
    """From the parts to the object; raises if they do not fit."""


def module_kind(
    cls: type, check: Callable[[Any], Any] | None = None, *, name: str | None = None
) -> Kind:
    """Kind of an Equinox module: its fields, without its constructor.

    Modules also hold gradients, moments of an optimiser or batches of modules, which no
    constructor takes. So the file says whether the fields are those of a module that
    can be used, and only then are they checked.

    Parameters
    ----------
    cls
        Class of the module.
    check
        Function of a module that raises if its fields do not fit together.
    name
        Name in files; ``None`` is that of the class in this package.

    Returns
    -------
    Kind
        Of objects of exactly this class.
    """
    names = [field.name for field in dataclasses.fields(cls)]

    def describe(module: Any) -> dict[str, Any]:
        parts = {name: getattr(module, name) for name in names}
        try:
            check_complete(module)
        except Exception:
            # A check evaluates the module with whatever is in it.
            return {**parts, _COMPLETE: False}
        return {**parts, _COMPLETE: True}

    def check_complete(module: Any) -> None:
        _check_fields(cls, {name: getattr(module, name) for name in names})
        if check is not None:
            check(module)

    def build(parts: dict[str, Any]) -> Any:
        _check_names(parts, [*names, _COMPLETE])
        module = object.__new__(cls)
        for name in names:
            object.__setattr__(module, name, parts[name])
        if parts[_COMPLETE] is not False:
            check_complete(module)
        return module

    return Kind(name or f"numpyro_kaem.{cls.__name__}", describe, build)


def record_kind(cls: type, name: str) -> Kind:
    """Kind of a dataclass or named tuple: its fields, of the annotated types."""
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    else:
        names = list(cls._fields)

    def build(parts: dict[str, Any]) -> Any:
        _check_names(parts, names)
        _check_fields(cls, parts)
        return cls(**parts)

    return Kind(name, lambda record: {n: getattr(record, n) for n in names}, build)


def constructor_kind(cls: type, name: str) -> Kind:
    """Kind of an object that keeps the arguments of its constructor."""

    def build(parts: dict[str, Any]) -> Any:
        return cls(**parts)

    return Kind(name, lambda value: arguments_of(value, name), build)


def law_kind(cls: type, name: str) -> Kind:
    """Kind of a distribution that keeps the arguments of its constructor.

    Its ``describe`` raises a TypeError where these do not give the same distribution,
    to the last bit.
    """

    def describe(law: dist.Distribution) -> dict[str, Any]:
        parts = arguments_of(law, cls.__name__)
        if parts.keys() & {"scale_tril", "correlation_cholesky"}:
            # The constructor takes one form of a matrix only.
            parts = {k: v for k, v in parts.items() if not k.endswith("_matrix")}
        if "_validate_args" in vars(law):
            parts["validate_args"] = law._validate_args
        try:
            same = _same_leaves(cls(**parts), law)
        except (TypeError, ValueError):
            same = False
        if not same:
            raise TypeError(
                f"a {cls.__name__} does not keep the numbers that it was made from, "
                f"to the last bit; save its parameters, or a {cls.__base__.__name__}"
            )
        return parts

    return Kind(name, describe, lambda parts: cls(**parts))


def _same_leaves(one: Any, other: Any) -> bool:
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(
        a is b or np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(leaves, others, strict=True)
    )


def _check_names(parts: dict[str, Any], names: list[str]) -> None:
    """Check which parts there are.

    Raises
    ------
    ValueError
        If one is missing or unknown.
    """
    if parts.keys() != set(names):
        raise ValueError(f"expected the parts {sorted(names)}, got {sorted(parts)}")


def _check_fields(cls: type, values: dict[str, Any]) -> None:
    """Check fields against their annotations.

    Raises
    ------
    TypeError
        If one is of another type.
    """
    for name, hint in _hints(cls).items():
        if name in values and not _fits(values[name], hint):
            raise TypeError(
                f"expected {name} of type {hint}, got {values[name]!r} of type "
                f"{type(values[name]).__name__}"
            )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:
        # Annotations that name what only a type checker imports.
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; True where that cannot be told."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1:] == (...,):
            return all(_fits(entry, arguments[0]) for entry in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    hint = origin or hint
    if hint is float:
        return type(value) in (int, float)
    if hint in (bool, int, str):
        return type(value) is hint
    if hint is Callable:
        return callable(value)
    return isinstance(value, hint) if isinstance(hint, type) else True
