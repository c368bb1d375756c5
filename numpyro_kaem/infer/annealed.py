"""Annealed Langevin populations with replica exchange."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from numpyro.infer import init_to_sample
from numpyro.infer.hmc_util import build_adaptation_schedule, dual_averaging
from numpyro.util import is_prng_key

from numpyro_kaem._checks import as_count, as_flag, as_name, as_positive
from numpyro_kaem.infer import target
from numpyro_kaem.infer.ladder import (
    ReplicaTracker,
    check_ladder,
    equal_rejection_ladder,
    even_odd_permutation,
    power_ladder,
    swap_probabilities,
)
from numpyro_kaem.infer.langevin import (
    STEPS,
    LangevinState,
    as_target_accept_prob,
    exp_step_size,
)

__all__ = ["AnnealedLangevin", "AnnealedState"]

_NUM_TEMPERATURES = 16
# Where the prior is improper, and t = 0 no distribution.
_LOWEST_TEMPERATURE = 1e-3

# Weight of what is known already, in iterations, beside a window's squared gradients.
_PRIOR_WEIGHT = 5

_start_averaging, _update_averaging = dual_averaging()

Split = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Log prior and log likelihood of a flat position ``(dim,)``."""


# --- the replicas --------------------------------------------------------------------


class Replicas(NamedTuple):
    """Replicas in the order of their temperatures, with all that a swap carries along.

    Positions and gradients have shape ``(num_temperatures, dim)``.
    """

    position: jax.Array
    log_prior: jax.Array
    log_likelihood: jax.Array
    prior_gradient: jax.Array
    likelihood_gradient: jax.Array

    @classmethod
    def at(cls, split: Split, position: jax.Array) -> "Replicas":
        """Evaluate the model; a likelihood that is NaN counts as zero, as in HMC."""

        # Each by itself, so that the prior's gradient does not run back through the
        # likelihood; compiled, the two share what they have in common.
        def log_prior(flat: jax.Array) -> jax.Array:
            return split(flat)[0]

        def log_likelihood(flat: jax.Array) -> jax.Array:
            return split(flat)[1]

        def one(flat: jax.Array) -> Replicas:
            prior, prior_gradient = jax.value_and_grad(log_prior)(flat)
            likelihood, gradient = jax.value_and_grad(log_likelihood)(flat)
            likelihood = jnp.where(jnp.isnan(likelihood), -jnp.inf, likelihood)
            return cls(flat, prior, likelihood, prior_gradient, gradient)

        return jax.vmap(one)(position)

    def gradient(self, temperatures: jax.Array) -> jax.Array:
        """Gradient of the tempered log density, shape ``(num_temperatures, dim)``."""
        warm = temperatures[:, None] > 0
        return self.prior_gradient + jnp.where(
            warm, temperatures[:, None] * self.likelihood_gradient, 0.0
        )


class Means(NamedTuple):
    """Running means over iterations, of a warm-up window or of the draws."""

    num_iterations: jax.Array
    log_likelihood: jax.Array  # Shape (num_temperatures,).
    swap_acceptance: jax.Array  # Shape (num_temperatures - 1,).
    squared_gradient: jax.Array  # Shape (num_temperatures, dim).

    @classmethod
    def start(cls, position: jax.Array) -> "Means":
        """No iteration yet."""
        zeros = jnp.zeros_like(position)
        return cls(jnp.array(0), zeros[:, 0], zeros[1:, 0], zeros)

    def update(
        self, replicas: Replicas, temperatures: jax.Array, swap_acceptance: jax.Array
    ) -> "Means":
        """Add an iteration."""
        values = (
            replicas.log_likelihood,
            swap_acceptance,
            replicas.gradient(temperatures) ** 2,
        )
        count = self.num_iterations + 1
        share = 1 / count
        # In this form minus infinity stays minus infinity.
        means = [
            jnp.where(count == 1, new, (1 - share) * old + share * new)
            for old, new in zip(self[1:], values, strict=True)
        ]
        return Means(count, *means)


# --- warm-up -------------------------------------------------------------------------


