"""The choice of a sampler, and the comparison of runs that may have missed a mode."""

import copy
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, init_to_value
from scipy import stats

import numpyro_kaem as kaem
from numpyro_kaem.infer import (
    MALA,
    AnnealedLangevin,
    TemperedSMC,
    TemperedSMCResult,
    check_missed_modes,
    sample_posterior,
)


def conjugate(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    numpyro.deterministic("twice", 2 * mean)
    numpyro.sample("y", dist.Normal(mean, 1.0).expand(y.shape).to_event(1), obs=y)


def many(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand(y.shape).to_event(1))
    numpyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)


def two_modes(y):
    """Modes near 2 and -2, of which the first has most of the mass."""
    z = numpyro.sample("z", dist.Normal(0.3, 1.0).expand(y.shape).to_event(1))
    numpyro.sample("y", dist.Normal(z**2, 0.05).to_event(1), obs=y)


def improper(y):
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(z, 1.0).expand(y.shape).to_event(1), obs=y)


@pytest.mark.arviz
def test_importance_sampling_is_kept_where_it_is_fit(capsys):
    y = jnp.array([1.0, 2.0])
    result = sample_posterior(jax.random.key(0), conjugate, y, num_samples=4000)
    assert result.sampler == "importance"
    assert result.reliable
    assert result.importance.pareto_k <= 0.7
    assert result.mcmc is None
    variance = 1 / (1 / 4 + 2)
    distribution = stats.norm(3 * variance, np.sqrt(variance))
    # Resampled draws repeat: fewer of them are independent than there are.
    distance = stats.kstest(
        np.asarray(result.samples["mean"]), distribution.cdf
    ).statistic
    assert distance < 2.5 / np.sqrt(min(result.importance.ess, 4000))
    assert "Pareto k" in repr(result)
    assert "Kept." in repr(result)
    np.testing.assert_array_equal(result.samples["twice"], 2 * result.samples["mean"])
    assert capsys.readouterr().out == repr(result) + "\n"
    # Too few particles for as many draws: more are drawn, as the weights are good.
    result = sample_posterior(
        jax.random.key(0), conjugate, y, num_particles=200, progress_bar=False
    )
    assert result.report[0].endswith("More are drawn.")
    assert "Kept." in result.report[1]
    assert result.importance.ess > 500


@pytest.mark.long
@pytest.mark.arviz
def test_chains_are_taken_where_the_weights_fail(capsys):
    y = jnp.linspace(-1.0, 1.0, 15)
    options = {"num_samples": 1000, "num_warmup": 300, "progress_bar": False}
    result = sample_posterior(jax.random.key(0), many, y, **options)
    assert result.sampler == "NUTS"
    assert result.reliable
    assert result.samples["mean"].shape == (1000, 15)
    error = np.asarray(result.samples["mean"]).mean(0) - np.asarray(y) / 1.01
    assert np.all(np.abs(error) < 5 * 0.1 / np.sqrt(400))
    assert result.report[0].startswith("Importance sampling with 4096 draws")
    assert "Not enough" in result.report[0]
    assert result.report[1].startswith("4 chains of NUTS: largest R-hat 1.0")
    assert "check_modes=True" in result.report[2]
    assert capsys.readouterr().out == ""
    options |= {"num_samples": 8000, "num_warmup": 500, "kernel": MALA}
    result = sample_posterior(jax.random.key(0), many, y, **options)
    assert result.sampler == "MALA"
    assert result.samples["mean"].shape == (8000, 15)


def narrow(y):
    z = numpyro.sample("z", dist.Normal(3.0, 2.0))
    far = dist.Normal(-3.0, 0.4).log_prob(z)
    near = dist.Normal(3.0, 0.4).log_prob(z)
    # As much more likely as the prior is less: both have half of the mass.
    numpyro.factor("y", jnp.logaddexp(near, far + y))


@pytest.mark.long
@pytest.mark.arviz
def test_particles_are_taken_where_chains_disagree():
    def noisy(y):
        warnings.warn("of the model", UserWarning, stacklevel=2)
        two_modes(y)

    y = jnp.full(2, 4.0)
    # What a model warns of is no verdict on the particles.
    with pytest.warns(UserWarning, match="of the model"):
        result = sample_posterior(jax.random.key(0), noisy, y, progress_bar=False)
    assert result.sampler == "TemperedSMC"
    assert result.reliable
    assert result.missed_modes is None
    assert result.mcmc is None
    assert "R-hat" in result.report[1]
    assert result.report[-1] == "The draws of TemperedSMC are taken."
    # The second run was made, and agrees.
    difference = result.tempered.check.value - result.tempered.log_evidence.value
    assert abs(difference) < 0.2
    # The prior decides between the modes: the density at 2 over that at -2.
    odds = np.exp(2 * 0.3 * 2.0)
    positive = (np.asarray(result.samples["z"]) > 0).mean(0)
    assert np.all(np.abs(positive - odds / (1 + odds)) < 0.07)
    data = kaem.to_arviz(result, model=two_modes, model_args=(y,))
    assert data.posterior["z"].shape == (1, 16_384, 2)
    assert "TemperedSMC" in data.posterior.attrs["report"]


