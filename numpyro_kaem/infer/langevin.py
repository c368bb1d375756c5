"""Steps of Langevin algorithms, as pure functions of a position."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_kaem._checks import as_number

__all__ = [
    "STEPS",
    "Chains",
    "LangevinInfo",
    "LangevinState",
    "LangevinStep",
    "LogDensity",
    "advance",
    "as_target_accept_prob",
    "auto_mala_step",
    "evaluate",
    "exp_step_size",
    "mala_step",
    "pcnl_step",
    "ula_step",
]

LogDensity = Callable[[jax.Array], jax.Array]
"""Log density, up to a constant: from ``(*chains, dim)`` to ``(*chains,)``."""

# The acceptance at which many independent dimensions move fastest (Roberts and
# Rosenthal 1998, "Optimal scaling of discrete approximations to Langevin diffusions").
_TARGET_ACCEPT_PROB = 0.574

# AutoMALA doubles or halves its step size at most this often: vectorised chains wait
# for the slowest.
_MAX_DOUBLINGS = 12

# Leapfrog steps of a trajectory, and the acceptance at which long ones are cheapest
# (Beskos et al. 2013, "Optimal tuning of the hybrid Monte Carlo algorithm").
_NUM_LEAPS, _HMC_ACCEPT_PROB = 8, 0.65

# How much the log step size of one of many chains follows an acceptance, first and at
# last. A chain whose step size keeps following where it is has a biased distribution;
# at a small gain it still follows parameters that are trained.
_FIRST_GAIN, _LAST_GAIN, _GAIN_POWER = 0.5, 1e-3, 0.6
_CHAINS_TARGET_ACCEPT_PROB = 0.6


class LangevinState(NamedTuple):
    """A point ``(*chains, dim)``, with the log density and its gradient there."""

    position: jax.Array
    log_density: jax.Array
    gradient: jax.Array


class LangevinInfo(NamedTuple):
    """Acceptance probability and step size of a step, both ``(*chains,)``."""

    acceptance: jax.Array
    step_size: jax.Array


def evaluate(log_density: LogDensity, position: jax.Array) -> LangevinState:
    """State at a point."""
    value, pull_back = jax.vjp(log_density, position)
    # The chains are independent, so one sweep gives the gradient of each.
    (gradient,) = pull_back(jnp.ones_like(value))
    return LangevinState(position, value, gradient)


def _propose(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    drift: jax.Array,
    diffusion: jax.Array,
    scale: jax.Array,
) -> tuple[LangevinState, jax.Array]:
    """Draw z' = z + drift S² ∇log p(z) + diffusion S ξ; its Metropolis log ratio."""
    shape, dtype = state.position.shape, state.position.dtype
    drift, diffusion = (jnp.asarray(x)[..., None] for x in (drift, diffusion))
    noise = jax.random.normal(rng_key, shape, dtype)
    step = drift * scale * state.gradient + diffusion * noise
    new = evaluate(log_density, state.position + scale * step)
    # The noise that leads back, up to its sign. The two squared norms, of which the
    # difference is wanted, may be large: they are subtracted element by element.
    change = drift / diffusion * scale * (state.gradient + new.gradient)
    log_ratio = new.log_density - state.log_density
    log_ratio = log_ratio - 0.5 * jnp.sum(change * (2 * noise + change), axis=-1)
    return new, log_ratio


def _is_finite(state: LangevinState) -> jax.Array:
    """Whether the density and its gradient are finite."""
    finite = jnp.all(jnp.isfinite(state.gradient), axis=-1)
    return finite & jnp.isfinite(state.log_density)


def _acceptance_of(log_ratio: jax.Array, new: LangevinState) -> jax.Array:
    """Probability of acceptance; 0 where the density is not finite."""
    finite = _is_finite(new) & ~jnp.isnan(log_ratio)
    return jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)


