"""MALA, PCNL, AutoMALA and ULA as kernels of NumPyro's MCMC."""

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
from numpyro.util import is_prng_key

from numpyro_kaem._checks import as_flag, as_positive
from numpyro_kaem.infer import target
from numpyro_kaem.infer.langevin import (
    STEPS,
    LangevinInfo,
    LangevinState,
    LangevinStep,
    as_target_accept_prob,
    evaluate,
    exp_step_size,
)

__all__ = ["MALA", "PCNL", "ULA", "AutoMALA"]

_start_averaging, _update_averaging = dual_averaging()
_start_covariance, _update_covariance, _finish_covariance = welford_covariance(
    diagonal=True
)


# --- warm-up -------------------------------------------------------------------------


class Adaptation(NamedTuple):
    """What the warm-up of one chain has learned."""

    step_size: jax.Array
    scale: jax.Array  # Standard deviations, shape (dim,).
    averaging: tuple  # NumPyro's dual averaging of the log step size.
    covariance: tuple  # NumPyro's running variances.
    window_log_size: jax.Array  # Mean log step size since the window began.
    window_length: jax.Array

    @classmethod
    def start(cls, step_size: float, position: jax.Array) -> "Adaptation":
        """Nothing learned yet."""
        zero = jnp.zeros((), position.dtype)
        return cls(
            zero + step_size,
            jnp.ones_like(position),
            _start_averaging(jnp.log(2.0 * (zero + step_size))),
            _start_covariance(position.shape[-1]),
            zero,
            jnp.array(0),
        )


class Warmup(NamedTuple):
    """Settings of the warm-up, in NumPyro's windows.

    The scales are the standard deviations of the draws of a window, renewed at its end.
    """

    num_warmup: int
    target_accept_prob: float | None  # None: the step size is not tuned.
    averages_step_size: bool  # At the end of a window: geometric mean of those used.
    adapt_scale: bool
    final_step_size: float | None  # Step size after the warm-up, if it is fixed.

    def learn(
        self,
        iteration: jax.Array,
        adaptation: Adaptation,
        position: jax.Array,
        info: LangevinInfo,
    ) -> Adaptation:
        """Learn from one iteration, the first being 0."""
        windows = self._windows()
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
                averaging=averaging, step_size=exp_step_size(log_size)
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

    def _windows(self) -> list:
        """NumPyro's windows, with a quarter of the warm-up for the last.

        A Langevin step tells less of the right step size than a trajectory of HMC does.
        """
        last = self.num_warmup // 4
        windows = build_adaptation_schedule(self.num_warmup - last)
        return [*windows[:-1], windows[-1]._replace(end=self.num_warmup - 1)]

    def _next_window(self, adaptation: Adaptation) -> Adaptation:
        if self.averages_step_size:
            size = exp_step_size(adaptation.window_log_size)
            adaptation = adaptation._replace(step_size=size)
        return adaptation._replace(
            window_log_size=jnp.zeros_like(adaptation.window_log_size),
            window_length=jnp.zeros_like(adaptation.window_length),
        )

    def _renew(self, adaptation: Adaptation) -> Adaptation:
        """Take the scale of the window, and search for its step size again."""
        if self.adapt_scale:
            *_, scale = _finish_covariance(adaptation.covariance, regularize=True)
            start = _start_covariance(scale.shape[-1])
            adaptation = adaptation._replace(scale=scale, covariance=start)
        if self.target_accept_prob is not None:
            start = _start_averaging(jnp.log(2.0) + adaptation.averaging[1])
            adaptation = adaptation._replace(averaging=start)
        return adaptation


# --- the kernels ---------------------------------------------------------------------


class LangevinKernelState(NamedTuple):
    """State of a chain, or of vectorised chains, whose axis then comes first.

    ``i`` counts iterations, warm-up included; ``mean_accept_prob`` is since the start,
    or since the end of the warm-up.
    """

    i: jax.Array
    z: dict[str, jax.Array]
    langevin: LangevinState  # The same as one vector, with the density there.
    accept_prob: jax.Array
    mean_accept_prob: jax.Array
    used_step_size: jax.Array
    adaptation: Adaptation
    rng_key: jax.Array

    @property
    def potential_energy(self) -> jax.Array:
        """Minus the log density of the unconstrained values."""
        return -self.langevin.log_density

    @property
    def step_size(self) -> jax.Array:
        """Step size, in units of the scale."""
        return self.adaptation.step_size


