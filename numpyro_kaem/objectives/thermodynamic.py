"""Maximum likelihood with annealed populations of each unit's latent values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem._checks import as_count, check_function
from numpyro_kaem.infer.ladder import (
    even_odd_permutation,
    power_ladder,
    swap_probabilities,
)
from numpyro_kaem.infer.langevin import Chains, advance
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.objectives.base import ChainsObjective, Memory, mean_score

__all__ = ["ThermodynamicMLE"]

# Weight of one step in the running mean of the rejection of the swaps.
_REJECTION_GAIN = 0.02


class _Sweeps(NamedTuple):
    """Result of the sweeps of a step.

    ``at_posterior`` are positions at ``t = 1``, ``(num_sweeps, num_units, dim)``;
    ``rejection`` is that of the swaps of each pair, ``acceptance`` of the local moves.
    """

    chains: Chains  # Shape (num_temperatures, num_units, dim).
    at_posterior: jax.Array
    log_likelihood: jax.Array  # Shape (num_sweeps, num_temperatures, num_units).
    rejection: jax.Array
    acceptance: jax.Array


class ThermodynamicMLE(ChainsObjective):
    r"""Maximum likelihood with a population between prior and posterior for each unit.

    The replica of a unit at temperature :math:`t_k` of a ladder
    :math:`0 = t_0 < \dots < t_N = 1` follows
    :math:`p_k(z) \propto \pi(z)\,p(x \mid z)^{t_k}`. A sweep draws the prior anew at
    :math:`t_0`, makes Langevin steps at the other temperatures, and swaps neighbours,
    in each unit by its own decision. The value is the steppingstone estimate of the
    log likelihood,

    .. math::

        \log p(x) =
        \sum_k \log \mathrm{E}_{t_k}\bigl[p(x \mid z)^{t_{k+1} - t_k}\bigr],

    and the gradient is that of
    :math:`\mathrm{E}_{t = 1}[\log \pi(z) + \log p(x \mid z)]` at draws held fixed. The
    derivative of the sum at fixed draws would be wrong.

    Parameters
    ----------
    num_temperatures
        Number of temperatures :math:`N + 1`, at least 2.
    num_sweeps
        Sweeps per step of training; the gradient is the mean over their draws.
    num_local_steps
        Langevin steps per sweep at each temperature.
    unit_plate
        Name of the plate that makes units independent; it may subsample.
    persistent
        Whether each unit keeps its population from one step of training to the next;
        memory is ``num_data * num_temperatures * (dim + 2)`` numbers. If not, all
        replicas start at draws of the prior.
    power
        Exponent :math:`p` of the ladder :math:`t_k = (k / N)^p`, or a function from the
        number of the step to it, such as
        :func:`~numpyro_kaem.cyclical_schedule`.
    local_move, step_size
        As for :class:`LangevinMLE`, at each temperature of each unit.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range, or ``local_move`` is neither; in use, as
        :class:`LangevinMLE`.

    Notes
    -----
    - **Value**: with one sweep it is a left Riemann sum, below the log likelihood in
      the mean; it is exact in the limit of many sweeps.
    - **Cost** of a step:
      ``num_units * num_temperatures * num_sweeps * (num_local_steps + 2)`` densities
      with gradients.
    - **Memory** of :meth:`guide`: ``"position"``, ``"log_step_size"`` and
      ``"num_steps"`` of the replicas, the ladder ``"temperatures"``, the mean
      ``"rejection"`` of the swaps, the ``"acceptance"`` of the local moves, and the
      number of the ``"step"``.

    References
    ----------
    Xie, Lewis, Fan, Kuo and Chen (2011), "Improving marginal likelihood estimation for
    Bayesian phylogenetic model selection", *Systematic Biology* 60(2).
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import SVI
    >>> from numpyro_kaem.objectives import ThermodynamicMLE
    >>> def model(x):
    ...     loc = numpyro.param("loc", 0.0)
    ...     with numpyro.plate("data", len(x)):
    ...         z = numpyro.sample("z", dist.Normal(loc, 1.0))
    ...         numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
    >>> objective = ThermodynamicMLE(num_temperatures=4, num_sweeps=10)
    >>> optimizer = numpyro.optim.Adam(0.1)
    >>> svi = SVI(model, objective.guide(model), optimizer, loss=objective)
    >>> x = jnp.array([0.5, 1.0, 2.5, 2.0])
    >>> result = svi.run(jax.random.key(0), 200, x, progress_bar=False)
    >>> bool(abs(result.params["loc"] - 1.5) < 0.3)
    True
    """

    def __init__(
        self,
        num_temperatures: int = 8,
        *,
        num_sweeps: int = 4,
        num_local_steps: int = 4,
        unit_plate: str = "data",
        persistent: bool = True,
        power: float | Callable[[jax.Array], jax.Array] = 3.0,
        local_move: str = "mala",
        step_size: float = 0.1,
    ) -> None:
        super().__init__(unit_plate, persistent, local_move, step_size)
        # Of a schedule the ladder only checks the number of temperatures.
        self.power = None
        if callable(power):
            check_function("power", power, "a number or a schedule")
            self.power, power = power, 1.0
        self._ladder = tuple(power_ladder(num_temperatures, power).tolist())
        self.num_temperatures = len(self._ladder)
        self.num_sweeps = as_count("num_sweeps", num_sweeps)
        self.num_local_steps = as_count("num_local_steps", num_local_steps)

    def start(self, rng_key: jax.Array, unit_model: UnitModel) -> Memory:
        """Start every unit's population at draws of the prior."""
        memory = {
            "acceptance": jnp.zeros(()),
            "rejection": jnp.full(self.num_temperatures - 1, 0.5),
            "step": jnp.array(0),
            "temperatures": jnp.array(self._ladder),
        }
        if self.persistent:
            shape = (unit_model.num_data, self.num_temperatures)
            memory.update(self._new_chains(rng_key, unit_model, shape)._asdict())
        return memory

    def _temperatures(self, memory: Memory | None) -> jax.Array:
        """Ladder of this step."""
        if self.power is None:
            return jnp.array(self._ladder)
        power = self.power(self._kept(memory)["step"])
        return jnp.linspace(0.0, 1.0, self.num_temperatures) ** power

    def estimate(
        self,
        rng_key: jax.Array,
        unit_model: UnitModel,
        params: dict[str, Any],
        memory: Memory | None,
    ) -> tuple[jax.Array, jax.Array, Memory | None]:
        """Sweep the populations of the batch; the score is that at ``t = 1``."""
        key_start, key_sweeps = jax.random.split(rng_key)
        temperatures = self._temperatures(memory)
        chains = self._chains(key_start, unit_model, memory, self.num_temperatures)
        chains = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), chains)
        done = self._sweep(key_sweeps, unit_model, temperatures, chains)
        if memory is not None:
            memory = self._remember(memory, unit_model, temperatures, done)
        surrogate = mean_score(unit_model, done.at_posterior, params, axis=0)
        value = _steppingstone(temperatures, done.log_likelihood)
        return jnp.mean(value), surrogate, memory

    def _remember(
        self,
        memory: Memory,
        unit_model: UnitModel,
        temperatures: jax.Array,
        done: _Sweeps,
    ) -> Memory:
        step = memory["step"] + 1
        rejection = memory["rejection"]
        rejection = rejection + _REJECTION_GAIN * (done.rejection - rejection)
        memory = {**memory, "acceptance": done.acceptance, "step": step}
        memory.update(rejection=rejection, temperatures=temperatures)
        chains = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), done.chains)
        return self._keep(memory, unit_model, chains)

    def _sweep(
        self,
        rng_key: jax.Array,
        unit_model: UnitModel,
        temperatures: jax.Array,
        chains: Chains,
    ) -> _Sweeps:
        densities = jax.vmap(unit_model.log_densities)
        warm = temperatures[1:, None]

        def tempered(position: jax.Array) -> jax.Array:
            log_prior, log_likelihood = densities(position)
            return log_prior + warm * log_likelihood

        def sweep(
            carry: tuple[Chains, jax.Array], key: jax.Array
        ) -> tuple[tuple[Chains, jax.Array], tuple]:
            chains, parity = carry
            key_prior, key_move, key_swap = jax.random.split(key, 3)
            drawn = unit_model.unconstrain(unit_model.draw_prior(key_prior))
            others = jax.tree.map(lambda x: x[1:], chains)
            others, acceptance = advance(
                key_move, tempered, others, self.num_local_steps, self.local_move
            )
            position = jnp.concatenate([drawn[None], others.position])
            log_likelihood = densities(position)[1]
            log_likelihood = jnp.where(
                jnp.isnan(log_likelihood), -jnp.inf, log_likelihood
            )
            probabilities = jax.vmap(swap_probabilities, (None, 1), 1)(
                temperatures, log_likelihood
            )
            keys = jax.random.split(key_swap, unit_model.num_units)
            permutation = jax.vmap(even_odd_permutation, (0, None, 1), 1)(
                keys, parity, probabilities
            )
            position = jnp.take_along_axis(position, permutation[..., None], axis=0)
            log_likelihood = jnp.take_along_axis(log_likelihood, permutation, axis=0)
            # Step sizes belong to the temperatures, and stay.
            first = jax.tree.map(lambda x: x[:1], chains)
            moved = jax.tree.map(lambda *x: jnp.concatenate(x), first, others)
            found = (
                position[-1],
                log_likelihood,
                1 - probabilities.mean(1),
                acceptance.mean(),
            )
            return (moved._replace(position=position), parity + 1), found

        key_parity, key_sweeps = jax.random.split(rng_key)
        # Odd or even first, so that both kinds of pairs get their turn over the steps.
        parity = jax.random.randint(key_parity, (), 0, 2)
        keys = jax.random.split(key_sweeps, self.num_sweeps)
        (chains, _), found = jax.lax.scan(sweep, (chains, parity), keys)
        at_posterior, log_likelihood, rejection, acceptance = found
        return _Sweeps(
            chains, at_posterior, log_likelihood, rejection.mean(0), acceptance.mean()
        )


def _steppingstone(temperatures: jax.Array, log_likelihood: jax.Array) -> jax.Array:
    """Log likelihood of each unit; that of ``(num_sweeps, ...)`` along the ladder."""
    num_sweeps = log_likelihood.shape[0]
    weights = jnp.diff(temperatures)[:, None] * log_likelihood[:, :-1]
    return jnp.sum(jax.nn.logsumexp(weights, axis=0) - np.log(num_sweeps), axis=0)
