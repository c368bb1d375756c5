"""One layer of a Kolmogorov-Arnold network."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, check_key
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.decoders._checks import as_latents, as_name
from numpyro_kaem.decoders._scales import mean_square, normal_points
from numpyro_kaem.energy import BASE_ACTIVATIONS, Energy

__all__ = ["KANLayer"]


class KANLayer(eqx.Module):
    r"""Sums of univariate functions, one of each input for each output.

    .. math::

        y_j = \sum_i \Bigl( w_{ji}\,\mathrm{act}(x_i)
              + \sum_g c_{jig}\,\phi_g\bigl(\mathrm{clip}(x_i, l, h)\bigr) \Bigr),

    where :math:`[l, h]` is the grid of the basis. Outside it the expansion stays
    constant, and the base activation carries on.

    Parameters
    ----------
    basis
        Features :math:`\phi`, with one grid, or one for each input.
    coefficients
        Weights :math:`c`, shape ``(num_outputs, num_inputs, basis.num_features)``.
    base_weight
        Weights :math:`w` of the base activation, shape ``(num_outputs, num_inputs)``.
    base_activation
        Name of the base activation, one of those of :class:`Energy`.

    Raises
    ------
    TypeError
        If ``basis`` is not a basis, or coefficients or weights are not real numbers.
    ValueError
        If shapes do not match, if a concrete coefficient or weight is not finite, or if
        the name of the activation is not known.

    Notes
    -----
    - The expansion is one matrix product over inputs and features together: memory
      grows with points times inputs times features, never with outputs as well.
    - Products have JAX's default precision, which accelerators may round; see
      :func:`jax.default_matmul_precision`.
    - The leaves are ``basis.bandwidth``, if the basis has one, ``coefficients`` and
      ``base_weight``, in this order.

    References
    ----------
    Liu et al. (2024), "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756, equations
    (2.10) to (2.12).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> from numpyro_kaem.decoders import KANLayer
    >>> basis = kaem.BSpline(low=1.0, high=3.0, num_basis=2, degree=1)
    >>> coefficients = jnp.array([[[0.0, 4.0], [1.0, 1.0]]])
    >>> layer = KANLayer(basis, coefficients, jnp.zeros((1, 2)))
    >>> print(layer(jnp.array([[2.0, 0.0], [9.0, 0.0]])))
    [[3.]
     [5.]]
    """

    basis: AbstractBasis
    """Univariate features."""
    coefficients: jax.Array
    """Weights of the features, shape ``(num_outputs, num_inputs, num_features)``."""
    base_weight: jax.Array
    """Weights of the base activation, shape ``(num_outputs, num_inputs)``."""
    base_activation: str = eqx.field(static=True)
    """Name of the base activation."""

    def __init__(
        self,
        basis: AbstractBasis,
        coefficients: ArrayLike,
        base_weight: ArrayLike,
        base_activation: str = "silu",
    ) -> None:
        # Every edge is an energy: the same checks serve both.
        edges = Energy(basis, coefficients, base_weight, base_activation)
        coefficients, base_weight = edges.coefficients, edges.base_weight
        if coefficients.ndim != 3:
            raise ValueError(
                "coefficients must have shape (num_outputs, num_inputs, "
                f"{basis.num_features}), got {coefficients.shape}."
            )
        shape = coefficients.shape[:2]
        if base_weight.shape != shape:
            raise ValueError(
                f"base_weight must have shape (num_outputs, num_inputs) = {shape}, got "
                f"{base_weight.shape}."
            )
        _check_grid(basis, shape[1])
        self.basis = basis
        self.coefficients = coefficients
        self.base_weight = base_weight
        self.base_activation = base_activation

    @classmethod
    def init(
        cls,
        key: jax.Array,
        basis: AbstractBasis,
        num_inputs: int,
        num_outputs: int,
        base_activation: str = "silu",
    ) -> "KANLayer":
        r"""Random layer to start training from, which keeps the variance of its inputs.

        For independent standard Normal inputs, the mean square of an output, over
        inputs and weights, is one: half of it from the base activation, with
        :math:`w \sim \text{Normal}(0, 1 / (2 n\,E[\mathrm{act}^2]))` for :math:`n`
        inputs, and half from the expansion. Coefficients are Normal, made orthogonal to
        :math:`E[\phi]`, so that no expansion starts with an offset.

        Parameters
        ----------
        key
            Random key.
        basis
            Features, with one grid, or one for each input.
        num_inputs, num_outputs
            Sizes of the layer.
        base_activation
            Name of the base activation.

        Returns
        -------
        KANLayer
            With coefficients of shape ``(num_outputs, num_inputs, num_features)``. They
            are zero where features hardly vary under a standard Normal law, as on a
            grid far from the origin.

        Raises
        ------
        TypeError
            If ``basis`` is not a basis, or a size is not an integer.
        ValueError
            If a size is not positive, the name of the activation is not known, or the
            grid is neither one nor one for each input.

        Examples
        --------
        >>> import jax
        >>> import numpyro_kaem as kaem
        >>> from numpyro_kaem.decoders import KANLayer
        >>> layer = KANLayer.init(jax.random.key(0), kaem.RBF(-3.0, 3.0, 8), 5, 2)
        >>> layer.coefficients.shape
        (2, 5, 8)
        """
        check_key(key, "key")
        num_inputs = as_count("num_inputs", num_inputs)
        num_outputs = as_count("num_outputs", num_outputs)
        if not isinstance(basis, AbstractBasis):
            raise TypeError(
                "basis must be a basis such as numpyro_kaem.RBF(low, high, num_basis), "
                f"got {type(basis).__name__}."
            )
        as_name("base_activation", base_activation, BASE_ACTIVATIONS)
        _check_grid(basis, num_inputs)
        coefficients, base_weight = _initial(
            key, basis, num_inputs, num_outputs, base_activation
        )
        return cls(basis, coefficients, base_weight, base_activation)

    @property
    def num_inputs(self) -> int:
        """Number of inputs."""
        return self.coefficients.shape[-2]

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return self.coefficients.shape[-3]

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Layer: ``(*batch, num_inputs)`` -> ``(*batch, num_outputs)``."""
        return _evaluate(self, as_latents(x, self.num_inputs, self.coefficients.dtype))

    def refit(self, basis: AbstractBasis) -> "KANLayer":
        """Transfer to another basis or grid by least squares.

        Every expansion is fitted for itself, as :meth:`Energy.refit` does; base weights
        stay.

        Parameters
        ----------
        basis
            The new basis, with one grid, or one for each input.

        Returns
        -------
        KANLayer
            On ``basis``.

        Raises
        ------
        TypeError
            If ``basis`` is not a basis.
        ValueError
            If its grid is neither one nor one for each input.
        """
        if not isinstance(basis, AbstractBasis):
            raise TypeError(f"basis must be a basis, got {type(basis).__name__}.")
        _check_grid(basis, self.num_inputs)
        coefficients = _refit(Energy(self.basis, self.coefficients), basis)
        return KANLayer(basis, coefficients, self.base_weight, self.base_activation)


