"""Tails of references against SciPy, deep down, and their parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.distributions import constraints, transforms
from scipy import stats

import numpyro_kaem as kaem
from numpyro_kaem.references import (
    ReferenceParameters,
    has_quantile,
    log_tail_mass,
    tail_mass,
    tail_quantile,
)


@dataclass(frozen=True)
class Case:
    """A distribution of NumPyro and of SciPy, both from the same parameters."""

    make: Callable[..., dist.Distribution]
    scipy: Callable[..., Any]
    parameters: tuple[float, ...]
    closed: bool = True
    """Whether the library inverts both tails in closed form."""
    deep: bool = True
    """Whether NumPyro's own lower mass is precise in the tail."""
    singular: bool = False
    """Whether the density is infinite at an end of the support."""
    float32: float = 3e-5
    """Bar of the relative error in float32."""


class Forgetful(dist.Normal):
    """A distribution that does not keep its argument."""

    def __init__(self, size, *, validate_args=None):
        super().__init__(0.0, size, validate_args=validate_args)


def affine_normal(loc, scale):
    """Decreasing image of a Normal: the tails change places."""
    return dist.TransformedDistribution(
        dist.Normal(loc, scale), transforms.AffineTransform(1.5, -2.0)
    )


CASES = {
    "normal": Case(dist.Normal, stats.norm, (1.25, 0.75)),
    "logistic": Case(dist.Logistic, stats.logistic, (-0.5, 1.5)),
    "laplace": Case(dist.Laplace, stats.laplace, (0.75, 0.5)),
    "cauchy": Case(dist.Cauchy, stats.cauchy, (0.75, 1.5)),
    "student-t": Case(dist.StudentT, stats.t, (3.5, 1.25, 0.75), closed=False),
    "gumbel": Case(dist.Gumbel, stats.gumbel_r, (0.75, 1.5)),
    "uniform": Case(dist.Uniform, lambda a, b: stats.uniform(a, b - a), (-0.5, 2.25)),
    "exponential": Case(dist.Exponential, lambda r: stats.expon(scale=1 / r), (1.75,)),
    "half-normal": Case(dist.HalfNormal, lambda s: stats.halfnorm(0, s), (1.75,)),
    "half-cauchy": Case(dist.HalfCauchy, lambda s: stats.halfcauchy(0, s), (1.75,)),
    "weibull": Case(
        dist.Weibull, lambda s, k: stats.weibull_min(k, scale=s), (1.75, 1.5)
    ),
    "gamma": Case(
        dist.Gamma, lambda a, r: stats.gamma(a, scale=1 / r), (2.5, 1.75), closed=False
    ),
    "gamma-singular": Case(
        dist.Gamma,
        lambda a, r: stats.gamma(a, scale=1 / r),
        (0.5, 0.75),
        closed=False,
        singular=True,
    ),
    "beta": Case(dist.Beta, stats.beta, (2.5, 1.75), closed=False),
    "beta-singular": Case(dist.Beta, stats.beta, (0.5, 0.5), False, singular=True),
    "lognormal": Case(
        dist.LogNormal, lambda m, s: stats.lognorm(s, scale=np.exp(m)), (0.25, 0.5)
    ),
    "inverse-gamma": Case(
        dist.InverseGamma,
        lambda a, r: stats.invgamma(a, scale=r),
        (2.5, 1.75),
        closed=False,
    ),
    "power-law": Case(
        dist.LowerTruncatedPowerLaw,
        lambda alpha, low: stats.pareto(-1 - alpha, scale=low),
        (-3.5, 0.75),
    ),
    "pareto": Case(dist.Pareto, lambda s, a: stats.pareto(a, scale=s), (1.75, 2.5)),
    "log-uniform": Case(dist.LogUniform, stats.loguniform, (0.75, 3.5)),
    "affine-normal": Case(
        affine_normal, lambda m, s: stats.norm(1.5 - 2.0 * m, 2.0 * s), (0.25, 0.5)
    ),
    "asymmetric-laplace": Case(
        dist.AsymmetricLaplace,
        lambda m, s, k: stats.laplace_asymmetric(k, m, s),
        (0.5, 1.25, 1.5),
    ),
    # Distributions of which the library knows nothing but the density and the cdf.
    "gompertz": Case(
        dist.Gompertz,
        lambda c, r: stats.gompertz(c, scale=1 / r),
        (0.75, 1.5),
        closed=False,
        deep=False,
    ),
    "soft-laplace": Case(
        dist.SoftLaplace, stats.hypsecant, (0.5, 1.25), closed=False, deep=False
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def points(truth, dtype):
    """Points from deep in one tail to deep in the other."""
    deep = np.array([1e-30, 1e-12, 1e-6, 1e-3, 0.1, 0.4, 0.5])
    if dtype == np.float64:
        deep = np.concatenate([[1e-100], deep])
    x = np.concatenate([truth.ppf(deep), truth.isf(deep)])
    low, high = truth.support()
    x = np.unique(x.astype(dtype))
    return x[(x > low) & (x < high) & np.isfinite(x)]


def both_tails(parameters, x):
    return jnp.stack([tail_mass(parameters, x, upper) for upper in (False, True)])


@jax.jit
def with_derivatives(parameters, x, bulk):
    """Masses of both tails, and their derivatives in the point and the parameters."""
    ones = (jnp.ones_like(bulk),)
    return (
        both_tails(parameters, x),
        jax.jvp(lambda x: both_tails(parameters, x), (bulk,), ones)[1],
        jax.jacfwd(lambda p: both_tails(p, bulk))(parameters),
    )


@jax.jit
def both_quantiles(parameters, masses, starts):
    sides = zip(starts, (False, True), strict=True)
    return [tail_quantile(parameters, masses, start, upper) for start, upper in sides]


def float_dtype(x64):
    return np.dtype(np.float64 if x64 else np.float32)


def build(case, x64):
    values = [jnp.asarray(p, float_dtype(x64)) for p in case.parameters]
    return ReferenceParameters.of(case.make(*values))


def difference(function, value):
    """Central difference of fourth order."""
    step = 1e-4 * max(abs(value), 0.1)
    weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    return sum(w * function(value + k * step) for k, w in weights.items()) / step


def names_of(case):
    names = inspect.signature(case.make.__init__).parameters
    return list(names)[1 : 1 + len(case.parameters)]


def changes_of(case, changes, i):
    """Derivatives in the i-th argument of the constructor."""
    if case.make is affine_normal:
        return changes.values["base_distribution"].values[("loc", "scale")[i]]
    return changes.values[names_of(case)[i]]


def test_tail_mass_and_its_derivatives(case, x64):
    """Derivatives in the point and in every parameter, those of shape included."""
    truth = case.scipy(*case.parameters)
    x = points(truth, float_dtype(x64))
    low, high = truth.support()
    beyond = [e for e in (low, low - 1.0, high, high + 2.0) if np.isfinite(e)]
    outside = np.asarray(beyond, x.dtype)
    levels = np.array([1e-3, 0.05, 0.3, 0.6, 0.9, 0.999])
    bulk = truth.ppf(levels).astype(x.dtype)
    every = np.concatenate([x, outside])
    # Of one length, so that those of one class share what is compiled.
    padded = np.pad(every, (0, 20 - len(every)), mode="edge")
    masses, slope, changes = with_derivatives(build(case, x64), padded, bulk)

    masses = np.asarray(masses)[:, : len(every)]
    expected = np.stack([truth.cdf(x), truth.sf(x)])
    # By quadrature from a point far off the bulk, where the distribution is not known.
    rtol = (1e-11 if case.deep else 1e-10) if x64 else case.float32
    # The rounding of a point that is off the location costs hazard times spacing.
    hazard = truth.pdf(x) / expected * np.spacing(np.abs(x)).astype(float)
    error = np.abs(masses[:, : len(x)] - expected) / expected
    if not case.deep:
        error[0] *= expected[0]
    assert np.all(error <= rtol + 4 * hazard), error
    is_below = outside <= low
    assert_array_equal(masses[0, len(x) :], np.where(is_below, 0.0, 1.0))
    assert_array_equal(masses[1, len(x) :], np.where(is_below, 1.0, 0.0))

    rtol = 1e-9 if x64 else 2e-4
    assert_allclose(slope[0], truth.pdf(bulk), rtol=rtol)
    assert_allclose(slope[1], -truth.pdf(bulk), rtol=rtol)
    masses = np.stack([truth.cdf(bulk), truth.sf(bulk)])
    for i, value in enumerate(case.parameters):

        def tails(v, i=i):
            shifted = case.scipy(*case.parameters[:i], v, *case.parameters[i + 1 :])
            return np.stack([shifted.cdf(bulk), shifted.sf(bulk)])

        expected = difference(tails, value)
        checked = np.ones(expected.shape, bool)
        if case.singular:
            # The tail beyond a singular end that lies near its start is not resolved
            # as well, and no density needs it; nor is one of a few float32 numbers.
            checked = (masses < 0.96) & (masses > (0.0 if x64 else 0.04))
        actual = np.asarray(jax.tree.leaves(changes_of(case, changes, i))[0], float)
        bar = (1e-6, 2e-5)[case.singular] if x64 else (5e-4, 1e-2)[case.singular]
        bar = bar * np.maximum(masses, np.abs(expected))
        assert np.all(np.isfinite(actual))
        assert np.all(np.abs(actual - expected)[checked] <= bar[checked]), i


def test_tail_quantile(case, x64):
    parameters = build(case, x64)
    truth = case.scipy(*case.parameters)
    assert has_quantile(parameters.build()) == case.closed
    masses = np.array([0.0, 1e-30, 1e-12, 1e-6, 1e-3, 0.1, 0.2], float_dtype(x64))
    inverses = (truth.ppf, truth.isf)
    starts = [inverse(0.25).astype(masses.dtype) for inverse in inverses]
    found = both_quantiles(parameters, masses, starts)
    for sign, actual, inverse, end in zip(
        (-1, 1), map(np.asarray, found), inverses, truth.support(), strict=True
    ):
        assert float(actual[0]) == np.asarray(end, masses.dtype)
        assert np.all(np.diff(sign * actual) <= 0)
        if case.closed:
            scale = np.abs(truth.median()) + truth.ppf(0.75)
            assert_allclose(
                actual[1:],
                inverse(masses[1:].astype(float)),
                rtol=1e-11 if x64 else 3e-5,
                atol=(1e-13 if x64 else 1e-6) * abs(scale),
            )


def test_parameters_round_trip(case, x64):
    """Every parameter once, by name, whatever the hash seed."""
    parameters = build(case, x64)
    leaves, structure = jax.tree.flatten(parameters)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure
    assert hash(jax.tree.structure(again)) == hash(structure)
    reference, copy = parameters.build(), again.build()
    assert type(copy) is type(reference)
    x = case.scipy(*case.parameters).ppf([0.2, 0.7])
    assert_array_equal(reference.log_prob(x), copy.log_prob(x))
    assert list(parameters.values) == sorted(parameters.values)
    if case.make is affine_normal:
        expected = [*case.parameters, 1.5, -2.0]
    else:
        # NumPyro's own flattening repeats bounds, for one.
        order = np.argsort(names_of(case))
        expected = np.asarray(case.parameters)[order]
    assert [float(leaf) for leaf in leaves] == list(expected)


def test_log_mass_of_a_normal_where_the_mass_underflows(x64):
    y = np.array([-1e4, -60.0, -20.0, -10.0, -9.9, -3.0, 0.0, 0.999, 1.001, 5.0, 40.0])
    y = y.astype(float_dtype(x64))
    normal = ReferenceParameters.of(dist.Normal(0.0, 1.0))

    def log_mass(y):
        return log_tail_mass(normal, y, False)

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(log_mass)))(y)
    expected = stats.norm.logcdf(y.astype(float))
    rtol = 3e-11 if x64 else 1e-6
    assert_allclose(values, expected, rtol=rtol, atol=rtol * 0.1)
    slope = np.exp(stats.norm.logpdf(y.astype(float)) - expected)
    # SciPy's difference of logarithms of 5e7 has no more digits.
    assert_allclose(slopes, slope, rtol=1e-7 if x64 else 1e-3, atol=1e-8)


