"""Maximum likelihood with Langevin draws of the posterior."""

from typing import Any

import jax
import jax.numpy as jnp

from numpyro_kaem._checks import as_count
from numpyro_kaem.infer.langevin import advance
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.objectives.base import ChainsObjective, Memory, along, mean_score

__all__ = ["LangevinMLE"]


class LangevinMLE(ChainsObjective):
    r"""Maximum likelihood with draws of each unit's posterior by Langevin chains.

    .. math::

        \nabla \log p(x) \approx \frac{1}{C} \sum_c
        \nabla [\log \pi(z_c) + \log p(x \mid z_c)], \qquad z_c \sim p(z \mid x).

    It is a NumPyro ``ELBO``, to be used in ``SVI`` as below.

    Parameters
    ----------
    num_steps
        Langevin steps of each chain per step of training.
    unit_plate
        Name of the plate that makes units independent; it may subsample.
    persistent
        Whether each unit keeps its chains from one step of training to the next. They
        are then near its posterior, which changes slowly, and few steps are enough;
        memory is ``num_data * num_chains * (dim + 2)`` numbers. If not, chains start at
        draws of the prior every time, and need many steps.
    num_chains
        Number of chains per unit.
    local_move
        ``"mala"``, whose step size follows each chain's acceptance (0.6), or ``"ula"``,
        uncorrected and with a fixed step size, as in published work: biased.
    step_size
        Step size to start from, in unconstrained units.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range or ``local_move`` is neither of these; in use,
        if the model has latent or observed sites outside the plate, or none, or if
        chains are to persist and the guide is not that of :meth:`guide`.

    Notes
    -----
    - **Value** of the loss: minus the mean of :math:`\log \pi(z) + \log p(x \mid z)`
      over the chains, for all units. It falls in training but is not the likelihood,
      which :func:`~numpyro_kaem.infer.held_out_log_likelihood` estimates.
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
        super().__init__(unit_plate, persistent, local_move, step_size)
        self.num_steps = as_count("num_steps", num_steps)
        self.num_chains = as_count("num_chains", num_chains)

    def start(self, rng_key: jax.Array, unit_model: UnitModel) -> Memory:
        """Start every unit's chains at draws of the prior."""
        memory = {"acceptance": jnp.zeros(())}
        if self.persistent:
            shape = (unit_model.num_data, self.num_chains)
            memory.update(self._new_chains(rng_key, unit_model, shape)._asdict())
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
        chains = self._chains(key_start, unit_model, memory, self.num_chains)

        def log_density(position: jax.Array) -> jax.Array:
            log_prior, log_likelihood = along(1, unit_model.log_densities)(position)
            return log_prior + log_likelihood

        chains, acceptance = advance(
            key_steps, log_density, chains, self.num_steps, self.local_move
        )
        if memory is not None:
            memory = self._keep(memory, unit_model, chains)
            memory = {**memory, "acceptance": acceptance.mean()}
        surrogate = mean_score(unit_model, chains.position, params, axis=1)
        return surrogate, surrogate, memory
