"""Langevin kernels of NumPyro: state, proposals, adaptation."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.infer import init_to_uniform
from numpyro.infer.hmc_util import (
    build_adaptation_schedule,
    dual_averaging,
    welford_covariance,
)
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_kaem._checks import as_flag, as_number, check_function
from numpyro_kaem.infer import target

__all__ = [
    "Adaptation",
    "LangevinInfo",
    "LangevinKernel",
    "LangevinKernelState",
    "LangevinState",
    "LogDensity",
    "Preconditioner",
    "Rules",
    "accept_or_stay",
    "evaluate",
    "propose",
]

LogDensity = Callable[[jax.Array], jax.Array]
"""Log density, up to a constant: from ``(*chains, dim)`` to ``(*chains,)``."""


class LangevinState(NamedTuple):
    """A point and what a step needs to know of the density there."""

    position: jax.Array
    """Points in unconstrained space, shape ``(*chains, dim)``."""
    log_density: jax.Array
    """Log density there, shape ``(*chains,)``."""
    gradient: jax.Array
    """Its gradient, shape ``(*chains, dim)``."""


class Preconditioner(NamedTuple):
    """Diagonal scale of the target, learned in warm-up and fixed after it."""

    scale: jax.Array
    """Standard deviations, shape ``(dim,)`` or ``(*chains, dim)``."""


class LangevinInfo(NamedTuple):
    """What a step reports."""

    acceptance: jax.Array
    """Probability with which the proposal is accepted, shape ``(*chains,)``."""
    step_size: jax.Array
    """Step size that was used, a scalar or of shape ``(*chains,)``."""


def evaluate(log_density: LogDensity, position: jax.Array) -> LangevinState:
    """State at a point."""
    value, pull_back = jax.vjp(log_density, position)
    # The chains are independent, so one sweep gives the gradient of each.
    (gradient,) = pull_back(jnp.ones_like(value))
    return LangevinState(position, value, gradient)


def propose(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    drift: jax.Array,
    diffusion: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, jax.Array]:
    r"""Draw a Langevin proposal, and the log ratio by which it is accepted.

    The proposal is

    .. math:: z' = z + a S^2 \nabla \log p(z) + b S \xi,
              \qquad \xi \sim \mathcal N(0, I),

    with the diagonal scale :math:`S` of the preconditioner.

    Parameters
    ----------
    rng_key
        Random key.
    log_density
        Log density, up to a constant.
    state
        Where the chain is.
    drift, diffusion
        The factors :math:`a` and :math:`b`, positive, scalars or of shape
        ``(*chains,)``.
    preconditioner
        The scale.

    Returns
    -------
    tuple
        The state at the new point; the log of the ratio of Metropolis and Hastings.
    """
    scale = preconditioner.scale
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


def is_finite(state: LangevinState) -> jax.Array:
    """Whether the density and its gradient are finite."""
    finite = jnp.all(jnp.isfinite(state.gradient), axis=-1)
    return finite & jnp.isfinite(state.log_density)


def acceptance_of(log_ratio: jax.Array, new: LangevinState) -> jax.Array:
    """Probability of acceptance; none where the density is not finite."""
    finite = is_finite(new)
    finite = finite & ~jnp.isnan(log_ratio)
    return jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)


def choose(
    accepted: jax.Array, new: LangevinState, old: LangevinState
) -> LangevinState:
    """Take the new state where it is accepted."""

    def where(new: jax.Array, old: jax.Array) -> jax.Array:
        axes = tuple(range(accepted.ndim, new.ndim))
        return jnp.where(jnp.expand_dims(accepted, axes), new, old)

    return jax.tree.map(where, new, old)


def accept_or_stay(
    rng_key: jax.Array, log_ratio: jax.Array, new: LangevinState, old: LangevinState
) -> tuple[LangevinState, jax.Array]:
    """Take the proposal with the probability of Metropolis and Hastings.

    Returns
    -------
    tuple
        The next state, and the probability.
    """
    acceptance = acceptance_of(log_ratio, new)
    uniform = jax.random.uniform(rng_key, acceptance.shape, acceptance.dtype)
    accepted = uniform < acceptance
    return choose(accepted, new, old), acceptance


_start_averaging, _update_averaging = dual_averaging()
_start_covariance, _update_covariance, _finish_covariance = welford_covariance(
    diagonal=True
)


class Adaptation(NamedTuple):
    """What is known; constant after warm-up."""

    step_size: jax.Array
    """A scalar."""
    preconditioner: Preconditioner
    """Scale of the steps."""
    averaging: tuple
    """State of NumPyro's dual averaging of the log step size."""
    covariance: tuple
    """State of NumPyro's running variances."""
    window_log_size: jax.Array
    """Mean of the log step sizes used since the last window began, a scalar."""
    window_length: jax.Array
    """Number of steps in it, a scalar."""

    @classmethod
    def start(cls, step_size: float, position: jax.Array) -> "Adaptation":
        """Nothing learned yet."""
        zero = jnp.zeros((), position.dtype)
        return cls(
            zero + step_size,
            Preconditioner(jnp.ones_like(position)),
            _start_averaging(jnp.log(2.0 * (zero + step_size))),
            _start_covariance(position.shape[-1]),
            zero,
            jnp.array(0),
        )


