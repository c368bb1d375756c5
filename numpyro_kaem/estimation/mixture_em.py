"""Expectation and maximisation for mixtures of products of densities: the pure core."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.estimation.exponential_family import (
    Family,
    Fit,
    fit_columns,
    log_normalizers,
    sum_over_samples,
)
from numpyro_kaem.numerics.nodes import Nodes, make_nodes
from numpyro_kaem.references import ReferenceParameters, log_density

__all__ = [
    "MixtureFit",
    "Problem",
    "expect",
    "fit_product_mixture",
    "from_labels",
    "k_means",
    "make_problem",
]

# Iterations at which the evidence chooses the penalties, which are held after the last.
_CHOOSE_AT = (0, 3, 8, 15)
_MAX_K_MEANS_STEPS = 50


class Problem(NamedTuple):
    """Unit positions ``(n, dim)`` of samples, and what does not change between steps.

    ``log_reference`` is the log density of the samples under the reference, and
    ``shares`` are weights that sum to 1, both of shape ``(n,)``.
    """

    family: Family
    position: jax.Array
    log_reference: jax.Array
    shares: jax.Array
    num_effective: float


class MixtureFit(NamedTuple):
    """A fitted mixture of products.

    ``coefficients`` have the shape ``(num_components, dim, num_features)``,
    ``objective`` is the penalised log likelihood of each iteration, and ``num_chosen``
    the number of iterations after which the penalties were held.
    """

    log_weights: jax.Array
    coefficients: jax.Array
    objective: list[float]
    num_chosen: int
    converged: bool

    @property
    def gain(self) -> float:
        """Gain of the last iteration per sample; infinite for the first."""
        return self.objective[-1] - ([-np.inf, *self.objective])[-2]


def make_problem(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    data: np.ndarray,
    shares: np.ndarray,
    num_effective: float,
) -> Problem:
    """Problem of samples ``(n, dim)``; no reference is the uniform one on the grid."""
    dtype = jnp.zeros(()).dtype
    z = jnp.asarray(data, dtype)
    if parameters is None:
        width = np.asarray(basis.high) - np.asarray(basis.low)
        log_reference = -np.log(np.broadcast_to(width, data.shape[1:])).sum()
        log_reference = jnp.full(len(data), log_reference, dtype)
    else:
        log_reference = jnp.sum(log_density(parameters.build(), z), axis=-1)
    return Problem(
        Family.of(basis, make_nodes(basis, parameters, data.shape[1:], dtype)),
        jnp.broadcast_to(basis.to_unit(z), data.shape),
        log_reference.astype(dtype),
        jnp.asarray(shares, dtype),
        num_effective,
    )


def fit_product_mixture(
    problem: Problem,
    division: tuple[jax.Array, jax.Array],
    penalty: np.ndarray | None,
    pseudo_count: float,
    max_steps: int,
    tolerance: float,
) -> MixtureFit:
    """Climb the penalised likelihood from a division of the samples.

    It has the shares of the components and their sums of features, as from
    :func:`expect`. Penalties of shape ``(dim,)`` are kept; without, each component and
    dimension has its own.
    """
    sizes, sums = division
    num_components, dim, _ = sums.shape
    num_columns = num_components * dim
    family = problem.family
    rows = (
        part if len(part) == 1 else jnp.tile(part, (num_components, 1))
        for part in family.nodes
    )
    family = family._replace(nodes=Nodes(*rows))
    chosen = None if penalty is None else jnp.tile(penalty, num_components)
    num_chosen = 0 if penalty is not None else _CHOOSE_AT[-1] + 1
    pooled = jnp.sum(sums, axis=0)
    added = pseudo_count / problem.num_effective
    start, objective, converged = None, [], False
    for step in range(max_steps):
        choose = penalty is None and step in _CHOOSE_AT
        # A component without samples, and without any of all, is the reference.
        share = jnp.maximum(sizes + added, 1e-6)
        means = (sums + added * pooled) / share[:, None, None]
        fit = fit_columns(
            family,
            means.reshape(num_columns, -1),
            jnp.repeat(share * problem.num_effective, dim),
            None if choose else chosen,
            start,
        )
        chosen, start = fit.penalty, fit.coordinates
        coefficients = fit.coefficients.reshape(num_components, dim, -1)
        log_weights = jnp.log(sizes) - jnp.log(jnp.sum(sizes))
        value, sizes, sums = expect(problem, log_weights, coefficients)
        objective.append(float(value + _log_prior(problem, fit, pooled, added)))
        if step > num_chosen and objective[-1] - objective[-2] < tolerance:
            converged = True
            break
    return MixtureFit(log_weights, coefficients, objective, num_chosen, converged)


@jax.jit
def _log_prior(
    problem: Problem, fit: Fit, pooled: jax.Array, added: jax.Array
) -> jax.Array:
    """Log likelihood of the samples that were added, less the penalty, per sample."""
    design, (dim, num_features) = problem.family.design, pooled.shape
    penalty = 0.5 * jnp.sum(design.ridge(fit.penalty[:, None]) * fit.coordinates**2)
    coefficients = fit.coefficients.reshape(-1, dim, num_features)
    gain = jnp.sum(coefficients * pooled) - jnp.sum(_normalizers(problem, coefficients))
    return added * gain - penalty / problem.num_effective


def _normalizers(problem: Problem, coefficients: jax.Array) -> jax.Array:
    """Log normalizing constants, shape ``(num_components, dim)``."""
    basis, _, nodes = problem.family
    features = basis.unit_features(nodes.position)
    return log_normalizers(features, nodes.log_mass, coefficients)


# --- a pass over the samples ---------------------------------------------------------


def expect(
    problem: Problem, log_weights: jax.Array, coefficients: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Divide every sample by the responsibilities of the components for it.

    The mean log density; the share of every component, ``(num_components,)``; and its
    sum of weighted features, ``(num_components, dim, num_features)``.
    """
    offsets = _offsets(problem, log_weights, coefficients)
    return _divide(problem, (coefficients, offsets), None, len(log_weights))


