"""Transposed convolutions against loops; sizes, strides, and how they start."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_kaem.decoders import ConvDecoder
from numpyro_kaem.decoders.convolutional import _conv_transpose
from tests.distributions.cases import ACTIVATIONS
from tests.helpers import assert_close


def transposed(x, kernel, stride):
    """Every pixel of the map adds its kernel to the image, from which the ends are cut.

    Shapes ``(height, width, inputs)`` and ``(kernel, kernel, inputs, outputs)``.
    """
    size = kernel.shape[0]
    height, width = (n * s for n, s in zip(x.shape[:2], stride, strict=True))
    image = np.zeros((height + 2 * size, width + 2 * size, kernel.shape[3]))
    flipped = kernel[::-1, ::-1]
    # Of what a kernel exceeds its stride, half lies before the pixel, at most all.
    before = [
        (size - 1) - (size - 1 if s > size - 1 else -(-(size + s - 2) // 2))
        for s in stride
    ]
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            row = i * stride[0] - before[0] + size
            column = j * stride[1] - before[1] + size
            window = image[row : row + size, column : column + size]
            window += np.einsum("abio,i->abo", flipped, x[i, j])
    return image[size : size + height, size : size + width]


@pytest.mark.parametrize(
    ("shape", "strides", "kernel_size"),
    [
        ((6, 4), ((3, 2), 1), 4),
        ((4, 8, 2), (2, (1, 4)), 4),
        ((6, 9, 3), (3, 1), 3),
        ((4, 4), (2, 2), 5),
    ],
    ids=str,
)
def test_values(key, shape, strides, kernel_size):
    decoder = ConvDecoder(
        key,
        2,
        shape,
        channels=(3, 2),
        strides=strides,
        kernel_size=kernel_size,
        activation="gelu",
    )
    z = np.array([0.7, -1.3])
    biases = [
        jnp.asarray(np.random.default_rng(i).normal(size=bias.shape))
        for i, bias in enumerate(decoder.biases)
    ]
    object.__setattr__(decoder, "biases", tuple(biases))
    weights = [np.asarray(weight, float) for weight in decoder.weights]
    x = z @ weights[0] + np.asarray(biases[0], float)
    x = x.reshape(decoder.map_shape)
    for weight, bias, stride in zip(
        weights[1:], biases[1:], decoder.strides, strict=True
    ):
        x = transposed(ACTIVATIONS["gelu"](x), weight, stride)
        x = x + np.asarray(bias, float)
    expected = x.reshape(shape)
    assert_close(decoder(z), expected, rtol=(1e-4, 1e-10), atol=(1e-4, 1e-12))


def scanned(convolve, stride):
    """Value, both gradients and a tangent, of a batch of maps, in a loop."""

    def score(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, stride)))

    def step(kernel, x):
        gradient = jax.grad(score, (0, 1))
        forward = jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))
        return kernel, (convolve(x, kernel, stride), forward)

    return jax.vmap(lambda kernel, x: jax.lax.scan(step, kernel, x)[1])


def jax_transposed(x, kernel, stride):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_transpose(x, kernel, stride, "SAME", dimension_numbers=axes)


@pytest.mark.float64
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_convolutions_and_derivatives_are_those_of_jax(size):
    """Reverse mode, and forward over reverse, under ``vmap`` and ``scan``."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 2, 3, 4, 2)), float)
    kernel = jnp.asarray(rng.normal(size=(2, size, size, 2, 3)), float)
    strides = [(1, 1), (2, 2), (3, 3), (2, 1)]

    both = _conv_transpose, jax_transposed

    def results(convolve):
        return [scanned(convolve, stride)(kernel, x) for stride in strides]

    actual, expected = (jax.jit(lambda f=f: results(f))() for f in both)
    assert actual[1][0].shape == (2, 3, 2, 6, 8, 3)
    jax.tree.map(
        lambda a, b: assert_close(a, b, rtol=(1e-4, 1e-11), atol=(3e-5, 1e-12)),
        actual,
        expected,
    )


def test_gradients_in_loops_are_fast_on_cpus(key):
    """XLA's fast convolutions have one order of axes, and products of matrices."""
    decoder = ConvDecoder(key, 2, (12, 12), channels=(3, 2), strides=(2, 3))

    def loss(decoder, z):
        return jnp.sum(decoder(z) ** 2)

    def loop(decoder, z):
        gradients = eqx.filter_grad(lambda both: loss(*both))
        return jax.lax.scan(lambda c, _: (c, gradients(c)), (decoder, z), length=2)[1]

    traced = jax.jit(loop).trace(decoder, jnp.ones((5, 2)))
    pattern = r"convolution.*dim_numbers = (\S.*?), window"
    fast = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    # Two layers and their gradients in the map.
    lowered = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert re.findall(pattern, lowered) == [fast] * 4
    # Accelerators have JAX's own, those in the kernels too.
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert len(re.findall(pattern, lowered)) == 6


