"""The NumPyro kernel around a Langevin step."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_kaem._checks import as_flag, as_number, check_function
from numpyro_kaem.infer import target
from numpyro_kaem.infer.adaptation import Adaptation, Rules
from numpyro_kaem.infer.langevin import LangevinInfo, LangevinState, evaluate

__all__ = ["LangevinKernel", "LangevinKernelState"]


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
    """Step of one chain, see :func:`numpyro_kaem.infer.mala.step`."""
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
