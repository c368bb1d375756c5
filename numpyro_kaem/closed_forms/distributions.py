"""Named distributions that a learned density may be, and their fit."""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

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
    "LAWS",
    "Component",
    "LawFit",
    "NamedLaw",
    "Parameter",
    "Unit",
    "best_normal_mixture",
    "components",
    "distance",
    "divergence_of",
    "fit_law",
    "marginals_of",
]


class Unit(NamedTuple):
    """Where a density lies, so that every fit starts near 0 and 1."""

    location: float
    """Median."""
    scale: float
    """Half the distance between the 16 % and 84 % quantiles."""
    low: float
    """Lower end of the support."""
    high: float
    """Upper end of the support."""


class Parameter(NamedTuple):
    """A parameter of a law, as a function of free real numbers."""

    name: str
    """NumPyro's name of it."""
    symbol: str
    """Its symbol in LaTeX."""
    kind: str
    """``"location"``, ``"scale"``, ``"rate"``, ``"shape"`` (positive), ``"real"``,
    ``"log location"`` or ``"proportions"``."""
    start: float = 0.0
    """Free number at which the fit starts."""

    def constrain(self, free: np.ndarray, unit: Unit) -> np.ndarray:
        """Value of the parameter."""
        if self.kind == "location":
            return unit.location + unit.scale * free
        if self.kind == "log location":
            return np.log(unit.location) + free
        if self.kind == "real":
            return free
        if self.kind == "proportions":
            shares = np.exp(np.append(free, 0.0) - max(*free, 0.0))
            return shares / shares.sum()
        factor = {"scale": unit.scale, "rate": 1 / unit.scale, "shape": 1.0}[self.kind]
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


class NamedLaw(NamedTuple):
    """A family of laws."""

    name: str
    """Name of the family, also in the text of a result."""
    parameters: tuple[Parameter, ...]
    """Parameters that are fitted."""
    log_density: Callable[..., np.ndarray]
    """Log density at points, the unit, and the values of the parameters by name."""
    build: Callable[..., dist.Distribution]
    """NumPyro's distribution, from the unit and the values of the parameters by name.
    """
    support: tuple[float, float] | None = (-np.inf, np.inf)
    """Ends of the support; ``None`` where they are those of the density, both finite.
    """
    num_components: int = 1
    """Number of components of a mixture."""

    @property
    def num_free(self) -> int:
        """Number of free numbers."""
        total = self.num_components * len(self.parameters)
        return total - (self.num_components > 1)

    def covers(self, unit: Unit) -> bool:
        """Whether the law has mass everywhere on a support."""
        if self.support is None:
            return bool(np.isfinite(unit.low) and np.isfinite(unit.high))
        return self.support[0] <= unit.low and unit.high <= self.support[1]

    def values(self, free: np.ndarray, unit: Unit) -> dict[str, np.ndarray]:
        """Parameters by name: scalars, or arrays with one entry for each component."""
        parts = list(free)
        if self.num_components > 1:
            cuts = [self.num_components - 1, 2 * self.num_components - 1]
            parts = np.split(free, cuts)
        return {
            parameter.name: parameter.constrain(part, unit)
            for parameter, part in zip(self.parameters, parts, strict=True)
        }

    def rounded(
        self, values: dict[str, np.ndarray], digits: int, unit: Unit
    ) -> dict[str, np.ndarray]:
        """Parameters in so many significant digits."""
        scale = values.get("scale", np.asarray(unit.scale))
        return {
            parameter.name: parameter.round(values[parameter.name], digits, scale)
            for parameter in self.parameters
        }


def _scipy(name: str, *shapes: str, scale: str = "scale") -> Callable[..., np.ndarray]:
    """Log density of a law of SciPy, whose shapes have other names here."""

    def log_density(z: np.ndarray, unit: Unit, **values: Any) -> np.ndarray:
        # Here, because it is slow to import.
        from scipy import stats

        law = getattr(stats, name)
        rest = [values[shape] for shape in shapes]
        width = 1 / values["rate"] if scale == "rate" else values["scale"]
        return law.logpdf(z, *rest, loc=values.get("loc", 0.0), scale=width)

    return log_density


