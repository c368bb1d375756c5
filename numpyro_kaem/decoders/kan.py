"""The outer functions of the Kolmogorov-Arnold form as a decoder."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_flag, check_key
from numpyro_kaem.bases import RBF, AbstractBasis
from numpyro_kaem.decoders._checks import (
    OUTPUT_ACTIVATIONS,
    as_latents,
    as_name,
    as_shape,
)
from numpyro_kaem.decoders.kan_layer import KANLayer

__all__ = ["KANDecoder"]


class KANDecoder(eqx.Module):
    r"""Kolmogorov-Arnold network from latents to the parameters of a likelihood.

    With no hidden layer it is the outer sum of the Kolmogorov-Arnold form,

    .. math:: x_j = \sum_q \Phi_{jq}(z_q);

    hidden layers put such sums after one another. Every :math:`\Phi` is an edge
    function of :class:`KANLayer`.

    Parameters
    ----------
    key
        Random key.
    num_latents
        Number of latents.
    output_shape
        Shape of the output without batch, an integer or a tuple; ``()`` for a scalar.
    hidden
        Widths of the hidden layers; ``()`` for none.
    basis
        Features of all layers, or a sequence with a basis for each of the
        ``len(hidden) + 1`` layers; ``None`` is ``RBF(-3.0, 3.0, 8)``. The first grid is
        that of the latents: for latents in (0, 1) give it one of its own, such as
        ``basis=(RBF(0.0, 1.0, 8), RBF(-3.0, 3.0, 8))``.
    layer_norm
        Shift and scale the units of each hidden layer to mean zero and variance one,
        which keeps them in the next grid.
    base_activation
        Name of the base activation of all edges, one of those of :class:`Energy`.
    output_activation
        ``None``, ``"sigmoid"``, ``"tanh"`` or ``"softplus"``.

    Raises
    ------
    TypeError
        If a size is not an integer, or a basis not a basis.
    ValueError
        If a size is not positive, the number of bases is not that of the layers, a grid
        is neither one nor one for each input of its layer, a name is not known, or
        ``layer_norm`` meets a hidden layer of a single unit.

    Notes
    -----
    - For independent standard Normal latents every layer starts with outputs of mean
      square one before ``output_activation``; see :meth:`KANLayer.init`.
    - Without ``layer_norm``, units that leave the grid in training keep their base
      activation only; :meth:`refit` moves the grids.
    - The leaves are those of ``layers``, such as ``layers[0].basis.bandwidth``,
      ``layers[0].coefficients`` and ``layers[0].base_weight``, in this order. A random
      decoder takes its priors by these names, through :func:`parameter_priors`.

    References
    ----------
    Kolmogorov (1957), "On the representation of continuous functions of several
    variables", *Doklady Akademii Nauk SSSR* 114.
    Liu et al. (2024), "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756.
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.contrib.module import eqx_module
    >>> from numpyro_kaem.decoders import KANDecoder
    >>> decoder = KANDecoder(jax.random.key(0), num_latents=2, output_shape=(8, 8))
    >>> def model(x):
    ...     decode = eqx_module("decoder", decoder)
    ...     with numpyro.plate("images", 5):
    ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ...         numpyro.sample("x", dist.Normal(decode(z), 0.1).to_event(2), obs=x)
    >>> with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
    ...     model(None)
    >>> trace["x"]["value"].shape
    (5, 8, 8)
    """

    layers: tuple[KANLayer, ...]
    """The layers, first the one that acts on the latents."""
    output_shape: tuple[int, ...] = eqx.field(static=True)
    """Shape of the output without batch."""
    layer_norm: bool = eqx.field(static=True)
    """Whether hidden layers are normalised."""
    output_activation: str | None = eqx.field(static=True)
    """Name of the output activation."""

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
        bases = _one_a_layer(
            RBF(-3.0, 3.0, 8) if basis is None else basis, len(hidden) + 1
        )
        self.layers = tuple(
            KANLayer.init(key, basis, num_inputs, num_outputs, base_activation)
            for key, basis, num_inputs, num_outputs in zip(
                jax.random.split(key, len(bases)),
                bases,
                sizes[:-1],
                sizes[1:],
                strict=True,
            )
        )

    @property
    def num_latents(self) -> int:
        """Number of latents."""
        return self.layers[0].num_inputs

    def __call__(self, z: ArrayLike) -> jax.Array:
        """Decode: ``(*batch, num_latents)`` -> ``(*batch, *output_shape)``."""
        dtype = self.layers[0].coefficients.dtype
        return _decode(self, as_latents(z, self.num_latents, dtype))

    def layer_inputs(self, z: ArrayLike) -> tuple[jax.Array, ...]:
        """Return what arrives at each layer, shapes ``(*batch, num_inputs)``.

        Examples
        --------
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from numpyro_kaem.decoders import KANDecoder
        >>> decoder = KANDecoder(jax.random.key(0), 2, 3, hidden=(5,))
        >>> [x.shape for x in decoder.layer_inputs(jnp.zeros((10, 2)))]
        [(10, 2), (10, 5)]
        """
        dtype = self.layers[0].coefficients.dtype
        return _inputs(self, as_latents(z, self.num_latents, dtype))

    def refit(self, basis: AbstractBasis | Sequence[AbstractBasis]) -> "KANDecoder":
        """Transfer every layer to another basis or grid by least squares.

        Parameters
        ----------
        basis
            The new basis of all layers, or a sequence with one for each.

        Returns
        -------
        KANDecoder
            The same function, as near as the new features come to it.

        Raises
        ------
        TypeError
            If a basis is not a basis.
        ValueError
            If their number is not that of the layers, or a grid is neither one nor one
            for each input of its layer.

        Examples
        --------
        >>> import jax
        >>> import numpy as np
        >>> import numpyro_kaem as kaem
        >>> from numpyro_kaem.decoders import KANDecoder
        >>> coarse = KANDecoder(jax.random.key(0), 2, 3, basis=kaem.BSpline(-4, 4, 7))
        >>> fine = coarse.refit(kaem.BSpline(-4, 4, 11))
        >>> z = jax.random.normal(jax.random.key(1), (50, 2))
        >>> bool(np.max(np.abs(fine(z) - coarse(z))) < 1e-4)
        True
        """
        layers = tuple(
            layer.refit(new)
            for layer, new in zip(
                self.layers, _one_a_layer(basis, len(self.layers)), strict=True
            )
        )
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


def _one_a_layer(
    basis: AbstractBasis | Sequence[AbstractBasis], num_layers: int
) -> tuple[AbstractBasis, ...]:
    """Repeat a single basis; check the number of several.

    Raises
    ------
    TypeError
        If one is not a basis.
    ValueError
        If their number is not ``num_layers``.
    """
    several = isinstance(basis, Sequence) and not isinstance(basis, str)
    bases = tuple(basis) if several else (basis,) * num_layers
    for one in bases:
        if not isinstance(one, AbstractBasis):
            raise TypeError(
                "basis must be a basis such as numpyro_kaem.RBF(low, high, num_basis), "
                f"or a sequence with one for each layer, got {type(one).__name__}."
            )
    if len(bases) != num_layers:
        raise ValueError(
            f"basis must be one, or one for each of the {num_layers} layers, got "
            f"{len(bases)}."
        )
    return bases
