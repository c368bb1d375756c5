"""Families of distributions that a learned density may belong to, and their fit."""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import stats
from scipy.optimize import minimize

from numpyro_kaem.distributions import KAEMMixture, KAEMPrior
from numpyro_kaem.distributions.skew_normal import SkewNormal
from numpyro_kaem.numerics import density, inverse
from numpyro_kaem.references import (
    ReferenceParameters,
    concretely,
    is_concrete,
    support_bounds,
)

__all__ = [
    "FAMILIES",
    "Component",
    "Extent",
    "Family",
    "FamilyFit",
    "components",
    "distance",
    "divergence_of",
    "fit_family",
    "marginals_of",
]

_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
# Nodes of less mass cannot matter to a divergence that is finite.
_NO_MASS = 1e-20
_LEVELS = (0.16, 0.5, 0.84)
# Bound of the exponent of a positive parameter.
_LARGE = 300.0
# Stands for an infinite divergence, which would stop an optimiser for good.
_HUGE = 1e30
# Skewness at which fits start.
_SKEWNESS = 2.0
# Of the fit of Normal mixtures: quantiles at which starts divide the density, ratio of
# the scales of concentric components, and a lower bound of the weights, and of the
# scales in units of the density's.
_CUTS = (0.1, 0.25, 0.4, 0.6, 0.75, 0.9)
_WIDTHS = 3.0
_NUM_STEPS = 60
_FLOOR = 1e-2


# --- learned densities at their nodes ------------------------------------------------


class Extent(NamedTuple):
    """Location and scale of a density, and the ends of its support.

    The location is the median, and the scale half the distance between the 16 % and
    84 % quantiles: in these units every fit starts near 0 and 1.
    """

    location: float
    scale: float
    low: float
    high: float


class Component(NamedTuple):
    """One density at its nodes, tails included: float64 arrays, shape ``(num_nodes,)``.

    ``log_masses`` are logs of weight times density, whose sum is 1, and ``cdf`` is the
    mass below each node. ``grid`` holds the ends of the energy's grid. ``parameters``
    are those of the reference, scalars; ``None`` is the uniform one on the grid.
    """

    nodes: np.ndarray
    log_masses: np.ndarray
    log_density: np.ndarray
    cdf: np.ndarray
    energy: np.ndarray
    grid: tuple[float, float]
    parameters: ReferenceParameters | None
    extent: Extent

    @property
    def masses(self) -> np.ndarray:
        """Weight times density."""
        return np.exp(self.log_masses)

    def divergence(self, log_density: np.ndarray) -> float:
        """Divergence from this density of one whose log density at the nodes is given.

        One that is narrower than the spacing of the nodes could seem to be nearer than
        the density itself. Its mass at the nodes is then more than 1; the excess is
        added.
        """
        weights = np.exp(self.log_masses - self.log_density)
        with np.errstate(all="ignore"):
            value = float(self.masses @ (self.log_density - log_density))
            excess = float(weights @ np.exp(log_density)) - 1
        return max(value + max(excess, 0.0), 0.0)

    def used(self) -> "Component":
        """Return the nodes that matter."""
        keep = self.masses > _NO_MASS
        return self._replace(
            nodes=self.nodes[keep],
            log_masses=self.log_masses[keep],
            log_density=self.log_density[keep],
            cdf=self.cdf[keep],
            energy=self.energy[keep],
        )


def marginals_of(prior: dist.Distribution, name: str) -> KAEMPrior:
    """One-dimensional densities of a prior; ``name`` is that of the function called."""
    inner = prior
    while not isinstance(inner, KAEMPrior):
        if isinstance(inner, _WRAPPERS):
            inner = inner.base_dist
        elif isinstance(inner, KAEMMixture):
            inner = inner.prior
        elif isinstance(inner, dist.MixtureSameFamily):
            inner = inner.component_distribution
        else:
            raise TypeError(
                "prior must be a KAEMPrior, a KAEMMixture or a MixtureSameFamily of "
                f"KAEMPrior, got {type(prior).__name__}, which has no "
                "one-dimensional densities of its own."
            )
    if not is_concrete((inner.energy, inner._parameters)):
        raise TypeError(
            f"{name} needs a concrete prior, got a traced one; call it outside of jit, "
            "vmap and grad."
        )
    if 0 in inner.batch_shape:
        raise ValueError(
            f"prior must hold a density, got batch_shape {inner.batch_shape}."
        )
    return inner


