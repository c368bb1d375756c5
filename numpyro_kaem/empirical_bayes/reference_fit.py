"""The parameters of a reference that are fitted with the energy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to, constraints

from numpyro_kaem.empirical_bayes.quadrature import log_masses
from numpyro_kaem.energy import PlacedEnergy
from numpyro_kaem.numerics.panels import Panels, integrand
from numpyro_kaem.references import ReferenceParameters

__all__ = ["constrain", "free_names", "log_reference", "unconstrain"]


def free_names(
    parameters: ReferenceParameters | None, fit_reference: bool
) -> tuple[str, ...]:
    """Names of the parameters to fit.

    Raises
    ------
    ValueError
        If there is no reference with a parameter.
    TypeError
        If the support of the reference depends on its parameters, or it is nested.
    """
    if not fit_reference:
        return ()
    if parameters is None:
        raise ValueError(
            "fit_reference needs a reference with parameters, got reference=None, the "
            "uniform law on the grid."
        )
    law, names = parameters.law, tuple(parameters.values)
    is_fixed = isinstance(
        parameters.build().support, constraints.ParameterFreeConstraint
    )
    if not is_fixed or not all(name in law.arg_constraints for name in names):
        raise TypeError(
            "fit_reference needs a reference whose support does not depend on its "
            f"parameters, such as Normal or Gamma, got {law.__name__}."
        )
    return names


def unconstrain(parameters: Any, names: tuple[str, ...]) -> jax.Array:
    """Free parameters on the whole line, shape ``(num_free,)``."""
    dtype = jnp.result_type(float)
    values = [
        biject_to(parameters.law.arg_constraints[name]).inv(
            jnp.asarray(parameters.values[name], dtype)
        )
        for name in names
    ]
    return jnp.stack(values) if values else jnp.zeros(0, dtype)


def constrain(
    parameters: ReferenceParameters | None, names: tuple[str, ...], free: jax.Array
) -> ReferenceParameters | None:
    """Parameters of the reference with the free ones replaced."""
    if not names:
        return parameters
    law = parameters.law
    values = {
        name: biject_to(law.arg_constraints[name])(value)
        for name, value in zip(names, free, strict=True)
    }
    return ReferenceParameters(law, {**parameters.values, **values})


def log_reference(
    flat: PlacedEnergy,
    parameters: ReferenceParameters | None,
    names: tuple[str, ...],
    panels: Panels,
) -> Any:
    """Log masses of the reference at all positions, as a function of its parameters."""
    if not names:
        return jax.tree_util.Partial(_fixed, _log_masses(flat, parameters, panels))
    return jax.tree_util.Partial(partial(_moving, names), flat, parameters, panels)


@jax.jit
def _log_masses(
    flat: PlacedEnergy, parameters: ReferenceParameters | None, panels: Panels
) -> jax.Array:
    return log_masses(integrand(flat, parameters, panels))


def _fixed(log_mass: jax.Array, free: jax.Array) -> jax.Array:
    del free
    return log_mass


def _moving(
    names: tuple[str, ...],
    flat: PlacedEnergy,
    parameters: ReferenceParameters,
    panels: Panels,
    free: jax.Array,
) -> jax.Array:
    return log_masses(integrand(flat, constrain(parameters, names, free), panels))
