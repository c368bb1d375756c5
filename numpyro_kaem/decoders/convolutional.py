"""Transposed convolutions from latents to images."""

import itertools
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_name, as_shape, as_vectors, check_key
from numpyro_kaem.decoders.kan import OUTPUT_ACTIVATIONS, mean_square
from numpyro_kaem.energy import BASE_ACTIVATIONS

__all__ = ["ConvDecoder"]

# Rows or columns of a map beyond which a dense layer is out of proportion.
_MAX_LEFT = 20


class ConvDecoder(eqx.Module):
    r"""Dense layer to a small feature map, then transposed convolutions to an image.

    .. math::

        h_0 = W z + b, \qquad
        h_k = \mathrm{conv}^{\mathsf T}_k(\mathrm{act}(h_{k-1})) + b_k, \qquad
        x = h_K,

    where the transposed convolution :math:`k` enlarges the map by ``strides[k]``.

    Parameters
    ----------
    key, num_latents
        Random key, and number of latents.
    output_shape
        ``(height, width)`` or ``(height, width, channels)`` of the image.
    channels
        Channels of the map that enters each transposed convolution, at least one; the
        last convolution makes the channels of the image.
    strides
        Factor of each transposed convolution, an integer or a pair for height and
        width. Their product must divide the image. ``None``: the last convolutions
        enlarge by 2, or else by 3, as long as this divides what is left and leaves at
        least two pixels.
    kernel_size
        Height and width of the kernels; at least every stride.
    activation, output_activation
        Of the hidden maps, one of those of :class:`Energy`; of the output, ``None``,
        ``"sigmoid"``, ``"tanh"`` or ``"softplus"``.

    Raises
    ------
    TypeError
        If a size or a stride is not an integer.
    ValueError
        If one is not positive, if ``output_shape`` has not two or three entries, if
        ``channels`` is empty or ``strides`` of another length, if strides do not divide
        the image or exceed the kernel, or if a name is not known.

    Warns
    -----
    UserWarning
        If the default strides leave the dense layer more than 20 pixels of a side,
        because the image has too few factors of 2 and 3.

    Notes
    -----
    - A kernel whose size is a multiple of the stride gives every pixel the same number
      of terms.
    - Weights start Normal, so that for standard Normal latents the maps have mean
      square one away from the border; offsets start at zero.
    - On CPUs gradients are as fast in loops as elsewhere; tangents in the latents
      (``jax.jvp``) within a loop are not.

    References
    ----------
    Dumoulin and Visin (2016), "A guide to convolution arithmetic for deep learning",
    arXiv:1603.07285, section 4.
    Odena, Dumoulin and Olah (2016), "Deconvolution and checkerboard artifacts",
    *Distill*.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> decoder = kaem.ConvDecoder(jax.random.key(0), 10, output_shape=(28, 28))
    >>> decoder.strides, decoder.map_shape
    (((2, 2), (2, 2)), (7, 7, 64))
    >>> decoder(jnp.zeros((5, 10))).shape
    (5, 28, 28)
    """

    weights: tuple[jax.Array, ...]
    """First ``(num_latents, map_size)``, then ``(kernel, kernel, inputs, outputs)``."""
    biases: tuple[jax.Array, ...]
    """Offsets, ``(map_size,)`` and then one for each output channel."""
    output_shape: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[tuple[int, int], ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    output_activation: str | None = eqx.field(static=True)

    def __init__(
        self,
        key: jax.Array,
        num_latents: int,
        output_shape: tuple[int, ...],
        *,
        channels: tuple[int, ...] = (64, 32),
        strides: Sequence[int | tuple[int, int]] | None = None,
        kernel_size: int = 4,
        activation: str = "silu",
        output_activation: str | None = None,
    ) -> None:
        check_key(key, "key")
        num_latents = as_count("num_latents", num_latents)
        self.output_shape = as_shape("output_shape", output_shape)
        if len(self.output_shape) not in (2, 3):
            raise ValueError(
                "output_shape must be (height, width) or (height, width, channels), "
                f"got {output_shape!r}."
            )
        channels = as_shape("channels", channels)
        if len(channels) == 0:
            raise ValueError(
                "channels must have an entry for each transposed convolution, at least "
                "one, got ()."
            )
        kernel_size = as_count("kernel_size", kernel_size)
        image = self.output_shape[:2]
        if strides is None:
            self.strides = _default_strides(image, len(channels), kernel_size)
            _warn_of_large_map(image, self.strides)
        else:
            self.strides = _as_strides(strides, image, len(channels), kernel_size)
        self.activation = as_name("activation", activation, BASE_ACTIVATIONS)
        self.output_activation = as_name(
            "output_activation", output_activation, OUTPUT_ACTIVATIONS
        )
        factors = np.prod(self.strides, axis=0).tolist()
        map_size = image[0] // factors[0] * (image[1] // factors[1]) * channels[0]
        sizes = (*channels, *(self.output_shape[2:] or (1,)))
        kernels = [(kernel_size, kernel_size, *p) for p in itertools.pairwise(sizes)]
        shapes = ((num_latents, map_size), *kernels)
        self.weights = _initial(key, shapes, self.strides, self.activation)
        self.biases = tuple(jnp.zeros(size) for size in (map_size, *sizes[1:]))

    @property
    def num_latents(self) -> int:
        """Number of latents."""
        return self.weights[0].shape[-2]

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the map that the dense layer makes."""
        rows, columns = np.prod(self.strides, axis=0).tolist()
        height, width = self.output_shape[:2]
        return height // rows, width // columns, self.weights[1].shape[-2]

    def __call__(self, z: ArrayLike) -> jax.Array:
        """Decode: ``(*batch, num_latents)`` -> ``(*batch, *output_shape)``."""
        z = as_vectors("z", z, self.num_latents, self.weights[0].dtype)
        # A convolution takes arrays of one format.
        return _decode(self, z.astype(jnp.result_type(z, self.weights[0])))


@jax.jit
def _decode(decoder: ConvDecoder, z: jax.Array) -> jax.Array:
    (dense, *kernels), (offset, *biases) = decoder.weights, decoder.biases
    # The size in full, because that of an empty batch cannot be inferred.
    size = math.prod(z.shape[:-1])
    x = z.reshape(size, z.shape[-1]) @ dense + offset
    x = x.reshape(size, *decoder.map_shape)
    for kernel, bias, stride in zip(kernels, biases, decoder.strides, strict=True):
        x = BASE_ACTIVATIONS[decoder.activation](x)
        x = _conv_transpose(x, kernel.astype(x.dtype), stride) + bias
    x = x.reshape(*z.shape[:-1], *decoder.output_shape)
    return OUTPUT_ACTIVATIONS[decoder.output_activation](x)


# --- transposed convolution ----------------------------------------------------------
# XLA's convolutions on CPUs are fast if the kernel's axes are in one order, which it
# restores outside of loops only, and if the kernel is small. JAX's gradient in the map
# has another order, so that it takes 10 to 40 times as long in a loop, and that in the
# kernel is a convolution with a kernel of the size of the image. So on CPUs tangents
# are written such that their transposes, the gradients, have that order, and such that
# they are products of matrices for the kernel. On accelerators the plain form stays.


def _conv_transpose(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int]
) -> jax.Array:
    """Enlarge a map: ``(n, h, w, i)``, ``(*size, i, o)`` -> ``(n, h * s, w * s, o)``.

    It is ``jax.lax.conv_transpose`` with the padding ``"SAME"``.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _on_cpu(x, kernel, stride),
        default=lambda x, kernel: _plain(x, kernel, stride),
    )


