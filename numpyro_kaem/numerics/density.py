"""Tilted densities: values, moments and draws."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_kaem._quadrature import mean_and_variance
from numpyro_kaem.energy import PlacedEnergy
from numpyro_kaem.numerics import cells, inverse
from numpyro_kaem.numerics.nodes import on_accelerator
from numpyro_kaem.numerics.panels import Panels, integrand, resolution_of
from numpyro_kaem.references import log_density, tail_nodes

__all__ = [
    "cdf_pair",
    "draw",
    "folded_uniform",
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

# Draws at a time: their intermediate arrays stay in the caches of a processor. That
# does not fill an accelerator: there many chunks are drawn side by side, and are the
# same.
_CHUNK = 1 << 18
_CHUNKS_AT_ONCE = 16


def folded_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Uniform numbers in (0, 1) as the distance to the nearer end, and which end.

    Returns
    -------
    tuple
        Distances in (0, 1/2], to which the smallest are multiples of 2**-32 (float32)
        or 2**-64 (float64), and whether the end is 1; both of the given shape.
    """
    width = 64 if jnp.dtype(dtype) == jnp.float64 else 32
    bits = jax.random.bits(key, shape, f"uint{width}")
    upper = (bits >> (width - 1)).astype(bool)
    distance = (bits & ((1 << (width - 1)) - 1)).astype(dtype)
    return (distance + 0.5) * 2.0**-width, upper


def draw(
    key: jax.Array,
    invert: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    sample_shape: tuple[int, ...],
    batch_shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> jax.Array:
    """Draw in chunks, so that no array but the result grows with the number of draws.

    Parameters
    ----------
    key
        Random key.
    invert
        Makes draws of a given shape ``(*batch_shape, num_samples)`` from a key. All
        draws of one density lie side by side, so that its table stays in the fastest
        cache.
    sample_shape, batch_shape, dtype
        Of the draws.

    Returns
    -------
    Array
        Shape ``sample_shape + batch_shape``.
    """
    num_samples, size = math.prod(sample_shape), math.prod(batch_shape)
    num_rows = max(1, _CHUNK // max(size, 1))

    # For derivatives drawn again, which is faster than to keep what they need.
    @jax.checkpoint
    def one_chunk(key: jax.Array) -> jax.Array:
        return invert(key, (*batch_shape, num_rows))

    # Drawn in a loop of its own, whose end keeps the compiler from fusing the change of
    # order into it: it would visit the densities in turn, draw by draw. The draws are
    # carried by the loop rather than stacked: what is written into a part of an array
    # is computed by one core only.
    def pair_of_chunks(key: jax.Array) -> jax.Array:
        def step(pair: tuple, key: jax.Array) -> tuple:
            return (pair[1], one_chunk(key)), None

        empty = jnp.zeros((*batch_shape, num_rows), dtype)
        pair, _ = jax.lax.scan(step, (empty, empty), jax.random.split(key))
        return jnp.moveaxis(jnp.stack(pair), -1, 1)

    if num_samples <= num_rows:
        draws = jnp.moveaxis(invert(key, (*batch_shape, num_samples)), -1, 0)
        count = num_samples
    else:
        # Chunks without a remainder, if there are such, save a copy of the draws.
        candidates = range(num_rows, num_rows // 2, -1)
        whole = (r for r in candidates if num_samples % (2 * r) == 0)
        num_rows = next(whole, num_rows)
        num_pairs = -(-num_samples // (2 * num_rows))
        at_once = _CHUNKS_AT_ONCE if on_accelerator() else None
        keys = jax.random.split(key, num_pairs)
        draws = jax.lax.map(pair_of_chunks, keys, batch_size=at_once)
        count = 2 * num_pairs * num_rows

    # Counted, not inferred: an empty batch leaves nothing to infer from.
    draws = draws.reshape(count, *batch_shape)[:num_samples]
    return draws.reshape(*sample_shape, *batch_shape)


tabulate = jax.jit(cells.tabulate)
log_prob = jax.jit(inverse.log_prob)
cdf_pair = jax.jit(inverse.cdf_pair)
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
