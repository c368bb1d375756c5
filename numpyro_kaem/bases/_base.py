"""The interface of a univariate basis."""

import copy
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from numpyro_kaem._checks import Grid, GridLike, as_grid, as_real

__all__ = ["AbstractBasis", "on_grid", "on_unit_grid"]


class AbstractBasis(eqx.Module):
    r"""Features of a scalar on the grid :math:`[l, h]`.

    .. math::

        \phi(z) = \bigl(\phi_1(s), \dots, \phi_G(s)\bigr), \qquad
        s = \mathrm{clip}\Bigl(\frac{z - l}{h - l}, 0, 1\Bigr).

    A subclass supplies ``num_features``, ``unit_features`` and ``panel_breaks``; it
    may override ``unit_combine`` where a sum of features has a shorter way than
    through the features.

    Parameters
    ----------
    low, high
        Ends of the grid, in units of ``z``; static. Numbers, or lists or arrays with
        one grid per column, which broadcast against each other to ``grid_shape``.

    Raises
    ------
    TypeError
        If an end of the grid is not a real number, or is traced.
    ValueError
        If an end is not finite, if ``low`` is not less than ``high``, or if their
        shapes do not broadcast. Also on a call, if the grid is too narrow or too wide
        for the floating-point format of ``z``.

    Notes
    -----
    Results have the floating-point format of the input; integers become the default
    format. As ``s`` has no units, one constant matrix of features at fixed points of
    the unit interval serves every column.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.bases import AbstractBasis
    >>> class Parabola(AbstractBasis):
    ...     @property
    ...     def num_features(self):
    ...         return 2
    ...
    ...     @property
    ...     def panel_breaks(self):
    ...         return (0.0, 0.5, 1.0)
    ...
    ...     def unit_features(self, s):
    ...         return jnp.stack([s, s**2], axis=-1)
    >>> basis = Parabola(low=1.0, high=[3.0, 5.0])
    >>> basis.grid_shape
    (2,)
    >>> print(basis(jnp.array([2.0, 2.0])))
    [[0.5    0.25  ]
     [0.25   0.0625]]
    """

    low: Grid = eqx.field(static=True)
    """Lower ends of the grid: a float, or nested tuples of floats."""
    high: Grid = eqx.field(static=True)
    """Upper ends of the grid, of the same shape."""

    def __init__(self, low: GridLike, high: GridLike) -> None:
        self.low, self.high = as_grid(low, high)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Shape of the columns that have a grid of their own; ``()`` for one grid."""
        return np.shape(self.low)

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Number of features."""

    @property
    @abstractmethod
    def panel_breaks(self) -> tuple[float, ...]:
        """Breaks, from 0 to 1, between which exponentials of features are smooth.

        A composite Gauss rule on these panels integrates the exponential of a sum of
        features.
        """

    @abstractmethod
    def unit_features(
        self, s: Real[ArrayLike, " *shape"]
    ) -> Float[Array, " *shape features"]:
        """Features at ``s`` in [0, 1], shape ``s.shape + (num_features,)``."""

    def unit_combine(
        self, s: Real[ArrayLike, "..."], coefficients: Real[ArrayLike, "... features"]
    ) -> Float[Array, "..."]:
        """Sum of features at ``s`` in [0, 1] times coefficients.

        Shapes ``(...,)`` and ``batch_shape + (num_features,)`` give the broadcast of
        the first and ``batch_shape``.

        Raises
        ------
        ValueError
            If the last axis of ``coefficients`` is not of size ``num_features``.
        """
        s, coefficients = self._align(s, coefficients)
        return jnp.sum(self.unit_features(s) * coefficients, axis=-1)

    def to_unit(self, z: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Position in the grid, in [0, 1], of shape broadcast(z.shape, grid_shape).

        Raises
        ------
        ValueError
            If the ends of the grid, rounded to the format of ``z``, have no positive
            and finite distance.
        """
        z = as_float(z, "z")
        low, high = self.ends(z.dtype)
        # The width from the rounded ends, so that they map to exactly 0 and 1.
        ndim = max(z.ndim, low.ndim)
        z, start, width = (with_ndim(a, ndim) for a in (z, low, high - low))
        return jnp.clip((z - start) / width, 0.0, 1.0)

    def ends(self, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the grid in a floating-point format, each ``grid_shape``.

        Raises
        ------
        ValueError
            If the width of the grid is zero or infinite in that format.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            low, high = np.asarray(self.low, dtype), np.asarray(self.high, dtype)
            width = high - low
        if not np.all((width > 0) & np.isfinite(width)):
            raise ValueError(
                f"low={self.low} and high={self.high} must differ by a positive, "
                f"finite number in {np.dtype(dtype)}, got {width}; use a wider format, "
                "or shift and scale z."
            )
        return low, high

    def __call__(self, z: Real[ArrayLike, "..."]) -> Float[Array, "... features"]:
        """Features at ``z``, shape broadcast(z.shape, grid_shape) + (num_features,)."""
        return self.unit_features(self.to_unit(z))

    def _align(
        self, s: Real[ArrayLike, "..."], coefficients: Real[ArrayLike, "... features"]
    ) -> tuple[Float[Array, "..."], Float[Array, "... features"]]:
        """Arrays of equal rank, not counting the axis of features."""
        s, coefficients = as_float(s), as_float(coefficients, "coefficients")
        if coefficients.ndim == 0 or coefficients.shape[-1] != self.num_features:
            raise ValueError(
                "the last axis of coefficients must have one entry for each of the "
                f"{self.num_features} features, got shape {coefficients.shape}."
            )
        ndim = max(s.ndim, coefficients.ndim - 1)
        return with_ndim(s, ndim), with_ndim(coefficients, ndim + 1)


def on_unit_grid(basis: AbstractBasis) -> AbstractBasis:
    """Return the same features on the grid [0, 1], so that compiled code is shared.

    Examples
    --------
    >>> from numpyro_kaem.bases import BSpline, on_unit_grid
    >>> on_unit_grid(BSpline(low=-4.0, high=[3.0, 5.0], num_basis=8))
    BSpline(low=0.0, high=1.0, num_basis=8, degree=3)
    """
    return _with_ends(basis, 0.0, 1.0)


def on_grid(basis: AbstractBasis, low: GridLike, high: GridLike) -> AbstractBasis:
    """Return the same features on another grid."""
    return _with_ends(basis, *as_grid(low, high))


def _with_ends(basis: AbstractBasis, low: Grid, high: Grid) -> AbstractBasis:
    basis = copy.copy(basis)
    for name, value in (("low", low), ("high", high)):
        object.__setattr__(basis, name, value)
    return basis


def as_float(value: Real[ArrayLike, "..."], name: str = "s") -> Float[Array, "..."]:
    """Convert to an array of the same floating-point format, or of the default one."""
    array = as_real(name, value, or_bool=True)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return array.astype(jnp.result_type(float))


def with_ndim(array: Any, ndim: int) -> Array:
    """Prepend axes of size one: no function here relies on implicit rank promotion."""
    return jnp.asarray(array).reshape((1,) * (ndim - np.ndim(array)) + np.shape(array))


def uniform_breaks(num_panels: int) -> tuple[float, ...]:
    """Divide [0, 1] into ``num_panels`` equal panels, but at least four."""
    num_panels = max(4, num_panels)
    return tuple(i / num_panels for i in range(num_panels + 1))
