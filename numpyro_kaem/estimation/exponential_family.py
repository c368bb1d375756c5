"""Penalised maximum likelihood in an exponential family of densities on a line.

The energies are sums of features. :class:`Design` has coordinates in which the penalty
is diagonal, :func:`ascend` is Newton's method, and :func:`best_penalty` reads the
largest evidence off a grid of penalties; :func:`fit_columns` puts them together.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from numpyro_kaem._quadrature import gauss_legendre, nodes_per_panel
from numpyro_kaem.bases import AbstractBasis, BSpline, on_unit_grid
from numpyro_kaem.numerics.nodes import Cells, Nodes
from numpyro_kaem.references import concretely

__all__ = [
    "RIDGE",
    "Ascent",
    "Design",
    "Family",
    "Fit",
    "ascend",
    "ascent_direction",
    "best_penalty",
    "curvatures",
    "fit_columns",
    "log_determinant",
    "log_normalizers",
    "make_design",
    "mean_features",
    "sum_over_samples",
]

RIDGE = 1e-3
"""Weight of the energy's variance on the grid: it bounds what the data leave open."""

# Order of the derivative of the energy whose square is penalised.
_ROUGHNESS_ORDER = 3
_NUM_PENALTIES = 24
_MAX_STEPS = 60
_MAX_HALVINGS = 25
# Features held at a time.
_CHUNK = 4_000_000
# Relative error of a normalizing constant above which it is none.
_LARGEST_ERROR = 1e-4
# Change of the energy within a panel that a node resolves.
_STEEPEST = 2.5
# Log mass below which a panel counts as empty.
_LEAST_MASS = -30.0

_product = partial(jnp.matmul, precision="highest")


# --- the family ----------------------------------------------------------------------


class Design(NamedTuple):
    """Coordinates for the energies of a basis on the unit interval.

    The coefficients are ``transform @ coordinates``. Then the integral of the squared
    energy, less its mean, is the sum of squared coordinates, and the roughness is the
    sum of ``roughness`` times the squared coordinates. ``centre`` is the mean of each
    feature. Constants, and directions lost to rounding, have no coordinate: they are
    not ``used``, and their columns of ``transform`` are 0. All shapes are
    ``(num_features,)``, that of ``transform`` ``(num_features, num_features)``.
    """

    centre: jax.Array | np.ndarray
    transform: jax.Array | np.ndarray
    roughness: jax.Array | np.ndarray
    used: jax.Array | np.ndarray

    def to_jax(self, dtype: Any) -> "Design":
        """Copy into JAX arrays, the numbers of the given type."""
        centre, transform, roughness = (jnp.asarray(x, dtype) for x in self[:3])
        return Design(centre, transform, roughness, jnp.asarray(self.used))

    def of_features(self, values: jax.Array) -> jax.Array:
        """Features of unit coordinates from those of unit coefficients."""
        return _product(values - self.centre, self.transform)

    def ridge(self, penalty: Any) -> Any:
        """Weights of the squared coordinates for a weight of the roughness."""
        xp = jnp if isinstance(self.roughness, jax.Array) else np
        return xp.where(self.used, penalty * self.roughness + RIDGE, 1)


class Family(NamedTuple):
    """Features on the unit grid, their coordinates, and nodes of the reference."""

    basis: AbstractBasis
    design: Design
    nodes: Nodes

    @classmethod
    def of(cls, basis: AbstractBasis, nodes: Nodes) -> "Family":
        """Family of a basis on any grid."""
        dtype = nodes.position.dtype
        return cls(on_unit_grid(basis), make_design(basis, dtype).to_jax(dtype), nodes)


def make_design(basis: AbstractBasis, dtype: Any) -> Design:
    """Coordinates for a basis with concrete parameters, in float64 NumPy arrays."""
    leaves, treedef = jax.tree_util.tree_flatten(on_unit_grid(basis))
    return _make_design(treedef, tuple(map(float, leaves)), np.dtype(dtype))


