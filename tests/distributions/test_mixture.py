"""Mixtures: one distribution in draws, density, distribution function and moments."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, special, stats

import numpyro_kaem as kaem
from tests.helpers import assert_close, with_long

LOGITS = np.array([0.3, -np.inf, 1.0])


def make(reference=None, batch_shape=(2,)):
    rng = np.random.default_rng(3)
    coefficients = 3 * rng.normal(size=(*batch_shape, 3, 10))
    energy = kaem.Energy(kaem.RBF(1.0, 5.0, num_basis=10), coefficients)
    return kaem.KAEMMixture(jnp.asarray(LOGITS), kaem.KAEMPrior(energy, reference))


REFERENCES = {
    "uniform": lambda: None,
    "normal of all": lambda: dist.Normal(2.5, 0.8),
    "student of each row": lambda: dist.StudentT(4.0, jnp.array([[2.0], [4.0]]), 0.8),
    "normals": lambda: dist.Normal(jnp.array([2.0, 2.5, 4.0]), 0.8),
    "student": lambda: dist.StudentT(4.0, jnp.array([2.0, 2.5, 4.0]), 0.8),
}


# One object for the module: its compiled functions and its table are used again.
@pytest.fixture(
    scope="module",
    params=with_long(REFERENCES, "uniform", "normals"),
    ids=lambda name: name.replace(" ", "-"),
)
def mixture(request):
    return make(REFERENCES[request.param]())


@pytest.mark.float64
def test_density(mixture):
    """It is that of NumPyro's mixture, and integrates to one."""
    bounded = not mixture.prior._parameters
    low, high = (1.0, 5.0) if bounded else (0.5, 5.5)
    z = np.linspace(low, high, 40)[:, None]
    components = mixture.prior.log_prob(z[..., None])
    weights = np.exp(LOGITS) / np.exp(LOGITS).sum()
    with np.errstate(divide="ignore"):
        expected = np.log(np.sum(weights * np.exp(np.asarray(components)), -1))
    assert mixture.log_prob(z).shape == (40, 2)
    np.testing.assert_allclose(mixture.log_prob(z), expected, rtol=2e-5, atol=1e-5)
    _, masses = mixture.prior.nodes()
    assert_close(jnp.sum(masses, 0), 1.0, atol=(2e-6, 1e-11))
    low, high = (1.0, 5.0) if bounded else (-np.inf, np.inf)
    total = sum(
        integrate.quad_vec(
            lambda z: np.exp(np.asarray(mixture.log_prob(z), float)),
            *bounds,
            epsabs=1e-6,
        )[0]
        for bounds in ((low, 1.0), (1.0, 5.0), (5.0, high))
        if bounds[0] < bounds[1]
    )
    assert_close(total, np.ones(2), rtol=0, atol=2e-5)


@pytest.mark.float64
def test_draws_and_quantiles(mixture):
    """Draws follow the distribution function, its inverse, weights and moments."""
    u = np.geomspace(1e-7, 0.5, 60)
    u = np.sort(np.concatenate([u, 1 - u]))[:, None].astype(mixture.mean.dtype)
    z = mixture.icdf(u)
    slope = np.exp(mixture.log_prob(z)) * np.spacing(np.abs(z))
    floor = 1e-12 if u.dtype == np.float64 else 1e-6
    error = np.abs(mixture.cdf(z) - u)
    assert np.all(error <= np.maximum(floor, 4 * slope))
    assert np.all(np.diff(z, axis=0) >= -2 * np.spacing(np.abs(z[1:])))
    draws = np.asarray(mixture.sample(jax.random.key(0), (200_000,)))
    assert draws.shape == (200_000, 2)
    for u in np.asarray(mixture.cdf(draws[:100_000]), float).T:
        assert stats.kstest(u, "uniform").pvalue > 1e-4
        # The tails too.
        for tail in (u < 1e-3, u > 0.999):
            assert stats.binomtest(int(tail.sum()), len(u), 1e-3).pvalue > 1e-4
    log_prob = np.asarray(mixture.log_prob(draws))
    few = slice(50_000)
    log_probs = mixture.component_log_probs(draws[few])
    assert log_probs.shape == (50_000, 2, 3)
    total = special.logsumexp(log_probs, axis=-1)
    assert_close(total, log_prob[few], rtol=(2e-5, 1e-10), atol=(1e-5, 1e-10))
    component = jax.random.categorical(jax.random.key(4), log_probs)
    counts = np.bincount(np.asarray(component).ravel(), minlength=3)
    assert counts[1] == 0
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum() * counts.sum()
    assert stats.chisquare(counts[[0, 2]], expected[[0, 2]]).pvalue > 1e-4
    draws, log_prob = (np.asarray(a, float) for a in (draws, log_prob))
    centred = draws - np.asarray(mixture.mean)
    for values, moment in (
        (draws, mixture.mean),
        (centred**2, mixture.variance),
        (-log_prob, mixture.entropy()),
    ):
        error = np.std(values, 0) / np.sqrt(len(values))
        assert np.all(np.abs(values.mean(0) - moment) < 4.5 * error)