class Rules(NamedTuple):
    """Rules of the warm-up, with NumPyro's schedule of windows.

    The scales are the standard deviations of the draws of a window, renewed at its end.
    """

    num_warmup: int
    """Number of iterations of warm-up."""
    target_accept_prob: float | None
    """Acceptance to which dual averaging tunes the step size; ``None``: it does not."""
    averages_step_size: bool
    """Whether the step size becomes, at the end of a window, the geometric
    mean of those used."""
    adapt_scale: bool
    """Whether to learn the scale."""
    final_step_size: float | None = None
    """Step size after the warm-up, if it is fixed."""

    def learn(
        self,
        iteration: jax.Array,
        adaptation: Adaptation,
        position: jax.Array,
        info: LangevinInfo,
    ) -> Adaptation:
        """Learn from one iteration.

        Parameters
        ----------
        iteration
            Its number, from 0 to ``num_warmup - 1``.
        adaptation
            What is known before it.
        position
            Where the chain is after it, shape ``(dim,)``.
        info
            What its step reports.
        """
        windows = _schedule(self.num_warmup)
        ends = jnp.array([window.end for window in windows], int)
        inner_ends = jnp.array([window.end for window in windows[1:-1]], int)
        count = adaptation.window_length + 1
        mean = adaptation.window_log_size
        mean = mean + (jnp.log(info.step_size) - mean) / count
        adaptation = adaptation._replace(window_log_size=mean, window_length=count)
        if self.target_accept_prob is not None:
            missing = self.target_accept_prob - info.acceptance
            averaging = _update_averaging(missing, adaptation.averaging)
            # The average of the last window is what stays.
            last = iteration == self.num_warmup - 1
            log_size = jnp.where(last, averaging[1], averaging[0])
            adaptation = adaptation._replace(
                averaging=averaging, step_size=_positive(jnp.exp(log_size))
            )
        # The first window leaves the start behind, the last settles the step size.
        if len(windows) > 2:
            inside = (iteration > windows[0].end) & (iteration < windows[-1].start)
            adaptation = jax.lax.cond(
                inside & self.adapt_scale,
                lambda a: a._replace(
                    covariance=_update_covariance(position, a.covariance)
                ),
                lambda a: a,
                adaptation,
            )
        at_end = jnp.any(iteration == ends)
        at_inner_end = jnp.any(iteration == inner_ends)
        adaptation = jax.lax.cond(at_end, self._next_window, lambda a: a, adaptation)
        adaptation = jax.lax.cond(at_inner_end, self._renew, lambda a: a, adaptation)
        if self.final_step_size is None:
            return adaptation
        size = jnp.where(
            iteration == self.num_warmup - 1, self.final_step_size, adaptation.step_size
        )
        return adaptation._replace(step_size=size)

    def _next_window(self, adaptation: Adaptation) -> Adaptation:
        if self.averages_step_size:
            size = _positive(jnp.exp(adaptation.window_log_size))
            adaptation = adaptation._replace(step_size=size)
        return adaptation._replace(
            window_log_size=jnp.zeros_like(adaptation.window_log_size),
            window_length=jnp.zeros_like(adaptation.window_length),
        )

    def _renew(self, adaptation: Adaptation) -> Adaptation:
        """Scale of the window, from which on the step size is sought again."""
        if self.adapt_scale:
            *_, scale = _finish_covariance(adaptation.covariance, regularize=True)
            start = _start_covariance(scale.shape[-1])
            adaptation = adaptation._replace(
                preconditioner=Preconditioner(scale), covariance=start
            )
        if self.target_accept_prob is not None:
            start = _start_averaging(jnp.log(2.0) + adaptation.averaging[1])
            adaptation = adaptation._replace(averaging=start)
        return adaptation


