"""Derivatives against central differences of float64 values, first and second."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_kaem import RBF, BSpline, Chebyshev, Energy, Fourier, KAEMPrior
from tests.distributions.cases import REFERENCES
from tests.helpers import assert_close, with_long

pytestmark = pytest.mark.float64

U = np.array([0.02, 0.12, 0.45, 0.81, 0.98])
# Between the knots of all bases below, with one point beyond each end of the grid.
FRACTIONS = np.array([-0.1, 0.13, 0.37, 0.72, 1.05])


def random(n, seed):
    return np.random.default_rng(seed).normal(size=n)


# By reference: the basis, and whether there is a base activation. Learned are
# coefficients, base weight, bandwidth and all parameters of the reference.
CASES = {
    "normal": (lambda a, b: RBF(a, b, 5, bandwidth=1.25), True),
    "uniform-across": (lambda a, b: Fourier(a, b, 2), False),
    "student-t": (lambda a, b: BSpline(a, b, 5), False),
    "gamma": (lambda a, b: Chebyshev(a, b, 3), False),
    "beta": (lambda a, b: Chebyshev(a, b, 3), False),
    "laplace": (lambda a, b: RBF(a, b, 5), False),
    "gumbel": (lambda a, b: BSpline(a, b, 6, degree=2), True),
}


def build(name, dtype):
    """A prior with leaves of the dtype, and points inside and beyond its grid."""
    make, based = CASES[name]
    if name == "uniform-across":
        (low, high), reference = (-0.75, 2.5), dist.Uniform(-0.25, 3.0)
    else:
        (low, high), reference = REFERENCES[name].grid, REFERENCES[name].make()
    basis = make(low, high)
    energy = Energy(
        basis,
        jnp.asarray(1.5 * random(basis.num_features, 1), dtype),
        jnp.asarray(0.7, dtype) if based else None,
        "tanh",
    )
    prior = KAEMPrior(energy, reference, refinement=2)
    prior = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), prior)
    z = low + (high - low) * FRACTIONS
    support = prior.reference.support
    inside = np.asarray(support(z.astype(dtype)))
    return prior, np.where(inside, z, low + 0.41 * (high - low))


def outputs(flat, unravel):
    """Quantiles, masses, log densities and normaliser of a flat prior, u and z."""
    prior, u, z = unravel(flat)
    return jnp.concatenate(
        [
            prior.icdf(u),
            *prior.cdf_pair(z),
            prior.log_prob(z),
            prior.log_normalizer[None],
        ]
    )


def differences(function, flat, step=1e-4):
    """Jacobian by central differences of fourth order, all in one batch."""
    stencil = np.array([-2, -1, 1, 2])
    weights = np.array([1 / 12, -2 / 3, 2 / 3, -1 / 12]) / step
    moved = flat + step * stencil[:, None, None] * np.eye(len(flat))
    values = jax.jit(jax.vmap(jax.vmap(function)))(moved)
    return np.einsum("k,kpo->op", weights, np.asarray(values))


@pytest.mark.parametrize("name", with_long(CASES, "normal"))
def test_first_derivatives(name, x64):
    with jax.enable_x64(True):
        prior, z = build(name, np.float64)
        flat, unravel = ravel_pytree((prior, jnp.asarray(U), jnp.asarray(z)))
        expected = differences(lambda f: outputs(f, unravel), np.asarray(flat))
    dtype = np.float64 if x64 else np.float32
    prior, z = build(name, dtype)
    flat, unravel = ravel_pytree((prior, jnp.asarray(U, dtype), jnp.asarray(z, dtype)))

    # Reverse mode is the transpose of forward mode, and so tests both.
    actual = np.asarray(jax.jit(jax.jacrev(lambda f: outputs(f, unravel)))(flat))
    assert actual.dtype == dtype
    scale, error = np.abs(expected).max(1, keepdims=True), np.abs(actual - expected)
    if x64:
        assert np.all(error <= 1e-5 * np.abs(expected) + 1e-7 * scale + 1e-9)
    else:
        assert np.all(error <= 1e-3 * (np.abs(expected) + scale) + 2e-5)


def test_second_derivatives(x64):
    """Of log_prob in the point and the coefficients, of icdf in the mass."""
    dtype = np.float64 if x64 else np.float32

    def functions(prior, z):
        def log_prob(point):
            coefficients, z = point
            energy = Energy(
                prior.energy.basis, coefficients, prior.energy.base_weight, "tanh"
            )
            return KAEMPrior(energy, prior.reference, refinement=2).log_prob(z)

        flat, unravel = ravel_pytree((prior.energy.coefficients, z))
        return flat, jax.grad(lambda f: log_prob(unravel(f)))

    with jax.enable_x64(True):
        prior, z = build("normal", np.float64)
        flat, gradient = functions(prior, jnp.asarray(z[2]))
        expected = differences(gradient, np.asarray(flat))
        slope = jax.jit(jax.vmap(jax.grad(prior.icdf)))
        step = 1e-4
        curvature = (slope(U[1:-1] + step) - slope(U[1:-1] - step)) / (2 * step)
    prior, z = build("normal", dtype)
    flat, gradient = functions(prior, jnp.asarray(z[2], dtype))
    hessian = jax.jit(jax.jacfwd(gradient))(flat)
    scale = np.abs(expected).max()
    assert_close(
        hessian, expected, rtol=(1e-3, 1e-5), atol=(1e-3 * scale, 1e-7 * scale)
    )
    second = jax.jit(jax.vmap(jax.grad(jax.grad(prior.icdf))))(
        jnp.asarray(U[1:-1], dtype)
    )
    assert_close(second, curvature, rtol=(1e-2, 1e-5))


@pytest.mark.long
def test_batches_and_transforms_agree(x64):
    """The pullback of a batch is that of its densities, mapped one by one."""
    coefficients = jnp.asarray(random((3, 5), 4).reshape(3, 5))
    basis = RBF(-0.75, 2.5, 5)
    u = jnp.asarray(np.random.default_rng(5).uniform(size=(4, 3)))
    weights = jnp.asarray(random((4, 3), 6).reshape(4, 3))

    def batched(coefficients, u):
        prior = KAEMPrior(Energy(basis, coefficients), dist.Normal(1.25, 0.75))
        return prior.icdf(u)

    @jax.jit
    def derivatives(coefficients, u):
        results = []
        for function in (batched, jax.vmap(batched, (0, 1), 1)):
            out, pullback = jax.vjp(function, coefficients, u)
            results.append((out, *pullback(weights)))
        ones = jnp.ones_like(coefficients), jnp.ones_like(u)
        return results, jax.jvp(batched, (coefficients, u), ones)[1]

    (whole, mapped), pushed = derivatives(coefficients, u)
    for a, b in zip(whole, mapped, strict=True):
        assert_close(a, b, rtol=(5e-4, 1e-9), atol=(1e-4, 1e-10))
    # The transpose of the pushforward.
    inner = jnp.sum(whole[1]) + jnp.sum(whole[2])
    assert_close(inner, jnp.sum(pushed * weights), rtol=(1e-3, 1e-10))


@pytest.mark.long
def test_gradients_are_finite_at_and_beyond_all_edges():
    energy = Energy(BSpline(-0.75, 2.5, 5), jnp.asarray(random(5, 7)))
    for reference in (None, dist.Uniform(-0.25, 1.75), dist.Normal(1.25, 0.75)):
        z = np.array([-np.inf, -5.0, -0.75, -0.25, 1.75, 2.5, 9.0, np.inf])

        def log_prob(coefficients, z, reference=reference):
            prior = KAEMPrior(Energy(energy.basis, coefficients), reference)
            return prior.log_prob(z), prior.cdf(z)

        jacobian = jax.jit(jax.jacrev(log_prob))(energy.coefficients, z[1:-1])
        assert all(np.all(np.isfinite(j)) for j in jacobian)
        q = jnp.asarray([1e-30, 1e-7, 0.5, 1.0 - 1e-7])
        prior = KAEMPrior(energy, reference)
        slopes = jax.vmap(jax.grad(lambda q, prior=prior: jnp.tanh(prior.icdf(q))))(q)
        assert np.all(np.isfinite(slopes))
        assert np.all(slopes >= 0)
        masses = prior.cdf(z)
        assert (float(masses[0]), float(masses[-1])) == (0.0, 1.0)


QUANTILES = {
    "RBF": RBF(-2.0, 2.0, 12),
    "BSpline": BSpline(-2.0, 2.0, 6, degree=1),
    "Chebyshev": Chebyshev(-2.0, 2.0, 8),
}
PAIRS = [
    (basis, distribution)
    for basis in QUANTILES
    for distribution in ("Normal", "Uniform")
]


@pytest.mark.parametrize(
    "pair", with_long(PAIRS, ("RBF", "Normal"), ("BSpline", "Uniform")), ids="-".join
)
def test_a_quantile_moves_as_its_density_says(pair, x64):
    """By the series of the table, which has no need of the energy."""
    basis, reference = QUANTILES[pair[0]], None
    if pair[1] == "Normal":
        reference = dist.Normal(0.3, 0.8)
    coefficients = jnp.asarray(3.0 * random(basis.num_features, 8))
    prior = KAEMPrior(Energy(basis, coefficients), reference)
    u = jnp.linspace(1e-3, 0.999, 501)
    z, slope = jax.jvp(prior.icdf, (u,), (jnp.ones_like(u),))
    rtol = 1e-9 if x64 else 1e-4
    np.testing.assert_allclose(slope * jnp.exp(prior.log_prob(z)), 1.0, rtol=rtol)
