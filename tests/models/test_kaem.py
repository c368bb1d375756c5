"""The ready model: its NumPyro sites, inference, fitted values."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from scipy import integrate, stats

import numpyro_kaem as kaem
from numpyro_kaem.distributions.deep import DeepEnergyPrior
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.models.likelihoods import NormalLikelihood
from tests.helpers import assert_close, assert_within_mcse
from tests.models.cases import (
    Decoder,
    Linear,
    X,
    linear_model,
    shapes_of,
    simple,
    trace_of,
)


@pytest.fixture(scope="module")
def linear():
    return linear_model()


def exact_posterior(model, x):
    """Log evidence and mean of the latent of each datum, by quadrature."""
    nodes = jnp.linspace(-4.0, 5.0, 4001)
    log_prior = np.asarray(model.prior.log_prob(nodes[:, None])[:, 0], float)
    z = np.asarray(nodes, float)
    terms = stats.norm.logpdf(np.asarray(x, float)[:, None], 1.5 * z + 0.3, 0.4)
    joint = np.exp(log_prior + terms)
    mass = integrate.trapezoid(joint, z)
    return np.log(mass), integrate.trapezoid(joint * z, z) / mass


# Prior, shape of the latent site, and names of sites of parameters of the prior.
PRIORS = {
    "independent": (lambda: simple(2), (2,), ["prior.energy$params"]),
    "event": (lambda: simple(2).to_event(1), (2,), ["prior.energy$params"]),
    "table": (lambda: simple(2, 3), (2, 3), ["prior.energy$params"]),
    "mixtures": (
        lambda: kaem.KAEMMixture(jnp.zeros((2, 3)), simple(2, 3)),
        (2,),
        ["prior.energy$params", "prior.logits"],
    ),
    "mixture of products": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.zeros(3)), simple(3, 2).to_event(1)
        ),
        (2,),
        ["prior.energy$params", "prior.logits"],
    ),
    "autoregressive": (
        lambda: kaem.AutoregressiveKAEMPrior(
            kaem.BSpline(-1.0, 2.0, 6),
            kaem.MaskedConditioner(jax.random.key(0), 2, 6, width=4),
        ),
        (2,),
        ["prior.conditioner$params"],
    ),
    "deep": (
        lambda: DeepEnergyPrior.init(jax.random.key(0), 2, width=4),
        (2,),
        ["prior.network$params"],
    ),
    "distribution of NumPyro": (lambda: dist.Normal(0.0, 1.0).expand([2]), (2,), []),
}


@pytest.mark.parametrize("name", PRIORS)
def test_sites(name):
    make, shape, sites = PRIORS[name]
    model = KAEM(make(), Decoder(2, (3, 4)), NormalLikelihood(learn_scale=True))
    assert (model.num_latents, model.event_shape) == (2, (3, 4))
    trace = shapes_of(model, num_data=5)
    assert trace["z"]["value"].shape == (5, *shape)
    assert trace["z"]["fn"].batch_shape == (5,)
    assert trace["x"]["value"].shape == (5, 3, 4)
    assert trace["x"]["fn"].batch_shape == (5,)
    params = sorted(n for n, site in trace.items() if site["type"] == "param")
    assert params == sorted([*sites, "decoder$params", "likelihood$params"])
    assert sorted(model.params) == params


def test_inner_sums():
    decoder = Decoder(5, (3,))
    prior = simple(5, 2)
    for joint, site in ((None, "z"), ("kart", "z_base")):
        model = KAEM(prior, decoder, NormalLikelihood(), joint=joint)
        assert shapes_of(model, num_data=4)[site]["type"] == "sample"

        @jax.jit
        def run(model=model):
            trace = trace_of(model, num_data=4)
            loc = trace["x"]["fn"].base_dist.loc
            return trace["z"]["value"], loc, trace.get("z_base", {}).get("value")

        z, loc, base = run()
        assert z.shape == (4, 5, 2)
        assert_close(loc, decoder(z.sum(-1)), rtol=1e-5)
        assert_close(model.decode(z), decoder(z.sum(-1)), rtol=1e-5)
    # Kolmogorov and Arnold's form: all rows at one quantile, one for each column.
    assert base.shape == (4, 2)
    u = jax.jit(prior.cdf)(z)
    assert_close(u, jnp.broadcast_to(u[:, :1], u.shape), rtol=0, atol=1e-4)
    latents = jax.eval_shape(lambda key: model.latents(key, 6), jax.random.key(1))
    assert latents.shape == (6, 5, 2)


def test_decoder_that_returns_a_distribution(key):
    model = KAEM(simple(2), lambda z: dist.Poisson(jnp.exp(z)).to_event(1))
    assert model.event_shape == (2,)
    x = jax.eval_shape(lambda key: model.sample(key, 4), key)
    assert x.shape == (4, 2)
    assert jnp.issubdtype(x.dtype, jnp.integer)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    assert_close(model.decode(z), jnp.exp(z))

    # And a likelihood that is a function.
    model = KAEM(
        simple(2),
        lambda z: (z, jnp.exp(z)),
        lambda outputs: dist.Laplace(*outputs).to_event(1),
    )
    value, _ = log_density(model, (np.zeros((1, 2)),), {}, {"z": jnp.ones((1, 2))})
    expected = model.prior.log_prob(jnp.ones(2)).sum()
    expected += stats.laplace.logpdf(0.0, 1.0, np.exp(1.0)) * 2
    assert_close(value, expected, rtol=1e-5)


def test_log_density_of_observed_data_and_of_a_subsample(linear):
    z = jnp.array([[0.1], [0.5], [1.2]])
    terms = np.asarray(linear.prior.log_prob(z)[:, 0], float) + stats.norm.logpdf(
        X, 1.5 * np.asarray(z[:, 0]) + 0.3, 0.4
    )
    value, trace = log_density(linear, (X,), {}, {"z": z})
    assert trace["x"]["is_observed"]
    assert_close(trace["x"]["value"], X)
    assert_close(value, terms.sum(), rtol=1e-5)
    part = jnp.array([2, 0])
    value, trace = log_density(
        linear, (X,), {"subsample_size": 2}, {"data": part, "z": z[part]}
    )
    assert_close(trace["x"]["value"], X[part])
    assert_close(value, terms[[2, 0]].sum() * 3 / 2, rtol=1e-5)
    # One datum is drawn where there are no data.
    assert shapes_of(linear)["x"]["value"].shape == (1,)


def test_gradient_of_the_log_marginal(x64):
    """The normaliser's gradient, against SciPy's quadrature of other code."""
    basis = kaem.RBF(-1.0, 2.0, 5)
    start = np.array([0.5, -1.0, 2.0, 0.0, 0.7])
    prior = kaem.KAEMPrior(kaem.Energy(basis, jnp.asarray(start)[None]))
    model = KAEM(prior, Linear(jnp.array(1.5)), NormalLikelihood(0.4))
    centres, width = np.linspace(-1.0, 2.0, 5), 0.75

    def tilted(z, c):
        return np.exp(c @ np.exp(-0.5 * ((z - centres) / width) ** 2))

    def log_marginal(c):
        top = [
            integrate.quad(
                lambda z, x=x: tilted(z, c) * stats.norm.pdf(x, 1.5 * z + 0.3, 0.4),
                -1.0,
                2.0,
                epsabs=1e-13,
                epsrel=1e-13,
            )[0]
            for x in X[:2]
        ]
        return np.sum(np.log(top)) - 2 * np.log(integrate.quad(tilted, -1, 2, (c,))[0])

    nodes, weights = np.polynomial.legendre.leggauss(80)
    nodes, weights = jnp.asarray(0.5 + 1.5 * nodes), jnp.asarray(1.5 * weights)

    def by_model(energy):
        params = {"prior.energy$params": energy}
        density = handlers.substitute(model, params)

        def at(z):
            trace = trace_of(
                handlers.condition(density, {"z": jnp.full((2, 1), z)}), X[:2]
            )
            return trace["z"]["fn"].log_prob(trace["z"]["value"]) + trace["x"][
                "fn"
            ].log_prob(trace["x"]["value"])

        terms = jax.vmap(at)(nodes) + jnp.log(weights)[:, None]
        return jax.scipy.special.logsumexp(terms, axis=0).sum()

    energy = eqx.filter(prior.energy, eqx.is_inexact_array)
    value, gradient = jax.jit(jax.value_and_grad(by_model))(energy)
    assert_close(value, log_marginal(start), rtol=(1e-5, 1e-10))
    step = 1e-4
    expected = [
        (log_marginal(start + step * e) - log_marginal(start - step * e)) / (2 * step)
        for e in np.eye(5)
    ]
    assert_close(gradient.coefficients[0], np.array(expected), rtol=1e-4, atol=1e-5)
    # A constant added to the energy changes nothing.
    assert np.max(np.abs(expected)) > 0.05


# --- inference -----------------------------------------------------------------------


@pytest.mark.long
def test_samplers_find_the_posterior(linear, key):
    log_evidence, mean = exact_posterior(linear, X)
    mcmc = MCMC(NUTS(linear), num_warmup=200, num_samples=500, progress_bar=False)
    mcmc.run(key, X)
    samples = mcmc.get_samples()
    assert_within_mcse(samples["z"][..., 0], mean)
    # Data of another number, not seen before.
    terms = log_likelihood(linear, samples, X)["x"]
    expected = stats.norm.logpdf(X, 1.5 * np.asarray(samples["z"][..., 0]) + 0.3, 0.4)
    assert_close(terms, expected, rtol=1e-3, atol=1e-4)
    predictive = Predictive(linear, {"z": samples["z"]})(key, num_data=3)
    assert predictive["x"].shape == (500, 3)

    sampler = kaem.infer.ImportanceSampling(linear, num_samples=4000, unit_plate="data")
    # Its own parameters, unless others are given.
    assert list(sampler.params) == list(linear.params)
    result = sampler.run(key, X)
    estimate = jax.scipy.special.logsumexp(result.log_weights, axis=0) - np.log(4000)
    assert_close(estimate, log_evidence, rtol=0, atol=0.08)

    kernel = kaem.infer.AnnealedLangevin(linear, num_temperatures=3)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=400, progress_bar=False)
    mcmc.run(key, X[:2])
    assert_within_mcse(mcmc.get_samples()["z"][..., 0], mean[:2])


def test_deep_prior_has_no_exact_draws(key):
    model = KAEM(
        DeepEnergyPrior(lambda z: z[0], 1), Linear(jnp.array(1.5)), NormalLikelihood()
    )
    message = r"without a normalizing constant \(DeepEnergyPrior\)"
    with pytest.raises(ValueError, match=message):
        kaem.infer.ImportanceSampling(model).run(key, X)


@pytest.mark.long
def test_svi_learns_all_parts(key):
    model = KAEM(
        simple(2, reference=dist.Normal(0.5, 1.0)),
        Decoder(2, (3,)),
        NormalLikelihood(0.5, learn_scale=True, min_scale=0.05),
        learn_reference=True,
    )
    rng = np.random.default_rng(0)
    x = np.array([1.0, -1.0, 2.0]) + 0.2 * rng.normal(size=(40, 3))
    svi = SVI(model, AutoNormal(model), optax.adam(0.02), Trace_ELBO())
    run = jax.jit(lambda key: svi.run(key, 150, x, progress_bar=False))
    result = run(jax.random.key(1))
    assert np.mean(result.losses[-10:]) < np.mean(result.losses[:10]) - 50
    learned = model.with_params(result.params)
    assert abs(float(learned.likelihood.scale) - 0.5) > 1e-3
    before, after = (jax.tree_util.tree_leaves(m.params) for m in (model, learned))
    assert len(before) == len(after) == 4 + 1 + 2 + 1
    assert all(np.any(a != b) for a, b in zip(after, before, strict=True))
    # The fitted model is one pytree.
    z = jnp.asarray(0.3 + 0.2 * np.random.default_rng(1).normal(size=(40, 2)))

    @eqx.filter_jit
    def densities(learned, params):
        substituted = handlers.substitute(model, params)
        return [
            log_density(one, (x,), {}, {"z": z})[0] for one in (substituted, learned)
        ]

    within, alone = densities(learned, result.params)
    assert float(alone) == pytest.approx(float(within), rel=1e-6)
    # Draws are those of the fitted model.
    x_drawn = learned.sample(key, 2000)
    assert np.max(np.abs(np.mean(x_drawn, 0) - np.mean(x, 0))) < 0.4
    leaves, treedef = jax.tree_util.tree_flatten(learned)
    again = jax.tree_util.tree_unflatten(treedef, leaves)
    assert_close(again.sample(key, 2000), x_drawn)
    for params, match in (
        ({"auto": jnp.zeros(3)}, r"params must have values.*got 'auto'"),
        (result.params | {"prior.logits": jnp.zeros(3)}, r"got 'prior.logits'"),
        (
            result.params | {"prior.reference.loc": jnp.zeros(3)},
            "must have arrays of shapes",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            model.with_params(params)
