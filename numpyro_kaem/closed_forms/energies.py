"""Sums of simple terms that a learned energy may be."""

from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from numpyro_kaem.bases._base import AbstractBasis, as_float, uniform_breaks
from numpyro_kaem.closed_forms.families import Component

__all__ = [
    "EnergyFit",
    "Features",
    "fit_energies",
    "make_features",
    "tilted_divergence",
]

_NUM_PANELS = 48
# A grid is wide enough for a logarithm where its ends differ by this factor.
_WIDE = 4.0
# Candidates of each length whose divergence is minimised.
_NUM_REFINED = 8
_MAX_STEPS = 60
_TOLERANCE = 1e-10


class Term(NamedTuple):
    """A function of an array module, NumPy or ``jax.numpy``, and the scaled variable.

    ``text`` and ``latex`` call the variable ``t``.
    """

    text: str
    latex: str
    function: Callable[[Any, Any], Any]


def _power(degree: int) -> Term:
    if degree == 1:
        return Term("t", "t", lambda xp, t: t)
    return Term(f"t^{degree}", f"t^{{{degree}}}", lambda xp, t: t**degree)


def _wave(name: str, frequency: int) -> Term:
    argument = "t" if frequency == 1 else f"{frequency} t"
    return Term(
        f"{name}({argument})",
        rf"\{name}({argument})",
        lambda xp, t: getattr(xp, name)(frequency * t),
    )


_SMOOTH = (
    *(_power(degree) for degree in range(1, 5)),
    *(_wave(name, k) for k in range(1, 5) for name in ("sin", "cos")),
    _wave("tanh", 1),
    Term("exp(-t^2/2)", "e^{-t^{2}/2}", lambda xp, t: xp.exp(-0.5 * t**2)),
)
# By the grids for which they are: logarithms need one without negative numbers.
_TERMS = {
    "real": _SMOOTH,
    "from zero": (
        *_SMOOTH,
        Term("log(1 + t)", r"\log(1 + t)", lambda xp, t: xp.log1p(t)),
    ),
    "positive": (*_SMOOTH, Term("log(t)", r"\log t", lambda xp, t: xp.log(t))),
}


