"""Ascent of the marginal likelihood, with the parameters of the reference."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from numpyro.distributions import biject_to, constraints

from numpyro_kaem.distributions import KAEMPrior, PriorWithAtoms
from numpyro_kaem.empirical_bayes.quadrature import (
    UnitQuadrature,
    node_positions,
    prior_masses,
)
from numpyro_kaem.energy import Energy, UnitGridEnergy
from numpyro_kaem.estimation.exponential_family import (
    Ascent,
    Design,
    ascend,
    ascent_direction,
    curvatures,
    log_determinant,
)
from numpyro_kaem.numerics.panels import Panels
from numpyro_kaem.references import ReferenceParameters

__all__ = [
    "Maximum",
    "Model",
    "Problem",
    "free_names",
    "maximise",
    "posterior_masses",
    "unit_moments",
]

_MAX_STEPS = 100
# Steps that follow a small one where the reference is fitted: its curvature weighs the
# gradient that is left, which must be small beside that of the penalty.
_POLISH = 4
# Share of the information that must be left after the latent values are integrated out,
# in every direction, for a maximum found in float32 to be the one.
_LEAST_CURVATURE = 0.01


# --- the model -----------------------------------------------------------------------


class Problem(NamedTuple):
    """What the penalised log marginal likelihood needs, apart from parameters.

    Features of the energy at the nodes ``(num_nodes, num_coordinates)``, log
    likelihoods ``(num_units, num_nodes)``, counts ``(num_units,)``; and the log masses
    ``(num_nodes,)`` of the reference as a function of its free parameters
    ``(num_free,)``, a ``jax.tree_util.Partial``. Atoms are the last nodes, with one
    feature each, and bring one unit each and one more, see :meth:`Model.problem`.
    """

    features: jax.Array
    log_likelihood: jax.Array
    counts: jax.Array
    log_reference: Any


class Model(eqx.Module):
    """A prior as a function of its parameters in the fit.

    They are the coordinates of the energy, then the log masses of the atoms, if there
    are any, relative to the reference, then the named parameters of the reference on
    the whole line; ``flat`` is the energy without coefficients.
    """

    flat: Energy
    design: Design
    reference: ReferenceParameters | None
    names: tuple[str, ...] = eqx.field(static=True)
    atoms: jax.Array

    @property
    def start(self) -> jax.Array:
        """Parameters of the flat energy and the reference as it is given."""
        size = self.design.transform.shape[1] + len(self.atoms)
        flat = jnp.zeros(size, self.flat.dtype)
        if self.reference is None or not self.names:
            return flat
        known, values = (
            self.reference.distribution.arg_constraints,
            self.reference.values,
        )
        free = [
            biject_to(known[name]).inv(jnp.asarray(values[name], float))
            for name in self.names
        ]
        return jnp.concatenate([flat, jnp.stack(free)])

    def ridge(self, log_penalty: float) -> jax.Array:
        """Weights of the squared coordinates; none for the other parameters."""
        ridge = self.design.ridge(np.exp(log_penalty))
        ridge = np.concatenate([ridge, np.zeros(len(self.atoms) + len(self.names))])
        return jnp.asarray(ridge, self.flat.dtype)

    def problem(self, units: UnitQuadrature, counts: jax.Array) -> Problem:
        """Problem of units on a quadrature.

        With atoms their weights have a uniform prior. That of the log masses is then as
        if one unit more were known to come from each atom, and one from the density.
        """
        energy, panels = self.flat.on_unit_grid, units.panels
        if self.names:
            log_reference = Partial(
                partial(_moving, self.names, len(self.atoms)),
                energy,
                self.reference,
                panels,
            )
        else:
            fixed = prior_masses(energy, self.reference, panels)
            fixed = jnp.pad(fixed, (0, len(self.atoms)))
            log_reference = Partial(_fixed, fixed)
        features = _features(self.flat.basis, self.design, node_positions(panels))
        log_likelihood = units.log_likelihood
        if len(self.atoms):
            of_atoms = jnp.eye(len(self.atoms), dtype=features.dtype)
            features = jax.scipy.linalg.block_diag(features, of_atoms)
            inside = jnp.ones((1, log_likelihood.shape[1]), bool)
            known = jax.scipy.linalg.block_diag(inside, of_atoms > 0)
            known = jnp.where(known, 0, -jnp.inf).astype(log_likelihood.dtype)
            at_atoms = units.at_atoms
            log_likelihood = jnp.concatenate([log_likelihood, at_atoms], axis=1)
            log_likelihood = jnp.concatenate([log_likelihood, known])
            counts = self.with_known(counts)
        return Problem(features, log_likelihood, counts, log_reference)

    def with_known(self, counts: jax.Array) -> jax.Array:
        """Add counts of the units that the atoms bring, one each."""
        num_known = len(self.atoms) + 1 if len(self.atoms) else 0
        return jnp.pad(counts, (0, num_known), constant_values=1)

    def prior(self, parameters: jax.Array) -> KAEMPrior | PriorWithAtoms:
        """Prior with some parameters; constants in the energy are left out."""
        transform = jnp.asarray(self.design.transform, self.flat.dtype)
        count = transform.shape[1]
        coefficients = jnp.matmul(
            transform, parameters[..., :count, None], precision="highest"
        )[..., 0]
        stop = count + len(self.atoms)
        free = jnp.moveaxis(parameters[..., stop:], -1, 0)
        reference = _constrained(self.reference, self.names, free)
        prior = KAEMPrior(
            Energy(self.flat.basis, coefficients),
            None if reference is None else reference.build(),
        )
        if not len(self.atoms):
            return prior
        # The constants count beside the atoms.
        centre = jnp.asarray(self.design.centre, self.flat.dtype)
        constant = jnp.matmul(coefficients, centre, precision="highest")
        log_masses = jnp.concatenate(
            [parameters[..., count:stop], (prior.log_normalizer - constant)[..., None]],
            axis=-1,
        )
        weights = jax.nn.softmax(log_masses, axis=-1)[..., :-1]
        return PriorWithAtoms(self.atoms, weights, prior)

    def covariance(self, covariance: jax.Array) -> jax.Array:
        """Covariance of the coefficients from that of the parameters."""
        transform = jnp.asarray(self.design.transform, self.flat.dtype)
        count = transform.shape[1]
        inner = jnp.where(self.design.used, covariance[:count, :count], 0)
        return transform @ inner @ transform.T


@jax.jit
def _features(basis: Any, design: Design, nodes: jax.Array) -> jax.Array:
    return design.to_jax(nodes.dtype).of_features(basis(nodes))


def _fixed(log_mass: jax.Array, free: jax.Array) -> jax.Array:
    del free
    return log_mass


def _moving(
    names: tuple[str, ...],
    num_atoms: int,
    flat: UnitGridEnergy,
    parameters: ReferenceParameters,
    panels: Panels,
    free: jax.Array,
) -> jax.Array:
    log_mass = prior_masses(flat, _constrained(parameters, names, free), panels)
    return jnp.pad(log_mass, (0, num_atoms))


def _constrained(
    parameters: ReferenceParameters | None, names: tuple[str, ...], free: jax.Array
) -> ReferenceParameters | None:
    """Parameters of the reference with the free ones replaced."""
    if parameters is None or not names:
        return parameters
    distribution = parameters.distribution
    values = {
        name: biject_to(distribution.arg_constraints[name])(value)
        for name, value in zip(names, free, strict=True)
    }
    return ReferenceParameters(distribution, {**parameters.values, **values})


def free_names(
    parameters: ReferenceParameters | None, fit_reference: bool
) -> tuple[str, ...]:
    """Names of the parameters of the reference to fit."""
    if not fit_reference:
        return ()
    if parameters is None:
        raise ValueError(
            "fit_reference needs a reference with parameters, got reference=None, the "
            "uniform distribution on the grid."
        )
    names, known = tuple(parameters.values), parameters.distribution.arg_constraints
    support = parameters.build().support
    is_fixed = isinstance(support, constraints.ParameterFreeConstraint)
    if not is_fixed or not all(name in known for name in names):
        raise TypeError(
            "fit_reference needs a reference whose support does not depend on its "
            "parameters, such as Normal or Gamma, got "
            f"{parameters.distribution.__name__}."
        )
    return names


# --- the likelihood and its derivatives ----------------------------------------------


def _split(problem: Problem, parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coordinates, and free parameters of the reference."""
    count = problem.features.shape[1]
    return parameters[:count], parameters[count:]


