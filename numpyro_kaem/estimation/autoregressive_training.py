"""Maximum likelihood for a chain of conditional densities: the pure core."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.optim as optim
from jax.scipy.special import logsumexp

from numpyro_kaem.bases import AbstractBasis, on_unit_grid
from numpyro_kaem.distributions.conditioner import MaskedConditioner
from numpyro_kaem.estimation.coordinates import Design, make_design
from numpyro_kaem.estimation.exponential_family import RIDGE
from numpyro_kaem.numerics.nodes import Nodes, make_nodes
from numpyro_kaem.references import ReferenceParameters

__all__ = ["Setting", "Training", "make_setting", "train"]

# Steps between two looks at the samples held out, and samples at a time for a look.
_STEPS_PER_LOOK = 50
_CHUNK = 1024


class Setting(NamedTuple):
    """What does not change from step to step."""

    basis: AbstractBasis
    """Features on the unit grid."""
    design: Design
    """Their coordinates, in which the network is trained."""
    nodes: Nodes
    """Quadrature of the reference, one row for all dimensions or one for each."""
    ridge: jax.Array
    """Penalty of squared coordinates a sample, shape ``(dim, num_features)``."""
    scale: jax.Array
    """Coordinates of unit outputs of the network, shape ``(dim, num_features)``."""


class Training(NamedTuple):
    """A trained network."""

    conditioner: MaskedConditioner
    """Its outputs are coefficients."""
    held_out: np.ndarray
    """Mean log likelihood of the samples held out, relative to the reference, at the
    start and at each look."""


def make_setting(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    dim: int,
    penalty: np.ndarray,
    num_effective: float,
) -> Setting:
    """Make the fixed parts of a training.

    Parameters
    ----------
    basis
        Features, with grids that broadcast to ``(dim,)``.
    parameters
        Of the reference; ``None`` is the uniform law on the grid.
    dim
        Number of dimensions.
    penalty
        Weight of the roughness, shape ``(dim,)``.
    num_effective
        Number of samples to which the weight refers.

    Returns
    -------
    Setting
    """
    dtype = jnp.zeros(()).dtype
    design = make_design(basis, dtype)
    rough = penalty[:, None] * design.roughness
    ridge = np.where(design.used, (rough + RIDGE) / num_effective, 1.0)
    # Adam's steps have one size: rough energies shall take smaller ones.
    scale = jnp.asarray(1 / np.sqrt(1 + rough), dtype)
    design = design.to_jax(dtype)
    nodes = make_nodes(basis, parameters, (dim,), dtype)
    ridge = jnp.asarray(ridge, dtype)
    return Setting(on_unit_grid(basis), design, nodes, ridge, scale)


def train(
    setting: Setting,
    conditioner: MaskedConditioner,
    coefficients: np.ndarray,
    position: np.ndarray,
    shares: np.ndarray,
    left_out: np.ndarray,
    rng: np.random.Generator,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> Training:
    """Train a network, and keep the best by the samples left out.

    Parameters
    ----------
    setting
        Features and reference.
    conditioner
        The network, whose last layer is zero.
    coefficients
        Those to start from, shape ``(dim, num_features)``.
    position
        Unit positions of the samples, shape ``(n, dim)``.
    shares
        Weights that sum to 1, shape ``(n,)``.
    left_out
        Which samples are left out, shape ``(n,)``.
    rng
        Random numbers for the batches.
    num_steps, batch_size, learning_rate
        Of Adam's method; the rate falls to zero by a cosine.

    Returns
    -------
    Training
    """
    dtype = jnp.zeros(()).dtype
    inverse = np.linalg.pinv(np.asarray(setting.design.transform, float))
    start = jnp.asarray(coefficients @ inverse.T, dtype) / setting.scale
    conditioner = eqx.tree_at(lambda c: c.biases[-1], conditioner, start)
    weights = np.where(left_out, 0, shares)
    inside = np.flatnonzero(weights)
    chances = weights[inside] / weights[inside].sum()
    samples = jnp.asarray(position, dtype)
    outside = jnp.asarray(position[left_out], dtype)
    outside_shares = jnp.asarray(shares[left_out] / shares[left_out].sum(), dtype)

    schedule = (learning_rate, num_steps)
    state = _optimizer(*schedule).init(conditioner)
    score = partial(_mean_log_prob, setting, outside, outside_shares)
    best, looks = conditioner, [float(score(conditioner))]
    for _ in range(-(-num_steps // _STEPS_PER_LOOK)):
        shape = (_STEPS_PER_LOOK, batch_size)
        batches = inside[rng.choice(len(inside), shape, p=chances)]
        state = _steps(setting, state, samples, jnp.asarray(batches), schedule)
        conditioner = _optimizer(*schedule).get_params(state)
        looks.append(float(score(conditioner)))
        if looks[-1] >= max(looks):
            best = conditioner
    return Training(_in_coefficients(setting, best), np.asarray(looks))


def _optimizer(learning_rate: float, num_steps: int) -> Any:
    """Adam's method, whose rate falls to zero by a cosine."""

    def rate(step: jax.Array) -> jax.Array:
        done = jnp.minimum(step / num_steps, 1)
        return 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * done))

    return optim.Adam(rate)


