"""Tilted densities on their panels: values, normalizers, moments and resolution."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpy.polynomial.legendre import legvander

from numpyro_kaem._quadrature import (
    gauss_kronrod,
    gauss_legendre,
    mean_and_variance,
    nodes_per_panel,
)
from numpyro_kaem.energy import UnitGridEnergy
from numpyro_kaem.numerics.panels import Panels
from numpyro_kaem.references import (
    ReferenceParameters,
    log_density,
    log_tail_mass,
    tail_nodes,
    with_rank,
)

__all__ = [
    "Integrand",
    "Resolution",
    "check_not_nan",
    "integrand",
    "log_nodes",
    "log_normalizer",
    "log_prob",
    "mixture_log_prob",
    "moments",
    "needed_refinement",
    "nodes",
    "resolution",
    "warn_of_error",
    "warn_of_reference",
    "warn_of_spacing",
]

# The change of the energy within a panel that its Gauss rule and series resolve, to
# 1e-6 in float32 and to 1e-12 in float64.
_CHANGE_PER_PANEL = {False: 5.0, True: 4.0}
_MAX_REFINEMENT = 8
_WARN_ABOVE = 1e-4
_SPACING_ABOVE = 1e-3


class Integrand(NamedTuple):
    """The unnormalized density at the nodes of a composite rule, and its tails.

    ``energy`` and ``log_mass``, weight times density, have the shape
    ``(num_panels, num_nodes, *batch_shape)``, ``nodes`` one that broadcasts to it. The
    log masses of the tails, ``None`` where there is none, and the energies at both ends
    of the panels have the shape ``batch_shape``.
    """

    nodes: jax.Array
    energy: jax.Array
    log_mass: jax.Array
    log_tails: tuple[jax.Array | None, jax.Array | None]
    energy_ends: tuple[jax.Array, jax.Array]

    @property
    def log_normalizer(self) -> jax.Array:
        """Log of the total mass, shape ``batch_shape``."""
        terms = [logsumexp(self.log_mass, axis=(0, 1))]
        terms += [tail for tail in self.log_tails if tail is not None]
        return terms[0] if len(terms) == 1 else logsumexp(jnp.stack(terms), axis=0)


def integrand(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    rule: tuple[np.ndarray, np.ndarray] | None = None,
) -> Integrand:
    """Evaluate the unnormalized density at the nodes of a rule on every panel.

    ``rule`` has nodes in (-1, 1) and weights: the Gauss rule of the precision if
    ``None``. Without ``parameters`` the reference is uniform on the grid.
    """
    dtype = energy.dtype
    reference = None if parameters is None else parameters.build()
    batch_shape = energy.batch_shape
    if reference is not None:
        batch_shape = jnp.broadcast_shapes(batch_shape, reference.batch_shape)
    rank = len(batch_shape)
    x, weights = rule if rule is not None else gauss_legendre(nodes_per_panel(dtype))
    if panels.unit_edges is not None:
        start, step = np.asarray(panels.unit_edges[:-1]), np.diff(panels.unit_edges)
        s = start[:, None] + step[:, None] * (x + 1) / 2
        values = energy.at_shared(jnp.asarray(s.reshape(-1), dtype))
        values = _with_rank(values.reshape(*s.shape, *values.shape[1:]), rank)
        nodes = energy.from_unit(jnp.asarray(s.reshape((-1,) + (1,) * rank), dtype))
        nodes = nodes.reshape(*s.shape, *nodes.shape[1:])
    else:
        edges = panels.edges
        left, width = edges[:-1, None], jnp.diff(edges, axis=0)[:, None]
        unit = jnp.asarray((x + 1) / 2, dtype)
        unit = unit.reshape((1, -1) + (1,) * (edges.ndim - 1))
        nodes = _with_rank(left + width * unit, rank)
        values = energy(nodes)
    width = _with_rank(jnp.diff(panels.edges, axis=0)[:, None], rank)
    log_weights = jnp.asarray(np.log(weights / 2), dtype)
    log_weights = log_weights.reshape((1, -1) + (1,) * rank)
    positive = width > 0
    log_width = jnp.where(positive, jnp.log(jnp.where(positive, width, 1)), -jnp.inf)
    if reference is None:
        low, high = energy.ends(dtype)
        log_reference = -jnp.log(high - low)
    else:
        log_reference = log_density(reference, nodes)
    log_mass = values + log_reference + (log_weights + log_width)
    log_mass = jnp.broadcast_to(log_mass, (*log_mass.shape[:2], *batch_shape))
    ends = (
        jnp.broadcast_to(energy(panels.edges[0]), batch_shape),
        jnp.broadcast_to(energy(panels.edges[-1]), batch_shape),
    )
    tails: list[jax.Array | None] = [None, None]
    for side, upper in enumerate((False, True)):
        if parameters is not None and panels.has_tails[side]:
            log_tail = log_tail_mass(parameters, panels.edges[-side], upper)
            tails[side] = jnp.broadcast_to(ends[side] + log_tail, batch_shape)
    return Integrand(nodes, values, log_mass, (tails[0], tails[1]), ends)


def _with_rank(array: jax.Array, rank: int) -> jax.Array:
    """Insert axes of size one after the first two, so that ``rank`` axes follow."""
    shape = array.shape
    return array.reshape(*shape[:2], *(1,) * (rank + 2 - len(shape)), *shape[2:])


@jax.jit
def log_normalizer(
    energy: UnitGridEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> jax.Array:
    """Log of the normalizing constant, shape ``batch_shape``."""
    return integrand(energy, parameters, panels).log_normalizer


@jax.jit
def log_prob(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    log_normalizer: jax.Array,
    z: jax.Array,
) -> jax.Array:
    """Log density at ``z``: (..., *batch_shape) -> (..., *batch_shape)."""
    if parameters is None:
        low, high = energy.ends(z.dtype)
        inside = (z >= low) & (z <= high)
        log_reference = jnp.where(inside, -jnp.log(high - low), -jnp.inf)
    else:
        log_reference = log_density(parameters.build(), z)
    value = energy(z) + log_reference - log_normalizer
    # Not minus infinity, as beyond the support.
    return jnp.where(jnp.isnan(z), z, value)


@jax.jit
def mixture_log_prob(
    log_weights: jax.Array,
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    log_normalizer: jax.Array,
    z: jax.Array,
) -> jax.Array:
    """Log density of a mixture over the last axis of the batch, which ``z`` lacks."""
    z = jnp.expand_dims(z, -1)
    terms = log_weights + log_prob(energy, parameters, log_normalizer, z)
    # Where no component has density the gradient is zero, not undefined.
    possible = jnp.any(terms > -jnp.inf, axis=-1, keepdims=True)
    total = logsumexp(jnp.where(possible, terms, 0), axis=-1)
    return jnp.where(possible[..., 0], total, -jnp.inf)


# --- moments -------------------------------------------------------------------------


@jax.jit
def log_nodes(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    log_normalizer: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Nodes and log masses of the quadrature, each ``(num_nodes, *batch_shape)``."""
    values = integrand(energy, parameters, panels)
    shape = log_normalizer.shape
    count = values.log_mass.shape[0] * values.log_mass.shape[1]
    log_masses = (values.log_mass - log_normalizer).reshape(count, *shape)
    nodes = jnp.broadcast_to(values.nodes, values.log_mass.shape)
    nodes = nodes.reshape(count, *shape)
    points, weights = [nodes], [log_masses]
    for side, upper in enumerate((False, True)):
        if parameters is None or not panels.has_tails[side]:
            continue
        start = jnp.broadcast_to(panels.edges[-side], shape)
        nodes, log_weights = tail_nodes(parameters, start, upper)
        log_reference = log_density(parameters.build(), nodes)
        log_mass = log_weights + log_reference + values.energy_ends[side]
        used = jnp.isfinite(log_mass)
        points.append(jnp.where(used, nodes, start))
        weights.append(jnp.where(used, log_mass - log_normalizer, -jnp.inf))
    return jnp.concatenate(points), jnp.concatenate(weights)


