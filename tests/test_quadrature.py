"""Gauss and Gauss-Kronrod rules against exact integrals."""

import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import numpyro_kaem as kaem
from numpyro_kaem._quadrature import gauss_kronrod, gauss_legendre, nodes_per_panel


def monomial_integral(degree):
    return 2.0 / (degree + 1) if degree % 2 == 0 else 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 10, 15, 16])
def test_degrees_of_exactness(n):
    nodes, weights = gauss_kronrod(n)
    assert nodes.shape == weights.shape == (2 * n + 1,)
    assert np.all(np.diff(nodes) > 0)
    assert -1 < nodes[0]
    assert nodes[-1] < 1
    assert np.all(weights > 0)
    # With these nodes, which are Gauss's, and this exactness there is one rule alone.
    assert_allclose(nodes[1::2], gauss_legendre(n)[0], atol=2e-15)
    assert_allclose(nodes, -nodes[::-1], atol=0)
    # Exact to degree 3n + 1, in a Legendre basis that has no rounding to speak of.
    vander = np.polynomial.legendre.legvander(nodes, 3 * n + 1)
    exact = np.zeros(3 * n + 2)
    exact[0] = 2.0
    assert_allclose(weights @ vander, exact, atol=5e-15)
    # One more for odd n, by symmetry; and not beyond.
    first = 3 * n + 2 + n % 2
    beyond = np.polynomial.legendre.Legendre.basis(first)(nodes)
    assert abs(weights @ beyond) > 1e-5
    # And Gauss to degree 2n - 1.
    nodes, weights = gauss_legendre(n)
    for degree in range(2 * n):
        assert_allclose(weights @ nodes**degree, monomial_integral(degree), atol=1e-14)
    assert abs(weights @ nodes ** (2 * n) - monomial_integral(2 * n)) > 1e-11


@pytest.mark.float64
def test_moments_of_heavy_tails():
    """Squares of the far nodes overflow in float32, whose masses are not zero."""
    for dtype, expected in (("float16", 8), ("float32", 8), ("float64", 16)):
        assert nodes_per_panel(np.dtype(dtype)) == expected
    flat = kaem.Energy(kaem.BSpline(1e11, 1e13, 8), np.zeros(8))
    prior = kaem.KAEMPrior(flat, dist.LogNormal(27.6, 1.5))
    lognormal = stats.lognorm(1.5, scale=np.exp(27.6))
    assert_allclose(prior.mean, lognormal.mean(), rtol=1e-5)
    assert_allclose(prior.variance, lognormal.var(), rtol=1e-5)
    flat = kaem.Energy(kaem.BSpline(-2.0, 3.0, 8), np.zeros(8))
    prior = kaem.KAEMPrior(flat, dist.StudentT(2.5, 1.0, 2.0))
    assert_allclose(prior.variance, 20.0, rtol=1e-5)
    # Finite sums over the nodes do not stand for moments that a tail has not.
    prior = kaem.KAEMPrior(flat, dist.StudentT(1.5, 1.0, 2.0))
    assert_allclose(prior.mean, 1.0, atol=1e-3)
    assert prior.variance == np.inf
