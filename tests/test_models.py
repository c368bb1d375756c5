"""The ready model: its NumPyro sites, inference, draws, fitted values, checks."""

import re

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
from numpyro_kaem.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    NormalLikelihood,
)
from numpyro_kaem.models import KAEM, draw
from tests.helpers import assert_close, assert_within_mcse


class Decoder(eqx.Module):
    """Multilayer perceptron for any batch shape, with a reshaped output."""

    network: eqx.nn.MLP
    shape: tuple = eqx.field(static=True)

    def __init__(self, num_latents, shape):
        size = int(np.prod(shape))
        self.network = eqx.nn.MLP(num_latents, size, 4, 1, key=jax.random.key(9))
        self.shape = tuple(shape)

    def __call__(self, z):
        rows = jax.vmap(self.network)(z.reshape(-1, z.shape[-1]))
        return rows.reshape(*z.shape[:-1], *self.shape)


class Linear(eqx.Module):
    """Datum ``weight * z + offset`` of one latent, without its axis."""

    weight: jax.Array

    def __call__(self, z):
        return self.weight * z[..., 0] + 0.3


def simple(*shape, reference=None, num_basis=6):
    rng = np.random.default_rng(0)
    coefficients = jnp.asarray(rng.normal(size=(*shape, num_basis)))
    basis = kaem.BSpline(-1.0, 2.0, num_basis=num_basis)
    return kaem.KAEMPrior(kaem.Energy(basis, coefficients), reference)


@pytest.fixture(scope="module")
def linear():
    prior = simple(1, reference=dist.Normal(0.5, 1.0))
    return KAEM(prior, Linear(jnp.array(1.5)), NormalLikelihood(0.4))


def exact_posterior(model, x):
    """Log evidence and mean of the latent of each datum, by quadrature."""
    nodes = jnp.linspace(-4.0, 5.0, 4001)
    log_prior = np.asarray(model.prior.log_prob(nodes[:, None])[:, 0], float)
    z = np.asarray(nodes, float)
    terms = stats.norm.logpdf(np.asarray(x, float)[:, None], 1.5 * z + 0.3, 0.4)
    joint = np.exp(log_prior + terms)
    mass = integrate.trapezoid(joint, z)
    return np.log(mass), integrate.trapezoid(joint * z, z) / mass


X = np.array([0.2, 1.1, 2.4])


def trace_of(model, *args, **kwargs):
    seeded = handlers.seed(model, jax.random.key(0))
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def shapes_of(model, *args, **kwargs):
    """Trace of a run that is not compiled: its values have shapes only."""
    traces = []
    jax.eval_shape(lambda: traces.append(trace_of(model, *args, **kwargs)))
    return traces[0]


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
    "law of NumPyro": (lambda: dist.Normal(0.0, 1.0).expand([2]), (2,), []),
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


def test_data_are_observed(linear):
    sites = trace_of(handlers.substitute(linear, {"z": jnp.zeros((3, 1))}), X)
    assert sites["x"]["is_observed"]
    assert_close(sites["x"]["value"], X)
    assert shapes_of(linear)["x"]["value"].shape == (1,)


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


def test_decoder_that_returns_a_law(key):
    model = KAEM(simple(2), lambda z: dist.Poisson(jnp.exp(z)).to_event(1))
    assert model.event_shape == (2,)
    x = jax.eval_shape(lambda key: model.sample(key, 4), key)
    assert x.shape == (4, 2)
    assert jnp.issubdtype(x.dtype, jnp.integer)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    assert_close(model.decode(z), jnp.exp(z))


def test_likelihood_that_is_a_function():
    model = KAEM(
        simple(2),
        lambda z: (z, jnp.exp(z)),
        lambda outputs: dist.Laplace(*outputs).to_event(1),
    )
    value, _ = log_density(model, (np.zeros((1, 2)),), {}, {"z": jnp.ones((1, 2))})
    expected = model.prior.log_prob(jnp.ones(2)).sum()
    expected += stats.laplace.logpdf(0.0, 1.0, np.exp(1.0)) * 2
    assert_close(value, expected, rtol=1e-5)


