"""Penalised maximum likelihood in the exponential family of a basis: the pure core.

An exponential family on the unit grid is convex in its coefficients. It is fitted in
coordinates in which the energy is orthonormal on the grid and its roughness diagonal:
one Newton step is a few small matrix products, well scaled even in float32.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from numpyro_kaem.bases import AbstractBasis, on_unit_grid
from numpyro_kaem.coordinates import Design
from numpyro_kaem.reference_nodes import Nodes

__all__ = [
    "RIDGE",
    "Fit",
    "fit_columns",
    "mean_features",
]

RIDGE = 1e-3
"""Weight of the energy's variance on the grid: it bounds what the data leave open."""

_NUM_PENALTIES = 24
_MAX_STEPS = 60
_MAX_HALVINGS = 25
# Features held at a time.
_CHUNK = 2_000_000


class Fit(NamedTuple):
    """A fitted column each."""

    coefficients: jax.Array
    """Shape ``(num_columns, num_features)``."""
    penalty: jax.Array
    """Weight of the roughness, shape ``(num_columns,)``."""
    log_evidence: jax.Array
    """Laplace approximation of the log marginal likelihood, up to a constant."""
    converged: jax.Array
    """Whether Newton's method converged."""
    coordinates: jax.Array
    """The same energies in the coordinates of the design, the shape of coefficients."""


# --- data ----------------------------------------------------------------------------


