"""A mixture of tilted densities in one dimension: the pure core."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from numpyro_kaem.energy import PlacedEnergy
from numpyro_kaem.numerics import density
from numpyro_kaem.numerics.cells import Table, find_interval_in_rows
from numpyro_kaem.numerics.density import draw, folded_uniform
from numpyro_kaem.numerics.inverse import select_rows

__all__ = ["log_prob", "sample_component", "tabulate"]


@jax.jit
def log_prob(
    log_weights: jax.Array,
    energy: PlacedEnergy,
    parameters: Any,
    log_normalizer: jax.Array,
    value: jax.Array,
) -> jax.Array:
    """Log density: (..., *batch_shape) -> (..., *batch_shape)."""
    value = jnp.expand_dims(value, -1)
    terms = log_weights + density.log_prob(energy, parameters, log_normalizer, value)
    # Where no component has density the gradient is zero, not undefined.
    possible = jnp.any(terms > -jnp.inf, axis=-1, keepdims=True)
    total = logsumexp(jnp.where(possible, terms, 0), axis=-1)
    return jnp.where(possible[..., 0], total, -jnp.inf)


@jax.jit
def tabulate(table: Table, log_weights: jax.Array) -> Table:
    """Table of a mixture of densities on the same cells.

    Parameters
    ----------
    table
        Of the components, along the last axis of ``(*batch_shape, num_components)``,
        all with the same edges.
    log_weights
        Normalised log weights, of a shape that broadcasts with it.

    Returns
    -------
    Table
        Of the mixture, without the log density within a cell.
    """
    weights = jnp.exp(log_weights)

    def mix(masses: jax.Array) -> jax.Array:
        # As a sum over components in one order, which keeps what increases increasing.
        return jnp.sum(weights[..., None] * masses, axis=-2)

    below = mix(table.below)
    scales = (
        None if scale is None else logsumexp(log_weights + scale, axis=-1)
        for scale in table.log_tail_scales
    )
    return Table(
        log_normalizer=jnp.zeros(below.shape[:-1], below.dtype),
        powers=jax.vmap(mix)(table.powers),
        below=below,
        above=mix(table.above),
        edges=jnp.broadcast_to(table.edges[..., 0, :], below.shape),
        log_tail_scales=tuple(scales),
    )


@partial(jax.jit, static_argnames=("sample_shape", "batch_shape"))
def sample_component(
    table: Table,
    parameters: Any,
    ends: tuple,
    log_weights: jax.Array,
    key: jax.Array,
    sample_shape: tuple[int, ...],
    batch_shape: tuple[int, ...],
) -> jax.Array:
    """Choose a component and invert it, shape ``sample_shape + batch_shape``."""
    dtype = table.log_normalizer.dtype
    num_components = log_weights.shape[-1]
    prior_shape = table.log_normalizer.shape
    size = int(np.prod(batch_shape, dtype=np.int64))
    weights = jnp.broadcast_to(jnp.exp(log_weights), (*batch_shape, num_components))
    weights = weights.reshape(size, num_components).T
    # One uniform number chooses the component; none without weight, at either end.
    keys = jnp.concatenate([jnp.zeros((1, size), dtype), jnp.cumsum(weights, axis=0)])
    left = jnp.cumsum(weights[::-1], axis=0)[::-1]
    keys = keys.at[:-1].set(jnp.where(left > 0, keys[:-1], jnp.inf))
    cell = jnp.arange(size, dtype=jnp.int32).reshape(*batch_shape, 1)
    rows = jnp.arange(int(np.prod(prior_shape, dtype=np.int64)), dtype=jnp.int32)
    rows = jnp.broadcast_to(
        rows.reshape(prior_shape), (*batch_shape, num_components)
    ).reshape(-1)

    def invert(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        choice_key, point_key = jax.random.split(key)
        distance, upper = folded_uniform(choice_key, shape, dtype)
        u = jnp.where(upper, 1 - distance, distance)
        cells = jnp.broadcast_to(cell, shape)
        component = find_interval_in_rows(
            keys.T, u.reshape(size, shape[-1]), num_components
        ).reshape(shape)
        row = cells * num_components + component
        if prior_shape != (*batch_shape, num_components):
            row = rows.at[row].get(mode="promise_in_bounds")
        mass, upper = folded_uniform(point_key, shape, dtype)
        z = select_rows(table, parameters, row, mass, upper)
        low, high = (_at(end, prior_shape, row, dtype) for end in ends)
        return jnp.clip(z, jnp.nextafter(low, high), jnp.nextafter(high, low))

    return draw(key, invert, sample_shape, batch_shape, dtype)


def _at(
    end: ArrayLike, shape: tuple[int, ...], row: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    end = jnp.asarray(end, dtype)
    if end.ndim == 0:
        return end
    return jnp.broadcast_to(end, shape).reshape(-1)[row]
