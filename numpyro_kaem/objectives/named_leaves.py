"""Names for the arrays of a pytree, the same in every process."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpyro.distributions as dist
from jax.example_libraries.optimizers import (
    JoinPoint,
    OptimizerState,
    unpack_optimizer_state,
)

__all__ = ["NamedLeaves", "name_leaves"]


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
    >>> from numpyro_kaem.objectives.named_leaves import name_leaves
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