def from_labels(
    problem: Problem, labels: np.ndarray, num_components: int
) -> tuple[jax.Array, jax.Array]:
    """Shares and sums of features of clusters, as those of :func:`expect`."""
    return _divide(problem, None, jnp.asarray(labels), num_components)[1:]


@jax.jit
def _offsets(
    problem: Problem, log_weights: jax.Array, coefficients: jax.Array
) -> jax.Array:
    return log_weights - jnp.sum(_normalizers(problem, coefficients), axis=-1)


@partial(jax.jit, static_argnames="num_components")
def _divide(
    problem: Problem,
    components: tuple[jax.Array, jax.Array] | None,
    labels: jax.Array | None,
    num_components: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    n, dim = problem.position.shape
    basis = problem.family.basis
    if components is not None:
        coefficients, offsets = components
        slopes = coefficients.reshape(num_components, -1).T

    def divide(
        position: jax.Array,
        log_reference: jax.Array,
        shares: jax.Array,
        labels: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        features = basis.unit_features(position).reshape(len(position), -1)
        if components is None:
            log_density = jnp.zeros_like(shares)
            members = jax.nn.one_hot(labels, num_components, dtype=shares.dtype)
        else:
            joint = jnp.matmul(features, slopes, precision="highest") + offsets
            log_density = logsumexp(joint, axis=-1)
            members = jnp.exp(joint - log_density[:, None])
            log_density = log_density + log_reference
        members = shares[:, None] * members
        sums = jnp.matmul(members.T, features, precision="highest")
        return jnp.sum(shares * log_density), jnp.sum(members, axis=0), sums

    labels = jnp.zeros(n, jnp.int32) if labels is None else labels
    samples = (problem.position, problem.log_reference, problem.shares, labels)
    value, sizes, sums = sum_over_samples(divide, samples, dim * basis.num_features)
    return value, sizes, sums.reshape(num_components, dim, -1)


# --- clusters ------------------------------------------------------------------------


def k_means(
    rng: np.random.Generator, points: np.ndarray, weights: np.ndarray, num_clusters: int
) -> np.ndarray:
    """Index of the cluster about a mean of every point, shape ``(n,)``.

    Lloyd's algorithm, from centres that are far from each other (k-means++: Arthur and
    Vassilvitskii 2007). Clusters may be empty where there are fewer distinct points.
    """
    centres = _far_points(rng, points, weights, num_clusters)
    label = _nearest(points, centres)
    for _ in range(_MAX_K_MEANS_STEPS):
        sizes = np.bincount(label, weights, num_clusters)
        sums = np.stack(
            [np.bincount(label, weights * x, num_clusters) for x in points.T], axis=-1
        )
        filled = sizes[:, None] > 0
        centres = np.where(filled, sums / np.where(filled, sizes[:, None], 1), centres)
        previous, label = label, _nearest(points, centres)
        if np.array_equal(label, previous):
            break
    return label


def _far_points(
    rng: np.random.Generator, points: np.ndarray, weights: np.ndarray, count: int
) -> np.ndarray:
    """Points drawn with probabilities in proportion to squared distances."""
    chances = weights / weights.sum()
    chosen = [points[rng.choice(len(points), p=chances)]]
    nearest = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.sum(np.square(points - chosen[-1]), axis=-1)
        nearest = np.minimum(nearest, distance)
        mass = weights * nearest
        total = mass.sum()
        p = mass / total if total > 0 else chances
        chosen.append(points[rng.choice(len(points), p=p)])
    return np.stack(chosen)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index of the nearest centre, shape ``(n,)``."""
    # Squared distances less those of the points from 0, which all centres share.
    distance = np.sum(np.square(centres), axis=-1) - 2 * points @ centres.T
    return np.argmin(distance, axis=-1)
