"""Tempered sequential Monte Carlo for any NumPyro model with a proper prior."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from numpyro.infer.util import constrain_fn
from tqdm.auto import tqdm

from numpyro_kaem._checks import as_count, as_flag, as_number, check_function, check_key
from numpyro_kaem.files.container import read_arrays, write_arrays
from numpyro_kaem.infer.target import (
    check_model,
    compile_with_model,
    draw_prior,
    latent_sites,
    log_prior_and_likelihood,
    prior_is_exact,
)
from numpyro_kaem.infer.weights import Estimate, resample_indices

__all__ = ["TemperedSMC", "TemperedSMCResult", "student_scale", "why_runs_differ"]

# Of a leapfrog step; the step size follows it from one temperature to the next.
_TARGET_ACCEPT_PROB = 0.8
_STEP_SIZES = (1e-3, 10.0)
# Length of a trajectory in units of the scales, and the most steps that it may take.
_LENGTH = 1.57
_MAX_LEAPS = 32
# Bisections of the logarithm of the next increment, over this many nats.
_BISECTIONS, _RANGE = 18, 25.0
_MAX_TEMPERATURES = 1000
# Where few draws of the prior have a likelihood: batches that are drawn in search of
# as many for each island as it has chains, and of a few at least.
_PRIOR_BATCHES, _MOST_PRIOR_BATCHES, _FEW = 256, 16_384, 16
# A spacing of the log likelihood from which its rounding shows in the evidence.
_COARSE = 0.01
# Of the second run: small steps as well as large, small increments, many moves.
_CHECK: dict[str, Any] = {"ess_threshold": 0.9, "step_jitter": (0.03, 1.2)}
_CHECK_MOVES = 8
# In few dimensions more chains serve better than more moves of each.
_NUM_MOVES, _FEW_MOVES, _FEW_DIMENSIONS = 8, 4, 4
_MAX_DISAGREEMENT = 3.0
# Sum of the squared shares of islands: two have this if they share all of the weight.
_MOST_WEIGHT = 0.5


class _Run(NamedTuple):
    """A model and its arguments, and what the compiled functions must know."""

    model: Callable
    args: tuple
    kwargs: dict[str, Any]
    num_islands: int
    num_moves: int
    ess_threshold: float
    step_jitter: tuple[float, float]
    chunk_size: int
    mesh: Mesh | None

    def map(self, function: Callable, values: Any) -> Any:
        """Map a function over the first axis, a share on each device, in chunks."""

        def share(values: Any) -> Any:
            return jax.lax.map(function, values, batch_size=self.chunk_size)

        if self.mesh is None:
            return share(values)
        spec = PartitionSpec(self.mesh.axis_names)
        return jax.shard_map(share, mesh=self.mesh, in_specs=spec, out_specs=spec)(
            values
        )

    def whole(self, value: jax.Array) -> jax.Array:
        """Have a small array on each device, so that all sum it in the same order."""
        if self.mesh is not None:
            everywhere = NamedSharding(self.mesh, PartitionSpec())
            value = jax.lax.with_sharding_constraint(value, everywhere)
        return jax.lax.optimization_barrier(value)

    def unravel(self) -> Callable[[jax.Array], dict[str, jax.Array]]:
        """From a vector to unconstrained values by site."""
        draw = jax.eval_shape(self.draw, jax.random.key(0))
        return ravel_pytree(
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), draw)
        )[1]

    def draw(self, rng_key: jax.Array) -> dict[str, jax.Array]:
        """One draw of the prior, unconstrained."""
        return draw_prior(rng_key, self.model, self.args, self.kwargs)

    def parts(self, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log prior and log likelihood of a vector; -inf where they are no number."""
        values = self.unravel()(position)
        log_prior, log_likelihood = log_prior_and_likelihood(
            self.model, self.args, self.kwargs, values
        )
        return _below(log_prior), _below(log_likelihood)


def _below(value: jax.Array) -> jax.Array:
    """Minus infinity for what is no number."""
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