def _check_grid(basis: AbstractBasis, num_inputs: int) -> None:
    if basis.grid_shape not in ((), (num_inputs,)):
        raise ValueError(
            f"basis must have one grid, or one for each of the {num_inputs} inputs, "
            f"got grid shape {basis.grid_shape}."
        )


@jax.jit
def _evaluate(layer: KANLayer, x: jax.Array) -> jax.Array:
    # Sizes in full, because those of an empty batch cannot be inferred.
    size = layer.num_inputs * layer.basis.num_features
    features = layer.basis(x).reshape(*x.shape[:-1], size)
    coefficients = layer.coefficients.reshape(layer.num_outputs, size)
    base = BASE_ACTIVATIONS[layer.base_activation](x) @ layer.base_weight.T
    return features @ coefficients.T + base


@jax.jit
def _refit(expansion: Energy, basis: AbstractBasis) -> jax.Array:
    return expansion.refit(basis).coefficients


@partial(jax.jit, static_argnames=("num_inputs", "num_outputs", "base_activation"))
def _initial(
    key: jax.Array,
    basis: AbstractBasis,
    num_inputs: int,
    num_outputs: int,
    base_activation: str,
) -> tuple[jax.Array, jax.Array]:
    """Coefficients and base weights of :meth:`KANLayer.init`."""
    features = basis(normal_points()[:, None])
    mean = jnp.mean(features, axis=0)
    square = jnp.sum(mean**2, axis=-1, keepdims=True)
    square = jnp.where(square > 0, square, 1)

    def without_mean(a: jax.Array) -> jax.Array:
        return a - mean * jnp.sum(a * mean, axis=-1, keepdims=True) / square

    # All numbers in one draw: compiling the generator takes longer than all the rest.
    shape = (num_outputs, num_inputs, basis.num_features + 1)
    draws = jax.random.normal(key, shape)
    coefficients, base_weight = without_mean(draws[..., :-1]), draws[..., -1]
    # The mean square of an expansion whose coefficients have variance one.
    total = jnp.mean(jnp.sum(features**2, axis=-1), axis=0)
    varying = jnp.mean(jnp.sum(without_mean(features) ** 2, axis=-1), axis=0)
    # What rounding leaves of features that do not vary must not be divided by.
    varies = varying > 1e-3 * total
    varying = jnp.where(varies, varying, 1)
    scale = jnp.where(varies, (2 * num_inputs * varying) ** -0.5, 0)
    base_square = mean_square(BASE_ACTIVATIONS[base_activation])
    return (
        coefficients * scale[:, None],
        base_weight * (2 * num_inputs * base_square) ** -0.5,
    )