def test_log_density_and_subsample(linear):
    model = linear
    z = jnp.array([[0.1], [0.5], [1.2]])
    terms = model.prior.log_prob(z)[:, 0] + stats.norm.logpdf(
        X, 1.5 * np.asarray(z[:, 0]) + 0.3, 0.4
    )
    value, _ = log_density(model, (X,), {}, {"z": z})
    assert_close(value, terms.sum(), rtol=1e-5)
    part = jnp.array([2, 0])
    value, trace = log_density(
        model, (X,), {"subsample_size": 2}, {"data": part, "z": z[part]}
    )
    assert_close(trace["x"]["value"], X[part])
    assert_close(value, terms[part].sum() * 3 / 2, rtol=1e-5)


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


@pytest.mark.slow
def test_nuts_finds_latents_of_data(linear, key):
    model = linear
    kernel = NUTS(model)
    mcmc = MCMC(kernel, num_warmup=200, num_samples=500, progress_bar=False)
    mcmc.run(key, X)
    _, mean = exact_posterior(model, X)
    samples = mcmc.get_samples()
    assert_within_mcse(samples["z"][..., 0], mean)
    # Data of another number, not seen before.
    terms = log_likelihood(model, samples, X)["x"]
    expected = stats.norm.logpdf(X, 1.5 * np.asarray(samples["z"][..., 0]) + 0.3, 0.4)
    assert_close(terms, expected, rtol=1e-3, atol=1e-4)
    predictive = Predictive(model, {"z": samples["z"]})(key, num_data=3)
    assert predictive["x"].shape == (500, 3)


def test_importance_sampling(linear, key):
    model = linear
    sampler = kaem.infer.ImportanceSampling(
        model, params=model.params, num_samples=4000, unit_plate="data"
    )
    result = sampler.run(key, X)
    log_evidence, _ = exact_posterior(model, X)
    estimate = jax.scipy.special.logsumexp(result.log_weights, axis=0) - np.log(4000)
    assert_close(estimate, log_evidence, rtol=0, atol=0.08)


@pytest.mark.slow
def test_annealed_langevin(linear, key):
    model = linear
    kernel = kaem.infer.AnnealedLangevin(model, num_temperatures=3)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=400, progress_bar=False)
    mcmc.run(key, X[:2])
    _, mean = exact_posterior(model, X[:2])
    assert_within_mcse(mcmc.get_samples()["z"][..., 0], mean)


def test_deep_prior_has_no_exact_draws(key):
    model = KAEM(
        DeepEnergyPrior(lambda z: z[0], 1), Linear(jnp.array(1.5)), NormalLikelihood()
    )
    with pytest.raises(ValueError, match=r"without a normaliser \(DeepEnergyPrior\)"):
        kaem.infer.ImportanceSampling(model, params=model.params).run(key, X)


@pytest.fixture(scope="module")
def fitted():
    """Model, data and the result of an amortised fit by SVI on subsamples."""
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
    return model, x, run(jax.random.key(1))


@pytest.mark.slow
def test_svi_learns_all_parts(fitted):
    model, _, result = fitted
    assert np.mean(result.losses[-10:]) < np.mean(result.losses[:10]) - 50
    learned = model.with_params(result.params)
    assert abs(float(learned.likelihood.scale) - 0.5) > 1e-3
    before, after = (jax.tree_util.tree_leaves(m.params) for m in (model, learned))
    assert len(before) == len(after) == 4 + 1 + 2 + 1
    assert all(np.any(a != b) for a, b in zip(after, before, strict=True))


@pytest.mark.slow
def test_fitted_model_is_one_pytree(fitted, key):
    model, x, result = fitted
    learned = model.with_params(result.params)
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


