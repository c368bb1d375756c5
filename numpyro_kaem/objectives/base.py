"""What the maximum-likelihood objectives share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.infer.elbo import ELBO
from numpyro.primitives import mutable

from numpyro_kaem.infer.units import Sites, UnitModel, without_normalizer

__all__ = ["MaximumLikelihood"]

Memory = dict[str, jax.Array]


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

    Parameters
    ----------
    unit_plate
        Name of the plate that makes units independent; it may subsample.
    """

    memory_name = "objective$memory"

    def __init__(self, unit_plate: str = "data") -> None:
        if not isinstance(unit_plate, str):
            raise TypeError(
                f"unit_plate must be the name of a plate, got {unit_plate!r}."
            )
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

        Parameters
        ----------
        rng_key
            Random key.
        unit_model
            The batch, with parameters that carry no gradient.
        params
            The same parameters, with their gradient.
        memory
            What :meth:`start` made, or None.

        Returns
        -------
        value
            What is reported, a scalar.
        surrogate
            Scalar whose gradient in ``params`` is the estimate's.
        memory
            For the next step.
        """
        raise NotImplementedError

    def guide(self, model: Callable) -> Callable:
        """Guide for ``SVI`` that keeps the objective's memory as mutable state.

        Parameters
        ----------
        model
            The model.

        Returns
        -------
        Callable
            A guide without sample sites, called with the model's arguments.
        """

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
        """Loss for ``SVI``: minus the log likelihood of all units, estimated.

        Parameters
        ----------
        rng_key
            Random key.
        param_map
            Values of the parameters by name, and the memory.
        model, args, kwargs
            Model and its arguments.
        guide
            Not used: None, an empty one, or that of :meth:`guide`.

        Returns
        -------
        dict
            ``"loss"`` and ``"mutable_state"``.
        """
        params = dict(param_map)
        memory = params.pop(self.memory_name, None)
        key_model, key_draws, key_contrast = jax.random.split(rng_key, 3)
        fixed = jax.lax.stop_gradient(params)
        unit_model = UnitModel(key_model, fixed, model, args, kwargs, self.unit_plate)
        value, surrogate, memory = self.estimate(key_draws, unit_model, params, memory)
        surrogate = surrogate - _contrast(key_contrast, unit_model, params)
        # The value of one, the gradient of the other.
        stop = jax.lax.stop_gradient
        loss = -unit_model.num_data * (stop(value) + surrogate - stop(surrogate))
        kept = None if memory is None else {self.memory_name: stop(memory)}
        return {"loss": loss, "mutable_state": kept}


def _contrast(
    rng_key: jax.Array, unit_model: UnitModel, params: dict[str, Any]
) -> jax.Array:
    """Scalar with the gradient of the log normalisers that priors do not know."""
    total = jnp.zeros(())
    if not unit_model.without_normalizer:
        return total
    trace = unit_model.trace_at({}, params)
    for name in unit_model.without_normalizer:
        law = without_normalizer(trace[name]["fn"])
        total = total + law.contrast(rng_key, unit_model.num_units)
    return total


def complete_data(
    unit_model: UnitModel, values: Sites, params: dict[str, Any]
) -> jax.Array:
    """Log prior plus log likelihood of each unit, shape ``(num_units,)``."""
    return sum(unit_model.log_densities_of(values, params))