def test_parameters_of_a_batch_and_references_that_are_refused():
    loc, scale = np.array([0.25, 1.0, -3.5]), np.array([[0.5], [2.0]])
    parameters = ReferenceParameters.of(dist.Normal(loc, scale))
    x = np.array([[[0.5]], [[1.5]]])
    actual = jax.jit(both_tails)(parameters, x)
    assert actual.shape == (2, 2, 2, 3)
    assert_allclose(actual[1], stats.norm(loc, scale).sf(x), rtol=2e-5)
    for reference, match in (
        (dist.Normal(0.0, 1.0).expand((3,)), "batch shape in its parameters, got an"),
        (Forgetful(2.0), "must keep its parameter 'size' as an attribute"),
    ):
        with pytest.raises(TypeError, match=match):
            ReferenceParameters.of(reference)


class Named(dist.Distribution):
    """A user's, whose arguments have the names under which whole ones are kept."""

    arg_constraints = {"distribution": constraints.real, "made": constraints.positive}
    support = constraints.real

    def __init__(self, distribution, made, *, validate_args=None):
        self.distribution, self.made = distribution, made
        shape = jnp.broadcast_shapes(jnp.shape(distribution), jnp.shape(made))
        super().__init__(shape, validate_args=validate_args)

    def log_prob(self, value):
        return dist.Normal(self.distribution, self.made).log_prob(value)

    def cdf(self, value):
        return dist.Normal(self.distribution, self.made).cdf(value)

    def icdf(self, q):
        return dist.Normal(self.distribution, self.made).icdf(q)


def test_arguments_may_have_any_name():
    energy = kaem.Energy(kaem.BSpline(-3.0, 3.0, 6), jnp.arange(6.0) / 6)
    prior = kaem.KAEMPrior(energy, Named(0.2, 1.5))
    expected = kaem.KAEMPrior(energy, dist.Normal(0.2, 1.5))
    z = jnp.array([-4.0, 0.1, 2.0])
    assert_allclose(prior.log_prob(z), expected.log_prob(z), rtol=1e-5)
