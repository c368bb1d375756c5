"""Tangents of trees of which some leaves do not change."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

__all__ = ["all_zero", "instantiate", "is_symbolic"]


def is_symbolic(leaf: Any) -> bool:
    """Whether a tangent is a symbol for zeros."""
    return isinstance(leaf, SymbolicZero)


def all_zero(tree: Any) -> bool:
    """Whether all tangents are."""
    return all(map(is_symbolic, jax.tree_util.tree_leaves(tree, is_leaf=is_symbolic)))


def instantiate(primals: Any, tangents: Any) -> Any:
    """Tangents with zeros in the place of symbols."""
    return jax.tree_util.tree_map(
        lambda x, dot: jnp.zeros_like(x) if is_symbolic(dot) else dot,
        primals,
        tangents,
    )