@pytest.mark.long
def test_cells_in_common_change_no_quantile():
    """By the table of the mixture as by a search between those of the components."""
    u = np.geomspace(1e-6, 0.5, 40)
    u = np.sort(np.concatenate([u, 1 - u]))[:, None]
    together = make(dist.Normal(2.5, 0.8))
    apart = make(dist.Normal(jnp.full(3, 2.5), 0.8))
    assert together._own_table is not None
    assert apart._own_table is None
    u = u.astype(together.mean.dtype)
    z, expected = together.icdf(u), apart.icdf(u)
    slope = np.exp(together.log_prob(expected))
    floor = 1e-12 if u.dtype == np.float64 else 1e-6
    assert np.all(np.abs(z - expected) * slope <= floor)


def test_its_table_is_made_once_and_not_kept_of_a_trace(key):
    mixture = make()

    @jax.jit
    def quantile(logits):
        traced = kaem.KAEMMixture(logits, mixture.prior)
        return traced.icdf(0.3), traced.sample(key)

    first, _ = quantile(mixture.mixing_logits)
    table = mixture._own_table
    assert mixture._own_table is table
    assert_close(first, np.asarray(mixture.icdf(0.3)), rtol=(1e-5, 1e-10))
    # Other weights have another table.
    second, _ = quantile(mixture.mixing_logits[::-1])
    assert np.all(np.abs(second - first) > 1e-3)


@pytest.mark.parametrize(
    "reference",
    [None, pytest.param(dist.Normal(jnp.full(3, 2.5), 0.8), marks=pytest.mark.long)],
)
def test_weights_may_have_a_batch_that_the_components_have_not(reference, key):
    prior = make(reference, batch_shape=()).prior
    mixture = kaem.KAEMMixture(jnp.array([LOGITS, LOGITS[::-1]]), prior)
    draws = mixture.sample(key, (50_000,))
    assert draws.shape == (50_000, 2)
    for row, logits in enumerate([LOGITS, LOGITS[::-1]]):
        alone = kaem.KAEMMixture(jnp.asarray(logits), prior)
        u = np.asarray(alone.cdf(draws[:, row]), float)
        assert stats.kstest(u, "uniform").pvalue > 1e-4
        quantiles = jnp.linspace(0.01, 0.99, 5)
        together = mixture.icdf(quantiles[:, None])[:, row]
        assert_close(together, np.asarray(alone.icdf(quantiles)), rtol=(1e-5, 1e-10))


@pytest.mark.float64
def test_derivatives_of_icdf(x64):
    mixture = make(dist.Normal(2.5, 1.2))
    u = jnp.array([0.03, 0.4, 0.9])[:, None]
    logits = jnp.array([0.3, -1.0, 1.0])
    coefficients = mixture.prior.energy.coefficients

    def quantiles(logits, coefficients, u):
        energy = kaem.Energy(mixture.prior.energy.basis, coefficients)
        prior = kaem.KAEMPrior(energy, dist.Normal(2.5, 1.2), refinement=2)
        return kaem.KAEMMixture(logits, prior).icdf(u)

    direction = (
        jnp.array([0.5, -0.2, 0.1]),
        jnp.asarray(np.random.default_rng(0).normal(size=coefficients.shape)),
        jnp.full_like(u, 0.3),
    )
    arguments = (logits, coefficients, u)
    quantiles = jax.jit(quantiles)
    _, change = jax.jit(lambda a, d: jax.jvp(quantiles, a, d))(arguments, direction)
    step = 1e-6 if x64 else 1e-3
    ahead, behind = (
        quantiles(
            *(a + s * step * d for a, d in zip(arguments, direction, strict=True))
        )
        for s in (1, -1)
    )
    difference = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(
        change, difference, rtol=1e-5 if x64 else 2e-2, atol=1e-3
    )
    # Reverse mode agrees with forward mode.
    gradients = jax.jit(jax.grad(lambda *a: quantiles(*a).sum(), argnums=(0, 1, 2)))(
        *arguments
    )
    inner = sum(jnp.sum(g * d) for g, d in zip(gradients, direction, strict=True))
    assert_close(inner, jnp.sum(change), rtol=(1e-4, 1e-9))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("name", "base"), [("normal of all", "normal"), ("normals", "uniform")]
)
def test_transformed(name, base, key):
    """A fixed base through the quantiles of the mixture: its draws have derivatives."""
    mixture = make(REFERENCES[name]())
    transformed = mixture.as_transformed(base)
    transform = transformed.transforms[0]
    assert (transformed.batch_shape, transformed.event_shape) == ((2,), ())
    assert transform.codomain == mixture.support
    z = jnp.asarray([[0.5, 1.25], [2.5, 2.75], [4.25, 5.5]])
    assert_close(
        transformed.log_prob(z), mixture.log_prob(z), rtol=(1e-4, 1e-10), atol=1e-5
    )
    x = transform.inv(z)
    masses = x if base == "uniform" else stats.norm.cdf(np.asarray(x, float))
    assert_close(masses, mixture.cdf(z), rtol=(2e-5, 1e-10), atol=(1e-6, 1e-12))
    back = mixture.cdf(transform(x))
    assert_close(back, mixture.cdf(z), rtol=(2e-5, 1e-10), atol=(1e-6, 1e-12))
    draws = transformed.sample(key, (20_000,))
    assert draws.shape == (20_000, 2)
    for u in np.asarray(mixture.cdf(draws), float).T:
        assert stats.kstest(u, "uniform").pvalue > 1e-4

    def draw(logits):
        moved = kaem.KAEMMixture(logits, mixture.prior).as_transformed(base)
        return moved.sample(key, (5,))

    logits, direction = jnp.asarray([0.3, -1.0, 1.0]), jnp.asarray([0.5, 0.1, -0.3])
    _, change = jax.jit(lambda d: jax.jvp(draw, (logits,), (d,)))(direction)
    step = 1e-2
    ends = (draw(logits + sign * step * direction) for sign in (1, -1))
    up, down = (np.asarray(end, float) for end in ends)
    np.testing.assert_allclose(change, (up - down) / (2 * step), rtol=0.05, atol=0.01)
    assert np.all(np.abs(change) > 1e-4)