@pytest.mark.long
def test_chains_that_agree_are_checked_for_a_missed_mode():
    options = {"check_modes": True, "progress_bar": False}
    # The first is a key with which that happens, so that others are rarely needed.
    for key in (1, 0, 2, 3, 4):
        result = sample_posterior(jax.random.key(key), narrow, 4.5, **options)
        if result.missed_modes is not None:
            break  # All four chains have started, and stayed, beside the nearer mode.
    assert "4 chains of NUTS: largest R-hat 1.0" in result.report[1]
    assert result.sampler == "TemperedSMC"
    assert result.missed_modes.found
    assert abs(np.mean(np.asarray(result.samples["z"]) < 0) - 0.5) < 0.07
    y = jnp.linspace(-1.0, 1.0, 15)
    result = sample_posterior(jax.random.key(0), many, y, **options)
    assert result.sampler == "NUTS"
    assert not result.missed_modes.found
    assert result.report[-1] == "The draws of NUTS are kept."


@pytest.mark.long
def test_without_draws_of_the_prior_and_without_a_reliable_sampler():
    y = jnp.array([1.0, 2.0])
    result = sample_posterior(jax.random.key(0), improper, y, progress_bar=False)
    assert result.sampler == "NUTS"
    assert result.importance is None
    assert "no proposals" in result.report[0]

    def far(y):
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        factor = jnp.logaddexp(-((z - 20) ** 2), -((z + 20) ** 2)) * 10
        numpyro.factor("y", factor + y)

    options = {"num_warmup": 20, "progress_bar": False}
    with pytest.warns(UserWarning, match="not reliable either"):
        result = sample_posterior(jax.random.key(0), far, 0.5, **options)
    assert not result.reliable
    assert result.sampler == "AnnealedLangevin"
    assert any("8 chains of AnnealedLangevin" in line for line in result.report)


@pytest.mark.long
def test_narrow_neck_that_particles_miss_is_told():
    """A funnel that importance sampling refuses: the second run is nearer the truth."""

    def funnel():
        v = numpyro.sample("v", dist.Normal(0.0, 5.0).expand([10]).to_event(1))
        scale = jnp.exp(v[0] / 2)
        numpyro.factor("x", dist.Normal(0.0, scale).log_prob(v[1:]).sum())

    with pytest.warns(UserWarning, match="particles miss a part of the posterior"):
        result = sample_posterior(jax.random.key(0), funnel, progress_bar=False)
    assert not result.reliable


# --- missed modes --------------------------------------------------------------------


def runner(kernel, num_chains=4, num_samples=1000):
    return MCMC(
        kernel,
        num_warmup=500,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )


@pytest.fixture(scope="module")
def finished():
    """A run of few draws."""
    mcmc = runner(MALA(conjugate), 1, 10)
    mcmc.run(jax.random.key(0), jnp.array([1.0]))
    return mcmc


@pytest.mark.long
def test_runs_agree_unless_one_has_missed_a_mode():
    y = jnp.linspace(-1.0, 1.0, 3)
    found = []
    # The same two objects for all keys: each is compiled once.
    nuts, mala = runner(NUTS(many), 4, 500), runner(MALA(many), 4, 2000)
    for key in range(5):
        nuts.run(jax.random.key(key), y)
        mala.run(jax.random.key(key + 9), y)
        comparison = check_missed_modes(nuts, mala)
        found.append(comparison.found)
        assert comparison.mass < 0.15
    assert not any(found)
    assert "No sign of a missed mode" in str(comparison)
    # A run that misses a mode, though its R-hat is near one.
    y = jnp.full(3, 4.0)
    start = init_to_value(values={"z": jnp.array([2.0, 2.0, 2.0])})
    nuts = runner(NUTS(two_modes, init_strategy=start))
    annealed = runner(AnnealedLangevin(two_modes))
    nuts.run(jax.random.key(0), y)
    annealed.run(jax.random.key(0), y)
    assert np.all(np.asarray(nuts.get_samples()["z"]) > 0)
    comparison = check_missed_modes(nuts, annealed)
    assert comparison.found
    # The other mode of a component has the mass 1 / (1 + exp(1.2)).
    assert abs(comparison.mass - 0.23) < 0.15 or "principal" in comparison.where
    assert comparison.probability < 1e-3
    assert "different distributions" in str(comparison)
    assert comparison.where in str(comparison)
    # Against weighted draws, the same.
    smc = TemperedSMC(two_modes, progress_bar=False).run(jax.random.key(0), y)
    other = check_missed_modes(nuts, smc)
    assert other.found
    assert other.mass > 0.15
    assert not check_missed_modes(annealed, smc).found


