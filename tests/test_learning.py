"""Learnable parts of distributions: their sites, and fitted values put back."""

import functools
import os
import subprocess
import sys

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
from numpyro_kaem.learning import learn_module, learn_prior, set_parameters
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


# Distribution, sites without and with references learned, and shape of a draw.
CASES = {
    "prior": (lambda: simple(4).to_event(1), ["energy$params"], []),
    "normal reference": (
        lambda: simple(reference=dist.Normal(0.5, 2.0)).expand([4]).to_event(1),
        ["energy$params"],
        ["reference.loc", "reference.scale"],
    ),
    "transformed reference": (
        lambda: simple(2, reference=dist.LogNormal(0.2, 0.5), basis=POSITIVE),
        ["energy$params"],
        ["reference.loc", "reference.scale"],
    ),
    "truncated reference": (
        lambda: simple(reference=dist.TruncatedNormal(0.5, 2.0, low=-2.0)),
        ["energy$params"],
        ["reference.base_dist.loc", "reference.base_dist.scale"],
    ),
    "uniform reference": (
        lambda: simple(reference=dist.Uniform(-3.0, 4.0)),
        ["energy$params"],
        [],
    ),
    "mixture": (
        lambda: kaem.KAEMMixture(jnp.zeros(3), simple(4, 3)).to_event(1),
        ["logits", "energy$params"],
        [],
    ),
    "mixture of products": (
        mixture_of_products,
        ["energy$params", "logits"],
        ["reference.loc", "reference.scale"],
    ),
    "mixture with probabilities": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.2, 0.8])), simple(2)
        ),
        ["energy$params", "probs"],
        [],
    ),
    "autoregressive": (
        lambda: kaem.AutoregressiveKAEMPrior(
            kaem.RBF(-2.0, 3.0, 6), conditioner(), dist.Normal(0.5, 2.0)
        ).mask(True),
        ["basis$params", "conditioner$params"],
        ["reference.loc", "reference.scale"],
    ),
    "deep": (
        lambda: DeepEnergyPrior.init(jax.random.key(0), 2, width=4).expand([3]),
        ["network$params"],
        ["reference.scale"],
    ),
    "quantile function": (
        lambda: simple(2, reference=dist.Normal(0.5, 2.0)).as_transformed("normal"),
        ["energy$params"],
        ["reference.loc", "reference.scale"],
    ),
    "shifted": (
        lambda: dist.TransformedDistribution(
            simple(2), dist.transforms.AffineTransform(1.0, 2.0)
        ),
        ["energy$params"],
        [],
    ),
    "law of NumPyro": (
        lambda: dist.Normal(0.0, 1.0).expand([8]).to_event(1),
        [],
        ["reference.loc", "reference.scale"],
    ),
}
POSITIVE = kaem.BSpline(0.5, 3.0, num_basis=6)

case = pytest.mark.parametrize("name", CASES)


@functools.cache
def prior_of(name):
    return CASES[name][0]()


density = jax.jit(lambda law, z: law.log_prob(z))


@pytest.fixture(autouse=True, scope="module")
def forget():
    """Built once for this file."""
    yield
    prior_of.cache_clear()


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


@case
def test_sites_and_values(name):
    _, always, references = CASES[name]
    prior = prior_of(name)
    for learn_reference in (False, True):
        learned, sites = sites_of(prior, learn_reference=learn_reference)
        expected = always + references * learn_reference
        assert sorted(sites) == sorted(f"prior.{site}" for site in expected)
        assert type(learned) is type(prior)
        assert learned.shape() == prior.shape()
        assert learned.batch_shape == prior.batch_shape
        if not learn_reference:
            assert_same_leaves(learned, prior)


@case
def test_fitted_values_are_put_back(name):
    _, always, references = CASES[name]
    prior = prior_of(name)
    _, sites = sites_of(prior, learn_reference=True)
    params = moved(sites) | {"decoder$params": jnp.zeros(2)}
    if not always + references:
        pytest.skip("nothing to learn")
    fitted = set_parameters("prior", prior, params)
    within = handlers.substitute(
        lambda: learn_prior("prior", prior, learn_reference=True), params
    )()
    assert_same_leaves(fitted, within)
    _, again = sites_of(fitted, learn_reference=True)
    for site, value in again.items():
        assert_same_leaves(value, params[site])


