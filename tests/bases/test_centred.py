"""Facts of the bases on centres: RBF, RSWAF and wavelets."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from numpyro_kaem.bases import RBF, RSWAF, Wavelet

pytestmark = pytest.mark.float64


@pytest.mark.parametrize("cls", [RBF, RSWAF])
def test_peaks_lie_on_the_centres(cls):
    basis = cls([-3.0, 1.0], [5.0, 2.0], 5, bandwidth=0.6)
    centres = np.linspace([-3.0, 1.0], [5.0, 2.0], 5)
    peaks = np.asarray(basis(centres))
    assert_allclose(np.einsum("jcj->jc", peaks), 1.0, rtol=1e-6)


def test_bandwidth_is_relative_to_the_spacing():
    narrow, wide = RBF(-3.0, 5.0, 9, bandwidth=2.0), RBF(-3.0, 5.0, 5)
    z = np.linspace(-3.0, 5.0, 11)
    assert_allclose(narrow(z)[:, ::2], wide(z), rtol=1e-5)


@pytest.mark.parametrize("cls", [RBF, RSWAF, partial(Wavelet, kind="mexican_hat")])
def test_breaks_are_centres_and_middles(cls):
    assert cls(-3.0, 5.0, 5).panel_breaks == tuple(i / 8 for i in range(9))
    for num_basis in (1, 2, 3):
        assert cls(-3.0, 5.0, num_basis).panel_breaks == (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("kind", ["morlet", "shannon"])
def test_breaks_resolve_oscillating_wavelets(kind):
    """By halves draws of a Morlet energy missed their density by 3e-5."""
    breaks = Wavelet(-3.0, 5.0, 5, kind=kind).panel_breaks
    assert breaks == tuple(i / 16 for i in range(17))


def test_formats_of_bandwidth_and_input_are_independent():
    single = RBF(1.0, 3.0, 4, bandwidth=jnp.float32(0.7))
    assert single.bandwidth.dtype == jnp.float32
    with jax.enable_x64(True):
        double = RBF(1.0, 3.0, 4, bandwidth=0.7)
        assert double.bandwidth.dtype == jnp.float64
        assert double(np.float32(1.3)).dtype == jnp.float32
        assert single(np.float64(1.3)).dtype == jnp.float64
        assert single(np.float32(1.3)).dtype == jnp.float32


def test_gradient_of_the_bandwidth():
    basis, z, step = RBF(1.0, 3.0, 4, bandwidth=0.7), np.float32(1.3), 1e-2

    def total(basis):
        return jnp.sum(basis(z))

    def moved(bandwidth):
        return total(RBF(1.0, 3.0, 4, bandwidth=bandwidth))

    gradient = eqx.filter_grad(total)(basis).bandwidth
    expected = (moved(0.7 + step) - moved(0.7 - step)) / (2 * step)
    assert_allclose(gradient, expected, rtol=1e-3)


def test_rswaf_keeps_its_tails():
    basis = RSWAF(1.0, 3.0, 41)
    s = np.float32(0.0)
    x = np.arange(41)
    exact = 1 / np.cosh(x.astype(float)) ** 2
    assert_allclose(basis.unit_features(s), exact, rtol=2e-5)
    slope = jax.jacobian(basis.unit_features)(s)
    assert_allclose(slope, 2 * np.tanh(x) * exact * 40, rtol=2e-5)
    # Exact at the centre too, where a form through |x| has second derivative 0.
    curvature = jax.hessian(lambda s: basis.unit_features(s)[20])(np.float32(0.5))
    assert_allclose(curvature, -2 * 40**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "symmetry"),
    [("morlet", 1), ("mexican_hat", 1), ("dog", -1), ("shannon", 1)],
)
def test_symmetry_of_wavelets(kind, symmetry):
    basis = Wavelet(1.0, 3.0, 1, kind=kind, bandwidth=0.3)
    left, right = basis(np.array([[1.7, 2.0], [2.3, 2.0]]))
    assert_allclose(left, symmetry * np.asarray(right), atol=1e-5)


def test_shannon_is_smooth_at_its_centre():
    basis = Wavelet(1.0, 3.0, 1, kind="shannon")

    def wavelet(s):
        return basis.unit_features(s)[0]

    s = np.float32(0.5)
    assert_allclose(wavelet(s), 1.0)
    assert_allclose(jax.grad(wavelet)(s), 0.0, atol=1e-5)
    # sinc(x/2) cos(3 pi x/2) = 1 - (pi^2/24 + 9 pi^2/8) x^2 + ...
    expected = -2 * (np.pi**2 / 24 + 9 * np.pi**2 / 8)
    assert_allclose(jax.grad(jax.grad(wavelet))(s), expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2,), (3, 1)], ids=str)
def test_a_batched_bandwidth_broadcasts(shape):
    """As when posterior draws replace the leaf."""
    basis = RBF(1.0, 3.0, 4)
    widths = np.linspace(0.6, 1.4, int(np.prod(shape))).reshape(shape)
    batched = eqx.tree_at(lambda b: b.bandwidth, basis, jnp.asarray(widths))
    z = np.array([1.3, 2.4], np.float32)
    with jax.numpy_rank_promotion("raise"):
        features = np.asarray(batched(z))
    expected = np.stack([RBF(1.0, 3.0, 4, bandwidth=w)(z) for w in widths.flat])
    if shape == (2,):
        expected = np.stack([expected[0, 0], expected[1, 1]])
    assert_allclose(features, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "basis",
    [RBF(1.0, 3.0, 7), RBF(1.0, 3.0, 1), RSWAF(1.0, 3.0, 6), Wavelet(1.0, 3.0, 5)],
    ids=repr,
)
def test_many_sums_are_those_of_the_features(basis):
    """They are computed in another order, which keeps no features."""
    keys = jax.random.split(jax.random.key(0), 3)
    s = jax.random.uniform(keys[0], (1 << 13, 3))
    coefficients = jax.random.normal(keys[1], (3, basis.num_features))
    weights = jax.random.normal(keys[2], s.shape)

    def through_features(basis, s, coefficients):
        return jnp.sum(basis.unit_features(s) * coefficients, -1)

    def direct(basis, s, coefficients):
        return basis.unit_combine(s, coefficients)

    def total(function):
        return lambda *x: jnp.mean(weights * function(*x))

    arguments = basis, s, coefficients
    rounding = dict(rtol=1e-4, atol=1e-5)
    assert_allclose(direct(*arguments), through_features(*arguments), **rounding)
    found, expected = (
        jax.jit(jax.grad(total(function), argnums=(0, 1, 2)))(*arguments)
        for function in (direct, through_features)
    )
    assert_allclose(found[0].bandwidth, expected[0].bandwidth, **rounding)
    assert_allclose(s.size * found[1], s.size * expected[1], **rounding)
    assert_allclose(found[2], expected[2], **rounding)


def test_gradient_of_many_sums_keeps_no_features():
    basis, s = RBF(1.0, 3.0, 40), jnp.zeros((1 << 14, 4))
    coefficients = jnp.zeros((4, 40))

    def total(s, coefficients):
        return jnp.sum(basis.unit_combine(s, coefficients) ** 2)

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(s, coefficients).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * s.nbytes
