"""Maximum likelihood with Langevin draws of the posterior."""

from typing import Any

import jax
import jax.numpy as jnp

from numpyro_kaem._checks import as_flag, as_number
from numpyro_kaem.infer.langevin import Chains, advance, check_move
from numpyro_kaem.infer.resampling import check_count
from numpyro_kaem.infer.units import UnitModel, prior_positions
from numpyro_kaem.objectives.base import MaximumLikelihood, Memory, complete_data

__all__ = [
    "LangevinMLE",
]


class LangevinMLE(MaximumLikelihood):
    r"""Maximum likelihood with draws of each unit's posterior by Langevin chains.

    .. math::

        \nabla \log p(x) \approx \frac{1}{C} \sum_c
        \nabla [\log \pi(z_c) + \log p(x \mid z_c)], \qquad z_c \sim p(z \mid x).

    It is a NumPyro ``ELBO``: ``SVI(model, objective.guide(model), optimizer,
    loss=objective)``.

    Parameters
    ----------
    num_steps
        Langevin steps of each chain in a step of training.
    unit_plate
        Name of the plate that makes units independent; it may subsample.
    persistent
        Whether each unit keeps its chains from one step of training to the next. They
        are then near its posterior, which changes slowly, and few steps do; memory is
        ``num_data * num_chains * (dim + 2)`` numbers. If not, chains start at draws of
        the prior every time, and need many steps.
    num_chains
        Chains of each unit.
    local_move
        ``"mala"``, whose step size follows each chain's acceptance (0.6), or ``"ula"``,
        uncorrected and with a fixed step size, as in published work: biased.
    step_size
        Step size to start from, in unconstrained units.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range or ``local_move`` is neither; in use, if the
        model has latent or observed sites outside the plate, or none, or if chains are
        to persist and the guide is not that of :meth:`guide`.

    Notes
    -----
    - **Value** of the loss: minus the mean of :math:`\log \pi(z) + \log p(x \mid z)`
      over the chains, all units counted. It falls in training but is not the
      likelihood; that is what an annealed run or importance sampling with a guide say.
    - **Bias**: that of chains that have not converged.
    - **Memory** of :meth:`guide`: ``"position"``, ``"log_step_size"`` and
      ``"num_steps"`` of the chains, and the mean ``"acceptance"`` of the last step.

    References
    ----------
    Younes (1999), "On the convergence of Markovian stochastic algorithms with rapidly
    decreasing ergodicity rates", *Stochastics* 65(3-4).
    Nijkamp, Hill, Zhu and Wu (2019), "Learning non-convergent non-persistent short-run
    MCMC toward energy-based model", *NeurIPS*.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import SVI
    >>> from numpyro_kaem.objectives import LangevinMLE
    >>> def model(x):
    ...     loc = numpyro.param("loc", 0.0)
    ...     with numpyro.plate("data", len(x)):
    ...         z = numpyro.sample("z", dist.Normal(loc, 1.0))
    ...         numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
    >>> objective = LangevinMLE(num_steps=5, num_chains=20)
    >>> optimizer = numpyro.optim.Adam(0.1)
    >>> svi = SVI(model, objective.guide(model), optimizer, loss=objective)
    >>> x = jnp.array([0.5, 1.0, 2.5, 2.0])
    >>> result = svi.run(jax.random.key(0), 200, x, progress_bar=False)
    >>> bool(abs(result.params["loc"] - 1.5) < 0.3)
    True
    """

    def __init__(
        self,
        num_steps: int = 20,
        *,
        unit_plate: str = "data",
        persistent: bool = True,
        num_chains: int = 1,
        local_move: str = "mala",
        step_size: float = 0.1,
    ) -> None:
        super().__init__(unit_plate)
        self.num_steps = check_count("num_steps", num_steps)
        self.num_chains = check_count("num_chains", num_chains)
        self.persistent = as_flag("persistent", persistent)
        self.local_move = check_move(local_move)
        self.step_size = check_step_size(step_size)

    def start(self, rng_key: jax.Array, unit_model: UnitModel) -> Memory:
        """Start every unit's chains at draws of the prior."""
        memory = {"acceptance": jnp.zeros(())}
        if self.persistent:
            shape = (unit_model.num_data, self.num_chains)
            position = prior_positions(rng_key, unit_model, shape)
            memory.update(Chains.start(position, self.step_size)._asdict())
        return memory

    def estimate(
        self,
        rng_key: jax.Array,
        unit_model: UnitModel,
        params: dict[str, Any],
        memory: Memory | None,
    ) -> tuple[jax.Array, jax.Array, Memory | None]:
        """Advance the chains of the batch, and take the score where they end."""
        key_start, key_steps = jax.random.split(rng_key)
        if self.persistent:
            check_memory(memory, type(self).__name__)
            chains = Chains(*(memory[n][unit_model.index] for n in Chains._fields))
        else:
            shape = (unit_model.num_units, self.num_chains)
            position = prior_positions(key_start, unit_model, shape)
            chains = Chains.start(position, self.step_size)

        def log_density(position: jax.Array) -> jax.Array:
            return sum(jax.vmap(unit_model.log_densities, 1, 1)(position))

        chains, acceptance = advance(
            key_steps, log_density, chains, self.num_steps, self.local_move
        )
        if memory is not None:
            memory = {**memory, "acceptance": acceptance.mean()}
            for name, values in chains._asdict().items() if self.persistent else ():
                memory[name] = memory[name].at[unit_model.index].set(values)

        position = jax.lax.stop_gradient(chains.position)

        def score(position: jax.Array) -> jax.Array:
            values, _ = unit_model.constrain(position)
            return complete_data(unit_model, jax.lax.stop_gradient(values), params)

        surrogate = jnp.mean(jax.vmap(score, 1)(position))
        return surrogate, surrogate, memory


def check_memory(memory: Memory | None, name: str) -> None:
    """Check that the objective has its memory.

    Raises
    ------
    ValueError
        If not.
    """
    if memory is None:
        raise ValueError(
            f"guide must be that of {name}.guide(model), which keeps the chains from "
            "step to step; for chains that start anew use persistent=False."
        )


def check_step_size(step_size: float) -> float:
    """Step size, a positive finite number.

    Raises
    ------
    ValueError
        If it is not.
    """
    return as_number("step_size", step_size, "a finite number > 0", lambda x: x > 0)
