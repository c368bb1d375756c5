"""Kolmogorov-Arnold networks as decoders."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import (
    as_count,
    as_flag,
    as_name,
    as_shape,
    as_vectors,
    check_key,
)
from numpyro_kaem.bases import RBF, AbstractBasis
from numpyro_kaem.energy import BASE_ACTIVATIONS, Energy

__all__ = ["OUTPUT_ACTIVATIONS", "KANDecoder", "KANLayer", "mean_square"]

OUTPUT_ACTIVATIONS: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
}
"""Output activations by name: static, hashable, and saved as text."""


class KANLayer(eqx.Module):
    r"""Sums of univariate functions, one of each input for each output.

    .. math::

        y_j = \sum_i \Bigl( w_{ji}\,\mathrm{act}(x_i)
              + \sum_g c_{jig}\,\phi_g\bigl(\mathrm{clip}(x_i, l, h)\bigr) \Bigr),

    where :math:`[l, h]` is the grid of the basis: outside it the expansion is constant.

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
        If shapes do not match, an array is concrete and not finite, or the name of the
        activation is not known.

    Notes
    -----
    - The expansion is one matrix product over inputs and features together: memory
      grows with points times inputs times features, not with outputs as well.
    - Products have JAX's default precision; see :func:`jax.default_matmul_precision`.

    References
    ----------
    Liu et al. (2024), "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756, equations
    (2.10) to (2.12).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.BSpline(low=1.0, high=3.0, num_basis=2, degree=1)
    >>> coefficients = jnp.array([[[0.0, 4.0], [1.0, 1.0]]])
    >>> layer = kaem.KANLayer(basis, coefficients, jnp.zeros((1, 2)))
    >>> print(layer(jnp.array([[2.0, 0.0], [9.0, 0.0]])))
    [[3.]
     [5.]]
    """

    basis: AbstractBasis
    coefficients: jax.Array
    base_weight: jax.Array
    base_activation: str = eqx.field(static=True)

    def __init__(
        self,
        basis: AbstractBasis,
        coefficients: ArrayLike,
        base_weight: ArrayLike,
        base_activation: str = "silu",
    ) -> None:
        # Every edge is an energy: the same checks serve both.
        edges = Energy(basis, coefficients, base_weight, base_activation)
        if edges.coefficients.ndim != 3:
            raise ValueError(
                "coefficients must have shape (num_outputs, num_inputs, "
                f"{basis.num_features}), got {edges.coefficients.shape}."
            )
        shape, weight = edges.coefficients.shape[:2], jnp.asarray(edges.base_weight)
        if weight.shape != shape:
            raise ValueError(
                f"base_weight must have shape (num_outputs, num_inputs) = {shape}, got "
                f"{weight.shape}."
            )
        _check_basis(basis, shape[1])
        self.basis = basis
        self.coefficients = edges.coefficients
        self.base_weight = weight
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
        inputs, and half from the expansion. Coefficients are Normal and orthogonal to
        :math:`E[\phi]`, so that no expansion starts with an offset, or zero where
        features hardly vary, as on a grid far from the origin.

        Parameters
        ----------
        key, num_inputs, num_outputs
            Random key, and sizes of the layer.
        basis, base_activation
            As for the layer.

        Examples
        --------
        >>> import jax
        >>> import numpyro_kaem as kaem
        >>> basis = kaem.RBF(-3.0, 3.0, 8)
        >>> kaem.KANLayer.init(jax.random.key(0), basis, 5, 2).coefficients.shape
        (2, 5, 8)
        """
        check_key(key, "key")
        num_inputs = as_count("num_inputs", num_inputs)
        num_outputs = as_count("num_outputs", num_outputs)
        as_name("base_activation", base_activation, BASE_ACTIVATIONS)
        _check_basis(basis, num_inputs)
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
        x = as_vectors("x", x, self.num_inputs, self.coefficients.dtype)
        return _evaluate(self, x)

    def refit(self, basis: AbstractBasis) -> "KANLayer":
        """Transfer to another basis or grid by least squares.

        Every expansion is fitted separately, as by :meth:`Energy.refit`; base weights
        stay. The new basis has one grid, or one for each input.
        """
        _check_basis(basis, self.num_inputs)
        coefficients = _refit(Energy(self.basis, self.coefficients), basis)
        return KANLayer(basis, coefficients, self.base_weight, self.base_activation)


