"""The support of a reference, its density, and where that changes fast."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from numpyro_kaem.references.laws import (
    law_of,
    mixture_parts,
    monotone_parts,
    truncated_parts,
)

__all__ = [
    "density_breaks",
    "finest_scale",
    "has_quantile",
    "has_regular_ends",
    "interior_point",
    "kinks",
    "local_length",
    "support_bounds",
    "with_rank",
]


def support_bounds(reference: dist.Distribution) -> tuple[ArrayLike, ArrayLike]:
    """Return the ends of the support: infinities or floats where they are fixed."""
    support = reference.support
    if support is constraints.real:
        return -np.inf, np.inf
    return (
        getattr(support, "lower_bound", -np.inf),
        getattr(support, "upper_bound", np.inf),
    )


def interior_point(low: ArrayLike, high: ArrayLike, dtype: Any) -> jax.Array:
    """Any point inside a support with these ends, constant in derivatives."""
    low, high = jnp.asarray(low, dtype), jnp.asarray(high, dtype)
    has_low, has_high = jnp.isfinite(low), jnp.isfinite(high)
    # Infinities out of the sums: two of opposite signs have none.
    low, high = jnp.where(has_low, low, 0), jnp.where(has_high, high, 0)
    middle = jnp.where(
        has_low,
        jnp.where(has_high, 0.5 * (low + high), low + 1),
        jnp.where(has_high, high - 1, 0.0),
    )
    return jax.lax.stop_gradient(middle)


def has_regular_ends(reference: dist.Distribution) -> bool:
    """Whether the density is analytic at the finite ends of its support."""
    parts = truncated_parts(reference)
    if parts is not None:
        return True
    regular = law_of(reference).regular_ends
    return regular(reference) if callable(regular) else regular


def _of_components(
    reference: dist.Distribution, function: Callable[[Any], list]
) -> list[jax.Array]:
    """Rows ``(count, *batch_shape)`` of all components of a mixture."""
    _, laws, on_last_axis = mixture_parts(reference)
    rows = [row for law in laws for row in function(law)]
    if not on_last_axis:
        return rows
    # Where all components have the same, one of them stands for them.
    shape = laws[0].batch_shape
    rows = [with_rank(row, len(shape)) for row in rows]
    rows = [jnp.moveaxis(row, -1, 1) for row in rows]
    return [row.reshape(-1, *row.shape[2:]) for row in rows]


def density_breaks(reference: dist.Distribution) -> list[jax.Array]:
    """Points between which a Gauss rule resolves the density: ``(count, *batch)``."""
    parts = monotone_parts(reference)
    if parts is not None:
        base, transforms = parts
        breaks = density_breaks(base)
        for transform in transforms:
            breaks = [transform(b) for b in breaks]
        return breaks
    if mixture_parts(reference) is not None:
        return _of_components(reference, density_breaks)
    truncated = truncated_parts(reference)
    if truncated is not None:
        return density_breaks(truncated[0])
    breaks = law_of(reference).breaks
    if breaks is None:
        return []
    for find in (breaks, _quantiles):
        try:
            return [find(reference)]
        # NumPyro has some quantile functions from another package.
        except (NotImplementedError, ImportError):
            pass
    return []


def _quantiles(reference: dist.Distribution) -> jax.Array:
    """Quantiles of a law without moments, down to both ends of the precision."""
    tails = 2.0 ** -np.arange(1.0, 47.0)
    p = np.concatenate([tails[::-1], 1 - tails[1:]])
    p = p.reshape((-1,) + (1,) * len(reference.batch_shape))
    return reference.icdf(jnp.asarray(p, float))


def with_rank(rows: Any, rank: int) -> Any:
    """Insert axes of size one after the first, so that ``rank`` axes follow it."""
    shape = rows.shape
    return rows.reshape(shape[0], *(1,) * (rank + 1 - len(shape)), *shape[1:])


def kinks(reference: dist.Distribution) -> list[jax.Array]:
    """Points inside the support where a derivative of the density jumps."""
    if mixture_parts(reference) is not None:
        rows = _of_components(reference, lambda law: [k[None] for k in kinks(law)])
        return [point for row in rows for point in row]
    truncated = truncated_parts(reference)
    if truncated is not None:
        return kinks(truncated[0])
    parts = monotone_parts(reference)
    if parts is None:
        return law_of(reference).kinks(reference)
    base, transforms = parts
    points = kinks(base)
    for transform in transforms:
        points = [transform(p) for p in points]
    return points


def finest_scale(reference: dist.Distribution) -> jax.Array | None:
    """Length below which the density is smooth, or ``None`` where it is not known."""
    parts = (monotone_parts, mixture_parts, truncated_parts)
    if any(of(reference) is not None for of in parts):
        return None
    law = law_of(reference)
    if law.scale is None:
        return None
    try:
        return law.scale(reference)
    except NotImplementedError:
        return None


def has_quantile(reference: dist.Distribution) -> bool:
    """Whether both tails are inverted in closed form."""
    parts = monotone_parts(reference)
    if parts is not None:
        return has_quantile(parts[0])
    return law_of(reference).quantile is not None


def _tail_law(reference: dist.Distribution) -> dist.Distribution:
    """Law whose density falls in the same way beyond the bulk, and costs less."""
    truncated = truncated_parts(reference)
    if truncated is not None:
        return truncated[0]
    find = law_of(reference).tails
    tails = None if find is None else find(reference)
    return reference if tails is None else _tail_law(tails)


def local_length(reference: dist.Distribution, x: jax.Array) -> jax.Array:
    """Length over which the density changes at ``x``, never above its finest scale."""
    low, high = support_bounds(reference)
    inside = (x > low) & (x < high)
    safe = jnp.where(inside, x, interior_point(low, high, x.dtype))
    safe = jnp.broadcast_to(safe, jnp.broadcast_shapes(x.shape, reference.batch_shape))
    slope = jax.grad(lambda y: jnp.sum(_tail_law(reference).log_prob(y)))(safe)
    length = 1 / jnp.maximum(jnp.abs(slope), 1e-30)
    scale = finest_scale(reference)
    if scale is None:
        scale = jnp.abs(safe) + 1e-3
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, jnp.abs(safe) + 1)
    return jnp.minimum(length, scale)