@lru_cache(maxsize=64)
def _make_design(treedef: Any, leaves: tuple[float, ...], dtype: np.dtype) -> Design:
    basis = jax.tree_util.tree_unflatten(treedef, [dtype.type(x) for x in leaves])
    breaks = np.asarray(basis.panel_breaks)
    x, weights = gauss_legendre(nodes_per_panel(np.dtype(np.float64)))
    width = np.diff(breaks)[:, None]
    s = (breaks[:-1, None] + width * (x + 1) / 2).reshape(-1)
    weights = (width * weights / 2).reshape(-1)
    with concretely():
        values = np.asarray(_derivative(basis, jnp.asarray(s, dtype), 0), float)
        operator = _roughness_operator(basis, s, weights, dtype)
    num_features = values.shape[1]
    centre = weights @ values
    factor = np.sqrt(weights)[:, None] * (values - centre)
    _, sizes, rows = np.linalg.svd(factor, full_matrices=False)
    kept = sizes > np.sqrt(np.finfo(dtype).eps) * max(sizes.max(), 1e-30)
    white = np.where(kept, rows.T / np.where(kept, sizes, 1), 0)
    # Rotate so that the roughness is diagonal; unused coordinates come last.
    order = np.argsort(~kept, kind="stable")
    white, rank = white[:, order], int(kept.sum())
    _, rough, rotation = np.linalg.svd(operator @ white[:, :rank])
    roughness = np.zeros(num_features)
    roughness[: len(rough)] = rough**2
    transform = np.zeros((num_features, num_features))
    transform[:, :rank] = white[:, :rank] @ rotation.T
    return Design(centre, transform, roughness, np.arange(num_features) < rank)


