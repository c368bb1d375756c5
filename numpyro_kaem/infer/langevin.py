"""Langevin samplers: MALA, AutoMALA, PCNL and ULA."""

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer import init_to_uniform

from numpyro_kaem.infer.kernel import (
    LangevinInfo,
    LangevinKernel,
    LangevinState,
    LogDensity,
    Preconditioner,
    accept_or_stay,
    acceptance_of,
    choose,
    evaluate,
    is_finite,
    propose,
)

__all__ = [
    "CHAINS_TARGET_ACCEPT_PROB",
    "MALA",
    "PCNL",
    "TARGET_ACCEPT_PROB",
    "ULA",
    "AutoMALA",
    "Chains",
    "advance",
    "auto_mala_step",
    "check_move",
    "mala_step",
    "pcnl_step",
    "ula_step",
]

# The acceptance at which many independent dimensions move fastest (Roberts and
# Rosenthal 1998, "Optimal scaling of discrete approximations to Langevin diffusions").
TARGET_ACCEPT_PROB = 0.574


def mala_step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, LangevinInfo]:
    r"""One step of the Metropolis-adjusted Langevin algorithm.

    The proposal is

    .. math:: z' = z + \tfrac{\varepsilon^2}{2} S^2 \nabla \log p(z)
              + \varepsilon S \xi, \qquad \xi \sim \mathcal N(0, I),

    with the diagonal scale :math:`S` of the preconditioner.

    Parameters
    ----------
    rng_key
        Random key.
    log_density
        Log density, up to a constant: from ``(*chains, dim)`` to ``(*chains,)``.
    state
        Where the chain is, or the chains are.
    step_size
        Step size :math:`\varepsilon` > 0, in units of the scale; a scalar, or one for
        each chain.
    preconditioner
        The scale.

    Returns
    -------
    tuple
        The next state, and what the step reports.
    """
    key_noise, key_accept = jax.random.split(rng_key)
    new, log_ratio = propose(
        key_noise, log_density, state, 0.5 * step_size**2, step_size, preconditioner
    )
    state, acceptance = accept_or_stay(key_accept, log_ratio, new, state)
    return state, LangevinInfo(acceptance, jnp.asarray(step_size))


class MALA(LangevinKernel):
    """Metropolis-adjusted Langevin algorithm, for any model with continuous latents.

    One gradient an iteration: for posteriors whose gradient is dear and whose shape is
    near a Normal's. Where scales differ along the posterior (a funnel), use
    :class:`AutoMALA`; where modes are apart, :class:`AnnealedLangevin`.

    Parameters
    ----------
    model
        A NumPyro model, a callable.
    step_size
        Step size to start from, in units of the posterior's standard deviations.
    adapt_step_size
        Whether the warm-up tunes the step size to ``target_accept_prob``.
    adapt_scale
        Whether the warm-up learns the standard deviations of the unconstrained latent
        values, with which the steps are scaled; without, they are ones.
    target_accept_prob
        Acceptance at which the warm-up aims, within (0, 1).
    init_strategy
        NumPyro's strategy for the point to start from.

    Raises
    ------
    TypeError
        If ``model`` is not callable.
    ValueError
        If a number is out of its range; when run, if the model has a discrete latent
        site, none at all or a subsampled plate, or if its density is not finite at the
        start.

    Notes
    -----
    - **Collect**, as ``extra_fields``: ``accept_prob``, ``step_size``,
      ``potential_energy``.
    - **Chains**: ``sequential``, ``parallel`` and ``vectorized``.
    - **Resume** from ``mcmc.last_state``: the draws are those of an unbroken run. A
      state belongs to its data: for other data, run again without one.

    References
    ----------
    Roberts and Tweedie (1996), "Exponential convergence of Langevin distributions and
    their discrete approximations", *Bernoulli* 2(4).

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_kaem.infer import MALA
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal())
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> mcmc = MCMC(MALA(model), num_warmup=500, num_samples=4000, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), 2.0)
    >>> bool(abs(mcmc.get_samples()["z"].mean() - 1.0) < 0.1)
    True
    """

    default_target_accept_prob: ClassVar[float | None] = TARGET_ACCEPT_PROB
    step = staticmethod(mala_step)