def _schedule(num_warmup: int) -> list:
    """NumPyro's windows, with a quarter of the warm-up for the last.

    A Langevin step tells less of the right step size than a trajectory of HMC does.
    """
    last = num_warmup // 4
    windows = build_adaptation_schedule(num_warmup - last)
    return [*windows[:-1], windows[-1]._replace(end=num_warmup - 1)]


def _positive(size: jax.Array) -> jax.Array:
    """Step size that is a positive finite number, as NumPyro's HMC keeps it."""
    limits = jnp.finfo(size.dtype)
    return jnp.clip(size, limits.tiny, limits.max)


class LangevinKernelState(NamedTuple):
    """State of a chain; with vectorised chains each array has them in front."""

    i: jax.Array
    """Number of iterations so far, warm-up included."""
    z: dict[str, jax.Array]
    """Unconstrained values of the latent sites."""
    langevin: LangevinState
    """The same as one vector, with the density there."""
    accept_prob: jax.Array
    """Probability with which the last proposal was accepted."""
    mean_accept_prob: jax.Array
    """Its mean since the start, or since the end of the warm-up."""
    used_step_size: jax.Array
    """Step size of the last step."""
    adaptation: Adaptation
    """What the warm-up has learned."""
    rng_key: jax.Array
    """Random key of the next iteration."""

    @property
    def potential_energy(self) -> jax.Array:
        """Minus the log density of the unconstrained values."""
        return -self.langevin.log_density

    @property
    def step_size(self) -> jax.Array:
        """Step size, in units of the scale."""
        return self.adaptation.step_size