class LangevinKernel(target.ModelKernel):
    """Base of the kernels that make one Langevin step per iteration."""

    kind: ClassVar[LangevinStep]
    warmup_kind: ClassVar[LangevinStep | None] = None
    """Step to warm up with, if it is another; the step size is then the one given."""
    averages_step_size: ClassVar[bool] = False
    """Whether the step chooses its size, and the warm-up takes the mean."""

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
        super().__init__(model, init_strategy)
        self._step_size = as_positive("step_size", step_size)
        default = (self.warmup_kind or self.kind).target_accept_prob
        self._target_accept_prob = as_target_accept_prob(
            target_accept_prob, default, type(self).__name__
        )
        self._adapt_step_size = as_flag("adapt_step_size", adapt_step_size)
        self._adapt_scale = as_flag("adapt_scale", adapt_scale)
        self._num_warmup = 0

    def get_diagnostics_str(self, state: LangevinKernelState) -> str:
        """Text beside the progress bar."""
        size, acceptance = state.used_step_size, state.mean_accept_prob
        return f"step size {size:.2e}, acceptance {acceptance:.2f}"

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: dict[str, jax.Array] | None,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> LangevinKernelState:
        """State of one chain, or of several if there are several keys."""
        model_kwargs = model_kwargs or {}
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
        self._sample_fn = self.kind.step

        def one(rng_key: jax.Array, values: target.Sites) -> LangevinKernelState:
            position, log_density = self._flat(values, model_args, model_kwargs)[:2]
            zero = jnp.zeros((), position.dtype)
            return LangevinKernelState(
                i=jnp.array(0),
                z=values,
                langevin=evaluate(log_density, position),
                accept_prob=zero,
                mean_accept_prob=zero,
                used_step_size=zero + self._step_size,
                adaptation=Adaptation.start(self._step_size, position),
                rng_key=rng_key,
            )

        # Compiled as a whole: one operation at a time, it is several times slower.
        return jax.jit(one if single else jax.vmap(one))(key_run, start.values)

    def _flat(
        self, values: target.Sites, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> tuple[jax.Array, Callable, Callable]:
        """Values as one vector, the log density of such vectors, and the way back."""
        position, unravel = ravel_pytree(values)

        def log_density(position: jax.Array) -> jax.Array:
            log_prior, log_likelihood = target.log_prior_and_likelihood(
                self._model, model_args, model_kwargs, unravel(position)
            )
            return log_prior + log_likelihood

        return position, log_density, unravel

    def sample(
        self,
        state: LangevinKernelState,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> LangevinKernelState:
        """One step and, in warm-up, what is learned from it."""
        model_kwargs = model_kwargs or {}
        warmup = Warmup(
            self._num_warmup,
            self._target_accept_prob if self._adapt_step_size else None,
            self.averages_step_size and self._adapt_step_size,
            self._adapt_scale,
            None if self.warmup_kind is None else self._step_size,
        )

        def advance(
            state: LangevinKernelState, kind: LangevinStep
        ) -> tuple[LangevinKernelState, LangevinInfo]:
            _, log_density, unravel = self._flat(state.z, model_args, model_kwargs)
            rng_key, key_step = jax.random.split(state.rng_key)
            langevin, info = kind.step(
                key_step,
                log_density,
                state.langevin,
                state.adaptation.step_size,
                state.adaptation.scale,
            )
            count = state.i + 1
            after = jnp.where(count > self._num_warmup, count - self._num_warmup, count)
            mean = state.mean_accept_prob
            return state._replace(
                i=count,
                z=unravel(langevin.position),
                langevin=langevin,
                accept_prob=info.acceptance,
                mean_accept_prob=mean + (info.acceptance - mean) / after,
                used_step_size=info.step_size,
                rng_key=rng_key,
            ), info

        def learn(
            state: LangevinKernelState, info: LangevinInfo, iteration: jax.Array
        ) -> LangevinKernelState:
            position = state.langevin.position
            known = warmup.learn(iteration, state.adaptation, position, info)
            return state._replace(adaptation=known)

        run = partial(advance, kind=self.kind)
        run_warmup = partial(advance, kind=self.warmup_kind or self.kind)
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


class MALA(LangevinKernel):
    """Metropolis-adjusted Langevin algorithm, for any model with continuous latents.

    One gradient per iteration: for posteriors whose gradient is expensive and whose
    shape is nearly Normal. Where scales differ along the posterior, use
    :class:`AutoMALA`; for well-separated modes, :class:`TemperedSMC`.

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
        values, which scale the steps; otherwise they are ones.
    target_accept_prob
        Acceptance probability at which the warm-up aims, within (0, 1); 0.574 by
        default.
    init_strategy
        NumPyro's strategy for the point to start from.

    Raises
    ------
    TypeError
        If ``model`` is not callable, or a number is not one.
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

    kind = STEPS["mala"]


class PCNL(LangevinKernel):
    """Preconditioned Crank-Nicolson Langevin algorithm.

    For nearly Normal posteriors in many dimensions: the step size need not fall with
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
        As :class:`MALA`. Chains, fields and resuming are the same, too.

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

    kind = STEPS["pcnl"]


class AutoMALA(LangevinKernel):
    """MALA that chooses its step size anew at every step.

    For posteriors whose scale differs from place to place, where no one step size is
    right. It crosses a funnel too slowly to rely on: reparameterise the model, as by
    :class:`numpyro.infer.reparam.LocScaleReparam`. An iteration costs about five
    gradients, more where the step size is far from the one to start from; vectorised
    chains wait for the slowest.

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

    kind = STEPS["auto_mala"]
    averages_step_size = True


class ULA(LangevinKernel):
    r"""Unadjusted Langevin algorithm: biased, and never stuck.

    Its invariant distribution is near the posterior and wider, by an amount that does
    not fall with the number of draws. On a Normal posterior with standard deviation
    :math:`\sigma`, with scale :math:`s` and step size :math:`\varepsilon`, the mean is
    right and the variance is

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
    adapt_scale, init_strategy
        As for :class:`MALA`.

    Raises
    ------
    TypeError, ValueError
        As :class:`MALA`.

    Notes
    -----
    - **Warm-up** takes MALA's steps, corrected: before the scale is known, any step
      size may be too long.
    - **Bias**: ``accept_prob`` among the ``extra_fields``, and in the text beside the
      progress bar, is what MALA would accept of these steps; the nearer to 1, the
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

    kind = STEPS["ula"]
    warmup_kind = STEPS["mala"]

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
