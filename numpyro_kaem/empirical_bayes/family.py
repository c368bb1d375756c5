"""Ascent of the marginal likelihood, with the parameters of the reference."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from numpyro.distributions import biject_to, constraints

from numpyro_kaem.empirical_bayes.quadrature import log_masses
from numpyro_kaem.energy import UnitGridEnergy
from numpyro_kaem.estimation.exponential_family import ascent_direction, curvatures
from numpyro_kaem.numerics.density import integrand
from numpyro_kaem.numerics.panels import Panels
from numpyro_kaem.references import ReferenceParameters

__all__ = [
    "Maximum",
    "Problem",
    "constrain",
    "free_names",
    "log_reference",
    "maximise",
    "posterior_masses",
    "unconstrain",
    "unit_moments",
]

_MAX_STEPS = 100
_MAX_HALVINGS = 25
# Steps that follow a small one where the reference is fitted: its curvature weighs the
# gradient that is left, which must be small beside that of the penalty.
_POLISH = 4
# Share of the information that must be left after the latent values are integrated out,
# in every direction, for a maximum found in float32 to be the one.
_LEAST_CURVATURE = 0.01


class Problem(NamedTuple):
    """What the penalised log marginal likelihood needs, apart from parameters."""

    features: jax.Array
    """Features of the energy at the nodes, shape ``(num_nodes, num_coordinates)``."""
    log_likelihood: jax.Array
    """Shape ``(num_units, num_nodes)``."""
    counts: jax.Array
    """How often each unit counts, shape ``(num_units,)``."""
    log_reference: Any
    """Log masses of the reference at the nodes, as a function of its free parameters
    (a ``jax.tree_util.Partial``): ``(num_free,)`` to ``(num_nodes,)``."""


class Maximum(NamedTuple):
    """A local maximum of the penalised log marginal likelihood."""

    parameters: jax.Array
    """Coordinates of the energy, then free parameters of the reference."""
    value: jax.Array
    """Penalised log marginal likelihood."""
    log_evidence: jax.Array
    """Laplace approximation of the log marginal likelihood of the penalty."""
    covariance: jax.Array
    """Inverse of the penalised observed information, minus the Hessian."""
    degrees_of_freedom: jax.Array
    """Effective number of coordinates."""
    decrement: jax.Array
    """Twice the gain that one more Newton step promises."""
    converged: jax.Array
    """Whether that is below rounding."""
    num_steps: jax.Array
    """Newton steps taken."""


def _split(problem: Problem, parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coordinates, and free parameters of the reference."""
    count = problem.features.shape[1]
    return parameters[:count], parameters[count:]


def _log_masses(problem: Problem, parameters: jax.Array) -> jax.Array:
    coordinates, free = _split(problem, parameters)
    energy = jnp.matmul(problem.features, coordinates, precision="highest")
    return problem.log_reference(free) + energy


def _value(problem: Problem, ridge: jax.Array, parameters: jax.Array) -> jax.Array:
    """Penalised log marginal likelihood a unit."""
    log_mass = _log_masses(problem, parameters)
    marginal = logsumexp(problem.log_likelihood + log_mass, axis=1)
    shares = problem.counts / jnp.sum(problem.counts)
    penalty = 0.5 * jnp.sum(ridge * parameters**2) / jnp.sum(problem.counts)
    value = jnp.dot(shares, marginal - logsumexp(log_mass), precision="highest")
    return value - penalty


@jax.jit
def posterior_masses(problem: Problem, parameters: jax.Array) -> jax.Array:
    """Posterior masses of units at the nodes, shape ``(num_units, num_nodes)``."""
    log_mass = _log_masses(problem, parameters)
    return jax.nn.softmax(problem.log_likelihood + log_mass, axis=1)


