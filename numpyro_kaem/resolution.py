"""How well panels resolve a density, and what follows from it."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpy.polynomial.legendre import legvander

from numpyro_kaem.panels import Integrand, Panels, integrand
from numpyro_kaem.placed_energy import PlacedEnergy
from numpyro_kaem.quadrature import gauss_kronrod, gauss_legendre, nodes_per_panel
from numpyro_kaem.references import ReferenceParameters

__all__ = [
    "Resolution",
    "check_number",
    "resolution_of",
    "wanted",
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


class Resolution(NamedTuple):
    """How well panels resolve a density, and how well its energies are known."""

    change: jax.Array
    """Largest change of the energy within a panel, a scalar."""
    panels: jax.Array
    """Relative difference of the normaliser between the Gauss rule and its Kronrod
    extension on the same panels, shape ``(*batch_shape,)``."""
    series: jax.Array
    """Largest error of a mass within a panel, the last terms of the density's series
    there, shape ``(*batch_shape,)``."""
    rounding: jax.Array
    """What rounding of the energies alone may cost, the same shape."""
    reference: jax.Array
    """Relative difference from 1 of the mass of the reference alone, the same shape."""
    spacing: jax.Array
    """Largest mass between two neighbouring numbers of the precision, a scalar."""

    @property
    def error(self) -> jax.Array:
        """Estimated error of the normaliser, relative, and of masses."""
        return self.panels + self.series + self.rounding + self.reference


def resolution_of(
    energy: PlacedEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> Resolution:
    """Say how well panels resolve a density."""
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
    share = share.reshape(
        len(share), *(1,) * (difference.ndim + 1 - share.ndim), *share.shape[1:]
    )
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


def check_number(resolution: Resolution, parameters: ReferenceParameters) -> None:
    """Refuse a reference with which the density is not a number.

    Raises
    ------
    ValueError
        If the normaliser is NaN.
    """
    # Not of the sum, which a trace would make a tracer of.
    if np.any(np.isnan(np.asarray(resolution.panels))):
        support = parameters.build().support
        raise ValueError(
            "reference must have a log_prob and a cdf that are numbers everywhere in "
            f"its support, which it says is {support}; the normaliser is NaN. A "
            "transform may lack its domain."
        )


def warn_of_reference(resolution: Resolution, parameters: Any, dtype: Any) -> None:
    """Warn of a reference that is not of mass 1, or that the precision cannot place."""
    name, precision = parameters.law.__name__, np.dtype(dtype).name
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


def wanted(resolution: Resolution, dtype: np.dtype) -> int:
    """Return the parts of every panel that such an energy needs, at most 8."""
    limit = _CHANGE_PER_PANEL[np.dtype(dtype) == np.float64]
    parts = int(np.ceil(float(resolution.change) / limit))
    return min(max(parts, 1), _MAX_REFINEMENT)


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
    error: jax.Array, change: float, refinement: int, stacklevel: int
) -> None:
    """Warn of a normaliser whose estimated relative error is above 1e-4."""
    worst = float(np.max(np.asarray(error)))
    if not worst <= _WARN_ABOVE:
        warnings.warn(
            f"the normaliser has an estimated relative error of {worst:.1e}: the "
            f"energy changes by {change:.3g} within a panel of the quadrature. Use "
            "smaller coefficients, a smoother basis or a larger refinement than "
            f"{refinement}.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
