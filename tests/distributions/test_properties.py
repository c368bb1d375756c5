"""Random densities under every distribution of NumPyro: properties of each.

An example is a batch of densities on one basis and one kind of reference, each with its
own grid, coefficients and parameters. What is right is found in float64, by Gauss rules
on panels that share nothing with the library's: a grid of powers of two around the
centre and the ends of the reference.

A density whose construction is refused or warned of need not be accurate, but numbers
must be finite and in order. ``KAEM_PROPERTY_EXAMPLES`` is the number of batches, 25 by
default, and ``KAEM_PROPERTY_SEED`` another seed than hypothesis's fixed one.
"""

import os
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import HealthCheck, Phase, event, given, seed, settings
from hypothesis import strategies as st
from numpyro.distributions import transforms
from numpyro.distributions.batch_util import vmap_over

import numpyro_kaem as kaem
from numpyro_kaem.references import log_density, support_bounds

# Rounded nodes may be ends of the support.
pytestmark = pytest.mark.filterwarnings("ignore:Out-of-support values")

NUM_DENSITIES = 8
NUM_EXAMPLES = int(os.environ.get("KAEM_PROPERTY_EXAMPLES", 25))
SEED = os.environ.get("KAEM_PROPERTY_SEED")
DTYPE = np.dtype("float64" if jax.config.jax_enable_x64 else "float32")

BASES = {
    "bspline-3": lambda low, high: kaem.BSpline(low, high, 7),
    "rbf": lambda low, high: kaem.RBF(low, high, 6),
    "fourier": lambda low, high: kaem.Fourier(low, high, 3),
    "chebyshev": lambda low, high: kaem.Chebyshev(low, high, 6),
    "rswaf": lambda low, high: kaem.RSWAF(low, high, 6),
    "bspline-1": lambda low, high: kaem.BSpline(low, high, 5, 1),
    "mexican-hat": lambda low, high: kaem.Wavelet(low, high, 5, kind="mexican_hat"),
    "morlet": lambda low, high: kaem.Wavelet(low, high, 5, kind="morlet"),
}


def kaem_reference(c, s, a, b):
    """Prior of ours, whose grid is fixed: that of all, if they have the same."""
    if np.ptp(c) == 0 and np.ptp(s) == 0:
        low, high = (float((c + k * s).ravel()[0]) for k in (-2, 3))
    else:
        low, high = ((c + k * s).tolist() for k in (-2, 3))
    log_a, log_b = jnp.log(a), jnp.log(b)
    coefficients = jnp.stack([log_a, -log_b, log_a - log_b, log_b, -log_a], -1)
    energy = kaem.Energy(kaem.RBF(low, high, 5), coefficients)
    return kaem.KAEMPrior(energy, dist.Normal(c, s))