def test_proportions_may_be_trained_or_fixed(key):
    """Proportions are learned as a parameter, and stay as given as a constant."""
    truth = make(batch_shape=())
    draws = truth.sample(key, (4000,))
    fixed = jnp.array([0.0, -jnp.inf, 0.0])

    def loss(parameters, logits):
        mixture = kaem.KAEMMixture(parameters.get("logits", logits), truth.prior)
        return -jnp.mean(mixture.log_prob(draws))

    gradient = jax.jit(jax.grad(loss))({}, fixed)
    assert gradient == {}
    step = jax.jit(
        lambda logits: logits - 4 * jax.grad(loss)({"logits": logits}, fixed)["logits"]
    )
    logits = jnp.zeros(3)
    for _ in range(60):
        logits = step(logits)
    proportions = np.asarray(jax.nn.softmax(logits))
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(proportions, expected, atol=0.05)
    # A component that is left out stays out.
    started = jnp.asarray(LOGITS)
    gradient = jax.jit(jax.grad(loss))({"logits": started}, fixed)["logits"]
    assert np.all(np.isfinite(gradient))
    assert float(gradient[1]) == 0.0


def test_support_and_ends(key):
    """Component grids of their own share one support, from end to end."""
    basis = kaem.RBF(low=[1.0, 3.0], high=[2.0, 5.0], num_basis=4)
    prior = kaem.KAEMPrior(kaem.Energy(basis, jnp.zeros((2, 4))))
    mixture = kaem.KAEMMixture(jnp.zeros(2), prior)
    assert (mixture.support.lower_bound, mixture.support.upper_bound) == (1.0, 5.0)
    draws = mixture.sample(key, (10_000,))
    assert not np.any((draws > 2.0) & (draws < 3.0))
    assert_close(mixture.cdf(jnp.asarray(2.5)), 0.5, atol=1e-6)
    assert_close(mixture.mean, 2.75, atol=1e-5)
    # The gap has no mass, and the quantile function jumps over it.
    assert float(mixture.icdf(0.499)) < 2.0
    assert float(mixture.icdf(0.501)) > 3.0
    mixture = make()
    assert "3 components" in repr(mixture)
    assert_close(mixture.icdf(jnp.array([[0.0], [1.0]])), [[1.0] * 2, [5.0] * 2])
    assert np.all(np.isnan(mixture.icdf(jnp.array([[-0.1], [1.1]]))))
    with pytest.warns(UserWarning, match="Out-of-support"):
        outside = mixture.log_prob(jnp.array([[0.9], [5.1]]))
    assert np.all(outside == -np.inf)
    gradient = jax.jit(jax.grad(lambda z: mixture.log_prob(z)[0]))(jnp.asarray(0.5))
    assert float(gradient) == 0.0


def test_bad_input():
    def prior(*shape):
        return kaem.KAEMPrior(kaem.Energy(kaem.RBF(1.0, 5.0, 4), np.zeros((*shape, 4))))

    three = prior(3)
    for logits, components, error, match in (
        (np.zeros(3), dist.Normal(), TypeError, "prior must be a KAEMPrior"),
        (dist.Categorical(np.ones(3) / 3), three, TypeError, "of log weights, such as"),
        (np.zeros(3), prior(), ValueError, r"got batch_shape \(\)"),
        (
            np.zeros(2),
            three,
            ValueError,
            r"mixing_logits must have shape \(\.\.\., 3\), got \(2,\)",
        ),
        (np.float32(0), three, ValueError, r"must have shape \(\.\.\., 3\), got \(\)"),
        (np.array([True] * 3), three, TypeError, "must be real numbers"),
        (np.array([0, np.nan, 0]), three, ValueError, "must be finite or minus"),
        (np.array([0, np.inf, 0]), three, ValueError, "must be finite or minus"),
        (np.full(3, -np.inf), three, ValueError, "not minus infinity for all"),
        (np.zeros((5, 3)), prior(2, 3), ValueError, "batch shapes that broadcast"),
    ):
        with pytest.raises(error, match=match):
            kaem.KAEMMixture(logits, components)
