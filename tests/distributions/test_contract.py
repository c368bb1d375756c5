"""What every distribution of the package must do as a NumPyro citizen."""

import functools
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose, assert_array_equal
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.batch_util import vmap_over
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import log_density
from scipy import integrate, stats

from numpyro_kaem import (
    RBF,
    BSpline,
    Chebyshev,
    Energy,
    Fourier,
    InverseCDFTransform,
    KAEMMixture,
    KAEMPrior,
)
from tests.helpers import assert_close, assert_within_mcse, with_long


@dataclass(frozen=True)
class Case:
    """A distribution, what its batch shape and support must be, and points of it."""

    make: Callable[[], dist.Distribution]
    batch_shape: tuple[int, ...]
    low: float
    high: float
    reparametrized: bool = True


def random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape) + 1).normal(size=shape))


def row(**kwargs):
    energy = Energy(BSpline(-0.75, 2.5, 6), random(1, 6))
    return KAEMPrior(energy, dist.Normal(1.25, 0.75), **kwargs)


def table():
    energy = Energy(Fourier(-0.75, 2.5, 2), random(3, 1, 4), 0.5, "tanh")
    return KAEMPrior(energy, dist.Laplace(jnp.array([0.5, 1.25]), 0.75))


def columns():
    """Two grids, cut by a support that ends inside them."""
    energy = Energy(RBF([-0.25, 0.5], [3.0, 2.5], 5), random(2, 5))
    return KAEMPrior(energy, dist.LogNormal(0.25, 0.5))


def mixture():
    energy = Energy(RBF(-0.75, 2.5, 5), random(2, 3, 5))
    return KAEMMixture(jnp.array([0.5, -0.5, 0.0]), KAEMPrior(energy))


CASES = {
    "default": Case(
        lambda: KAEMPrior(Energy(RBF(-0.75, 2.5, 5), random(5))), (), -0.75, 2.5
    ),
    "row": Case(row, (1,), -np.inf, np.inf),
    "table": Case(table, (3, 2), -np.inf, np.inf),
    "empty": Case(
        lambda: KAEMPrior(Energy(Chebyshev(0.5, 2.5, 2), random(0, 3))), (0,), 0.5, 2.5
    ),
    "columns": Case(columns, (2,), 0.0, np.inf),
    "mixture": Case(mixture, (2,), -0.75, 2.5, reparametrized=False),
}


@functools.cache
def built(name):
    return CASES[name].make()


@pytest.fixture(params=with_long(CASES, *(set(CASES) - {"row"})))
def name(request):
    return request.param


def float_dtype():
    return jnp.result_type(float)


def points(case):
    """Points inside the support, shape ``(3, *batch_shape)``."""
    low = max(case.low, -1.5)
    fractions = np.array([0.21, 0.52, 0.83]).reshape(
        (3,) + (1,) * len(case.batch_shape)
    )
    z = low + (min(case.high, 3.5) - low) * fractions
    return jnp.asarray(np.broadcast_to(z, (3, *case.batch_shape)))


# The same functions for all tests, so that each case is compiled once.
jitted_log_prob = jax.jit(lambda d, z: d.log_prob(z))
jitted_sample = jax.jit(lambda d, key: d.sample(key, (4, 2)))