def mean_features(
    basis: AbstractBasis, position: ArrayLike, weights: ArrayLike
) -> jax.Array:
    """Weighted mean of the features, in chunks of bounded size.

    Parameters
    ----------
    basis
        Features.
    position
        Unit positions, shape ``(num_samples, num_columns)``.
    weights
        Weights that sum to 1 over samples, shape ``(num_samples, num_columns or 1)``.

    Returns
    -------
    Array
        Shape ``(num_columns, num_features)``.
    """
    num_samples, num_columns = np.shape(position)
    chunk = max(1, _CHUNK // (num_columns * basis.num_features))
    chunk = min(chunk, 1 << max(num_samples - 1, 0).bit_length())
    return _mean_features(on_unit_grid(basis), position, weights, chunk)


@partial(jax.jit, static_argnames="chunk")
def _mean_features(
    basis: AbstractBasis, position: jax.Array, weights: jax.Array, chunk: int
) -> jax.Array:
    missing = -position.shape[0] % chunk

    def split(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, ((0, missing), (0, 0)))
        return array.reshape(-1, chunk, array.shape[1])

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple:
        s, w = part
        features = basis.unit_features(s)
        w = jnp.broadcast_to(w, s.shape)
        return total + jnp.einsum("nk,nkg->kg", w, features, precision="highest"), None

    start = jnp.zeros((position.shape[1], basis.num_features), position.dtype)
    return jax.lax.scan(add, start, (split(position), split(weights)))[0]


# --- the fit -------------------------------------------------------------------------


def fit_columns(
    basis: AbstractBasis,
    design: Design,
    nodes: Nodes,
    means: ArrayLike,
    num_effective: ArrayLike,
    penalty: ArrayLike | None,
    start: ArrayLike | None = None,
) -> Fit:
    """Fit every column.

    Parameters
    ----------
    basis
        Features.
    design
        Their coordinates.
    nodes
        Quadrature of the reference.
    means
        Mean features of the samples, shape ``(num_columns, num_features)``.
    num_effective
        Number of samples that the weights are worth, shape ``(num_columns,)``.
    penalty
        Weight of the roughness, broadcasting to ``(num_columns,)``; ``None`` maximises
        the evidence.
    start
        Coordinates to start from, shape ``(num_columns, num_features)``, where the
        penalty is given; ``None`` starts from the reference.

    Returns
    -------
    Fit
    """
    dtype = means.dtype
    design = design.to_jax(dtype)
    num_columns = means.shape[0]
    # A negative one is to be chosen: a traced number, so that both are one program.
    penalty = -1.0 if penalty is None else penalty
    penalty = jnp.broadcast_to(jnp.asarray(penalty, dtype), num_columns)
    start = jnp.zeros_like(means) if start is None else start
    return _fit_columns(
        on_unit_grid(basis), design, nodes, means, num_effective, penalty, start
    )


@jax.jit
def _fit_columns(
    basis: AbstractBasis,
    design: Design,
    nodes: Nodes,
    means: jax.Array,
    num_effective: jax.Array,
    penalty: jax.Array,
    start: jax.Array,
) -> Fit:
    centred = jnp.where(design.used, (means - design.centre) @ design.transform, 0)

    def features(position: jax.Array) -> jax.Array:
        values = basis.unit_features(position) - design.centre
        return jnp.matmul(values, design.transform, precision="highest")

    shared = nodes.position.shape[0] == 1
    common = features(nodes.position[0]) if shared else None

    def fit(column: tuple) -> Fit:
        mean, size, weight, start, position, log_mass = column
        psi = common if shared else features(position)
        log_mass = nodes.log_mass[0] if nodes.log_mass.shape[0] == 1 else log_mass
        return _fit_column(design, psi, log_mass, mean, size, weight, start)

    rows = [
        jnp.broadcast_to(a, (means.shape[0], a.shape[1]))
        if a.shape[0] > 1
        else jnp.zeros((means.shape[0], 0), a.dtype)
        for a in nodes
    ]
    columns = (centred, num_effective, penalty, start, *rows)
    size = nodes.position.shape[1] * means.shape[1]
    batch = max(1, min(means.shape[0], 8 * _CHUNK // size))
    coordinates, chosen, evidence, converged = jax.lax.map(
        fit, columns, batch_size=batch
    )
    coefficients = jnp.matmul(coordinates, design.transform.T, precision="highest")
    return Fit(coefficients, chosen, evidence, converged, coordinates)


def _fit_column(
    design: Design,
    psi: jax.Array,
    log_mass: jax.Array,
    mean: jax.Array,
    size: jax.Array,
    penalty: jax.Array,
    start: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Coordinates, penalty, evidence and whether converged, of one column."""
    problem = (psi, log_mass, mean, size)
    # From the smoothest to the roughest, each started from the one before; then at the
    # best, in the same loop, so that it is compiled once. A penalty that is given is
    # the last step alone.
    given = penalty >= 0
    top = jnp.log(10 * size)
    bottom = -jnp.log(jnp.max(design.roughness) + 1)
    logs = top + (bottom - top) * jnp.linspace(0, 1, _NUM_PENALTIES, dtype=mean.dtype)

    def fit(state: tuple) -> tuple:
        step, theta, path, path_evidence, *_ = state
        is_last = step == _NUM_PENALTIES
        best, log_penalty = _best_penalty(logs, path_evidence)
        weight = jnp.exp(jnp.where(is_last, log_penalty, logs[step]))
        weight = jnp.where(given, penalty, weight)
        theta = jnp.where(is_last & ~given, path[best], theta)
        # The evidence is flat at its top in theta: an error of 0.01 is enough.
        tolerance = jnp.where(is_last, 0, 0.01 / size)
        ridge = _ridge(design, weight)
        theta, converged = _newton(*problem, ridge, theta, tolerance)
        evidence = _evidence(*problem, ridge, theta)
        path = path.at[step].set(theta, mode="drop")
        path_evidence = path_evidence.at[step].set(
            jnp.where(jnp.isfinite(evidence), evidence, -jnp.inf), mode="drop"
        )
        return step + 1, theta, path, path_evidence, evidence, weight, converged

    none = jnp.full(_NUM_PENALTIES, -jnp.inf, mean.dtype)
    path = jnp.zeros((_NUM_PENALTIES, len(mean)), mean.dtype)
    first = jnp.where(given, _NUM_PENALTIES, 0)
    theta = jnp.where(given, start, 0)
    state = (first, theta, path, none, none[0], none[0], jnp.asarray(False))
    _, theta, _, _, evidence, penalty, converged = jax.lax.while_loop(
        lambda state: state[0] <= _NUM_PENALTIES, fit, state
    )
    return theta, penalty, evidence, converged


def _best_penalty(logs: jax.Array, evidence: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index of the best, and top of the parabola through it and its neighbours."""
    best = jnp.argmax(evidence)
    inner = jnp.clip(best, 1, _NUM_PENALTIES - 2)
    left, middle, right = (evidence[inner + i] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / jnp.where(bend < 0, bend, -1)
    interior = (best == inner) & jnp.isfinite(shift)
    shift = jnp.where(interior, jnp.clip(shift, -0.5, 0.5), 0)
    return best, logs[best] + shift * (logs[1] - logs[0])


def _ridge(design: Design, penalty: jax.Array) -> jax.Array:
    """Diagonal of the penalty."""
    return jnp.where(design.used, penalty * design.roughness + RIDGE, 1)


def _objective(
    psi: jax.Array,
    log_mass: jax.Array,
    mean: jax.Array,
    size: jax.Array,
    ridge: jax.Array,
    theta: jax.Array,
) -> jax.Array:
    """Penalised log likelihood a sample."""
    energy = jnp.matmul(psi, theta, precision="highest")
    penalty = 0.5 * jnp.sum(ridge / size * theta**2)
    return (
        jnp.dot(mean, theta, precision="highest")
        - penalty
        - logsumexp(log_mass + energy)
    )


def _moments(psi: jax.Array, log_mass: jax.Array, theta: jax.Array) -> tuple:
    """Mean and covariance of the features under the density."""
    mass = jax.nn.softmax(log_mass + jnp.matmul(psi, theta, precision="highest"))
    mean = jnp.matmul(mass, psi, precision="highest")
    centred = jnp.sqrt(mass)[:, None] * (psi - mean)
    return mean, jnp.matmul(centred.T, centred, precision="highest")


def _factor(hessian: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cholesky factor after scaling to a unit diagonal, and the scales."""
    scale = jnp.sqrt(jnp.diagonal(hessian))
    eye = jnp.eye(len(scale), dtype=hessian.dtype)
    scaled = hessian / (scale[:, None] * scale) + 8 * jnp.finfo(hessian.dtype).eps * eye
    return jnp.linalg.cholesky(scaled), scale


def _newton(
    psi: jax.Array,
    log_mass: jax.Array,
    mean: jax.Array,
    size: jax.Array,
    ridge: jax.Array,
    theta: jax.Array,
    tolerance: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Maximise by Newton's method with backtracking; whether it converged.

    It stops after the step whose squared Newton decrement, twice the expected gain, is
    below the tolerance or the rounding of the objective.
    """
    eps = jnp.finfo(psi.dtype).eps
    value_of = partial(_objective, psi, log_mass, mean, size, ridge)

    def step(state: tuple) -> tuple:
        theta, value, _, count = state
        model_mean, covariance = _moments(psi, log_mass, theta)
        gradient = mean - model_mean - ridge / size * theta
        factor, scale = _factor(covariance + jnp.diag(ridge / size))
        solve = jax.scipy.linalg.cho_solve
        direction = solve((factor, True), gradient / scale) / scale
        decrement = jnp.dot(gradient, direction, precision="highest")
        noise = 8 * eps * (1 + jnp.abs(value))

        def halve(trial: tuple) -> tuple:
            length = 0.5 * trial[0]
            return length, value_of(theta + length * direction), trial[2] + 1

        def too_long(trial: tuple) -> jax.Array:
            enough = trial[1] >= value + 0.1 * trial[0] * decrement - noise
            return ~enough & (trial[2] < _MAX_HALVINGS)

        length, new_value, _ = jax.lax.while_loop(
            too_long, halve, (jnp.ones_like(value), value_of(theta + direction), 0)
        )
        better = new_value >= value - noise
        theta = jnp.where(better, theta + length * direction, theta)
        value = jnp.where(better, new_value, value)
        # Rounding of the gradient is amplified where there is hardly any mass.
        small = jnp.maximum(tolerance, 32 * eps * (1 + jnp.abs(value)))
        return theta, value, decrement <= small, count + 1

    theta, _, converged, _ = jax.lax.while_loop(
        lambda state: ~state[2] & (state[3] < _MAX_STEPS),
        step,
        (theta, value_of(theta), jnp.asarray(False), 0),
    )
    return theta, converged


def _evidence(
    psi: jax.Array,
    log_mass: jax.Array,
    mean: jax.Array,
    size: jax.Array,
    ridge: jax.Array,
    theta: jax.Array,
) -> jax.Array:
    """Laplace approximation of the log marginal likelihood of the penalty."""
    value = size * _objective(psi, log_mass, mean, size, ridge, theta)
    _, covariance = _moments(psi, log_mass, theta)
    factor, scale = _factor(size * covariance + jnp.diag(ridge))
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)) + jnp.log(scale))
    return value + 0.5 * (jnp.sum(jnp.log(ridge)) - log_det)
