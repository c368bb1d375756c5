"""Expectation and maximisation for mixtures of products of densities: the pure core."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from numpyro_kaem.bases import AbstractBasis, on_unit_grid
from numpyro_kaem.estimation.exponential_family import (
    RIDGE,
    Design,
    Fit,
    fit_columns,
    make_design,
)
from numpyro_kaem.numerics.nodes import Nodes, make_nodes
from numpyro_kaem.references import ReferenceParameters, log_density

__all__ = [
    "MixtureFit",
    "Problem",
    "fit_product_mixture",
    "held_out",
    "k_means",
    "make_problem",
]

# Iterations at which the evidence chooses the penalties, which are held after the last.
_CHOOSE_AT = (0, 3, 8, 15)
_CHUNK = 4_000_000


class Problem(NamedTuple):
    """Samples as unit positions, and what does not change from step to step."""

    basis: AbstractBasis
    """Features on the unit grid."""
    design: Design
    """Their coordinates."""
    nodes: Nodes
    """Quadrature of the reference, one row for all dimensions or one for each."""
    position: jax.Array
    """Unit positions of the samples, shape ``(n, dim)``."""
    log_reference: jax.Array
    """Log density of the samples under the reference, shape ``(n,)``."""
    shares: jax.Array
    """Weights that sum to 1, shape ``(n,)``."""
    num_effective: float
    """Number of samples that the weights are worth."""


class MixtureFit(NamedTuple):
    """A fitted mixture of products."""

    log_weights: jax.Array
    """Log proportions, shape ``(num_components,)``."""
    coefficients: jax.Array
    """Shape ``(num_components, dim, num_features)``."""
    objective: list[float]
    """Penalised log likelihood, one for each iteration."""
    num_chosen: int
    """Number of iterations after which the penalties were held."""
    converged: bool
    """Whether the gain fell below the tolerance."""

    @property
    def gain(self) -> float:
        """Gain of the last iteration a sample; infinite for the first."""
        return self.objective[-1] - ([-np.inf, *self.objective])[-2]


def make_problem(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    data: np.ndarray,
    shares: np.ndarray,
    num_effective: float,
) -> Problem:
    """Make the fixed parts of a fit.

    Parameters
    ----------
    basis
        Features, with grids that broadcast to ``(dim,)``.
    parameters
        Of the reference, whose batch shape broadcasts to ``(dim,)``; ``None`` is the
        uniform law on the grid.
    data
        Samples, shape ``(n, dim)``.
    shares
        Weights that sum to 1, shape ``(n,)``.
    num_effective
        Number of samples that they are worth.

    Returns
    -------
    Problem
    """
    dtype = jnp.zeros(()).dtype
    z = jnp.asarray(data, dtype)
    if parameters is None:
        width = np.asarray(basis.high) - np.asarray(basis.low)
        log_reference = -np.log(np.broadcast_to(width, data.shape[1:])).sum()
        log_reference = jnp.full(len(data), log_reference, dtype)
    else:
        log_reference = jnp.sum(log_density(parameters.build(), z), axis=-1)
    return Problem(
        on_unit_grid(basis),
        make_design(basis, dtype).to_jax(dtype),
        make_nodes(basis, parameters, data.shape[1:], dtype),
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

    Parameters
    ----------
    problem
        Samples and features.
    division
        Shares of the components, and their sums of features, as from
        :func:`from_labels` or :func:`expect`.
    penalty
        Weight of the roughness, shape ``(dim,)``; ``None`` chooses it for every
        component and dimension in the first iterations.
    pseudo_count
        Number of samples of all that every column of a component is given beside its
        own.
    max_steps
        Largest number of iterations.
    tolerance
        Gain of the penalised log likelihood a sample below which to stop.

    Returns
    -------
    MixtureFit
    """
    sizes, sums = division
    num_components, dim, _ = sums.shape
    num_columns = num_components * dim
    nodes = Nodes(*(_tiled(part, num_components) for part in problem.nodes))
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
            problem.basis,
            problem.design,
            nodes,
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


def held_out(problem: Problem, fit: MixtureFit) -> float:
    """Mean log density of the samples of a problem."""
    return float(expect(problem, fit.log_weights, fit.coefficients)[0])


def _tiled(rows: jax.Array, count: int) -> jax.Array:
    return rows if rows.shape[0] == 1 else jnp.tile(rows, (count, 1))


@jax.jit
def _log_prior(
    problem: Problem, fit: Fit, pooled: jax.Array, added: jax.Array
) -> jax.Array:
    """Log likelihood of the samples that were added, less the penalty, a sample."""
    design, (dim, num_features) = problem.design, pooled.shape
    ridge = fit.penalty[:, None] * design.roughness + RIDGE
    penalty = 0.5 * jnp.sum(jnp.where(design.used, ridge * fit.coordinates**2, 0))
    coefficients = fit.coefficients.reshape(-1, dim, num_features)
    energies = _energies(problem, jnp.zeros(len(coefficients)), coefficients)
    gain = jnp.sum(coefficients * pooled) + jnp.sum(energies.offsets)
    return added * gain - penalty / problem.num_effective