def test_shapes_and_formats(name, key):
    """Also when expanded, masked and taken as an event."""
    case, d = CASES[name], built(name)
    assert d.batch_shape == case.batch_shape
    assert d.event_shape == ()
    assert d.event_dim == 0
    assert d.has_rsample == case.reparametrized
    for sample_shape in ((), (4, 2)):
        draws = d.sample(key, sample_shape)
        assert draws.shape == sample_shape + case.batch_shape
        assert draws.dtype == float_dtype()
        assert np.all(np.isfinite(draws))
        assert np.all((draws > case.low) & (draws < case.high))
        assert np.all(d.support(draws))
    z = points(case)
    log_prob = d.log_prob(z)
    for value, result in ((z, log_prob), (z[0], d.log_prob(z[0]))):
        assert result.shape == value.shape
        assert result.dtype == float_dtype()
    assert d.cdf(z).shape == (3, *case.batch_shape)
    assert d.icdf(0.5).shape == case.batch_shape
    for moment in (d.mean, d.variance, d.entropy()):
        assert moment.shape == case.batch_shape
    assert repr(d).startswith(type(d).__name__)
    expanded = d.expand((3, *case.batch_shape))
    assert expanded.batch_shape == (3, *case.batch_shape)
    assert expanded.sample(key).shape == (3, *case.batch_shape)
    assert_close(expanded.log_prob(z), log_prob, atol=1e-5)
    masked = d.mask(False)
    assert_array_equal(masked.log_prob(z), np.zeros(z.shape))
    if case.batch_shape:
        independent = d.to_event(1)
        assert independent.event_shape == case.batch_shape[-1:]
        total = np.asarray(log_prob).sum(-1)
        assert_close(independent.log_prob(z), total, rtol=1e-4, atol=1e-5)
        assert independent.sample(key).shape == case.batch_shape
    bijection = biject_to(d.support)
    unconstrained = np.array([-3.0, 0.5, 3.0], z.dtype)
    unconstrained = unconstrained.reshape((-1,) + (1,) * len(case.batch_shape))
    unconstrained = np.broadcast_to(unconstrained, z.shape)
    inside = bijection(unconstrained)
    assert np.all(d.support(inside))
    assert np.all(np.isfinite(d.log_prob(inside)))
    assert_close(bijection.inv(inside), unconstrained, atol=1e-4, rtol=1e-4)
    outside = [e for e in (case.low - 1.0, case.high + 1.0) if np.isfinite(e)]
    for z in outside:
        value = np.full(case.batch_shape, z, log_prob.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert np.all(np.asarray(d.log_prob(value)) == -np.inf)
        assert not np.any(d.support(value))
        assert np.all(np.asarray(d.cdf(value)) == (0.0 if z < case.high else 1.0))


def test_jit_and_gradients(name, key):
    """With the distribution as an argument."""
    case, d = CASES[name], built(name)
    z = points(case)
    assert_close(jitted_log_prob(d, z), d.log_prob(z), rtol=(1e-4, 1e-10), atol=1e-5)
    draws, again = jitted_sample(d, key), d.sample(key, (4, 2))
    # Draws follow the distribution function to rounding: compared in masses.
    assert_close(d.cdf(draws), d.cdf(again), rtol=0, atol=(5e-6, 1e-11))
    flat, unravel = ravel_pytree(d)

    @jax.jit
    def gradients(flat, z):
        return jax.grad(
            lambda flat, z: jnp.sum(unravel(flat).log_prob(z)), argnums=(0, 1)
        )(flat, z)

    by_parameters, by_point = gradients(flat, z)
    assert np.all(np.isfinite(by_parameters))
    assert np.all(np.isfinite(by_point))
    if 0 in case.batch_shape:
        return
    assert np.any(by_parameters != 0)
    step = 1e-2
    up, down = d.log_prob(z + step), d.log_prob(z - step)
    expected = (np.asarray(up, float) - np.asarray(down, float)) / (2 * step)
    assert_allclose(by_point, expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("name", with_long(CASES, "table", "columns", "mixture"))
def test_pytree_and_pickle(name):
    """And what is cached is no leaf and leaks from no trace."""
    case = CASES[name]
    d, z = case.make(), points(case)
    # First under jit as a constant, then eagerly.
    with jax.checking_leaks():
        inner = jax.jit(lambda z: d.log_prob(z) + d.cdf(z) + d.icdf(0.3))(z)
    outer = d.log_prob(z) + d.cdf(z) + d.icdf(0.3)
    assert_close(inner, outer, rtol=(1e-4, 1e-10), atol=(1e-5, 1e-10))
    assert not any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(vars(d))
    )
    leaves, structure = jax.tree.flatten(d)
    again = jax.tree.unflatten(structure, leaves)
    mapped = jax.tree.map(lambda leaf: leaf * 1, d)
    copy = pickle.loads(pickle.dumps(d))
    for other in (again, mapped, copy):
        assert other.batch_shape == case.batch_shape
        assert jax.tree.structure(other) == structure
        assert_array_equal(other.log_prob(z), d.log_prob(z))
    assert hash(jax.tree.structure(case.make())) == hash(structure)
    # A changed leaf makes new tables.
    if 0 not in case.batch_shape:
        changed = jax.tree.map(lambda leaf: leaf * 0.5, d)
        assert not np.allclose(changed.log_prob(z), d.log_prob(z))
        assert not np.allclose(changed.icdf(0.3), d.icdf(0.3))


@pytest.mark.parametrize(
    "name", with_long(["default", "table", "columns"], "table", "columns")
)
def test_samples_are_reparametrised(name, key):
    """The derivative of the draws along a direction of all parameters."""
    d = built(name)
    flat, unravel = ravel_pytree(d)
    direction = jnp.asarray(
        np.random.default_rng(1).normal(size=flat.shape), flat.dtype
    )

    @jax.jit
    def push(flat, direction):
        return jax.jvp(
            lambda flat: unravel(flat).sample(key, (200,)), (flat,), (direction,)
        )

    _, actual = push(flat, direction)
    draw = jax.jit(lambda flat: unravel(flat).sample(key, (200,)))
    step = 1e-2
    expected = (
        (draw(flat + step * direction) - draw(flat - step * direction)) / 2 / step
    )
    # Second-order differences, and draws in the far tails move fast.
    error = np.abs(np.asarray(actual) - np.asarray(expected))
    assert np.quantile(error, 0.95) < 0.02
    assert np.max(np.abs(actual)) > 0.1


def test_moments_against_samples_and_scipy(name, key):
    """And quantiles against the distribution function."""
    case, d = CASES[name], built(name)
    u = np.array([0.0, 0.01, 0.5, 0.9, 1.0])
    u = u.reshape((-1,) + (1,) * len(case.batch_shape))
    z = d.icdf(u)
    assert z.shape == (5, *case.batch_shape)
    assert np.all(np.asarray(z[0]) == case.low)
    assert np.all(np.asarray(z[-1]) == case.high)
    inner = d.cdf(z[1:-1])
    assert_close(inner, np.broadcast_to(u[1:-1], inner.shape), atol=(3e-6, 1e-11))
    draws = np.asarray(d.sample(key, (20_000,)), float)
    if draws.size == 0:
        return
    mean, variance = np.asarray(d.mean, float), np.asarray(d.variance, float)
    error = np.std(draws, 0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - mean) < 4.5 * error)
    squares = (draws - mean) ** 2
    error = np.std(squares, 0) / np.sqrt(len(draws))
    assert np.all(np.abs(squares.mean(0) - variance) < 4.5 * error)
    log_probs = -np.asarray(d.log_prob(jnp.asarray(draws)), float)
    error = np.std(log_probs, 0) / np.sqrt(len(draws))
    assert np.all(np.abs(log_probs.mean(0) - np.asarray(d.entropy())) < 4.5 * error)
    # By the trapezoidal rule on the density, dense and wide.
    ends = max(case.low, -25.0) + 1e-6, min(case.high, 45.0) - 1e-6
    grid = np.linspace(*ends, 100_001)
    column = grid.reshape((-1,) + (1,) * len(case.batch_shape))
    density = np.exp(np.asarray(d.log_prob(jnp.asarray(column)), float))
    total = integrate.trapezoid(density, column, axis=0)
    assert_allclose(total, 1.0, atol=1e-4)
    first = integrate.trapezoid(density * column, column, axis=0)
    assert_allclose(mean, first, atol=2e-4)
    second = integrate.trapezoid(density * (column - mean) ** 2, column, axis=0)
    assert_allclose(variance, second, atol=5e-4, rtol=1e-3)


