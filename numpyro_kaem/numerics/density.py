"""A tilted density as compiled functions of its energy and its reference."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_kaem._quadrature import mean_and_variance
from numpyro_kaem.energy import PlacedEnergy
from numpyro_kaem.numerics import cdf, cells, inverse
from numpyro_kaem.numerics.draws import draw, folded_uniform
from numpyro_kaem.numerics.panels import Panels, integrand, resolution_of
from numpyro_kaem.references import log_density, tail_nodes

__all__ = [
    "cdf_pair",
    "icdf_folded",
    "log_nodes",
    "log_normalizer",
    "log_prob",
    "moments",
    "nodes",
    "resolution",
    "sample",
    "sample_once",
    "tabulate",
]

tabulate = jax.jit(cells.tabulate)
log_prob = jax.jit(cdf.log_prob)
cdf_pair = jax.jit(cdf.cdf_pair)
icdf_folded = jax.jit(inverse.icdf_folded)
resolution = jax.jit(resolution_of)


@jax.jit
def log_normalizer(energy: PlacedEnergy, parameters: Any, panels: Panels) -> jax.Array:
    """Log of the normaliser, shape ``(*batch_shape,)``."""
    return integrand(energy, parameters, panels).log_normalizer


@partial(jax.jit, static_argnames="sample_shape")
def sample(
    table: cells.Table,
    parameters: Any,
    ends: tuple,
    key: jax.Array,
    sample_shape: tuple[int, ...],
) -> jax.Array:
    """Draws between the ends of the support, shape ``sample_shape + batch_shape``."""
    batch_shape = table.log_normalizer.shape
    dtype = table.log_normalizer.dtype

    def invert(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        mass, upper = folded_uniform(key, shape, dtype)
        z = inverse.icdf_of_rows(table, parameters, mass, upper)
        return _inside(z, tuple(jnp.expand_dims(end, -1) for end in ends))

    return draw(key, invert, sample_shape, batch_shape, dtype)


@jax.jit
def sample_once(
    energy: PlacedEnergy, parameters: Any, panels: Panels, ends: tuple, key: jax.Array
) -> jax.Array:
    """One draw of each density, for which no whole table is made: ``batch_shape``.

    To rounding it is the draw of :func:`sample` with this key.
    """
    reference = () if parameters is None else parameters.build().batch_shape
    batch_shape = jnp.broadcast_shapes(energy.batch_shape, reference)
    mass, upper = folded_uniform(key, batch_shape, energy.dtype)
    table = cells.tabulate_at(energy, parameters, panels, mass, upper)
    return _inside(inverse.icdf_folded(table, parameters, mass, upper), ends)


def _inside(z: jax.Array, ends: tuple) -> jax.Array:
    """Points off the ends of the support, where rounding may lead but no draw lies."""
    # Ends that move leave a draw where it is: it follows them by its own derivative.
    ends = jax.lax.stop_gradient(ends)
    low, high = (jnp.asarray(end, z.dtype) for end in ends)
    return jnp.clip(z, jnp.nextafter(low, high), jnp.nextafter(high, low))


@jax.jit
def log_nodes(
    energy: PlacedEnergy, parameters: Any, panels: Panels, log_normalizer: jax.Array
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
        if not panels.has_tails[side]:
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
    energy: PlacedEnergy, parameters: Any, panels: Panels, log_normalizer: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Nodes and masses of the quadrature, each ``(num_nodes, *batch_shape)``."""
    points, log_masses = log_nodes(energy, parameters, panels, log_normalizer)
    return points, jnp.exp(log_masses)


@jax.jit
def moments(
    energy: PlacedEnergy, parameters: Any, panels: Panels, log_normalizer: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance, each ``(*batch_shape,)``."""
    points, log_masses = log_nodes(energy, parameters, panels, log_normalizer)
    return mean_and_variance(points, log_masses)
