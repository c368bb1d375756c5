"""Energies whose density is a distribution of its own, with closed forms."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import special, stats

from numpyro_kaem import RBF, BSpline, Chebyshev, Energy, Fourier, KAEMPrior
from tests.helpers import assert_close, with_long

pytestmark = pytest.mark.float64

LOW, HIGH = -0.75, 2.5
U = np.array([1e-4, 0.1, 0.37, 0.5, 0.8, 0.9995])


def check_distribution(
    prior, distribution, z, *, log_atol=(3e-5, 1e-10), rtol=(3e-5, 1e-9)
):
    """Compare with the same distribution of SciPy, one column after the other."""
    column = (-1,) + (1,) * len(prior.batch_shape)
    z, u = np.reshape(z, column), np.reshape(U, column)
    zeros = np.zeros(prior.batch_shape)
    log_density = distribution.logpdf(z) + zeros
    assert_close(prior.log_prob(z), log_density, atol=log_atol, rtol=1e-6)
    below, above = prior.cdf_pair(z)
    assert_close(below, distribution.cdf(z) + zeros, atol=(3e-6, 1e-12))
    assert_close(above, distribution.sf(z) + zeros, atol=(3e-6, 1e-12))
    atol = tuple(distribution.std() * r for r in rtol)
    assert_close(prior.icdf(u), distribution.ppf(u) + zeros, rtol=rtol, atol=atol)


@pytest.mark.parametrize("form", with_long(["identity", "chebyshev"], "identity"))
def test_linear_energy_is_a_truncated_exponential(form):
    rates = np.array([-6.0, -0.5, 0.25, 3.0, 6.0])
    if form == "identity":
        energy = Energy(RBF(LOW, HIGH, 3), jnp.zeros(3), jnp.asarray(rates), "identity")
    else:
        half = (HIGH - LOW) / 2
        coefficients = np.stack([rates * (LOW + half), rates * half], -1)
        energy = Energy(Chebyshev(LOW, HIGH, 1), jnp.asarray(coefficients))
    prior = KAEMPrior(energy)
    width = HIGH - LOW
    assert_close(
        prior.log_normalizer,
        np.log(np.expm1(rates * width) / (rates * width)) + rates * LOW,
        rtol=(2e-6, 1e-12),
    )
    z = np.linspace(LOW, HIGH, 9)[:, None]
    cdf = np.expm1(rates * (z - LOW)) / np.expm1(rates * width)
    assert_close(prior.cdf(z), cdf, atol=(2e-6, 1e-12))
    quantiles = LOW + np.log1p(U[:, None] * np.expm1(rates * width)) / rates
    assert_close(
        prior.icdf(U[:, None]), quantiles, rtol=(1e-4, 1e-9), atol=(1e-5, 1e-9)
    )
    # The same by SciPy, where the density falls: b is the width in units of the scale.
    falling = stats.truncexpon(b=width * 6.0, loc=LOW, scale=1 / 6.0)
    assert_close(prior.log_prob(z)[:, 0], falling.logpdf(z[:, 0]), atol=(1e-5, 1e-11))
    assert_close(prior.mean[0], falling.mean(), rtol=(1e-5, 1e-10))
    assert_close(prior.variance[0], falling.var(), rtol=(1e-4, 1e-10))
    assert_close(prior.entropy()[0], falling.entropy(), atol=(1e-5, 1e-10))


@pytest.mark.numerics
@pytest.mark.parametrize("form", with_long(["square", "chebyshev"], "chebyshev"))
def test_quadratic_energy_tilts_a_normal_to_a_normal(form):
    loc, scale = 1.25, 0.75
    # Twelve standard deviations: beyond, where the energy is constant, is no mass.
    low, high = loc - 12 * scale, loc + 12 * scale
    curvature = -0.25
    if form == "square":
        energy = Energy(BSpline(low, high, 27), jnp.zeros(27), curvature, "square")
    else:
        # curvature z^2 in Chebyshev polynomials of t, z = loc + 9 t.
        half = (high - low) / 2
        coefficients = curvature * np.array(
            [loc**2 + half**2 / 2, 2 * loc * half, half**2 / 2]
        )
        energy = Energy(Chebyshev(low, high, 2), jnp.asarray(coefficients))
    prior = KAEMPrior(energy, dist.Normal(loc, scale))
    precision = 1 / scale**2 - 2 * curvature
    distribution = stats.norm(loc / scale**2 / precision, precision**-0.5)
    z = distribution.mean() + distribution.std() * np.array([-5.0, -1.3, 0.2, 2.4, 5.0])
    check_distribution(prior, distribution, z, log_atol=(1e-4, 1e-10))
    assert_close(prior.mean, distribution.mean(), rtol=(1e-5, 1e-11))
    assert_close(prior.variance, distribution.var(), rtol=(1e-4, 1e-10))
    assert_close(prior.entropy(), distribution.entropy(), atol=(3e-5, 1e-10))


def test_splines_of_degree_0_and_1():
    """They are a histogram, and log-linear between knots."""
    levels = np.array([0.5, -2.0, 3.0, 1.0])
    prior = KAEMPrior(Energy(BSpline(LOW, HIGH, 4, degree=0), jnp.asarray(levels)))
    masses = special.softmax(levels)
    distribution = stats.rv_histogram(
        (masses, np.linspace(LOW, HIGH, 5)), density=False
    )
    check_distribution(prior, distribution, [LOW + 0.01, 0.2, 1.0, 1.9, 2.49])
    assert_close(prior.log_normalizer, np.log(np.mean(np.exp(levels))))
    assert_close(prior.mean, distribution.mean(), rtol=(1e-5, 1e-11))
    assert_close(prior.variance, distribution.var(), rtol=(1e-5, 1e-11))
    values = np.array([[0.5, -2.0, 3.0, 1.0], [2.0, 2.5, 2.5, -6.0]])
    prior = KAEMPrior(Energy(BSpline(LOW, HIGH, 4, degree=1), jnp.asarray(values)))
    rise = np.diff(values, axis=1)
    flat = rise == 0
    ratio = np.where(flat, 1.0, np.expm1(rise) / np.where(flat, 1.0, rise))
    masses = np.exp(values[:, :-1]) * ratio / 3
    assert_close(prior.log_normalizer, np.log(masses.sum(1)), rtol=(1e-5, 1e-12))
    knots = np.linspace(LOW, HIGH, 4)[:, None]
    cdf = np.cumsum(masses, 1).T / masses.sum(1)
    assert_close(prior.cdf(knots[1:-1]), cdf[:-1], atol=(2e-6, 1e-12))


REFERENCES = {
    "normal": (lambda: dist.Normal(1.25, 0.75), stats.norm(1.25, 0.75)),
    "student-t": (lambda: dist.StudentT(3.5, 1.0, 0.75), stats.t(3.5, 1.0, 0.75)),
    "pareto": (lambda: dist.Pareto(0.5, 2.5), stats.pareto(2.5, scale=0.5)),
    # Analytic at the end of its support, so that nothing but the tail is beyond a grid.
    "exponential": (lambda: dist.Exponential(0.8), stats.expon(scale=1.25)),
}


@pytest.mark.parametrize("name", with_long(REFERENCES, "exponential"))
def test_a_constant_energy_leaves_the_reference(name):
    make, distribution = REFERENCES[name]
    constants = np.array([0.0, 30.0, -30.0, 200.0, -200.0])
    coefficients = jnp.asarray(constants[:, None] * np.ones(5))
    prior = KAEMPrior(Energy(BSpline(LOW, HIGH, 5), coefficients), make())
    # A shift of 200 in float32 costs the rounding of 200.
    check_distribution(
        prior,
        distribution,
        distribution.ppf([1e-3, 0.2, 0.6, 0.98]),
        log_atol=(1e-4, 1e-11),
        rtol=(5e-5, 1e-9),
    )


def test_a_constant_added_to_the_energy_changes_nothing(x64):
    coefficients = np.random.default_rng(0).normal(size=6)

    def shift(constants):
        shifted = jnp.asarray(coefficients + constants[:, None])
        return KAEMPrior(
            Energy(BSpline(LOW, HIGH, 6), shifted), dist.Normal(1.25, 0.75)
        )

    plain = shift(np.zeros(2))
    eps = float(np.finfo(np.float64 if x64 else np.float32).eps)
    z, u = np.array([-2.0, -0.3, 0.9, 2.0, 3.5])[:, None], U[:, None]
    for size in (30.0, 200.0, 1e4):
        constants = np.array([size, -size])
        with warnings.catch_warnings():
            # Rounded to 1e-3, the energies near 1e4 of float32 deserve the warning.
            if not x64 and size == 1e4:
                warnings.simplefilter("ignore", UserWarning)
            shifted = shift(constants)
        # Each coefficient is rounded, and so is each sum of features.
        rounding = 8 * eps * (1 + size)
        for method, points, atol in (
            ("log_prob", z, 2 * rounding + 1e-14),
            ("cdf", z, rounding + 1e-14),
            ("icdf", u, 20 * rounding + 1e-13),
        ):
            expected = getattr(plain, method)(points)
            assert_allclose(getattr(shifted, method)(points), expected, atol=atol)
        assert_allclose(
            shifted.log_normalizer - plain.log_normalizer, constants, atol=rounding
        )
        assert np.all(np.isfinite(shifted.sample(jax.random.key(0), (100,))))


def test_huge_energies_stay_finite_and_ordered_and_warn(x64):
    # In float64 the finer rule still resolves energies of 1e4.
    size = 1e6 if x64 else 1e4
    coefficients = size * np.random.default_rng(1).uniform(-1, 1, size=(8, 12))
    with pytest.warns(UserWarning, match="estimated relative error of .*refinement"):
        prior = KAEMPrior(
            Energy(RBF(LOW, HIGH, 12), jnp.asarray(coefficients)),
            dist.Normal(1.25, 0.75),
        )
    assert prior.refinement == 8
    u = np.linspace(0.0005, 0.9995, 1001)
    z = np.asarray(prior.icdf(u[:, None]))
    assert np.all(np.isfinite(z))
    assert np.all(np.diff(z, axis=0) >= -2 * np.spacing(np.abs(z[1:]) + 1))
    assert np.all(np.isfinite(prior.log_normalizer))
    assert np.all(np.asarray(prior.quadrature_error) > 0)
    draws = prior.sample(jax.random.key(2), (1000,))
    assert np.all(np.isfinite(draws))
    # Panels without mass between others.
    make = lambda c: KAEMPrior(Energy(BSpline(0.5, 4.5, 4, degree=0), c))  # noqa: E731
    levels = jnp.asarray([0.0, -1e4, -1e4, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        prior = make(levels)
    z = np.asarray(prior.icdf(np.array([0.0, 0.25, 0.499, 0.5, 0.501, 0.75, 1.0])))
    middle, z = z[3], np.delete(z, 3)
    assert_close(z, np.array([0.5, 1.0, 1.498, 3.502, 4.0, 4.5]), rtol=(1e-5, 1e-10))
    assert 1.5 - 1e-5 <= middle <= 3.5 + 1e-5
    assert_close(prior.cdf(np.array([1.6, 2.5, 3.4])), 0.5, rtol=(1e-6, 1e-13))
    gradient = jax.jit(jax.grad(lambda c: make(c).icdf(0.3)))(levels)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(prior.sample(jax.random.key(0), (1000,))))


def test_refinement(x64):
    coefficients = 10 * np.random.default_rng(3).normal(size=7)
    energy = Energy(RBF(LOW, HIGH, 7), jnp.asarray(coefficients))
    chosen = KAEMPrior(energy)
    assert chosen.refinement > 1
    fine = KAEMPrior(energy, refinement=8)
    assert fine.refinement == 8
    assert_close(chosen.log_normalizer, fine.log_normalizer, rtol=(1e-6, 1e-12))
    # Traced energies are not looked at: what is not asked for is not done.
    refinements = []

    @jax.jit
    def trace(energy):
        refinements.append(KAEMPrior(energy).refinement)
        return KAEMPrior(energy, refinement=3).log_normalizer

    assert_close(trace(energy), fine.log_normalizer, rtol=(1e-5, 1e-9))
    assert refinements == [1]
    calm = KAEMPrior(Energy(energy.basis, jnp.zeros(7)))
    assert calm.refinement == 1
    # A coarse rule on a rough energy knows that it errs.
    steep = Energy(energy.basis, jnp.asarray(20 * coefficients))
    with pytest.warns(UserWarning, match="a larger refinement than 1"):
        coarse = KAEMPrior(steep, refinement=1)
    assert float(coarse.quadrature_error) > 1e-4
    # The rule resolves the whole of a panel, and its series less of the parts: the
    # estimate is of those.
    rate = 30.0 if x64 else 20.0
    energy = Energy(Chebyshev(0.0, 1.0, 1), jnp.asarray([0.0, rate / 2]))
    prior = KAEMPrior(energy, refinement=1)
    z = np.linspace(0.0, 1.0, 201)
    error = np.abs(
        np.asarray(prior.cdf(z), float) - np.expm1(rate * z) / np.expm1(rate)
    )
    assert error.max() < prior.quadrature_error < 10 * error.max()


SINGLE = {
    "rbf": RBF(LOW, HIGH, 1),
    "bspline": BSpline(LOW, HIGH, 1, degree=0),
    "chebyshev": Chebyshev(LOW, HIGH, 0),
    "fourier": Fourier(LOW, HIGH, 1),
}


@pytest.mark.parametrize("name", with_long(SINGLE, "rbf"))
def test_one_basis_function(name):
    basis = SINGLE[name]
    coefficients = 2.0 * np.ones(basis.num_features)
    prior = KAEMPrior(Energy(basis, jnp.asarray(coefficients)))
    s = (np.arange(200_000) + 0.5) / 200_000
    values = {
        RBF: 2 * np.exp(-0.5 * (s - 0.5) ** 2),
        BSpline: 2 * np.ones_like(s),
        Chebyshev: 2 * np.ones_like(s),
        Fourier: 2 * np.cos(np.pi * s) + 2 * np.sin(np.pi * s),
    }[type(basis)]
    mass = np.exp(values).mean()
    assert_close(prior.log_normalizer, np.log(mass), rtol=(1e-6, 1e-9))
    cdf = np.cumsum(np.exp(values)) / mass / len(s)
    at = [10_000, 90_000, 170_000]
    z = LOW + (HIGH - LOW) * np.array([(i + 1) / len(s) for i in at])
    assert_close(prior.cdf(z), cdf[at], atol=(3e-6, 1e-9))
    assert_close(prior.icdf(cdf[at]), z, rtol=(3e-5, 1e-8))