# --- a pass over the samples ---------------------------------------------------------


class _Energies(NamedTuple):
    """The components as the features of a sample see them."""

    slopes: jax.Array
    """Coefficients, shape ``(dim * num_features, num_components)``."""
    offsets: jax.Array
    """Log proportions less log normalisers, shape ``(num_components,)``."""


def expect(
    problem: Problem, log_weights: jax.Array, coefficients: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Divide every sample among the components that may have made it.

    Parameters
    ----------
    problem
        Samples and features.
    log_weights
        Log proportions, shape ``(num_components,)``.
    coefficients
        Shape ``(num_components, dim, num_features)``.

    Returns
    -------
    tuple
        Mean log density; the share of every component, ``(num_components,)``; and its
        sum of weighted features, ``(num_components, dim, num_features)``.
    """
    energies = _energies(problem, log_weights, coefficients)
    return _divide(problem, energies, None, len(log_weights), _chunk_of(problem))


def from_labels(
    problem: Problem, labels: np.ndarray, num_components: int
) -> tuple[jax.Array, jax.Array]:
    """Shares and sums of features of clusters, as those of :func:`expect`."""
    labels = jnp.asarray(labels)
    return _divide(problem, None, labels, num_components, _chunk_of(problem))[1:]


def _chunk_of(problem: Problem) -> int:
    """Choose the number of samples at a time, so that their features fit in memory."""
    n, dim = problem.position.shape
    chunk = max(1, _CHUNK // (dim * problem.basis.num_features))
    return min(chunk, 1 << max(n - 1, 0).bit_length())


@jax.jit
def _energies(
    problem: Problem, log_weights: jax.Array, coefficients: jax.Array
) -> _Energies:
    num_components, dim, _ = coefficients.shape
    features = problem.basis.unit_features(problem.nodes.position)
    features = jnp.broadcast_to(features, (dim, *features.shape[1:]))
    energy = jnp.einsum("dmg,kdg->kdm", features, coefficients, precision="highest")
    log_normalizer = logsumexp(energy + problem.nodes.log_mass, axis=-1)
    return _Energies(
        coefficients.reshape(num_components, -1).T,
        log_weights - jnp.sum(log_normalizer, axis=-1),
    )


@partial(jax.jit, static_argnames=("num_components", "chunk"))
def _divide(
    problem: Problem,
    energies: _Energies | None,
    labels: jax.Array | None,
    num_components: int,
    chunk: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    n, dim = problem.position.shape
    dtype = problem.position.dtype
    num_features = problem.basis.num_features
    missing = -n % chunk

    def split(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1))
        return array.reshape(-1, chunk, *array.shape[1:])

    def add(total: tuple, part: tuple) -> tuple[tuple, None]:
        position, log_reference, shares, labels = part
        features = problem.basis.unit_features(position).reshape(chunk, -1)
        if energies is None:
            log_density = jnp.zeros_like(shares)
            members = jax.nn.one_hot(labels, num_components, dtype=dtype)
        else:
            joint = jnp.matmul(features, energies.slopes, precision="highest")
            joint = joint + energies.offsets
            log_density = logsumexp(joint, axis=-1)
            members = jnp.exp(joint - log_density[:, None])
            log_density = log_density + log_reference
        members = shares[:, None] * members
        sums = jnp.matmul(members.T, features, precision="highest")
        values = (jnp.sum(shares * log_density), jnp.sum(members, axis=0), sums)
        return jax.tree_util.tree_map(jnp.add, total, values), None

    labels = jnp.zeros(n, jnp.int32) if labels is None else labels
    parts = (problem.position, problem.log_reference, problem.shares, labels)
    start = (
        jnp.zeros((), dtype),
        jnp.zeros(num_components, dtype),
        jnp.zeros((num_components, dim * num_features), dtype),
    )
    value, sizes, sums = jax.lax.scan(add, start, tuple(map(split, parts)))[0]
    return value, sizes, sums.reshape(num_components, dim, num_features)


_MAX_STEPS = 50


def k_means(
    rng: np.random.Generator, points: np.ndarray, weights: np.ndarray, num_clusters: int
) -> np.ndarray:
    """Divide points into clusters about their means, by Lloyd's algorithm.

    The first centres are points far from each other (k-means++).

    Parameters
    ----------
    rng
        Random numbers for the first centres.
    points
        Shape ``(n, dim)``, in units in which distances matter alike.
    weights
        Weights of the points, not negative and not all zero, shape ``(n,)``.
    num_clusters
        Number of clusters.

    Returns
    -------
    Array
        Index of the cluster of every point, shape ``(n,)``. Clusters may be empty where
        there are fewer distinct points.

    References
    ----------
    Arthur and Vassilvitskii (2007), "k-means++: the advantages of careful seeding",
    *Symposium on Discrete Algorithms*.
    """
    centres = _far_points(rng, points, weights, num_clusters)
    label = _nearest(points, centres)
    for _ in range(_MAX_STEPS):
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
    """Points drawn with chances in proportion to squared distances from the earlier."""
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
