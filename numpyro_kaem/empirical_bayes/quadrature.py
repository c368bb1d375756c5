"""Quadrature of likelihoods under a prior, on panels that resolve both."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from numpyro_kaem._quadrature import gauss_legendre, nodes_per_panel
from numpyro_kaem.bases import Chebyshev
from numpyro_kaem.distributions import KAEMPrior, PriorWithAtoms
from numpyro_kaem.empirical_bayes.likelihood import (
    NEGLIGIBLE,
    LogLikelihood,
    check_units,
    evaluate,
    evaluate_at,
)
from numpyro_kaem.energy import Energy, UnitGridEnergy
from numpyro_kaem.numerics.density import Integrand, integrand
from numpyro_kaem.numerics.panels import Panels, make_panels
from numpyro_kaem.references import (
    ReferenceParameters,
    concretely,
    is_concrete,
    support_bounds,
)

__all__ = [
    "UnitQuadrature",
    "check_prior",
    "node_positions",
    "prior_masses",
    "quadrature_under",
    "unit_log_marginal_likelihood",
    "unit_quadrature",
]

# The change of a log density within a panel that its rule resolves, by whether in
# float64.
_CHANGE = {False: 5.0, True: 4.0}
_MAX_PARTS = 16
# Share of a unit's mass between two numbers that is told.
_LARGEST_SPACING = 1e-3
_MAX_ROUNDS = 8
_MAX_PANELS = 4096
# How often panels are widened to twice their width, for units far out in a tail.
_MAX_DOUBLINGS = 40
# Panels are filled up with empty ones to a multiple, so that compiled code serves many
# data sets.
_PADDING = 32


class UnitQuadrature(NamedTuple):
    """Panels that resolve the likelihood of every unit, and it at their nodes.

    Log likelihoods have the shape ``(num_units, num_panels * num_nodes + 2)``: at the
    nodes of all panels, then at the outer edges, for the tails beyond. If the prior has
    atoms, they are known there too, ``(num_units, num_atoms)``.
    """

    panels: Panels
    log_likelihood: jax.Array
    at_atoms: Any = None


@jax.jit
def node_positions(panels: Panels) -> jax.Array:
    """Nodes of all panels, then both outer edges, shape ``(num_positions,)``."""
    edges = panels.edges
    x, _ = gauss_legendre(nodes_per_panel(edges.dtype))
    unit = jnp.asarray((x + 1) / 2, edges.dtype)
    nodes = edges[:-1, None] + jnp.diff(edges)[:, None] * unit
    return jnp.concatenate([nodes.reshape(-1), edges[:1], edges[-1:]])


@jax.jit
def prior_masses(
    energy: UnitGridEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> jax.Array:
    """Log of the unnormalised prior masses of all positions."""
    return _joined(integrand(energy, parameters, panels))


def _joined(values: Integrand) -> jax.Array:
    none = jnp.full((1,), -jnp.inf, values.log_mass.dtype)
    tails = [none if tail is None else tail[None] for tail in values.log_tails]
    return jnp.concatenate([values.log_mass.reshape(-1), *tails])


def check_prior(prior: Any) -> None:
    """Check that a prior is that of one latent value."""
    if not isinstance(prior, KAEMPrior | PriorWithAtoms):
        raise TypeError(
            "prior must be a numpyro_kaem.KAEMPrior or PriorWithAtoms, got "
            f"{type(prior).__name__}."
        )
    if prior.batch_shape != ():
        raise ValueError(
            "prior must be one density, shared by all units, with the batch shape (), "
            f"got {prior.batch_shape}."
        )


def quadrature_under(
    prior: KAEMPrior | PriorWithAtoms, log_likelihood: LogLikelihood
) -> tuple[KAEMPrior, UnitQuadrature]:
    """Density of a prior, and the quadrature of units under it."""
    atoms = None
    if isinstance(prior, PriorWithAtoms):
        prior, atoms = prior.prior, prior.atoms
    parts = prior.energy, prior._parameters, prior.refinement
    return prior, unit_quadrature(*parts, log_likelihood, atoms)


def unit_quadrature(
    energy: Energy,
    parameters: ReferenceParameters | None,
    refinement: int,
    log_likelihood: LogLikelihood,
    atoms: jax.Array | None = None,
) -> UnitQuadrature:
    """Split the panels of a prior until they resolve every unit's likelihood.

    At the atoms it is the units' own likelihood.
    """
    units = _unit_quadrature(energy, parameters, refinement, log_likelihood)
    if atoms is None:
        return units
    return units._replace(at_atoms=evaluate_at(log_likelihood, atoms))


def _unit_quadrature(
    energy: Energy,
    parameters: ReferenceParameters | None,
    refinement: int,
    log_likelihood: LogLikelihood,
) -> UnitQuadrature:
    """Quadrature without atoms.

    Panels that hold no unit's likelihood stay coarse, and those far out in a tail are
    left to the mass of the tail. Traced likelihoods and references are taken on the
    panels of the prior as they are.
    """
    check_units(log_likelihood, energy.dtype)
    if not is_concrete(parameters):
        panels = make_panels(energy, parameters, refinement, into_tails=True)
        return _evaluated(energy.on_unit_grid, parameters, panels, log_likelihood)
    with concretely():
        panels = make_panels(energy, parameters, refinement, into_tails=True)
        panels = Panels(_padded(panels.edges), None, panels.has_tails)
        if not is_concrete(energy):
            # The panels do not need the coefficients.
            basis = Chebyshev(energy.basis.low, energy.basis.high, 1)
            energy = Energy(basis, jnp.zeros(2, energy.dtype))
        units = _evaluated(energy.on_unit_grid, parameters, panels, log_likelihood)
    if not is_concrete((panels.edges, units.log_likelihood)):
        return units
    with concretely():
        units = _widened(energy.on_unit_grid, parameters, units, log_likelihood)
        return _resolve(energy.on_unit_grid, parameters, units, log_likelihood)


def _evaluated(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    log_likelihood: LogLikelihood,
) -> UnitQuadrature:
    log_mass = jax.lax.stop_gradient(prior_masses(energy, parameters, panels))
    nodes = node_positions(panels)
    return UnitQuadrature(panels, evaluate(log_likelihood, nodes, log_mass))


def _widened(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    units: UnitQuadrature,
    log_likelihood: LogLikelihood,
) -> UnitQuadrature:
    """Panels so far into infinite tails that no unit has its mass beyond them."""
    least = NEGLIGIBLE[energy.dtype == np.float64]
    bounds = (0.0, 0.0) if parameters is None else support_bounds(parameters.build())
    infinite = np.isinf([np.asarray(bound, float) for bound in bounds])
    for _ in range(_MAX_DOUBLINGS):
        values = np.asarray(units.log_likelihood)
        edges = np.unique(np.asarray(units.panels.edges))
        inspected = _inspect(energy, parameters, units.panels, values, least)
        share, tails = np.asarray(inspected[0]), np.asarray(inspected[3])
        outer = np.maximum(share[[0, len(edges) - 2]], tails) > least
        outer |= np.any(np.all(np.isneginf(values), axis=1))
        span = 1.0 * np.ptp(edges)
        outer &= infinite & (np.abs(edges[[0, -1]]) + span < 1e30)
        if not outer.any():
            break
        added = edges[[0, -1]] + span * np.array([-1.0, 1.0])
        edges = np.sort(np.concatenate([edges, added[outer].astype(edges.dtype)]))
        panels = Panels(jnp.asarray(_padded(edges)), None, units.panels.has_tails)
        units = _evaluated(energy, parameters, panels, log_likelihood)
    zero = np.all(np.isneginf(values), axis=1)
    if zero.any():
        nodes = node_positions(units.panels)
        raise ValueError(
            f"unit {int(np.argmax(zero))} has likelihood zero at every one of "
            f"{values.shape[1]} latent values from {float(nodes.min()):.6g} to "
            f"{float(nodes.max()):.6g}: no prior on this support explains it. Check "
            "its data and its distribution. A unit without information, such as one "
            "with an infinite standard error, is to be left out; one that jumps or is "
            "very narrow needs a wider distribution."
        )
    return units


def _resolve(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    units: UnitQuadrature,
    log_likelihood: LogLikelihood,
) -> UnitQuadrature:
    panels, values, _ = units
    is_double = energy.dtype == np.float64
    trimmed = False
    for _ in range(_MAX_ROUNDS):
        share, change, unit, _ = map(
            np.asarray,
            _inspect(energy, parameters, panels, values, NEGLIGIBLE[is_double]),
        )
        edges = np.asarray(panels.edges)
        if not trimmed:
            # Outer panels without any unit's likelihood belong to the tails.
            needed = share > NEGLIGIBLE[is_double] ** 2
            needed[[0, -1]] |= ~np.asarray(panels.has_tails)
            inside = (edges[1:] > energy.low) & (edges[:-1] < energy.high)
            kept = np.flatnonzero(needed | inside)
            window = slice(kept[0], kept[-1] + 1)
            edges = edges[kept[0] : kept[-1] + 2]
            share, change, unit = share[window], change[window], unit[window]
            trimmed = True
        parts = np.ceil(
            np.where(np.isfinite(change), change, np.inf) / _CHANGE[is_double]
        )
        parts = np.clip(parts, 1, _MAX_PARTS).astype(int)
        unresolved = parts > 1
        # Nothing is left to split between neighbouring numbers, or at a jump that is
        # found to nine digits.
        spacing = np.spacing(np.maximum(np.abs(edges[:-1]), np.abs(edges[1:])))
        least = np.maximum(64 * spacing, 1e-9 * float(energy.high - energy.low))
        parts = np.where(np.diff(edges) > least, parts, 1)
        if parts.sum() > _MAX_PANELS:
            break
        done = np.all(parts == 1)
        if done:
            part = spacing / np.maximum(np.diff(edges), spacing)
            _warn_of_spacing(share * np.where(unresolved, 1, part))
        edges = _padded(_split(edges, parts))
        if done and len(edges) == len(panels.edges):
            return UnitQuadrature(panels, values)
        panels = Panels(jnp.asarray(edges, energy.dtype), None, panels.has_tails)
        panels, values, _ = _evaluated(energy, parameters, panels, log_likelihood)
        if done:
            return UnitQuadrature(panels, values)
    worst = int(np.argmax(change))
    warnings.warn(
        f"the likelihood of unit {unit[worst]} is too narrow for the quadrature, or "
        f"jumps: its log changes by {change[worst]:.3g} between "
        f"{edges[worst]:.6g} and {edges[worst + 1]:.6g}. The marginal likelihood may "
        "be inaccurate. Give units far narrower than the prior a wider distribution, "
        "of a hundredth of the prior's deviation, or fit fewer at a time.",
        UserWarning,
        stacklevel=4,
    )
    return UnitQuadrature(panels, values)


def _warn_of_spacing(missed: np.ndarray) -> None:
    """Warn of units with much of their mass between two neighbouring numbers."""
    # A jump has little mass between the numbers to which it is found.
    if (most := np.max(missed)) > _LARGEST_SPACING:
        warnings.warn(
            f"the likelihood of a unit is too narrow for {missed.dtype.name}: "
            f"{most:.1e} of its mass lies between numbers that cannot be told apart, "
            "and its marginal likelihood may err by as much. Use float64 "
            "(jax.config.update('jax_enable_x64', True)), subtract an offset from the "
            "latent values, such as their mean, or give the unit a wider distribution.",
            UserWarning,
            stacklevel=5,
        )


def _padded(edges: Any) -> Any:
    """Repeat the last edge: panels of width zero hold nothing."""
    missing = -(edges.shape[0] - 1) % _PADDING
    xp = np if isinstance(edges, np.ndarray) else jnp
    return xp.concatenate([edges, xp.repeat(edges[-1:], missing)])


def _split(edges: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Divide every panel into equal parts."""
    pieces = [
        np.linspace(a, b, n, endpoint=False)
        for a, b, n in zip(edges[:-1], edges[1:], parts, strict=True)
    ]
    return np.unique(np.concatenate([*pieces, edges[-1:]]).astype(edges.dtype))


