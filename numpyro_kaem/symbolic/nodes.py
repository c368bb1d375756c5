"""A density at the nodes of its own quadrature, one component at a time."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.distributions import KAEMMixture, KAEMPrior
from numpyro_kaem.numerics import density
from numpyro_kaem.references import (
    ReferenceParameters,
    concretely,
    is_concrete,
    support_bounds,
)
from numpyro_kaem.symbolic.laws import Unit

__all__ = ["Component", "components", "distance", "marginals_of"]

_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
# Nodes of less mass cannot matter to a divergence that is finite.
_NO_MASS = 1e-20
_LEVELS = (0.16, 0.5, 0.84)


class Component(NamedTuple):
    """One density at its nodes, float64 arrays of shape ``(num_nodes,)``."""

    nodes: np.ndarray
    """Nodes, tails included."""
    log_masses: np.ndarray
    """Log of weight times density; the masses sum to 1."""
    log_density: np.ndarray
    """Log density."""
    cdf: np.ndarray
    """Mass below each node."""
    energy: np.ndarray
    """Energy."""
    grid: tuple[float, float]
    """Ends of the grid of the energy."""
    parameters: ReferenceParameters | None
    """Parameters of the reference, scalars; ``None`` is the uniform law on the grid."""
    unit: Unit
    """Where the density lies."""

    @property
    def masses(self) -> np.ndarray:
        """Weight times density."""
        return np.exp(self.log_masses)

    @property
    def reference(self) -> dist.Distribution | None:
        """The reference, or ``None``."""
        return None if self.parameters is None else self.parameters.build()

    @property
    def weights(self) -> np.ndarray:
        """Weights of the quadrature, in units of the nodes."""
        return np.exp(self.log_masses - self.log_density)

    def divergence(self, log_density: np.ndarray) -> float:
        """Divergence of a law, whose log density at the nodes is given, from this one.

        A law that is narrower than the nodes are apart could seem to be nearer than the
        density itself. It then has more mass than 1 at the nodes, which is added.
        """
        with np.errstate(all="ignore"):
            value = float(self.masses @ (self.log_density - log_density))
            excess = float(self.weights @ np.exp(log_density)) - 1
        return max(value + max(excess, 0.0), 0.0)

    def used(self) -> "Component":
        """Return the nodes that matter."""
        keep = self.masses > _NO_MASS
        return self._replace(
            nodes=self.nodes[keep],
            log_masses=self.log_masses[keep],
            log_density=self.log_density[keep],
            cdf=self.cdf[keep],
            energy=self.energy[keep],
        )


def marginals_of(prior: dist.Distribution, name: str) -> KAEMPrior:
    """Find the one-dimensional densities of a prior, those of components included.

    Parameters
    ----------
    prior
        A :class:`KAEMPrior`, :class:`KAEMMixture`, or a ``MixtureSameFamily`` of
        :class:`KAEMPrior`, any of them with ``to_event``, expanded or masked.
    name
        Name of the function that the user called.

    Raises
    ------
    TypeError
        If there are none, or they are traced.
    ValueError
        If the batch is empty.
    """
    inner = prior
    while not isinstance(inner, KAEMPrior):
        if isinstance(inner, _WRAPPERS):
            inner = inner.base_dist
        elif isinstance(inner, KAEMMixture):
            inner = inner.prior
        elif isinstance(inner, dist.MixtureSameFamily):
            inner = inner.component_distribution
        else:
            raise TypeError(
                "prior must be a KAEMPrior, a KAEMMixture or a MixtureSameFamily of "
                f"KAEMPrior, got {type(prior).__name__}, which has no "
                "one-dimensional densities of its own."
            )
    if not is_concrete((inner.energy, inner._parameters)):
        raise TypeError(
            f"{name} needs a concrete prior, got a traced one; call it outside of jit, "
            "vmap and grad."
        )
    if 0 in inner.batch_shape:
        raise ValueError(
            f"prior must hold a density, got batch_shape {inner.batch_shape}."
        )
    return inner


def components(prior: KAEMPrior) -> Iterator[Component]:
    """Evaluate all densities of a batch at their nodes, in C order."""
    shape = prior.batch_shape
    with concretely():
        arrays = _evaluate_prior(
            prior._table, prior.energy.placed, prior._parameters, prior._panels
        )
        if prior._parameters is None:
            ends = prior.energy.basis.low, prior.energy.basis.high
        else:
            ends = support_bounds(prior._parameters.build())
    arrays = [np.asarray(array, float) for array in arrays]
    low, high, left, right = (
        np.broadcast_to(np.asarray(end, float), shape)
        for end in (*ends, prior.energy.basis.low, prior.energy.basis.high)
    )
    for index in np.ndindex(shape):
        nodes, log_masses, log_density, cdf, energy = (
            array[(slice(None), *index)] for array in arrays
        )
        # Rounding of the normaliser is no part of a divergence.
        log_masses = log_masses - np.log(np.sum(np.exp(log_masses)))
        order = np.argsort(cdf)
        points = np.interp(_LEVELS, cdf[order], nodes[order])
        yield Component(
            nodes,
            log_masses,
            log_density,
            cdf,
            energy,
            grid=(float(left[index]), float(right[index])),
            parameters=_select(prior._parameters, shape, index),
            unit=Unit(
                location=float(points[1]),
                scale=float(points[2] - points[0]) / 2,
                low=float(low[index]),
                high=float(high[index]),
            ),
        )


@jax.jit
def _evaluate_prior(
    table: Any, energy: Any, parameters: Any, panels: Any
) -> tuple[jax.Array, ...]:
    log_normalizer = table.log_normalizer
    nodes, log_masses = density.log_nodes(energy, parameters, panels, log_normalizer)
    log_density = density.log_prob(energy, parameters, log_normalizer, nodes)
    cdf, _ = density.cdf_pair(table, energy, parameters, nodes)
    return nodes, log_masses, log_density, cdf, energy(nodes)


def _select(
    parameters: ReferenceParameters | None, shape: tuple[int, ...], index: tuple
) -> ReferenceParameters | None:
    """Parameters of one component of a batch."""
    return jax.tree_util.tree_map(
        lambda leaf: jnp.broadcast_to(leaf, shape)[index], parameters
    )


@jax.jit
def _evaluate(law: Any, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    return law.log_prob(z), law.cdf(z)


def distance(component: Component, law: dist.Distribution) -> tuple[float, float]:
    """Measure how far a law is from a density.

    Parameters
    ----------
    component
        The density, at the nodes that matter.
    law
        The law; it covers the support of the density.

    Returns
    -------
    tuple
        Kullback-Leibler divergence of the law from the density in nats, by the
        quadrature of the density, and the largest distance of the distribution
        functions at its nodes.
    """
    # Up to a power of two, so that compiled code is shared.
    count = len(component.nodes)
    size = max(256, 1 << (count - 1).bit_length())
    z = np.append(component.nodes, np.full(size - count, component.nodes[0]))
    z = jnp.asarray(z, jnp.zeros(()).dtype)
    # A prior has compiled code of its own.
    own = isinstance(law, KAEMPrior)
    values = (law.log_prob(z), law.cdf(z)) if own else _evaluate(law, z)
    log_density, cdf = (np.asarray(value, float)[:count] for value in values)
    cdf_error = float(np.max(np.abs(component.cdf - cdf)))
    return component.divergence(log_density), cdf_error