@jax.jit
def carried(d, z):
    def step(d, z):
        return jax.tree.map(lambda leaf: leaf * 1, d), d.log_prob(z)

    return jax.lax.scan(step, d, z)[1]


def test_scan_and_vmap():
    """As the carry of a scan and as a constant; mapped, made and returned."""
    for name in ("default", "row", "mixture"):
        d, z = built(name), points(CASES[name])

        def step(carry, z, d=d):
            return carry + jnp.sum(d.log_prob(z)), d.icdf(0.5)

        expected = d.log_prob(z)
        assert_close(carried(d, z), expected, rtol=(1e-4, 1e-10), atol=1e-5)
        total, medians = jax.lax.scan(step, jnp.zeros(()), z)
        assert_close(total, np.sum(expected), rtol=(1e-4, 1e-10))
        assert_close(medians[0], d.icdf(0.5), rtol=(1e-4, 1e-10))
    basis = RBF(-0.75, 2.5, 5, bandwidth=1.25)
    coefficients, locs = random(3, 5), jnp.asarray([0.5, 1.0, 1.5])
    z = jnp.asarray([0.1, 0.7, 1.9])

    def make(coefficients, loc):
        # An axis for every array: none may have lost its batch to broadcasting.
        scale = jnp.full_like(loc, 0.75)
        return KAEMPrior(Energy(basis, coefficients), dist.Normal(loc, scale))

    batch = make(coefficients, locs)
    expected = batch.log_prob(z)
    axes = vmap_over(batch, energy=0, reference=0)
    assert axes.energy.coefficients == 0
    assert axes.energy.basis.bandwidth is None
    mapped = jax.vmap(lambda d, z: d.log_prob(z), in_axes=(axes, 0))(batch, z)
    assert_close(mapped, expected, rtol=(1e-4, 1e-10), atol=(1e-5, 1e-11))
    # Built inside, and returned: NumPyro's plates and scans do so.
    stacked = jax.vmap(make, out_axes=axes)(coefficients, locs)
    assert stacked.batch_shape == (3,)
    assert_close(stacked.log_prob(z), expected, rtol=(1e-4, 1e-10), atol=(1e-5, 1e-11))
    one = make(coefficients, jnp.asarray(1.0))
    shared = vmap_over(one, energy=0)
    mapped = jax.vmap(lambda d, z: d.log_prob(z), in_axes=(shared, 0))(one, z)
    assert_close(mapped, one.log_prob(z), rtol=(1e-4, 1e-10), atol=(1e-5, 1e-11))


