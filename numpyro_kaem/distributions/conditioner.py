"""A masked network: the coefficients of each dimension from the dimensions before."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, check_key

__all__ = ["MaskedConditioner"]

_STEEPNESS = 3.0


class MaskedConditioner(eqx.Module):
    r"""Network whose output for a dimension depends only on the dimensions before it.

    .. math:: c_i = b_i + N_i(x_1, \dots, x_{i-1}), \qquad i = 1, \dots, D.

    One multilayer perceptron gives all outputs at once; masks cut every path from
    :math:`x_j` to :math:`c_i` with :math:`j \ge i`. So :math:`c_1 = b_1` are free
    numbers.

    Parameters
    ----------
    key
        Random key.
    dim
        Number :math:`D` of dimensions.
    num_features
        Number of coefficients of a dimension.
    width
        Number of units of a hidden layer, shared out among the dimensions; at least
        ``dim - 1`` lets every dimension matter.
    depth
        Number of hidden layers.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If one is not positive.

    Notes
    -----
    - The last layer starts at zero: all coefficients do, and a density starts as its
      reference.
    - Inputs are expected in [-1, 1], as :class:`AutoregressiveKAEMPrior` gives them:
      positions in the grid. The activation is ``tanh``.
    - Leaves, in this order: ``weights`` and ``biases``, one array a layer. Masks are
      made of static numbers; masked weights have no effect and no gradient.

    References
    ----------
    Germain, Gregor, Murray and Larochelle (2015), "MADE: masked autoencoder for
    distribution estimation", *International Conference on Machine Learning*.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> conditioner = kaem.MaskedConditioner(jax.random.key(0), dim=3, num_features=8)
    >>> conditioner(jnp.zeros((5, 3))).shape
    (5, 3, 8)
    """

    weights: tuple[jax.Array, ...]
    """Weights, shape ``(num_inputs, num_outputs)`` a layer."""
    biases: tuple[jax.Array, ...]
    """Offsets, shape ``(num_outputs,)`` a layer; the last ``(dim, num_features)``."""
    dim: int = eqx.field(static=True)
    """Number of dimensions."""
    num_features: int = eqx.field(static=True)
    """Number of coefficients of a dimension."""

    def __init__(
        self,
        key: jax.Array,
        dim: int,
        num_features: int,
        width: int = 64,
        depth: int = 2,
    ) -> None:
        check_key(key, "key")
        self.dim = as_count("dim", dim)
        self.num_features = as_count("num_features", num_features)
        width, depth = as_count("width", width), as_count("depth", depth)
        weights, biases = [], []
        for mask in _masks(self.dim, width, depth)[:-1]:
            key, weight_key, bias_key = jax.random.split(key, 3)
            # By the number of inputs that the mask leaves. The first layer is steeper,
            # because samples fill only a part of their grid.
            steepness = 1.0 if weights else _STEEPNESS
            scale = steepness / np.sqrt(np.maximum(mask.sum(0), 1))
            weights.append(jax.random.normal(weight_key, mask.shape) * scale)
            biases.append(jax.random.uniform(bias_key, mask.shape[1:], minval=-1.0))
        weights.append(jnp.zeros((width, self.dim, self.num_features)))
        biases.append(jnp.zeros((self.dim, self.num_features)))
        self.weights, self.biases = tuple(weights), tuple(biases)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Coefficients: (..., dim) -> (..., dim, num_features)."""
        width, depth = self.weights[0].shape[1], len(self.weights) - 1
        *hidden, last = _masks(self.dim, width, depth)
        x = jnp.asarray(x)
        layers = zip(self.weights, self.biases, hidden, strict=False)
        for weight, bias, mask in layers:
            product = jnp.matmul(x, jnp.where(mask, weight, 0), precision="highest")
            x = jnp.tanh(product + bias)
        weight = jnp.where(last[..., None], self.weights[-1], 0)
        product = jnp.tensordot(x, weight, axes=1, precision="highest")
        return product + self.biases[-1]


def _masks(dim: int, width: int, depth: int) -> list[np.ndarray]:
    """Which inputs each unit of a layer has, shape ``(num_inputs, num_outputs)``.

    A hidden unit of order ``m`` may depend on the first ``m`` dimensions.
    """
    orders = np.arange(width) % max(dim - 1, 1) + 1
    first = np.arange(1, dim + 1)[:, None] <= orders
    inner = orders[:, None] <= orders
    last = orders[:, None] < np.arange(1, dim + 1)
    return [first, *[inner] * (depth - 1), last]
