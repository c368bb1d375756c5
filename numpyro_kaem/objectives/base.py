"""What the maximum-likelihood objectives share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.infer.elbo import ELBO
from numpyro.primitives import mutable

from numpyro_kaem._checks import as_flag, as_name, as_positive, check_name
from numpyro_kaem.infer.langevin import STEPS, Chains
from numpyro_kaem.infer.target import unnormalised_part
from numpyro_kaem.infer.units import UnitModel

__all__ = ["ChainsObjective", "MaximumLikelihood", "Memory", "along", "mean_score"]

Memory = dict[str, jax.Array]

_LOCAL_MOVES = {name: STEPS[name] for name in ("mala", "ula")}


class MaximumLikelihood(ELBO):
    r"""Base of the objectives that climb the marginal likelihood of independent units.

    By Fisher's identity,

    .. math::

        \nabla \log p(x) = \mathrm{E}_{p(z \mid x)}[
            \nabla \log \pi(z) + \nabla \log p(x \mid z)].

    A subclass supplies draws of the posterior for given parameters, in
    :meth:`estimate`, and, if it keeps something from step to step, :meth:`start`.
    Draws and weights are held fixed when the gradient is taken: draws of a KAEM prior
    are reparameterised, and following them would be silently wrong.
    """

    memory_name = "objective$memory"

    def __init__(self, unit_plate: str = "data") -> None:
        check_name("unit_plate", unit_plate, "the name of a plate")
        super().__init__()
        self.unit_plate = unit_plate

    def start(self, rng_key: jax.Array, unit_model: UnitModel) -> Memory:
        """Make what is kept from step to step."""
        raise NotImplementedError

    def estimate(
        self,
        rng_key: jax.Array,
        unit_model: UnitModel,
        params: dict[str, Any],
        memory: Memory | None,
    ) -> tuple[jax.Array, jax.Array, Memory | None]:
        """Estimate the mean log likelihood of a unit.

        The parameters in ``unit_model`` carry no gradient, ``params`` do. Returns the
        value that is reported, a scalar whose gradient in ``params`` is the estimate's,
        and the memory for the next step.
        """
        raise NotImplementedError

    def guide(self, model: Callable) -> Callable:
        """Guide for ``SVI`` that keeps the objective's memory as mutable state."""

        def guide(*args: Any, **kwargs: Any) -> None:
            key_model, key_start = jax.random.split(numpyro.prng_key())
            with handlers.block():
                unit_model = UnitModel(
                    key_model, {}, model, args, kwargs, self.unit_plate
                )
                memory = self.start(key_start, unit_model)
            mutable(self.memory_name, memory)

        return guide

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable | None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Loss for ``SVI``: minus the estimated log likelihood of all units."""
        params = dict(param_map)
        memory = params.pop(self.memory_name, None)
        key_model, key_draws, key_contrast = jax.random.split(rng_key, 3)
        fixed = jax.lax.stop_gradient(params)
        unit_model = UnitModel(key_model, fixed, model, args, kwargs, self.unit_plate)
        value, surrogate, memory = self.estimate(key_draws, unit_model, params, memory)
        if unit_model.unnormalised:
            # The gradient of log normalizing constants that the priors do not know.
            trace = unit_model.trace_at({}, params)
            contrast = jnp.zeros(())
            for name in unit_model.unnormalised:
                prior: Any = unnormalised_part(trace[name]["fn"])
                contrast = contrast + prior.contrast(key_contrast, unit_model.num_units)
            surrogate = surrogate - contrast
        # The value of one, the gradient of the other.
        stop = jax.lax.stop_gradient
        loss = -unit_model.num_data * (stop(value) + surrogate - stop(surrogate))
        kept = None if memory is None else {self.memory_name: stop(memory)}
        return {"loss": loss, "mutable_state": kept}


class ChainsObjective(MaximumLikelihood):
    """Base of the objectives with Langevin chains, of which each unit has several.

    Chains persist in the memory, or start at draws of the prior in every step.
    """

    def __init__(
        self, unit_plate: str, persistent: bool, local_move: str, step_size: float
    ) -> None:
        super().__init__(unit_plate)
        self.persistent = as_flag("persistent", persistent)
        self.local_move = as_name("local_move", local_move, _LOCAL_MOVES)
        self.step_size = as_positive("step_size", step_size)

    def _new_chains(
        self, rng_key: jax.Array, unit_model: UnitModel, shape: tuple[int, int]
    ) -> Chains:
        """Chains of units, ``(num_units, num_chains, dim)``, at draws of the prior."""
        position = unit_model.prior_positions(rng_key, shape)
        return Chains.start(position, self.step_size)

    def _chains(
        self,
        rng_key: jax.Array,
        unit_model: UnitModel,
        memory: Memory | None,
        num_chains: int,
    ) -> Chains:
        """Chains of the batch to go on with."""
        if not self.persistent:
            shape = (unit_model.num_units, num_chains)
            return self._new_chains(rng_key, unit_model, shape)
        kept = self._kept(memory)
        return Chains(*(kept[name][unit_model.index] for name in Chains._fields))

    def _keep(self, memory: Memory, unit_model: UnitModel, chains: Chains) -> Memory:
        """Memory with the chains of the batch, if they persist."""
        if not self.persistent:
            return memory
        kept = {
            name: memory[name].at[unit_model.index].set(values)
            for name, values in chains._asdict().items()
        }
        return {**memory, **kept}

    def _kept(self, memory: Memory | None) -> Memory:
        """Memory, which must be there."""
        if memory is None:
            raise ValueError(
                f"guide must be that of {type(self).__name__}.guide(model), which "
                "keeps the chains from step to step; for chains that start anew use "
                "persistent=False."
            )
        return memory


def mean_score(
    unit_model: UnitModel, position: jax.Array, params: dict[str, Any], axis: int
) -> jax.Array:
    """Mean log prior plus log likelihood at positions held fixed, over an axis too."""
    position = jax.lax.stop_gradient(position)

    def score(position: jax.Array) -> jax.Array:
        values, _ = unit_model.constrain(position)
        fixed = jax.lax.stop_gradient(values)
        log_prior, log_likelihood = unit_model.log_densities_of(fixed, params)
        return log_prior + log_likelihood

    return jnp.mean(along(axis, score)(position))


def along(axis: int, function: Callable) -> Callable:
    """Map an axis, without ``jax.vmap`` where it has one entry.

    There the axis would keep XLA from fusing, which takes more memory and time.
    """

    def run(x: jax.Array) -> Any:
        if x.shape[axis] != 1:
            return jax.vmap(function, axis, axis)(x)
        expand = partial(jnp.expand_dims, axis=axis)
        return jax.tree.map(expand, function(jnp.squeeze(x, axis)))

    return run