# Doublings or halvings at most: chains that are vectorised wait for the slowest.
_MAX_DOUBLINGS = 12


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
    preconditioner: Preconditioner,
) -> tuple[LangevinState, LangevinInfo]:
    """One step of autoMALA: a leapfrog step of a size that fits where the chain is.

    Two exponential numbers are drawn. From ``step_size`` on, the size is doubled while
    the log ratio of acceptance stays, either way, within the smaller, or halved until
    it is within the larger. A proposal from which another size would be chosen is
    refused, so that the step is reversible.

    Parameters
    ----------
    rng_key, log_density, state, preconditioner
        As for :func:`mala_step`; the scale is randomised between the
        learned one and 1.
    step_size
        Size to start from at every step; a positive scalar.

    Returns
    -------
    tuple
        The next state, and what the step reports: the size that was chosen.
    """
    key_scale, key_momentum, key_bounds, key_accept = jax.random.split(rng_key, 4)
    scale = _randomised(key_scale, preconditioner.scale)
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

        def advance(loop: tuple) -> tuple:
            doublings = loop[0] + direction
            return doublings, change(doublings)

        doublings, size = jax.lax.while_loop(goes_on, advance, (jnp.array(0), first))
        too_far = (direction > 0) & ~(size < smaller)
        return jnp.where(too_far, doublings - 1, doublings)

    doublings = choose_doublings(state, momentum)
    new, end, log_ratio = leapfrog(state, momentum, doublings)
    reversible = choose_doublings(new, -end) == doublings
    acceptance = jnp.where(reversible, acceptance_of(log_ratio, new), 0.0)
    accepted = jax.random.uniform(key_accept, dtype=dtype) < acceptance
    size = step_size * jnp.exp2(doublings.astype(dtype))
    return choose(accepted, new, state), LangevinInfo(acceptance, size)


class AutoMALA(LangevinKernel):
    """MALA that chooses its step size anew at every step.

    For posteriors whose scale differs from place to place, as in a funnel, where no one
    step size is right. An iteration costs about five gradients, more where the step
    size is far from the one to start from; vectorised chains wait for the slowest.

    Parameters
    ----------
    model
        A NumPyro model, a callable.
    step_size
        Step size to start from, in units of the posterior's standard deviations; each
        step doubles or halves it.
    adapt_step_size
        Whether the warm-up sets it to the geometric mean of those that were chosen.
    adapt_scale, init_strategy
        As for :class:`MALA`. The scale is randomised between the learned one and 1.
    target_accept_prob
        To be left out: the step size does not follow the acceptance.

    Raises
    ------
    TypeError, ValueError
        As :class:`MALA`.

    Notes
    -----
    Chains, fields and resuming are those of :class:`MALA`; ``step_size`` among the
    ``extra_fields`` is the one to start from, ``used_step_size`` the one chosen.

    References
    ----------
    Biron-Lattes, Surjanovic, Syed, Campbell and Bouchard-Côté (2024), "autoMALA:
    locally adaptive Metropolis-adjusted Langevin algorithm", *AISTATS*. The bounds
    hold either way, as in Liu, Surjanovic, Biron-Lattes, Bouchard-Côté and Campbell
    (2024), "AutoStep: locally adaptive involutive MCMC".

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_kaem.infer import AutoMALA
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal())
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> mcmc = MCMC(
    ...     AutoMALA(model), num_warmup=500, num_samples=4000, progress_bar=False
    ... )
    >>> mcmc.run(jax.random.key(0), 2.0)
    >>> bool(abs(mcmc.get_samples()["z"].mean() - 1.0) < 0.1)
    True
    """

    default_target_accept_prob: ClassVar[float | None] = None
    averages_step_size: ClassVar[bool] = True
    step = staticmethod(auto_mala_step)