def unit_moments(
    problem: Problem, parameters: jax.Array, functions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Posterior masses of units, means of functions, and covariances with the scores.

    Parameters
    ----------
    problem, parameters
        The model.
    functions
        Functions at the nodes, shape ``(num_nodes,)``.

    Returns
    -------
    tuple
        Masses ``(num_units, num_nodes)``, means ``(num_units,)``, and their derivatives
        in the parameters, ``(num_units, num_parameters)``.
    """
    mass = posterior_masses(problem, parameters)
    scores = _scores(problem, parameters)
    mean = jnp.matmul(mass, functions, precision="highest")
    centred = mass * (functions - mean[:, None])
    return mass, mean, jnp.matmul(centred, scores, precision="highest")


def _scores(problem: Problem, parameters: jax.Array) -> jax.Array:
    _, free = _split(problem, parameters)
    if free.shape[0] == 0:
        return problem.features
    slopes = jax.jacfwd(problem.log_reference)(free)
    return jnp.concatenate([problem.features, _where_massive(problem, slopes, free)], 1)


def _where_massive(problem: Problem, values: jax.Array, free: jax.Array) -> jax.Array:
    """Zero where the reference has hardly any mass, and its derivatives overflow."""
    log_mass = problem.log_reference(free)
    # Second derivatives of a log divide by the square of the mass.
    tiny = jnp.finfo(_precision(problem.log_reference)).tiny
    massive = log_mass > 0.45 * jnp.log(tiny)
    return jnp.where(massive.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)


def _derivatives(
    problem: Problem, ridge: jax.Array, parameters: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient a unit, and information of the complete and of the observed data."""
    total = jnp.sum(problem.counts)
    log_mass = _log_masses(problem, parameters)
    prior = jax.nn.softmax(log_mass)
    scores = _scores(problem, parameters)
    product = partial(jnp.matmul, precision="highest")
    # Centred first: covariances are differences.
    scores = scores - product(prior, scores)
    posterior = jax.nn.softmax(problem.log_likelihood + log_mass, axis=1)
    shares = problem.counts / total
    pooled = product(shares, posterior)
    means = product(posterior, scores)
    gradient = product(shares, means) - ridge / total * parameters
    second = product(scores.T, pooled[:, None] * scores)
    within = second - product(means.T, shares[:, None] * means)
    complete = product(scores.T, prior[:, None] * scores) + jnp.diag(ridge / total)
    observed = complete - within
    _, free = _split(problem, parameters)
    if free.shape[0] > 0:
        # The log density is not linear in the parameters of the reference.
        curvature = jax.jacfwd(jax.jacfwd(problem.log_reference))(free)
        curvature = _where_massive(problem, curvature, free)
        curvature = jnp.tensordot(pooled - prior, curvature, 1, precision="highest")
        count = free.shape[0]
        observed = observed.at[-count:, -count:].add(-curvature)
    return gradient, complete, observed


def maximise(
    problem: Problem,
    ridge: jax.Array,
    start: jax.Array,
    tolerance: ArrayLike,
) -> Maximum:
    """Find a maximum near a start, by Newton's method that always ascends.

    Parameters
    ----------
    problem
        The model.
    ridge
        Weights of the penalty, shape ``(num_parameters,)``.
    start
        First parameters, the same shape.
    tolerance
        Gain that is not worth another step, in nats for all units.
    """
    eps = jnp.finfo(start.dtype).eps
    fits_reference = len(start) > problem.features.shape[1]
    # In float64 whatever the precision: a fitted reference may do nearly the same as
    # the energy, and rounding of a float32 information is more than the difference.
    with jax.enable_x64(True):
        found, least = _maximum(problem, ridge, start, tolerance, eps, fits_reference)
        if (
            not fits_reference
            and start.dtype != np.float64
            and float(least) < _LEAST_CURVATURE
        ):
            eps, start = jnp.finfo(jnp.float64).eps, found.parameters
            found, _ = _maximum(problem, ridge, start, tolerance, eps, True)
    return found


@partial(jax.jit, static_argnames="in_float64")
def _maximum(
    problem: Problem,
    ridge: jax.Array,
    start: jax.Array,
    tolerance: ArrayLike,
    eps: ArrayLike,
    in_float64: bool,
) -> tuple[Maximum, jax.Array]:
    """Find a maximum, and its least curvature; its information is in float64."""
    dtype = start.dtype
    wide = Problem(
        problem.features.astype(jnp.float64),
        problem.log_likelihood.astype(jnp.float64),
        problem.counts.astype(jnp.float64),
        Partial(_as_float64, problem.log_reference),
    )
    wide_ridge = ridge.astype(jnp.float64)
    if in_float64:
        state = _ascend(wide, wide_ridge, start.astype(jnp.float64), tolerance, eps)
    else:
        state = _ascend(problem, ridge, start, tolerance, eps)
    parameters, value, _, num_steps, decrement, converged = state
    covariance, log_det, freedom, least = _information(
        wide, wide_ridge, parameters.astype(jnp.float64)
    )
    total = jnp.sum(wide.counts)
    value, decrement = total * value, total * decrement
    numbers = (parameters, value, value + 0.5 * log_det, covariance, freedom, decrement)
    found = Maximum(*numbers, converged, num_steps)
    rounded = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, found
    )
    return rounded, least


def _as_float64(log_reference: Any, free: jax.Array) -> jax.Array:
    return log_reference(free.astype(_precision(log_reference))).astype(jnp.float64)


def _precision(log_reference: Any) -> Any:
    """Precision in which the log masses of the reference are computed."""
    return jax.tree_util.tree_leaves(log_reference)[0].dtype