class TermBasis(AbstractBasis):
    """The terms as a basis, so that a short energy is an energy like any other.

    The scaled variable is ``offset`` at the lower end of the grid, and changes by
    ``width`` along it.
    """

    dictionary: str = eqx.field(static=True)
    offset: jax.Array
    width: jax.Array

    def __init__(
        self, low: float, high: float, dictionary: str, location: float, scale: float
    ) -> None:
        super().__init__(low, high)
        self.dictionary = dictionary
        self.offset = jnp.asarray((low - location) / scale, float)
        self.width = jnp.asarray((high - low) / scale, float)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms, in the order of the features."""
        return _TERMS[self.dictionary]

    @property
    def num_features(self) -> int:
        """Number of terms."""
        return len(self.terms)

    @property
    def panel_breaks(self) -> tuple[float, ...]:
        """Equal panels: all terms are smooth."""
        return uniform_breaks(_NUM_PANELS)

    def unit_features(
        self, s: Real[ArrayLike, " *shape"]
    ) -> Float[Array, " *shape features"]:
        """Features at ``s`` in [0, 1], shape ``s.shape + (num_terms,)``."""
        t = self.offset + self.width * as_float(s)
        return jnp.stack([term.function(jnp, t) for term in self.terms], axis=-1)


class Features(NamedTuple):
    """The terms at the nodes of a density, shape ``(num_nodes, num_terms)``.

    The scaled variable is ``(z - location) / scale``; ``log_reference`` holds the log
    masses of the reference, up to a constant.
    """

    basis: TermBasis
    location: float
    scale: float
    values: np.ndarray
    log_reference: np.ndarray


class EnergyFit(NamedTuple):
    """A short energy: positions of its terms in the dictionary, and their coefficients.

    The divergence is that from the density, in nats.
    """

    terms: tuple[int, ...]
    coefficients: np.ndarray
    divergence: float


def make_features(component: Component) -> Features:
    """Evaluate the dictionary, in a variable that is scaled by short numbers."""
    low, high = component.grid
    extent = component.extent
    dictionary, location, scale = "real", extent.location, extent.scale
    if low == 0 or (low > 0 and high > _WIDE * low):
        dictionary = "positive" if low > 0 else "from zero"
        location, scale = 0.0, extent.location
    digit = 1 - int(np.floor(np.log10(abs(scale))))
    location, scale = round(location, digit), round(scale, digit)
    basis = TermBasis(low, high, dictionary, location, scale)
    t = (np.clip(component.nodes, low, high) - location) / scale
    values = np.stack([term.function(np, t) for term in basis.terms], axis=-1)
    log_reference = component.log_masses - component.energy
    return Features(basis, location, scale, values, log_reference)


def fit_energies(
    component: Component, features: Features, max_terms: int
) -> list[EnergyFit]:
    """Find the best energy of each length, from one term up."""
    # All subsets of the dictionary are compared by least squares, weighted by the
    # density, which is the divergence to second order. The best few of each length are
    # fitted by minimising the divergence itself, which is convex.
    masses = component.masses
    centred = features.values - masses @ features.values
    size = np.sqrt(masses @ centred**2)
    # Terms do not change where all mass is beyond the grid.
    size = np.where(size > 0, size, 1.0)
    centred = centred / size
    target = component.energy - masses @ component.energy
    gram = centred.T @ (masses[:, None] * centred)
    moment = centred.T @ (masses * target)
    best = []
    for count in range(1, min(max_terms, len(size)) + 1):
        subsets = np.array(list(combinations(range(len(size)), count)))
        blocks = gram[subsets[:, :, None], subsets[:, None, :]]
        # Nearly dependent terms have no coefficients of their own.
        blocks = blocks + 1e-9 * np.eye(count)
        solved = np.linalg.solve(blocks, moment[subsets][..., None])[..., 0]
        explained = np.sum(solved * moment[subsets], axis=-1)
        fits = []
        for i in np.argsort(-explained)[:_NUM_REFINED]:
            terms = tuple(int(term) for term in subsets[i])
            found = _minimise(
                centred[:, terms], masses, features.log_reference, solved[i]
            )
            coefficients = found / size[list(terms)]
            value = tilted_divergence(component, features, terms, coefficients)
            fits.append(EnergyFit(terms, coefficients, value))
        best.append(min(fits, key=lambda fit: fit.divergence))
    return best


def tilted_divergence(
    component: Component,
    features: Features,
    terms: tuple[int, ...],
    coefficients: np.ndarray,
) -> float:
    """Divergence of the density with a short energy from the learned one, in nats."""
    energy = features.values[:, list(terms)] @ coefficients
    change = component.energy - energy
    log_normalizer = _log_sum_exp(features.log_reference + energy)
    log_own = _log_sum_exp(features.log_reference + component.energy)
    return max(float(component.masses @ change + log_normalizer - log_own), 0.0)


def _log_sum_exp(x: np.ndarray) -> float:
    top = x.max()
    return float(top + np.log(np.sum(np.exp(x - top))))


def _minimise(
    values: np.ndarray, masses: np.ndarray, log_reference: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Newton's method with halved steps, in centred terms of unit variance."""

    def state(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        log_mass = log_reference + values @ coefficients
        value = _log_sum_exp(log_mass)
        return value, np.exp(log_mass - value)

    # The best of nothing and least squares, which may be far off in the tails.
    options = [start, np.zeros_like(start)]
    current = min(options, key=lambda c: state(c)[0])
    value, tilted = state(current)
    for _ in range(_MAX_STEPS):
        mean = tilted @ values
        spread = values - mean
        hessian = spread.T @ (tilted[:, None] * spread)
        hessian += 1e-9 * (1 + np.trace(hessian)) * np.eye(len(current))
        step = np.linalg.solve(hessian, mean)
        gain, length = float(mean @ step), 1.0
        while length > 1e-6:
            moved = current - length * step
            trial, masses_there = state(moved)
            if trial <= value - 0.25 * length * gain:
                break
            length /= 2
        else:
            break
        current, value, tilted = moved, trial, masses_there
        if gain < _TOLERANCE:
            break
    return current
