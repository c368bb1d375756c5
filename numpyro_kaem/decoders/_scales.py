"""Mean squares under a standard Normal law, by which layers start."""

from collections.abc import Callable
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["mean_square", "normal_points"]

_NUM_POINTS = 512


def normal_points() -> jax.Array:
    """Points of equal mass under a standard Normal law, shape ``(num_points,)``."""
    masses = (np.arange(_NUM_POINTS) + 0.5) / _NUM_POINTS
    points = np.vectorize(NormalDist().inv_cdf)(masses)
    return jnp.asarray(points, jnp.result_type(float))


def mean_square(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Mean square of an elementwise function of a standard Normal number."""
    return jnp.mean(jnp.square(function(normal_points())))
