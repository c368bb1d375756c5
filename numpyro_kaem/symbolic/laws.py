"""The library of named laws: parameters, log densities, and NumPyro's distributions.

Fits are in NumPy and SciPy, in float64: small arrays and many families would cost far
more to compile than to compute. Only the law that is chosen becomes a distribution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.distributions.skew_normal import SkewNormal

__all__ = ["LAWS", "NamedLaw", "Parameter", "Unit"]


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