class Adaptation(NamedTuple):
    """What the warm-up has learned, for each temperature."""

    temperatures: jax.Array
    step_size: jax.Array
    scale: jax.Array  # Shape (num_temperatures, dim).
    averaging: tuple  # NumPyro's dual averaging of the log step sizes.

    @classmethod
    def start(
        cls, temperatures: jax.Array, step_size: float, position: jax.Array
    ) -> "Adaptation":
        """Nothing learned yet."""
        sizes = jnp.full_like(temperatures, step_size)
        averaging = jax.vmap(_start_averaging)(jnp.log(sizes))
        return cls(temperatures, sizes, jnp.ones_like(position), averaging)


class Warmup(NamedTuple):
    """Settings of the warm-up, with NumPyro's schedule of windows.

    In every window the step size at each temperature follows its acceptance. At the end
    of an inner window the ladder is moved to equal rejection, and the scales become the
    inverse root of the mean squared gradient: the distance over which the density
    varies, which, unlike a variance, does not count the distance between modes (Titsias
    2023, "Optimal preconditioning and Fisher adaptive Langevin sampling").
    """

    num_warmup: int
    target_accept_prob: float | None  # None: the step sizes stay.
    adapt_ladder: bool
    has_exact_prior: bool  # Then t = 0 is drawn exactly, and takes no steps.

    def learn(
        self,
        iteration: jax.Array,
        known: Adaptation,
        means: Means,
        accept_prob: jax.Array,
    ) -> tuple[Adaptation, Means]:
        """Learn from one iteration, the first being 0; means restart after a window."""
        windows = build_adaptation_schedule(self.num_warmup)
        if self.target_accept_prob is not None:
            missing = self.target_accept_prob - accept_prob
            if self.has_exact_prior:
                missing = missing.at[0].set(0.0)
            averaging = jax.vmap(_update_averaging)(missing, known.averaging)
            # The average of the last window is what stays.
            last = iteration == self.num_warmup - 1
            log_size = jnp.where(last, averaging[1], averaging[0])
            known = known._replace(
                averaging=averaging, step_size=exp_step_size(log_size)
            )
        # The first window leaves the start behind; the last settles the step sizes.
        inner_ends = jnp.array([window.end for window in windows[1:-1]], int)
        known = jax.lax.cond(
            jnp.any(iteration == inner_ends), self._renew, lambda k, _: k, known, means
        )
        ends = jnp.array([window.end for window in windows], int)
        means = jax.lax.cond(
            jnp.any(iteration == ends),
            lambda m: Means.start(m.squared_gradient),
            lambda m: m,
            means,
        )
        return known, means

    def _renew(self, known: Adaptation, means: Means) -> Adaptation:
        """Ladder and scales from the means over a window."""
        old = known.temperatures
        new = old
        if self.adapt_ladder:
            new = equal_rejection_ladder(old, 1 - means.swap_acceptance)

        def at_new(values: jax.Array) -> jax.Array:
            return jnp.interp(new, old, values)

        precision = known.scale**-2.0
        count = means.num_iterations
        learned = count * means.squared_gradient + _PRIOR_WEIGHT * precision
        learned = learned / (count + _PRIOR_WEIGHT)
        precision = jnp.where(jnp.isfinite(learned), learned, precision)
        log_scale = -0.5 * jnp.log(precision)
        scale = jnp.exp(jax.vmap(at_new, 1, 1)(log_scale))
        known = known._replace(temperatures=new, scale=scale)
        if self.target_accept_prob is None:
            return known
        # From here again, a little above: too long a step is noticed sooner.
        known_size = known.averaging[1]
        if self.has_exact_prior:
            # It takes no steps, but the temperatures that come closer to it do.
            known_size = known_size.at[0].set(known_size[1])
        log_size = at_new(known_size)
        averaging = jax.vmap(_start_averaging)(log_size + jnp.log(2.0))
        return known._replace(
            step_size=exp_step_size(averaging[4]), averaging=averaging
        )


# --- the kernel ----------------------------------------------------------------------


