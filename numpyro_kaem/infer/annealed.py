"""Annealed Langevin populations with replica exchange."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from numpyro.infer import init_to_sample
from numpyro.infer.hmc_util import build_adaptation_schedule, dual_averaging
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_kaem._checks import as_flag, as_number, check_function
from numpyro_kaem.infer import langevin, target
from numpyro_kaem.infer.kernel import Preconditioner
from numpyro_kaem.infer.ladder import (
    Travels,
    check_ladder,
    equal_rejection_ladder,
    power_ladder,
)
from numpyro_kaem.infer.langevin import MALA, PCNL
from numpyro_kaem.infer.population import (
    Means,
    Rungs,
    evaluate,
    local_moves,
    swap,
)

__all__ = ["AnnealedLangevin", "AnnealedState", "Rules", "Tuning"]

_start_averaging, _update_averaging = dual_averaging()

# Weight of what is known already, in iterations, beside a window's squared gradients.
_PRIOR_WEIGHT = 5


class Tuning(NamedTuple):
    """What is learned for each rung; constant after warm-up."""

    temperatures: jax.Array
    """Ladder, shape ``(num_temperatures,)``."""
    step_size: jax.Array
    """Shape ``(num_temperatures,)``."""
    preconditioner: Preconditioner
    """Its arrays have the shape ``(num_temperatures, dim)``."""
    averaging: tuple
    """State of NumPyro's dual averaging of the log step sizes."""

    @classmethod
    def start(
        cls, temperatures: jax.Array, step_size: float, position: jax.Array
    ) -> "Tuning":
        """Nothing learned yet."""
        sizes = jnp.full_like(temperatures, step_size)
        unit = Preconditioner(jnp.ones_like(position))
        averaging = jax.vmap(_start_averaging)(jnp.log(sizes))
        return cls(temperatures, sizes, unit, averaging)


class Rules(NamedTuple):
    """Rules of the warm-up, with NumPyro's schedule of windows.

    In every window the step size of each rung follows its acceptance. At the end of an
    inner window the ladder is moved to equal rejection, and each rung's scales become
    the inverse root of its mean squared gradient: the distance over which the density
    varies, which, unlike a variance, does not count the distance between modes.

    References
    ----------
    Titsias (2023), "Optimal preconditioning and Fisher adaptive Langevin sampling",
    *Advances in Neural Information Processing Systems* 36.
    """

    num_warmup: int
    """Number of iterations of warm-up."""
    target: float | None
    """Acceptance at which the step sizes aim; ``None`` leaves them as they are."""
    adapt_ladder: bool
    """Whether to move the ladder."""
    has_exact_prior: bool
    """Whether the first rung draws exactly, and takes no steps."""

    def learn(
        self, iteration: jax.Array, tuning: Tuning, means: Means, accept_prob: jax.Array
    ) -> tuple[Tuning, Means]:
        """Learn from one iteration of the warm-up.

        Parameters
        ----------
        iteration
            Its number, from 0 to ``num_warmup - 1``.
        tuning
            What is known before it.
        means
            Over the present window, this iteration included.
        accept_prob
            Acceptance of each rung's local moves, shape ``(num_temperatures,)``.

        Returns
        -------
        Tuning, Means
            What is known after it; the means restart after a window.
        """
        windows = build_adaptation_schedule(self.num_warmup)
        if self.target is not None:
            missing = self.target - accept_prob
            if self.has_exact_prior:
                missing = missing.at[0].set(0.0)
            averaging = jax.vmap(_update_averaging)(missing, tuning.averaging)
            # The average of the last window is what stays.
            last = iteration == self.num_warmup - 1
            log_size = jnp.where(last, averaging[1], averaging[0])
            tuning = tuning._replace(averaging=averaging, step_size=_positive(log_size))
        # The first window leaves the start behind; the last settles the step sizes.
        inner_ends = jnp.array([window.end for window in windows[1:-1]], int)
        tuning = jax.lax.cond(
            jnp.any(iteration == inner_ends), self._renew, lambda t, _: t, tuning, means
        )
        ends = jnp.array([window.end for window in windows], int)
        means = jax.lax.cond(
            jnp.any(iteration == ends),
            lambda m: Means.start(m.squared_gradient),
            lambda m: m,
            means,
        )
        return tuning, means

    def _renew(self, tuning: Tuning, means: Means) -> Tuning:
        """Ladder and scales from the means over a window."""
        old = tuning.temperatures
        new = old
        if self.adapt_ladder:
            new = equal_rejection_ladder(old, 1 - means.swap_acceptance)

        def at_new(values: jax.Array) -> jax.Array:
            return jnp.interp(new, old, values)

        known = tuning.preconditioner.scale**-2.0
        count = means.count
        learned = count * means.squared_gradient + _PRIOR_WEIGHT * known
        precision = learned / (count + _PRIOR_WEIGHT)
        precision = jnp.where(jnp.isfinite(precision), precision, known)
        log_scale = -0.5 * jnp.log(precision)
        scale = jnp.exp(jax.vmap(at_new, 1, 1)(log_scale))
        if self.target is None:
            return tuning._replace(
                temperatures=new, preconditioner=Preconditioner(scale)
            )
        # From here again, a little above: too long a step is noticed sooner.
        known_size = tuning.averaging[1]
        if self.has_exact_prior:
            # It takes no steps, but the rungs that come closer to it do.
            known_size = known_size.at[0].set(known_size[1])
        log_size = at_new(known_size)
        averaging = jax.vmap(_start_averaging)(log_size + jnp.log(2.0))
        return Tuning(new, _positive(averaging[4]), Preconditioner(scale), averaging)


