"""Checks of a reference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.references.parameters import (
    ReferenceParameters,
    concretely,
    is_concrete,
)
from numpyro_kaem.references.shape import support_bounds

__all__ = [
    "check_reference",
]


@jax.jit
def _cdf(parameters: ReferenceParameters, z: jax.Array) -> jax.Array:
    """Traced once for all laws of a kind, and never run."""
    return parameters.build().cdf(z)


def check_reference(reference: Any, energy: Any) -> None:
    """Check that a reference is a law that an energy can tilt.

    Raises
    ------
    TypeError
        If it is not a continuous univariate distribution with a ``cdf``.
    ValueError
        If the batch shapes do not broadcast, or its support misses the grid.
    """
    if not isinstance(reference, dist.Distribution):
        raise TypeError(
            "reference must be a NumPyro distribution or None, got "
            f"{type(reference).__name__}."
        )
    name = type(reference).__name__
    if reference.event_shape != ():
        raise TypeError(
            f"reference must be univariate, got {name} with event_shape "
            f"{reference.event_shape}; put the batch in its parameters and call "
            "to_event on the prior instead."
        )
    if getattr(reference.support, "is_discrete", False):
        raise TypeError(f"reference must be continuous, got the discrete {name}.")
    try:
        shape = jnp.broadcast_shapes(energy.batch_shape, reference.batch_shape)
    except ValueError:
        raise ValueError(
            "energy and reference must have batch shapes that broadcast, got "
            f"{energy.batch_shape} and {reference.batch_shape}."
        ) from None
    # Refuses a law that cannot be made again from its parameters.
    parameters = ReferenceParameters.of(reference)
    try:
        jax.eval_shape(_cdf, parameters, jax.ShapeDtypeStruct(shape, energy.dtype))
    except (NotImplementedError, AttributeError) as error:
        raise TypeError(
            f"reference must have a cdf, which {name} does not: {error}"
        ) from None
    low, high = support_bounds(reference)
    if is_concrete((low, high)):
        with concretely():
            misses = (np.asarray(low) >= np.asarray(energy.basis.high)) | (
                np.asarray(high) <= np.asarray(energy.basis.low)
            )
        if np.any(misses):
            raise ValueError(
                "reference must have a support that meets the grid "
                f"[{energy.basis.low}, {energy.basis.high}], got {name} on "
                f"[{low}, {high}]."
            )