def components(prior: KAEMPrior) -> Iterator[Component]:
    """Evaluate all densities of a batch at their nodes, in C order."""
    shape = prior.batch_shape
    with concretely():
        arrays = _evaluate_prior(
            prior._table, prior.energy.on_unit_grid, prior._parameters, prior._panels
        )
        if prior._parameters is not None:
            ends = support_bounds(prior._parameters.build())
        else:
            ends = prior.energy.basis.ends(float)
    arrays = [np.asarray(array, float) for array in arrays]
    low, high, left, right = (
        np.broadcast_to(np.asarray(end, float), shape)
        for end in (*ends, prior.energy.basis.low, prior.energy.basis.high)
    )
    for index in np.ndindex(shape):
        nodes, log_masses, log_density, cdf, energy = (
            array[(slice(None), *index)] for array in arrays
        )
        # The rounding error of the normalizing constant is no part of a divergence.
        log_masses = log_masses - np.log(np.sum(np.exp(log_masses)))
        order = np.argsort(cdf)
        points = np.interp(_LEVELS, cdf[order], nodes[order])
        yield Component(
            nodes,
            log_masses,
            log_density,
            cdf,
            energy,
            grid=(float(left[index]), float(right[index])),
            parameters=_select(prior._parameters, shape, index),
            extent=Extent(
                location=float(points[1]),
                scale=float(points[2] - points[0]) / 2,
                low=float(low[index]),
                high=float(high[index]),
            ),
        )


@jax.jit
def _evaluate_prior(
    table: Any, energy: Any, parameters: Any, panels: Any
) -> tuple[jax.Array, ...]:
    log_normalizer = table.log_normalizer
    nodes, log_masses = density.log_nodes(energy, parameters, panels, log_normalizer)
    log_density = density.log_prob(energy, parameters, log_normalizer, nodes)
    cdf, _ = inverse.cdf_pair(table, energy, parameters, nodes)
    return nodes, log_masses, log_density, cdf, energy(nodes)


def _select(
    parameters: ReferenceParameters | None, shape: tuple[int, ...], index: tuple
) -> ReferenceParameters | None:
    """Parameters of one component of a batch."""
    return jax.tree_util.tree_map(
        lambda leaf: jnp.broadcast_to(leaf, shape)[index], parameters
    )


def distance(component: Component, other: dist.Distribution) -> tuple[float, float]:
    """Divergence of a distribution from a density, and largest difference of cdfs."""
    # Up to a power of two, so that compiled code is shared.
    count = len(component.nodes)
    size = max(256, 1 << (count - 1).bit_length())
    padding = np.full(size - count, component.nodes[0])
    z = jnp.asarray(np.append(component.nodes, padding), jnp.zeros(()).dtype)
    # A prior has compiled code of its own.
    own = isinstance(other, KAEMPrior)
    values = (other.log_prob(z), other.cdf(z)) if own else _evaluate(other, z)
    log_density, cdf = (np.asarray(value, float)[:count] for value in values)
    cdf_error = float(np.max(np.abs(component.cdf - cdf)))
    return component.divergence(log_density), cdf_error