def _roughness_operator(
    basis: AbstractBasis, s: np.ndarray, weights: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Matrix whose product with coefficients has the roughness as its squared norm."""
    if isinstance(basis, BSpline):
        # Differences of coefficients are defined for every degree.
        order = min(_ROUGHNESS_ORDER, basis.num_basis - 1)
        num_cells = basis.num_basis - basis.degree
        differences = np.diff(np.eye(basis.num_basis), order, axis=0)
        return num_cells ** (order - 0.5) * differences
    derivative = _derivative(basis, jnp.asarray(s, dtype), _ROUGHNESS_ORDER)
    return np.sqrt(weights)[:, None] * np.asarray(derivative)


@partial(jax.jit, static_argnames="order")
def _derivative(basis: AbstractBasis, s: jax.Array, order: int) -> jax.Array:
    """Differentiate all features, shape ``(num_points, num_features)``."""

    def differentiate(function: Callable) -> Callable:
        return lambda s: jax.jvp(function, (s,), (jnp.ones_like(s),))[1]

    function = basis.unit_features
    for _ in range(order):
        function = differentiate(function)
    return function(s)


def log_normalizers(
    features: jax.Array, log_mass: jax.Array, coefficients: jax.Array
) -> jax.Array:
    """Log normalizing constants ``(n, dim)`` of energies ``(n, dim, num_features)``.

    Features ``(dim or 1, num_nodes, num_features)`` and log masses ``(dim or 1,
    num_nodes)`` are those at the nodes.
    """
    if features.shape[0] == 1:
        energy = jnp.tensordot(coefficients, features[0], (-1, -1), precision="highest")
    else:
        energy = jnp.einsum("ndg,dmg->ndm", coefficients, features, precision="highest")
    return logsumexp(energy + log_mass, axis=-1)


# --- sums over samples ---------------------------------------------------------------


def mean_features(
    basis: AbstractBasis, position: jax.Array, weights: jax.Array
) -> jax.Array:
    """Weighted mean of the features, shape ``(num_columns, num_features)``.

    Unit positions have the shape ``(n, num_columns)``, weights ``(n, num_columns or
    1)``.
    """
    return _mean_features(on_unit_grid(basis), position, weights)


@jax.jit
def _mean_features(
    basis: AbstractBasis, position: jax.Array, weights: jax.Array
) -> jax.Array:
    def pooled(s: jax.Array, w: jax.Array) -> jax.Array:
        w = jnp.broadcast_to(w, s.shape)
        features = basis.unit_features(s)
        return jnp.einsum("nk,nkg->kg", w, features, precision="highest")

    width = position.shape[1] * basis.num_features
    return sum_over_samples(pooled, (position, weights), width)


def sum_over_samples(
    function: Callable, samples: tuple[jax.Array, ...], width: int
) -> Any:
    """Sum what a function gives for chunks of samples, ``width`` numbers for each one.

    The last chunk is filled up with zeros.
    """
    num_samples = len(samples[0])
    chunk = max(1, _CHUNK // width)
    chunk = min(chunk, 1 << max(num_samples - 1, 0).bit_length())
    missing = -num_samples % chunk

    def split(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1))
        return array.reshape(-1, chunk, *array.shape[1:])

    parts = tuple(map(split, samples))
    sums = jax.eval_shape(function, *(part[0] for part in parts))
    return jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None),
        jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), sums),
        parts,
    )[0]


# --- Newton's method -----------------------------------------------------------------


class Ascent(NamedTuple):
    """Where Newton's method stopped: ``decrement`` is twice the gain of one more step.

    ``num_small`` counts the steps of a small decrement at the end.
    """

    parameters: jax.Array
    value: jax.Array
    decrement: jax.Array
    num_small: jax.Array
    num_steps: jax.Array
    converged: jax.Array


def ascend(
    value_of: Callable[[jax.Array], jax.Array],
    step_of: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    start: jax.Array,
    *,
    tolerance: ArrayLike,
    eps: ArrayLike,
    max_steps: int,
    num_last: int = 1,
) -> Ascent:
    """Maximise by Newton's method with backtracking.

    ``step_of`` gives the gradient and the direction. The ascent stops after
    ``num_last`` steps in a row whose decrement is below the tolerance, or the rounding
    of the value, which is known to ``eps``.
    """

    def step(state: Ascent) -> Ascent:
        parameters, value = state.parameters, state.value
        gradient, direction = step_of(parameters)
        decrement = jnp.dot(gradient, direction, precision="highest")
        noise = 8 * eps * (1 + jnp.abs(value))

        def halve(trial: tuple) -> tuple:
            length = 0.5 * trial[0]
            return length, value_of(parameters + length * direction), trial[2] + 1

        def too_long(trial: tuple) -> jax.Array:
            enough = trial[1] >= value + 0.1 * trial[0] * decrement - noise
            return ~enough & (trial[2] < _MAX_HALVINGS)

        length, new_value, _ = jax.lax.while_loop(
            too_long, halve, (jnp.ones_like(value), value_of(parameters + direction), 0)
        )
        better = new_value >= value - noise
        parameters = jnp.where(better, parameters + length * direction, parameters)
        value = jnp.where(better, new_value, value)
        # Rounding of the gradient is amplified where there is hardly any mass.
        small = jnp.maximum(tolerance, 32 * eps * (1 + jnp.abs(value)))
        converged = decrement <= small
        num_small = jnp.where(converged, state.num_small + 1, 0)
        count = state.num_steps + 1
        return Ascent(parameters, value, decrement, num_small, count, converged)

    zero, value = jnp.asarray(0), value_of(start)
    first = Ascent(start, value, jnp.zeros_like(value), zero, zero, jnp.asarray(False))
    return jax.lax.while_loop(
        lambda s: (s.num_small < num_last) & (s.num_steps < max_steps), step, first
    )


def curvatures(
    complete: jax.Array, observed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Factor of the complete information; curvatures of the observed one in its units.

    A curvature is the share of the information that the unobserved values leave.
    """
    # A semidefinite matrix is made definite by rounding.
    scale = jnp.maximum(jnp.diagonal(complete), jnp.finfo(complete.dtype).tiny)
    scale = jnp.sqrt(scale)
    eye = jnp.eye(len(scale), dtype=complete.dtype)
    scaled = complete / scale[:, None] / scale
    scaled = scaled + 8 * jnp.finfo(complete.dtype).eps * eye
    factor = scale[:, None] * jnp.linalg.cholesky(scaled)
    solve = partial(jax.scipy.linalg.solve_triangular, factor, lower=True)
    whitened = solve(solve(observed).T)
    return factor, *jnp.linalg.eigh(0.5 * (whitened + whitened.T))


def ascent_direction(
    gradient: jax.Array, complete: jax.Array, observed: jax.Array
) -> jax.Array:
    """Newton's direction where the information is positive, and uphill elsewhere.

    A direction of negative curvature is followed as far as a positive one of the same
    size (Dauphin et al. 2014, "Identifying and attacking the saddle point problem in
    high-dimensional non-convex optimization"), so that no saddle point attracts.
    """
    factor, curvature, axes = curvatures(complete, observed)
    solve = partial(jax.scipy.linalg.solve_triangular, factor, lower=True)
    along = axes.T @ solve(gradient)
    # Rounding leaves no smaller curvature, as a share of that of the complete data.
    least = 8 * jnp.sqrt(jnp.finfo(gradient.dtype).eps)
    size = jnp.maximum(jnp.abs(curvature), least)
    return jax.scipy.linalg.solve_triangular(
        factor, axes @ (along / size), lower=True, trans=1
    )


def log_determinant(
    factor: jax.Array, curvature: jax.Array, size: jax.Array
) -> jax.Array:
    """Log determinant of ``size`` times the observed information, at a maximum."""
    # There all curvatures are positive, up to rounding.
    curvature = jnp.maximum(curvature, jnp.sqrt(jnp.finfo(curvature.dtype).eps))
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) + jnp.sum(jnp.log(curvature))
    return log_det + len(curvature) * jnp.log(size)


