"""Learnable parts of distributions: their sites, and fitted values put back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO

import numpyro_kaem as kaem
from numpyro_kaem.distributions.deep import DeepEnergyPrior
from numpyro_kaem.models.learning import learn_module, learn_prior, set_parameters
from tests.helpers import assert_close

BASIS = kaem.BSpline(-2.0, 3.0, num_basis=6)


def coefficients(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*shape, 6)))


def simple(*shape, reference=None, basis=BASIS):
    energy = kaem.Energy(basis, coefficients(*shape), base_weight=0.1)
    return kaem.KAEMPrior(energy, reference)


def conditioner():
    return kaem.MaskedConditioner(jax.random.key(0), dim=2, num_features=6, width=4)


def mixture_of_products():
    components = simple(3, 2, reference=dist.Normal(0.5, 2.0)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(3)), components)


POSITIVE = kaem.BSpline(0.5, 3.0, num_basis=6)
NORMAL = ["reference.loc", "reference.scale"]
# Distribution, and its sites in order; those of references on request only.
CASES = {
    "prior": (lambda: simple(4).to_event(1), ["energy$params"]),
    "normal reference": (
        lambda: simple(reference=dist.Normal(0.5, 2.0)).expand([4]).to_event(1),
        ["energy$params", *NORMAL],
    ),
    "transformed reference": (
        lambda: simple(2, reference=dist.LogNormal(0.2, 0.5), basis=POSITIVE),
        ["energy$params", *NORMAL],
    ),
    "truncated reference": (
        lambda: simple(reference=dist.TruncatedNormal(0.5, 2.0, low=-2.0)),
        ["energy$params", "reference.base_dist.loc", "reference.base_dist.scale"],
    ),
    "uniform reference": (
        lambda: simple(reference=dist.Uniform(-3.0, 4.0)),
        ["energy$params"],
    ),
    "mixture": (
        lambda: kaem.KAEMMixture(jnp.zeros(3), simple(4, 3)).to_event(1),
        ["logits", "energy$params"],
    ),
    "mixture of products": (mixture_of_products, ["energy$params", *NORMAL, "logits"]),
    "mixture with probabilities": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.2, 0.8])), simple(2)
        ),
        ["energy$params", "probs"],
    ),
    "autoregressive": (
        lambda: kaem.AutoregressiveKAEMPrior(
            kaem.RBF(-2.0, 3.0, 6), conditioner(), dist.Normal(0.5, 2.0)
        ).mask(True),
        ["basis$params", "conditioner$params", *NORMAL],
    ),
    "deep": (
        lambda: DeepEnergyPrior.init(jax.random.key(0), 2, width=4).expand([3]),
        ["reference.scale", "network$params"],
    ),
    "quantile function": (
        lambda: simple(2, reference=dist.Normal(0.5, 2.0)).as_transformed("normal"),
        ["energy$params", *NORMAL],
    ),
    "shifted": (
        lambda: dist.TransformedDistribution(
            simple(2), dist.transforms.AffineTransform(1.0, 2.0)
        ),
        ["energy$params"],
    ),
    "distribution of NumPyro": (
        lambda: dist.Normal(0.0, 1.0).expand([8]).to_event(1),
        NORMAL,
    ),
}


density = jax.jit(lambda prior, z: prior.log_prob(z))


def sites_of(prior, **kwargs):
    with handlers.trace() as trace:
        learned = learn_prior("prior", prior, **kwargs)
    return learned, {name: site["value"] for name, site in trace.items()}


def points(prior):
    z = np.random.default_rng(1).uniform(0.6, 2.4, size=(5, *prior.shape()))
    return jnp.asarray(z)


def moved(params):
    """Other values of all parameters, within their constraints."""

    def move(name, tree):
        if name.endswith("probs"):
            return tree[::-1]
        return jax.tree_util.tree_map(lambda leaf: 1.1 * leaf + 0.05, tree)

    return {name: move(name, tree) for name, tree in params.items()}


def assert_same_leaves(actual, expected):
    assert jax.tree_util.tree_structure(actual) == jax.tree_util.tree_structure(
        expected
    )
    pairs = zip(*map(jax.tree_util.tree_leaves, (actual, expected)), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", CASES)
def test_sites_and_fitted_values(name):
    """Sites in one order, whatever the hash seed; fitted values are put back."""
    make, names = CASES[name]
    prior = make()
    for learn_reference in (False, True):
        learned, sites = sites_of(prior, learn_reference=learn_reference)
        expected = [n for n in names if learn_reference or "reference." not in n]
        assert list(sites) == [f"prior.{site}" for site in expected]
        assert type(learned) is type(prior)
        assert learned.shape() == prior.shape()
        assert learned.batch_shape == prior.batch_shape
        if not learn_reference:
            assert_same_leaves(learned, prior)
    params = moved(sites) | {"decoder$params": jnp.zeros(2)}
    fitted = set_parameters("prior", prior, params)
    within = handlers.substitute(
        lambda: learn_prior("prior", prior, learn_reference=True), params
    )()
    assert_same_leaves(fitted, within)
    _, again = sites_of(fitted, learn_reference=True)
    for site, value in again.items():
        assert_same_leaves(value, params[site])


def test_parts_without_sites():
    """Proportions stay fixed on request; other modules may have no parameters."""
    for name in ("mixture", "mixture of products"):
        prior = CASES[name][0]()
        for learn_proportions in (True, False):
            _, sites = sites_of(prior, learn_proportions=learn_proportions)
            assert ("prior.logits" in sites) == learn_proportions
    with handlers.trace() as trace:
        assert learn_module("decoder", jnp.tanh) is jnp.tanh
        assert learn_module("none", None) is None
    assert len(trace) == 0


@pytest.mark.parametrize(
    "name",
    [
        "mixture",
        "autoregressive",
        pytest.param("quantile function", marks=pytest.mark.long),
    ],
)
def test_density_of_fitted_values(name):
    prior = CASES[name][0]()
    _, sites = sites_of(prior, learn_reference=True)
    z = points(prior)
    before = density(prior, z)
    fitted = set_parameters("prior", prior, moved(sites))
    assert np.max(np.abs(density(fitted, z) - before)) > 1e-3
    # The prior that was given stays as it was, cached tables and all.
    assert_close(density(prior, z), before)
    same = set_parameters("prior", fitted, sites)
    assert_close(density(same, z), before, rtol=1e-5)


def test_fitted_tables_are_fresh_and_checked():
    prior = simple(2)
    z = points(prior)
    cdf = jax.jit(lambda prior: prior.cdf(z))
    before = cdf(prior)
    _, sites = sites_of(prior)
    fitted = set_parameters("prior", prior, moved(sites))
    energy = sites["prior.energy$params"]
    expected = kaem.KAEMPrior(
        kaem.Energy(
            BASIS, 1.1 * energy.coefficients + 0.05, 1.1 * energy.base_weight + 0.05
        )
    )
    assert_close(cdf(fitted), cdf(expected), rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(cdf(fitted) - before)) > 1e-3
    steep = jnp.tile(jnp.array([0.0, 9000.0]), (2, 3))
    params = {
        "prior.energy$params": eqx.tree_at(lambda e: e.coefficients, energy, steep)
    }
    with pytest.warns(UserWarning, match="estimated relative error"):
        set_parameters("prior", prior, params)


def test_svi_keeps_the_reference_valid(key):
    data = jnp.asarray(0.5 + 0.05 * np.random.default_rng(0).normal(size=500))
    prior = simple(reference=dist.Normal(0.0, 1.0))

    def model():
        learned = learn_prior("prior", prior, learn_reference=True)
        with numpyro.plate("data", 500):
            numpyro.sample("z", learned, obs=data)

    svi = SVI(model, lambda: None, optax.adam(0.3), Trace_ELBO())
    result = jax.jit(lambda: svi.run(key, 60, progress_bar=False))()
    assert result.losses[-1] < result.losses[0] - 500
    fitted = set_parameters("prior", prior, result.params)
    assert 0 < float(fitted.reference.scale) < 1.0
    log_prob = density(fitted, data).sum()
    assert_close(-log_prob, result.losses[-1], rtol=0.02)


def test_gradients_reach_every_part():
    prior = kaem.AutoregressiveKAEMPrior(BASIS, conditioner(), dist.Normal(0.5, 2.0))
    _, sites = sites_of(prior, learn_reference=True)
    sites = moved(sites)

    def loss(params):
        return set_parameters("prior", prior, params).log_prob(points(prior)).sum()

    gradient = jax.jit(jax.grad(loss))(sites)
    assert sorted(gradient) == sorted(sites)
    for leaf in jax.tree_util.tree_leaves(gradient):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)


def test_bad_input():
    prior = simple(2)
    _, sites = sites_of(prior)
    general = dist.MixtureGeneral(
        dist.Categorical(jnp.ones(2) / 2),
        [simple(reference=dist.Normal(0.0, 1.0)), dist.Normal(0.0, 1.0)],
    )
    several = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    for wrong, match in (
        (jnp.zeros(3), "prior must be a NumPyro distribution"),
        (general, "hide energies in a MixtureGeneral"),
        (several, "continuous univariate distribution, got Multi"),
    ):
        with pytest.raises(TypeError, match=match):
            learn_prior("prior", wrong, learn_reference=wrong is several)
    others = sites | {"prior.logits": jnp.zeros(2)}
    for learned, params, match in (
        (prior, {"other": jnp.zeros(2)}, r"'prior.energy\$params'; got 'other'"),
        (prior, others, r"got 'prior.logits'"),
        (prior, {}, r"got none"),
        (prior, sites_of(simple(3))[1], r"must have arrays of shapes \[\(2, 6\)"),
        (simple(2, basis=POSITIVE), sites, "in another structure"),
    ):
        with pytest.raises(ValueError, match=match):
            set_parameters("prior", learned, params)