def _plain(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> jax.Array:
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_transpose(x, kernel, stride, "SAME", dimension_numbers=axes)


_on_cpu = jax.custom_jvp(_plain, nondiff_argnums=(2,))


@partial(_on_cpu.defjvp, symbolic_zeros=True)
def _on_cpu_jvp(stride: tuple[int, int], primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    terms = []
    if not isinstance(x_dot, SymbolicZero):
        terms.append(_linear_in_map(x_dot, kernel, stride))
    if not isinstance(kernel_dot, SymbolicZero):
        terms.append(_linear_in_kernel(x, kernel_dot, stride))
    return _plain(x, kernel, stride), sum(terms)


def _pixels_before(size: int, stride: int) -> int:
    """Zeros before the first pixel, along an axis of the kernel."""
    return size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)


def _linear_in_map(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int]
) -> jax.Array:
    """Transposed convolution whose transpose has a kernel in the fast order."""
    before = [_pixels_before(*p) for p in zip(kernel.shape[:2], stride, strict=True)]
    padding = [
        (first, size + step - 2 - first)
        for first, size, step in zip(before, kernel.shape[:2], stride, strict=True)
    ]
    return jax.lax.conv_general_dilated(
        x,
        kernel.swapaxes(2, 3),
        (1, 1),
        padding,
        lhs_dilation=stride,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


def _linear_in_kernel(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int]
) -> jax.Array:
    """Transposed convolution by products of matrices.

    Every pixel makes blocks of ``stride`` pixels, one for each shift of as many pixels
    within the kernel; the blocks of a shift are a product of matrices.
    """
    (*size, num_inputs, num_outputs), (num, *shape, _) = kernel.shape, x.shape
    shifts = [-(-n // s) for n, s in zip(size, stride, strict=True)]
    fill = [(0, c * s - n) for n, s, c in zip(size, stride, shifts, strict=True)]
    blocks = jnp.pad(kernel[::-1, ::-1], (*fill, (0, 0), (0, 0)))
    blocks = blocks.reshape(
        shifts[0], stride[0], shifts[1], stride[1], num_inputs, num_outputs
    )
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(*shifts, num_inputs, -1)
    # As a matrix: with its other axes the product's transpose takes twice as long.
    pixels = x.reshape(-1, num_inputs)
    parts = [
        jnp.pad(
            (pixels @ blocks[i, j]).reshape(num, *shape, -1),
            ((0, 0), (i, shifts[0] - 1 - i), (j, shifts[1] - 1 - j), (0, 0)),
        )
        for i, j in np.ndindex(*shifts)
    ]
    image = jnp.asarray(sum(parts))
    rows, columns = image.shape[1:3]
    image = image.reshape(num, rows, columns, *stride, num_outputs)
    image = image.transpose(0, 1, 3, 2, 4, 5)
    image = image.reshape(num, rows * stride[0], columns * stride[1], num_outputs)
    top, left = (
        n - 1 - _pixels_before(n, s) for n, s in zip(size, stride, strict=True)
    )
    height, width = (n * s for n, s in zip(shape, stride, strict=True))
    return image[:, top : top + height, left : left + width]


# --- initial weights and strides -----------------------------------------------------


@partial(jax.jit, static_argnames=("shapes", "strides", "activation"))
def _initial(
    key: jax.Array,
    shapes: tuple[tuple[int, ...], ...],
    strides: tuple[tuple[int, int], ...],
    activation: str,
) -> tuple[jax.Array, ...]:
    """Weights that keep the mean square of standard Normal latents at one."""
    square = mean_square(BASE_ACTIVATIONS[activation])
    # An output sees one in `stride` of the entries of a kernel.
    seen: list[Any] = [math.prod(shape[:-1]) for shape in shapes]
    for i, stride in enumerate(strides):
        seen[i + 1] *= square / math.prod(stride)
    # All numbers in one draw: compiling the generator takes longer than all the rest.
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    parts = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    return tuple(
        part.reshape(shape) * terms**-0.5
        for part, shape, terms in zip(parts, shapes, seen, strict=True)
    )


def _default_strides(
    image: tuple[int, ...], num_layers: int, kernel_size: int
) -> tuple[tuple[int, int], ...]:
    """Factors of 2, else 3, of height and width, the last convolution first."""
    strides, sizes = [], list(image)
    for _ in range(num_layers):
        stride = [1, 1]
        for axis, size in enumerate(sizes):
            for factor in (2, 3):
                if factor <= kernel_size and size % factor == 0 and size > factor:
                    stride[axis] = factor
                    break
            sizes[axis] = size // stride[axis]
        strides.append((stride[0], stride[1]))
    return tuple(reversed(strides))


def _warn_of_large_map(
    image: tuple[int, ...], strides: tuple[tuple[int, int], ...]
) -> None:
    """Warn where the default strides leave much to the dense layer."""
    factors = np.array(strides)
    left = np.array(image) // factors.prod(0)
    if np.any((factors == 1).any(0) & (left > _MAX_LEFT)):
        step = 2 ** len(strides)
        padded = tuple(-(-size // step) * step for size in image)
        warnings.warn(
            f"the image of {image[0]} x {image[1]} pixels has too few factors of 2 and "
            f"3, so that the dense layer makes a map of {left[0]} x {left[1]}, which "
            f"takes much memory and time. Pad images to {padded[0]} x {padded[1]}, or "
            "give strides.",
            UserWarning,
            stacklevel=5,
        )


def _as_strides(
    strides: Any, image: tuple[int, ...], num_layers: int, kernel_size: int
) -> tuple[tuple[int, int], ...]:
    """Check strides, and return them as pairs."""
    if not isinstance(strides, Sequence) or isinstance(strides, str):
        raise TypeError(
            "strides must be a sequence with an integer or a pair for each of the "
            f"{num_layers} entries of channels, got {strides!r}."
        )
    pairs = []
    for i, stride in enumerate(strides):
        pair = as_shape(f"strides[{i}]", stride)
        pair = pair * 2 if len(pair) == 1 else pair
        if len(pair) != 2:
            raise ValueError(
                f"strides[{i}] must be an integer or a pair for height and width, got "
                f"{stride!r}."
            )
        if max(pair) > kernel_size:
            raise ValueError(
                f"strides[{i}] must not exceed kernel_size={kernel_size}, or some "
                f"pixels see nothing of the map, got {stride!r}."
            )
        pairs.append(pair)
    if len(pairs) != num_layers:
        raise ValueError(
            f"strides must have an entry for each of the {num_layers} entries of "
            f"channels, got {len(pairs)}."
        )
    for name, size, factors in zip(
        ("height", "width"), image, zip(*pairs, strict=True), strict=True
    ):
        if size % math.prod(factors) != 0:
            raise ValueError(
                f"strides must have a product that divides the {name} {size} of "
                f"output_shape, got {' x '.join(map(str, factors))} = "
                f"{math.prod(factors)}."
            )
    return tuple(pairs)