def test_in_a_plate_and_as_a_component(key):
    prior = built("default")

    def model(x):
        with numpyro.plate("units", 4):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = jnp.asarray([0.1, 0.5, 1.0, 2.0])
    trace = handlers.trace(handlers.seed(model, key)).get_trace(x)
    z = trace["z"]["value"]
    assert z.shape == (4,)
    joint, _ = log_density(model, (x,), {}, {"z": z})
    expected = prior.log_prob(z).sum() + stats.norm(np.asarray(z), 0.5).logpdf(x).sum()
    assert_close(joint, expected, rtol=(1e-4, 1e-8))
    # Mixtures of products, which keep dependence, form a joint distribution.
    prior = KAEMPrior(Energy(RBF(-0.75, 2.5, 5), random(3, 2, 5)))
    logits = jnp.asarray([0.5, -0.5, 0.0])
    joint = dist.MixtureSameFamily(dist.Categorical(logits=logits), prior.to_event(1))
    assert (joint.batch_shape, joint.event_shape) == ((), (2,))
    z = jnp.asarray([[0.3, 1.1], [2.0, -0.5]])
    parts = prior.log_prob(z[:, None]).sum(-1) + jax.nn.log_softmax(logits)
    assert_close(
        joint.log_prob(z), jax.scipy.special.logsumexp(parts, -1), rtol=(1e-4, 1e-10)
    )
    draws = joint.sample(key, (5,))
    assert draws.shape == (5, 2)
    assert np.all(joint.support(draws))


