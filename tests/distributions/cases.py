"""Tables of references and densities, and the same densities by NumPy and SciPy alone.

All locations, scales and grid ends are float32 numbers, and coefficients are rounded to
the precision of the run, so that both sides compute the same density.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import special, stats

from numpyro_kaem import Energy, KAEMPrior
from tests.bases.cases import CASES as BASES

GAUSS = np.polynomial.legendre.leggauss(20)

ACTIVATIONS = {
    "silu": lambda z: z * special.expit(z),
    "gelu": lambda z: (
        0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    ),
    "softplus": lambda z: np.logaddexp(0.0, z),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0.0),
    "identity": lambda z: z,
    "square": np.square,
}


@dataclass(frozen=True)
class Reference:
    """A reference of NumPyro, the same distribution of SciPy, and a grid not at 0."""

    make: Callable[[], Any]
    distribution: Any
    grid: tuple[float, float]
    breaks: tuple[float, ...] = field(default=())
    """Points inside the grid where a derivative of the density jumps."""
    singular: bool = False
    """Whether the density or a derivative of it is infinite at an end in the grid."""


REFERENCES = {
    "default": Reference(lambda: None, stats.uniform(-0.75, 3.25), (-0.75, 2.5)),
    "uniform": Reference(
        lambda: dist.Uniform(-1.5, 3.0), stats.uniform(-1.5, 4.5), (-0.75, 2.5)
    ),
    "uniform-inside": Reference(
        lambda: dist.Uniform(-0.25, 1.75), stats.uniform(-0.25, 2.0), (-0.75, 2.5)
    ),
    "normal": Reference(
        lambda: dist.Normal(1.25, 0.75), stats.norm(1.25, 0.75), (-0.75, 2.5)
    ),
    "lognormal": Reference(
        lambda: dist.LogNormal(0.25, 0.5),
        stats.lognorm(0.5, scale=np.exp(0.25)),
        (0.25, 3.75),
    ),
    "lognormal-from-0": Reference(
        lambda: dist.LogNormal(0.25, 0.5),
        stats.lognorm(0.5, scale=np.exp(0.25)),
        (-0.5, 3.0),
    ),
    "laplace": Reference(
        lambda: dist.Laplace(0.8125, 0.5),
        stats.laplace(0.8125, 0.5),
        (-0.75, 2.5),
        breaks=(0.8125,),
    ),
    "student-t": Reference(
        lambda: dist.StudentT(3.5, 1.0, 0.75), stats.t(3.5, 1.0, 0.75), (-2.0, 3.5)
    ),
    "gamma": Reference(
        lambda: dist.Gamma(2.5, 1.5), stats.gamma(2.5, scale=1 / 1.5), (0.25, 4.0)
    ),
    "gamma-singular": Reference(
        lambda: dist.Gamma(0.5, 0.75),
        stats.gamma(0.5, scale=1 / 0.75),
        (-0.5, 3.0),
        singular=True,
    ),
    "beta": Reference(lambda: dist.Beta(2.5, 1.5), stats.beta(2.5, 1.5), (0.125, 0.75)),
    "beta-singular": Reference(
        lambda: dist.Beta(0.5, 0.5), stats.beta(0.5, 0.5), (-0.25, 1.5), singular=True
    ),
    "cauchy": Reference(
        lambda: dist.Cauchy(0.5, 0.75), stats.cauchy(0.5, 0.75), (-2.0, 3.5)
    ),
    "gumbel": Reference(
        lambda: dist.Gumbel(0.5, 0.75), stats.gumbel_r(0.5, 0.75), (-1.0, 3.5)
    ),
}

# Every basis once, every reference at least once.
DIAGONAL = [
    ("rbf", "default"),
    ("rbf-single", "uniform"),
    ("bspline-0", "gumbel"),
    ("bspline-1", "uniform-inside"),
    ("bspline-3", "normal"),
    ("fourier", "laplace"),
    ("chebyshev", "student-t"),
    ("rswaf", "gamma"),
    ("morlet", "lognormal-from-0"),
    ("mexican-hat", "cauchy"),
    ("dog", "beta"),
    ("shannon", "lognormal"),
    ("rbf", "gamma-singular"),
    ("bspline-3", "beta-singular"),
]
# Of these by default: a smooth and a rough basis, each kind of end and of tail.
SHORT = [DIAGONAL[i] for i in (0, 4, 5, 12)]
NUM_ENERGIES = 50


class Oracle:
    """Tilted densities by composite Gauss rules in NumPy, with SciPy's tails.

    Panels are far finer than those of the library and shrink to every end of the
    support inside the grid.

    Parameters
    ----------
    energy
        Energies of all columns at points of the grid, in float64: ``(..., 1)`` or
        ``(..., columns)`` to ``(..., columns)``.
    distribution
        Frozen distribution of SciPy.
    low, high
        Ends of the grid.
    breaks
        More points where the density is not smooth.
    """

    def __init__(self, energy, distribution, low, high, breaks=(), num_panels=240):
        self.energy = lambda z: energy(np.clip(z, low, high))
        self.distribution = distribution
        ends = distribution.support()
        start, stop = max(low, ends[0]), min(high, ends[1])
        halves = 2.0 ** -np.arange(0.0, 45.0)
        edges = [
            low + (high - low) * np.arange(num_panels + 1) / num_panels,
            np.asarray(breaks, float),
        ]
        if start == ends[0]:
            edges.append(start + (stop - start) * halves)
            start = edges[-1][-1]
        if stop == ends[1]:
            edges.append(stop - (stop - start) * halves)
            stop = edges[-1][-1]
        edges = np.unique(np.clip(np.concatenate(edges), start, stop))
        self.edges = edges
        nodes, weights = GAUSS
        width = np.diff(edges)[:, None]
        self.nodes = edges[:-1, None] + width * (nodes + 1) / 2
        values = self.energy(self.nodes[..., None])
        self.shift = values.max((0, 1))
        log_distribution = distribution.logpdf(self.nodes)[..., None]
        mass = (
            np.exp(values - self.shift + log_distribution)
            * (width * weights / 2)[..., None]
        )
        mass = mass.sum(1)
        ends = [self.energy(np.array([e])) for e in (start, stop)]
        self.tail_scales = [np.exp(e - self.shift) for e in ends]
        below = self.tail_scales[0] * distribution.cdf(start)
        above = self.tail_scales[1] * distribution.sf(stop)
        self.total = below + mass.sum(0) + above
        self.log_normalizer = np.log(self.total) + self.shift
        self.below = np.cumsum(np.concatenate([below[None], mass]), 0) / self.total
        above = np.cumsum(np.concatenate([above[None], mass[::-1]]), 0)[::-1]
        self.above = above / self.total

    def log_prob(self, z):
        """Log densities at ``z``, shape (..., columns)."""
        z = np.asarray(z, float)
        return self.energy(z) + self.distribution.logpdf(z) - self.log_normalizer

    def cdf_pair(self, z):
        """Masses below and above ``z``, shape (points, columns)."""
        z = np.asarray(z, float)
        inner = np.clip(z, self.edges[0], self.edges[-1])
        panel = np.searchsorted(self.edges, inner, side="right") - 1
        panel = np.clip(panel, 0, len(self.edges) - 2)
        column = np.arange(self.below.shape[1])
        below = self.below[panel, column].copy()
        above = self.above[panel + 1, column].copy()
        left, right = self.edges[panel], self.edges[panel + 1]
        nodes, weights = GAUSS
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            for start, stop, total in ((left, inner, below), (inner, right, above)):
                total += (
                    weight
                    * (stop - start)
                    * np.exp(self.log_prob(start + node * (stop - start)))
                )
        low, high = self.edges[0], self.edges[-1]
        scales = [s / self.total for s in self.tail_scales]
        tail = scales[0] * self.distribution.cdf(np.minimum(z, low))
        below, above = np.where(z < low, [tail, 1 - tail], [below, above])
        tail = scales[1] * self.distribution.sf(np.maximum(z, high))
        below, above = np.where(z > high, [1 - tail, tail], [below, above])
        return below, above


def unit_energy(basis, coefficients, low, high, base=None, base_weight=0.0):
    """Energies of a case of the table of bases, in NumPy and float64."""
    coefficients = np.asarray(coefficients, float)

    def energy(z):
        features = basis.features((z - low) / (high - low))
        if z.shape[-1:] == (1,):
            values = features[..., 0, :] @ coefficients.T
        else:
            values = np.einsum("...ng,ng->...n", features, coefficients)
        if base is not None:
            values = values + np.asarray(base_weight, float) * ACTIVATIONS[base](z)
        return values

    return energy


@dataclass(frozen=True)
class Built:
    """A batch of densities, and the same by SciPy."""

    prior: KAEMPrior
    oracle: Oracle
    reference: Reference

    @property
    def dtype(self):
        """Precision of the run."""
        return np.dtype(self.prior.energy.dtype)

    @functools.cached_property
    def reference_error(self):
        """Largest error of NumPyro's own reference: of its cdf, and of its log_prob.

        The mass of a panel is off by the second, relative.
        """
        distribution, reference = self.reference.distribution, self.prior.reference
        edges = self.oracle.edges
        z = np.concatenate([self.oracle.nodes[::2, ::4].ravel(), edges])
        z = np.unique(z.astype(self.dtype))
        z = z[(z > edges[0]) & (z < edges[-1])]
        log_error = np.abs(
            np.asarray(reference.log_prob(z), float) - distribution.logpdf(z)
        )
        cdf_error = np.abs(np.asarray(reference.cdf(z), float) - distribution.cdf(z))
        return max(cdf_error.max(), np.quantile(log_error, 0.99))

    @functools.cached_property
    def energy_error(self):
        """Rounding of the sums of features, which may be larger than the energies."""
        energy = self.prior.energy
        s = np.linspace(0.0, 1.0, 501)
        features = np.abs(np.asarray(energy.basis.unit_features(s), float))
        sizes = features @ np.abs(np.asarray(energy.coefficients, float)).T
        return np.finfo(self.dtype).eps * sizes.max()


@functools.cache
def build(basis, reference, num_energies=NUM_ENERGIES, size=10.0, seed=0):
    """Batch of random densities whose energies are at most ``size``; made once."""
    case, distribution = BASES[basis], REFERENCES[reference]
    low, high = distribution.grid
    rng = np.random.default_rng([seed, *basis.encode(), *reference.encode()])
    coefficients = rng.normal(size=(num_energies, case.num_features))
    on_grid = case.features(np.linspace(0.0, 1.0, 2001)) @ coefficients.T
    coefficients *= size / np.abs(on_grid).max(0)[:, None]
    coefficients = jnp.asarray(coefficients)
    energy = Energy(case.make(low, high), coefficients)
    prior = KAEMPrior(energy, distribution.make())
    oracle = Oracle(
        unit_energy(case, coefficients, low, high),
        distribution.distribution,
        low,
        high,
        distribution.breaks,
    )
    return Built(prior, oracle, distribution)


def ulp(z):
    """Spacing of the numbers of the format of ``z``, as float64."""
    return np.spacing(np.abs(np.asarray(z))).astype(float)