class LangevinKernel(MCMCKernel):
    """Base of the kernels that make one Langevin step an iteration.

    A kernel is a ``step`` and the acceptance at which its step size should aim; the
    parameters are those of :class:`~numpyro_kaem.infer.MALA`.
    """

    step: ClassVar[Callable]
    """Step of one chain, see :func:`numpyro_kaem.infer.langevin.mala_step`."""
    default_target_accept_prob: ClassVar[float | None]
    """Acceptance to aim at; ``None`` where the step size does not follow it."""
    averages_step_size: ClassVar[bool] = False
    """Whether the step chooses its size, and the warm-up takes the mean."""
    warmup_step: ClassVar[Callable | None] = None
    """Step to warm up with, if it is another; the step size is then the one given."""

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float = 1.0,
        adapt_step_size: bool = True,
        adapt_scale: bool = True,
        target_accept_prob: float | None = None,
        init_strategy: Callable = init_to_uniform,
    ) -> None:
        check_function("model", model, "a NumPyro model, a callable")
        step_size = as_number(
            "step_size", step_size, "a finite number > 0", lambda x: x > 0
        )
        default = self.default_target_accept_prob
        if target_accept_prob is None:
            target_accept_prob = default
        elif default is None:
            raise ValueError(
                f"target_accept_prob must be left out, got {target_accept_prob}: the "
                f"step size of {type(self).__name__} does not follow the acceptance."
            )
        else:
            target_accept_prob = as_number(
                "target_accept_prob",
                target_accept_prob,
                "within (0, 1)",
                lambda x: 0 < x < 1,
            )
        check_function("init_strategy", init_strategy, "such as init_to_uniform")
        self._model = model
        self._step_size = step_size
        self._adapt_step_size = as_flag("adapt_step_size", adapt_step_size)
        self._adapt_scale = as_flag("adapt_scale", adapt_scale)
        self._target_accept_prob = target_accept_prob
        self._init_strategy = init_strategy
        self._num_warmup = 0
        self._postprocess: Callable | None = None
        # NumPyro's MCMC initialises a kernel that has none, even where it resumes.
        self._sample_fn: Callable | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Functions made from the model are not pickled, but made again.
        return {**self.__dict__, "_sample_fn": None, "_postprocess": None}

    @property
    def model(self) -> Callable:
        """The model."""
        return self._model

    @property
    def sample_field(self) -> str:
        """Name of the field of the state that is collected."""
        return "z"

    def get_diagnostics_str(self, state: LangevinKernelState) -> str:
        """Text beside the progress bar."""
        size, acceptance = state.used_step_size, state.mean_accept_prob
        return f"step size {size:.2e}, acceptance {acceptance:.2f}"

    def postprocess_fn(self, args: tuple, kwargs: dict[str, Any] | None) -> Callable:
        """Make the function from unconstrained values to the sites of the model."""
        if self._postprocess is None:
            return lambda values: values
        return self._postprocess(*args, **(kwargs or {}))

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: dict[str, jax.Array] | None,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> LangevinKernelState:
        """State of one chain, or of several if there are several keys."""
        model_kwargs = {} if model_kwargs is None else model_kwargs
        single = is_prng_key(rng_key)
        split = jax.random.split if single else jax.vmap(jax.random.split, out_axes=1)
        key_run, key_init = split(rng_key)
        start = target.initialize(
            key_init,
            self._model,
            model_args,
            model_kwargs,
            init_strategy=self._init_strategy,
            init_params=init_params,
        )
        self._num_warmup = num_warmup
        self._postprocess = start.postprocess
        self._sample_fn = type(self).step

        def one(rng_key: jax.Array, values: target.Sites) -> LangevinKernelState:
            position, unravel = ravel_pytree(values)
            log_density = self._log_density(unravel, model_args, model_kwargs)
            state = evaluate(log_density, position)
            zero = jnp.zeros((), position.dtype)
            return LangevinKernelState(
                i=jnp.array(0),
                z=values,
                langevin=state,
                accept_prob=zero,
                mean_accept_prob=zero,
                used_step_size=zero + self._step_size,
                adaptation=Adaptation.start(self._step_size, position),
                rng_key=rng_key,
            )

        # Compiled as a whole: one operation at a time, it is several times slower.
        return jax.jit(one if single else jax.vmap(one))(key_run, start.values)

    def _log_density(
        self, unravel: Callable, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> Callable[[jax.Array], jax.Array]:
        def log_density(position: jax.Array) -> jax.Array:
            return sum(
                target.log_prior_and_likelihood(
                    self._model, model_args, model_kwargs, unravel(position)
                )
            )

        return log_density

    def sample(
        self,
        state: LangevinKernelState,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> LangevinKernelState:
        """One step and, in warm-up, what it teaches."""
        model_kwargs = {} if model_kwargs is None else model_kwargs
        rules = Rules(
            self._num_warmup,
            self._target_accept_prob if self._adapt_step_size else None,
            self.averages_step_size and self._adapt_step_size,
            self._adapt_scale,
            None if self.warmup_step is None else self._step_size,
        )
        kernel = type(self)

        def advance(
            state: LangevinKernelState, step: Callable
        ) -> tuple[LangevinKernelState, LangevinInfo]:
            _, unravel = ravel_pytree(state.z)
            log_density = self._log_density(unravel, model_args, model_kwargs)
            rng_key, key_step = jax.random.split(state.rng_key)
            langevin, info = step(
                key_step,
                log_density,
                state.langevin,
                state.adaptation.step_size,
                state.adaptation.preconditioner,
            )
            count = state.i + 1
            after = jnp.where(count > self._num_warmup, count - self._num_warmup, count)
            mean = state.mean_accept_prob
            mean = mean + (info.acceptance - mean) / after
            return state._replace(
                i=count,
                z=unravel(langevin.position),
                langevin=langevin,
                accept_prob=info.acceptance,
                mean_accept_prob=mean,
                used_step_size=info.step_size,
                rng_key=rng_key,
            ), info

        def learn(
            state: LangevinKernelState, info: LangevinInfo, iteration: jax.Array
        ) -> LangevinKernelState:
            position = state.langevin.position
            known = rules.learn(iteration, state.adaptation, position, info)
            return state._replace(adaptation=known)

        run = partial(advance, step=kernel.step)
        run_warmup = partial(advance, step=kernel.warmup_step or kernel.step)
        iteration = state.i
        if not is_prng_key(state.rng_key):
            # All chains are in the same iteration: outside vmap, a branch that is not
            # taken costs nothing.
            iteration = iteration[0]
            run, run_warmup = jax.vmap(run), jax.vmap(run_warmup)
            learn = jax.vmap(learn, (0, 0, None))
        if self._num_warmup == 0:
            return run(state)[0]
        return jax.lax.cond(
            iteration < self._num_warmup,
            lambda state: learn(*run_warmup(state), iteration),
            lambda state: run(state)[0],
            state,
        )