def test_supports_and_validation():
    assert KAEMPrior.infer_shapes((3, 1), (2,)) == ((3, 2), ())
    assert KAEMPrior.infer_shapes((4,)) == ((4,), ())
    # A support is static and hashable.
    first, second = (built("default").support for _ in range(2))
    assert isinstance(first, constraints.ParameterFreeConstraint)
    assert first == second
    assert hash(first) == hash(second)
    assert not jax.tree.leaves(first)
    other = KAEMPrior(Energy(RBF(0.0, 1.0, 2), random(2))).support
    assert first != other
    assert built("row").support is constraints.real
    # What is outside is warned of where validation is asked for.
    z = np.array([3.0])
    energy = built("row").energy
    bounded = KAEMPrior(energy, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support values"):
        bounded.log_prob(z)
    assert np.isfinite(row(validate_args=True).log_prob(z))
    assert KAEMPrior(energy, validate_args=False).log_prob(z) == -np.inf


@pytest.mark.parametrize("base", ["uniform", "normal"])
def test_transformed(base, key):
    prior = KAEMPrior(Energy(RBF(-0.75, 2.5, 5), random(2, 5)), dist.Normal(1.25, 0.75))
    distribution = prior.as_transformed(base)
    assert (distribution.batch_shape, distribution.event_shape) == ((2,), ())
    z = jnp.asarray([[-0.4, 0.9], [1.1, 2.4], [3.5, -1.5]])
    assert_close(
        distribution.log_prob(z), prior.log_prob(z), rtol=1e-4, atol=(2e-3, 1e-8)
    )
    transform = distribution.transforms[0]
    assert transform.sign == 1
    assert transform.domain is (
        constraints.unit_interval if base == "uniform" else constraints.real
    )
    assert transform.codomain == prior.support
    masses = transform.inv(z)
    if base == "normal":
        masses = stats.norm.cdf(masses)
    assert_allclose(masses, prior.cdf(z), rtol=1e-3, atol=1e-6)
    back = transform(transform.inv(z))
    assert_close(back, z, rtol=(2e-3, 1e-8))
    draws = distribution.sample(key, (20_000,))
    for i in range(2):
        # Against the prior's own distribution function, itself tested elsewhere.
        u = np.asarray(prior.cdf(draws))[:, i]
        assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert bool(transform.eq(InverseCDFTransform(prior, base)))
    assert transform.eq(InverseCDFTransform(prior, base), static=True)
    assert not transform.eq(InverseCDFTransform(row(), base), static=True)
    leaves, structure = jax.tree.flatten(transform)
    again = jax.tree.unflatten(structure, leaves)
    assert_array_equal(again(jnp.full((2,), 0.3)), transform(jnp.full((2,), 0.3)))
    # Points beyond all precision stay at a far quantile, whatever the energy.
    if base == "normal":
        energy = Energy(RBF(-1.0, 1.0, 2), jnp.asarray([12.0, -12.0]))
        transform = KAEMPrior(energy, dist.Normal(0.0, 1.0)).as_transformed(base)
        z = transform.transforms[0](jnp.asarray([-1e3, -20.0, 20.0, 1e3]))
        assert np.all(np.isfinite(z))
        assert z[0] == z[1] < z[2] == z[3]


@pytest.mark.long
def test_nuts():
    """A Normal posterior through each transform, and a prior by NumPyro's bijection."""

    def draws(model, seed, *arguments):
        kernel = NUTS(model)
        mcmc = MCMC(kernel, num_warmup=500, num_samples=2000, progress_bar=False)
        mcmc.run(jax.random.key(seed), *arguments)
        return mcmc.get_samples()["z"]

    # The tilted prior is Normal and so is the likelihood.
    loc, scale, curvature, noise, x = 1.25, 0.75, -0.25, 0.5, 0.25
    basis = BSpline(loc - 12 * scale, loc + 12 * scale, 27)
    prior = KAEMPrior(
        Energy(basis, jnp.zeros(27), curvature, "square"), dist.Normal(loc, scale)
    )
    precision = 1 / scale**2 - 2 * curvature + 1 / noise**2
    mean = (loc / scale**2 + x / noise**2) / precision
    for base in ("uniform", "normal"):

        def model(x, base=base):
            z = numpyro.sample("z", prior.as_transformed(base))
            numpyro.sample("x", dist.Normal(z, noise), obs=x)

        z = draws(handlers.reparam(model, config={"z": TransformReparam()}), 5, x)
        assert_within_mcse(z, mean, err_msg=base)
        assert_within_mcse((z - mean) ** 2, 1 / precision, err_msg=base)
    # A bounded support: the mirror image of an exponential that falls from its end.
    rate = 1.5
    prior = KAEMPrior(Energy(RBF(-0.75, 2.5, 3), jnp.zeros(3), rate, "identity"))
    distribution = stats.truncexpon(b=3.25 * rate, scale=1 / rate)
    assert_within_mcse(
        draws(lambda: numpyro.sample("z", prior), 6), 2.5 - distribution.mean()
    )


def test_errors():
    energy = Energy(RBF(-0.75, 2.5, 3), np.ones((2, 3)))
    normal = dist.Normal(0.0, 1.0)
    rows = [
        (1.0, TypeError, "reference must be a NumPyro distribution or None"),
        (
            dist.Normal(np.zeros(2), 1.0).to_event(1),
            TypeError,
            "reference must be univariate, got Independent with event_shape",
        ),
        (dist.Poisson(2.0), TypeError, "must be continuous, got the discrete"),
        (
            dist.VonMises(0.0, 1.0),
            TypeError,
            "reference must have a cdf, which VonMises does not",
        ),
        (normal.expand((2,)), TypeError, "batch shape in its parameters"),
        (
            dist.Normal(np.zeros(7), 1.0),
            ValueError,
            r"batch shapes that broadcast, got \(2,\) and \(7,\)",
        ),
        (
            dist.Uniform(3.0, 4.0),
            ValueError,
            "reference must have a support that meets the grid",
        ),
    ]
    for reference, error, match in rows:
        with pytest.raises(error, match=match):
            KAEMPrior(energy, reference)
    message = r"energy must be a numpyro_kaem\.Energy, got float"
    with pytest.raises(TypeError, match=message):
        KAEMPrior(3.0)
    with pytest.raises(
        ValueError, match="refinement must be a positive integer, got 0"
    ):
        KAEMPrior(energy, refinement=0)
    for value in (1.5, True):
        message = f"refinement must be a positive integer, got {value} of type"
        with pytest.raises(TypeError, match=message):
            KAEMPrior(energy, refinement=value)
    prior = built("table")
    with pytest.raises(TypeError, match=r"prior must be a KAEMPrior, .*, got Normal"):
        InverseCDFTransform(normal)
    for make in (
        lambda: InverseCDFTransform(prior, "beta"),
        lambda: prior.as_transformed("beta"),
    ):
        with pytest.raises(ValueError, match="base must be 'uniform' or 'normal'"):
            make()
    transform = InverseCDFTransform(prior)
    for x in (0.5, jnp.full((2,), 0.5), jnp.full((3, 2, 1), 0.5)):
        with pytest.raises(ValueError, match=r"must end in the prior's batch_shape"):
            transform(x)