def _positive(log_size: jax.Array) -> jax.Array:
    """Step size that is a positive finite number, as NumPyro's HMC keeps it."""
    limits = jnp.finfo(log_size.dtype)
    return jnp.clip(jnp.exp(log_size), limits.tiny, limits.max)


class AnnealedState(NamedTuple):
    """State of :class:`~numpyro_kaem.infer.AnnealedLangevin`: of one chain."""

    i: jax.Array
    """Number of iterations done, those of the warm-up included."""
    z: dict[str, jax.Array]
    """Unconstrained latent values at ``t = 1``."""
    rungs: Rungs
    """All replicas, in the order of their rungs."""
    tuning: Tuning
    """Ladder, step sizes and scales."""
    travels: Travels
    """Which replica is where, and their round trips."""
    means: Means
    """Running means since the end of warm-up, in warm-up since the window's start."""
    accept_prob: jax.Array
    """Acceptance of each rung's local moves, shape ``(num_temperatures,)``; 1 where the
    prior is drawn exactly."""
    swap_acceptance: jax.Array
    """Probability that each pair of neighbours would swap, whether or not it was their
    turn, shape ``(num_temperatures - 1,)``."""
    rng_key: jax.Array
    """Random key of the next iteration."""

    @property
    def temperatures(self) -> jax.Array:
        """Ladder, shape ``(num_temperatures,)``."""
        return self.tuning.temperatures

    @property
    def rung_log_likelihood(self) -> jax.Array:
        """Log likelihood at each rung, shape ``(num_temperatures,)``."""
        return self.rungs.log_likelihood

    @property
    def potential_energy(self) -> jax.Array:
        """Potential energy at ``t = 1``, a scalar."""
        return -self.rungs.log_prior[..., -1] - self.rungs.log_likelihood[..., -1]

    @property
    def mean_log_likelihood(self) -> jax.Array:
        """Mean of the log likelihood at each rung, shape ``(num_temperatures,)``."""
        return self.means.log_likelihood

    @property
    def mean_swap_acceptance(self) -> jax.Array:
        """Mean of ``swap_acceptance``, shape ``(num_temperatures - 1,)``."""
        return self.means.swap_acceptance

    @property
    def communication_barrier(self) -> jax.Array:
        """Sum of the mean rejection rates of the swaps, a scalar."""
        return jnp.sum(1 - self.means.swap_acceptance, -1)

    @property
    def round_trips(self) -> jax.Array:
        """Round trips of all replicas since the end of warm-up, a scalar."""
        return self.travels.round_trips

    @property
    def round_trip_rate(self) -> jax.Array:
        """Round trips an iteration, a scalar."""
        return self.travels.round_trips / jnp.maximum(self.means.count, 1)


_NUM_TEMPERATURES = 16


class _Move(NamedTuple):
    """A kernel's pure step, and the acceptance at which its step size aims."""

    step: Callable
    target_accept_prob: float | None


_MOVES = {
    "mala": _Move(langevin.mala_step, MALA.default_target_accept_prob),
    "pcnl": _Move(langevin.pcnl_step, PCNL.default_target_accept_prob),
    # It chooses its step size anew at every step.
    "auto_mala": _Move(langevin.auto_mala_step, None),
    # Its step size is a bias that the user answers for.
    "ula": _Move(langevin.ula_step, None),
}