def _check_basis(basis: AbstractBasis, num_inputs: int) -> None:
    if not isinstance(basis, AbstractBasis):
        raise TypeError(
            "basis must be a basis such as numpyro_kaem.RBF(low, high, num_basis), "
            f"got {type(basis).__name__}."
        )
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


_NUM_POINTS = 512


def _normal_points() -> jax.Array:
    """Points of equal mass under a standard Normal."""
    masses = (np.arange(_NUM_POINTS) + 0.5) / _NUM_POINTS
    points = np.vectorize(NormalDist().inv_cdf)(masses)
    return jnp.asarray(points, jnp.result_type(float))


def mean_square(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Mean square of an elementwise function of a standard Normal number."""
    return jnp.mean(jnp.square(function(_normal_points())))


@partial(jax.jit, static_argnames=("num_inputs", "num_outputs", "base_activation"))
def _initial(
    key: jax.Array,
    basis: AbstractBasis,
    num_inputs: int,
    num_outputs: int,
    base_activation: str,
) -> tuple[jax.Array, jax.Array]:
    """Coefficients and base weights of :meth:`KANLayer.init`."""
    features = basis(_normal_points()[:, None])
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
    # Features that do not vary leave only rounding, by which nothing is divided.
    varies = varying > 1e-3 * total
    varying = jnp.where(varies, varying, 1)
    scale = jnp.where(varies, (2 * num_inputs * varying) ** -0.5, 0)
    base_square = mean_square(BASE_ACTIVATIONS[base_activation])
    return (
        coefficients * scale[:, None],
        base_weight * (2 * num_inputs * base_square) ** -0.5,
    )


class KANDecoder(eqx.Module):
    r"""Kolmogorov-Arnold network from latents to the parameters of a likelihood.

    With no hidden layer it is the outer sum of the Kolmogorov-Arnold form,

    .. math:: x_j = \sum_q \Phi_{jq}(z_q);

    hidden layers put such sums after one another. Every :math:`\Phi` is an edge
    function of :class:`KANLayer`.

    Parameters
    ----------
    key, num_latents
        Random key, and number of latents.
    output_shape
        Shape of the output without batch, an integer or a tuple; ``()`` for a scalar.
    hidden
        Widths of the hidden layers; ``()`` for none.
    basis
        Features of all layers, or a sequence with a basis for each of the
        ``len(hidden) + 1`` layers; ``None`` is ``RBF(-3.0, 3.0, 8)``. For latents in
        (0, 1) take ``(RBF(0.0, 1.0, 8), RBF(-3.0, 3.0, 8))``.
    layer_norm
        Shift and scale the units of each hidden layer to mean zero and variance one,
        which keeps them in the next grid.
    base_activation, output_activation
        One of those of :class:`Energy`; ``None``, ``"sigmoid"``, ``"tanh"`` or
        ``"softplus"``.

    Raises
    ------
    TypeError
        If a size is not an integer, or a basis not a basis.
    ValueError
        If a size is not positive, bases or grids do not match the layers, a name is not
        known, or ``layer_norm`` meets a hidden layer of a single unit.

    Notes
    -----
    - For independent standard Normal latents every layer starts with outputs of mean
      square one before ``output_activation``; see :meth:`KANLayer.init`.
    - Without an ``output_activation`` outputs have no bounds: for pixels in [0, 1] take
      ``"sigmoid"``.
    - Without ``layer_norm``, units that leave the grid in training keep their base
      activation only; :meth:`refit` moves the grids.
    - A random decoder takes its priors by the names of its leaves, such as
      ``layers[0].coefficients``, through :func:`parameter_priors`.

    References
    ----------
    Liu et al. (2024), "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756.
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> from numpyro.contrib.module import eqx_module
    >>> decoder = kaem.KANDecoder(jax.random.key(0), num_latents=2, output_shape=(8, 8))
    >>> def model(x):
    ...     decode = eqx_module("decoder", decoder)
    ...     with numpyro.plate("images", 5):
    ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ...         return numpyro.sample(
    ...             "x", dist.Normal(decode(z), 0.1).to_event(2), obs=x
    ...         )
    >>> numpyro.handlers.seed(model, rng_seed=0)(None).shape
    (5, 8, 8)
    """

    layers: tuple[KANLayer, ...]
    output_shape: tuple[int, ...] = eqx.field(static=True)
    layer_norm: bool = eqx.field(static=True)
    output_activation: str | None = eqx.field(static=True)

    def __init__(
        self,
        key: jax.Array,
        num_latents: int,
        output_shape: int | tuple[int, ...],
        *,
        hidden: tuple[int, ...] = (64,),
        basis: AbstractBasis | Sequence[AbstractBasis] | None = None,
        layer_norm: bool = False,
        base_activation: str = "silu",
        output_activation: str | None = None,
    ) -> None:
        check_key(key, "key")
        num_latents = as_count("num_latents", num_latents)
        self.output_shape = as_shape("output_shape", output_shape)
        hidden = as_shape("hidden", hidden)
        self.layer_norm = as_flag("layer_norm", layer_norm)
        if self.layer_norm and 1 in hidden:
            raise ValueError(
                "layer_norm needs hidden layers of at least two units, because a "
                f"single one would always be zero, got hidden={hidden}."
            )
        self.output_activation = as_name(
            "output_activation", output_activation, OUTPUT_ACTIVATIONS
        )
        sizes = (num_latents, *hidden, math.prod(self.output_shape))
        basis = RBF(-3.0, 3.0, 8) if basis is None else basis
        bases = _one_per_layer(basis, len(hidden) + 1)
        keys = jax.random.split(key, len(bases))
        layers = zip(keys, bases, sizes[:-1], sizes[1:], strict=True)
        self.layers = tuple(KANLayer.init(*row, base_activation) for row in layers)

    @property
    def num_latents(self) -> int:
        """Number of latents."""
        return self.layers[0].num_inputs

    def __call__(self, z: ArrayLike) -> jax.Array:
        """Decode: ``(*batch, num_latents)`` -> ``(*batch, *output_shape)``."""
        return _decode(self, self._as_latents(z))

    def layer_inputs(self, z: ArrayLike) -> tuple[jax.Array, ...]:
        """Return the inputs of each layer, shapes ``(*batch, num_inputs)``."""
        return _inputs(self, self._as_latents(z))

    def _as_latents(self, z: ArrayLike) -> jax.Array:
        return as_vectors("z", z, self.num_latents, self.layers[0].coefficients.dtype)

    def refit(self, basis: AbstractBasis | Sequence[AbstractBasis]) -> "KANDecoder":
        """Transfer every layer to another basis, or one basis each, by least squares.

        Examples
        --------
        >>> import jax
        >>> import numpy as np
        >>> import numpyro_kaem as kaem
        >>> basis = kaem.BSpline(-4, 4, 7)
        >>> coarse = kaem.KANDecoder(jax.random.key(0), 2, 3, basis=basis)
        >>> fine = coarse.refit(kaem.BSpline(-4, 4, 11))
        >>> z = jax.random.normal(jax.random.key(1), (50, 2))
        >>> bool(np.max(np.abs(fine(z) - coarse(z))) < 1e-4)
        True
        """
        bases = _one_per_layer(basis, len(self.layers))
        pairs = zip(self.layers, bases, strict=True)
        layers = tuple(layer.refit(new) for layer, new in pairs)
        return eqx.tree_at(lambda decoder: decoder.layers, self, layers)


@jax.jit
def _inputs(decoder: KANDecoder, x: jax.Array) -> tuple[jax.Array, ...]:
    inputs = [x]
    for layer in decoder.layers[:-1]:
        x = layer(x)
        if decoder.layer_norm:
            x = jax.nn.standardize(x, axis=-1)
        inputs.append(x)
    return tuple(inputs)


@jax.jit
def _decode(decoder: KANDecoder, x: jax.Array) -> jax.Array:
    x = decoder.layers[-1](_inputs(decoder, x)[-1])
    x = x.reshape(*x.shape[:-1], *decoder.output_shape)
    return OUTPUT_ACTIVATIONS[decoder.output_activation](x)


def _one_per_layer(
    basis: AbstractBasis | Sequence[AbstractBasis], num_layers: int
) -> tuple[AbstractBasis, ...]:
    """Repeat a single basis; check the number of several."""
    if isinstance(basis, Sequence) and not isinstance(basis, str):
        bases = tuple(basis)
    else:
        bases = (basis,) * num_layers
    if len(bases) != num_layers:
        raise ValueError(
            f"basis must be one, or one for each of the {num_layers} layers, got "
            f"{len(bases)}."
        )
    return bases