def _log_masses(problem: Problem, parameters: jax.Array) -> jax.Array:
    coordinates, free = _split(problem, parameters)
    energy = jnp.matmul(problem.features, coordinates, precision="highest")
    return problem.log_reference(free) + energy


def _value(problem: Problem, ridge: jax.Array, parameters: jax.Array) -> jax.Array:
    """Penalised log marginal likelihood per unit."""
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


@jax.jit
def unit_moments(
    problem: Problem, parameters: jax.Array, functions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Posterior means of functions ``(num_nodes,)``, and derivatives in parameters."""
    mass = posterior_masses(problem, parameters)
    mean = jnp.matmul(mass, functions, precision="highest")
    centred = mass * (functions - mean[:, None])
    scores = _scores(problem, parameters)
    return mean, jnp.matmul(centred, scores, precision="highest")


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
    """Gradient per unit, and information of the complete and of the observed data."""
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


# --- the maximum ---------------------------------------------------------------------


class Maximum(NamedTuple):
    """A local maximum of the penalised log marginal likelihood, for all units.

    ``log_evidence`` is the Laplace approximation of the log marginal likelihood of the
    penalty, ``covariance`` the inverse of the penalised observed information.
    """

    parameters: jax.Array
    value: jax.Array
    log_evidence: jax.Array
    covariance: jax.Array
    degrees_of_freedom: jax.Array
    decrement: jax.Array
    converged: jax.Array
    num_steps: jax.Array


def maximise(
    problem: Problem,
    ridge: jax.Array,
    start: jax.Array,
    tolerance: ArrayLike,
) -> Maximum:
    """Find a maximum near a start, to a tolerance in nats for all units."""
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
        found = _ascend(wide, wide_ridge, start.astype(jnp.float64), tolerance, eps)
    else:
        found = _ascend(problem, ridge, start, tolerance, eps)
    parameters = found.parameters.astype(jnp.float64)
    total = jnp.sum(wide.counts)
    _, complete, observed = _derivatives(wide, wide_ridge, parameters)
    factor, curvature, axes = curvatures(complete, observed)
    log_det = log_determinant(factor, curvature, total)
    positive = jnp.maximum(curvature, jnp.sqrt(jnp.finfo(jnp.float64).eps))
    root = jax.scipy.linalg.solve_triangular(
        factor, axes / jnp.sqrt(positive), lower=True, trans=1
    )
    covariance = jnp.matmul(root, root.T, precision="highest") / total
    # Free parameters of the reference have a flat prior, and no ridge.
    log_ridge = jnp.sum(jnp.log(jnp.where(wide_ridge > 0, wide_ridge, 1)))
    freedom = len(parameters) - jnp.sum(jnp.diagonal(covariance) * wide_ridge)
    value, decrement = total * found.value, total * found.decrement
    evidence = value + 0.5 * (log_ridge - log_det)
    numbers = (found.parameters, value, evidence, covariance, freedom, decrement)
    entries = [number.astype(dtype) for number in numbers]
    entries += [found.converged, found.num_steps]
    return Maximum(*entries), jnp.min(curvature)


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
) -> Ascent:
    """Ascend in values per unit, known to ``eps``."""

    def step_of(parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradient, *information = _derivatives(problem, ridge, parameters)
        return gradient, ascent_direction(gradient, *information)

    return ascend(
        partial(_value, problem, ridge),
        step_of,
        start,
        tolerance=tolerance / jnp.sum(problem.counts),
        eps=eps,
        max_steps=_MAX_STEPS,
        num_last=1 + (_POLISH if len(start) > problem.features.shape[1] else 0),
    )
