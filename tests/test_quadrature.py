"""Gauss and Gauss-Kronrod rules against QUADPACK's tables and exact integrals."""

import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import numpyro_kaem as kaem
from numpyro_kaem._quadrature import gauss_kronrod, gauss_legendre, nodes_per_panel

pytestmark = pytest.mark.numerics

# Positive halves, from the outermost node to the centre; QUADPACK's dqk15, after
# Piessens et al. (1983), QUADPACK, Springer.
KRONROD_15_NODES = [
    0.991455371120812639206854697526329,
    0.949107912342758524526189684047851,
    0.864864423359769072789712788640926,
    0.741531185599394439863864773280788,
    0.586087235467691130294144691693013,
    0.405845151377397166906606412076961,
    0.207784955007898467600689403773245,
    0.000000000000000000000000000000000,
]
KRONROD_15_WEIGHTS = [
    0.022935322010529224963732008058970,
    0.063092092629978553290700663189204,
    0.104790010322250183839876322541518,
    0.140653259715525918745189590510238,
    0.169004726639267902826583426598550,
    0.190350578064785409913256402421014,
    0.204432940075298892414161999234649,
    0.209482141084727828012999174891714,
]
GAUSS_7_WEIGHTS = [
    0.129484966168869693270611432679082,
    0.279705391489276667901467771423780,
    0.381830050505118944950369775488975,
    0.417959183673469387755102040816327,
]


def mirrored(half, sign):
    return np.array([sign * h for h in half[:-1]] + half[::-1])


def monomial_integral(degree):
    return 2.0 / (degree + 1) if degree % 2 == 0 else 0.0


def test_published_rule():
    nodes, weights = gauss_kronrod(7)
    assert_allclose(nodes, mirrored(KRONROD_15_NODES, -1), atol=2e-15)
    assert_allclose(weights, mirrored(KRONROD_15_WEIGHTS, 1), atol=2e-15)
    gauss_nodes, gauss_weights = gauss_legendre(7)
    assert_allclose(gauss_nodes, mirrored(KRONROD_15_NODES, -1)[1::2], atol=2e-15)
    assert_allclose(gauss_weights, mirrored(GAUSS_7_WEIGHTS, 1), atol=2e-15)
    for dtype, expected in (("float16", 8), ("float32", 8), ("float64", 16)):
        assert nodes_per_panel(np.dtype(dtype)) == expected


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 10, 15, 16])
def test_degrees_of_exactness(n):
    nodes, weights = gauss_kronrod(n)
    assert nodes.shape == weights.shape == (2 * n + 1,)
    assert np.all(np.diff(nodes) > 0)
    assert -1 < nodes[0]
    assert nodes[-1] < 1
    assert np.all(weights > 0)
    assert_allclose(nodes[1::2], gauss_legendre(n)[0], atol=1e-14)
    assert_allclose(nodes, -nodes[::-1], atol=0)
    # Exact to degree 3n + 1, in a Legendre basis that has no rounding to speak of.
    vander = np.polynomial.legendre.legvander(nodes, 3 * n + 1)
    exact = np.zeros(3 * n + 2)
    exact[0] = 2.0
    assert_allclose(weights @ vander, exact, atol=1e-13)
    # One more for odd n, by symmetry; and not beyond.
    first = 3 * n + 2 + n % 2
    beyond = np.polynomial.legendre.Legendre.basis(first)(nodes)
    assert abs(weights @ beyond) > 1e-5
    # And Gauss to degree 2n - 1.
    nodes, weights = gauss_legendre(n)
    for degree in range(2 * n):
        assert_allclose(weights @ nodes**degree, monomial_integral(degree), atol=1e-14)
    assert abs(weights @ nodes ** (2 * n) - monomial_integral(2 * n)) > 1e-11


def test_moments_of_heavy_tails():
    """Squares of the far nodes overflow in float32, whose masses are not zero."""
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