def _choose(
    accepted: jax.Array, new: LangevinState, old: LangevinState
) -> LangevinState:
    """Take the new state where it is accepted."""

    def where(new: jax.Array, old: jax.Array) -> jax.Array:
        axes = tuple(range(accepted.ndim, new.ndim))
        return jnp.where(jnp.expand_dims(accepted, axes), new, old)

    return jax.tree.map(where, new, old)


def _accept_or_stay(
    rng_key: jax.Array, log_ratio: jax.Array, new: LangevinState, old: LangevinState
) -> tuple[LangevinState, jax.Array]:
    """Accept the proposal with its Metropolis-Hastings probability."""
    acceptance = _acceptance_of(log_ratio, new)
    uniform = jax.random.uniform(rng_key, acceptance.shape, acceptance.dtype)
    return _choose(uniform < acceptance, new, old), acceptance


# --- the steps -----------------------------------------------------------------------
# Each takes a key, the log density, the state, a step size > 0 in units of the scale
# (one, or one per chain), and the scale: standard deviations, (dim,) or (*chains, dim).


def mala_step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    scale: jax.Array,
) -> tuple[LangevinState, LangevinInfo]:
    r"""One step of the Metropolis-adjusted Langevin algorithm.

    .. math:: z' = z + \tfrac{\varepsilon^2}{2} S^2 \nabla \log p(z)
              + \varepsilon S \xi, \qquad \xi \sim \mathcal N(0, I).
    """
    key_noise, key_accept = jax.random.split(rng_key)
    new, log_ratio = _propose(
        key_noise, log_density, state, 0.5 * step_size**2, step_size, scale
    )
    state, acceptance = _accept_or_stay(key_accept, log_ratio, new, state)
    return state, LangevinInfo(acceptance, jnp.asarray(step_size))


def ula_step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    scale: jax.Array,
) -> tuple[LangevinState, LangevinInfo]:
    """One step of the unadjusted Langevin algorithm: MALA's, always accepted.

    The acceptance reported is MALA's. Only a step to a point without a finite density
    is not taken.
    """
    new, log_ratio = _propose(
        rng_key, log_density, state, 0.5 * step_size**2, step_size, scale
    )
    info = LangevinInfo(_acceptance_of(log_ratio, new), jnp.asarray(step_size))
    return _choose(_is_finite(new), new, state), info


def pcnl_step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    scale: jax.Array,
) -> tuple[LangevinState, LangevinInfo]:
    r"""One step of the preconditioned Crank-Nicolson Langevin algorithm.

    The Langevin diffusion is discretised implicitly in a Normal reference with mean
    :math:`m` and diagonal covariance :math:`S^2`, explicitly in the rest,
    :math:`\Phi = \log \mathcal N(\cdot; m, S^2) - \log p`:

    .. math:: z' = m + \rho (z - m) - (1 - \rho) S^2 \nabla \Phi(z)
              + \sqrt{1 - \rho^2}\, S \xi, \qquad \xi \sim \mathcal N(0, I),

    with :math:`\rho = 1 / \sqrt{1 + \varepsilon^2}`; :math:`m` cancels. The step is
    exact where the target is the reference, whatever the dimension.
    """
    key_noise, key_accept = jax.random.split(rng_key)
    # Where the target is the reference, warm-up doubles the step size for ever: both
    # must hold up to the largest number, and without cancellation for small steps.
    length = jnp.hypot(1.0, step_size)
    ratio = 1 / length
    diffusion = step_size / length
    drift = diffusion**2 / (1 + ratio)
    new, log_ratio = _propose(key_noise, log_density, state, drift, diffusion, scale)
    state, acceptance = _accept_or_stay(key_accept, log_ratio, new, state)
    return state, LangevinInfo(acceptance, jnp.asarray(step_size))