# A location c, a scale s and two shapes a, b (from .3 to 30) to a distribution. Where
# the centre is not a parameter, it is 0.
LOCATED = {
    "AsymmetricLaplace": lambda c, s, a, b: dist.AsymmetricLaplace(c, s, a**0.5),
    "AsymmetricLaplaceQuantile": lambda c, s, a, b: dist.AsymmetricLaplaceQuantile(
        c, s, a / (1 + a)
    ),
    "Cauchy": lambda c, s, a, b: dist.Cauchy(c, s),
    "KAEMPrior": kaem_reference,
    "Gumbel": lambda c, s, a, b: dist.Gumbel(c, s),
    "Laplace": lambda c, s, a, b: dist.Laplace(c, s),
    "LeftTruncatedDistribution": lambda c, s, a, b: dist.LeftTruncatedDistribution(
        dist.Normal(c, s), low=c + s * np.log(a) / 2
    ),
    "Levy": lambda c, s, a, b: dist.Levy(c, s),
    "Logistic": lambda c, s, a, b: dist.Logistic(c, s),
    "MixtureSameFamily": lambda c, s, a, b: dist.MixtureSameFamily(
        dist.Categorical(jnp.stack([0.25 + 0 * c, 0.75 + 0 * c], -1)),
        dist.Normal(jnp.stack([c - s, c + s], -1), jnp.stack([s, s / 2], -1)),
    ),
    "Normal": lambda c, s, a, b: dist.Normal(c, s),
    "RightTruncatedDistribution": lambda c, s, a, b: dist.RightTruncatedDistribution(
        dist.Logistic(c, s), high=c + s * np.log(a)
    ),
    "SoftLaplace": lambda c, s, a, b: dist.SoftLaplace(c, s),
    "StudentT": lambda c, s, a, b: dist.StudentT(a, c, s),
    "TransformedDistribution": lambda c, s, a, b: dist.TransformedDistribution(
        dist.Normal(0 * c, 1 + 0 * c), transforms.AffineTransform(c, -s)
    ),
    "TwoSidedTruncatedDistribution": lambda c, s, a, b: (
        dist.TwoSidedTruncatedDistribution(dist.Normal(c, s), c - s / a, c + s * b / 10)
    ),
    "Uniform": lambda c, s, a, b: dist.Uniform(c - s / a, c + s * b),
}
SCALED = {
    "Beta": lambda c, s, a, b: dist.Beta(a, jnp.maximum(b, 1.0)),
    "BetaProportion": lambda c, s, a, b: dist.BetaProportion(a / (1 + a), 2 + b + a),
    "Chi2": lambda c, s, a, b: dist.Chi2(a),
    "Dagum": lambda c, s, a, b: dist.Dagum(
        jnp.maximum(a, 1.0), jnp.clip(b, 1.0, 9.0), s
    ),
    "DoublyTruncatedPowerLaw": lambda c, s, a, b: dist.DoublyTruncatedPowerLaw(
        -1 - a / 10, s, s * (1 + b)
    ),
    "Exponential": lambda c, s, a, b: dist.Exponential(1 / s),
    "Gamma": lambda c, s, a, b: dist.Gamma(a, 1 / s),
    "Gompertz": lambda c, s, a, b: dist.Gompertz(a, 1 / s),
    "HalfCauchy": lambda c, s, a, b: dist.HalfCauchy(s),
    "HalfNormal": lambda c, s, a, b: dist.HalfNormal(s),
    "InverseGamma": lambda c, s, a, b: dist.InverseGamma(jnp.maximum(a, 1.0), s),
    "LeftTruncatedGamma": lambda c, s, a, b: dist.LeftTruncatedGamma(
        dist.Gamma(a, 1 / s), low=s * a / 2
    ),
    "LogNormal": lambda c, s, a, b: dist.LogNormal(jnp.log(s), jnp.clip(a, 0.1, 3.0)),
    "LogUniform": lambda c, s, a, b: dist.LogUniform(s, s * (1 + b)),
    "LowerTruncatedPowerLaw": lambda c, s, a, b: dist.LowerTruncatedPowerLaw(
        -1 - jnp.maximum(a, 1.0), s
    ),
    "Pareto": lambda c, s, a, b: dist.Pareto(s, jnp.maximum(a, 1.0)),
    "RightTruncatedGamma": lambda c, s, a, b: dist.RightTruncatedGamma(
        dist.Gamma(a, 1 / s), high=s * a * 2
    ),
    "TwoSidedTruncatedGamma": lambda c, s, a, b: dist.TwoSidedTruncatedGamma(
        dist.Gamma(a, 1 / s), low=s * a / 2, high=s * a * 2
    ),
    "Weibull": lambda c, s, a, b: dist.Weibull(s, jnp.clip(a, 0.3, 9.0)),
}
# Of a fixed scale.
UNSCALED = {"Beta", "BetaProportion", "Chi2"}
DISTRIBUTIONS = {"none": None, **LOCATED, **SCALED}
# Not univariate and continuous, or without a distribution function for some arguments.
LEFT_OUT = {
    *("CirculantNormal", "DiscreteUniform", "FoldedDistribution", "GammaPoisson"),
    *("GaussianStateSpace", "InverseWishart", "LKJ", "MixtureGeneral"),
    *("NegativeBinomial2", "NegativeBinomialLogits", "NegativeBinomialProbs"),
    *("Poisson", "RelaxedBernoulliLogits", "Wishart", "ZeroSumNormal"),
}


def test_every_distribution_with_a_distribution_function_is_drawn_from():
    with_cdf = {
        name
        for name in dist.__all__
        if isinstance(cls := getattr(dist, name), type)
        and issubclass(cls, dist.Distribution)
        and cls.cdf is not dist.Distribution.cdf
    }
    others = {"MultivariateNormal", "Distribution"}
    assert with_cdf - others - LEFT_OUT == set(DISTRIBUTIONS) - {"none", "KAEMPrior"}


