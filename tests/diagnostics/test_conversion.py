"""Every result becomes one ArviZ object, under either line of ArviZ."""

from importlib.metadata import version

import arviz
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoNormal

import numpyro_kaem as kaem

pytestmark = pytest.mark.arviz

DATA = jnp.array([0.3, -0.4, 1.1, 0.8, 0.6, -0.2])


def model(y):
    """Three schools of two pupils each."""
    with numpyro.plate("school", 3):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.deterministic("doubled", 2 * mean)
    numpyro.deterministic("largest", jnp.max(mean))
    with numpyro.plate("pupil", 6):
        numpyro.sample("y", dist.Normal(mean[jnp.arange(6) % 3], 1.0), obs=y)


@pytest.fixture(scope="module")
def chains():
    """Two chains of NUTS."""
    mcmc = MCMC(
        NUTS(model),
        num_warmup=200,
        num_samples=400,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    fields = ("diverging", "accept_prob", "num_steps", "potential_energy")
    mcmc.run(jax.random.key(0), DATA, extra_fields=(*fields, "adapt_state.step_size"))
    return mcmc


@pytest.fixture(scope="module")
def weighted():
    """Weighted draws of the prior."""
    sampler = kaem.infer.ImportanceSampling(model, num_samples=3000)
    return sampler.run(jax.random.key(1), DATA)


def groups_of(data):
    """Names of the groups of either kind of object."""
    found = data.groups() if callable(data.groups) else data.groups
    return {name.strip("/") for name in found} - {""}


def values_of(data, group, name):
    """Values of a variable of either kind of object."""
    return np.asarray(data[group][name].values)


def test_draws_of_nuts_are_kept_bit_for_bit(chains):
    """With statistics under the names of ArviZ, and plates that name dimensions."""
    data = kaem.to_arviz(chains, coords={"school": ["a", "b", "c"]})
    assert groups_of(data) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "observed_data",
    }
    for name, draws in chains.get_samples(group_by_chain=True).items():
        found = values_of(data, "posterior", name)
        assert found.dtype == draws.dtype
        np.testing.assert_array_equal(found, draws)
    fields = chains.get_extra_fields(group_by_chain=True)
    np.testing.assert_array_equal(
        values_of(data, "sample_stats", "lp"), -np.asarray(fields["potential_energy"])
    )
    np.testing.assert_array_equal(
        values_of(data, "sample_stats", "acceptance_rate"), fields["accept_prob"]
    )
    steps = np.asarray(fields["num_steps"])
    depth = values_of(data, "sample_stats", "tree_depth")
    assert np.all((2 ** (depth - 1) <= steps) & (steps < 2**depth))
    assert "step_size" in data["sample_stats"]
    np.testing.assert_array_equal(values_of(data, "observed_data", "y"), DATA)
    # The log likelihood is that of NumPyro, chain by chain.
    expected = log_likelihood(model, chains.get_samples(), DATA)["y"]
    np.testing.assert_array_equal(
        values_of(data, "log_likelihood", "y").reshape(expected.shape), expected
    )
    assert data["posterior"]["mean"].dims == ("chain", "draw", "school")
    assert data["posterior"]["doubled"].dims == ("chain", "draw", "doubled_dim_0")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "pupil")
    assert list(data["posterior"]["school"].values) == ["a", "b", "c"]
    # And the user names those that are left.
    data = kaem.to_arviz(chains, dims={"doubled": ["school"]}, log_likelihood=False)
    assert data["posterior"]["doubled"].dims == ("chain", "draw", "school")
    assert "log_likelihood" not in groups_of(data)


@pytest.mark.filterwarnings("ignore:.*inplace keyword:Warning")
def test_arviz_works_with_it(chains):
    """Summary, comparison and leave-one-out as they are."""
    data = kaem.to_arviz(chains)
    summary = arviz.summary(data, var_names=["mean"], round_to="none")
    draws = np.asarray(chains.get_samples()["mean"], float)
    np.testing.assert_allclose(
        np.asarray(summary["mean"], float), draws.mean(0), rtol=1e-5
    )
    result = arviz.loo(data)
    elpd = result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd
    # Leaving a pupil out leaves one of the same school, and the prior N(0, 1).
    pairs = np.asarray(DATA).reshape(2, 3)
    expected = dist.Normal(pairs[::-1] / 2, np.sqrt(1.5))
    np.testing.assert_allclose(float(elpd), expected.log_prob(pairs).sum(), atol=0.3)
    table = arviz.compare({"one": data, "two": data})
    assert set(table.index) == {"one", "two"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["plot_trace", "plot_rank", "plot_ess"])