def test_default_strides(key):
    def made(shape, **options):
        return eqx.filter_eval_shape(lambda: ConvDecoder(key, 3, shape, **options))

    for shape, channels, strides, small in [
        ((8, 8), (64, 32), ((2, 2), (2, 2)), (2, 2, 64)),
        ((16, 16), (64, 32), ((2, 2), (2, 2)), (4, 4, 64)),
        ((28, 28), (64, 32), ((2, 2), (2, 2)), (7, 7, 64)),
        ((32, 32, 3), (64, 32), ((2, 2), (2, 2)), (8, 8, 64)),
        ((64, 64), (64, 32, 16), ((2, 2),) * 3, (8, 8, 64)),
        ((8, 8), (5, 4, 3), ((1, 1), (2, 2), (2, 2)), (2, 2, 5)),
        ((20, 15), (6, 4), ((2, 1), (2, 3)), (5, 5, 6)),
        ((7, 1), (6,), ((1, 1),), (7, 1, 6)),
    ]:
        decoder = made(shape, channels=channels)
        assert decoder.strides == strides
        assert decoder.map_shape == small
        output = jax.eval_shape(lambda d, z: d(z), decoder, np.zeros((2, 3)))
        assert output.shape == (2, *shape)
    # They fit a small kernel.
    small = made((9, 8), channels=(4, 4), kernel_size=2)
    assert small.strides == ((1, 2), (1, 2))
    assert made((9, 8), channels=(4,), kernel_size=1).strides == ((1, 1),)


def test_an_image_without_factors_is_told(key):
    with pytest.warns(UserWarning, match=r"a map of 29 x 7, .* Pad images to 32 x 28"):
        ConvDecoder(key, 2, (29, 28))
    # What was asked for is not.
    ConvDecoder(key, 2, (29, 28), strides=(1, 1))


def test_start_keeps_the_mean_square(key):
    """Inside the image: at its border a kernel sees less."""
    decoder = ConvDecoder(
        key, 16, (16, 16), channels=(24, 24), activation="relu", strides=(2, 2)
    )
    images = decoder(jax.random.normal(jax.random.key(1), (200, 16)))
    # One set of 24 x 4 x 4 weights for all; its mean square has an error of 7 per cent
    # a parity of the pixels, and so do those of the layer before.
    np.testing.assert_allclose(np.mean(images[:, 4:-4, 4:-4] ** 2), 1.0, rtol=0.4)


def test_errors(key):
    positive, second = "must be a positive integer", r"strides\[1\]"
    divides = "divides the {} of output_shape, got {}"
    for options, error, match in [
        ({"output_shape": 8}, ValueError, r"output_shape must be \(height, width\)"),
        ({"output_shape": (8, 8, 3, 1)}, ValueError, "output_shape must be"),
        ({"output_shape": (8, 0)}, ValueError, rf"output_shape\[1\] {positive}"),
        ({"channels": ()}, ValueError, "channels must have an entry for each"),
        ({"channels": (4, 2.0)}, TypeError, rf"channels\[1\] {positive}"),
        ({"kernel_size": 0}, ValueError, f"kernel_size {positive}"),
        ({"activation": "sin"}, ValueError, "^activation must be one of 'silu'"),
        ({"strides": 2}, TypeError, "strides must be a sequence with an integer or"),
        ({"strides": (2,)}, ValueError, "each of the 2 entries of channels, got 1"),
        ({"strides": (2, 0)}, ValueError, rf"{second} {positive}"),
        ({"strides": (2, 1.0)}, TypeError, rf"{second} {positive}"),
        ({"strides": (2, (1, 1, 1))}, ValueError, rf"{second} must be an integer or"),
        ({"strides": (1, 8)}, ValueError, rf"{second} must not exceed kernel_size=4"),
        ({"strides": (2, (3, 2))}, ValueError, divides.format("height 8", "2 x 3 = 6")),
        (
            {"output_shape": (8, 6), "strides": (2, 2)},
            ValueError,
            divides.format("width 6", "2 x 2 = 4"),
        ),
    ]:
        with pytest.raises(error, match=match):
            ConvDecoder(key, 2, **{"output_shape": (8, 8), **options})