def _log_normal(z: np.ndarray, unit: Unit, loc: Any, scale: Any) -> np.ndarray:
    from scipy import stats

    return stats.norm.logpdf(np.log(z), loc, scale) - np.log(z)


def _asymmetric_laplace(
    z: np.ndarray, unit: Unit, loc: Any, scale: Any, asymmetry: Any = 1.0
) -> np.ndarray:
    y = (z - loc) / scale
    slope = np.where(y < 0, 1 / asymmetry, -asymmetry)
    return y * slope - np.log(scale * (asymmetry + 1 / asymmetry))


def _beta(
    z: np.ndarray, unit: Unit, concentration1: Any, concentration0: Any
) -> np.ndarray:
    from scipy import stats

    width = unit.high - unit.low
    return stats.beta.logpdf(z, concentration1, concentration0, unit.low, width)


def _truncated_normal(z: np.ndarray, unit: Unit, loc: Any, scale: Any) -> np.ndarray:
    from scipy import stats

    ends = (unit.low - loc) / scale, (unit.high - loc) / scale
    return stats.truncnorm.logpdf(z, *ends, loc, scale)


def _normal_mixture(
    z: np.ndarray, unit: Unit, probs: Any, loc: Any, scale: Any
) -> np.ndarray:
    y = (z[:, None] - loc) / scale
    with np.errstate(divide="ignore"):
        logs = np.log(probs / scale) - 0.5 * y**2 - 0.5 * np.log(2 * np.pi)
    top = logs.max(1)
    return top + np.log(np.exp(logs - top[:, None]).sum(1))


def _plainly(law: Callable[..., dist.Distribution]) -> Callable:
    return lambda unit, **values: law(**values)


def _build_beta(unit: Unit, **values: Any) -> dist.Distribution:
    law = dist.Beta(**values)
    if (unit.low, unit.high) == (0.0, 1.0):
        return law
    place = dist.transforms.AffineTransform(unit.low, unit.high - unit.low)
    return dist.TransformedDistribution(law, place)


def _build_mixture(unit: Unit, probs: Any, loc: Any, scale: Any) -> dist.Distribution:
    return dist.MixtureSameFamily(
        dist.Categorical(probs=probs), dist.Normal(loc, scale)
    )


_LARGE = 300.0
_POSITIVE = (0.0, np.inf)
_LOC = Parameter("loc", r"\mu", "location")
_SCALE = Parameter("scale", r"\sigma", "scale")
_RATE = Parameter("rate", r"\beta", "rate")
_CONCENTRATION = Parameter("concentration", r"\alpha", "shape", 0.7)
_BETA = (
    Parameter("concentration1", r"\alpha", "shape", 0.3),
    Parameter("concentration0", r"\beta", "shape", 0.3),
)
_COMPONENTS = (Parameter("probs", "w", "proportions"), _LOC, _SCALE)


def _real(name: str, of_scipy: str, *shapes: Parameter) -> NamedLaw:
    log_density = _scipy(of_scipy, *(shape.name for shape in shapes))
    law = SkewNormal if name == "SkewNormal" else getattr(dist, name)
    return NamedLaw(name, (*shapes, _LOC, _SCALE), log_density, _plainly(law))


def _positive(name: str, of_scipy: str, *parameters: Parameter) -> NamedLaw:
    shapes = [p.name for p in parameters if p.kind == "shape"]
    log_density = _scipy(of_scipy, *shapes, scale=parameters[-1].kind)
    return NamedLaw(
        name, parameters, log_density, _plainly(getattr(dist, name)), _POSITIVE
    )