@jax.jit
def nodes(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    log_normalizer: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Nodes and masses of the quadrature, each ``(num_nodes, *batch_shape)``."""
    points, log_masses = log_nodes(energy, parameters, panels, log_normalizer)
    return points, jnp.exp(log_masses)


@jax.jit
def moments(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    log_normalizer: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance, each of shape ``batch_shape``."""
    return mean_and_variance(*log_nodes(energy, parameters, panels, log_normalizer))


# --- how well the panels resolve a density -------------------------------------------


class Resolution(NamedTuple):
    """How well panels resolve a density, and how well its energies are known.

    ``change`` and ``spacing`` are scalars, the others have the shape ``batch_shape``.
    """

    change: jax.Array
    """Largest change of the energy within a panel."""
    panels: jax.Array
    """Relative difference of the normalizer by the Gauss and the Kronrod rule."""
    series: jax.Array
    """Largest error of a mass within a panel: the last terms of the series there."""
    rounding: jax.Array
    """What rounding of the energies alone may cost."""
    reference: jax.Array
    """Relative difference from 1 of the mass of the reference alone."""
    spacing: jax.Array
    """Largest mass between two neighbouring numbers of the precision."""

    @property
    def error(self) -> jax.Array:
        """Estimated error of the normalizer, relative, and of masses."""
        return self.panels + self.series + self.rounding + self.reference


@jax.jit
def resolution(
    energy: UnitGridEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> Resolution:
    """Estimate how well panels resolve a density."""
    dtype = energy.dtype
    num_nodes = nodes_per_panel(dtype)
    fine = integrand(energy, parameters, panels, gauss_kronrod(num_nodes))
    # Every second node of the extension is a Gauss node, with another weight.
    gauss_nodes, gauss_weights = gauss_legendre(num_nodes)
    _, kronrod_weights = gauss_kronrod(num_nodes)
    ratio = jnp.asarray(gauss_weights / kronrod_weights[1::2], dtype)
    ratio = ratio.reshape((1, -1) + (1,) * (fine.log_mass.ndim - 2))
    masses = jnp.exp(fine.log_mass - fine.log_normalizer)
    panel_masses = jnp.sum(masses, axis=1)
    coarse = masses[:, 1::2] * ratio
    coarse_masses = jnp.sum(coarse, axis=1)
    # What a series leaves out goes on as its terms fell, two by two for even densities;
    # the integral of a Legendre polynomial of the term that follows is below a half.
    last = jnp.asarray(legvander(gauss_nodes, num_nodes - 1)[:, -4:].T, dtype)
    last = last.reshape((4, *ratio.shape[1:]))
    terms = [jnp.abs(jnp.sum(coarse * row, axis=1)) for row in last]
    before, after = jnp.maximum(*terms[:2]), jnp.maximum(*terms[2:])
    fall = after / jnp.maximum(jnp.maximum(before, after), jnp.finfo(dtype).tiny)
    series = jnp.max(0.5 * after * fall, axis=0, initial=0.0)
    difference = jnp.abs(jnp.sum(coarse_masses - panel_masses, axis=0))
    eps = jnp.finfo(dtype).eps
    # Rounding of the energies costs where there is mass; elsewhere they may be huge.
    scale = jnp.max(jnp.where(masses > eps, jnp.abs(fine.energy), 0), axis=(0, 1))
    nodes = fine.energy[:, 1::2]
    change = jnp.max(jnp.max(nodes, 1) - jnp.min(nodes, 1), initial=0.0)
    own_error = jnp.zeros_like(difference)
    if parameters is not None:
        own_error = _error_of_reference(fine, parameters, panels)
        own_error = jnp.where(own_error > 64 * eps, own_error, 0)
        own_error = jnp.broadcast_to(own_error, difference.shape)
    width = jnp.diff(panels.edges, axis=0)
    gap = eps * jnp.maximum(jnp.abs(panels.edges[:-1]), jnp.abs(panels.edges[1:]))
    share = jnp.minimum(gap / jnp.where(width > 0, width, 1), 1)
    share = with_rank(share, difference.ndim)
    spacing = jnp.max(share * panel_masses, initial=0.0)
    rounding = eps * (24 + 2 * scale)
    return Resolution(change, difference, series, rounding, own_error, spacing)


def _error_of_reference(
    values: Integrand, parameters: ReferenceParameters, panels: Panels
) -> jax.Array:
    """Difference from 1 of the mass of the reference, which is left at energy 0.

    Once for all densities that share it and its panels: of shape 1 along their axes.
    """
    rank = values.log_mass.ndim - 2
    shape = np.broadcast_shapes(
        (1,) * rank, parameters.build().batch_shape, panels.edges.shape[1:]
    )
    shared = (..., *(slice(0, 1) if size == 1 else slice(None) for size in shape))
    terms = [logsumexp((values.log_mass - values.energy)[shared], axis=(0, 1))]
    for tail, end in zip(values.log_tails, values.energy_ends, strict=True):
        if tail is not None:
            terms.append((tail - end)[shared])
    return jnp.abs(jnp.expm1(logsumexp(jnp.stack(terms), axis=0)))


def needed_refinement(resolution: Resolution, dtype: np.dtype) -> int:
    """Return how many parts of every panel an energy needs, at most 8."""
    limit = _CHANGE_PER_PANEL[np.dtype(dtype) == np.float64]
    parts = int(np.ceil(float(resolution.change) / limit))
    return min(max(parts, 1), _MAX_REFINEMENT)


def check_not_nan(resolution: Resolution, parameters: ReferenceParameters) -> None:
    """Raise ``ValueError`` if the reference makes the normalizing constant NaN."""
    # Not of the sum, which a trace would make a tracer of.
    if np.any(np.isnan(np.asarray(resolution.panels))):
        support = parameters.build().support
        raise ValueError(
            "reference must have a log_prob and a cdf that are numbers everywhere in "
            f"its support, which it says is {support}; the normalizing constant is "
            "NaN. A transform may lack its domain."
        )


def warn_of_reference(
    resolution: Resolution, parameters: ReferenceParameters, dtype: Any
) -> None:
    """Warn of a reference whose mass is not 1 on the panels and beyond."""
    name, precision = parameters.distribution.__name__, np.dtype(dtype).name
    worst = float(np.max(np.asarray(resolution.reference), initial=0.0))
    if worst > _WARN_ABOVE:
        warnings.warn(
            f"the {name} reference has a mass that differs from 1 by {worst:.1e} in "
            f"{precision}, by its own log_prob and cdf on the panels of the grid: the "
            "density between and beyond the ends of the grid is off by as much. Use "
            "float64 (jax.config.update('jax_enable_x64', True)), a grid about as wide "
            "as the reference, or a reference whose bulk is nearer to its support.",
            UserWarning,
            stacklevel=5,
        )


def warn_of_spacing(resolution: Resolution, dtype: Any) -> None:
    """Warn where the numbers of the precision are too far apart for the density."""
    spacing = float(resolution.spacing)
    if spacing > _SPACING_ABOVE:
        warnings.warn(
            f"positions are too coarse in {np.dtype(dtype).name}: neighbouring numbers "
            f"have up to {spacing:.1e} of the mass between them, and draws and masses "
            "err by as much. Subtract an offset from z, such as its mean, or use "
            "float64 (jax.config.update('jax_enable_x64', True)).",
            UserWarning,
            stacklevel=5,
        )


def warn_of_error(
    error: ArrayLike, change: float, refinement: int, stacklevel: int
) -> None:
    """Warn of a normalizer whose estimated relative error is above 1e-4."""
    worst = float(np.max(np.asarray(error)))
    if not worst <= _WARN_ABOVE:
        warnings.warn(
            "the normalizing constant has an estimated relative error of "
            f"{worst:.1e}: the energy changes by {change:.3g} within a panel of the "
            "quadrature. Use smaller coefficients, a smoother basis or a larger "
            f"refinement than {refinement}.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
