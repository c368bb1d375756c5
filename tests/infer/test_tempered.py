"""Tempered sequential Monte Carlo: evidence, masses, errors, resuming, refusals."""

import warnings

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import special, stats

from numpyro_kaem.infer import TemperedSMC, log_evidence, tempered
from tests.helpers import assert_close

SMALL = {"num_particles": 2048, "progress_bar": False}


def two_modes(y):
    """Places y and -y, of masses .8 and .2; their evidence is the same."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand(y.shape).to_event(1))
    normal = dist.Normal(0.0, 0.3)
    first = jnp.log(0.8) + normal.log_prob(z - y).sum()
    second = jnp.log(0.2) + normal.log_prob(z + y).sum()
    numpyro.factor("likelihood", jnp.logaddexp(first, second))


def evidence_of_two_modes(y):
    return stats.norm(0, 1.09**0.5).logpdf(y).sum()


@pytest.mark.numerics
def test_errors_are_those_of_many_runs():
    """Evidence and masses with new data each time, and nothing compiled again."""
    smc = TemperedSMC(two_modes, **SMALL)
    data = np.random.default_rng(0).normal(1.0, 0.1, (41, 2))
    smc.run(jax.random.key(0), jnp.asarray(data[0]))
    compiled = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    errors, masses = [], []
    for seed, y in enumerate(data[1:]):
        result = smc.run(jax.random.key(seed + 1), jnp.asarray(y))
        value, error = result.log_evidence
        errors.append((value - evidence_of_two_modes(y)) / error)
        positive = np.asarray(result.samples["z"]) > 0
        masses.append(np.exp(result.log_weights) @ positive)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert 0.7 < np.std(errors) < 1.3
    assert abs(np.mean(errors)) < 4 / 40**0.5
    masses = np.array(masses)
    assert np.all(np.abs(masses.mean(0) - 0.8) < 4 * masses.std(0) / 40**0.5)
    assert np.all(masses.std(0) < 0.05)


def conjugate(k, y):
    """Two sites on bounded supports, two observed ones."""
    share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    numpyro.deterministic("odds", share / (1 - share))
    numpyro.sample("k", dist.Binomial(12, share), obs=k)
    with numpyro.plate("units", len(y)):
        numpyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.mark.numerics
def test_constrained_and_several_observed_sites():
    """Values of all sites, with the weights of their islands."""
    k, y = 9, np.array([0.2, 0.9, 0.4, 0.1])
    result = TemperedSMC(conjugate, **SMALL).run(jax.random.key(1), k, y)
    truth = stats.betabinom(12, 2, 3).logpmf(k)
    truth += special.gammaln(7) - special.gammaln(3) + 3 * np.log(2)
    truth -= 7 * np.log(2 + y.sum())
    value, error = result.log_evidence
    assert abs(value - truth) < 4 * error < 0.2
    both = log_evidence(result)
    assert both.steppingstone == result.log_evidence
    integral, error = both.thermodynamic
    assert abs(integral - truth) < 4 * error + both.discretisation_error < 0.2
    weights = np.exp(result.log_weights)
    assert_close(weights.sum(), 1.0)
    for site, posterior in (
        ("share", stats.beta(11, 6)),
        ("rate", stats.gamma(7, scale=1 / (2 + y.sum()))),
    ):
        draws = np.asarray(result.samples[site], np.float64)
        # The particles are worth some hundreds of independent draws.
        assert abs(weights @ draws - posterior.mean()) < 0.2 * posterior.std()
        sd = (weights @ (draws - posterior.mean()) ** 2) ** 0.5
        assert_close(sd, posterior.std(), rtol=0.15)
    share = result.samples["share"]
    assert_close(result.samples["odds"], share / (1 - share), rtol=1e-5)
    resampled = result.resample(jax.random.key(2), 700)
    assert resampled["odds"].shape == (700,)
    assert np.isin(resampled["share"], share).all()
    assert result.ess == pytest.approx(1 / np.sum(weights**2))


def rare(threshold):
    """Likelihood zero over most of the prior."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("likelihood", jnp.where(z > threshold, -jnp.square(z), -jnp.inf))


def test_likelihood_that_is_zero_nearly_everywhere(monkeypatch):
    """Draws of the prior until each island has enough, then a few; or an error."""
    smc = TemperedSMC(rare, **SMALL)

    def truth(threshold):
        # The product is a Normal of variance 1/3, up to its constant.
        return stats.norm(0, 3**-0.5).logsf(threshold) - 0.5 * np.log(3)

    result = smc.run(jax.random.key(0), 3.0)
    value, error = result.log_evidence
    assert abs(value - truth(3.0)) < 4 * error < 0.4
    # It starts from the draws that have a likelihood.
    integral = log_evidence(result).thermodynamic
    assert abs(integral.value - truth(3.0)) < 4 * integral.standard_error < 0.4
    monkeypatch.setattr(tempered, "_PRIOR_BATCHES", 1)
    monkeypatch.setattr(tempered, "_FEW", 2)
    with pytest.warns(UserWarning, match="draws of the prior have a likelihood above"):
        value, error = smc.run(jax.random.key(0), 3.0).log_evidence
    assert abs(value - truth(3.0)) < 4 * error < 1.5
    monkeypatch.setattr(tempered, "_MOST_PRIOR_BATCHES", 2)
    with pytest.raises(ValueError, match="got none in 4096 draws in some islands"):
        smc.run(jax.random.key(0), 9.0)