class AnnealedState(NamedTuple):
    """State of one population.

    ``z`` are the unconstrained latent values at ``t = 1``. The means are since the end
    of warm-up, in warm-up since the window's start. ``accept_prob`` of the local moves
    is 1 where the prior is drawn exactly; ``swap_acceptance`` is of all pairs, whether
    or not it was their turn.
    """

    i: jax.Array
    z: dict[str, jax.Array]
    replicas: Replicas
    adaptation: Adaptation
    tracker: ReplicaTracker
    means: Means
    accept_prob: jax.Array
    swap_acceptance: jax.Array
    rng_key: jax.Array

    @property
    def temperatures(self) -> jax.Array:
        """Ladder, shape ``(num_temperatures,)``."""
        return self.adaptation.temperatures

    @property
    def replica_log_likelihood(self) -> jax.Array:
        """Log likelihood at each temperature, shape ``(num_temperatures,)``."""
        return self.replicas.log_likelihood

    @property
    def potential_energy(self) -> jax.Array:
        """Potential energy at ``t = 1``, a scalar."""
        return -self.replicas.log_prior[..., -1] - self.replicas.log_likelihood[..., -1]

    @property
    def mean_log_likelihood(self) -> jax.Array:
        """Mean log likelihood at each temperature, shape ``(num_temperatures,)``."""
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
        return self.tracker.round_trips

    @property
    def round_trip_rate(self) -> jax.Array:
        """Round trips per iteration, a scalar."""
        return self.tracker.round_trips / jnp.maximum(self.means.num_iterations, 1)


