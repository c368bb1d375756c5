"""What a training is determined by, in a form that a checkpoint can keep."""

import dataclasses
import hashlib
import types
from collections.abc import Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.infer.elbo import ELBO

from numpyro_kaem.files.container import is_key
from numpyro_kaem.training.checkpoint import name_leaves

__all__ = ["differences", "fingerprint"]


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
    >>> from numpyro_kaem.training.fingerprint import fingerprint
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
        _describe(part, name, found, set())
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


def _describe(value: Any, name: str, found: dict[str, str], seen: set[int]) -> None:
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
            _describe(value[key], f"{name}.{key}", found, seen)
    elif isinstance(value, tuple | list):
        found[name] = f"{len(value)} entries"
        for i, entry in enumerate(value):
            _describe(entry, f"{name}[{i}]", found, seen)
    elif isinstance(value, partial):
        content = (value.func, value.args, value.keywords)
        _describe(content, name, found, seen)
    elif isinstance(value, dist.Distribution):
        _describe_law(value, name, found)
    elif isinstance(value, eqx.Module | ELBO) or dataclasses.is_dataclass(value):
        found[name] = type(value).__qualname__
        for field in sorted(vars(value)):
            _describe(vars(value)[field], f"{name}.{field}", found, seen)
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
        _describe(contents[variable], f"{name}.{variable}", found, seen)


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