def test_arviz_draws_it(chains, name):
    """ArviZ's own figures take the object as it is."""
    plt.close("all")
    getattr(arviz, name)(kaem.to_arviz(chains), var_names=["mean"])
    axes = [axis for number in plt.get_fignums() for axis in plt.figure(number).axes]
    drawn = [axis for axis in axes if axis.has_data()]
    assert len(drawn) >= 2
    if name == "plot_trace":
        lines = [np.asarray(line.get_ydata()) for axis in axes for line in axis.lines]
        draws = np.asarray(chains.get_samples(group_by_chain=True)["mean"])
        for chain, school in np.ndindex(2, 3):
            wanted = draws[chain, :, school]
            assert any(y.shape == wanted.shape and np.all(y == wanted) for y in lines)
    plt.close("all")


def test_resampled_draws_keep_their_weights(weighted):
    """Draws are particles, and each knows which; a choice comes with its report."""
    data = kaem.to_arviz(weighted, model=model, model_args=(DATA,), num_samples=400)
    particle = values_of(data, "sample_stats", "particle")[0]
    np.testing.assert_array_equal(
        values_of(data, "posterior", "mean")[0], weighted.samples["mean"][particle]
    )
    np.testing.assert_array_equal(
        values_of(data, "sample_stats", "log_weight")[0], weighted.log_weights[particle]
    )
    attrs = data["sample_stats"].attrs
    assert attrs["pareto_k"] == weighted.pareto_k
    assert attrs["log_evidence"] == weighted.log_evidence.value
    # Deterministic sites come with the model.
    np.testing.assert_allclose(
        values_of(data, "posterior", "largest")[0],
        weighted.samples["mean"][particle].max(1),
    )
    # Two observations and a prior of one: closed form of the second school.
    mean = values_of(data, "posterior", "mean")[0][:, 1]
    np.testing.assert_allclose(mean.mean(), DATA[jnp.array([1, 4])].sum() / 3, atol=0.1)
    choice = kaem.infer.PosteriorSample({}, "importance", True, ("Kept.",), weighted)
    data = kaem.to_arviz(choice, num_samples=400)
    assert data["sample_stats"].attrs["report"] == "Kept."
    assert values_of(data, "posterior", "mean").shape == (1, 400, 3)


def test_particles_of_all_islands():
    """With the evidence, and the log likelihood of each particle."""
    smc = kaem.infer.TemperedSMC(model, num_particles=1024, progress_bar=False)
    result = smc.run(jax.random.key(5), DATA)
    data = kaem.to_arviz(result, model=model, model_args=(DATA,), num_samples=200)
    particle = values_of(data, "sample_stats", "particle")[0]
    for site in ("mean", "largest"):
        np.testing.assert_array_equal(
            values_of(data, "posterior", site)[0], result.samples[site][particle]
        )
    attrs = data["sample_stats"].attrs
    assert attrs["log_evidence"] == result.log_evidence.value
    pointwise = values_of(data, "log_likelihood", "y")[0]
    np.testing.assert_allclose(
        values_of(data, "sample_stats", "log_likelihood")[0],
        pointwise.reshape(200, -1).sum(1),
        rtol=1e-4,
    )


def test_weights_of_units():
    """Each unit chooses its own particles."""

    def grouped(y):
        with numpyro.plate("group", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y)

    sampler = kaem.infer.ImportanceSampling(
        grouped, num_samples=2000, unit_plate="group"
    )
    result = sampler.run(jax.random.key(2), DATA[:3])
    data = kaem.to_arviz(result, num_samples=300)
    assert data["sample_stats"]["log_weight"].dims == ("chain", "draw", "group")
    particle = values_of(data, "sample_stats", "particle")[0]
    weights = np.take_along_axis(np.asarray(result.log_weights), particle, 0)
    np.testing.assert_array_equal(
        values_of(data, "sample_stats", "log_weight")[0], weights
    )