class Column(NamedTuple):
    """One density of a batch."""

    log_scale: float
    """Power of 10."""
    offset: float
    """Location, in scales."""
    log_shapes: tuple[float, float]
    log_width: float
    """Width of the grid in scales, a power of 10."""
    share: float
    """Of the grid that lies below the centre of the reference."""
    log_size: float
    """Largest energy, a power of 10."""
    seed: int
    """Of the coefficients and of what is drawn."""


def columns():
    def numbers(low, high):
        return st.floats(low, high, width=32)

    column = st.builds(
        Column,
        numbers(-8, 8),
        numbers(-50, 50),
        st.tuples(numbers(-0.5, 1.5), numbers(-0.5, 1.5)),
        numbers(-1, 3),
        numbers(0.0625, 0.9375),
        numbers(-1, 2),
        st.integers(0, 2**16),
    )
    return st.lists(column, min_size=NUM_DENSITIES, max_size=NUM_DENSITIES)


def pairs(per_distribution):
    """Each distribution with a few bases only, as every pair is compiled."""
    names = list(BASES)
    return st.sampled_from(
        [
            (distribution, names[(i + 3 * k) % len(names)])
            for i, distribution in enumerate(DISTRIBUTIONS)
            for k in range(per_distribution)
        ]
    )


def run(max_examples):
    """Run a property with the settings of the suite."""

    def wrap(test):
        test = settings(
            max_examples=max_examples,
            deadline=None,
            derandomize=SEED is None,
            database=None,
            suppress_health_check=list(HealthCheck),
            # To make a batch smaller takes longer than to read it.
            phases=[Phase.generate],
            print_blob=True,
        )(test)
        return test if SEED is None else seed(int(SEED))(test)

    return wrap


class Drawn(NamedTuple):
    """A batch: numbers of the precision of the run, from which both sides are made."""

    distribution: str
    basis: str
    low: np.ndarray
    high: np.ndarray
    arguments: tuple[np.ndarray, ...]
    coefficients: np.ndarray

    def energy(self):
        """Energies in the precision that JAX has."""
        basis = BASES[self.basis](self.low.tolist(), self.high.tolist())
        return kaem.Energy(basis, jnp.asarray(self.coefficients, float))

    def reference(self):
        """Reference in the precision that JAX has."""
        if DISTRIBUTIONS[self.distribution] is None:
            return None
        return DISTRIBUTIONS[self.distribution](
            *(jnp.asarray(a, float) for a in self.arguments)
        )


def drawn(distribution, basis, columns):
    """Numbers of a batch."""
    number = [
        np.array([getattr(column, name) for column in columns], float)
        for name in ("log_scale", "offset", "log_width", "share", "log_size")
    ]
    log_scale, offset, log_width, share, log_size = number
    shapes = 10 ** np.array([column.log_shapes for column in columns]).T
    scale = 10.0 ** (0 * log_scale if distribution in UNSCALED else log_scale)
    centre = 0 * scale if distribution in SCALED else offset * scale
    c, s, a, b = (x.astype(DTYPE).astype(float) for x in (centre, scale, *shapes))
    # Of scaled distributions the grid has the point 1.5 s, or the middle of (0, 1).
    point = c
    if distribution in SCALED:
        point = 0 * s + 0.5 if distribution in UNSCALED - {"Chi2"} else 1.25 * s
    width = 10**log_width * s
    low = (point - share * width).astype(DTYPE).astype(float)
    high = (point + (1 - share) * width).astype(DTYPE).astype(float)
    unit = BASES[basis](0.0, 1.0)
    features = np.asarray(unit.unit_features(np.linspace(0, 1, 501)), float)
    coefficients = np.stack(
        [
            np.random.default_rng(column.seed).normal(size=unit.num_features)
            for column in columns
        ]
    )
    largest = np.abs(features @ coefficients.T).max(0)
    coefficients *= (10**log_size / largest)[:, None]
    coefficients = coefficients.astype(DTYPE).astype(float)
    return Drawn(distribution, basis, low, high, (c, s, a, b), coefficients)


# --- what is right -------------------------------------------------------------------

_POWERS = np.concatenate(
    [
        # A singular end of a Chi2 of .3 degrees of freedom has mass down to here.
        2.0 ** np.arange(-900, -6, 2),
        2.0 ** np.arange(-6, 7, 0.125),
        # And the tail of a StudentT of .3 degrees of freedom to here.
        2.0 ** np.arange(8, 152, 1),
    ]
)
_GAUSS = np.polynomial.legendre.leggauss(16)