class AnnealedLangevin(target.ModelKernel):
    r"""Annealed population of Langevin chains with replica exchange.

    The replica at temperature :math:`t_k` of a ladder
    :math:`0 = t_0 < \dots < t_N = 1` follows

    .. math:: p_k(z) \propto \pi(z) \, p(x \mid z)^{t_k},

    from the prior to the posterior (:math:`t` is an inverse temperature). An iteration
    makes local moves at all temperatures at once, then swaps neighbours in a
    deterministic even-odd order, so that replicas carry what they find at small
    :math:`t`, where modes are joined, to :math:`t = 1`, which is the chain that is
    collected.

    Parameters
    ----------
    model
        A NumPyro model with continuous latent values. Its observed sites and factors
        are the likelihood, the rest is the prior.
    num_temperatures
        Number of temperatures :math:`N + 1`, at least 2; about twice the communication
        barrier serves best.
    temperatures
        Ladder to start from in place of a power law, increasing from 0 to 1;
        ``num_temperatures`` is then its length.
    power
        Exponent :math:`p` of the ladder :math:`t_k = (k / N)^p` to start from.
    adapt_ladder
        Whether the warm-up moves the ladder to equal rejection.
    local_move
        Steps at one temperature: those of :class:`~numpyro_kaem.infer.MALA`
        (``"mala"``), trajectories of Hamiltonian Monte Carlo of eight steps each
        (``"hmc"``, for strong correlation), :class:`~numpyro_kaem.infer.PCNL`
        (``"pcnl"``), :class:`~numpyro_kaem.infer.AutoMALA` (``"auto_mala"``) or
        :class:`~numpyro_kaem.infer.ULA` (``"ula"``, which is biased, and the evidence
        with it).
    num_local_steps
        Number of these moves between swaps; 1 does with ``"hmc"``.
    step_size
        Step size to start from, in units of the scales; with ``"auto_mala"`` and
        ``"ula"`` it stays.
    target_accept_prob
        Acceptance of the local moves at which the warm-up aims; ``None`` is the
        kernel's own.
    init_strategy
        Strategy of NumPyro that starts each replica, by default at a draw of the prior.

    Raises
    ------
    TypeError
        If ``model`` is not callable, or a number is not one.
    ValueError
        If the ladder does not increase from 0 to 1, has one temperature only, or is not
        of the length ``num_temperatures``; if another number is out of its range; when
        run, if the model has discrete latent sites, no latent or no observed site or a
        subsampled plate, or if the density is not finite at the start.

    Notes
    -----
    - **Invariant distribution**: exact, with any number of temperatures; that of the
      chain at ``t = 1`` is the posterior. At ``t = 0`` the prior is drawn exactly where
      the model allows it. With an improper prior (``ImproperUniform``), which is no
      distribution, the ladder begins at .001, or half the second of ``temperatures``.
    - **Adapts** in warm-up: ladder, and step size and diagonal scale at each
      temperature.
    - **Chains**: ``sequential``, ``parallel`` and ``vectorized``; each chain is a
      population of its own, with its own ladder.
    - **Collect**, as ``extra_fields``: ``swap_acceptance``, ``round_trips``,
      ``round_trip_rate``, ``communication_barrier``, ``mean_log_likelihood``,
      ``accept_prob``, ``temperatures``, ``potential_energy``. The log likelihood at
      every temperature, ``replica_log_likelihood``, is always collected, for
      :func:`~numpyro_kaem.infer.log_evidence`.
    - **Cost** of an iteration: ``num_temperatures * (num_local_steps + 1)`` densities
      with gradients, in one vectorised pass; eight times as many with ``"hmc"``.

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
        super().__init__(model, init_strategy)
        if temperatures is None:
            ladder = power_ladder(num_temperatures, power)
        else:
            ladder = check_ladder(temperatures)
            if num_temperatures not in (len(ladder), _NUM_TEMPERATURES):
                raise ValueError(
                    f"num_temperatures must be the length of temperatures, "
                    f"{len(ladder)}, got {num_temperatures}."
                )
        kind = STEPS[as_name("local_move", local_move, STEPS)]
        self._step = kind.step
        self._target_accept_prob = as_target_accept_prob(
            target_accept_prob, kind.target_accept_prob, f"local_move={local_move!r}"
        )
        self._ladder = tuple(ladder.tolist())
        self._ladder_is_given = temperatures is not None
        self._adapt_ladder = as_flag("adapt_ladder", adapt_ladder)
        self._num_local_steps = as_count("num_local_steps", num_local_steps)
        self._step_size = as_positive("step_size", step_size)
        # What `init` finds out.
        self._warmup = Warmup(0, None, False, False)
        self._prior_is_proper = True

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Names of the fields that are collected without being asked for."""
        return ("z", "replica_log_likelihood")

    def get_diagnostics_str(self, state: AnnealedState) -> str:
        """Text beside the progress bar."""
        return (
            f"barrier {state.communication_barrier:.1f}, "
            f"{state.round_trips} round trips, "
            f"least swap acceptance {state.mean_swap_acceptance.min():.2f}"
        )

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: dict[str, jax.Array] | None,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> AnnealedState:
        """State of one population, or of several if there are several keys.

        All replicas of a population start at ``init_params``, if they are given.
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
        self._warmup = Warmup(
            num_warmup,
            self._target_accept_prob,
            self._adapt_ladder,
            target.prior_is_exact(start.trace),
        )
        self._sample_fn = self._step
        ladder = self._ladder
        if not self._prior_is_proper:
            if self._ladder_is_given:
                ladder = (ladder[1] / 2, *ladder[1:])
            else:
                ladder = (*np.geomspace(_LOWEST_TEMPERATURE, 1.0, num_temperatures),)

        def begin(
            rng_key: jax.Array, position: jax.Array, values: dict[str, jax.Array]
        ) -> AnnealedState:
            z = jax.tree.map(lambda x: x[-1], values)
            split, _ = self._split(z, model_args, model_kwargs)
            temperatures = jnp.array(ladder, position.dtype)
            means = Means.start(position)
            return AnnealedState(
                i=jnp.array(0),
                z=z,
                replicas=Replicas.at(split, position),
                adaptation=Adaptation.start(temperatures, self._step_size, position),
                tracker=ReplicaTracker.start(num_temperatures),
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

    def _split(
        self, like: target.Sites, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> tuple[Split, Callable]:
        """Log prior and log likelihood of a flat position, and its unraveling.

        Made from the arguments at hand in every iteration: what a compiled sampler
        closes over would keep the first data for ever.
        """
        _, unravel = ravel_pytree(like)

        def split(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
            return target.log_prior_and_likelihood(
                self._model, model_args, model_kwargs, unravel(flat)
            )

        return split, unravel

    def sample(
        self,
        state: AnnealedState,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> AnnealedState:
        """Local moves and swaps; in warm-up, what is learned from them."""
        advance, learn, iteration = self._advance, self._learn, state.i
        if not is_prng_key(state.rng_key):
            # All populations are in the same iteration: outside vmap, a branch that is
            # not taken costs nothing.
            iteration = iteration[0]
            advance = jax.vmap(advance, (0, None, None))
            learn = jax.vmap(learn, (0, None))
        state = advance(state, model_args, model_kwargs or {})
        in_warmup = iteration < self._warmup.num_warmup
        return jax.lax.cond(in_warmup, learn, lambda s, _: s, state, iteration)

    def _advance(
        self, state: AnnealedState, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> AnnealedState:
        """One iteration of one population."""
        split, unravel = self._split(state.z, model_args, model_kwargs)
        temperatures = state.adaptation.temperatures

        def draw_prior(rng_key: jax.Array) -> jax.Array:
            values = target.draw_prior(rng_key, self._model, model_args, model_kwargs)
            return ravel_pytree(values)[0]

        rng_key, key_move, key_swap = jax.random.split(state.rng_key, 3)
        exact = draw_prior if self._warmup.has_exact_prior else None
        position, accept_prob = self._local_moves(key_move, split, state, exact)
        replicas = Replicas.at(split, position)
        probabilities = swap_probabilities(temperatures, replicas.log_likelihood)
        permutation = even_odd_permutation(key_swap, state.i, probabilities)
        replicas = jax.tree.map(lambda x: x[permutation], replicas)
        return AnnealedState(
            i=state.i + 1,
            z=unravel(replicas.position[-1]),
            replicas=replicas,
            adaptation=state.adaptation,
            tracker=state.tracker.follow(permutation),
            means=state.means.update(replicas, temperatures, probabilities),
            accept_prob=accept_prob,
            swap_acceptance=probabilities,
            rng_key=rng_key,
        )

    def _local_moves(
        self,
        rng_key: jax.Array,
        split: Split,
        state: AnnealedState,
        draw_prior: Callable[[jax.Array], jax.Array] | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Positions and mean acceptances after the moves at every temperature.

        An exact draw of the prior, where there is one, replaces the steps at ``t = 0``.
        """
        known, replicas = state.adaptation, state.replicas
        temperatures = known.temperatures
        gradient = replicas.gradient(temperatures)
        tempered = jnp.where(
            temperatures > 0, temperatures * replicas.log_likelihood, 0.0
        )
        log_density = replicas.log_prior + tempered
        keys = jax.random.split(rng_key, len(temperatures))

        def move(
            key: jax.Array,
            density: Callable,
            start: LangevinState,
            size: jax.Array,
            scale: jax.Array,
        ) -> tuple[jax.Array, jax.Array]:
            def body(
                state: LangevinState, key: jax.Array
            ) -> tuple[LangevinState, jax.Array]:
                state, info = self._step(key, density, state, size, scale)
                return state, info.acceptance

            keys = jax.random.split(key, self._num_local_steps)
            end, acceptance = jax.lax.scan(body, start, keys)
            return end.position, acceptance.mean()

        def warm(key: jax.Array, temperature: jax.Array, *rest: Any) -> tuple:
            def density(flat: jax.Array) -> jax.Array:
                prior, likelihood = split(flat)
                return prior + temperature * likelihood

            return move(key, density, *rest)

        starts = LangevinState(replicas.position, log_density, gradient)
        all_of = (keys, temperatures, starts, known.step_size, known.scale)
        if not self._prior_is_proper:
            return jax.vmap(warm)(*all_of)
        first = jax.tree.map(lambda x: x[0], all_of)
        position, accept_prob = jax.vmap(warm)(*jax.tree.map(lambda x: x[1:], all_of))
        if draw_prior is None:
            # By itself, and without the likelihood: zero times minus infinity is NaN.
            key, _, *rest = first
            drawn, accepted = move(key, lambda flat: split(flat)[0], *rest)
        else:
            drawn, accepted = draw_prior(first[0]), jnp.ones_like(accept_prob[0])
            # Rounding may put a draw on the end of its support, at infinity: stay then,
            # which leaves the prior on the points within as it is.
            finite = jnp.all(jnp.isfinite(drawn))
            drawn = jnp.where(finite, drawn, replicas.position[0])
        return (
            jnp.concatenate([drawn[None], position]),
            jnp.concatenate([accepted[None], accept_prob]),
        )

    def _learn(self, state: AnnealedState, iteration: jax.Array) -> AnnealedState:
        """Learn from one iteration of the warm-up, one population."""
        adaptation, means = self._warmup.learn(
            iteration, state.adaptation, state.means, state.accept_prob
        )
        # Round trips are counted from the end of warm-up.
        last = iteration == self._warmup.num_warmup - 1
        tracker = jax.tree.map(
            lambda new, old: jnp.where(last, new, old),
            state.tracker.restart(),
            state.tracker,
        )
        return state._replace(adaptation=adaptation, means=means, tracker=tracker)

    def check_evidence(self) -> None:
        """Raise ``ValueError`` unless the prior is a density."""
        if self._warmup.has_exact_prior:
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