def test_ladder_of_a_population():
    """Its statistics have the rungs as a dimension."""
    kernel = kaem.infer.AnnealedLangevin(model, num_temperatures=3)
    mcmc = MCMC(kernel, num_warmup=20, num_samples=30, progress_bar=False)
    mcmc.run(jax.random.key(3), DATA, extra_fields=("swap_acceptance", "temperatures"))
    data = kaem.to_arviz(mcmc)
    stats = data["sample_stats"]
    assert stats["replica_log_likelihood"].dims == ("chain", "draw", "rung")
    assert stats["swap_acceptance"].dims == ("chain", "draw", "swap")
    assert stats.attrs["sampler"] == "AnnealedLangevin"


def test_variational_inference():
    """Draws of the guide and the history."""
    guide = AutoNormal(model)
    svi = SVI(model, guide, optax.adam(0.02), Trace_ELBO())
    result = svi.run(jax.random.key(4), 1500, DATA, progress_bar=False)
    data = kaem.to_arviz(
        result, model=model, model_args=(DATA,), guide=guide, num_samples=2000
    )
    draws = values_of(data, "posterior", "mean")
    assert draws.shape == (1, 2000, 3)
    expected = np.asarray(DATA).reshape(2, 3).sum(0) / 3
    np.testing.assert_allclose(draws[0].mean(0), expected, atol=0.15)
    np.testing.assert_array_equal(values_of(data, "training", "loss"), result.losses)
    with pytest.raises(ValueError, match="guide and model must be given"):
        kaem.to_arviz(result)


def test_trained_model():
    """Learned prior, generated data and history; they belong together."""
    x = jax.random.normal(jax.random.key(5), (50, 2))
    decoder = kaem.KANDecoder(jax.random.key(6), 1, (2,), hidden=())
    prior = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
    likelihood = kaem.NormalLikelihood(0.01)
    result = kaem.fit(
        kaem.KAEM(prior, decoder, likelihood),
        x,
        kaem.objectives.ImportanceMLE(num_particles=8),
        optax.adam(1e-3),
        3,
        progress_bar=False,
    )
    data = kaem.to_arviz(result, num_samples=20)
    z = values_of(data, "prior", "z")[0]
    np.testing.assert_allclose(
        values_of(data, "prior_predictive", "x")[0], result.model.decode(z), atol=0.06
    )
    np.testing.assert_array_equal(values_of(data, "training", "loss"), result.losses)


@pytest.mark.long
def test_chains_of_a_trained_model():
    """Their last states, as NumPyro's own transforms make latents of them."""
    x = jax.random.normal(jax.random.key(8), (12, 2))
    energy = kaem.Energy(kaem.BSpline(-2.0, 2.0, 5), jnp.zeros((1, 5)))
    decoder = kaem.KANDecoder(jax.random.key(6), 1, (2,), hidden=())
    model = kaem.KAEM(
        kaem.KAEMPrior(energy).to_event(1), decoder, kaem.NormalLikelihood(1.0)
    )
    objective = kaem.objectives.LangevinMLE(num_chains=3, num_steps=1)
    result = kaem.fit(
        model,
        x,
        objective,
        optax.adam(1e-3),
        2,
        rng_key=jax.random.key(1),
        progress_bar=False,
    )
    data = kaem.to_arviz(result, model_args=(x,), num_samples=20)
    z = values_of(data, "posterior", "z")
    assert z.shape == (1, 3, 12, 1)
    assert data["posterior"]["z"].dims[2] == "data"
    position = np.moveaxis(np.asarray(result.memory["position"]), 1, 0)
    constrain = dist.biject_to(dist.constraints.interval(-2.0, 2.0))
    np.testing.assert_allclose(z[0], constrain(position), rtol=1e-5)
    expected = dist.Normal(result.model.decode(z[0]), 1.0).log_prob(x).sum(-1)
    found = values_of(data, "log_likelihood", "x")
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)