@jax.jit
def _evaluate(
    distribution: dist.Distribution, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return distribution.log_prob(z), distribution.cdf(z)


# --- families ------------------------------------------------------------------------


class Parameter(NamedTuple):
    """A parameter of a family, as a function of free real numbers.

    It has NumPyro's name, and a symbol in LaTeX. ``kind`` is ``"location"``,
    ``"scale"``, ``"rate"``, ``"shape"`` (positive), ``"real"``, ``"log location"`` or
    ``"proportions"``; fits start at the free number ``start``.
    """

    name: str
    symbol: str
    kind: str
    start: float = 0.0

    def constrain(self, free: np.ndarray, extent: Extent) -> np.ndarray:
        """Value of the parameter."""
        if self.kind == "location":
            return extent.location + extent.scale * free
        if self.kind == "log location":
            return np.log(extent.location) + free
        if self.kind == "real":
            return free
        if self.kind == "proportions":
            shares = np.exp(np.append(free, 0.0) - max(*free, 0.0))
            return shares / shares.sum()
        factor = {"scale": extent.scale, "rate": 1 / extent.scale, "shape": 1.0}[
            self.kind
        ]
        return factor * np.exp(np.clip(free, -_LARGE, _LARGE))

    def round(self, value: np.ndarray, digits: int, scale: np.ndarray) -> np.ndarray:
        """Value in so many digits; those of a location begin at the scale's."""
        if self.kind == "proportions":
            rounded = np.round(value, digits)
            return np.append(rounded[:-1], np.round(1 - rounded[:-1].sum(), digits))
        size = scale if self.kind == "location" else np.abs(value)
        if self.kind == "log location":
            size = np.ones_like(value)
        exponent = np.floor(np.log10(np.where(size > 0, size, 1.0)))
        decimals = np.clip(digits - 1 - exponent, -300, 300).astype(int)
        return np.vectorize(round)(value.astype(float), decimals).astype(float)


class Family(NamedTuple):
    """A family of distributions, or of mixtures of ``num_components`` of them.

    ``log_density`` takes points, the extent of the density, and the values of the
    parameters by name, and ``build`` the latter two, to NumPyro's distribution. The
    ``support`` is ``None`` where its ends are those of the density, both finite.
    """

    name: str
    parameters: tuple[Parameter, ...]
    log_density: Callable[..., np.ndarray]
    build: Callable[..., dist.Distribution]
    support: tuple[float, float] | None = (-np.inf, np.inf)
    num_components: int = 1

    @property
    def num_free(self) -> int:
        """Number of free numbers."""
        total = self.num_components * len(self.parameters)
        return total - (self.num_components > 1)

    def covers(self, extent: Extent) -> bool:
        """Whether the family has mass everywhere on the support of a density."""
        if self.support is None:
            return bool(np.isfinite(extent.low) and np.isfinite(extent.high))
        return self.support[0] <= extent.low and extent.high <= self.support[1]

    def values(self, free: np.ndarray, extent: Extent) -> dict[str, np.ndarray]:
        """Parameters by name: scalars, or arrays with one entry per component."""
        parts = list(free)
        if self.num_components > 1:
            cuts = [self.num_components - 1, 2 * self.num_components - 1]
            parts = np.split(free, cuts)
        return {
            parameter.name: parameter.constrain(part, extent)
            for parameter, part in zip(self.parameters, parts, strict=True)
        }

    def rounded(
        self, values: dict[str, np.ndarray], digits: int, extent: Extent
    ) -> dict[str, np.ndarray]:
        """Parameters in so many significant digits."""
        scale = values.get("scale", np.asarray(extent.scale))
        return {
            parameter.name: parameter.round(values[parameter.name], digits, scale)
            for parameter in self.parameters
        }


def _scipy(of_scipy: Any, *shapes: str) -> Callable[..., np.ndarray]:
    """Log density of SciPy, whose shape parameters have other names here."""

    def log_density(z: np.ndarray, extent: Extent, **values: Any) -> np.ndarray:
        scale = 1 / values["rate"] if "rate" in values else values["scale"]
        rest = [values[shape] for shape in shapes]
        return of_scipy.logpdf(z, *rest, loc=values.get("loc", 0.0), scale=scale)

    return log_density


def _numpyro(kind: Callable[..., dist.Distribution]) -> Callable:
    return lambda extent, **values: kind(**values)


def _log_normal(z: np.ndarray, extent: Extent, loc: Any, scale: Any) -> np.ndarray:
    return stats.norm.logpdf(np.log(z), loc, scale) - np.log(z)


def _asymmetric_laplace(
    z: np.ndarray, extent: Extent, loc: Any, scale: Any, asymmetry: Any = 1.0
) -> np.ndarray:
    y = (z - loc) / scale
    slope = np.where(y < 0, 1 / asymmetry, -asymmetry)
    return y * slope - np.log(scale * (asymmetry + 1 / asymmetry))


def _beta(
    z: np.ndarray, extent: Extent, concentration1: Any, concentration0: Any
) -> np.ndarray:
    width = extent.high - extent.low
    return stats.beta.logpdf(z, concentration1, concentration0, extent.low, width)


def _build_beta(extent: Extent, **values: Any) -> dist.Distribution:
    standard = dist.Beta(**values)
    if (extent.low, extent.high) == (0.0, 1.0):
        return standard
    interval = dist.transforms.AffineTransform(extent.low, extent.high - extent.low)
    return dist.TransformedDistribution(standard, interval)


def _truncated_normal(
    z: np.ndarray, extent: Extent, loc: Any, scale: Any
) -> np.ndarray:
    ends = (extent.low - loc) / scale, (extent.high - loc) / scale
    return stats.truncnorm.logpdf(z, *ends, loc, scale)


def _normal_mixture(
    z: np.ndarray, extent: Extent, probs: Any, loc: Any, scale: Any
) -> np.ndarray:
    y = (z[:, None] - loc) / scale
    with np.errstate(divide="ignore"):
        logs = np.log(probs / scale) - 0.5 * y**2 - 0.5 * np.log(2 * np.pi)
    top = logs.max(1)
    return top + np.log(np.exp(logs - top[:, None]).sum(1))


def _build_normal_mixture(
    extent: Extent, probs: Any, loc: Any, scale: Any
) -> dist.Distribution:
    return dist.MixtureSameFamily(
        dist.Categorical(probs=probs), dist.Normal(loc, scale)
    )


_LOC = Parameter("loc", r"\mu", "location")
_SCALE = Parameter("scale", r"\sigma", "scale")
_RATE = Parameter("rate", r"\beta", "rate")
_CONCENTRATION = Parameter("concentration", r"\alpha", "shape", 0.7)
_BETA = (
    Parameter("concentration1", r"\alpha", "shape", 0.3),
    Parameter("concentration0", r"\beta", "shape", 0.3),
)
_COMPONENTS = (Parameter("probs", "w", "proportions"), _LOC, _SCALE)


def _real(kind: type, of_scipy: Any, *shapes: Parameter) -> Family:
    log_density = _scipy(of_scipy, *(shape.name for shape in shapes))
    return Family(kind.__name__, (*shapes, _LOC, _SCALE), log_density, _numpyro(kind))


def _positive(
    kind: type,
    parameters: tuple[Parameter, ...],
    log_density: Callable[..., np.ndarray],
) -> Family:
    support = (0.0, np.inf)
    return Family(kind.__name__, parameters, log_density, _numpyro(kind), support)


FAMILIES: tuple[Family, ...] = (
    Family(
        "Uniform",
        (),
        lambda z, extent: np.full(len(z), -np.log(extent.high - extent.low)),
        lambda extent: dist.Uniform(extent.low, extent.high),
        None,
    ),
    _real(dist.Normal, stats.norm),
    # SciPy's log density is the logarithm of a density that vanishes far out.
    Family("Laplace", (_LOC, _SCALE), _asymmetric_laplace, _numpyro(dist.Laplace)),
    _real(dist.Logistic, stats.logistic),
    _real(dist.Cauchy, stats.cauchy),
    _real(dist.Gumbel, stats.gumbel_r),
    _real(dist.StudentT, stats.t, Parameter("df", r"\nu", "shape", 1.6)),
    _real(SkewNormal, stats.skewnorm, Parameter("skewness", r"\alpha", "real")),
    Family(
        "AsymmetricLaplace",
        (_LOC, _SCALE, Parameter("asymmetry", r"\kappa", "shape")),
        _asymmetric_laplace,
        _numpyro(dist.AsymmetricLaplace),
    ),
    _positive(dist.Exponential, (_RATE,), _scipy(stats.expon)),
    _positive(dist.HalfNormal, (_SCALE,), _scipy(stats.halfnorm)),
    _positive(
        dist.Gamma, (_CONCENTRATION, _RATE), _scipy(stats.gamma, "concentration")
    ),
    # NumPyro's rate of an inverse gamma distribution is a scale.
    _positive(
        dist.InverseGamma,
        (_CONCENTRATION, _RATE._replace(kind="scale")),
        lambda z, extent, concentration, rate: stats.invgamma.logpdf(
            z, concentration, scale=rate
        ),
    ),
    _positive(
        dist.Weibull,
        (_CONCENTRATION, _SCALE),
        _scipy(stats.weibull_min, "concentration"),
    ),
    _positive(
        dist.LogNormal,
        (
            _LOC._replace(kind="log location"),
            _SCALE._replace(kind="shape", start=-0.5),
        ),
        _log_normal,
    ),
    Family("Beta", _BETA, _beta, _build_beta, None),
    Family(
        "TruncatedNormal",
        (_LOC, _SCALE),
        _truncated_normal,
        lambda extent, loc, scale: dist.TruncatedNormal(
            loc, scale, low=extent.low, high=extent.high
        ),
        None,
    ),
    *(
        Family(
            f"Mixture of {count} Normal",
            _COMPONENTS,
            _normal_mixture,
            _build_normal_mixture,
            num_components=count,
        )
        for count in (2, 3)
    ),
)


# --- fit -----------------------------------------------------------------------------


class FamilyFit(NamedTuple):
    """Parameters by name, and the divergence from the density in nats."""

    values: dict[str, np.ndarray]
    divergence: float


def fit_family(component: Component, family: Family) -> FamilyFit:
    """Minimise the divergence from a density over a family that covers its support."""

    # This maximises the likelihood, with the density in place of data.
    def loss(free: np.ndarray) -> float:
        return divergence_of(component, family, family.values(free, component.extent))

    fits = [
        minimize(loss, start, method="BFGS", options={"gtol": 1e-6})
        for start in (_starts(component, family) if family.parameters else ())
    ]
    best = min(fits, key=lambda fit: fit.fun).x if fits else np.zeros(0)
    values = family.values(best, component.extent)
    if family.num_components > 1:
        order = np.argsort(values["loc"])
        values = {name: value[order] for name, value in values.items()}
    return FamilyFit(values, divergence_of(component, family, values))


def divergence_of(
    component: Component, family: Family, values: dict[str, np.ndarray]
) -> float:
    """Kullback-Leibler divergence of a distribution from a density, in nats."""
    with np.errstate(all="ignore"):
        log_density = family.log_density(component.nodes, component.extent, **values)
    value = component.divergence(log_density)
    return value if value < _HUGE else _HUGE


def _starts(component: Component, family: Family) -> list[np.ndarray]:
    """Free numbers at which searches start."""
    if family.num_components > 1:
        extent = component.extent
        z = (component.nodes - extent.location) / extent.scale
        weights, means, scales = _fit_normal_mixture(
            z, component.masses, family.num_components
        )
        logits = np.log(weights[:-1] / weights[-1])
        return [np.concatenate([logits, means, np.log(scales)])]
    start = np.array([parameter.start for parameter in family.parameters])
    skewed = np.array([parameter.kind == "real" for parameter in family.parameters])
    if not skewed.any():
        return [start]
    # Without skewness a skew-Normal density is Normal, which is a saddle point.
    return [start + sign * _SKEWNESS * skewed for sign in (-1.0, 1.0)]


def _fit_normal_mixture(
    z: np.ndarray, masses: np.ndarray, num_components: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and scales of the best of several runs of EM.

    A start divides the density at some of its quantiles, or puts narrow and wide
    components in one place.
    """
    keep = masses > 1e-12
    z, masses = z[keep], masses[keep]
    order = np.argsort(z)
    level = np.empty(len(z))
    level[order] = np.cumsum(masses[order])
    # Responsibilities, of shape (start, component, node).
    starts = [
        np.digitize(level, cuts) == np.arange(num_components)[:, None]
        for cuts in combinations(_CUTS, num_components - 1)
    ]
    widths = 0.5 * _WIDTHS ** np.arange(num_components)[:, None]
    parts = np.exp(-0.5 * (z / widths) ** 2) / widths + 1e-30
    starts.append(parts / parts.sum(0))
    shares = np.stack([np.asarray(start, float) for start in starts])
    for _ in range(_NUM_STEPS):
        shares = shares * masses
        weights = np.maximum(shares.sum(-1), _FLOOR)
        means = (shares @ z) / weights
        squares = np.sum(shares * (z - means[..., None]) ** 2, axis=-1) / weights
        scales = np.sqrt(np.maximum(squares, _FLOOR**2))
        logs = -0.5 * ((z - means[..., None]) / scales[..., None]) ** 2
        logs += np.log(weights / scales)[..., None]
        top = logs.max(1, keepdims=True)
        parts = np.exp(logs - top)
        total = parts.sum(1, keepdims=True)
        shares = parts / total
        value = np.sum(masses * (np.log(total) + top)[:, 0], axis=-1)
    best = int(np.argmax(value))
    return weights[best], means[best], scales[best]