class _State(NamedTuple):
    """Particles at one temperature; a chain holds its ``num_moves`` last places."""

    position: jax.Array
    """Shape ``(num_islands, chains, num_moves, dim)``."""
    log_likelihood: jax.Array
    """Shape ``(num_islands, chains, num_moves)``."""
    temperature: jax.Array
    """A scalar."""
    step_size: jax.Array
    """Of the next temperature, a scalar."""


class _Step(NamedTuple):
    """What a temperature adds to the evidence of each island, and what it reports."""

    log_mean_weight: jax.Array
    """Less ``increment * top``, shape ``(num_islands,)``."""
    increment: jax.Array
    top: jax.Array
    accept_prob: jax.Array
    num_gradients: jax.Array
    """Of each chain."""


@compile_with_model
def _draw(run: _Run, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws of the prior and their log likelihoods, chunk by chunk."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        position = ravel_pytree(run.draw(key))[0]
        return position, run.parts(position)[1]

    return run.map(one, keys)


@compile_with_model
def _constrain(run: _Run, position: jax.Array) -> dict[str, jax.Array]:
    """Values of latent and deterministic sites, chunk by chunk."""

    def one(vector: jax.Array) -> dict[str, jax.Array]:
        values = run.unravel()(vector)
        return constrain_fn(
            run.model, run.args, run.kwargs, values, return_deterministic=True
        )

    return run.map(one, position)


def _effective_fraction(increment: jax.Array, centred: jax.Array) -> jax.Array:
    weights = jnp.exp(increment * centred)
    return jnp.square(weights.mean()) / jnp.square(weights).mean()


def _next_temperature(run: _Run, state: _State, centred: jax.Array) -> jax.Array:
    """Largest temperature that keeps the conditional effective sample size."""
    rest = 1 - state.temperature
    goal = run.ess_threshold * jnp.mean(jnp.isfinite(centred))

    def halve(_: ArrayLike, ends: tuple[jax.Array, jax.Array]) -> tuple:
        middle = sum(ends) / 2
        enough = _effective_fraction(jnp.exp(middle), centred) > goal
        return jnp.where(enough, middle, ends[0]), jnp.where(enough, ends[1], middle)

    high = jnp.log(rest)
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (high - _RANGE, high))
    last = _effective_fraction(rest, centred) >= goal
    return jnp.where(last, 1.0, state.temperature + jnp.exp(low))