def best_penalty(logs: jax.Array, evidence: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index of the largest evidence, and top of the parabola through its neighbours.

    The log penalties are evenly spaced, at least 3.
    """
    best = jnp.argmax(evidence)
    inner = jnp.clip(best, 1, len(logs) - 2)
    left, middle, right = (evidence[inner + i] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / jnp.where(bend < 0, bend, -1)
    interior = (best == inner) & jnp.isfinite(shift)
    shift = jnp.where(interior, jnp.clip(shift, -0.5, 0.5), 0)
    return best, logs[best] + shift * (logs[1] - logs[0])


# --- the fit -------------------------------------------------------------------------


class Fit(NamedTuple):
    """Fitted columns, one in each row.

    ``coordinates`` are the energies of ``coefficients``, both of shape ``(num_columns,
    num_features)``; ``masses`` those of the nodes, ``(num_columns, num_nodes)``. The
    evidence is known up to a constant. A density is normalised if its nodes have
    ``resolved`` it.
    """

    coefficients: jax.Array
    penalty: jax.Array
    log_evidence: jax.Array
    converged: jax.Array
    coordinates: jax.Array
    masses: jax.Array
    resolved: jax.Array


def fit_columns(
    family: Family,
    means: jax.Array,
    num_effective: ArrayLike,
    penalty: ArrayLike | None,
    start: jax.Array | None = None,
    cells: Cells | None = None,
) -> Fit:
    """Fit every column to the mean features of its samples outside the cells.

    Without a penalty the evidence chooses among those with which the nodes resolve the
    density: between ties of the samples others would let it grow into peaks. A start,
    in coordinates, is for a given penalty.
    """
    # A negative one is to be chosen: a traced number, so that both are one program.
    penalty = -1.0 if penalty is None else penalty
    penalty = jnp.broadcast_to(jnp.asarray(penalty, means.dtype), means.shape[0])
    start = jnp.zeros_like(means) if start is None else start
    return _fit_columns(family, means, num_effective, penalty, start, cells)


class _Column(NamedTuple):
    """What the likelihood of one column needs.

    ``psi`` are the features of coordinates at the nodes, ``(num_nodes, num_features)``;
    ``finer`` both these and log masses for nodes that check the first; ``mean`` the sum
    of the features of exact samples times their weights.
    """

    psi: jax.Array
    log_mass: jax.Array
    finer: tuple[jax.Array, jax.Array]
    mean: jax.Array
    size: jax.Array
    cells: Cells | None


@jax.jit
def _fit_columns(
    family: Family,
    means: jax.Array,
    num_effective: jax.Array,
    penalty: jax.Array,
    start: jax.Array,
    cells: Cells | None,
) -> Fit:
    basis, design, nodes = family
    exact = 1 if cells is None else 1 - jnp.sum(cells.shares, axis=1, keepdims=True)
    centred = (means - exact * design.centre) @ design.transform
    centred = jnp.where(design.used, centred, 0)

    def features(position: jax.Array) -> jax.Array:
        return design.of_features(basis.unit_features(position))

    common = [features(part[0]) if len(part) == 1 else None for part in nodes[::2]]

    def fit(column: tuple) -> tuple:
        mean, size, weight, start, cells, rows = column
        rows = [
            a[0] if a.shape[0] == 1 else row for a, row in zip(nodes, rows, strict=True)
        ]
        psi, finer = (
            features(position) if shared is None else shared
            for position, shared in zip(rows[::2], common, strict=True)
        )
        problem = _Column(psi, rows[1], (finer, rows[3]), mean, size, cells)
        return _fit_column(problem, design, weight, start)

    rows = [
        jnp.broadcast_to(a, (means.shape[0], a.shape[1]))
        if a.shape[0] > 1
        else jnp.zeros((means.shape[0], 0), a.dtype)
        for a in nodes
    ]
    columns = (centred, num_effective, penalty, start, cells, rows)
    size = nodes.position.shape[1] * means.shape[1]
    batch = max(1, min(means.shape[0], 4 * _CHUNK // size))
    coordinates, *rest = jax.lax.map(fit, columns, batch_size=batch)
    coefficients = jnp.matmul(coordinates, design.transform.T, precision="highest")
    chosen, evidence, converged, masses, resolved = rest
    return Fit(coefficients, chosen, evidence, converged, coordinates, masses, resolved)


def _fit_column(
    problem: _Column, design: Design, penalty: jax.Array, start: jax.Array
) -> tuple[jax.Array, ...]:
    """Fields of the fit of one column, with coordinates for coefficients."""
    size, dtype = problem.size, problem.mean.dtype
    # From the smoothest to the roughest, each started from the one before; then at the
    # best, in the same loop, so that it is compiled once. A penalty that is given is
    # the last step alone.
    given = penalty >= 0
    top = jnp.log(10 * size)
    bottom = -jnp.log(jnp.max(design.roughness) + 1)
    logs = top + (bottom - top) * jnp.linspace(0, 1, _NUM_PENALTIES, dtype=dtype)

    def fit(state: tuple) -> tuple:
        step, theta, path, path_evidence, *_ = state
        is_last = step == _NUM_PENALTIES
        best, log_penalty = best_penalty(logs, path_evidence)
        weight = jnp.exp(jnp.where(is_last, log_penalty, logs[step]))
        weight = jnp.where(given, penalty, weight)
        theta = jnp.where(is_last & ~given, path[best], theta)
        # The evidence is flat at its top in theta: an error of 0.01 is enough.
        tolerance = jnp.where(is_last, 0, 0.01 / size)
        ridge = design.ridge(weight)
        ascent = ascend(
            partial(_objective, problem, ridge),
            partial(_step, problem, ridge),
            theta,
            tolerance=tolerance,
            eps=jnp.finfo(dtype).eps,
            max_steps=_MAX_STEPS,
        )
        theta, converged = ascent.parameters, ascent.converged
        evidence = _evidence(problem, ridge, theta)
        resolved = _is_resolved(problem, theta)
        path = path.at[step].set(theta, mode="drop")
        usable = jnp.isfinite(evidence) & resolved & converged
        path_evidence = path_evidence.at[step].set(
            jnp.where(usable, evidence, -jnp.inf), mode="drop"
        )
        # Rougher ones would start from a density that is not normalised.
        step = jnp.where(is_last | resolved, step + 1, _NUM_PENALTIES)
        return step, theta, path, path_evidence, evidence, weight, converged, resolved

    none = jnp.full(_NUM_PENALTIES, -jnp.inf, dtype)
    path = jnp.zeros((_NUM_PENALTIES, len(problem.mean)), dtype)
    first = jnp.where(given, _NUM_PENALTIES, 0)
    theta = jnp.where(given, start, 0)
    no = jnp.asarray(False)
    state = (first, theta, path, none, none[0], none[0], no, no)
    _, theta, _, _, evidence, penalty, converged, resolved = jax.lax.while_loop(
        lambda state: state[0] <= _NUM_PENALTIES, fit, state
    )
    masses = jax.nn.softmax(_log_masses(problem, theta))
    return theta, penalty, evidence, converged, masses, resolved


def _log_masses(problem: _Column, theta: jax.Array) -> jax.Array:
    return problem.log_mass + _product(problem.psi, theta)


def _is_resolved(problem: _Column, theta: jax.Array) -> jax.Array:
    """Whether the nodes give the normalizing constant, to a tenth of a nat of all.

    Finer nodes must give the same. Both may miss a peak at samples, beside which nodes
    have hardly any mass: so the energy may not change by much in any panel with some.
    """
    finer, log_mass = problem.finer
    energy = _product(finer, theta)
    masses = _log_masses(problem, theta)
    change = logsumexp(log_mass + energy) - logsumexp(masses)
    eps = jnp.finfo(energy.dtype).eps
    rounding = 64 * eps * (1 + jnp.max(jnp.abs(energy)))
    allowed = jnp.clip(0.1 / problem.size, rounding, _LARGEST_ERROR)
    energy = _by_panel(_product(problem.psi, theta))
    steep = jnp.ptp(energy, axis=1) > _STEEPEST * energy.shape[1]
    log_panels = logsumexp(_by_panel(masses), axis=1) - logsumexp(masses)
    missed = jnp.any(steep & (log_panels > _LEAST_MASS))
    return (jnp.abs(change) <= allowed) & ~missed


def _objective(problem: _Column, ridge: jax.Array, theta: jax.Array) -> jax.Array:
    """Penalised log likelihood per sample."""
    log_mass = _log_masses(problem, theta)
    likelihood = jnp.dot(problem.mean, theta, precision="highest")
    if problem.cells is not None:
        _, log_cells = _cell_masses(problem.cells, log_mass)
        likelihood += jnp.dot(problem.cells.shares, log_cells, precision="highest")
    penalty = 0.5 * jnp.sum(ridge / problem.size * theta**2)
    return likelihood - penalty - logsumexp(log_mass)


def _cell_masses(cells: Cells, log_mass: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log masses of the panels, and of the cells; 0 for cells that there are not."""
    panels = logsumexp(_by_panel(log_mass), axis=-1)
    there = cells.last > cells.first
    inside = jnp.where(there[:, None], _members(cells, panels), 0)
    return panels, jnp.where(there, logsumexp(inside, axis=-1), 0)


def _by_panel(nodes: jax.Array) -> jax.Array:
    return nodes.reshape(-1, nodes_per_panel(nodes.dtype))


def _members(cells: Cells, panels: jax.Array) -> jax.Array:
    """Log masses of the panels in each cell, shape ``(num_cells, num_panels)``."""
    place = jnp.arange(len(panels))
    inside = (place >= cells.first[:, None]) & (place < cells.last[:, None])
    return jnp.where(inside, panels, -jnp.inf)


def _derivatives(
    problem: _Column, ridge: jax.Array, theta: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient per sample, and information of the complete and of the observed data."""
    log_mass = _log_masses(problem, theta)
    mass = jax.nn.softmax(log_mass)
    mean = _product(mass, problem.psi)
    # Centred first: covariances are differences.
    psi = problem.psi - mean
    centred = jnp.sqrt(mass)[:, None] * psi
    complete = _product(centred.T, centred) + jnp.diag(ridge / problem.size)
    gradient = problem.mean - ridge / problem.size * theta
    if problem.cells is None:
        return gradient - mean, complete, complete
    cells, shares = problem.cells, problem.cells.shares
    panels, log_cells = _cell_masses(cells, log_mass)
    # Shares of panels in the mass of cells, and of nodes in that of panels.
    of_cells = jnp.exp(_members(cells, panels) - log_cells[:, None])
    panels = jnp.where(panels > -jnp.inf, panels, 0)
    of_panels = jnp.exp(_by_panel(log_mass) - panels[:, None])
    parts = psi.reshape(*of_panels.shape, -1)
    means = _product(
        of_cells, jnp.einsum("sq,sqg->sg", of_panels, parts, precision="highest")
    )
    pooled = (_product(shares, of_cells)[:, None] * of_panels).reshape(-1)
    exact = 1 - jnp.sum(shares)
    gradient = gradient - exact * mean + _product(shares, means)
    within = _product(psi.T, pooled[:, None] * psi)
    within = within - _product(means.T, shares[:, None] * means)
    return gradient, complete, complete - within


def _factor(hessian: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cholesky factor after scaling to a unit diagonal, and the scales."""
    scale = jnp.sqrt(jnp.diagonal(hessian))
    eye = jnp.eye(len(scale), dtype=hessian.dtype)
    scaled = hessian / (scale[:, None] * scale) + 8 * jnp.finfo(hessian.dtype).eps * eye
    return jnp.linalg.cholesky(scaled), scale


def _step(
    problem: _Column, ridge: jax.Array, theta: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradient, and direction of Newton's method."""
    gradient, complete, observed = _derivatives(problem, ridge, theta)
    if problem.cells is not None:
        return gradient, ascent_direction(gradient, complete, observed)
    factor, scale = _factor(complete)
    direction = jax.scipy.linalg.cho_solve((factor, True), gradient / scale) / scale
    return gradient, direction


def _evidence(problem: _Column, ridge: jax.Array, theta: jax.Array) -> jax.Array:
    """Laplace approximation of the log marginal likelihood of the penalty."""
    size = problem.size
    value = size * _objective(problem, ridge, theta)
    _, complete, observed = _derivatives(problem, ridge, theta)
    if problem.cells is None:
        factor, scale = _factor(size * complete)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)) + jnp.log(scale))
    else:
        factor, curvature, _ = curvatures(complete, observed)
        log_det = log_determinant(factor, curvature, size)
    return value + 0.5 * (jnp.sum(jnp.log(ridge)) - log_det)
