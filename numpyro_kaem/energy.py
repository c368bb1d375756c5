"""Energies: a function on one edge of a Kolmogorov-Arnold network."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import (
    as_name,
    as_positive,
    as_real,
    as_sample_shape,
    check_key,
)
from numpyro_kaem.bases import AbstractBasis, on_unit_grid

__all__ = ["BASE_ACTIVATIONS", "Energy", "UnitGridEnergy"]

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


_POLYNOMIAL_ACTIVATIONS = ("identity", "square")
# Where the other activations bend: panels are split there when they are coarser.
_BENDS = np.array([-16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0])


class UnitGridEnergy(eqx.Module):
    """Energy with features on [0, 1] and its grid as two arrays.

    Compiled code then serves every grid. ``low`` and ``high`` have the shape
    ``grid_shape``; the rest is as in :class:`Energy`.
    """

    basis: AbstractBasis
    coefficients: jax.Array
    base_weight: jax.Array | None
    base_activation: str = eqx.field(static=True)
    low: jax.Array
    high: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Broadcast of the shapes of the coefficients, the grid and the weight."""
        return _batch_shape(self, np.shape(self.low))

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

    def from_unit(self, s: jax.Array) -> jax.Array:
        """Latent value at a unit position, shape broadcast(s.shape, grid_shape)."""
        low, high = self.ends(s.dtype)
        return low * (1 - s) + high * s

    def at_shared(self, s: jax.Array) -> jax.Array:
        """Energy at the same unit positions of every grid, by one matrix product.

        ``(num_points,)`` -> ``(num_points, *batch_shape)``.
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

    def _with_base(self, spline: jax.Array, z: jax.Array) -> jax.Array:
        if self.base_weight is None:
            return spline
        activation = BASE_ACTIVATIONS[self.base_activation]
        return spline + self.base_weight * activation(jnp.clip(z, *self.ends(z.dtype)))


def _batch_shape(energy: Any, grid_shape: tuple[int, ...]) -> tuple[int, ...]:
    return jnp.broadcast_shapes(
        np.shape(energy.coefficients)[:-1],
        grid_shape,
        np.shape(getattr(energy.basis, "bandwidth", 0.0)),
        np.shape(0.0 if energy.base_weight is None else energy.base_weight),
    )


@jax.jit
def _evaluate(energy: UnitGridEnergy, z: jax.Array) -> jax.Array:
    """Compiled once for all grids of a shape, not once for each operation."""
    return energy(z)


class Energy(eqx.Module):
    r"""Energy of a scalar: a basis expansion plus an optional base activation.

    .. math::

        f(z) = w\,\mathrm{act}(z') + \sum_g c_g\,\phi_g(z'), \qquad
        z' = \mathrm{clip}(z, l, h),

    where :math:`[l, h]` is the grid of the basis: outside it the energy is constant.

    Parameters
    ----------
    basis
        Features :math:`\phi`, such as :class:`~numpyro_kaem.RBF`.
    coefficients
        Weights :math:`c`, shape ``(*batch_shape, basis.num_features)``; any finite
        numbers.
    base_weight
        Weight :math:`w` of the base activation, any shape that broadcasts to
        ``batch_shape``; ``None`` leaves the base activation out.
    base_activation
        Name of the base activation, one of ``"silu"``, ``"gelu"``, ``"softplus"``,
        ``"tanh"``, ``"relu"``, ``"identity"`` and ``"square"``; it acts on ``z`` in its
        own units.

    Raises
    ------
    TypeError
        If ``basis`` is not a basis, or coefficients or weight are not real numbers.
    ValueError
        If the last axis of ``coefficients`` is not ``basis.num_features``, if shapes do
        not broadcast, if a concrete coefficient or weight is not finite, or if the name
        of the activation is not known.

    Notes
    -----
    The leaves are ``basis.bandwidth``, ``coefficients`` and ``base_weight``, in this
    order. The grid and the name of the activation are static. ``batch_shape`` is the
    broadcast of the shapes of the coefficients, the grid and the weight.

    References
    ----------
    Liu et al. (2024), "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756, section 2.
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.BSpline(low=1.0, high=5.0, num_basis=3, degree=1)
    >>> energy = kaem.Energy(basis, coefficients=jnp.array([0.0, 2.0, 1.0]))
    >>> print(energy(jnp.array([0.0, 2.0, 3.0, 9.0])))
    [0. 1. 2. 1.]
    """

    basis: AbstractBasis
    """Univariate features."""
    coefficients: jax.Array
    """Weights of the features, shape ``(*batch_shape, num_features)``."""
    base_weight: jax.Array | None
    """Weight of the base activation, or ``None``."""
    base_activation: str = eqx.field(static=True)
    """Name of the base activation."""

    def __init__(
        self,
        basis: AbstractBasis,
        coefficients: ArrayLike,
        base_weight: ArrayLike | None = None,
        base_activation: str = "silu",
    ) -> None:
        _check_basis(basis)
        as_name("base_activation", base_activation, BASE_ACTIVATIONS)
        coefficients = _finite("coefficients", coefficients)
        if coefficients.ndim == 0 or coefficients.shape[-1] != basis.num_features:
            raise ValueError(
                "coefficients must have shape (*batch_shape, "
                f"{basis.num_features}), one for each feature of {type(basis).__name__}"
                f", got shape {coefficients.shape}."
            )
        if base_weight is not None:
            base_weight = _finite("base_weight", base_weight)
        self.basis = basis
        self.coefficients = coefficients
        self.base_weight = base_weight
        self.base_activation = base_activation
        try:
            self.batch_shape  # noqa: B018
        except ValueError:
            shape = getattr(base_weight, "shape", ())
            raise ValueError(
                "the grid, coefficients and base_weight must broadcast to one "
                f"batch_shape, got grid shape {basis.grid_shape}, coefficients "
                f"{coefficients.shape} and base_weight {shape}."
            ) from None

    @classmethod
    def init(
        cls,
        key: jax.Array,
        basis: AbstractBasis,
        batch_shape: tuple[int, ...] = (),
        scale: float = 0.1,
        base_scale: float | None = None,
        base_activation: str = "silu",
    ) -> "Energy":
        """Random energy to start training from, with Normal coefficients.

        Parameters
        ----------
        key
            Random key.
        basis
            Features.
        batch_shape
            Shape of the batch; it must broadcast with the grid's.
        scale
            Standard deviation of the coefficients; 0 gives the flat energy, whose
            density is the reference itself.
        base_scale
            Standard deviation of the base weight; ``None`` leaves the base activation
            out.
        base_activation
            Name of the base activation.

        Raises
        ------
        TypeError
            If an argument is not of its kind, such as a key that is a number.
        ValueError
            If a scale is negative or not finite.

        Examples
        --------
        >>> import jax
        >>> import numpyro_kaem as kaem
        >>> basis = kaem.RBF(-1.0, 3.0, num_basis=8)
        >>> kaem.Energy.init(jax.random.key(0), basis, (5,)).coefficients.shape
        (5, 8)
        """
        for name, value in (("scale", scale), ("base_scale", base_scale)):
            if value is not None:
                as_positive(name, value, or_zero=True)
        check_key(key, "key")
        _check_basis(basis)
        batch_shape = as_sample_shape(batch_shape, "batch_shape")
        coefficient_key, base_key = jax.random.split(key)
        coefficients = scale * jax.random.normal(
            coefficient_key, (*batch_shape, basis.num_features)
        )
        base_weight = (
            None
            if base_scale is None
            else base_scale * jax.random.normal(base_key, batch_shape)
        )
        return cls(basis, coefficients, base_weight, base_activation)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Broadcast of the shapes of the coefficients, the grid and the weight."""
        return _batch_shape(self, self.basis.grid_shape)

    @property
    def dtype(self) -> jnp.dtype:
        """Floating-point format of the coefficients."""
        return jnp.result_type(self.coefficients)

    @property
    def on_unit_grid(self) -> UnitGridEnergy:
        """The same energy with the ends of its grid as arrays."""
        low, high = self.basis.ends(self.dtype)
        return UnitGridEnergy(
            on_unit_grid(self.basis),
            self.coefficients,
            self.base_weight,
            self.base_activation,
            jnp.asarray(low),
            jnp.asarray(high),
        )

    def __call__(self, z: ArrayLike) -> jax.Array:
        """Energy, broadcast: ``(..., *batch_shape)`` -> ``(..., *batch_shape)``."""
        z = as_real("z", z)
        if not jnp.issubdtype(z.dtype, jnp.floating):
            z = z.astype(self.dtype)
        return _evaluate(self.on_unit_grid, z)

    @property
    def unit_breaks(self) -> np.ndarray:
        """Breaks of panels on which the energy is smooth, in unit positions.

        Shape ``(num_breaks,)``, or ``(num_breaks, *grid_shape)`` where the bends of the
        base activation fall elsewhere in each grid.
        """
        breaks = np.asarray(self.basis.panel_breaks)
        if self.base_weight is None or self.base_activation in _POLYNOMIAL_ACTIVATIONS:
            return breaks
        low, high = np.asarray(self.basis.low), np.asarray(self.basis.high)
        kinked = self.base_activation == "relu"
        if not kinked and np.all((high - low) * np.diff(breaks).max() <= 1.0):
            return breaks
        bends = np.zeros(1) if kinked else _BENDS
        bends = (bends.reshape((-1,) + (1,) * low.ndim) - low) / (high - low)
        if low.ndim == 0:
            bends = bends[(bends > 0.0) & (bends < 1.0)]
        breaks = breaks.reshape((-1,) + (1,) * low.ndim)
        breaks = np.broadcast_to(breaks, (breaks.shape[0], *low.shape))
        return np.sort(np.concatenate([breaks, np.clip(bends, 0.0, 1.0)]), axis=0)

    def refit(self, basis: AbstractBasis) -> "Energy":
        """Transfer to another basis or grid by least squares.

        The base activation keeps its weight; the expansion in ``basis`` is fitted to
        the rest, on points that resolve both bases across the new grid, with the
        coefficients of smallest norm. Where the new grid is wider, the constant
        continuation of the old energy is fitted.

        Parameters
        ----------
        basis
            The new basis; its grid shape broadcasts with ``batch_shape``.

        Raises
        ------
        TypeError
            If ``basis`` is not a basis.

        Examples
        --------
        >>> import jax
        >>> import numpy as np
        >>> import numpyro_kaem as kaem
        >>> coarse = kaem.Energy.init(jax.random.key(0), kaem.BSpline(-1.0, 3.0, 8))
        >>> fine = coarse.refit(kaem.BSpline(-1.0, 3.0, 13))
        >>> z = np.linspace(-1.0, 3.0, 50)
        >>> bool(np.max(np.abs(fine(z) - coarse(z))) < 1e-5)
        True
        """
        _check_basis(basis)
        resolution = len(self.basis.panel_breaks) + len(basis.panel_breaks)
        s = jnp.linspace(0.0, 1.0, 8 * resolution, dtype=self.dtype)
        shell = Energy(
            basis,
            jnp.zeros((*self.batch_shape, basis.num_features), self.dtype),
            self.base_weight,
            self.base_activation,
        )
        rank = len(shell.batch_shape)
        z = shell.on_unit_grid.from_unit(s.reshape((-1,) + (1,) * rank))
        target = jnp.broadcast_to(self(z) - shell(z), (len(s), *shell.batch_shape))
        features = basis.unit_features(s)
        solution = jnp.linalg.lstsq(features, target.reshape(len(s), -1))[0]
        coefficients = jnp.moveaxis(
            solution.reshape(basis.num_features, *shell.batch_shape), 0, -1
        )
        return Energy(basis, coefficients, self.base_weight, self.base_activation)


def _check_basis(basis: Any) -> None:
    if not isinstance(basis, AbstractBasis):
        raise TypeError(
            "basis must be a basis such as numpyro_kaem.RBF(low, high, num_basis), "
            f"got {type(basis).__name__}."
        )


def _finite(name: str, value: ArrayLike) -> jax.Array:
    """Convert to a floating-point array; entries that are concrete must be finite."""
    array = as_real(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value)):
        raise ValueError(
            f"{name} must be finite, got {np.sum(~np.isfinite(value))} entries that "
            "are not."
        )
    return array
