"""The named law that is nearest to a density."""

from typing import NamedTuple

import numpy as np

from numpyro_kaem.symbolic.laws import NamedLaw
from numpyro_kaem.symbolic.mixture_start import best_normal_mixture
from numpyro_kaem.symbolic.nodes import Component

__all__ = ["LawFit", "divergence_of", "fit_law"]

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
