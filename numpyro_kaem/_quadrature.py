"""Gauss and Gauss-Kronrod rules, and moments by them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["gauss_kronrod", "gauss_legendre", "mean_and_variance", "nodes_per_panel"]


def nodes_per_panel(dtype: np.dtype) -> int:
    """Gauss nodes per panel: 8 in float32 (and narrower), 16 in float64."""
    return 16 if np.dtype(dtype) == np.float64 else 8


@cache
def gauss_legendre(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in (-1, 1) and weights of the Gauss-Legendre rule, in float64."""
    return np.polynomial.legendre.leggauss(num_nodes)


@cache
def gauss_kronrod(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Nodes and weights of the Kronrod extension of a Gauss-Legendre rule.

    The extension adds the zeros of the Stieltjes polynomial :math:`E_{n+1}`, which is
    orthogonal to all polynomials of degree at most :math:`n` under the weight
    :math:`P_n`: every second of the ``2 * num_nodes + 1`` increasing nodes is a Gauss
    node. The weights make the rule interpolatory. Patterson (1968), "The optimum
    addition of points to quadrature formulae", *Mathematics of Computation* 22(104).
    """
    legendre = np.polynomial.legendre
    n = num_nodes
    # Coefficients of E in the Legendre basis, leading one 1, from the n + 1 conditions
    # of orthogonality, integrated exactly.
    x, w = legendre.leggauss(2 * n + 2)
    values = legendre.legvander(x, n + 1)
    gram = np.einsum("x,x,xi,xj->ij", w, values[:, n], values[:, : n + 1], values)
    head, *_ = np.linalg.lstsq(gram[:, :-1], -gram[:, -1], rcond=None)
    stieltjes = legendre.Legendre([*head, 1.0])
    added = np.sort(stieltjes.roots().real)
    # The companion matrix gives 1e-13 or so; two Newton steps give the rest.
    for _ in range(2):
        added = added - stieltjes(added) / stieltjes.deriv()(added)
    nodes = np.sort(np.concatenate([gauss_legendre(n)[0], added]))
    nodes = 0.5 * (nodes - nodes[::-1])
    vander = legendre.legvander(nodes, 2 * n)
    moments = np.zeros(2 * n + 1)
    moments[0] = 2.0
    weights = np.linalg.solve(vander.T, moments)
    return nodes, 0.5 * (weights + weights[::-1])


def mean_and_variance(
    nodes: jax.Array, log_masses: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of masses that sum to one, along the first axis.

    A root of the mass goes with each factor: far out in a heavy tail the square of a
    distance is infinite in float32, and the mass may be zero.
    """
    root = jnp.exp(0.5 * log_masses)
    mean = jnp.sum(root * (root * nodes), axis=0)
    return mean, jnp.sum(jnp.square(root * (nodes - mean)), axis=0)
