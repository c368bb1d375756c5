"""Coordinates in which energies are orthonormal and their roughness is diagonal."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem._quadrature import gauss_legendre, nodes_per_panel
from numpyro_kaem.bases import AbstractBasis, BSpline, on_unit_grid
from numpyro_kaem.references import concretely

__all__ = ["ROUGHNESS_ORDER", "Design", "make_design"]

ROUGHNESS_ORDER = 3
"""Order of the derivative of the energy whose square is penalised."""


class Design(NamedTuple):
    """Coordinates for the energies of a basis on the unit interval.

    The coefficients are ``transform @ coordinates``. Then the integral of the squared
    energy, less its mean, is the sum of squared coordinates, and the roughness is the
    sum of ``roughness`` times the squared coordinates. Constants, and directions lost
    to rounding, have no coordinate: their columns of ``transform`` are 0.
    """

    centre: np.ndarray
    """Mean of each feature over the grid, shape ``(num_features,)``."""
    transform: np.ndarray
    """Coefficients of unit coordinates, shape ``(num_features, num_features)``."""
    roughness: np.ndarray
    """Roughness of unit coordinates, shape ``(num_features,)``."""
    used: np.ndarray
    """Which coordinates there are, shape ``(num_features,)``."""

    def to_jax(self, dtype: Any) -> "Design":
        """Copy into JAX arrays, the numbers of the given type."""
        parts = (jnp.asarray(part, dtype) for part in self[:3])
        return Design(*parts, used=jnp.asarray(self.used))


def make_design(basis: AbstractBasis, dtype: Any) -> Design:
    """Coordinates for a basis with concrete parameters, in float64 NumPy arrays."""
    leaves, treedef = jax.tree_util.tree_flatten(on_unit_grid(basis))
    return _make_design(treedef, tuple(map(float, leaves)), np.dtype(dtype))


@lru_cache(maxsize=64)
def _make_design(treedef: Any, leaves: tuple[float, ...], dtype: np.dtype) -> Design:
    basis = jax.tree_util.tree_unflatten(treedef, [dtype.type(x) for x in leaves])
    breaks = np.asarray(basis.panel_breaks)
    x, weights = gauss_legendre(nodes_per_panel(np.float64))
    width = np.diff(breaks)[:, None]
    s = (breaks[:-1, None] + width * (x + 1) / 2).reshape(-1)
    weights = (width * weights / 2).reshape(-1)
    with concretely():
        values = np.asarray(_derivative(basis, jnp.asarray(s, dtype), 0), float)
        operator = _roughness_operator(basis, s, weights, dtype)
    num_features = values.shape[1]
    centre = weights @ values
    factor = np.sqrt(weights)[:, None] * (values - centre)
    _, sizes, rows = np.linalg.svd(factor, full_matrices=False)
    kept = sizes > np.sqrt(np.finfo(dtype).eps) * max(sizes.max(), 1e-30)
    white = np.where(kept, rows.T / np.where(kept, sizes, 1), 0)
    # Rotate so that the roughness is diagonal; unused coordinates come last.
    order = np.argsort(~kept, kind="stable")
    white, rank = white[:, order], int(kept.sum())
    _, rough, rotation = np.linalg.svd(operator @ white[:, :rank])
    roughness = np.zeros(num_features)
    roughness[: len(rough)] = rough**2
    transform = np.zeros((num_features, num_features))
    transform[:, :rank] = white[:, :rank] @ rotation.T
    return Design(centre, transform, roughness, np.arange(num_features) < rank)


def _roughness_operator(
    basis: AbstractBasis, s: np.ndarray, weights: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Matrix whose product with coefficients has the roughness as its squared norm."""
    if isinstance(basis, BSpline):
        # Differences of coefficients are defined for every degree.
        order = min(ROUGHNESS_ORDER, basis.num_basis - 1)
        num_cells = basis.num_basis - basis.degree
        differences = np.diff(np.eye(basis.num_basis), order, axis=0)
        return num_cells ** (order - 0.5) * differences
    derivative = _derivative(basis, jnp.asarray(s, dtype), ROUGHNESS_ORDER)
    return np.sqrt(weights)[:, None] * np.asarray(derivative)


@partial(jax.jit, static_argnames="order")
def _derivative(basis: AbstractBasis, s: jax.Array, order: int) -> jax.Array:
    """Differentiate all features, shape ``(num_points, num_features)``."""
    function = basis.unit_features
    for _ in range(order):
        function = _differentiate(function)
    return function(s)


def _differentiate(function: Any) -> Any:
    return lambda s: jax.jvp(function, (s,), (jnp.ones_like(s),))[1]