def test_modes_that_no_single_axis_tells_apart_are_found(finished):
    """Both runs have the same marginal distributions."""

    def chains(sign):
        mcmc = copy.copy(finished)
        rng = np.random.default_rng(int(sign) + 5)
        along = rng.choice([-1.0, 1.0], size=(2, 500, 1))
        z = along * np.array([1.0, sign]) + 0.1 * rng.normal(size=(2, 500, 2))
        mcmc.get_samples = lambda group_by_chain: {"z": z}
        return mcmc

    comparison = check_missed_modes(chains(1.0), chains(-1.0))
    assert comparison.found
    assert comparison.where.startswith("principal component")
    same = check_missed_modes(chains(1.0), chains(1.0))
    assert not same.found


def test_particles_are_compared_by_their_weights(finished):
    """Of islands, one half is elsewhere; it counts only if it has weight."""
    rng = np.random.default_rng(0)
    mcmc = copy.copy(finished)
    mcmc.get_samples = lambda group_by_chain: {"z": rng.normal(size=(2, 500))}
    values = rng.normal(size=(16, 64)) + np.repeat([0.0, 3.0], 8)[:, None]

    def particles(log_share):
        share = np.exp(np.repeat([0.0, log_share], 8))
        log_weights = np.log(np.repeat(share / share.sum() / 64, 64))
        return TemperedSMCResult(
            {"z": values.reshape(-1)}, log_weights, None, np.log(share), None, None, 0
        )

    assert not check_missed_modes(mcmc, particles(-20.0)).found
    far = check_missed_modes(mcmc, particles(20.0))
    assert far.found
    # The distribution functions of Normals three apart differ by this at most.
    assert abs(far.mass - (2 * stats.norm.cdf(1.5) - 1)) < 0.06
    # Independent draws: half of them count. Two places of islands: a few do.
    sizes = particles(-20.0).effective_sizes(values.reshape(-1, 1))
    assert 512 / 2.5 < sizes[0] < 1024
    assert particles(0.0).effective_sizes(values.reshape(-1, 1))[0] < 60
    # What is constant, whatever the rounding of its mean, and what is no number.
    odd = np.full((1024, 2), [0.1 + 0.2, np.nan])
    np.testing.assert_array_equal(particles(-0.3).effective_sizes(odd), [1024, 1])
    # One island with all of the weight has none to be compared with.
    share = np.eye(16)[0] + 1e-9
    alone = dataclasses.replace(
        particles(0.0), log_weights=np.log(np.repeat(share / share.sum() / 64, 64))
    )
    assert alone.effective_sizes(values.reshape(-1, 1))[0] == 1


def test_bad_input(finished):
    def discrete(y):
        numpyro.sample("k", dist.Poisson(2.0))

    y = jnp.array([1.0])
    unfinished, other = runner(MALA(conjugate)), copy.copy(finished)
    other.get_samples = lambda group_by_chain: {"z": np.zeros((1, 10))}
    for pair, error, message in (
        ((finished, {}), TypeError, r"annealed must be a numpyro.infer.MCMC or a res"),
        (({}, finished), TypeError, r"mcmc must be a numpyro.infer.MCMC, got dict"),
        ((unfinished, finished), ValueError, "mcmc must be a finished run"),
        ((finished, other), ValueError, "must share sites"),
    ):
        with pytest.raises(error, match=message):
            check_missed_modes(*pair)
    for model, options, error, message in (
        (conjugate, {"kernel": "nuts"}, TypeError, "kernel must be what makes an MCMC"),
        (conjugate, {"num_samples": 0}, ValueError, "num_samples"),
        (conjugate, {"num_particles": 2.5}, TypeError, "num_particles"),
        (discrete, {}, ValueError, "discrete 'k'"),
    ):
        with pytest.raises(error, match=message):
            sample_posterior(jax.random.key(0), model, y, **options)
