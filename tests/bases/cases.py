"""The table of bases: how each is built, and its features computed another way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import interpolate, special

from numpyro_kaem.bases import RBF, RSWAF, BSpline, Chebyshev, Fourier, Wavelet

# Never at the origin: a scalar grid, and two unequal columns.
GRIDS = {"scalar": (-0.7, 2.6), "columns": ([-0.7, 1.5], [2.6, 1.9])}
WEIGHTS = np.random.default_rng(3).normal(size=64)


@dataclass(frozen=True)
class Case:
    """A basis, and its features at float64 points of [0, 1] by NumPy or SciPy."""

    make: Callable[[Any, Any], Any]
    features: Callable[[np.ndarray], np.ndarray]
    num_features: int
    leaves: int = 0
    continuous: bool = True


def centred(cls, profile, num_basis, bandwidth, **kwargs):
    spacing = 1.0 if num_basis == 1 else 1.0 / (num_basis - 1)
    centres = np.array([0.5]) if num_basis == 1 else np.linspace(0.0, 1.0, num_basis)
    return Case(
        lambda low, high: cls(low, high, num_basis, bandwidth=bandwidth, **kwargs),
        lambda s: profile((s[..., None] - centres) / (spacing * bandwidth)),
        num_basis,
        leaves=1,
    )


def wavelet(profile, kind):
    return centred(Wavelet, profile, 6, 0.75, kind=kind)


def bspline(num_basis, degree):
    cells = num_basis - degree
    knots = np.arange(-degree, num_basis + 1) / cells

    def features(s):
        spline = interpolate.BSpline(knots, np.eye(num_basis), degree)
        return spline(np.asarray(s))

    return Case(
        lambda low, high: BSpline(low, high, num_basis, degree),
        features,
        num_basis,
        continuous=degree > 0,
    )


def fourier(num_frequencies):
    def features(s):
        angles = np.pi * s[..., None] * np.arange(1, num_frequencies + 1)
        return np.concatenate([np.cos(angles), np.sin(angles)], -1)

    return Case(
        lambda low, high: Fourier(low, high, num_frequencies),
        features,
        2 * num_frequencies,
    )


def chebyshev(degree):
    return Case(
        lambda low, high: Chebyshev(low, high, degree),
        lambda s: special.eval_chebyt(np.arange(degree + 1), 2.0 * s[..., None] - 1.0),
        degree + 1,
    )


def gaussian(x):
    return np.exp(-(x**2) / 2)


CASES = {
    "rbf": centred(RBF, gaussian, 7, 1.25),
    "rbf-single": centred(RBF, gaussian, 1, 0.5),
    "rswaf": centred(RSWAF, lambda x: 1 - np.tanh(x) ** 2, 6, 0.75),
    "morlet": wavelet(lambda x: np.cos(5 * x) * gaussian(x), "morlet"),
    "mexican-hat": wavelet(
        lambda x: 2 / (3**0.5 * np.pi**0.25) * (1 - x**2) * gaussian(x), "mexican_hat"
    ),
    "dog": wavelet(lambda x: -x * gaussian(x), "dog"),
    "shannon": wavelet(lambda x: np.sinc(x / 2) * np.cos(3 * np.pi * x / 2), "shannon"),
    "bspline-0": bspline(5, 0),
    "bspline-1": bspline(4, 1),
    "bspline-3": bspline(8, 3),
    "bspline-one-cell": bspline(5, 4),
    "fourier": fourier(4),
    "chebyshev": chebyshev(6),
    "chebyshev-constant": chebyshev(0),
}