@pytest.mark.slow
def test_params_that_do_not_fit(fitted):
    model, _, result = fitted
    with pytest.raises(ValueError, match=r"params must have values.*got 'auto'"):
        model.with_params({"auto": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"got 'prior.logits'"):
        model.with_params(result.params | {"prior.logits": jnp.zeros(3)})
    with pytest.raises(ValueError, match="must have arrays of shapes"):
        model.with_params(result.params | {"prior.reference.loc": jnp.zeros(3)})


# --- draws ---------------------------------------------------------------------------


def test_draws_follow_the_model(linear, key):
    model = linear
    x, z = model.sample(key, 4000), model.latents(key, 4000)
    assert (x.shape, z.shape) == ((4000,), (4000, 1))
    u = np.asarray(jax.jit(model.prior.cdf)(z)[:, 0], float)
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    # With one key, data and latents belong together.
    noise = (np.asarray(x, float) - 1.5 * np.asarray(z[:, 0], float) - 0.3) / 0.4
    assert stats.kstest(noise, "norm").pvalue > 1e-4


def functions_with_loops(text):
    name, found = None, set()
    for line in text.splitlines():
        start = re.match(r"\s*func\.func \w+ @(\w+)", line)
        name = start.group(1) if start else name
        if "stablehlo.while" in line:
            found.add(re.sub(r"_\d+$", "", name))
    return found


def test_draws_have_no_loop(key):
    """Beyond those of random bits: inversion takes a fixed number of steps."""
    model = KAEM(simple(4), Decoder(4, (3,)), NormalLikelihood())
    text = draw.lower(model, key, 10, "x").lowered.as_text()
    assert functions_with_loops(text) <= {"threefry2x32"}
    # The test sees loops where there are some.
    deep = DeepEnergyPrior.init(key, 4, width=4)
    model = KAEM(deep, Decoder(4, (3,)), NormalLikelihood())
    text = draw.lower(model, key, 10, "x").lowered.as_text()
    assert not functions_with_loops(text) <= {"threefry2x32"}


def test_one_compiled_pass_for_all_draws(key):
    num_runs = []

    def decoder(z):
        num_runs.append(z.shape)
        return z

    model = KAEM(simple(2), decoder, NormalLikelihood())
    num_runs.clear()
    for seed in range(3):
        assert model.sample(jax.random.key(seed), 7).shape == (7, 2)
    assert num_runs == [(7, 2)]


@pytest.mark.parametrize("count", [0, 2.5])
def test_bad_number_of_draws(linear, count, key):
    for method in (linear.sample, linear.latents):
        with pytest.raises((ValueError, TypeError), match="num_samples must be"):
            method(key, count)


def test_decode(key):
    z = jnp.ones((2, 3, 2))
    categorical = KAEM(simple(2), Decoder(2, (3, 4)), CategoricalLikelihood())
    probabilities = categorical.decode(z)
    assert probabilities.shape == (2, 3, 3, 4)
    assert_close(probabilities.sum(-1), np.ones((2, 3, 3)), rtol=1e-5)
    binary = KAEM(simple(2), Decoder(2, (3, 4)), BernoulliLikelihood())
    expected = jax.nn.sigmoid(binary.decoder(z))
    assert_close(binary.decode(z), expected, rtol=1e-5)
    law = binary.conditional(z)
    assert (law.batch_shape, law.event_shape) == ((2, 3), (3, 4))
    with pytest.raises(ValueError, match=r"z must have shape \(..., 2\), got \(2, 3\)"):
        binary.decode(jnp.ones((2, 3)))


# --- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.zeros((5, 1)), ValueError, r"x must have shape \(num_data,\).*\(5, 1\)"),
        (np.zeros(()), ValueError, r"x must have shape \(num_data,\).*got \(\)"),
        (np.zeros(0), ValueError, "x must have at least one datum"),
        ([0.0, np.nan], ValueError, r"x must be finite, got nan at index \(1,\)"),
        ([np.inf], ValueError, "x must be finite, got inf"),
        (["a"], TypeError, "x must be an array of numbers"),
    ],
)
def test_bad_data(linear, x, error, match):
    model = linear
    with pytest.raises(error, match=match):
        trace_of(model, x)
    with pytest.raises(error, match=match):
        model.check_data(x)