def hmc_step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    scale: jax.Array,
) -> tuple[LangevinState, LangevinInfo]:
    """One trajectory of Hamiltonian Monte Carlo, of eight leapfrog steps.

    Their size is drawn between half and all of ``step_size``, so that no trajectory
    comes back to its start for ever.
    """
    key_momentum, key_size, key_accept = jax.random.split(rng_key, 3)
    shape, dtype = state.position.shape, state.position.dtype
    momentum = jax.random.normal(key_momentum, shape, dtype)
    size = step_size * jax.random.uniform(
        key_size, shape[:-1], dtype, minval=0.5, maxval=1.0
    )
    size = size[..., None]

    def leap(carry: tuple, _: None) -> tuple:
        state, momentum = carry
        momentum = momentum + 0.5 * size * scale * state.gradient
        state = evaluate(log_density, state.position + size * scale * momentum)
        return (state, momentum + 0.5 * size * scale * state.gradient), None

    (new, end), _ = jax.lax.scan(leap, (state, momentum), length=_NUM_LEAPS)
    log_ratio = new.log_density - state.log_density
    log_ratio = log_ratio + 0.5 * jnp.sum((momentum - end) * (momentum + end), axis=-1)
    state, acceptance = _accept_or_stay(key_accept, log_ratio, new, state)
    return state, LangevinInfo(acceptance, jnp.asarray(step_size))


def _randomised(rng_key: jax.Array, scale: jax.Array) -> jax.Array:
    """Scale between the learned one and 1: either, or anything in between."""
    key_kind, key_between = jax.random.split(rng_key)
    kind = jax.random.randint(key_kind, (), 0, 3)
    between = jax.random.uniform(key_between, dtype=scale.dtype)
    share = jnp.where(kind == 0, 0.0, jnp.where(kind == 1, 1.0, between))
    return 1 / (share / scale + (1 - share))


def auto_mala_step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    scale: jax.Array,
) -> tuple[LangevinState, LangevinInfo]:
    """One step of autoMALA, of one chain: leapfrog with a size that fits the position.

    Two exponential numbers are drawn. From ``step_size`` on, the size is doubled while
    the absolute log acceptance ratio is below the smaller, or halved until it is below
    the larger. A proposal from which another size would be chosen is refused, so that
    the step is reversible.
    """
    key_scale, key_momentum, key_bounds, key_accept = jax.random.split(rng_key, 4)
    scale = _randomised(key_scale, scale)
    dtype = state.position.dtype
    momentum = jax.random.normal(key_momentum, state.position.shape, dtype)
    bounds = jnp.sort(jax.random.exponential(key_bounds, (2,), dtype))

    def leapfrog(
        start: LangevinState, momentum: jax.Array, doublings: jax.Array
    ) -> tuple[LangevinState, jax.Array, jax.Array]:
        size = step_size * jnp.exp2(doublings.astype(dtype))
        half = momentum + 0.5 * size * scale * start.gradient
        new = evaluate(log_density, start.position + size * scale * half)
        end = half + 0.5 * size * scale * new.gradient
        kinetic = 0.5 * jnp.sum((end - momentum) * (end + momentum))
        log_ratio = new.log_density - start.log_density - kinetic
        finite = jnp.isfinite(new.log_density) & ~jnp.isnan(log_ratio)
        return new, end, jnp.where(finite, log_ratio, -jnp.inf)

    def choose_doublings(start: LangevinState, momentum: jax.Array) -> jax.Array:
        """Doublings of the size, if negative halvings: a function of the start."""
        smaller, larger = bounds

        def change(doublings: jax.Array) -> jax.Array:
            return jnp.abs(leapfrog(start, momentum, doublings)[2])

        first = change(jnp.array(0))
        direction = jnp.where(first < smaller, 1, jnp.where(first > larger, -1, 0))

        def goes_on(loop: tuple) -> jax.Array:
            doublings, size = loop
            # Upwards the last size with less than both bounds is sought, downwards the
            # first with less than the larger.
            wanted = jnp.where(direction > 0, size < smaller, size > larger)
            return (direction != 0) & wanted & (jnp.abs(doublings) < _MAX_DOUBLINGS)

        def move_on(loop: tuple) -> tuple:
            doublings = loop[0] + direction
            return doublings, change(doublings)

        doublings, size = jax.lax.while_loop(goes_on, move_on, (jnp.array(0), first))
        too_far = (direction > 0) & ~(size < smaller)
        return jnp.where(too_far, doublings - 1, doublings)

    doublings = choose_doublings(state, momentum)
    new, end, log_ratio = leapfrog(state, momentum, doublings)
    reversible = choose_doublings(new, -end) == doublings
    acceptance = jnp.where(reversible, _acceptance_of(log_ratio, new), 0.0)
    accepted = jax.random.uniform(key_accept, dtype=dtype) < acceptance
    size = step_size * jnp.exp2(doublings.astype(dtype))
    return _choose(accepted, new, state), LangevinInfo(acceptance, size)