@partial(jax.jit, static_argnames="threshold")
def _inspect(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    log_likelihood: jax.Array,
    threshold: float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of each panel: the largest share of a unit, the largest change, and its unit.

    Also the largest share of a unit in the tail below, and above, shape ``(2,)``.
    """
    values = integrand(energy, parameters, panels)
    log_mass = _joined(values)
    count, num_nodes = values.log_mass.shape
    _, weights = gauss_legendre(num_nodes)
    log_density = values.log_mass - jnp.asarray(np.log(weights), log_mass.dtype)

    def of_unit(row: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        joint = row + log_mass
        total = logsumexp(joint)
        # A unit without any likelihood has no shares.
        total = jnp.where(total > -jnp.inf, total, jnp.inf)
        inner = joint[:-2].reshape(count, num_nodes)
        share = jnp.exp(logsumexp(inner, axis=1) - total)
        shape = row[:-2].reshape(count, num_nodes) + log_density
        change = jnp.max(shape, 1) - jnp.min(shape, 1)
        # A narrow peak may lie between the nodes of a neighbour and be nearer to one
        # here.
        near = jnp.abs(jnp.arange(count) - jnp.argmax(share)) <= 1
        near &= jnp.diff(panels.edges) > 0
        change = jnp.where((share > threshold) | near, change, 0)
        return share, change, jnp.exp(joint[-2:] - total)

    def largest(state: tuple, unit: tuple) -> tuple:
        best_share, best_change, best_unit, best_tails = state
        index, row = unit
        share, change, tails = of_unit(row)
        best_unit = jnp.where(change > best_change, index, best_unit)
        state = jnp.maximum(best_share, share), jnp.maximum(best_change, change)
        return (*state, best_unit, jnp.maximum(best_tails, tails)), None

    zeros = jnp.zeros(count, log_mass.dtype)
    start = (zeros, zeros, jnp.zeros(count, jnp.int32), zeros[:2])
    indices = jnp.arange(len(log_likelihood), dtype=jnp.int32)
    return jax.lax.scan(largest, start, (indices, log_likelihood))[0]


def unit_log_marginal_likelihood(
    prior: KAEMPrior | PriorWithAtoms, log_likelihood: LogLikelihood
) -> jax.Array:
    r"""Log marginal likelihood of every unit, by quadrature.

    :math:`\log \int p(x_i \mid z)\, \pi(z)\, \mathrm{d}z` on panels that resolve the
    prior, its tails and every likelihood: exact to about 1e-6 in float32 and 1e-10 in
    float64, and differentiable in the parameters of the prior. In a model,
    ``numpyro.factor`` of its sum integrates the units out.

    Parameters
    ----------
    prior
        Distribution of the latent value, shared by all units: a :class:`KAEMPrior` or
        :class:`PriorWithAtoms` of batch shape (). At atoms the likelihood is the units'
        own, nothing is interpolated.
    log_likelihood
        Maps latent values ``(num_nodes,)`` to ``(num_units, num_nodes)``, see
        :func:`unit_log_likelihood`.

    Returns
    -------
    Array
        Shape ``(num_units,)``.

    Raises
    ------
    TypeError
        If ``prior`` is neither of these, or ``log_likelihood`` not a function.
    ValueError
        If shapes do not fit; if a log likelihood is not a number, or a unit has
        likelihood zero everywhere (which is named).

    Warns
    -----
    UserWarning
        If a likelihood is too narrow for the quadrature.

    Notes
    -----
    The panels are split where a likelihood asks for it. They are chosen outside of
    ``jit`` where the data and the reference's parameters are concrete, whatever the
    coefficients are. A likelihood that depends on a traced value has the panels of the
    prior: give it a ``refinement`` that resolves the narrowest unit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.BSpline(-3.0, 3.0, 8)
    >>> prior = kaem.KAEMPrior(kaem.Energy(basis, jnp.zeros(8)), dist.Normal(0.0, 1.0))
    >>> x = jnp.array([0.5, -8.0])
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    >>> [f"{value:.3f}" for value in kaem.unit_log_marginal_likelihood(prior, units)]
    ['-1.328', '-17.266']
    >>> [f"{value:.3f}" for value in dist.Normal(0.0, 2.0**0.5).log_prob(x)]
    ['-1.328', '-17.266']
    """
    check_prior(prior)
    density, units = quadrature_under(prior, log_likelihood)
    parts = density.energy.on_unit_grid, density._parameters
    if isinstance(prior, KAEMPrior):
        return _log_marginals(*parts, units)
    marginals = _log_marginals(*parts, units._replace(at_atoms=None))
    marginals = marginals + jnp.log(prior.prior_weight)
    joint = jnp.log(prior.weights) + units.at_atoms
    return jnp.logaddexp(marginals, logsumexp(joint, axis=1))


@jax.jit
def _log_marginals(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    units: UnitQuadrature,
) -> jax.Array:
    log_mass = prior_masses(energy, parameters, units.panels)
    joint = units.log_likelihood + log_mass
    return logsumexp(joint, axis=1) - logsumexp(log_mass)