LAWS: tuple[NamedLaw, ...] = (
    NamedLaw(
        "Uniform",
        (),
        lambda z, unit: np.full(len(z), -np.log(unit.high - unit.low)),
        lambda unit: dist.Uniform(unit.low, unit.high),
        None,
    ),
    _real("Normal", "norm"),
    # SciPy's log density is the logarithm of a density that vanishes far out.
    NamedLaw("Laplace", (_LOC, _SCALE), _asymmetric_laplace, _plainly(dist.Laplace)),
    _real("Logistic", "logistic"),
    _real("Cauchy", "cauchy"),
    _real("Gumbel", "gumbel_r"),
    _real("StudentT", "t", Parameter("df", r"\nu", "shape", 1.6)),
    _real("SkewNormal", "skewnorm", Parameter("skewness", r"\alpha", "real")),
    NamedLaw(
        "AsymmetricLaplace",
        (_LOC, _SCALE, Parameter("asymmetry", r"\kappa", "shape")),
        _asymmetric_laplace,
        _plainly(dist.AsymmetricLaplace),
    ),
    _positive("Exponential", "expon", _RATE),
    _positive("HalfNormal", "halfnorm", _SCALE),
    _positive("Gamma", "gamma", _CONCENTRATION, _RATE),
    # NumPyro's rate of the inverse gamma law is a scale.
    NamedLaw(
        "InverseGamma",
        (_CONCENTRATION, _RATE._replace(kind="scale")),
        lambda z, unit, concentration, rate: _scipy("invgamma", "concentration")(
            z, unit, concentration=concentration, scale=rate
        ),
        _plainly(dist.InverseGamma),
        _POSITIVE,
    ),
    _positive("Weibull", "weibull_min", _CONCENTRATION, _SCALE),
    NamedLaw(
        "LogNormal",
        (
            _LOC._replace(kind="log location"),
            _SCALE._replace(kind="shape", start=-0.5),
        ),
        _log_normal,
        _plainly(dist.LogNormal),
        _POSITIVE,
    ),
    NamedLaw("Beta", _BETA, _beta, _build_beta, None),
    NamedLaw(
        "TruncatedNormal",
        (_LOC, _SCALE),
        _truncated_normal,
        lambda unit, loc, scale: dist.TruncatedNormal(
            loc, scale, low=unit.low, high=unit.high
        ),
        None,
    ),
    *(
        NamedLaw(
            f"Mixture of {count} Normal",
            _COMPONENTS,
            _normal_mixture,
            _build_mixture,
            num_components=count,
        )
        for count in (2, 3)
    ),
)
"""Every law that a density is compared with."""


_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
# Nodes of less mass cannot matter to a divergence that is finite.
_NO_MASS = 1e-20
_LEVELS = (0.16, 0.5, 0.84)


