"""Energies whose grid is two arrays: what compiled code evaluates."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem.bases import AbstractBasis

__all__ = ["BASE_ACTIVATIONS", "PlacedEnergy"]

BASE_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "identity": lambda z: z,
    "square": jnp.square,
}
"""Base activations by name: static, hashable, and saved as text."""


class PlacedEnergy(eqx.Module):
    """Energy whose grid is two arrays, so that compiled code serves every grid."""

    basis: AbstractBasis
    """Features on the unit interval."""
    coefficients: jax.Array
    """Weights of the features, shape ``(*batch_shape, num_features)``."""
    base_weight: jax.Array | None
    """Weight of the base activation, or ``None``."""
    base_activation: str = eqx.field(static=True)
    """Name of the base activation."""
    low: jax.Array
    """Lower ends of the grid, shape ``grid_shape``."""
    high: jax.Array
    """Upper ends of the grid, the same shape."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Broadcast of the shapes of the coefficients, the grid and the weight."""
        return jnp.broadcast_shapes(
            np.shape(self.coefficients)[:-1],
            np.shape(self.low),
            np.shape(getattr(self.basis, "bandwidth", 0.0)),
            np.shape(0.0 if self.base_weight is None else self.base_weight),
        )

    @property
    def dtype(self) -> jnp.dtype:
        """Floating-point format of the coefficients."""
        return jnp.result_type(self.coefficients)

    def ends(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Return the ends of the grid in a floating-point format."""
        return self.low.astype(dtype), self.high.astype(dtype)

    def __call__(self, z: jax.Array) -> jax.Array:
        """Energy at ``z``: (..., *batch_shape) -> (..., *batch_shape), broadcasting."""
        spline = self.basis.unit_combine(self.to_unit(z), self.coefficients)
        return self._with_base(spline, z)

    def to_unit(self, z: jax.Array) -> jax.Array:
        """Position in the grid, clipped to [0, 1], shape broadcast(z.shape, grid)."""
        low, high = self.ends(z.dtype)
        return jnp.clip((z - low) / (high - low), 0, 1)

    def at_shared(self, s: jax.Array) -> jax.Array:
        """Energy at the same unit positions of every grid, by one matrix product.

        Parameters
        ----------
        s
            Positions in [0, 1], shape ``(num_points,)``.

        Returns
        -------
        Array
            Shape ``(num_points, *batch_shape)``.
        """
        rank = len(self.batch_shape)
        column = jnp.reshape(s, (-1,) + (1,) * rank)
        if np.shape(getattr(self.basis, "bandwidth", 0.0)) != ():
            spline = self.basis.unit_combine(column, self.coefficients)
        else:
            features = self.basis.unit_features(s)
            # Full precision: accelerators round the factors of a product by default.
            spline = jnp.tensordot(
                features, self.coefficients, (-1, -1), precision="highest"
            )
            lead = (1,) * (rank + 1 - spline.ndim)
            spline = jnp.reshape(spline, (s.shape[0], *lead, *spline.shape[1:]))
        values = self._with_base(spline, self.from_unit(column))
        return jnp.broadcast_to(values, (s.shape[0], *self.batch_shape))

    def from_unit(self, s: jax.Array) -> jax.Array:
        """Latent value at a unit position, shape broadcast(s.shape, grid_shape)."""
        low, high = self.ends(s.dtype)
        return low * (1 - s) + high * s

    def _with_base(self, spline: jax.Array, z: jax.Array) -> jax.Array:
        if self.base_weight is None:
            return spline
        activation = BASE_ACTIVATIONS[self.base_activation]
        return spline + self.base_weight * activation(jnp.clip(z, *self.ends(z.dtype)))
