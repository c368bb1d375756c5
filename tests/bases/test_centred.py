"""Facts of the bases on centres: RBF, RSWAF and wavelets."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from numpyro_kaem.bases import RBF, RSWAF, Wavelet


def test_breaks():
    """Centres and middles, and quarters where wavelets oscillate.

    By halves draws of a Morlet energy missed their density by 3e-5.
    """
    for cls, options in ((RBF, {}), (RSWAF, {}), (Wavelet, {"kind": "mexican_hat"})):
        assert cls(-3.0, 5.0, 5, **options).panel_breaks == tuple(
            i / 8 for i in range(9)
        )
        for num_basis in (1, 2, 3):
            breaks = cls(-3.0, 5.0, num_basis, **options).panel_breaks
            assert breaks == (0.0, 0.25, 0.5, 0.75, 1.0)
    for kind in ("morlet", "shannon"):
        breaks = Wavelet(-3.0, 5.0, 5, kind=kind).panel_breaks
        assert breaks == tuple(i / 16 for i in range(17))


def test_bandwidth():
    """Its format, its gradient, and a batch of them, as posterior draws are."""
    single = RBF(1.0, 3.0, 4, bandwidth=jnp.float32(0.7))
    assert single.bandwidth.dtype == jnp.float32
    with jax.enable_x64(True):
        double = RBF(1.0, 3.0, 4, bandwidth=0.7)
        assert double.bandwidth.dtype == jnp.float64
        for basis in (double, single):
            for dtype in (jnp.float32, jnp.float64):
                z = jax.ShapeDtypeStruct((), dtype)
                assert jax.eval_shape(basis, z).dtype == dtype

    z, step = np.array([1.3, 2.4], np.float32), 1e-2

    @jax.jit
    def features(bandwidth):
        return RBF(1.0, 3.0, 4, bandwidth=bandwidth)(z)

    total = jax.jit(lambda basis: jnp.sum(basis(z[0])))
    gradient = eqx.filter_grad(total)(RBF(1.0, 3.0, 4, bandwidth=0.7)).bandwidth
    expected = np.sum(features(0.7 + step)[0] - features(0.7 - step)[0]) / (2 * step)
    assert_allclose(gradient, expected, rtol=1e-3)

    basis, widths = RBF(1.0, 3.0, 4), np.array([0.6, 1.0, 1.4])
    for shape in ((2,), (3, 1)):
        batch = jnp.asarray(widths[: shape[0]].reshape(shape))
        batched = eqx.tree_at(lambda b: b.bandwidth, basis, batch)
        with jax.numpy_rank_promotion("raise"):
            found = jax.jit(lambda basis, z: basis(z))(batched, z)
        expected = np.stack([features(w) for w in widths[: shape[0]]])
        if shape == (2,):
            expected = np.stack([expected[0, 0], expected[1, 1]])
        assert_allclose(found, expected, rtol=1e-5)


def test_far_tails_and_derivatives_at_the_centre():
    basis, shannon = RSWAF(1.0, 3.0, 41), Wavelet(1.0, 3.0, 1, kind="shannon")

    @jax.jit
    def derivatives(end, middle):
        def wavelet(s):
            return shannon.unit_features(s)[0]

        return (
            basis.unit_features(end),
            jax.jacobian(basis.unit_features)(end),
            jax.hessian(lambda s: basis.unit_features(s)[20])(middle),
            wavelet(middle),
            jax.grad(wavelet)(middle),
            jax.grad(jax.grad(wavelet))(middle),
        )

    tails, slope, curvature, *at_centre = derivatives(np.float32(0.0), np.float32(0.5))
    x = np.arange(41)
    exact = 1 / np.cosh(x.astype(float)) ** 2
    assert_allclose(tails, exact, rtol=2e-5)
    assert_allclose(slope, 2 * np.tanh(x) * exact * 40, rtol=2e-5)
    # Exact at the centre too, where a form through |x| has second derivative 0.
    assert_allclose(curvature, -2 * 40**2, rtol=1e-5)
    assert_allclose(at_centre[0], 1.0)
    assert_allclose(at_centre[1], 0.0, atol=1e-5)
    # sinc(x/2) cos(3 pi x/2) = 1 - (pi^2/24 + 9 pi^2/8) x^2 + ...
    expected = -2 * (np.pi**2 / 24 + 9 * np.pi**2 / 8)
    assert_allclose(at_centre[2], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "basis",
    [RBF(1.0, 3.0, 7), RBF(1.0, 3.0, 1), RSWAF(1.0, 3.0, 6), Wavelet(1.0, 3.0, 5)],
    ids=repr,
)
def test_many_sums_are_those_of_the_features(basis):
    """They are computed in another order, which keeps no features."""
    rng = np.random.default_rng(0)
    s = jnp.asarray(rng.uniform(size=(1 << 13, 3)))
    coefficients = jnp.asarray(rng.normal(size=(3, basis.num_features)))
    weights = rng.normal(size=s.shape).astype(s.dtype)

    def through_features(basis, s, coefficients):
        return jnp.sum(basis.unit_features(s) * coefficients, -1)

    def direct(basis, s, coefficients):
        return basis.unit_combine(s, coefficients)

    @jax.jit
    def values_and_gradients(*arguments):
        def both(function):
            value, pullback = jax.vjp(function, *arguments)
            return value, pullback(weights / weights.size)

        return both(direct), both(through_features)

    (value, found), (expected_value, expected) = values_and_gradients(
        basis, s, coefficients
    )
    rounding = dict(rtol=1e-4, atol=1e-5)
    assert_allclose(value, expected_value, **rounding)
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