class LangevinStep(NamedTuple):
    """A step, and the acceptance that its step size should have, if it follows it."""

    step: Callable
    target_accept_prob: float | None


STEPS = {
    "mala": LangevinStep(mala_step, _TARGET_ACCEPT_PROB),
    "pcnl": LangevinStep(pcnl_step, _TARGET_ACCEPT_PROB),
    "hmc": LangevinStep(hmc_step, _HMC_ACCEPT_PROB),
    # It chooses its step size anew at every step.
    "auto_mala": LangevinStep(auto_mala_step, None),
    # Its step size is a bias that the user answers for.
    "ula": LangevinStep(ula_step, None),
}


def as_target_accept_prob(
    given: float | None, default: float | None, step: str
) -> float | None:
    """Check the acceptance to aim at; ``None`` where the step size ignores it."""
    if given is None:
        return default
    if default is None:
        raise ValueError(
            f"target_accept_prob must be left out with {step}, whose step size does "
            f"not follow the acceptance, got {given!r}."
        )
    return as_number("target_accept_prob", given, "within (0, 1)", lambda x: 0 < x < 1)


def exp_step_size(log_size: jax.Array) -> jax.Array:
    """Step size that is a positive finite number, as NumPyro's HMC keeps it."""
    limits = jnp.finfo(log_size.dtype)
    return jnp.clip(jnp.exp(log_size), limits.tiny, limits.max)


# --- many chains at once -------------------------------------------------------------


class Chains(NamedTuple):
    """Positions ``(*chains, dim)``, and step sizes and step counts ``(*chains,)``."""

    position: jax.Array
    log_step_size: jax.Array
    num_steps: jax.Array

    @classmethod
    def start(cls, position: jax.Array, step_size: float) -> "Chains":
        """Chains that have made no step."""
        shape = position.shape[:-1]
        log_size = jnp.full(shape, math.log(step_size), position.dtype)
        return cls(position, log_size, jnp.zeros(shape, int))


def advance(
    rng_key: jax.Array,
    log_density: LogDensity,
    chains: Chains,
    num_steps: int,
    local_move: str = "mala",
    *,
    adapts: bool | jax.Array = True,
) -> tuple[Chains, jax.Array]:
    """Make steps of ``"mala"`` or ``"ula"`` in all chains; their mean acceptances.

    The step sizes of ``"mala"`` follow the acceptance, unless ``adapts`` is false.
    """
    step = STEPS[local_move].step
    unit_scale = jnp.ones(chains.position.shape[-1])

    def body(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        state, log_size, count = carry
        count = count + 1
        state, info = step(key, log_density, state, jnp.exp(log_size), unit_scale)
        if local_move == "mala":
            gain = jnp.maximum(
                _FIRST_GAIN * count.astype(log_size.dtype) ** -_GAIN_POWER, _LAST_GAIN
            )
            log_size = log_size + adapts * gain * (
                info.acceptance - _CHAINS_TARGET_ACCEPT_PROB
            )
        return (state, log_size, count), info.acceptance

    keys = jax.random.split(rng_key, num_steps)
    start = (evaluate(log_density, chains.position), *chains[1:])
    (state, log_size, count), acceptance = jax.lax.scan(body, start, keys)
    return Chains(state.position, log_size, count), acceptance.mean(0)