def pcnl_step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, LangevinInfo]:
    r"""One step of the preconditioned Crank-Nicolson Langevin algorithm.

    The Langevin diffusion is discretised implicitly in a Normal reference with mean
    :math:`m` and diagonal covariance :math:`S^2`, explicitly in the rest,
    :math:`\Phi = \log \mathcal N(\cdot; m, S^2) - \log p`:

    .. math:: z' = m + \rho (z - m) - (1 - \rho) S^2 \nabla \Phi(z)
              + \sqrt{1 - \rho^2}\, S \xi, \qquad \xi \sim \mathcal N(0, I),

    in which :math:`m` cancels. So all of a step is exact where the target is the
    reference, whatever the dimension, and corrected where it is not.

    Parameters
    ----------
    rng_key, log_density, state, preconditioner
        As for :func:`mala_step`.
    step_size
        A positive scalar :math:`\varepsilon` with
        :math:`\rho = 1 / \sqrt{1 + \varepsilon^2}`: large ones give independent
        proposals.

    Returns
    -------
    tuple
        The next state, and what the step reports.
    """
    key_noise, key_accept = jax.random.split(rng_key)
    # Where the target is the reference, warm-up doubles the step size for ever: both
    # must hold up to the largest number, and without cancellation for small steps.
    length = jnp.hypot(1.0, step_size)
    ratio = 1 / length
    diffusion = step_size / length
    drift = diffusion**2 / (1 + ratio)
    new, log_ratio = propose(
        key_noise, log_density, state, drift, diffusion, preconditioner
    )
    state, acceptance = accept_or_stay(key_accept, log_ratio, new, state)
    return state, LangevinInfo(acceptance, jnp.asarray(step_size))


class PCNL(LangevinKernel):
    """Preconditioned Crank-Nicolson Langevin algorithm.

    For posteriors near a Normal in many dimensions: the step size need not fall with
    the dimension where the posterior is the Normal that the warm-up learned. Exact for
    any other posterior too. Latents with a KAEM prior are best sampled on a Normal base
    (:meth:`numpyro_kaem.KAEMPrior.as_transformed`), where the prior is exactly Normal.

    Parameters
    ----------
    model
        A NumPyro model, a callable.
    step_size
        Step size to start from: small ones are those of :class:`MALA`, large ones make
        independent proposals.
    adapt_step_size, adapt_scale, target_accept_prob, init_strategy
        As for :class:`MALA`.

    Raises
    ------
    TypeError, ValueError
        As :class:`MALA`; chains, fields and resuming are its, too.

    References
    ----------
    Cotter, Roberts, Stuart and White (2013), "MCMC methods for functions: modifying old
    algorithms to make them faster", *Statistical Science* 28(3).

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_kaem.infer import PCNL
    >>> def model(y):
    ...     with numpyro.plate("units", 100):
    ...         z = numpyro.sample("z", dist.Normal())
    ...         numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> mcmc = MCMC(PCNL(model), num_warmup=1000, num_samples=1000, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), 2.0)
    >>> bool(abs(mcmc.get_samples()["z"].mean() - 1.0) < 0.05)
    True
    """

    default_target_accept_prob: ClassVar[float | None] = 0.574
    step = staticmethod(pcnl_step)


def ula_step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, LangevinInfo]:
    """One step of the unadjusted Langevin algorithm: MALA's, always accepted.

    Parameters and results are those of :func:`mala_step`; the
    acceptance that is reported is what a correction would have. Only a step to a point
    without a finite density is not taken.
    """
    new, log_ratio = propose(
        rng_key, log_density, state, 0.5 * step_size**2, step_size, preconditioner
    )
    info = LangevinInfo(acceptance_of(log_ratio, new), jnp.asarray(step_size))
    return choose(is_finite(new), new, state), info


class ULA(LangevinKernel):
    r"""Unadjusted Langevin algorithm: biased, and never stuck.

    It leaves a law invariant that is near the posterior and wider, by an amount that
    does not fall with the number of draws. On a Normal posterior with standard
    deviation :math:`\sigma`, with scale :math:`s` and step size :math:`\varepsilon`,
    the mean is right and the variance is

    .. math:: \frac{\sigma^2}{1 - (\varepsilon s / 2 \sigma)^2},

    one hundredth too large for the default :math:`\varepsilon = 0.2` where
    :math:`s = \sigma`, and infinite from :math:`\varepsilon s = 2 \sigma` on. Prefer
    :class:`MALA`, which corrects this at the same cost; this one is for comparison with
    published work.

    Parameters
    ----------
    model
        A NumPyro model, a callable.
    step_size
        Step size, in units of the posterior's standard deviations; it is not adapted.
    adapt_scale
        Whether the warm-up learns the standard deviations of the unconstrained latent
        values, with which the steps are scaled; without, they are ones.
    init_strategy
        NumPyro's strategy for the point to start from.

    Raises
    ------
    TypeError, ValueError
        As :class:`MALA`.

    Notes
    -----
    - **Warm-up** is made with MALA's steps, corrected: before the scale is known, any
      step size may be too long.
    - **Bias**: the ``accept_prob`` among the ``extra_fields``, and in the text beside
      the progress bar, is what MALA would accept of these steps; the nearer to 1, the
      smaller the bias.
    - **Chains**, what to **collect**, how to **resume**: as :class:`MALA`.

    References
    ----------
    Roberts and Tweedie (1996), "Exponential convergence of Langevin distributions and
    their discrete approximations", *Bernoulli* 2(4).

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_kaem.infer import ULA
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal())
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> mcmc = MCMC(ULA(model), num_warmup=500, num_samples=2000, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), 2.0, extra_fields=("accept_prob",))
    >>> bool(mcmc.get_extra_fields()["accept_prob"].mean() > 0.95)
    True
    """

    default_target_accept_prob: ClassVar[float | None] = TARGET_ACCEPT_PROB
    step = staticmethod(ula_step)
    warmup_step = staticmethod(mala_step)

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float = 0.2,
        adapt_scale: bool = True,
        init_strategy: Callable = init_to_uniform,
    ) -> None:
        super().__init__(
            model,
            step_size=step_size,
            adapt_scale=adapt_scale,
            init_strategy=init_strategy,
        )