def _ascend(
    problem: Problem,
    ridge: jax.Array,
    start: jax.Array,
    tolerance: ArrayLike,
    eps: ArrayLike,
) -> tuple:
    """Parameters, value, small steps at the end, steps, decrement, whether converged.

    Values are those a unit, known to ``eps``.
    """
    num_last = 1 + (_POLISH if len(start) > problem.features.shape[1] else 0)
    total = jnp.sum(problem.counts)
    value_of = partial(_value, problem, ridge)

    def step(state: tuple) -> tuple:
        parameters, value, num_small, count, *_ = state
        gradient, complete, observed = _derivatives(problem, ridge, parameters)
        direction = ascent_direction(gradient, complete, observed)
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
        small = jnp.maximum(tolerance / total, 32 * eps * (1 + jnp.abs(value)))
        done = decrement <= small
        num_small = jnp.where(done, num_small + 1, 0)
        return parameters, value, num_small, count + 1, decrement, done

    zero = jnp.zeros_like(start[0])
    first = (start, value_of(start), jnp.asarray(0), 0, zero, jnp.asarray(False))
    return jax.lax.while_loop(
        lambda state: (state[2] < num_last) & (state[3] < _MAX_STEPS), step, first
    )


def _information(
    problem: Problem, ridge: jax.Array, parameters: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Covariance, twice the Laplace term, effective number, and least curvature."""
    total = jnp.sum(problem.counts)
    _, complete, observed = _derivatives(problem, ridge, parameters)
    factor, curvature, axes = curvatures(complete, observed)
    least = jnp.min(curvature)
    # At a maximum all curvatures are positive, up to rounding.
    curvature = jnp.maximum(curvature, jnp.sqrt(jnp.finfo(parameters.dtype).eps))
    root = jax.scipy.linalg.solve_triangular(
        factor, axes / jnp.sqrt(curvature), lower=True, trans=1
    )
    covariance = jnp.matmul(root, root.T, precision="highest") / total
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) + jnp.sum(jnp.log(curvature))
    log_det = log_det + len(parameters) * jnp.log(total)
    # Free parameters of the reference have a flat prior, and no ridge.
    log_ridge = jnp.sum(jnp.log(jnp.where(ridge > 0, ridge, 1)))
    freedom = len(parameters) - jnp.sum(jnp.diagonal(covariance) * ridge)
    return covariance, log_ridge - log_det, freedom, least


def free_names(
    parameters: ReferenceParameters | None, fit_reference: bool
) -> tuple[str, ...]:
    """Names of the parameters to fit.

    Raises
    ------
    ValueError
        If there is no reference with a parameter.
    TypeError
        If the support of the reference depends on its parameters, or it is nested.
    """
    if not fit_reference:
        return ()
    if parameters is None:
        raise ValueError(
            "fit_reference needs a reference with parameters, got reference=None, the "
            "uniform law on the grid."
        )
    law, names = parameters.distribution, tuple(parameters.values)
    is_fixed = isinstance(
        parameters.build().support, constraints.ParameterFreeConstraint
    )
    if not is_fixed or not all(name in law.arg_constraints for name in names):
        raise TypeError(
            "fit_reference needs a reference whose support does not depend on its "
            f"parameters, such as Normal or Gamma, got {law.__name__}."
        )
    return names


def unconstrain(parameters: Any, names: tuple[str, ...]) -> jax.Array:
    """Free parameters on the whole line, shape ``(num_free,)``."""
    dtype = jnp.result_type(float)
    values = [
        biject_to(parameters.distribution.arg_constraints[name]).inv(
            jnp.asarray(parameters.values[name], dtype)
        )
        for name in names
    ]
    return jnp.stack(values) if values else jnp.zeros(0, dtype)


def constrain(
    parameters: ReferenceParameters | None, names: tuple[str, ...], free: jax.Array
) -> ReferenceParameters | None:
    """Parameters of the reference with the free ones replaced."""
    if not names:
        return parameters
    law = parameters.distribution
    values = {
        name: biject_to(law.arg_constraints[name])(value)
        for name, value in zip(names, free, strict=True)
    }
    return ReferenceParameters(law, {**parameters.values, **values})


def log_reference(
    flat: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    names: tuple[str, ...],
    panels: Panels,
) -> Any:
    """Log masses of the reference at all positions, as a function of its parameters."""
    if not names:
        return jax.tree_util.Partial(
            _fixed, _log_masses_of_reference(flat, parameters, panels)
        )
    return jax.tree_util.Partial(partial(_moving, names), flat, parameters, panels)


@jax.jit
def _log_masses_of_reference(
    flat: UnitGridEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> jax.Array:
    return log_masses(integrand(flat, parameters, panels))


def _fixed(log_mass: jax.Array, free: jax.Array) -> jax.Array:
    del free
    return log_mass


def _moving(
    names: tuple[str, ...],
    flat: UnitGridEnergy,
    parameters: ReferenceParameters,
    panels: Panels,
    free: jax.Array,
) -> jax.Array:
    return log_masses(integrand(flat, constrain(parameters, names, free), panels))