@jax.jit
def _log_values(energy, reference, low, high, z):
    if reference is None:
        inside = (z >= low) & (z <= high)
        log_reference = jnp.where(inside, -jnp.log(high - low), -jnp.inf)
    else:
        log_reference = log_density(reference, z)
    return energy(z) + log_reference, log_reference


class Truth(NamedTuple):
    """A batch of densities in float64; rows are ``(count, NUM_DENSITIES)``."""

    edges: np.ndarray
    """Numbers of the precision of the run."""
    nodes: np.ndarray
    log_prob: np.ndarray
    log_reference: np.ndarray
    masses: np.ndarray
    """Of the nodes; their sum is 1."""
    below: np.ndarray
    above: np.ndarray
    """Masses on both sides of the edges."""
    ends: tuple[np.ndarray, np.ndarray]


def truth(drawn):
    """Integrate on panels of its own, in float64."""
    with jax.enable_x64(True):
        energy, reference = drawn.energy(), drawn.reference()
        ends = (drawn.low, drawn.high)
        if reference is not None:
            ends = support_bounds(reference)
        start, stop = (
            np.broadcast_to(np.asarray(e, float), drawn.low.shape) for e in ends
        )
        c, s, *_ = drawn.arguments
        steps = _POWERS[:, None] * s
        unit = np.unique([*np.linspace(0, 1, 97), *np.linspace(0, 1, 91)])[:, None]
        # A prior's own grid ends at c + 3 s.
        rows = [c - steps, c + steps, c[None], (c + 3 * s)[None]]
        rows += [drawn.low * (1 - unit) + drawn.high * unit]
        rows += [
            np.where(np.isfinite(end), end + sign * steps, c)
            for end, sign in ((start, 1), (stop, -1))
        ]
        # Where the parameters put a kink or a bulk.
        limit = np.sqrt(np.finfo(DTYPE).max) * 1e10
        low, high = np.maximum(start, -limit), np.minimum(stop, limit)
        edges = np.clip(np.concatenate(rows), low, high).astype(DTYPE).astype(float)
        edges = np.sort(np.clip(edges, low, high), axis=0)
        x, weights = _GAUSS
        width = np.diff(edges, axis=0)[:, None]
        nodes = edges[:-1, None] + width * ((x + 1) / 2)[:, None]
        log_values, log_reference = (
            np.asarray(v).reshape(nodes.shape)
            for v in _log_values(
                energy, reference, drawn.low, drawn.high, nodes.reshape(-1, len(c))
            )
        )
    # Panels of no width may lie where the density is infinite, or no number; NumPyro's
    # inverse gamma distribution is infinite next to 0.
    log_values, log_reference = (
        np.where((width > 0) & (v < np.inf), v, -np.inf)
        for v in (log_values, log_reference)
    )
    with np.errstate(divide="ignore"):
        log_mass = log_values + np.log(width * (weights / 2)[:, None])
    shift = log_mass.max((0, 1))
    masses = np.exp(log_mass - shift)
    total = masses.sum((0, 1))
    masses, log_prob = masses / total, log_values - shift - np.log(total)
    panels = masses.sum(1)
    zero = np.zeros((1, len(c)))
    below = np.concatenate([zero, np.cumsum(panels, 0)])
    above = np.concatenate([np.cumsum(panels[::-1], 0)[::-1], zero])
    return Truth(
        edges, nodes, log_prob, log_reference, masses, below, above, (start, stop)
    )