class AnnealedLangevin(MCMCKernel):
    r"""Annealed population of Langevin chains with replica exchange.

    The replica at rung :math:`k` of a ladder
    :math:`0 = t_0 < \dots < t_N = 1` follows

    .. math:: p_k(z) \propto \pi(z) \, p(x \mid z)^{t_k},

    from the prior to the posterior. An iteration makes local moves within all rungs at
    once, then swaps neighbours in a deterministic even-odd order, so that replicas
    carry what they find at small :math:`t`, where modes are joined, to :math:`t = 1`,
    which is the chain that is collected.

    Parameters
    ----------
    model
        A NumPyro model with continuous latent values. Its observed sites and factors
        are the likelihood, the rest is the prior.
    num_temperatures
        Number of rungs :math:`N + 1`, at least 2; about twice the communication
        barrier serves best.
    temperatures
        Ladder to start from in place of a power law, increasing from 0 to 1;
        ``num_temperatures`` is then its length.
    power
        Exponent :math:`p` of the ladder :math:`t_k = (k / N)^p` to start from.
    adapt_ladder
        Whether the warm-up moves the ladder to equal rejection.
    local_move
        Steps within a rung: those of :class:`~numpyro_kaem.infer.MALA` (``"mala"``),
        :class:`~numpyro_kaem.infer.PCNL` (``"pcnl"``),
        :class:`~numpyro_kaem.infer.AutoMALA` (``"auto_mala"``) or
        :class:`~numpyro_kaem.infer.ULA` (``"ula"``, which is biased, and the evidence
        with it).
    num_local_steps
        Number of Langevin steps for each swap.
    step_size
        Step size of every rung to start from, in units of its scales; with
        ``"auto_mala"`` and ``"ula"`` it stays.
    target_accept_prob
        Acceptance of the local moves at which the warm-up aims; ``None`` is the
        kernel's own.
    init_strategy
        Strategy of NumPyro that starts each replica, by default at a draw of the prior.

    Raises
    ------
    TypeError
        If ``model`` is not callable.
    ValueError
        If the ladder does not increase from 0 to 1, has one rung only, or is not of the
        length ``num_temperatures``; if another number is out of its range; when run, if
        the model has discrete latent sites, no latent or no observed site or a
        subsampled plate, or if the density is not finite at the start.

    Notes
    -----
    - **Invariant law**: exact, with any number of rungs; the chain at ``t = 1`` has the
      posterior's. At ``t = 0`` the prior is drawn exactly where the model allows it.
    - **Adapts** in warm-up: ladder, step size and diagonal scale of each rung.
    - **Chains**: ``sequential``, ``parallel`` and ``vectorized``; each chain is a
      population of its own, with its own ladder.
    - **Collect**, as ``extra_fields``: ``swap_acceptance``, ``round_trips``,
      ``round_trip_rate``, ``communication_barrier``, ``mean_log_likelihood``,
      ``accept_prob``, ``temperatures``, ``potential_energy``. The log likelihood of
      every rung, ``rung_log_likelihood``, is always collected, for
      :func:`~numpyro_kaem.infer.log_evidence`.
    - **Cost** of an iteration: ``num_temperatures * (num_local_steps + 1)`` densities
      with gradients, in one vectorised pass.

    References
    ----------
    Syed, Bouchard-Côté, Deligiannidis and Doucet (2022), "Non-reversible parallel
    tempering: a scalable highly parallel MCMC scheme", *Journal of the Royal
    Statistical Society B* 84(2).

    Examples
    --------
    The sign of ``z`` is not known from its square:

    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_kaem.infer import AnnealedLangevin
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.5, 1.5))
    ...     numpyro.sample("y", dist.Normal(z**2, 0.1), obs=y)
    >>> kernel = AnnealedLangevin(model, num_temperatures=8)
    >>> mcmc = MCMC(kernel, num_warmup=300, num_samples=1000, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), 2.0)
    >>> negative = (mcmc.get_samples()["z"] < 0).mean()
    >>> bool(0.1 < negative < 0.6)
    True
    """

    def __init__(
        self,
        model: Callable,
        num_temperatures: int = _NUM_TEMPERATURES,
        *,
        temperatures: ArrayLike | None = None,
        power: float = 5.0,
        adapt_ladder: bool = True,
        local_move: str = "mala",
        num_local_steps: int = 5,
        step_size: float = 1.0,
        target_accept_prob: float | None = None,
        init_strategy: Callable = init_to_sample,
    ) -> None:
        check_function("model", model, "a NumPyro model, a callable")
        if temperatures is None:
            ladder = power_ladder(num_temperatures, power)
        else:
            ladder = check_ladder(temperatures)
            if num_temperatures not in (len(ladder), _NUM_TEMPERATURES):
                raise ValueError(
                    f"num_temperatures must be the length of temperatures, "
                    f"{len(ladder)}, got {num_temperatures}."
                )
        if not isinstance(local_move, str) or local_move not in _MOVES:
            raise ValueError(
                f"local_move must be one of {', '.join(map(repr, _MOVES))}, got "
                f"{local_move!r}."
            )
        if isinstance(num_local_steps, bool) or not isinstance(num_local_steps, int):
            raise ValueError(
                f"num_local_steps must be an integer >= 1, got {num_local_steps!r}."
            )
        if num_local_steps < 1:
            raise ValueError(f"num_local_steps must be >= 1, got {num_local_steps}.")
        step_size = as_number(
            "step_size", step_size, "a finite number > 0", lambda x: x > 0
        )
        move = _MOVES[local_move]
        if target_accept_prob is None:
            target_accept_prob = move.target_accept_prob
        elif move.target_accept_prob is None:
            raise ValueError(
                f"target_accept_prob must be left out with {local_move!r}, whose step "
                f"size does not follow the acceptance, got {target_accept_prob!r}."
            )
        if target_accept_prob is not None:
            target_accept_prob = as_number(
                "target_accept_prob",
                target_accept_prob,
                "within (0, 1)",
                lambda x: 0 < x < 1,
            )
        check_function("init_strategy", init_strategy, "such as init_to_sample")
        self._model = model
        self._ladder = tuple(ladder.tolist())
        self._adapt_ladder = as_flag("adapt_ladder", adapt_ladder)
        self._num_local_steps = num_local_steps
        self._local_move = local_move
        self._step_size = step_size
        self._target_accept_prob = target_accept_prob
        self._init_strategy = init_strategy
        # What `init` finds out.
        self._rules = Rules(0, None, False, False)
        self._postprocess = None
        self._prior_is_proper = True
        # NumPyro's MCMC initialises a kernel that has not been, even when it resumes.
        self._sample_fn = None

    @property
    def model(self) -> Callable:
        """The model."""
        return self._model

    @property
    def sample_field(self) -> str:
        """Name of the field of the state that is collected."""
        return "z"

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Names of the fields that are collected without being asked for."""
        return ("z", "rung_log_likelihood")

    def get_diagnostics_str(self, state: AnnealedState) -> str:
        """Text beside the progress bar."""
        return (
            f"barrier {state.communication_barrier:.1f}, "
            f"{state.round_trips} round trips, "
            f"least swap acceptance {state.mean_swap_acceptance.min():.2f}"
        )

    def postprocess_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable:
        """Map of unconstrained values to those of the sites, deterministic ones too."""
        return self._postprocess(*model_args, **(model_kwargs or {}))

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: dict[str, jax.Array] | None,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> AnnealedState:
        """State before the first iteration.

        Parameters
        ----------
        rng_key
            One random key, or one for each population.
        num_warmup
            Number of iterations of warm-up.
        init_params
            Unconstrained values at which all replicas of a population start, with a
            leading axis where there are several keys; ``None`` follows the strategy.
        model_args, model_kwargs
            Arguments of the model.

        Returns
        -------
        AnnealedState
            With a leading axis where there are several keys.
        """
        model_kwargs = model_kwargs or {}
        num_temperatures = len(self._ladder)

        def split(rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
            rng_key, key_init = jax.random.split(rng_key)
            return rng_key, jax.random.split(key_init, num_temperatures)

        single = is_prng_key(rng_key)
        rng_key, key_init = split(rng_key) if single else jax.vmap(split)(rng_key)
        num_axes = 1 if single else 2
        shape = key_init.shape[:num_axes]
        if init_params is not None:
            init_params = jax.tree.map(
                lambda x: jnp.repeat(
                    jnp.asarray(x)[None] if single else jnp.asarray(x),
                    num_temperatures,
                    axis=0,
                ),
                init_params,
            )
        start = target.initialize(
            key_init.reshape(-1, *key_init.shape[num_axes:]),
            self._model,
            model_args,
            model_kwargs,
            init_strategy=self._init_strategy,
            init_params=init_params,
            needs_observed=True,
        )
        self._postprocess = start.postprocess
        self._prior_is_proper = target.prior_is_proper(start.trace)
        self._rules = Rules(
            num_warmup,
            self._target_accept_prob,
            self._adapt_ladder,
            target.prior_is_exact(start.trace),
        )
        self._sample_fn = _MOVES[self._local_move].step

        def begin(
            rng_key: jax.Array, position: jax.Array, values: dict[str, jax.Array]
        ) -> AnnealedState:
            z = jax.tree.map(lambda x: x[-1], values)
            density = _split(self._model, model_args, model_kwargs, z)
            temperatures = jnp.array(self._ladder, position.dtype)
            means = Means.start(position)
            return AnnealedState(
                i=jnp.array(0),
                z=z,
                rungs=evaluate(density, position),
                tuning=Tuning.start(temperatures, self._step_size, position),
                travels=Travels.start(num_temperatures),
                means=means,
                accept_prob=means.log_likelihood,
                swap_acceptance=means.swap_acceptance,
                rng_key=rng_key,
            )

        position, values = jax.tree.map(
            lambda x: x.reshape(*shape, *x.shape[1:]), (start.position, start.values)
        )
        # Compiled as a whole: one operation at a time, it is several times slower.
        begin = jax.jit(begin if single else jax.vmap(begin))
        return begin(rng_key, position, values)

    def sample(
        self,
        state: AnnealedState,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> AnnealedState:
        """Local moves and swaps; in warm-up, what they teach."""
        advance, learn, iteration = self._advance, self._learn, state.i
        if not is_prng_key(state.rng_key):
            # All populations are in the same iteration: outside vmap, a branch that is
            # not taken costs nothing.
            iteration = iteration[0]
            advance = jax.vmap(advance, (0, None, None))
            learn = jax.vmap(learn, (0, None))
        state = advance(state, model_args, model_kwargs or {})
        in_warmup = iteration < self._rules.num_warmup
        return jax.lax.cond(in_warmup, learn, lambda s, _: s, state, iteration)

    def _advance(
        self, state: AnnealedState, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> AnnealedState:
        """One iteration of one population."""
        split = _split(self._model, model_args, model_kwargs, state.z)
        tuning = state.tuning

        def draw_prior(rng_key: jax.Array) -> jax.Array:
            values = target.draw_prior(rng_key, self._model, model_args, model_kwargs)
            return ravel_pytree(values)[0]

        rng_key, key_move, key_swap = jax.random.split(state.rng_key, 3)
        position, accept_prob = local_moves(
            key_move,
            split,
            _MOVES[self._local_move].step,
            self._num_local_steps,
            state.rungs,
            tuning.temperatures,
            tuning.step_size,
            tuning.preconditioner,
            draw_prior if self._rules.has_exact_prior else None,
        )
        rungs, swap_acceptance, travels = swap(
            key_swap,
            state.i,
            evaluate(split, position),
            tuning.temperatures,
            state.travels,
        )
        _, unravel = ravel_pytree(state.z)
        return AnnealedState(
            i=state.i + 1,
            z=unravel(rungs.position[-1]),
            rungs=rungs,
            tuning=tuning,
            travels=travels,
            means=state.means.update(rungs, tuning.temperatures, swap_acceptance),
            accept_prob=accept_prob,
            swap_acceptance=swap_acceptance,
            rng_key=rng_key,
        )

    def _learn(self, state: AnnealedState, iteration: jax.Array) -> AnnealedState:
        """Learn from one iteration of the warm-up, one population."""
        tuning, means = self._rules.learn(
            iteration, state.tuning, state.means, state.accept_prob
        )
        # Round trips are counted from the end of warm-up.
        last = iteration == self._rules.num_warmup - 1
        travels = jax.tree.map(
            lambda new, old: jnp.where(last, new, old),
            state.travels.restart(),
            state.travels,
        )
        return state._replace(tuning=tuning, means=means, travels=travels)

    def check_evidence(self) -> None:
        """Check that the prior is a density, so that the evidence is defined.

        Raises
        ------
        ValueError
            If it is improper, scaled or masked.
        """
        if self._rules.has_exact_prior:
            return
        what = (
            "is scaled or masked, so that its integral is not known"
            if self._prior_is_proper
            else "is improper (ImproperUniform)"
        )
        raise ValueError(
            f"model must have a normalised prior for an evidence, but it {what}. "
            "Give every latent site a distribution, outside of handlers.scale and "
            "handlers.mask."
        )


def _split(
    model: Callable,
    model_args: tuple,
    model_kwargs: dict[str, Any],
    like: dict[str, jax.Array],
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Log prior and log likelihood of a flat position.

    Made from the arguments at hand in every iteration: what a compiled sampler closes
    over would keep the first data for ever.
    """
    _, unravel = ravel_pytree(like)

    def split(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        return target.log_prior_and_likelihood(
            model, model_args, model_kwargs, unravel(flat)
        )

    return split