def test_resumed_run_is_the_same(tmp_path, monkeypatch):
    """After a stop, by chunks, on two devices; of other data it is refused."""
    y, key = jnp.array([1.0, 1.1]), jax.random.key(3)
    smc = TemperedSMC(two_modes, **SMALL)
    whole = smc.run(key, y)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    for options in ({"chunk_size": 100}, {"mesh": mesh}):
        same = TemperedSMC(two_modes, **SMALL, **options).run(key, y)
        assert_close(same.samples["z"], whole.samples["z"], rtol=1e-3, atol=1e-4)
    assert len(same.samples["z"].devices()) == 2
    path = tmp_path / "smc.npz"
    advance, calls = tempered._advance, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(*arguments)

    monkeypatch.setattr(tempered, "_advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        smc.run(key, y, checkpoint=path)
    resumed = smc.run(key, y, checkpoint=path)
    assert len(calls) == len(whole.temperatures)
    np.testing.assert_array_equal(resumed.samples["z"], whole.samples["z"])
    np.testing.assert_array_equal(resumed.temperatures, whole.temperatures)
    assert resumed.log_evidence == whole.log_evidence
    assert smc.run(key, y, checkpoint=path).num_gradients == whole.num_gradients
    other = TemperedSMC(two_modes, **SMALL, ess_threshold=0.5)
    for sampler, data in ((smc, y + 1), (smc, y[:1]), (other, y)):
        with pytest.raises(ValueError, match=r"smc\.npz must be of this run"):
            sampler.run(key, data, checkpoint=path)


def improper():
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=1.0)


def offset(constant):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("likelihood", constant - jnp.square(z))


def test_refusals_and_warnings():
    for make, error, message in (
        (lambda: TemperedSMC(3), TypeError, "model must be a NumPyro model"),
        (lambda: TemperedSMC(rare, num_particles=2.5), TypeError, "num_particles must"),
        (lambda: TemperedSMC(rare, num_particles=1000), ValueError, "= 128, got 1000"),
        (lambda: TemperedSMC(rare, num_islands=2), ValueError, "num_islands must"),
        (lambda: TemperedSMC(rare, ess_threshold=1.0), ValueError, r"within \(0, 1\)"),
        (lambda: TemperedSMC(rare, mesh=2), TypeError, r"mesh must be a jax\.sharding"),
        (
            lambda: TemperedSMC(
                rare,
                num_islands=5,
                num_particles=80,
                mesh=jax.sharding.Mesh(jax.devices()[:2], ("data",)),
            ),
            ValueError,
            "number of devices of mesh, 2, got 5",
        ),
        (lambda: TemperedSMC(rare).run(0, 1.0), TypeError, "rng_key must"),
        (
            lambda: TemperedSMC(improper).run(jax.random.key(0)),
            ValueError,
            "model must have a prior that can be drawn from",
        ),
        (
            lambda: TemperedSMC(handlers.scale(rare, 2.0)).run(jax.random.key(0), 1.0),
            ValueError,
            "model must have a prior that can be drawn from",
        ),
    ):
        with pytest.raises(error, match=message):
            make()
    smc = TemperedSMC(offset, **SMALL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        smc.run(jax.random.key(0), 1e6)
    told = any("have a spacing of 0.062 in float32" in str(w.message) for w in caught)
    assert told == (jnp.zeros(()).dtype == jnp.float32)


@pytest.mark.long
def test_second_run_that_disagrees():
    """A funnel's neck is missed by all islands alike."""

    def funnel(noise):
        v = numpyro.sample("v", dist.Normal(0.0, noise))
        x = numpyro.sample("x", dist.Normal(0.0, 5.0).expand([9]).to_event(1))
        numpyro.factor("likelihood", dist.Normal(0.0, jnp.exp(v / 2)).log_prob(x).sum())

    smc = TemperedSMC(funnel, progress_bar=False, check=True)
    with pytest.warns(UserWarning, match="with small and large steps"):
        # Some four runs in six are told, so that four without are rare.
        results = [smc.run(jax.random.key(seed), 3.0) for seed in range(4)]
    differences = [run.check.value - run.log_evidence.value for run in results]
    assert np.mean(differences) > 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TemperedSMC(two_modes, **SMALL, check=True).run(jax.random.key(0), jnp.ones(2))
