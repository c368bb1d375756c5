"""Weighted particles that go from the priors of many units to their posteriors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem.infer.ladder import equal_rejection_ladder
from numpyro_kaem.infer.resampling import resample_below
from numpyro_kaem.objectives.chains import Chains, advance
from numpyro_kaem.objectives.langevin import prior_positions
from numpyro_kaem.objectives.unit_model import UnitModel

__all__ = ["Sizes", "annealed_weights"]

# The first finds where the rungs belong, the second the step sizes on them.
_NUM_PILOTS = 2
# Share of the particles in effect below which they are drawn anew by their weights.
_RESAMPLE_BELOW = 0.5


class Sizes(NamedTuple):
    """What is known when the passage is compiled."""

    num_particles: int
    """Number of particles of each datum."""
    num_steps: int
    """Number of Langevin steps at each rung."""
    chunk_size: int | None
    """Number of data that are annealed at once; None is all."""


class _Passage(NamedTuple):
    """What is known of the way from the priors to the posteriors, by unit."""

    temperatures: jax.Array
    """Ladder, shape ``(num_temperatures, num_units)``."""
    log_step_size: jax.Array
    """At the rungs between, shape ``(num_temperatures - 2, num_units)``."""


class _Particles(NamedTuple):
    """Weighted particles on their way."""

    position: jax.Array
    """Shape ``(num_units, num_particles, dim)``."""
    log_weights: jax.Array
    """Normalised, shape ``(num_units, num_particles)``."""
    log_total: jax.Array
    """Log of the mean weight so far, shape ``(num_units,)``."""
    ancestor: jax.Array
    """The draw of the prior that each stems from, as ``log_weights``."""


def annealed_weights(
    rng_key: jax.Array, unit_model: UnitModel, ladder: jax.Array, sizes: Sizes
) -> jax.Array:
    """Anneal particles from the priors to the posteriors, after pilots.

    Parameters
    ----------
    rng_key
        Random key.
    unit_model
        The data.
    ladder
        Ladder to start from, shape ``(num_temperatures,)``.
    sizes
        How many particles, and how many steps.

    Returns
    -------
    Array
        Log weights, shape ``(num_units, num_particles)``. The mean of their
        exponentials is an unbiased estimate of the likelihood of each unit; each counts
        what stems from one draw of the prior.
    """
    num_units = unit_model.num_units
    temperatures = jnp.repeat(ladder[:, None], num_units, axis=1)
    log_step_size = jnp.zeros((len(ladder) - 2, num_units), ladder.dtype)

    def go(passage: _Passage, this: tuple) -> tuple[_Passage, jax.Array]:
        key, moves_ladder, adapts = this
        log_weights, spread, log_step_size = _anneal(
            key, unit_model, passage, sizes, adapts
        )
        # The rejection of a swap is in proportion to the distance of the rungs in
        # standard deviations of the log likelihood, as is the spread of a weight.
        distance = jnp.diff(passage.temperatures, axis=0) * spread
        ladder = jax.vmap(equal_rejection_ladder, 1, 1)(passage.temperatures, distance)
        ladder = jnp.where(moves_ladder, ladder, passage.temperatures)
        return _Passage(ladder, log_step_size), log_weights

    passes = jnp.arange(_NUM_PILOTS + 1)
    keys = jax.random.split(rng_key, _NUM_PILOTS + 1)
    # One compiled passage serves the pilots and the estimate.
    _, log_weights = jax.lax.scan(
        go,
        _Passage(temperatures, log_step_size),
        (keys, passes < _NUM_PILOTS - 1, passes < _NUM_PILOTS),
    )
    return log_weights[-1]


def _anneal(
    rng_key: jax.Array,
    unit_model: UnitModel,
    passage: _Passage,
    sizes: Sizes,
    adapts: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Anneal particles from the priors to the posteriors.

    Parameters
    ----------
    rng_key
        Random key.
    unit_model
        The data.
    passage
        Ladder and step sizes.
    sizes
        How many particles, and how many steps.
    adapts
        Whether step sizes follow the acceptance, from that of the rung before; the
        weights are then biased.

    Returns
    -------
    log_weights
        By ancestor, shape ``(num_units, num_particles)``; their mean is the estimate.
    spread
        Standard deviation of the log likelihood at all rungs but the last, shape
        ``(num_temperatures - 1, num_units)``.
    log_step_size
        As in the passage.
    """
    num_particles = sizes.num_particles
    shape = (unit_model.num_units, num_particles)
    densities = jax.vmap(unit_model.log_densities, 1, 1)

    def weigh(particles: _Particles, width: jax.Array) -> tuple[_Particles, jax.Array]:
        found = densities(particles.position)[1]
        found = jnp.where(jnp.isnan(found), -jnp.inf, found)
        weights = particles.log_weights + width[:, None] * found
        total = jax.nn.logsumexp(weights, axis=1, keepdims=True)
        some = jnp.isfinite(total)
        weights = jnp.where(some, weights - total, -jnp.inf)
        return particles._replace(
            log_weights=weights, log_total=particles.log_total + total[:, 0]
        ), _spread(found)

    def resample(key: jax.Array, particles: _Particles) -> _Particles:
        drawn = resample_below(
            key, particles.log_weights.T, _RESAMPLE_BELOW, method="systematic"
        )
        index = drawn.indices.T
        return particles._replace(
            position=jnp.take_along_axis(particles.position, index[..., None], axis=1),
            log_weights=drawn.log_weights.T,
            ancestor=jnp.take_along_axis(particles.ancestor, index, axis=1),
        )

    def visit(carry: tuple, rung: tuple) -> tuple[tuple, tuple]:
        particles, last_size = carry
        key, width, temperature, log_size = rung
        key_resample, key_move = jax.random.split(key)
        particles, spread = weigh(particles, width)
        particles = resample(key_resample, particles)

        def tempered(position: jax.Array) -> jax.Array:
            log_prior, log_likelihood = densities(position)
            return log_prior + temperature[:, None] * log_likelihood

        log_size = jnp.where(adapts, last_size, log_size)
        start = jnp.broadcast_to(log_size[:, None], shape)
        chains = Chains(particles.position, start, jnp.zeros(shape, int))
        chains, _ = advance(key_move, tempered, chains, sizes.num_steps, adapts=adapts)
        log_size = jnp.where(adapts, chains.log_step_size.mean(1), log_size)
        particles = particles._replace(position=chains.position)
        return (particles, log_size), (spread, log_size)

    key_prior, key_moves = jax.random.split(rng_key)
    position = prior_positions(key_prior, unit_model, shape)
    equal = jnp.full(shape, -np.log(num_particles), position.dtype)
    ancestor = jnp.broadcast_to(jnp.arange(num_particles), shape)
    particles = _Particles(position, equal, jnp.zeros(shape[0], equal.dtype), ancestor)
    widths = jnp.diff(passage.temperatures, axis=0)
    rungs = (
        jax.random.split(key_moves, len(widths) - 1),
        widths[:-1],
        passage.temperatures[1:-1],
        passage.log_step_size,
    )
    first_size = jnp.zeros(shape[0], equal.dtype)
    (particles, _), (spread, log_step_size) = jax.lax.scan(
        visit, (particles, first_size), rungs
    )
    particles, last = weigh(particles, widths[-1])
    shares = jax.vmap(lambda a, w: jnp.zeros_like(w).at[a].add(w))(
        particles.ancestor, jnp.exp(particles.log_weights)
    )
    log_weights = particles.log_total[:, None] + jnp.log(num_particles * shares)
    return log_weights, jnp.concatenate([spread, last[None]]), log_step_size


def _spread(log_likelihood: jax.Array) -> jax.Array:
    """Take the standard deviation over the particles that have a likelihood."""
    some = jnp.isfinite(log_likelihood)
    values = jnp.where(some, log_likelihood, 0.0)
    count = jnp.maximum(jnp.sum(some, -1, keepdims=True), 1)
    mean = jnp.sum(values, -1, keepdims=True) / count
    squares = jnp.where(some, (values - mean) ** 2, 0.0)
    return jnp.sqrt(jnp.sum(squares, -1) / count[:, 0])