def test_data_outside_of_the_support():
    binary = KAEM(simple(2), Decoder(2, (3,)), BernoulliLikelihood())
    binary.check_data(np.array([[0, 1, 1]]))
    binary.check_data(np.array([[True, False, True]]))
    match = r"x must lie in the support of BernoulliLogits.*got 0.5 at index \(0, 1\)"
    with pytest.raises(ValueError, match=match):
        binary.check_data(np.array([[0, 0.5, 1]]))
    categorical = KAEM(simple(2), Decoder(2, (3, 4)), CategoricalLikelihood())
    assert categorical.event_shape == (3,)
    categorical.check_data(np.array([[0, 3, 1]]))
    with pytest.raises(ValueError, match=r"CategoricalLogits.*got 4 at index \(0, 1\)"):
        categorical.check_data(np.array([[0, 4, 1]]))
    with pytest.raises(TypeError, match="x must be integers, the classes of Categ"):
        categorical.check_data(np.array([[0.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"For a single datum pass x\[None\]"):
        binary.check_data(np.array([0, 1, 1]))


def test_traced_data_have_their_shape_checked(linear):
    model = linear
    nan = jnp.array([jnp.nan])
    assert jax.jit(lambda x: model.check_data(x))(nan).shape == (1,)
    with pytest.raises(ValueError, match=r"got \(3, 1\)"):
        jax.jit(lambda x: model.check_data(x))(jnp.zeros((3, 1)))


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"num_data": 4}, ValueError, "num_data must be the number of data, 3, got 4"),
        ({"num_data": 0}, ValueError, "num_data must be a positive integer"),
        ({"num_data": 1.5}, TypeError, "num_data must be a positive integer"),
        ({"subsample_size": 4}, ValueError, "subsample_size must be at most.*3, got 4"),
        ({"subsample_size": 0}, ValueError, "subsample_size must be a positive"),
    ],
)
def test_bad_counts(linear, kwargs, error, match):
    with pytest.raises(error, match=match):
        trace_of(linear, X, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        ((3, jnp.tanh), {}, TypeError, "prior must be a continuous NumPyro"),
        ((dist.Poisson(1.0), jnp.tanh), {}, TypeError, "got Poisson"),
        ((simple(2), 3), {}, TypeError, "decoder must be an Equinox module"),
        ((simple(2), jnp.tanh, 3), {}, TypeError, "likelihood must be such as"),
        ((simple(), jnp.tanh), {}, ValueError, r"shape \(Q,\) or \(Q, P\).*got \(\)"),
        ((simple(1, 1, 2), jnp.tanh), {}, ValueError, r"got \(1, 1, 2\)"),
        ((simple(2), jnp.tanh), {"joint": "a"}, ValueError, "None or 'kart', got 'a'"),
        (
            (simple(5, 3), jnp.tanh),
            {"joint": "kart"},
            ValueError,
            r"shape \(2 \* P \+ 1, P\), .*got \(5, 3\)",
        ),
        (
            (dist.Normal(jnp.zeros((3, 1)), 1.0), jnp.tanh),
            {"joint": "kart"},
            TypeError,
            "with joint='kart', got Normal",
        ),
        ((simple(2), jnp.tanh), {}, TypeError, "decoder must return a NumPyro distrib"),
        (
            (simple(2), lambda z: dist.Normal(z, 1.0).to_event(1), NormalLikelihood()),
            {},
            TypeError,
            "likelihood must be None where the decoder",
        ),
        ((simple(2), jnp.tanh, jnp.tanh), {}, TypeError, "likelihood must return"),
        (
            (simple(2), lambda z: dist.Normal(z, 1.0)),
            {},
            ValueError,
            r"got batch shape \(3, 2\).*use to_event",
        ),
        (
            (simple(2), jnp.sum, lambda total: dist.Normal(total, 1.0)),
            {},
            ValueError,
            r"got batch shape \(\)",
        ),
        (
            (simple(2), Decoder(3, (4,)), NormalLikelihood()),
            {},
            ValueError,
            r"decoder must take latents of shape \(\*batch, 2\)",
        ),
    ],
)
def test_bad_parts(args, kwargs, error, match):
    with pytest.raises(error, match=match):
        KAEM(*args, **kwargs)