@partial(jax.jit, static_argnames="schedule")
def _steps(
    setting: Setting,
    state: Any,
    samples: jax.Array,
    batches: jax.Array,
    schedule: tuple[float, int],
) -> Any:
    """One step for every row of indices."""
    optimizer = _optimizer(*schedule)

    def step(state: Any, batch: jax.Array) -> tuple[Any, None]:
        gradient = jax.grad(_loss)(optimizer.get_params(state), setting, samples[batch])
        return optimizer.update(gradient, state), None

    return jax.lax.scan(step, state, batches)[0]


def _loss(
    conditioner: MaskedConditioner, setting: Setting, position: jax.Array
) -> jax.Array:
    values, coordinates = _log_prob(conditioner, setting, position)
    penalty = 0.5 * jnp.sum(setting.ridge * coordinates**2, axis=(-2, -1))
    return jnp.mean(penalty - values)


def _log_prob(
    conditioner: MaskedConditioner, setting: Setting, position: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log density relative to the reference, ``(n,)``, and coordinates of energies."""
    coordinates = setting.scale * conditioner(2 * position - 1)
    energy = jnp.sum(coordinates * _features(setting, position), axis=-1)
    at_nodes = _features(setting, setting.nodes.position)
    if at_nodes.shape[0] == 1:
        product = jnp.tensordot(coordinates, at_nodes[0], (-1, -1))
    else:
        product = jnp.einsum("ndg,dmg->ndm", coordinates, at_nodes)
    log_normalizer = logsumexp(product + setting.nodes.log_mass, axis=-1)
    return jnp.sum(energy - log_normalizer, axis=-1), coordinates


def _features(setting: Setting, position: jax.Array) -> jax.Array:
    """Features in coordinates: (...) -> (..., num_features)."""
    values = setting.basis.unit_features(position) - setting.design.centre
    return jnp.matmul(values, setting.design.transform, precision="highest")


@jax.jit
def _mean_log_prob(
    setting: Setting,
    position: jax.Array,
    shares: jax.Array,
    conditioner: MaskedConditioner,
) -> jax.Array:
    values = jax.lax.map(
        lambda s: _log_prob(conditioner, setting, s[None])[0][0],
        position,
        batch_size=_CHUNK,
    )
    return jnp.dot(shares, values, precision="highest")


def _in_coefficients(
    setting: Setting, conditioner: MaskedConditioner
) -> MaskedConditioner:
    """Network with coefficients as its outputs in place of coordinates."""
    last = lambda c: (c.weights[-1], c.biases[-1])  # noqa: E731
    transform = setting.design.transform.T
    changed = [
        jnp.matmul(part * setting.scale, transform, precision="highest")
        for part in last(conditioner)
    ]
    return eqx.tree_at(last, conditioner, tuple(changed))