@compile_with_model
def _advance(run: _Run, rng_key: jax.Array, state: _State) -> tuple[_State, _Step]:
    """To the next temperature: reweigh, resample within islands, move."""
    islands, chains, _, dim = state.position.shape
    resample_key, leap_key, move_key = jax.random.split(rng_key, 3)
    log_likelihood = run.whole(state.log_likelihood)
    top = log_likelihood.max()
    centred = log_likelihood - top
    temperature = _next_temperature(run, state, centred)
    # As it is after rounding: the weights and the moves must mean the same densities.
    increment = temperature - state.temperature
    weights = run.whole(jnp.exp(increment * centred).reshape(islands, -1))
    log_mean_weight = jnp.log(weights.mean(1))
    cumulative = jnp.cumsum(weights, 1)
    offset = jax.random.uniform(resample_key, (islands, 1))
    points = (jnp.arange(chains) + offset) / chains * cumulative[:, -1:]
    indices = jax.vmap(jnp.searchsorted)(cumulative, points)
    indices = jnp.minimum(indices, weights.shape[1] - 1)
    places = state.position.reshape(islands, -1, dim)
    start = jnp.take_along_axis(places, indices[..., None], 1).reshape(-1, dim)

    def density(position: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_prior, log_likelihood = run.parts(position)
        return log_prior + temperature * log_likelihood, log_likelihood

    with_gradient = jax.value_and_grad(density, has_aux=True)

    at_start = run.map(with_gradient, start)
    slopes = jnp.where(jnp.isfinite(at_start[1]), at_start[1], 0.0)

    # The distance over which the density varies: the root of a mean squared gradient
    # does not count the distance between modes, as a variance would. Each island's is
    # from the gradients of the others, so that its moves stay independent of it.
    squares = run.whole(jnp.square(slopes).reshape(islands, chains, dim).mean(1))
    others = (squares.sum(0) - squares) / (islands - 1)
    scale = jnp.repeat(jax.lax.rsqrt(others + 1e-12), chains, 0)
    # All chains make equally many steps of a move.
    lengths = 0.3 + 0.7 * jax.random.uniform(leap_key, (run.num_moves,))
    leaps = jnp.ceil(lengths * _LENGTH / state.step_size)
    leaps = jnp.clip(leaps, 1, _MAX_LEAPS).astype(int)
    low, high = np.log(run.step_jitter)

    def chain(arguments: tuple) -> tuple:
        key, scale, position, ((value, log_likelihood), slope) = arguments

        def move(carry: tuple, inputs: tuple) -> tuple:
            position, value, log_likelihood, slope = carry
            leaps, momentum, (jitter, threshold) = inputs
            size = state.step_size * jnp.exp(low + (high - low) * jitter)

            def leap(_: ArrayLike, inner: tuple) -> tuple:
                place, momentum, _, _, slope = inner
                momentum = momentum + size / 2 * scale * slope
                place = place + size * scale * momentum
                (value, log_likelihood), slope = with_gradient(place)
                momentum = momentum + size / 2 * scale * slope
                return place, momentum, value, log_likelihood, slope

            inner = (position, momentum, value, log_likelihood, slope)
            new = jax.lax.fori_loop(0, leaps, leap, inner)
            energies = jnp.sum(jnp.square(momentum)) - jnp.sum(jnp.square(new[1]))
            log_ratio = new[2] - value + energies / 2
            log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
            accept_prob = jnp.exp(jnp.minimum(log_ratio, 0.0))
            accepted = threshold < accept_prob
            kept = (new[0], *new[2:])
            carry = tuple(
                jnp.where(accepted, a, b) for a, b in zip(kept, carry, strict=True)
            )
            return carry, (carry[0], carry[2], accept_prob)

        # All random numbers at once: generators are slow on few numbers.
        momentum_key, uniform_key = jax.random.split(key)
        shape = (run.num_moves, dim)
        momenta = jax.random.normal(momentum_key, shape, position.dtype)
        uniforms = jax.random.uniform(uniform_key, (run.num_moves, 2))
        carry = (position, value, log_likelihood, slope)
        return jax.lax.scan(move, carry, (leaps, momenta, uniforms))[1]

    keys = jax.random.split(move_key, islands * chains)
    position, log_likelihood, accept_prob = run.map(
        chain, (keys, scale, start, at_start)
    )
    accept_prob = run.whole(accept_prob).mean()
    step_size = state.step_size * jnp.exp(2 * (accept_prob - _TARGET_ACCEPT_PROB))
    state = _State(
        position.reshape(islands, chains, run.num_moves, dim),
        log_likelihood.reshape(islands, chains, run.num_moves),
        temperature,
        jnp.clip(step_size, *_STEP_SIZES),
    )
    step = _Step(log_mean_weight, increment, top, accept_prob, leaps.sum() + 1)
    return state, step


class TemperedSMC:
    r"""Particles that are carried from the prior to the posterior, and the evidence.

    At temperatures :math:`0 = t_0 < t_1 < \dots < t_N = 1` the particles follow

    .. math:: p_k(z) \propto \pi(z) \, p(x \mid z)^{t_k}.

    A temperature is chosen so that the weights :math:`p(x \mid z)^{t_{k+1} - t_k}` keep
    a given share of their effective sample size. Chains are then started at particles
    drawn by these weights and moved by Hamiltonian Monte Carlo, and all their places
    are the next particles, none wasted. The product of the mean weights is an estimate
    of the evidence :math:`p(x)`. Particles are in islands that share temperatures, step
    size and scales and are otherwise independent, so that the differences between
    islands show the error.

    Well-separated modes keep their masses, as the particles are spread over them while
    they are still joined. No step size, ladder or scale has to be chosen.

    Parameters
    ----------
    model
        A NumPyro model with continuous latent sites whose prior can be drawn from. Its
        observed sites and factors are the likelihood, the rest is the prior.
    num_particles
        Number of particles at each temperature: ``num_islands`` times ``num_moves``
        times the number of chains of an island.
    num_islands
        Number of islands, at least 4; with fewer than 16 the error is known less well.
    num_moves
        Number of moves of a chain at each temperature; by default 4 with at most four
        latent numbers, and 8 with more.
    ess_threshold
        Share of the conditional effective sample size that a step to the next
        temperature keeps, within (0, 1).
    check
        Whether to run again with small and large steps, small increments of the
        temperature and eight times the moves, at some ten to thirty times the cost, and
        to warn if the two disagree. Islands may agree on what all of them miss: a
        funnel's neck or a narrow spike. The second run finds some of it.
    chunk_size
        How many chains, and draws of the prior, run through the model at once. Memory
        for what the model computes grows with it; the particles are all kept. Draws do
        not depend on it but by rounding.
    mesh
        Devices that share the islands, as ``jax.sharding.Mesh(jax.devices(),
        ("data",))``: each holds and moves its part of the particles. By default one
        does. Draws do not depend on it but by rounding.
    progress_bar
        Whether to show the temperature that was reached.

    Raises
    ------
    TypeError
        If ``model`` is not callable, a number is none, the key is none, or ``mesh`` is
        no mesh.
    ValueError
        If a number is out of its range, or devices cannot share islands equally. In
        :meth:`run`, if the model has discrete latent sites, no latent or no observed
        site, a subsampled plate, or a prior that cannot be drawn from (improper,
        scaled, masked or without a normalizer); if the likelihood is zero at all draws
        of the prior; if a checkpoint is of another run.

    Warns
    -----
    UserWarning
        If the log likelihood is so large that its rounding shows in the evidence; if
        few draws of the prior have a likelihood; if ``check`` finds a difference.

    Notes
    -----
    - The evidence is unbiased up to the adaptation, in its own value and not in its
      logarithm; its standard error is that between islands, widened for their number.
    - A second run on data of equal shapes compiles nothing.
    - **Cost**: about ``num_particles * 15`` gradients a temperature, and ten to thirty
      temperatures.

    References
    ----------
    Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers", *Journal of
    the Royal Statistical Society B* 68(3).
    Dau and Chopin (2022), "Waste-free sequential Monte Carlo", *Journal of the Royal
    Statistical Society B* 84(1).
    Zhou, Johansen and Aston (2016), "Toward automatic model comparison: an adaptive
    sequential Monte Carlo approach", *Journal of Computational and Graphical
    Statistics* 25(3), on the conditional effective sample size.

    Examples
    --------
    The sign of ``z`` is not known from its square:

    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro_kaem.infer import TemperedSMC
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.5, 1.5))
    ...     numpyro.sample("y", dist.Normal(z**2, 0.1), obs=y)
    >>> smc = TemperedSMC(model, progress_bar=False)
    >>> result = smc.run(jax.random.key(0), 2.0)
    >>> print(f"{result.log_evidence.value:.1f}")
    -2.1
    >>> draws = result.resample(jax.random.key(1), 1000)["z"]
    >>> bool(0.2 < (draws < 0).mean() < 0.4)
    True
    """

    def __init__(
        self,
        model: Callable,
        *,
        num_particles: int = 16_384,
        num_islands: int = 16,
        num_moves: int | None = None,
        ess_threshold: float = 0.7,
        check: bool = False,
        chunk_size: int = 2048,
        mesh: Mesh | None = None,
        progress_bar: bool = True,
    ):
        check_function("model", model, "a NumPyro model, a callable")
        self.model = model
        self.num_particles = as_count("num_particles", num_particles)
        self.num_islands = as_count("num_islands", num_islands, 4)
        if num_moves is not None:
            num_moves = as_count("num_moves", num_moves)
        self.num_moves = num_moves
        self.ess_threshold = as_number(
            "ess_threshold", ess_threshold, "within (0, 1)", lambda x: 0 < x < 1
        )
        self.check = as_flag("check", check)
        self.chunk_size = as_count("chunk_size", chunk_size)
        if not (mesh is None or isinstance(mesh, Mesh)):
            raise TypeError(f"mesh must be a jax.sharding.Mesh or None, got {mesh!r}.")
        if mesh is not None and self.num_islands % mesh.size:
            raise ValueError(
                "num_islands must be a multiple of the number of devices of mesh, "
                f"{mesh.size}, got {num_islands}."
            )
        self.mesh = mesh
        self.progress_bar = as_flag("progress_bar", progress_bar)
        block = self.num_islands * (self.num_moves or _NUM_MOVES)
        if self.num_particles % block or self.num_particles < 2 * block:
            raise ValueError(
                "num_particles must be a multiple, at least twice, of num_islands * "
                f"num_moves = {block}, got {num_particles}."
            )

    def __repr__(self) -> str:
        return (
            f"TemperedSMC(num_particles={self.num_particles}, "
            f"num_islands={self.num_islands}, num_moves={self.num_moves})"
        )

    def run(
        self,
        rng_key: jax.Array,
        *args: Any,
        checkpoint: str | Path | None = None,
        **kwargs: Any,
    ) -> "TemperedSMCResult":
        """Carry particles from the prior to the posterior.

        Parameters
        ----------
        rng_key
            Random key.
        *args, **kwargs
            Arguments of the model.
        checkpoint
            A file that is written after each temperature, and from which a run that
            was stopped goes on, with the same result.

        Returns
        -------
        TemperedSMCResult
            Particles, weights and evidence.

        Raises
        ------
        ValueError
            As the class says.
        """
        check_key(rng_key)
        trace = check_model(self.model, rng_key, args, kwargs)
        if not prior_is_exact(trace):
            raise ValueError(
                "model must have a prior that can be drawn from, none improper "
                "(ImproperUniform), scaled (handlers.scale), masked or without a "
                "normalizer (DeepEnergyPrior); use numpyro.infer.NUTS or "
                "AnnealedLangevin."
            )
        dim = sum(np.size(site["value"]) for site in latent_sites(trace).values())
        few = _FEW_MOVES if dim <= _FEW_DIMENSIONS else _NUM_MOVES
        num_moves = self.num_moves or few
        run_key, again_key = jax.random.split(rng_key)
        run = _Run(
            self.model,
            args,
            kwargs,
            self.num_islands,
            num_moves,
            self.ess_threshold,
            (0.8, 1.2),
            self.chunk_size,
            self.mesh,
        )
        path = None if checkpoint is None else Path(checkpoint)
        chains = self.num_particles // (self.num_islands * num_moves)
        state, log_evidence, history, values = self._run(run, chains, run_key, path)
        _warn_of_rounding(state)
        share = log_evidence - log_evidence.max()
        share = share - np.log(np.exp(share).sum())
        of_island = self.num_particles // self.num_islands
        table = np.array(history)
        result = TemperedSMCResult(
            _constrain(run, state.position.reshape(self.num_particles, -1)),
            np.repeat(share - np.log(of_island), of_island),
            np.array(values),
            log_evidence,
            np.concatenate([[0.0], table[:, 0]]),
            table[:, 2],
            int(table[:, 3].sum()) * self.num_particles // num_moves,
        )
        if not self.check:
            return result
        checked = run._replace(**_CHECK, num_moves=_CHECK_MOVES * num_moves)
        again = self._run(checked, chains, again_key, None)
        result = replace(result, check=_mean_evidence(again[1]))
        difference = why_runs_differ(result)
        if difference:
            warnings.warn(difference, UserWarning, stacklevel=2)
        return result

    def _run(
        self, run: _Run, chains: int, rng_key: jax.Array, path: Path | None
    ) -> tuple[_State, np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Last particles, evidence of islands, reports of steps, log likelihoods."""
        print_ = _fingerprint(run, chains, rng_key)
        saved = None if path is None else _read(path, print_)
        if saved is None:
            rng_key, start_key = jax.random.split(rng_key)
            state, log_evidence = _start(run, chains, start_key)
            history: list[np.ndarray] = []
            values = [np.asarray(state.log_likelihood).reshape(-1)]
        else:
            state, log_evidence, history, values, rng_key = saved
        with tqdm(total=1.0, disable=not self.progress_bar, bar_format=_BAR) as bar:
            _show(bar, state, history)
            while float(state.temperature) < 1:
                if len(history) >= _MAX_TEMPERATURES:
                    raise ValueError(
                        "model must reach its posterior within "
                        f"{_MAX_TEMPERATURES} temperatures, got to "
                        f"{float(state.temperature):.3g}: use more particles, or a "
                        "likelihood that varies less."
                    )
                rng_key, key = jax.random.split(rng_key)
                state, step = _advance(run, key, state)
                report = [np.asarray(part, np.float64) for part in step]
                log_mean, increment, top, accept_prob, num_gradients = report
                log_evidence = log_evidence + log_mean + increment * top
                row = [state.temperature, state.step_size, accept_prob, num_gradients]
                history.append(np.array(row, np.float64))
                values.append(np.asarray(state.log_likelihood).reshape(-1))
                if path is not None:
                    so_far = (state, log_evidence, history, values, rng_key)
                    _write(path, print_, *so_far)
                _show(bar, state, history)
        return state, log_evidence, history, values


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}]"


def _show(bar: tqdm, state: _State, history: list[np.ndarray]) -> None:
    bar.set_description("TemperedSMC", refresh=False)
    t = float(state.temperature)
    bar.n = t
    told = f"temperature {t:.2g} after {len(history)} steps"
    if history:
        told += f", acceptance {history[-1][2]:.2f}"
    bar.set_postfix_str(told, refresh=True)


def _start(run: _Run, chains: int, rng_key: jax.Array) -> tuple[_State, np.ndarray]:
    """Draws of the prior that have a likelihood, and the share of those that have."""
    islands, moves = run.num_islands, run.num_moves
    shape = (islands, chains * moves)
    total = islands * chains * moves
    position, log_likelihood = _draw(run, jax.random.split(rng_key, total))
    dim, dtype = position.shape[-1], position.dtype
    share = np.zeros(islands)
    if np.mean(np.isfinite(log_likelihood)) < 0.5:
        places: list[list[np.ndarray]] = [[] for _ in range(islands)]
        values: list[list[np.ndarray]] = [[] for _ in range(islands)]
        for batch in range(1, _MOST_PRIOR_BATCHES + 1):
            found = np.asarray(log_likelihood).reshape(shape)
            rows = np.asarray(position).reshape(*shape, dim)
            for k, alive in enumerate(np.isfinite(found)):
                places[k].append(rows[k][alive])
                values[k].append(found[k][alive])
            counts = np.array([sum(map(len, part)) for part in values])
            least = chains if batch < _PRIOR_BATCHES else min(chains, _FEW)
            if counts.min() >= least:
                break
            rng_key, key = jax.random.split(rng_key)
            position, log_likelihood = _draw(run, jax.random.split(key, total))
        if counts.min() == 0:
            raise ValueError(
                "model must have a likelihood above zero somewhere under its prior, "
                f"got none in {batch * total} draws in some islands: are the data "
                "within the support of the likelihood? A prior nearer to them helps."
            )
        share = np.log(counts / (batch * shape[1]))
        if counts.min() < chains:
            warnings.warn(
                f"model: only {counts.sum()} of {batch * total} draws of the prior "
                "have a likelihood above zero, which the first particles repeat. A "
                "prior nearer to the data makes the evidence more exact.",
                UserWarning,
                stacklevel=4,
            )
        # As many of each as fit; which is drawn once more is left to chance.
        order = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
        position = np.empty((*shape, dim), dtype)
        log_likelihood = np.empty(shape, values[0][0].dtype)
        for k in range(islands):
            chosen = order.permutation(np.resize(np.arange(counts[k]), shape[1]))
            position[k] = np.concatenate(places[k])[chosen]
            log_likelihood[k] = np.concatenate(values[k])[chosen]
    state = _State(
        jnp.asarray(position).reshape(islands, chains, moves, dim),
        jnp.asarray(log_likelihood).reshape(islands, chains, moves),
        jnp.zeros((), dtype),
        jnp.asarray(1.2 * dim**-0.25, dtype),
    )
    return state, share


def _warn_of_rounding(state: _State) -> None:
    values = np.asarray(state.log_likelihood)
    spacing = float(np.spacing(np.abs(values).max()))
    if spacing > _COARSE:
        warnings.warn(
            f"model: log likelihoods of size {np.abs(values).max():.3g} have a spacing "
            f"of {spacing:.2g} in {values.dtype}, so that the evidence and the draws "
            "are rounded; call numpyro.enable_x64() first, or leave constant terms out "
            "of the likelihood.",
            UserWarning,
            stacklevel=3,
        )


# --- the checkpoint ------------------------------------------------------------------


def _fingerprint(run: _Run, chains: int, rng_key: jax.Array) -> str:
    """Of the arguments' values, the key and the options; not of the model's code."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((run.args, run.kwargs)):
        value = np.asarray(leaf) if hasattr(leaf, "dtype") else repr(leaf)
        digest.update(f"{getattr(value, 'dtype', '')}{np.shape(value)}".encode())
        digest.update(value.encode() if isinstance(value, str) else value.tobytes())
    options = (*run[3:7], chains, np.asarray(jax.random.key_data(rng_key)).tolist())
    digest.update(repr(options).encode())
    return digest.hexdigest()


def _write(
    path: Path,
    print_: str,
    state: _State,
    log_evidence: np.ndarray,
    history: list[np.ndarray],
    values: list[np.ndarray],
    rng_key: jax.Array,
) -> None:
    arrays = {name: np.asarray(value) for name, value in state._asdict().items()}
    arrays["log_evidence"] = log_evidence
    arrays["history"], arrays["values"] = np.array(history), np.array(values)
    arrays["rng_key"] = np.asarray(jax.random.key_data(rng_key))
    write_arrays(path, {"tempered_smc": print_}, arrays)


def _read(path: Path, print_: str) -> tuple | None:
    if not path.exists():
        return None
    header, arrays = read_arrays(path)
    if header.get("tempered_smc") != print_:
        raise ValueError(
            f"checkpoint {path} must be of this run, got one with other data, another "
            "key or other options: remove it, or give another path."
        )
    rng_key = jax.random.wrap_key_data(jnp.asarray(arrays.pop("rng_key")))
    history, values = list(arrays.pop("history")), list(arrays.pop("values"))
    log_evidence = arrays.pop("log_evidence")
    state = _State(**{name: jnp.asarray(value) for name, value in arrays.items()})
    return state, log_evidence, history, values, rng_key


# --- the result ----------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class TemperedSMCResult:
    """Weighted draws of the posterior, and the evidence; by :meth:`TemperedSMC.run`.

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro_kaem.infer import TemperedSMC
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> smc = TemperedSMC(model, num_particles=2048, progress_bar=False)
    >>> result = smc.run(jax.random.key(0), 1.5)
    >>> result.samples["z"].shape, result.log_weights.shape
    ((2048,), (2048,))
    >>> bool(abs(result.log_evidence.value + 1.828) < 0.1)
    True
    """

    samples: dict[str, jax.Array]
    """Values of latent and deterministic sites, each ``(num_particles, *site)``."""
    log_weights: np.ndarray
    """Log weights that sum to one, float64, shape ``(num_particles,)``: equal within an
    island, and between islands in proportion to their evidence."""
    log_likelihood: np.ndarray
    """At each temperature, shape ``(num_temperatures, num_particles)``, islands after
    one another. Where few draws of the prior have a likelihood, the first are those."""
    island_log_evidence: np.ndarray
    """Shape ``(num_islands,)``."""
    temperatures: np.ndarray
    """From 0 to 1, shape ``(num_temperatures,)``."""
    accept_prob: np.ndarray
    """Mean acceptance at each temperature above 0."""
    num_gradients: int
    """Evaluations of the model with its gradient, over all particles."""
    check: Estimate | None = None
    """Log evidence of the second run, where it was asked for."""

    @property
    def num_particles(self) -> int:
        """Number of particles."""
        return len(self.log_weights)

    @cached_property
    def log_evidence(self) -> Estimate:
        r"""Log evidence :math:`\log p(x)` and its standard error.

        The error is that between islands, times the standard deviation of Student's t
        with one degree of freedom less than islands.
        """
        return _mean_evidence(self.island_log_evidence)

    @cached_property
    def ess(self) -> float:
        r"""Effective sample size :math:`1 / \sum_s w_s^2` of the weights.

        Particles of one chain depend on each other, which it does not count.
        """
        return float(1 / np.sum(np.exp(2 * self.log_weights)))

    def effective_sizes(self, values: ArrayLike) -> np.ndarray:
        r"""Numbers of independent draws that would know means as well.

        The variance over the squared error of the mean, which the differences between
        islands show: with 16 islands it is known to some 40 %.

        Parameters
        ----------
        values
            Of each particle, shape ``(num_particles, n)``.

        Returns
        -------
        numpy.ndarray
            Shape ``(n,)``, between 1 and ``num_particles``; this for what is constant.
            1 for what is not a number, and if one island has nearly all of the weight.
        """
        values = np.asarray(values, np.float64)
        weights, count = np.exp(self.log_weights), len(self.island_log_evidence)
        centred = values - weights @ values
        share = weights.reshape(count, -1, 1).sum(1)
        if np.sum(share**2) > _MOST_WEIGHT:
            # With no other to compare with, nothing is known of its error.
            return np.ones(values.shape[1])
        of_island = share * centred.reshape(count, -1, values.shape[1]).mean(1)
        squared_error = count / (count - 1) * np.sum(of_island**2, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = weights @ centred**2 / squared_error
        # Exactly: what is left by rounding looks like a difference between islands.
        constant = np.ptp(values, axis=0) == 0
        sizes = np.where(constant, np.inf, np.nan_to_num(sizes, nan=1.0))
        return np.clip(sizes, 1, self.num_particles)

    def resample(
        self, rng_key: jax.Array, num_samples: int | None = None
    ) -> dict[str, jax.Array]:
        """Equally weighted draws of the posterior, in random order.

        Parameters
        ----------
        rng_key
            Random key.
        num_samples
            How many; by default as many as there are particles.

        Returns
        -------
        dict
            Values of the sites, each of shape ``(num_samples, *site)``.

        Raises
        ------
        ValueError
            If ``num_samples`` is below 1.
        """
        indices = self._indices(rng_key, num_samples)
        return {name: value[indices] for name, value in self.samples.items()}

    def _indices(self, rng_key: jax.Array, num_samples: int | None) -> jax.Array:
        count = self.num_particles if num_samples is None else num_samples
        count = as_count("num_samples", count)
        # Mixed first: systematic draws of few would take the same place in each chain.
        mix_key, choose_key, order_key = jax.random.split(rng_key, 3)
        mixed = jax.random.permutation(mix_key, self.num_particles)
        weights = jnp.asarray(self.log_weights)[mixed]
        chosen = resample_indices(choose_key, weights, count, method="systematic")
        return jax.random.permutation(order_key, mixed[chosen])

    def __repr__(self) -> str:
        value, error = self.log_evidence
        return (
            f"TemperedSMCResult(num_particles={self.num_particles}, "
            f"num_temperatures={len(self.temperatures)}, "
            f"log_evidence={value:.3f} ± {error:.3f}, ess={self.ess:.0f})"
        )


def _mean_evidence(log_evidence: np.ndarray) -> Estimate:
    """Logarithm of the mean over islands, and its error."""
    top, count = log_evidence.max(), len(log_evidence)
    evidence = np.exp(log_evidence - top)
    error = evidence.std(ddof=1) / evidence.mean() / np.sqrt(count)
    widened = error * student_scale(count)
    return Estimate(float(top + np.log(evidence.mean())), float(widened))


def student_scale(count: int) -> float:
    """Give the standard deviation of Student's t that a mean over islands follows."""
    return ((count - 1) / (count - 3)) ** 0.5


def why_runs_differ(result: TemperedSMCResult) -> str:
    """Say that the second run disagrees with the first, and the remedy; else empty."""
    first, second = result.log_evidence, result.check
    if second is None:
        return ""
    error = np.hypot(first.standard_error, second.standard_error)
    if abs(second.value - first.value) <= _MAX_DISAGREEMENT * error:
        return ""
    return (
        f"log_evidence is {first.value:.2f} ± {first.standard_error:.2f}, and "
        f"{second.value:.2f} ± {second.standard_error:.2f} with small and large steps: "
        "the particles miss a part of the posterior, such as a funnel's neck or a "
        "narrow mode. Reparameterise the model, for instance with "
        "numpyro.infer.reparam.LocScaleReparam, or raise num_particles and num_moves."
    )
