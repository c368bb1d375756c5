"""Reference laws: their parameters by name, and their tails to full precision."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.custom_derivatives import SymbolicZero
from jax.scipy import special
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from numpyro_kaem.quadrature import gauss_legendre, nodes_per_panel

__all__ = [
    "ReferenceParameters",
    "check_reference",
    "density_breaks",
    "far_breaks",
    "finest_scale",
    "has_quantile",
    "has_regular_ends",
    "is_concrete",
    "kinks",
    "log_density",
    "support_bounds",
    "tail_mass",
    "tail_nodes",
    "tail_quantile",
]


def is_concrete(tree: Any) -> bool:
    """Whether no array in ``tree`` is traced, so that values can be looked at."""
    return not any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree_util.tree_leaves(tree)
    )


# --- parameters by name --------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
class ReferenceParameters:
    """The parameters of a NumPyro distribution, by name and in the order of the names.

    NumPyro flattens a distribution in the order of a Python set, which changes from
    process to process, and stores some parameters twice. This holds the arguments of the
    constructor instead, from which :meth:`build` makes the distribution again.
    """

    def __init__(self, law: type, values: dict[str, Any]) -> None:
        self.law = law
        self.values = values

    @classmethod
    def of(cls, reference: dist.Distribution) -> "ReferenceParameters":
        """Read the parameters of a distribution, recursively."""
        if isinstance(reference, dist.ExpandedDistribution):
            raise TypeError(
                "reference must have its batch shape in its parameters, got an expanded "
                f"{type(reference.base_dist).__name__}; pass arrays of the full shape."
            )
        law = type(reference)
        names = [
            name
            for name, parameter in inspect.signature(law.__init__).parameters.items()
            if name not in ("self", "validate_args")
            and parameter.kind
            in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        values = {}
        for name in sorted(names):
            attribute = "base_dist" if name == "base_distribution" else name
            if not hasattr(reference, attribute):
                raise TypeError(
                    f"reference must keep its parameter {name!r} as an attribute, "
                    f"which {law.__name__} does not."
                )
            value = getattr(reference, attribute)
            if isinstance(value, dist.Distribution):
                value = cls.of(value)
            values[name] = value
        return cls(law, values)

    def build(self) -> dist.Distribution:
        """Distribution with these parameters."""
        values = {
            name: value.build() if isinstance(value, ReferenceParameters) else value
            for name, value in self.values.items()
        }
        return self.law(**values, validate_args=False)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[type, tuple[str, ...]]]:
        """Children in the order of the names."""
        return tuple(self.values.values()), (self.law, tuple(self.values))

    @classmethod
    def tree_unflatten(cls, aux: tuple, children: tuple) -> "ReferenceParameters":
        """Inverse of :meth:`tree_flatten`."""
        law, names = aux
        return cls(law, dict(zip(names, children, strict=True)))


# --- known laws ----------------------------------------------------------------------


class _Law(NamedTuple):
    """What is known of a law in closed form; ``d`` is the distribution."""

    mass: Callable[[Any, jax.Array, bool], jax.Array] | None = None
    """Mass below (above, if the flag is set) a point of the support."""
    quantile: Callable[[Any, jax.Array, bool], jax.Array] | None = None
    """Point with a given mass below (above) it."""
    breaks: Callable[[Any], jax.Array] | None = None
    """Points between which the density is smooth enough for a Gauss rule."""
    kinks: Callable[[Any], list[jax.Array]] = lambda d: []
    """Points inside the support where a derivative of the density jumps."""
    scale: Callable[[Any], jax.Array] | None = None
    """Length of the finest feature of the density inside the support."""
    regular_ends: bool = False
    """Whether the density is analytic at the finite ends of its support."""


_STEPS = np.arange(-9.0, 9.5, 1.0)
_HEAVY_STEPS = np.concatenate(
    [-(2.0 ** np.arange(5, -3, -0.5)), [0.0], 2.0 ** np.arange(-2.0, 5.5, 0.5)]
)


def _around(steps: np.ndarray, centre: Callable, scale: Callable) -> Callable:
    """Points at ``centre + steps * scale``, the steps on a new leading axis."""

    def breaks(d: Any) -> jax.Array:
        centre_, scale_ = jnp.asarray(centre(d)), jnp.asarray(scale(d))
        rank = max(centre_.ndim, scale_.ndim)
        dtype = jnp.result_type(centre_, scale_)
        return centre_ + jnp.asarray(steps, dtype).reshape((-1,) + (1,) * rank) * scale_

    return breaks


def _symmetric(
    lower: Callable, quantile: Callable | None, steps: np.ndarray, kinked: bool = False
) -> _Law:
    """Law that is symmetric about ``loc``, from its standard lower tail."""

    def mass(d: Any, x: jax.Array, upper: bool) -> jax.Array:
        y = (x - d.loc) / d.scale
        return lower(d, -y if upper else y)

    def inverse(d: Any, p: jax.Array, upper: bool) -> jax.Array:
        y = quantile(d, p)
        return d.loc - d.scale * y if upper else d.loc + d.scale * y

    return _Law(
        mass=mass,
        quantile=None if quantile is None else inverse,
        breaks=_around(steps, lambda d: d.loc, lambda d: d.scale),
        kinks=(lambda d: [jnp.asarray(d.loc)]) if kinked else (lambda d: []),
        scale=lambda d: d.scale,
    )


def _one_sided(
    lower: Callable, upper_tail: Callable, quantile: Callable, upper_quantile: Callable
) -> Callable[..., _Law]:
    """Law given by both of its tails, and by both of their inverses."""

    def law(**rest: Any) -> _Law:
        return _Law(
            mass=lambda d, x, upper: upper_tail(d, x) if upper else lower(d, x),
            quantile=lambda d, p, upper: (
                upper_quantile(d, p) if upper else quantile(d, p)
            ),
            **rest,
        )

    return law


def _student_lower(d: Any, y: jax.Array) -> jax.Array:
    df = jnp.asarray(d.df, y.dtype)
    # The smaller of the two arguments of the incomplete beta function keeps its digits.
    far = 0.5 * special.betainc(0.5 * df, jnp.asarray(0.5, y.dtype), df / (df + y * y))
    near = 0.5 - 0.5 * special.betainc(
        jnp.asarray(0.5, y.dtype), 0.5 * df, y * y / (df + y * y)
    )
    half = jnp.where(y * y < df, near, far)
    return jnp.where(y < 0, half, 1 - half)


def _laplace_lower(d: Any, y: jax.Array) -> jax.Array:
    half = 0.5 * jnp.exp(-jnp.abs(y))
    return jnp.where(y < 0, half, 1 - half)


def _laplace_quantile(d: Any, p: jax.Array) -> jax.Array:
    return jnp.where(p < 0.5, jnp.log(2 * p), -jnp.log(2 * jnp.maximum(1 - p, 1e-38)))


def _beta_mass(d: Any, x: jax.Array, upper: bool) -> jax.Array:
    a = jnp.asarray(d.concentration1, x.dtype)
    b = jnp.asarray(d.concentration0, x.dtype)
    return special.betainc(b, a, 1 - x) if upper else special.betainc(a, b, x)


def _gamma_mass(d: Any, x: jax.Array, upper: bool) -> jax.Array:
    concentration = jnp.asarray(d.concentration, x.dtype)
    y = x * d.rate
    if upper:
        return special.gammaincc(concentration, y)
    return special.gammainc(concentration, y)


def _by_moments(mass: Callable | None, regular_ends: bool = False) -> _Law:
    """Law without closed quantiles; its width is its standard deviation."""
    mean, scale = (lambda d: d.mean), (lambda d: jnp.sqrt(d.variance))
    return _Law(
        mass=mass,
        breaks=_around(_STEPS, mean, scale),
        scale=scale,
        regular_ends=regular_ends,
    )


_EXPONENTIAL = _one_sided(
    lambda d, x: -jnp.expm1(-x * d.rate),
    lambda d, x: jnp.exp(-x * d.rate),
    lambda d, p: -jnp.log1p(-p) / d.rate,
    lambda d, p: -jnp.log(p) / d.rate,
)
_WEIBULL = _one_sided(
    lambda d, x: -jnp.expm1(-((x / d.scale) ** d.concentration)),
    lambda d, x: jnp.exp(-((x / d.scale) ** d.concentration)),
    lambda d, p: d.scale * (-jnp.log1p(-p)) ** (1 / d.concentration),
    lambda d, p: d.scale * (-jnp.log(p)) ** (1 / d.concentration),
)
_HALF_NORMAL = _one_sided(
    lambda d, x: special.erf(x / d.scale * np.sqrt(0.5).item()),
    lambda d, x: special.erfc(x / d.scale * np.sqrt(0.5).item()),
    lambda d, p: -d.scale * special.ndtri(0.5 * (1 - p)),
    lambda d, p: -d.scale * special.ndtri(0.5 * p),
)
_HALF_CAUCHY = _one_sided(
    lambda d, x: jnp.arctan2(x, jnp.asarray(d.scale)) * (2 / np.pi),
    lambda d, x: jnp.arctan2(jnp.asarray(d.scale), x) * (2 / np.pi),
    lambda d, p: d.scale * jnp.tan(p * (np.pi / 2)),
    lambda d, p: d.scale / jnp.tan(p * (np.pi / 2)),
)
_GUMBEL = _one_sided(
    lambda d, x: jnp.exp(-jnp.exp(-(x - d.loc) / d.scale)),
    lambda d, x: -jnp.expm1(-jnp.exp(-(x - d.loc) / d.scale)),
    lambda d, p: d.loc - d.scale * jnp.log(-jnp.log(p)),
    lambda d, p: d.loc - d.scale * jnp.log(-jnp.log1p(-p)),
)
_UNIFORM = _one_sided(
    lambda d, x: (x - d.low) / (d.high - d.low),
    lambda d, x: (d.high - x) / (d.high - d.low),
    lambda d, p: d.low + p * (d.high - d.low),
    lambda d, p: d.high - p * (d.high - d.low),
)

_LAWS: dict[type, _Law] = {
    dist.Normal: _symmetric(
        lambda d, y: special.ndtr(y), lambda d, p: special.ndtri(p), _STEPS
    ),
    dist.Logistic: _symmetric(
        lambda d, y: jax.nn.sigmoid(y),
        lambda d, p: jnp.log(p) - jnp.log1p(-p),
        np.arange(-24.0, 25.0, 1.5),
    ),
    dist.Laplace: _symmetric(
        _laplace_lower, _laplace_quantile, np.arange(-20.0, 21.0, 2.0), kinked=True
    ),
    dist.Cauchy: _symmetric(
        lambda d, y: jnp.arctan2(jnp.ones_like(y), -y) * (1 / np.pi),
        # Below one half this keeps its digits down to the smallest number.
        lambda d, p: -1 / jnp.tan(np.pi * p),
        _HEAVY_STEPS,
    ),
    dist.StudentT: _symmetric(_student_lower, None, _HEAVY_STEPS),
    dist.Gumbel: _GUMBEL(
        breaks=_around(np.arange(-4.0, 25.0, 1.0), lambda d: d.loc, lambda d: d.scale),
        scale=lambda d: d.scale,
    ),
    dist.Uniform: _UNIFORM(regular_ends=True),
    dist.Exponential: _EXPONENTIAL(
        breaks=_around(np.arange(0.0, 41.0, 2.0), lambda d: 0.0, lambda d: 1 / d.rate),
        scale=lambda d: 1 / d.rate,
        regular_ends=True,
    ),
    dist.HalfNormal: _HALF_NORMAL(
        breaks=_around(np.arange(0.0, 9.5, 1.0), lambda d: 0.0, lambda d: d.scale),
        scale=lambda d: d.scale,
        regular_ends=True,
    ),
    dist.HalfCauchy: _HALF_CAUCHY(
        breaks=_around(_HEAVY_STEPS[16:], lambda d: 0.0, lambda d: d.scale),
        scale=lambda d: d.scale,
        regular_ends=True,
    ),
    dist.Weibull: _WEIBULL(
        breaks=_around(_STEPS, lambda d: d.mean, lambda d: jnp.sqrt(d.variance)),
        scale=lambda d: jnp.sqrt(d.variance),
    ),
    dist.Gamma: _by_moments(_gamma_mass),
    dist.Beta: _by_moments(_beta_mass),
}
_UNKNOWN = _by_moments(None)


def _law(reference: dist.Distribution) -> _Law:
    for cls in type(reference).__mro__:
        if cls in _LAWS:
            return _LAWS[cls]
    return _UNKNOWN


def _monotone_parts(reference: Any) -> tuple[Any, list] | None:
    """Base and transforms of a transformed distribution whose transforms are monotone."""
    if not isinstance(reference, dist.TransformedDistribution):
        return None
    for transform in reference.transforms:
        try:
            transform.sign  # noqa: B018
        except NotImplementedError:
            return None
    return reference.base_dist, list(reference.transforms)


# --- support, density, breaks --------------------------------------------------------


def support_bounds(reference: dist.Distribution) -> tuple[ArrayLike, ArrayLike]:
    """Ends of the support; infinite where it has none, floats where they are fixed."""
    support = reference.support
    if support is constraints.real:
        return -np.inf, np.inf
    return (
        getattr(support, "lower_bound", -np.inf),
        getattr(support, "upper_bound", np.inf),
    )


def log_density(reference: dist.Distribution, z: jax.Array) -> jax.Array:
    """Log density; minus infinity, with zero gradient, outside the support."""
    low, high = support_bounds(reference)
    inside = (z >= low) & (z <= high)
    anchor = _interior_point(low, high, z.dtype)
    return jnp.where(inside, reference.log_prob(jnp.where(inside, z, anchor)), -jnp.inf)


def _interior_point(low: ArrayLike, high: ArrayLike, dtype: Any) -> jax.Array:
    low, high = jnp.asarray(low, dtype), jnp.asarray(high, dtype)
    middle = jnp.where(
        jnp.isfinite(low),
        jnp.where(jnp.isfinite(high), 0.5 * (low + high), low + 1),
        jnp.where(jnp.isfinite(high), high - 1, 0.0),
    )
    return jax.lax.stop_gradient(middle)


def has_regular_ends(reference: dist.Distribution) -> bool:
    """Whether the density is analytic at the finite ends of its support."""
    return _law(reference).regular_ends


def density_breaks(reference: dist.Distribution) -> list[jax.Array]:
    """Points between which a Gauss rule resolves the density, each ``(count, *batch)``."""
    parts = _monotone_parts(reference)
    if parts is not None:
        base, transforms = parts
        breaks = density_breaks(base)
        for transform in transforms:
            breaks = [transform(b) for b in breaks]
        return breaks
    breaks = _law(reference).breaks
    if breaks is None:
        return []
    try:
        return [breaks(reference)]
    except NotImplementedError:
        return []


def kinks(reference: dist.Distribution) -> list[jax.Array]:
    """Points inside the support where a derivative of the density jumps."""
    parts = _monotone_parts(reference)
    if parts is None:
        return _law(reference).kinks(reference)
    base, transforms = parts
    points = kinks(base)
    for transform in transforms:
        points = [transform(p) for p in points]
    return points


def finest_scale(reference: dist.Distribution) -> jax.Array | None:
    """Length below which the density is smooth, or ``None`` where it varies or is unknown."""
    if _monotone_parts(reference) is not None:
        return None
    law = _law(reference)
    if law.scale is None:
        return None
    try:
        return law.scale(reference)
    except NotImplementedError:
        return None


def has_quantile(reference: dist.Distribution) -> bool:
    """Whether both tails are inverted in closed form."""
    parts = _monotone_parts(reference)
    if parts is not None:
        return has_quantile(parts[0])
    return _law(reference).quantile is not None


def far_breaks(
    reference: dist.Distribution, low: ArrayLike, high: ArrayLike, dtype: Any
) -> list[jax.Array]:
    """Points that double their distance from a grid, far into infinite tails.

    For laws whose tails are not inverted in closed form; each ``(count, *shape)``.
    """
    breaks = []
    for bound, edge, sign in zip(
        support_bounds(reference), (low, high), (-1.0, 1.0), strict=True
    ):
        if is_concrete(bound) and np.all(np.isfinite(np.asarray(bound))):
            continue
        edge = jnp.asarray(edge, dtype)
        length = _local_length(reference, edge)
        powers = 2.0 ** np.arange(-2.0, 39.0).reshape((-1,) + (1,) * length.ndim)
        breaks.append(jnp.clip(edge + sign * powers * length, *map(float, _FAR)))
    return breaks


_FAR = (-1e30, 1e30)

# --- tails ---------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def tail_mass(parameters: ReferenceParameters, x: jax.Array, upper: bool) -> jax.Array:
    r"""Mass of a law below (or above) a point, to full relative precision.

    .. math:: F_0(x) = \int_{-\infty}^x \pi_0 \quad\text{or}\quad
              S_0(x) = \int_x^\infty \pi_0.

    The derivative in ``x`` is the density; those in the parameters are quadratures of
    the density's derivatives, because the incomplete beta and gamma functions of JAX
    have none in their shape parameters.

    Parameters
    ----------
    parameters
        Parameters of the law.
    x
        Points, shape (...,), broadcasting with the law's batch shape.
    upper
        Whether the mass above is meant.

    Returns
    -------
    Array
        Masses in [0, 1]; exactly 0 and 1 outside the support.
    """
    reference = parameters.build()
    low, high = support_bounds(reference)
    inside = (x > low) & (x < high)
    safe = jnp.where(inside, x, _interior_point(low, high, x.dtype))
    mass = _inner_mass(parameters, reference, safe, upper)
    beyond = (x <= low) if upper else (x >= high)
    return jnp.where(inside, mass, jnp.where(beyond, 1.0, 0.0).astype(mass.dtype))


def _inner_mass(
    parameters: ReferenceParameters, reference: Any, x: jax.Array, upper: bool
) -> jax.Array:
    parts = _monotone_parts(reference)
    if parts is not None:
        base, transforms = parts
        for transform in reversed(transforms):
            x = transform.inv(x)
            upper = upper != (transform.sign < 0)
        return tail_mass(ReferenceParameters.of(base), x, upper)
    law = _law(reference)
    if law.mass is not None:
        return law.mass(reference, x, upper)
    if not upper:
        return reference.cdf(x)
    return _quadrature_mass(parameters, x, upper)


@partial(tail_mass.defjvp, symbolic_zeros=True)
def _tail_mass_jvp(upper: bool, primals: tuple, tangents: tuple) -> tuple:
    parameters, x = primals
    parameters_dot, x_dot = tangents
    mass = tail_mass(parameters, x, upper)
    mass_dot = jnp.zeros_like(mass)
    if not isinstance(x_dot, SymbolicZero):
        density = jnp.exp(log_density(parameters.build(), x))
        mass_dot += jnp.where(density > 0, (-density if upper else density) * x_dot, 0)
    leaves_dot, treedef = jax.tree_util.tree_flatten(
        parameters_dot, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero)
    )
    if not all(isinstance(leaf, SymbolicZero) for leaf in leaves_dot):
        leaves = jax.tree_util.tree_leaves(parameters)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        leaves_dot = [
            jnp.zeros_like(leaf) if isinstance(dot, SymbolicZero) else dot
            for leaf, dot in zip(leaves, leaves_dot, strict=True)
        ]
        _, change = jax.jvp(
            lambda values: _quadrature_mass(
                jax.tree_util.tree_unflatten(treedef, values),
                x,
                upper,
                stop=parameters,
            ),
            (leaves,),
            (leaves_dot,),
        )
        mass_dot += change
    return mass, mass_dot


def _quadrature_mass(
    parameters: ReferenceParameters,
    x: jax.Array,
    upper: bool,
    stop: ReferenceParameters | None = None,
) -> jax.Array:
    nodes, log_weights = tail_nodes(stop or parameters, x, upper)
    reference = parameters.build()
    log_values = log_density(reference, nodes)
    used = jnp.isfinite(log_values)
    # Evaluated again where it is finite only: a gradient of an infinity is not a number.
    log_values = log_density(reference, jnp.where(used, nodes, x))
    log_values = jnp.where(used & jnp.isfinite(log_values), log_values, -jnp.inf)
    return jnp.sum(jnp.exp(log_values + log_weights), 0)


def tail_nodes(
    parameters: ReferenceParameters, x: ArrayLike, upper: bool
) -> tuple[jax.Array, jax.Array]:
    """Composite Gauss rule on the tail of a law beyond a point.

    Panels grow geometrically from ``x``, or shrink towards a finite end of the support,
    and are split at the breaks of the density.

    Parameters
    ----------
    parameters
        Parameters of the law; the nodes are constants with respect to them.
    x
        Start of the tail, shape ``(*batch_shape,)``.
    upper
        Whether the tail above is meant.

    Returns
    -------
    tuple
        Nodes and log weights, each ``(num_nodes, *batch_shape)``; the log weight of a
        node on an empty panel is minus infinity.
    """
    reference = jax.lax.stop_gradient(parameters).build()
    x = jnp.asarray(x)
    dtype = x.dtype
    sign = 1.0 if upper else -1.0
    end = jnp.asarray(support_bounds(reference)[1 if upper else 0], dtype)
    fixed = jax.lax.stop_gradient(x)
    shape = jnp.broadcast_shapes(x.shape, reference.batch_shape)
    rank = len(shape)
    column = (-1,) + (1,) * rank
    # Distances from x: geometric from the local length on, or towards the end.
    powers = jnp.asarray(2.0 ** np.arange(-3.0, 100.0), dtype).reshape(column)
    shrink = jnp.asarray(1 - 2.0 ** -np.arange(0.0, 103.0), dtype).reshape(column)
    finite = jnp.isfinite(end)
    span = jnp.where(finite, jnp.abs(end - fixed), 1.0)
    length = _local_length(reference, fixed)
    distances = jnp.where(finite, shrink * span, powers * length)
    limit = jnp.where(finite, span, jnp.asarray(1e37, dtype))
    extra = [b - fixed for b in (*density_breaks(reference), *_as_rows(reference))]
    extra = [jnp.broadcast_to(sign * e, (e.shape[0], *shape)) for e in extra]
    edges = jnp.concatenate(
        [
            jnp.zeros((1, *shape), dtype),
            jnp.broadcast_to(distances, (distances.shape[0], *shape)),
            jnp.broadcast_to(limit, (1, *shape)),
            *extra,
        ]
    ).astype(dtype)
    edges = jnp.sort(jnp.clip(edges, 0.0, limit), axis=0)
    nodes, weights = gauss_legendre(nodes_per_panel(dtype))
    nodes = jnp.asarray((nodes + 1) / 2, dtype).reshape((1, -1) + (1,) * rank)
    log_weights = jnp.asarray(np.log(weights / 2), dtype).reshape(nodes.shape)
    width = jnp.diff(edges, axis=0)[:, None]
    distance = edges[:-1, None] + width * nodes
    log_weights = log_weights + jnp.where(
        width > 0, jnp.log(jnp.where(width > 0, width, 1.0)), -jnp.inf
    )
    # Towards a finite end the nodes shrink with the distance that is left.
    moved = jnp.where(finite, jnp.abs(end - x) / span, 1.0)
    points = jnp.where(
        finite,
        end - sign * moved * (span - distance),
        x + sign * distance,
    )
    log_weights = log_weights + jnp.where(finite, jnp.log(jnp.maximum(moved, 1e-37)), 0)
    return points.reshape(-1, *shape), jnp.broadcast_to(
        log_weights, points.shape
    ).reshape(-1, *shape)


def _as_rows(reference: dist.Distribution) -> list[jax.Array]:
    return [jnp.asarray(kink)[None] for kink in kinks(reference)]


def _local_length(reference: dist.Distribution, x: jax.Array) -> jax.Array:
    """Length over which the density changes at ``x``, never above its finest scale."""
    low, high = support_bounds(reference)
    inside = (x > low) & (x < high)
    safe = jnp.where(inside, x, _interior_point(low, high, x.dtype))
    safe = jnp.broadcast_to(safe, jnp.broadcast_shapes(x.shape, reference.batch_shape))
    slope = jax.grad(lambda y: jnp.sum(reference.log_prob(y)))(safe)
    length = 1 / jnp.maximum(jnp.abs(slope), 1e-30)
    scale = finest_scale(reference)
    if scale is None:
        scale = jnp.abs(safe) + 1e-3
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, jnp.abs(safe) + 1)
    return jnp.minimum(length, scale)


def tail_quantile(
    parameters: ReferenceParameters, mass: jax.Array, start: jax.Array, upper: bool
) -> jax.Array:
    """Point with a given mass below (or above) it, in the tail that begins at ``start``.

    Closed forms where there are any. Other laws have panels so far into their tails
    (:func:`far_breaks`) that hardly a draw lies beyond; there the tail is a power.

    Parameters
    ----------
    parameters
        Parameters of the law.
    mass
        Mass beyond the point, at most that beyond ``start``, shape (...,).
    start
        Start of the tail, shape broadcasting with that of ``mass``.
    upper
        Whether the mass above is meant.

    Returns
    -------
    Array
        Points in the tail; its end where the mass is 0.
    """
    reference = parameters.build()
    end = jnp.asarray(support_bounds(reference)[1 if upper else 0], mass.dtype)
    tiny = jnp.finfo(mass.dtype).tiny
    safe = jnp.maximum(mass, tiny)
    point = _inner_quantile(parameters, reference, safe, start, upper)
    # Rounding must not lead back over the start of the tail, nor past its end.
    point = jnp.clip(point, start, end) if upper else jnp.clip(point, end, start)
    return jnp.where(mass > 0, point, end)


def _inner_quantile(
    parameters: ReferenceParameters,
    reference: Any,
    mass: jax.Array,
    start: jax.Array,
    upper: bool,
) -> jax.Array:
    parts = _monotone_parts(reference)
    if parts is not None:
        base, transforms = parts
        for transform in reversed(transforms):
            start = transform.inv(start)
            upper = upper != (transform.sign < 0)
        point = tail_quantile(ReferenceParameters.of(base), mass, start, upper)
        for transform in transforms:
            point = transform(point)
        return point
    law = _law(reference)
    if law.quantile is not None:
        return law.quantile(reference, mass, upper)
    return _power_quantile(parameters, reference, mass, start, upper)


def _power_quantile(
    parameters: ReferenceParameters,
    reference: Any,
    mass: jax.Array,
    start: jax.Array,
    upper: bool,
) -> jax.Array:
    """Point in a tail that is a power of a distance, given its slope at the start.

    Towards a finite end of the support, of the distance to it; else of the distance
    from the centre, in which an exponential tail is a high power.
    """
    dtype = mass.dtype
    sign = 1.0 if upper else -1.0
    end = jnp.asarray(support_bounds(reference)[1 if upper else 0], dtype)
    finite = jnp.isfinite(end)
    start = jnp.asarray(start, dtype)
    total = tail_mass(parameters, start, upper)
    density = jnp.exp(log_density(reference, start))
    tiny = jnp.finfo(dtype).tiny
    hazard = density / jnp.maximum(total, tiny)
    share = jnp.minimum(mass / jnp.maximum(total, tiny), 1)
    span = jnp.where(finite, jnp.abs(end - start), 1)
    near = jnp.exp(jnp.log(share) / jnp.maximum(span * hazard, 1e-3))
    distance = jnp.maximum(jnp.abs(start - _centre(reference, start)), tiny)
    power = jnp.maximum(distance * hazard, 1e-3)
    far = distance * jnp.expm1(-jnp.log(share) / power)
    return jnp.where(finite, end - sign * span * near, start + sign * far)


def _centre(reference: dist.Distribution, x: jax.Array) -> jax.Array:
    """A location of the law, from which its tails are measured."""
    location = getattr(reference, "loc", None)
    return jnp.zeros_like(x) if location is None else jnp.asarray(location, x.dtype)


# --- checks --------------------------------------------------------------------------


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
    low, high = support_bounds(reference)
    point = _interior_point(low, high, energy.dtype)
    try:
        jax.eval_shape(reference.cdf, jnp.broadcast_to(point, shape))
    except (NotImplementedError, AttributeError) as error:
        raise TypeError(
            f"reference must have a cdf, which {name} does not: {error}"
        ) from None
    if is_concrete((low, high)):
        with jax.ensure_compile_time_eval():
            misses = (np.asarray(low) >= np.asarray(energy.basis.high)) | (
                np.asarray(high) <= np.asarray(energy.basis.low)
            )
        if np.any(misses):
            raise ValueError(
                "reference must have a support that meets the grid "
                f"[{energy.basis.low}, {energy.basis.high}], got {name} on "
                f"[{low}, {high}]."
            )