@pytest.mark.parametrize("name", ["mixture", "autoregressive", "quantile function"])
def test_density_of_fitted_values(name):
    prior = prior_of(name)
    _, sites = sites_of(prior, learn_reference=True)
    z = points(prior)
    before = density(prior, z)
    fitted = set_parameters("prior", prior, moved(sites))
    assert np.max(np.abs(density(fitted, z) - before)) > 1e-3
    # The prior that was given stays as it was, cached tables and all.
    assert_close(density(prior, z), before)
    same = set_parameters("prior", fitted, sites)
    assert_close(density(same, z), before, rtol=1e-5)


def test_fitted_tables_are_fresh():
    prior = simple(2)
    z = points(prior)
    cdf = jax.jit(lambda law: law.cdf(z))
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


@pytest.mark.parametrize("learn_proportions", [True, False])
def test_proportions_stay_fixed_on_request(learn_proportions):
    for name in ("mixture", "mixture of products"):
        _, sites = sites_of(prior_of(name), learn_proportions=learn_proportions)
        assert ("prior.logits" in sites) == learn_proportions


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


def test_names_do_not_depend_on_the_hash_seed():
    script = (
        "import tests.test_learning as t\n"
        "for name in ('mixture of products', 'autoregressive'):\n"
        "    print(t.names_and_shapes(name))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = [names_and_shapes(n) for n in ("mixture of products", "autoregressive")]
    assert output.splitlines() == [str(one) for one in expected]


def names_and_shapes(name):
    def sites():
        return sites_of(CASES[name][0](), learn_reference=True)[1]

    return {
        site: [leaf.shape for leaf in jax.tree_util.tree_leaves(value)]
        for site, value in jax.eval_shape(sites).items()
    }


def test_modules_without_parameters_have_no_site():
    with handlers.trace() as trace:
        assert learn_module("decoder", jnp.tanh) is jnp.tanh
        assert learn_module("none", None) is None
    assert len(trace) == 0


def test_steep_fit_warns():
    prior = kaem.KAEMPrior(kaem.Energy(BASIS, jnp.zeros(6)))
    _, sites = sites_of(prior)
    steep = jnp.array([0.0, 9000.0, 0.0, 9000.0, 0.0, 9000.0])
    params = {
        name: eqx.tree_at(lambda e: e.coefficients, value, steep)
        for name, value in sites.items()
    }
    with pytest.warns(UserWarning, match="estimated relative error"):
        set_parameters("prior", prior, params)


def test_bad_priors():
    with pytest.raises(TypeError, match="prior must be a NumPyro distribution"):
        learn_prior("prior", jnp.zeros(3))
    general = dist.MixtureGeneral(
        dist.Categorical(jnp.ones(2) / 2),
        [simple(reference=dist.Normal(0.0, 1.0)), dist.Normal(0.0, 1.0)],
    )
    with pytest.raises(TypeError, match="hide energies in a MixtureGeneral"):
        learn_prior("prior", general)
    with pytest.raises(TypeError, match="continuous univariate law, got Multi"):
        sites_of(
            dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), learn_reference=True
        )


def test_bad_values():
    prior = simple(2)
    _, sites = sites_of(prior)
    with pytest.raises(ValueError, match=r"'prior.energy\$params'; got 'other'"):
        set_parameters("prior", prior, {"other": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"got 'prior.logits'"):
        set_parameters("prior", prior, sites | {"prior.logits": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"got none"):
        set_parameters("prior", prior, {})
    with pytest.raises(ValueError, match=r"must have arrays of shapes \[\(2, 6\)"):
        set_parameters("prior", simple(2), sites_of(simple(3))[1])
    with pytest.raises(ValueError, match="in another structure"):
        set_parameters("prior", simple(2, basis=POSITIVE), sites)