@pytest.mark.long
def test_units_of_a_marginal_fit():
    """Posterior of every unit under the fitted prior."""
    x = jax.random.normal(jax.random.key(7), (40,)) * 1.3
    likelihood = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 0.8), x)
    basis = kaem.BSpline(-4.0, 4.0, 8)
    fit = kaem.fit_marginal(likelihood, basis, dist.Normal(0.0, 1.0), penalty=1.0)
    data = kaem.to_arviz(fit, num_samples=4000, coords={"unit": np.arange(40) + 1})
    draws = values_of(data, "posterior", "z")[0]
    units = kaem.unit_posterior(fit.prior, likelihood)
    error = np.sqrt(np.asarray(units.variance) / 4000)
    assert np.max(np.abs(draws.mean(0) - units.mean) / error) < 5
    assert data["posterior"]["z"].dims == ("chain", "draw", "unit")
    np.testing.assert_array_equal(
        values_of(data, "constant_data", "log_marginal_likelihood"),
        units.log_marginal_likelihood,
    )


def test_predictive_and_prior(chains):
    """Given as they are, or drawn."""
    data = kaem.to_arviz(
        chains, posterior_predictive=True, prior=200, constant_data={"age": [7.0, 8.0]}
    )
    replicated = values_of(data, "posterior_predictive", "y")
    assert replicated.shape == (2, 400, 6)
    residual = replicated - values_of(data, "posterior", "mean")[..., np.arange(6) % 3]
    np.testing.assert_allclose(residual.std(), 1.0, atol=0.1)
    assert values_of(data, "prior", "mean").shape == (1, 200, 3)
    assert values_of(data, "prior_predictive", "y").shape == (1, 200, 6)
    np.testing.assert_allclose(
        values_of(data, "prior_predictive", "y").std(), 2**0.5, atol=0.15
    )
    assert values_of(data, "constant_data", "age").tolist() == [7.0, 8.0]
    given = {"y": replicated.reshape(800, 6)}
    again = kaem.to_arviz(
        chains, posterior_predictive=given, prior={"mean": np.ones((5, 3))}
    )
    np.testing.assert_array_equal(
        values_of(again, "posterior_predictive", "y"), replicated
    )
    assert values_of(again, "prior", "mean").shape == (1, 5, 3)
    with pytest.raises(
        ValueError, match="'y' must have one entry per draw, 800 in all"
    ):
        kaem.to_arviz(chains, posterior_predictive={"y": np.ones((7, 6))})


def test_dictionary_of_draws():
    """Draws without a sampler, in the kind of object of the installed ArviZ."""
    data = kaem.to_arviz({"a": np.arange(8.0).reshape(4, 2)}, dims={"a": ["side"]})
    assert data["posterior"]["a"].dims == ("chain", "draw", "side")
    assert groups_of(data) == {"posterior"}
    # InferenceData before 1.0, DataTree since.
    is_tree = int(version("arviz").split(".")[0]) >= 1
    assert type(data).__name__ == ("DataTree" if is_tree else "InferenceData")


def test_bad_input():
    """Errors name the argument."""
    for result, options, error, match in [
        (3, {}, TypeError, "result must be an MCMC"),
        ({}, {}, ValueError, "result must hold draws"),
        ({"a": [1.0], "b": [1.0, 2.0]}, {}, ValueError, "of one length"),
        ({"a": [1.0]}, {"rng_key": 0}, TypeError, "rng_key must be"),
        ({"a": [1.0]}, {"num_samples": 0}, ValueError, "num_samples must be"),
        ({"a": [1.0]}, {"prior": 5}, ValueError, "model must be given for prior"),
        (
            {"a": [1.0]},
            {"posterior_predictive": True},
            ValueError,
            "model must be given for posterior_predictive",
        ),
        (
            {"a": [[1.0, 2.0]]},
            {"dims": {"a": ["side"]}, "coords": {"side": [1, 2, 3]}},
            ValueError,
            "dimension 'side' of 'a' in the group 'posterior' has size 2, but 3",
        ),
        (MCMC(NUTS(model), num_warmup=1, num_samples=1), {}, ValueError, "finished"),
    ]:
        with pytest.raises(error, match=match):
            kaem.to_arviz(result, **options)
