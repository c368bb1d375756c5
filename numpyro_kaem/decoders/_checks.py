"""Checks of the arguments that decoders share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_real

__all__ = ["OUTPUT_ACTIVATIONS", "as_latents", "as_name", "as_shape"]

OUTPUT_ACTIVATIONS: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
}
"""Output activations by name: static, hashable, and saved as text."""


def as_shape(name: str, value: Any) -> tuple[int, ...]:
    """Check a shape, an integer or a sequence of them, and return it as a tuple.

    Raises
    ------
    TypeError
        If it is neither, or an entry is not an integer.
    ValueError
        If an entry is not positive.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (as_count(name, value),)
    return tuple(as_count(f"{name}[{i}]", size) for i, size in enumerate(value))


def as_name(name: str, value: Any, table: Mapping[Any, Any]) -> Any:
    """Check that ``value`` is a key of ``table``, and return it.

    Raises
    ------
    ValueError
        If it is not.
    """
    if not isinstance(value, str | None) or value not in table:
        known = ", ".join(repr(entry) for entry in table)
        raise ValueError(f"{name} must be one of {known}, got {value!r}.")
    return value


def as_latents(z: ArrayLike, num_latents: int, dtype: jnp.dtype) -> jax.Array:
    """Convert latents to floating point; their shape is ``(*batch, num_latents)``.

    Raises
    ------
    ValueError
        If the last axis has another size.
    """
    z = as_real("z", z)
    if z.ndim == 0 or z.shape[-1] != num_latents:
        raise ValueError(
            f"z must have shape (*batch, {num_latents}), one entry for each latent, "
            f"got {z.shape}."
        )
    return z if jnp.issubdtype(z.dtype, jnp.floating) else z.astype(dtype)
