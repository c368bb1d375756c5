"""What is known of NumPyro's distributions: tails, breaks, kinks, supports, scales."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy import special
from jax.typing import ArrayLike
from numpyro.distributions import constraints

__all__ = [
    "TRAITS",
    "Traits",
    "by_sign",
    "density_breaks",
    "finest_scale",
    "has_quantile",
    "has_regular_ends",
    "interior_point",
    "kinks",
    "local_length",
    "mixture_parts",
    "monotone_parts",
    "support_bounds",
    "traits_of",
    "truncated_parts",
    "with_rank",
]


class Traits(NamedTuple):
    """What is known of a distribution ``d`` in closed form."""

    mass: Callable[[Any, jax.Array, bool], jax.Array] | None = None
    """Mass below (above, if the flag is set) a point of the support."""
    log_mass: Callable[[Any, jax.Array, bool], jax.Array] | None = None
    """Log of it, also where the mass itself underflows."""
    quantile: Callable[[Any, jax.Array, bool], jax.Array] | None = None
    """Point with a given mass below (above) it."""
    breaks: Callable[[Any], jax.Array] | None = None
    """Points between which the density is smooth enough for a Gauss rule."""
    kinks: Callable[[Any], list[jax.Array]] = lambda d: []
    """Points inside the support where a derivative of the density jumps."""
    scale: Callable[[Any], jax.Array] | None = None
    """Length of the finest feature of the density inside the support."""
    differentiable: bool = True
    """Whether JAX differentiates the mass, if there is one, in all parameters."""
    regular_ends: bool | Callable[[Any], bool] = False
    """Whether the density is analytic at the finite ends of its support."""
    tails: Callable[[Any], Any] | None = None
    """Distribution whose tails it has, with another density between them."""
    is_whole: bool = False
    """Whether the distribution is a pytree with its leaves in a fixed order, to be kept
    as it is."""


# --- the table -----------------------------------------------------------------------

_STEPS = np.arange(-9.0, 9.5, 1.0)
# For upper tails that fall as exponentials, as those of gamma distributions.
_SKEWED_STEPS = np.append(_STEPS, [10.5, 12.5, 15, 18, 22, 28, 36, 48, 64])
_EXPONENTIAL_STEPS = np.arange(0.0, 41.0, 2.0)
# Where a density is a power of the distance, panels may widen fourfold.
_HEAVY_DISTANCES = np.concatenate(
    [2.0 ** np.arange(-2.5, 5.5, 0.5), 4.0 ** np.arange(3.5, 7.0)]
)
_HEAVY_STEPS = np.concatenate([-_HEAVY_DISTANCES[::-1], [0.0], _HEAVY_DISTANCES])


def _around(steps: np.ndarray, centre: Callable, scale: Callable) -> Callable:
    """Points at ``centre + steps * scale``, the steps on a new leading axis."""

    def breaks(d: Any) -> jax.Array:
        centre_, scale_ = jnp.asarray(centre(d)), jnp.asarray(scale(d))
        rank = max(centre_.ndim, scale_.ndim)
        dtype = jnp.result_type(centre_, scale_)
        return centre_ + jnp.asarray(steps, dtype).reshape((-1,) + (1,) * rank) * scale_

    return breaks


def _symmetric(
    lower: Callable,
    quantile: Callable | None,
    steps: np.ndarray,
    log_lower: Callable | None = None,
    **rest: Any,
) -> Traits:
    """Traits of a distribution symmetric about ``loc``, by its standard lower tail."""

    def standardized(d: Any, x: jax.Array, upper: bool) -> jax.Array:
        y = (x - d.loc) / d.scale
        return -y if upper else y

    def placed(d: Any, y: jax.Array, upper: bool) -> jax.Array:
        return d.loc - d.scale * y if upper else d.loc + d.scale * y

    return Traits(
        mass=lambda d, x, upper: lower(d, standardized(d, x, upper)),
        log_mass=None
        if log_lower is None
        else lambda d, x, upper: log_lower(standardized(d, x, upper)),
        quantile=None
        if quantile is None
        else lambda d, p, upper: placed(d, quantile(d, p), upper),
        breaks=_around(steps, lambda d: d.loc, lambda d: d.scale),
        scale=lambda d: d.scale,
        **rest,
    )


def _both_tails(
    lower: Callable,
    upper_tail: Callable,
    quantile: Callable,
    upper_quantile: Callable,
    **rest: Any,
) -> Traits:
    """Traits of a distribution by both of its tails, and by both of their inverses."""
    return Traits(
        mass=lambda d, x, upper: (upper_tail if upper else lower)(d, x),
        quantile=lambda d, p, upper: (upper_quantile if upper else quantile)(d, p),
        **rest,
    )


def _by_moments(mass: Callable | None) -> Traits:
    """Traits without closed quantiles; the width is the standard deviation."""

    def scale(d: Any) -> jax.Array:
        return jnp.sqrt(d.variance)

    breaks = _around(_SKEWED_STEPS, lambda d: d.mean, scale)
    return Traits(mass=mass, breaks=breaks, scale=scale, differentiable=False)


# Of few operations: JAX's own have three times as many for the compiler.
def _normal_lower(d: Any, y: jax.Array) -> jax.Array:
    return 0.5 * special.erfc(-np.sqrt(0.5).item() * y)


def _log_normal_lower(y: jax.Array) -> jax.Array:
    # From here on an asymptotic series has all digits.
    end = -10.0 if y.dtype == jnp.float32 else -20.0
    is_large, is_far = y > 1, y <= end
    # By jnp.where: a maximum halves the derivative where both are equal.
    tail = _normal_lower(None, jnp.where(is_large, -y, jnp.where(is_far, end, y)))
    far = jnp.where(is_far, y, end)
    square = far * far
    series = jnp.log1p(-(1 - (3 - 15 / square) / square) / square)
    series = series - 0.5 * (square + np.log(2 * np.pi).item()) - jnp.log(-far)
    log_lower = jnp.log(jnp.where(is_large, 0.5, tail))
    log_lower = jnp.where(is_far, series, log_lower)
    return jnp.where(is_large, jnp.log1p(-jnp.where(is_large, tail, 0.5)), log_lower)


def _student_lower(d: Any, y: jax.Array) -> jax.Array:
    df = jnp.asarray(d.df, y.dtype)
    half = jnp.asarray(0.5, y.dtype)
    square, near = y * y, y * y < df
    # The smaller of the two arguments of the incomplete beta function keeps its digits.
    share = special.betainc(
        jnp.where(near, half, half * df),
        jnp.where(near, half * df, half),
        jnp.where(near, square, df) / (df + square),
    )
    half = jnp.where(near, half - half * share, half * share)
    return jnp.where(y < 0, half, 1 - half)


def _laplace_lower(d: Any, y: jax.Array) -> jax.Array:
    half = 0.5 * jnp.exp(-jnp.abs(y))
    return jnp.where(y < 0, half, 1 - half)


def _log_laplace_lower(y: jax.Array) -> jax.Array:
    upper = jnp.log1p(-0.5 * jnp.exp(-jnp.maximum(y, 0)))
    return jnp.where(y < 0, np.log(0.5).item() + y, upper)


def _laplace_quantile(d: Any, p: jax.Array) -> jax.Array:
    return jnp.where(p < 0.5, jnp.log(2 * p), -jnp.log(2 * jnp.maximum(1 - p, 1e-38)))


def _beta_mass(d: Any, x: jax.Array, upper: bool) -> jax.Array:
    a = jnp.asarray(d.concentration1, x.dtype)
    b = jnp.asarray(d.concentration0, x.dtype)
    return special.betainc(b, a, 1 - x) if upper else special.betainc(a, b, x)


def _gamma_mass(d: Any, x: jax.Array, upper: bool) -> jax.Array:
    mass = special.gammaincc if upper else special.gammainc
    return mass(jnp.asarray(d.concentration, x.dtype), x * d.rate)


def _gumbel_rate(d: Any, x: jax.Array) -> jax.Array:
    # Where the mass is zero anyway the rate must not overflow: its gradient would.
    return jnp.exp(jnp.minimum(-(x - d.loc) / d.scale, 80.0))


def _asymmetric_laplace_mass(d: Any, x: jax.Array, upper: bool) -> jax.Array:
    square = jnp.square(jnp.asarray(d.asymmetry))
    y = (x - d.loc) / d.scale
    low = square / (1 + square) * jnp.exp(jnp.minimum(y, 0) / d.asymmetry)
    high = jnp.exp(-jnp.maximum(y, 0) * d.asymmetry) / (1 + square)
    if upper:
        return jnp.where(y < 0, 1 - low, high)
    return jnp.where(y < 0, low, 1 - high)


def _asymmetric_laplace_quantile(d: Any, p: jax.Array, upper: bool) -> jax.Array:
    square = jnp.square(jnp.asarray(d.asymmetry))
    # Masses below and above, relative to those of the two sides.
    if upper:
        below, above = (1 - p) * (1 + square) / square, p * (1 + square)
        is_low = above >= 1
    else:
        share = square / (1 + square)
        below, above = p / share, (1 - p) * (1 + square)
        is_low = p < share
    low = d.asymmetry * jnp.log(jnp.minimum(below, 1))
    high = -jnp.log(jnp.minimum(above, 1)) / d.asymmetry
    return d.loc + d.scale * jnp.where(is_low, low, high)


def _asymmetric_laplace_breaks(d: Any) -> jax.Array:
    sides = ((-1.0, d.scale * d.asymmetry), (1.0, d.scale / d.asymmetry))
    rows = [
        _around(sign * _EXPONENTIAL_STEPS, lambda d: d.loc, lambda d, s=scale: s)(d)
        for sign, scale in sides
    ]
    return jnp.concatenate(rows)


TRAITS: dict[type, Traits] = {
    dist.Normal: _symmetric(
        _normal_lower,
        lambda d, p: special.ndtri(p),
        _STEPS,
        log_lower=_log_normal_lower,
    ),
    dist.Logistic: _symmetric(
        lambda d, y: jax.nn.sigmoid(y),
        lambda d, p: jnp.log(p) - jnp.log1p(-p),
        np.arange(-24.0, 25.0, 1.5),
        log_lower=jax.nn.log_sigmoid,
    ),
    dist.Laplace: _symmetric(
        _laplace_lower,
        _laplace_quantile,
        np.arange(-20.0, 21.0, 2.0),
        log_lower=_log_laplace_lower,
        kinks=lambda d: [jnp.asarray(d.loc)],
    ),
    dist.AsymmetricLaplace: Traits(
        mass=_asymmetric_laplace_mass,
        quantile=_asymmetric_laplace_quantile,
        breaks=_asymmetric_laplace_breaks,
        kinks=lambda d: [jnp.asarray(d.loc)],
        scale=lambda d: d.scale * jnp.minimum(d.asymmetry, 1 / d.asymmetry),
    ),
    dist.Cauchy: _symmetric(
        lambda d, y: jnp.arctan2(jnp.ones_like(y), -y) * (1 / np.pi),
        # Below one half this keeps its digits down to the smallest number.
        lambda d, p: -1 / jnp.tan(np.pi * p),
        _HEAVY_STEPS,
    ),
    dist.StudentT: _symmetric(_student_lower, None, _HEAVY_STEPS, differentiable=False),
    dist.Gumbel: _both_tails(
        lambda d, x: jnp.exp(-_gumbel_rate(d, x)),
        lambda d, x: -jnp.expm1(-_gumbel_rate(d, x)),
        lambda d, p: d.loc - d.scale * jnp.log(-jnp.log(p)),
        lambda d, p: d.loc - d.scale * jnp.log(-jnp.log1p(-p)),
        breaks=_around(np.arange(-4.0, 25.0, 1.0), lambda d: d.loc, lambda d: d.scale),
        scale=lambda d: d.scale,
    ),
    dist.Uniform: _both_tails(
        lambda d, x: (x - d.low) / (d.high - d.low),
        lambda d, x: (d.high - x) / (d.high - d.low),
        lambda d, p: d.low + p * (d.high - d.low),
        lambda d, p: d.high - p * (d.high - d.low),
        regular_ends=True,
    ),
    dist.Exponential: _both_tails(
        lambda d, x: -jnp.expm1(-x * d.rate),
        lambda d, x: jnp.exp(-x * d.rate),
        lambda d, p: -jnp.log1p(-p) / d.rate,
        lambda d, p: -jnp.log(p) / d.rate,
        breaks=_around(_EXPONENTIAL_STEPS, lambda d: 0.0, lambda d: 1 / d.rate),
        scale=lambda d: 1 / d.rate,
        regular_ends=True,
        log_mass=lambda d, x, upper: (
            -x * d.rate if upper else jnp.log(-jnp.expm1(-x * d.rate))
        ),
    ),
    dist.HalfNormal: _both_tails(
        lambda d, x: special.erf(x / d.scale * np.sqrt(0.5).item()),
        lambda d, x: special.erfc(x / d.scale * np.sqrt(0.5).item()),
        lambda d, p: -d.scale * special.ndtri(0.5 * (1 - p)),
        lambda d, p: -d.scale * special.ndtri(0.5 * p),
        breaks=_around(np.arange(0.0, 9.5, 1.0), lambda d: 0.0, lambda d: d.scale),
        scale=lambda d: d.scale,
        regular_ends=True,
    ),
    dist.HalfCauchy: _both_tails(
        lambda d, x: jnp.arctan2(x, jnp.asarray(d.scale)) * (2 / np.pi),
        lambda d, x: jnp.arctan2(jnp.asarray(d.scale), x) * (2 / np.pi),
        lambda d, p: d.scale * jnp.tan(p * (np.pi / 2)),
        lambda d, p: d.scale / jnp.tan(p * (np.pi / 2)),
        breaks=_around(
            _HEAVY_STEPS[len(_HEAVY_DISTANCES) :], lambda d: 0.0, lambda d: d.scale
        ),
        scale=lambda d: d.scale,
        regular_ends=True,
    ),
    dist.Weibull: _both_tails(
        lambda d, x: -jnp.expm1(-((x / d.scale) ** d.concentration)),
        lambda d, x: jnp.exp(-((x / d.scale) ** d.concentration)),
        lambda d, p: d.scale * (-jnp.log1p(-p)) ** (1 / d.concentration),
        lambda d, p: d.scale * (-jnp.log(p)) ** (1 / d.concentration),
        breaks=_around(_SKEWED_STEPS, lambda d: d.mean, lambda d: jnp.sqrt(d.variance)),
        scale=lambda d: jnp.sqrt(d.variance),
    ),
    dist.Gamma: _by_moments(_gamma_mass),
    dist.Beta: _by_moments(_beta_mass),
}
_UNKNOWN = _by_moments(None)


def traits_of(reference: dist.Distribution) -> Traits:
    """Return what is known of a distribution, by its class or the nearest parent."""
    for cls in type(reference).__mro__:
        if cls in TRAITS:
            return TRAITS[cls]
    return _UNKNOWN


# --- distributions made of others ----------------------------------------------------


def monotone_parts(reference: Any) -> tuple[Any, list] | None:
    """Return base and transforms of a distribution whose transforms are monotone."""
    if isinstance(reference, dist.LowerTruncatedPowerLaw):
        reference = dist.Pareto(reference.low, -1 - reference.alpha)
    if not isinstance(reference, dist.TransformedDistribution):
        return None
    for transform in reference.transforms:
        try:
            transform.sign  # noqa: B018
        except NotImplementedError:
            return None
    return reference.base_dist, list(reference.transforms)


def truncated_parts(reference: Any) -> tuple[Any, jax.Array, jax.Array] | None:
    """Return base, lower and upper end of a truncated distribution on the line."""
    truncated = (
        dist.LeftTruncatedDistribution,
        dist.RightTruncatedDistribution,
        dist.TwoSidedTruncatedDistribution,
    )
    if not isinstance(reference, truncated):
        return None
    low = jnp.asarray(getattr(reference, "low", -jnp.inf))
    return reference.base_dist, low, jnp.asarray(getattr(reference, "high", jnp.inf))


def mixture_parts(reference: Any) -> tuple[jax.Array, list, bool] | None:
    """Return weights, components, and whether one has all of them on its last axis.

    The weights have the shape ``(*batch_shape, num_components)``.
    """
    if isinstance(reference, dist.MixtureSameFamily):
        components = [reference.component_distribution]
        return reference.mixing_distribution.probs, components, True
    if isinstance(reference, dist.MixtureGeneral):
        components = list(reference.component_distributions)
        return reference.mixing_distribution.probs, components, False
    return None


def _rows_of_components(
    mixture: tuple[jax.Array, list, bool], function: Callable[[Any], list]
) -> list[jax.Array]:
    """Rows ``(count, *batch_shape)`` of all components of a mixture."""
    _, components, on_last_axis = mixture
    rows = [row for component in components for row in function(component)]
    if not on_last_axis:
        return rows
    # Where all components have the same, one of them stands for them.
    rank = len(components[0].batch_shape)
    rows = [jnp.moveaxis(with_rank(row, rank), -1, 1) for row in rows]
    return [row.reshape(-1, *row.shape[2:]) for row in rows]


def with_rank(rows: Any, rank: int) -> Any:
    """Insert axes of size one after the first, so that ``rank`` axes follow it."""
    shape = rows.shape
    return rows.reshape(shape[0], *(1,) * (rank + 1 - len(shape)), *shape[1:])


def by_sign(sign: Any, function: Callable[[bool], jax.Array], upper: bool) -> jax.Array:
    """Evaluate a function of the tail, which a decreasing transform swaps.

    The sign of the transform's derivative may be traced, which costs both tails.
    """
    if isinstance(sign, int | float):
        return function(upper if sign > 0 else not upper)
    return jnp.where(sign > 0, function(upper), function(not upper))


# --- supports, breaks and lengths of any distribution --------------------------------


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
    if truncated_parts(reference) is not None:
        return True
    regular = traits_of(reference).regular_ends
    return regular(reference) if callable(regular) else regular


def has_quantile(reference: dist.Distribution) -> bool:
    """Whether both tails are inverted in closed form."""
    parts = monotone_parts(reference)
    if parts is not None:
        return has_quantile(parts[0])
    return traits_of(reference).quantile is not None


def density_breaks(reference: dist.Distribution) -> list[jax.Array]:
    """Points between which a Gauss rule resolves the density: ``(count, *batch)``."""
    parts = monotone_parts(reference)
    if parts is not None:
        base, transforms = parts
        breaks = density_breaks(base)
        for transform in transforms:
            breaks = [transform(b) for b in breaks]
        return breaks
    mixture = mixture_parts(reference)
    if mixture is not None:
        return _rows_of_components(mixture, density_breaks)
    truncated = truncated_parts(reference)
    if truncated is not None:
        return density_breaks(truncated[0])
    find_breaks = traits_of(reference).breaks
    if find_breaks is None:
        return []
    for find in (find_breaks, _quantiles):
        try:
            return [find(reference)]
        # NumPyro takes some quantile functions from an optional package.
        except (NotImplementedError, ImportError):
            pass
    return []


def _quantiles(reference: dist.Distribution) -> jax.Array:
    """Quantiles, down to both ends of the precision, in place of moments."""
    tails = 2.0 ** -np.arange(1.0, 47.0)
    p = np.concatenate([tails[::-1], 1 - tails[1:]])
    p = p.reshape((-1,) + (1,) * len(reference.batch_shape))
    return reference.icdf(jnp.asarray(p, float))


def kinks(reference: dist.Distribution) -> list[jax.Array]:
    """Points inside the support where a derivative of the density jumps."""
    mixture = mixture_parts(reference)
    if mixture is not None:
        rows = _rows_of_components(mixture, lambda d: [k[None] for k in kinks(d)])
        return [point for row in rows for point in row]
    truncated = truncated_parts(reference)
    if truncated is not None:
        return kinks(truncated[0])
    parts = monotone_parts(reference)
    if parts is None:
        return traits_of(reference).kinks(reference)
    base, transforms = parts
    points = kinks(base)
    for transform in transforms:
        points = [transform(p) for p in points]
    return points


def finest_scale(reference: dist.Distribution) -> jax.Array | None:
    """Length below which the density is smooth, or ``None`` where it is not known."""
    parts = (monotone_parts, mixture_parts, truncated_parts)
    scale = traits_of(reference).scale
    if scale is None or any(of(reference) is not None for of in parts):
        return None
    try:
        return scale(reference)
    except NotImplementedError:
        return None


def local_length(reference: dist.Distribution, x: jax.Array) -> jax.Array:
    """Length over which the density changes at ``x``, never above its finest scale."""
    low, high = support_bounds(reference)
    inside = (x > low) & (x < high)
    safe = jnp.where(inside, x, interior_point(low, high, x.dtype))
    safe = jnp.broadcast_to(safe, jnp.broadcast_shapes(x.shape, reference.batch_shape))
    tails = _same_tails(reference)
    slope = jax.grad(lambda y: jnp.sum(tails.log_prob(y)))(safe)
    length = 1 / jnp.maximum(jnp.abs(slope), 1e-30)
    scale = finest_scale(reference)
    if scale is None:
        scale = jnp.abs(safe) + 1e-3
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, jnp.abs(safe) + 1)
    return jnp.minimum(length, scale)


def _same_tails(reference: dist.Distribution) -> dist.Distribution:
    """Distribution whose density falls alike beyond the bulk, and costs less."""
    truncated = truncated_parts(reference)
    if truncated is not None:
        return truncated[0]
    find = traits_of(reference).tails
    tails = None if find is None else find(reference)
    return reference if tails is None else _same_tails(tails)