def constructed(drawn):
    """Prior of the run, and whether it was warned of; ``None`` if it was refused."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            prior = kaem.KAEMPrior(drawn.energy(), drawn.reference())
        except ValueError as error:
            if not any(words in str(error) for words in ("reference must", "grid")):
                raise
            return None, True
    return prior, bool(caught)


def bar(drawn, truth, prior):
    """Error that the documentation of densities allows, of masses, for each density.

    To it come what NumPyro's own reference is off by, and rounding of the features'
    sum, which may be larger than the energies.
    """
    eps = np.finfo(DTYPE).eps
    base = 1e-12 if DTYPE == np.float64 else 1e-6
    error = np.asarray(prior.quadrature_error, float) + base
    unit = BASES[drawn.basis](0.0, 1.0)
    features = np.asarray(unit.unit_features(np.linspace(0, 1, 501)), float)
    error = error + eps * (np.abs(features) @ np.abs(drawn.coefficients).T).max(0)
    if drawn.distribution != "none":
        reference, nodes = prior.reference, truth.nodes.astype(DTYPE)
        own = np.asarray(log_density(reference, nodes.reshape(-1, nodes.shape[-1])))
        # At the node that it is rounded to.
        with jax.enable_x64(True):
            right = np.asarray(
                log_density(drawn.reference(), nodes.astype(float).reshape(own.shape))
            )
        with np.errstate(invalid="ignore"):
            off = np.nan_to_num(np.abs(own - right), nan=0.0, posinf=0.0)
        error = error + (off * truth.masses.reshape(off.shape)).sum(0)
    return error


def spacing(z):
    """Distance to the next number of the precision of the run."""
    return np.spacing(np.abs(np.asarray(z, DTYPE))).astype(float)


# --- properties ----------------------------------------------------------------------


@pytest.mark.long
@run(NUM_EXAMPLES)
@given(pairs(2), columns())
def test_density_and_distribution_function_are_right(pair, columns):
    batch = drawn(*pair, columns)
    prior, warned = constructed(batch)
    event(f"refused {prior is None}, warned {warned}")
    if prior is None:
        return
    right = truth(batch)
    # In the precision of the run, in which the ends may be sums of parameters.
    low, high = (batch.low, batch.high)
    if batch.distribution != "none":
        low, high = support_bounds(prior.reference)
    low, high = (
        np.broadcast_to(np.asarray(end, DTYPE), batch.low.shape) for end in (low, high)
    )
    edges = jnp.asarray(right.edges, DTYPE)
    q = np.array([0.0, 1e-6, 1e-3, 0.1, 0.37, 0.5, 0.63, 0.9, 0.999, 1.0])[:, None]
    z = np.asarray(prior.icdf(jnp.asarray(q, DTYPE)))
    draws = np.asarray(prior.sample(jax.random.key(columns[0].seed), (64,)))
    below, above = (np.asarray(m, float) for m in prior.cdf_pair(edges))
    # What holds even where accuracy is not promised.
    assert np.all(np.isfinite(draws)), "a draw is not finite"
    assert np.all((draws > low) & (draws < high))
    assert np.all(np.isfinite(below) & np.isfinite(above)), "cdf is not finite"
    assert np.all((below >= 0) & (below <= 1) & (above >= 0) & (above <= 1))
    nan = jnp.asarray(np.nan, DTYPE)
    for value in (*prior.cdf_pair(nan), prior.icdf(nan)):
        assert np.all(np.isnan(value)), "a number for NaN"
    assert np.all(np.diff(z, axis=0) >= 0), "icdf decreases"
    assert np.all(z[0] == low), "icdf(0) is not the lower end"
    assert np.all(z[-1] == high), "icdf(1) is not the upper end"
    slack = 0 if warned else 1e-12 if DTYPE == np.float64 else 2e-7
    slack = 1e-3 if warned else slack
    assert np.all(np.diff(below, axis=0) >= -slack), "cdf decreases"
    finite = np.isfinite(right.edges)
    for end, side, value in ((low, below, 0), (high, above, 0)):
        at_end = finite & (right.edges == end)
        assert np.all(side[at_end] == value), "no mass is left at an end"
    if warned:
        return
    error = bar(batch, right, prior)
    # The density at a rounded position, over as much as it is rounded.
    density = np.exp(np.maximum(right.log_prob[:, 0], right.log_prob[:, -1]))
    shift = density * spacing(right.edges[:-1])
    shift = np.maximum(
        np.append(shift, 0 * shift[:1], 0), np.append(0 * shift[:1], shift, 0)
    )
    allowed = np.maximum(error, 4 * shift) + error
    for name, actual, expected in (
        ("cdf", below, right.below),
        ("1 - cdf", above, right.above),
    ):
        off = np.abs(actual - expected) / allowed
        assert off.max() <= 1, report(name, off, batch, allowed)
    # The density itself integrates to one, on the other rule's nodes.
    nodes = right.nodes.astype(DTYPE).reshape(-1, NUM_DENSITIES)
    change = np.asarray(prior.log_prob(nodes), float)
    with np.errstate(invalid="ignore"):
        change = change - right.log_prob.reshape(nodes.shape)
    ratio = np.exp(np.clip(np.nan_to_num(change, nan=50.0), -50, 50))
    masses = right.masses.reshape(nodes.shape)
    # Numbers below the smallest normal one are rounded to little more than nothing.
    counts = (masses > 1e-30) & (np.abs(nodes) > np.finfo(DTYPE).tiny)
    total = np.where(counts, ratio * masses, 0).sum(0)
    off = np.abs(total - 1) / (4 * error + 4 * shift.max(0))
    assert off.max() <= 1, report("integral", off, batch, error)
    # And the quantile function inverts.
    inner = z[1:-1]
    back = np.asarray(prior.cdf(inner), float)
    density = np.exp(np.asarray(prior.log_prob(inner), float))
    off = np.abs(back - q[1:-1]) / (np.maximum(error, 4 * density * spacing(inner)))
    assert off.max() <= 1, report("icdf", off, batch, error)


def report(name, off, batch, allowed):
    """Say which density of a batch is off most, so that it can be made again."""
    column = int(np.unravel_index(np.argmax(off), off.shape)[-1])
    parts = {"arguments": [float(a[column]) for a in batch.arguments]}
    for part in ("low", "high", "coefficients"):
        parts[part] = getattr(batch, part)[column].tolist()
    worst = np.max(allowed[..., column])
    return (
        f"{name} is off by {off.max():.3g} times the bar of {worst:.2e}: "
        f"{batch.distribution} on {batch.basis}, {parts}"
    )


def of_one_grid(columns):
    """Columns with the place and the grid of the first, for grids are static."""
    first = columns[0]
    return [
        first._replace(log_shapes=c.log_shapes, log_size=c.log_size, seed=c.seed)
        for c in columns
    ]


def values_and_gradients(prior, z):
    """Log densities, masses, and derivatives of the sum of both."""

    def total(prior, z):
        values = prior.log_prob(z), prior.cdf(z)
        return sum(map(jnp.sum, values)), values

    gradient, values = jax.grad(total, argnums=(0, 1), has_aux=True)(prior, z)
    return values, gradient


@pytest.mark.long
@run(max(NUM_EXAMPLES // 2, 1))
@given(pairs(1), columns())
def test_jit_vmap_gradients_and_files(pair, columns):
    batch = drawn(*pair, of_one_grid(columns))
    batch = batch._replace(low=batch.low[0], high=batch.high[0])
    prior, warned = constructed(batch)
    event(f"refused {prior is None}, warned {warned}")
    if prior is None:
        return
    q = jnp.asarray([0.01, 0.2, 0.5, 0.8, 0.99], DTYPE)[:, None]
    z = prior.icdf(q)
    values, gradient = jax.jit(values_and_gradients)(prior, z)
    assert all(np.all(np.isfinite(v)) for v in values), "a value is not finite"
    leaves = jax.tree.leaves(gradient)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves), "a gradient is not finite"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prior.npz"
        kaem.save(path, prior)
        loaded = kaem.load(path)
    np.testing.assert_array_equal(loaded.log_prob(z), prior.log_prob(z))
    if warned:
        return
    eps = np.finfo(DTYPE).eps
    wide = batch._replace(low=np.full(NUM_DENSITIES, batch.low))
    wide = wide._replace(high=np.full(NUM_DENSITIES, batch.high))
    error = bar(batch, truth(wide), prior)
    sizes = 10 ** np.array([column.log_size for column in columns])
    rounding = 64 * eps * (1 + sizes + np.abs(np.asarray(values[0], float)))
    allowed = 4 * error + rounding
    eager = prior.log_prob(z), prior.cdf(z)
    axes = vmap_over(prior, energy=0, reference=0)
    mapped = jax.jit(
        jax.vmap(
            lambda prior, z: (prior.log_prob(z), prior.cdf(z)),
            in_axes=(axes, 1),
            out_axes=1,
        )
    )(prior, z)
    for name, actual in (("jit", values), ("vmap", mapped)):
        for one, other in zip(actual, eager, strict=True):
            off = np.abs(np.asarray(one, float) - np.asarray(other, float)) / allowed
            assert off.max() <= 1, f"{name}: {off.max():.3g} times {allowed.max():.2e}"
    # One by one.
    for i in (0, NUM_DENSITIES - 1):
        own = batch._replace(
            arguments=tuple(a[i] for a in batch.arguments),
            coefficients=batch.coefficients[i],
        )
        one, _ = constructed(own)
        off = np.abs(np.asarray(one.cdf(z[:, i]) - eager[1][:, i], float))
        assert np.all(off <= allowed[:, i]), f"{off.max()} alone"
