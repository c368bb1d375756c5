"""Non-reversible parallel tempering with Langevin moves, for any NumPyro model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from numpyro.infer import init_to_sample
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_kaem._checks import as_flag, as_number, check_function
from numpyro_kaem.infer import auto_mala, mala, pcnl, target, ula
from numpyro_kaem.infer.annealed_state import AnnealedState
from numpyro_kaem.infer.annealed_warmup import Rules, Tuning
from numpyro_kaem.infer.ladder import check_ladder, power_ladder
from numpyro_kaem.infer.mala import MALA
from numpyro_kaem.infer.pcnl import PCNL
from numpyro_kaem.infer.population import (
    Means,
    evaluate,
    local_moves,
    swap,
)
from numpyro_kaem.infer.swaps import Travels

__all__ = ["AnnealedLangevin"]

_NUM_TEMPERATURES = 16


class _Move(NamedTuple):
    """A kernel's pure step, and the acceptance at which its step size aims."""

    step: Callable
    target_accept_prob: float | None


_MOVES = {
    "mala": _Move(mala.step, MALA.default_target_accept_prob),
    "pcnl": _Move(pcnl.step, PCNL.default_target_accept_prob),
    # It chooses its step size anew at every step.
    "auto_mala": _Move(auto_mala.step, None),
    # Its step size is a bias that the user answers for.
    "ula": _Move(ula.step, None),
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