class Component(NamedTuple):
    """One density at its nodes, float64 arrays of shape ``(num_nodes,)``."""

    nodes: np.ndarray
    """Nodes, tails included."""
    log_masses: np.ndarray
    """Log of weight times density; the masses sum to 1."""
    log_density: np.ndarray
    """Log density."""
    cdf: np.ndarray
    """Mass below each node."""
    energy: np.ndarray
    """Energy."""
    grid: tuple[float, float]
    """Ends of the grid of the energy."""
    parameters: ReferenceParameters | None
    """Parameters of the reference, scalars; ``None`` is the uniform law on the grid."""
    unit: Unit
    """Where the density lies."""

    @property
    def masses(self) -> np.ndarray:
        """Weight times density."""
        return np.exp(self.log_masses)

    @property
    def reference(self) -> dist.Distribution | None:
        """The reference, or ``None``."""
        return None if self.parameters is None else self.parameters.build()

    @property
    def weights(self) -> np.ndarray:
        """Weights of the quadrature, in units of the nodes."""
        return np.exp(self.log_masses - self.log_density)

    def divergence(self, log_density: np.ndarray) -> float:
        """Divergence of a law, whose log density at the nodes is given, from this one.

        A law that is narrower than the nodes are apart could seem to be nearer than the
        density itself. It then has more mass than 1 at the nodes, which is added.
        """
        with np.errstate(all="ignore"):
            value = float(self.masses @ (self.log_density - log_density))
            excess = float(self.weights @ np.exp(log_density)) - 1
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
    """Find the one-dimensional densities of a prior, those of components included.

    Parameters
    ----------
    prior
        A :class:`KAEMPrior`, :class:`KAEMMixture`, or a ``MixtureSameFamily`` of
        :class:`KAEMPrior`, any of them with ``to_event``, expanded or masked.
    name
        Name of the function that the user called.

    Raises
    ------
    TypeError
        If there are none, or they are traced.
    ValueError
        If the batch is empty.
    """
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
        if prior._parameters is None:
            ends = prior.energy.basis.low, prior.energy.basis.high
        else:
            ends = support_bounds(prior._parameters.build())
    arrays = [np.asarray(array, float) for array in arrays]
    low, high, left, right = (
        np.broadcast_to(np.asarray(end, float), shape)
        for end in (*ends, prior.energy.basis.low, prior.energy.basis.high)
    )
    for index in np.ndindex(shape):
        nodes, log_masses, log_density, cdf, energy = (
            array[(slice(None), *index)] for array in arrays
        )
        # Rounding of the normaliser is no part of a divergence.
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
            unit=Unit(
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


@jax.jit
def _evaluate(law: Any, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    return law.log_prob(z), law.cdf(z)


def distance(component: Component, law: dist.Distribution) -> tuple[float, float]:
    """Measure how far a law is from a density.

    Parameters
    ----------
    component
        The density, at the nodes that matter.
    law
        The law; it covers the support of the density.

    Returns
    -------
    tuple
        Kullback-Leibler divergence of the law from the density in nats, by the
        quadrature of the density, and the largest distance of the distribution
        functions at its nodes.
    """
    # Up to a power of two, so that compiled code is shared.
    count = len(component.nodes)
    size = max(256, 1 << (count - 1).bit_length())
    z = np.append(component.nodes, np.full(size - count, component.nodes[0]))
    z = jnp.asarray(z, jnp.zeros(()).dtype)
    # A prior has compiled code of its own.
    own = isinstance(law, KAEMPrior)
    values = (law.log_prob(z), law.cdf(z)) if own else _evaluate(law, z)
    log_density, cdf = (np.asarray(value, float)[:count] for value in values)
    cdf_error = float(np.max(np.abs(component.cdf - cdf)))
    return component.divergence(log_density), cdf_error


_CUTS = (0.1, 0.25, 0.4, 0.6, 0.75, 0.9)
_WIDTHS = 3.0
_NUM_STEPS = 60
# Of the weights, and of the scales in units of the density's.
_FLOOR = 1e-2


def best_normal_mixture(
    z: np.ndarray, masses: np.ndarray, num_components: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Climb the likelihood from several starts, and take the best.

    A start divides the density at some of its quantiles, or puts narrow and wide
    components in one place.

    Parameters
    ----------
    z
        Nodes in units in which the density is about 0 and 1 wide, shape
        ``(num_nodes,)``.
    masses
        Their masses, which sum to 1.
    num_components
        Number of components.

    Returns
    -------
    tuple
        Weights, means and scales, each ``(num_components,)``.

    References
    ----------
    Dempster, Laird and Rubin (1977), "Maximum likelihood from incomplete data via the
    EM algorithm", *Journal of the Royal Statistical Society B* 39(1).
    """
    keep = masses > 1e-12
    z, masses = z[keep], masses[keep]
    order = np.argsort(z)
    level = np.empty(len(z))
    level[order] = np.cumsum(masses[order])
    # Shape (start, component, node).
    shares = [
        np.digitize(level, cuts) == np.arange(num_components)[:, None]
        for cuts in combinations(_CUTS, num_components - 1)
    ]
    shares.append(_scale_mixture(z, num_components))
    shares = np.stack([np.asarray(share, float) for share in shares])
    for _ in range(_NUM_STEPS):
        weights, means, scales = _maximise(shares * masses, z)
        logs = -0.5 * ((z - means[..., None]) / scales[..., None]) ** 2
        logs += np.log(weights / scales)[..., None]
        top = logs.max(1, keepdims=True)
        parts = np.exp(logs - top)
        total = parts.sum(1, keepdims=True)
        shares = parts / total
        value = np.sum(masses * (np.log(total) + top)[:, 0], axis=-1)
    best = int(np.argmax(value))
    return weights[best], means[best], scales[best]


def _scale_mixture(z: np.ndarray, num_components: int) -> np.ndarray:
    """Responsibilities of components in one place, each wider than the last."""
    widths = 0.5 * _WIDTHS ** np.arange(num_components)[:, None]
    parts = np.exp(-0.5 * (z / widths) ** 2) / widths + 1e-30
    return parts / parts.sum(0)


def _maximise(
    masses: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weights = np.maximum(masses.sum(-1), _FLOOR)
    means = (masses @ z) / weights
    squares = np.sum(masses * (z - means[..., None]) ** 2, axis=-1) / weights
    return weights, means, np.sqrt(np.maximum(squares, _FLOOR**2))


_SKEWNESS = 2.0
# Stands for an infinite divergence, which would end a search for good.
_HUGE = 1e30


class LawFit(NamedTuple):
    """A law fitted to a density."""

    values: dict[str, np.ndarray]
    """Parameters by name."""
    divergence: float
    """Divergence from the density, in nats."""


def fit_law(component: Component, law: NamedLaw) -> LawFit:
    """Minimise the divergence from a density over a family of laws.

    This maximises the likelihood, with the density in place of data.

    Parameters
    ----------
    component
        The density, at the nodes that matter.
    law
        The family, which covers the support of the density.

    Returns
    -------
    LawFit
    """
    from scipy.optimize import minimize

    def loss(free: np.ndarray) -> float:
        return divergence_of(component, law, law.values(free, component.unit))

    fits = [
        minimize(loss, start, method="BFGS", options={"gtol": 1e-6})
        for start in (_starts(component, law) if law.parameters else ())
    ]
    best = min(fits, key=lambda fit: fit.fun).x if fits else np.zeros(0)
    values = law.values(best, component.unit)
    if law.num_components > 1:
        order = np.argsort(values["loc"])
        values = {name: value[order] for name, value in values.items()}
    return LawFit(values, divergence_of(component, law, values))


def divergence_of(
    component: Component, law: NamedLaw, values: dict[str, np.ndarray]
) -> float:
    """Kullback-Leibler divergence of a law from a density, in nats."""
    with np.errstate(all="ignore"):
        log_density = law.log_density(component.nodes, component.unit, **values)
    value = component.divergence(log_density)
    return value if value < _HUGE else _HUGE


def _starts(component: Component, law: NamedLaw) -> list[np.ndarray]:
    """Free numbers at which searches start."""
    if law.num_components > 1:
        return [_mixture_start(component, law.num_components)]
    start = np.array([parameter.start for parameter in law.parameters])
    skewed = np.array([parameter.kind == "real" for parameter in law.parameters])
    if not skewed.any():
        return [start]
    # Without skewness the skew normal law is Normal, which is a saddle point.
    return [start + sign * _SKEWNESS * skewed for sign in (-1.0, 1.0)]


def _mixture_start(component: Component, num_components: int) -> np.ndarray:
    unit = component.unit
    z = (component.nodes - unit.location) / unit.scale
    weights, means, scales = best_normal_mixture(z, component.masses, num_components)
    logits = np.log(weights[:-1] / weights[-1])
    return np.concatenate([logits, means, np.log(scales)])