CHAINS_TARGET_ACCEPT_PROB = 0.6
"""Acceptance at which step sizes aim."""

# How much a log step size follows one acceptance, first and at last. A chain whose step
# size keeps following where it is has a biased law; at a small gain it still follows
# parameters that are trained.
_FIRST_GAIN, _LAST_GAIN, _GAIN_POWER = 0.5, 1e-3, 0.6

_STEPS = {"mala": mala_step, "ula": ula_step}


class Chains(NamedTuple):
    """Where chains are, and how far they step."""

    position: jax.Array
    """Shape ``(*chains, dim)``."""
    log_step_size: jax.Array
    """Shape ``(*chains,)``."""
    num_steps: jax.Array
    """Number of steps made, shape ``(*chains,)``."""

    @classmethod
    def start(cls, position: jax.Array, step_size: float) -> "Chains":
        """Chains that have made no step."""
        shape = position.shape[:-1]
        log_size = jnp.full(shape, math.log(step_size), position.dtype)
        return cls(position, log_size, jnp.zeros(shape, int))


def check_move(local_move: str) -> str:
    """Name of a step.

    Raises
    ------
    ValueError
        If there is none.
    """
    if local_move not in _STEPS:
        raise ValueError(
            f"local_move must be one of {', '.join(map(repr, _STEPS))}, got "
            f"{local_move!r}."
        )
    return local_move


def advance(
    rng_key: jax.Array,
    log_density: Callable[[jax.Array], jax.Array],
    chains: Chains,
    num_steps: int,
    local_move: str = "mala",
    *,
    adapts: bool | jax.Array = True,
) -> tuple[Chains, jax.Array]:
    """Make Langevin steps in all chains.

    Parameters
    ----------
    rng_key
        Random key.
    log_density
        From ``(*chains, dim)`` to ``(*chains,)``.
    chains
        Where they are.
    num_steps
        How many steps.
    local_move
        ``"mala"``, whose step sizes follow the acceptance, or ``"ula"``, whose stay.
    adapts
        Whether they do; if not, they stay, and the steps are exact.

    Returns
    -------
    chains
        After the steps.
    acceptance
        Mean acceptance of each chain, shape ``(*chains,)``.
    """
    step = _STEPS[local_move]
    unit_scale = Preconditioner(jnp.ones(chains.position.shape[-1]))

    def body(
        carry: tuple[LangevinState, jax.Array, jax.Array], key: jax.Array
    ) -> tuple[tuple[LangevinState, jax.Array, jax.Array], jax.Array]:
        state, log_size, count = carry
        count = count + 1
        state, info = step(key, log_density, state, jnp.exp(log_size), unit_scale)
        if local_move == "mala":
            gain = jnp.maximum(
                _FIRST_GAIN * count.astype(log_size.dtype) ** -_GAIN_POWER, _LAST_GAIN
            )
            log_size = log_size + adapts * gain * (
                info.acceptance - CHAINS_TARGET_ACCEPT_PROB
            )
        return (state, log_size, count), info.acceptance

    keys = jax.random.split(rng_key, num_steps)
    start = (evaluate(log_density, chains.position), *chains[1:])
    (state, log_size, count), acceptance = jax.lax.scan(body, start, keys)
    return Chains(state.position, log_size, count), acceptance.mean(0)
