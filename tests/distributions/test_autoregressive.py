"""Chains of conditional densities: one distribution in density, draws and transport."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from scipy import stats

import numpyro_kaem as kaem
from tests.helpers import assert_close, with_long

LOW, HIGH = np.array([-1.0, 2.0]), np.array([3.0, 4.0])
BASIS = kaem.BSpline(LOW, HIGH, num_basis=6)


def network(dim=2, num_features=6, seed=0, dtype=None):
    """A network whose last layer is not zero."""
    conditioner = kaem.MaskedConditioner(
        jax.random.key(seed), dim, num_features, width=6, depth=2
    )
    rng = np.random.default_rng(seed)
    last = lambda c: (c.weights[-1], c.biases[-1])  # noqa: E731
    filled = [
        jnp.asarray(rng.normal(size=leaf.shape) * scale, dtype or leaf.dtype)
        for leaf, scale in zip(last(conditioner), (0.8, 1.0), strict=True)
    ]
    return eqx.tree_at(last, conditioner, tuple(filled))


DISTRIBUTIONS = {
    "uniform": lambda: None,
    "normals": lambda: dist.Normal(jnp.array([0.5, 3.0]), jnp.array([1.5, 0.5])),
}


# One object for the module, and one number of points where any would do: compiled
# functions are used again.
NUM_POINTS = 200


@pytest.fixture(scope="module", params=with_long(DISTRIBUTIONS, "uniform"))
def prior(request):
    return kaem.AutoregressiveKAEMPrior(
        BASIS, network(), DISTRIBUTIONS[request.param]()
    )


def ends_of(prior):
    if prior._parameters is None:
        return LOW, HIGH
    reach = np.array([8.0, 3.0])
    return LOW - reach, HIGH + reach


def cells(prior, num_panels):
    """Gauss points of a grid of panels: points, masses, and panel of each."""
    x, w = np.polynomial.legendre.leggauss(6)
    axes = []
    for low, high in zip(*ends_of(prior), strict=True):
        edges = np.linspace(low, high, num_panels + 1)
        points = edges[:-1, None] + np.diff(edges)[:, None] * (x + 1) / 2
        axes.append(
            (points.ravel(), np.tile(w / 2 * (edges[1] - edges[0]), num_panels))
        )
    points = np.stack(np.meshgrid(axes[0][0], axes[1][0], indexing="ij"), -1)
    weights = axes[0][1][:, None] * axes[1][1]
    return points, weights * np.exp(np.asarray(prior.log_prob(points), float))


# --- the network ---------------------------------------------------------------------


def test_coefficients_depend_on_the_dimensions_before():
    for dim in (1, 2, 4):
        conditioner = network(dim, 3)
        at = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, dim))
        slopes = jax.jit(jax.jacobian(conditioner))(at)
        assert slopes.shape == (dim, 3, dim)
        strength = np.abs(slopes).max(1)
        assert np.all(strength[np.triu_indices(dim)] == 0)
        assert np.all(strength[np.tril_indices(dim, -1)] > 0)
    # A network starts flat, with fixed leaves.
    conditioner = kaem.MaskedConditioner(jax.random.key(0), 3, 5, width=7, depth=3)
    assert not np.any(conditioner(jnp.ones((4, 3))))
    shapes = [leaf.shape for leaf in jax.tree_util.tree_leaves(conditioner)]
    weights = [(3, 7), (7, 7), (7, 7), (7, 3, 5)]
    assert shapes == [*weights, (7,), (7,), (7,), (3, 5)]


# --- one distribution ----------------------------------------------------------------


@pytest.mark.long
def test_draws_follow_the_density(prior, key):
    draws = np.asarray(prior.sample(key, (20_000,)), float)
    assert draws.shape == (20_000, 2)
    _, masses = cells(prior, 30)
    expected = masses.reshape(6, 30, 6, 30).sum((1, 3)) * len(draws)
    edges = [np.linspace(a, b, 7) for a, b in zip(*ends_of(prior), strict=True)]
    counts = np.histogram2d(*draws.T, bins=edges)[0]
    used = expected > 5
    observed = np.append(counts[used], len(draws) - counts[used].sum())
    wanted = np.append(expected[used], len(draws) - expected[used].sum())
    keep = wanted > 1
    chi_square = np.sum((observed - wanted)[keep] ** 2 / wanted[keep])
    assert stats.chi2.sf(chi_square, keep.sum() - 1) > 1e-4


def test_density(prior, key):
    """It is that of the conditionals, integrates to one, and is the same in chunks."""
    _, masses = cells(prior, 30)
    np.testing.assert_allclose(masses.sum(), 1.0, atol=2e-5)
    many = prior.sample(key, (9000,))
    log_prob = np.asarray(prior.log_prob(many))
    z = many[:NUM_POINTS]
    first = prior.conditional(0, z[:, :0])
    second = prior.conditional(1, z[:, :1])
    assert first.batch_shape == second.batch_shape == (NUM_POINTS,)
    total = first.log_prob(z[:, 0]) + second.log_prob(z[:, 1])
    assert_close(prior.log_prob(z), total, rtol=(1e-4, 1e-9), atol=(1e-5, 1e-9))
    for part in (slice(NUM_POINTS), slice(-NUM_POINTS, None)):
        assert_close(log_prob[part], prior.log_prob(many[part]), rtol=1e-4, atol=1e-5)
    shaped = prior.log_prob(many.reshape(3, 3000, 2))
    assert_close(shaped.ravel(), log_prob, rtol=1e-4, atol=1e-5)
    assert prior.conditional(1, z[0, :1]).batch_shape == ()
    # The second depends on the first.
    assert not np.allclose(second.mean[1:], second.mean[:-1])
    prior = kaem.AutoregressiveKAEMPrior(BASIS, network(), validate_args=True)
    z = jnp.array([[0.0, 5.0], [0.0, 3.0], [-2.0, 3.0]])
    with pytest.warns(UserWarning, match="Out-of-support"):
        values = prior.log_prob(z)
    assert np.array_equal(np.isfinite(values), [False, True, False])


def test_transport_is_rosenblatts(prior, key):
    z = prior.sample(key, (NUM_POINTS,))
    u = prior.to_unit(z)
    second = prior.conditional(1, z[:, :1])
    assert_close(u[:, 1], second.cdf(z[:, 1]), rtol=1e-4, atol=1e-5)
    back = prior.from_unit(u)
    inner = np.all((u > 0.01) & (u < 0.99), axis=-1)
    assert_close(back[inner], z[inner], atol=(1e-3, 1e-9))
    jacobian = jax.vmap(jax.jacfwd(prior.to_unit))(z[:5])
    assert_close(jacobian[:, 0, 1], np.zeros(5), atol=0)
    log_det = jnp.log(jacobian[:, 0, 0]) + jnp.log(jacobian[:, 1, 1])
    assert_close(log_det, prior.log_prob(z[:5]), rtol=(1e-3, 1e-8), atol=(1e-3, 1e-8))
    # From the ends of the unit square, and from beyond.
    low, high = prior.from_unit(jnp.array([[0.0, 0.0], [1.0, 1.0]]))
    if prior._parameters is None:
        assert_close(low, LOW)
        assert_close(high, HIGH)
    else:
        assert np.all(low == -np.inf)
        assert np.all(high == np.inf)
    assert np.all(np.isnan(prior.from_unit(jnp.array([-0.1, 1.2]))))


@pytest.mark.long
@pytest.mark.parametrize("dim", [1, 3])
def test_other_dimensions(dim, key):
    prior = kaem.AutoregressiveKAEMPrior(
        kaem.RBF(-1.0, 3.0, 5), network(dim, 5), dist.Laplace(1.0, 0.7)
    )
    z = prior.sample(key, (50,))
    assert z.shape == (50, dim)
    parts = [prior.conditional(i, z[:, :i]).log_prob(z[:, i]) for i in range(dim)]
    assert_close(prior.log_prob(z), sum(parts), rtol=(1e-4, 1e-8), atol=(1e-4, 1e-8))


# --- derivatives ---------------------------------------------------------------------


@pytest.mark.long
def test_derivatives_in_float64():
    with jax.enable_x64(True):
        conditioner = jax.tree_util.tree_map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), network(dtype=jnp.float64)
        )
        loc, z = jnp.array([0.5, 3.0]), jnp.array([[0.3, 3.3], [2.0, 2.2], [4.0, 5.0]])

        def make(conditioner, loc):
            reference = dist.Normal(loc, jnp.array([1.5, 0.5]))
            return kaem.AutoregressiveKAEMPrior(BASIS, conditioner, reference)

        def density(conditioner, loc, z):
            return make(conditioner, loc).log_prob(z).sum()

        def draws(conditioner, loc, z):
            del z
            sample = make(conditioner, loc).sample(jax.random.key(1), (3,))
            return jnp.sum(sample * jnp.array([1.0, -2.0]))

        for function in map(jax.jit, (density, draws)):
            point = (conditioner, loc, z)
            leaves, treedef = jax.tree_util.tree_flatten(point)
            rng = np.random.default_rng(0)
            direction = [jnp.asarray(rng.normal(size=x.shape)) for x in leaves]
            ahead, behind = (
                function(
                    *treedef.unflatten(
                        [x + s * d for x, d in zip(leaves, direction, strict=True)]
                    )
                )
                for s in (1e-6, -1e-6)
            )
            gradient = jax.jit(jax.grad(function, argnums=(0, 1, 2)))(*point)
            inner = sum(
                jnp.vdot(g, d)
                for g, d in zip(
                    jax.tree_util.tree_leaves(gradient), direction, strict=True
                )
            )
            assert abs(float(inner)) > 0.1
            np.testing.assert_allclose(inner, (ahead - behind) / 2e-6, rtol=1e-6)


# --- NumPyro -------------------------------------------------------------------------


def test_pytree_jit_and_vmap(prior, key):
    z = prior.sample(key, (NUM_POINTS,))
    expected = np.asarray(prior.log_prob(z))
    leaves, treedef = jax.tree_util.tree_flatten(prior)
    copy = jax.tree_util.tree_unflatten(treedef, leaves)
    assert (copy.batch_shape, copy.event_shape) == ((), (2,))
    assert_close(copy.log_prob(z), expected, rtol=1e-4, atol=1e-5)
    jitted = jax.jit(lambda distribution, z: distribution.log_prob(z))(prior, z)
    assert_close(jitted, expected, rtol=1e-4, atol=1e-5)
    assert_close(jax.vmap(prior.log_prob)(z), expected, rtol=1e-4, atol=1e-5)
    stacked = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf, leaf]), prior)
    values = jax.vmap(lambda distribution: distribution.log_prob(z))(stacked)
    assert_close(values[1], expected, rtol=1e-4, atol=1e-5)
    draws = jax.vmap(lambda k: prior.sample(k))(jax.random.split(key, 3))
    assert draws.shape == (3, 2)
    assert prior.has_rsample
    assert prior.expand((5,)).sample(key).shape == (5, 2)
    assert "dim=2" in repr(prior)
    assert prior.reference.batch_shape == (2,)


def test_in_a_model(key):
    basis = kaem.BSpline(-3.0, 3.0, 6)
    reference = dist.Normal(0.0, 1.0)
    prior = kaem.AutoregressiveKAEMPrior(basis, network(), reference)

    def model():
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", prior)
            numpyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=jnp.array([0.0, 1, 2]))

    mcmc = MCMC(NUTS(model), num_warmup=50, num_samples=50, progress_bar=False)
    mcmc.run(key)
    assert mcmc.get_samples()["z"].shape == (50, 3, 2)
    assert np.all(np.isfinite(mcmc.get_samples()["z"]))
    draws = Predictive(model, num_samples=5)(key)
    assert draws["z"].shape == (5, 3, 2)


@pytest.mark.long
def test_as_a_guide(key):
    basis = kaem.BSpline(-3.0, 3.0, 6)

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=2.0)

    def guide():
        learned = eqx_module("network", network())
        reference = dist.Normal(0.0, 1.0)
        numpyro.sample("z", kaem.AutoregressiveKAEMPrior(basis, learned, reference))

    svi = SVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO(num_particles=16))
    result = svi.run(key, 150, progress_bar=False)
    # The evidence of y is Normal(0, sqrt(3)).
    bound = -stats.norm.logpdf(2.0, 0.0, 3**0.5)
    assert abs(np.mean(result.losses[-30:]) - bound) < 0.1


# --- errors --------------------------------------------------------------------------


def test_errors():
    def make(*arguments, **options):
        return lambda: kaem.AutoregressiveKAEMPrior(*arguments, **options)

    flat = network()
    prior = make(BASIS, flat)()
    shaped = dist.Normal(np.zeros((4, 1), np.float32), 1.0)
    rows = [
        (make(3, flat), TypeError, "basis must be a basis"),
        (make(BASIS, lambda x: x), TypeError, "conditioner must be an Equinox module"),
        (make(BASIS, BASIS), TypeError, "with an attribute dim"),
        (make(BASIS, network(3)), ValueError, r"grid .* \(3,\), .* got \(2,\)"),
        (make(BASIS, network(2, 5)), ValueError, r"shape \(2, 6\), .* got \(2, 5\)"),
        (make(BASIS, flat, 3), TypeError, "reference must be"),
        (
            make(BASIS, flat, shaped),
            ValueError,
            r"batch shape of reference .* got \(4, 1\)",
        ),
        (make(BASIS, flat, refinement=0), ValueError, "refinement must be"),
        (
            lambda: prior.to_unit(np.zeros(3)),
            ValueError,
            r"value must have shape \(..., 2\), got",
        ),
        (
            lambda: prior.from_unit(np.zeros(())),
            ValueError,
            r"u must have shape \(..., 2\), got",
        ),
        (
            lambda: prior.conditional(2, np.zeros(2)),
            ValueError,
            "index must be less than",
        ),
        (lambda: prior.conditional(1.0, np.zeros(1)), TypeError, "index must be"),
        (
            lambda: prior.conditional(1, np.zeros(2)),
            ValueError,
            r"before must have shape \(..., 1\)",
        ),
    ]
    for name in ("dim", "num_features", "width", "depth"):
        for count, error in ((0, ValueError), (2.5, TypeError)):
            options = {"dim": 2, "num_features": 3, name: count}
            call = functools.partial(
                kaem.MaskedConditioner, jax.random.key(0), **options
            )
            rows.append((call, error, f"{name} must be a positive integer"))
    for call, error, match in rows:
        with pytest.raises(error, match=match):
            call()
