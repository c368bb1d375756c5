"""The annealed population: its distribution at every temperature, and as a kernel."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.infer import MCMC, NUTS, Predictive, init_to_value
from scipy import stats

from numpyro_kaem.infer import AnnealedLangevin, ladder
from tests.helpers import assert_close, assert_within_mcse
from tests.infer.test_swaps import ideal_round_trip_rate

OF_MCMC = ("chain_method", "thinning", "jit_model_args")


def runner(model, num_chains=2, num_warmup=300, num_samples=500, **options):
    """Run of a population, or of a kernel, without a bar."""
    of_mcmc = {"chain_method": "vectorized", "num_chains": num_chains}
    of_mcmc |= {name: options.pop(name) for name in OF_MCMC if name in options}
    sizes = {"num_warmup": num_warmup, "num_samples": num_samples}
    if not isinstance(model, AnnealedLangevin | NUTS):
        model = AnnealedLangevin(model, **{"num_temperatures": 4, **options})
    return MCMC(model, **sizes, **of_mcmc, progress_bar=False)


# --- the distribution at every temperature -------------------------------------------


DESIGN = np.array([[1.0, 1.0], [1.0, -2.0]])


def gaussian(y):
    """Two unequal Normal means, of which the likelihood sees a sum and a difference."""
    z = numpyro.sample("z", dist.Normal(np.array([1.0, -2.0]), np.array([2.0, 0.5])))
    numpyro.sample("y", dist.Normal(z @ DESIGN, 0.4), obs=y)


def scaled(y):
    """The same distribution, with a scaled prior that has no exact draws."""
    with numpyro.handlers.scale(scale=2.0):
        prior = dist.Normal(np.array([1.0, -2.0]), np.array([8.0, 0.5]) ** 0.5)
        z = numpyro.sample("z", prior)
    numpyro.sample("y", dist.Normal(z @ DESIGN, 0.4), obs=y)


def gaussian_at(t, y):
    """Mean and covariance at a temperature."""
    prior = np.diag([1 / 4.0, 1 / 0.25])
    covariance = np.linalg.inv(prior + t / 0.16 * DESIGN @ DESIGN.T)
    mean = covariance @ (prior @ [1.0, -2.0] + t / 0.16 * DESIGN @ y)
    return mean, covariance


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "local_move"),
    [
        *((gaussian, move) for move in ("mala", "hmc", "pcnl", "auto_mala")),
        (scaled, "mala"),
    ],
)
def test_gaussian_distribution_at_every_temperature(model, local_move):
    y = np.array([0.5, 3.0])
    options = {"num_temperatures": 5, "local_move": local_move}
    mcmc = runner(model, num_chains=4, num_samples=2000, **options)
    fields = ("replicas.position", "temperatures", "replica_log_likelihood")
    mcmc.run(jax.random.key(0), y, extra_fields=fields)
    extra = mcmc.get_extra_fields(group_by_chain=True)
    for chain in range(4):
        ladder = np.asarray(extra["temperatures"][chain], dtype=float)
        assert np.all(ladder == ladder[0])
        for k, t in enumerate(ladder[0]):
            mean, covariance = gaussian_at(t, y)
            draws = np.asarray(extra["replicas.position"][chain, :, k], dtype=float)
            centred = draws - mean
            products = np.stack(
                [centred[:, 0] ** 2, centred[:, 1] ** 2, centred[:, 0] * centred[:, 1]]
            ).T
            expected = covariance[[0, 1, 0], [0, 1, 1]]
            assert_within_mcse(draws, mean, num_errors=4.5, err_msg=f"t = {t}")
            assert_within_mcse(products, expected, num_errors=4.5, err_msg=f"t = {t}")
    state = mcmc.last_state
    of_prior = np.asarray(state.accept_prob[:, 0])
    assert np.all(of_prior == 1.0 if model is gaussian else of_prior < 1.0)
    assert_close(mcmc.get_samples(group_by_chain=True)["z"][:, -1], state.z["z"])


@pytest.mark.long
def test_bounded_distribution_at_every_temperature():
    """Powers of a binomial likelihood are conjugate to the Beta distribution too."""

    def binomial(y):
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("y", dist.Binomial(12, p), obs=y)

    y = 10
    mcmc = runner(binomial, num_chains=4, num_samples=2000, num_temperatures=5)
    mcmc.run(jax.random.key(0), y, extra_fields=("replicas.position",))
    position = mcmc.get_extra_fields(group_by_chain=True)["replicas.position"][..., 0]
    p = np.asarray(jax.nn.sigmoid(position), dtype=float)
    for chain, temperatures in enumerate(np.asarray(mcmc.last_state.temperatures)):
        for k, t in enumerate(temperatures):
            distribution = stats.beta(2.0 + t * y, 3.0 + t * (12 - y))
            draws = np.stack(
                [p[chain, :, k], (p[chain, :, k] - distribution.mean()) ** 2]
            ).T
            assert_within_mcse(
                draws, [distribution.mean(), distribution.var()], num_errors=4.5
            )
    samples = mcmc.get_samples()["p"]
    assert np.all((samples > 0) & (samples < 1))
    assert_close(samples.reshape(4, -1), p[..., -1], atol=(1e-6, 1e-12))


def test_improper_prior_has_a_ladder_above_zero():
    """All neighbours swap, and well-separated modes have their masses, .9 and .1."""

    def improper():
        line = dist.ImproperUniform(dist.constraints.real, (), (3,))
        z = numpyro.sample("z", line)
        far = jnp.log(9.0) - 2 * jnp.sum((z + 4) ** 2)
        numpyro.factor("y", jnp.logaddexp(-2 * jnp.sum((z - 4) ** 2), far))

    mcmc = runner(improper, num_chains=4, num_samples=1000, num_temperatures=10)
    mcmc.run(jax.random.key(0))
    state = mcmc.last_state
    assert_close(np.asarray(state.temperatures[:, 0]), 1e-3)
    assert np.all(np.asarray(state.mean_swap_acceptance) > 0.25)
    assert np.all(np.asarray(state.round_trips) >= 5)
    z = np.asarray(mcmc.get_samples()["z"], float)
    assert abs(np.mean(z[:, 0] < 0) - 0.9) < 0.05
    assert np.all(np.abs(np.abs(z).std(0) - 0.5) < 0.05)
    kernel = AnnealedLangevin(improper, temperatures=[0.0, 0.1, 1.0])
    begin = kernel.init(jax.random.key(0), 0, None, (), {})
    assert_close(np.asarray(begin.temperatures), [0.05, 0.1, 1.0])


# --- two modes ------------------------------------------------------------------------

DIM = 10
DIRECTION = np.ones(DIM) / DIM**0.5
CENTRES = np.stack([-7.0 * DIRECTION, 13.0 * DIRECTION])
MASSES = np.array([0.2, 0.8])


def two_modes():
    """Posterior of two unit Normal modes that are 20 standard deviations apart."""
    prior = dist.Normal(jnp.zeros(DIM), 6.0).to_event(1)
    z = numpyro.sample("z", prior)
    modes = [dist.Normal(centre, 1.0).to_event(1).log_prob(z) for centre in CENTRES]
    posterior = logsumexp(jnp.stack(modes) + jnp.log(MASSES))
    numpyro.factor("likelihood", posterior - prior.log_prob(z))


def faults_at_two_modes(num_samples):
    """Run five keys of four chains each; what does not agree with the truth."""
    options = {"num_temperatures": 16, "num_local_steps": 3}
    mcmc = runner(two_modes, 20, 1000, num_samples, **options)
    mcmc.run(jax.random.key(0))
    state = mcmc.last_state
    z = np.asarray(mcmc.get_samples(group_by_chain=True)["z"], dtype=float)
    in_small = z @ DIRECTION < CENTRES.mean(0) @ DIRECTION
    mass = in_small.reshape(5, -1).mean(-1)
    # Within a mode: the squared distance from its centre, over the dimension.
    centre = np.where(in_small[..., None], CENTRES[0], CENTRES[1])
    spread = ((z - centre) ** 2).mean()
    rejection = 1 - np.asarray(state.mean_swap_acceptance, dtype=float)
    ideal = ideal_round_trip_rate(jnp.asarray(rejection))
    ideal = np.asarray(ideal).reshape(5, 4).mean(-1)
    rate = np.asarray(state.round_trip_rate).reshape(5, 4).mean(-1)
    agrees = {
        "mass of the small mode": np.all(np.abs(mass - MASSES[0]) < 0.03),
        "mass over all keys": abs(mass.mean() - MASSES[0]) < 0.03,
        "variance in a mode": abs(spread - 1.0) < 0.03,
        "round trips": np.all(rate > 0.5 * ideal),
        "equal rejection": np.ptp(rejection.mean(0)) < 0.1,
    }
    return {name for name, good in agrees.items() if not good}


@pytest.mark.long
def test_two_modes_have_their_masses_where_nuts_misses_one():
    assert faults_at_two_modes(8000) == set()
    mcmc = runner(NUTS(two_modes), num_chains=4, num_samples=300)
    mcmc.run(jax.random.key(0))
    z = np.asarray(mcmc.get_samples(group_by_chain=True)["z"])
    mass = (z @ DIRECTION < CENTRES.mean(0) @ DIRECTION).mean(1)
    # Every chain stays in the mode that it fell into.
    assert set(mass.tolist()) <= {0.0, 1.0}


SWAP = ladder.swap_probabilities
# What the swaps would be without the ladder's scale, with half of it, and not at all:
# and the fault that shows at once.
WRONG_SWAPS = {
    "variance in a mode": lambda ladder, value: SWAP(jnp.arange(len(ladder)), value),
    "mass over all keys": lambda ladder, value: SWAP(0.5 * ladder, value),
    "round trips": lambda ladder, value: jnp.zeros_like(value[1:]),
}


@pytest.mark.long
@pytest.mark.parametrize("fault", WRONG_SWAPS)
def test_wrong_swaps_are_found(fault, monkeypatch):
    wrong = WRONG_SWAPS[fault]
    monkeypatch.setattr("numpyro_kaem.infer.annealed.swap_probabilities", wrong)
    assert fault in faults_at_two_modes(1000)


# --- as a kernel of NumPyro -----------------------------------------------------------


def ratio(y, scale=0.5):
    """A positive and a real site, and a function of both."""
    rate = numpyro.sample("rate", dist.HalfNormal(2.0))
    shift = numpyro.sample("shift", dist.Normal(0.5, 1.5).expand([2]).to_event(1))
    mean = numpyro.deterministic("mean", rate * shift)
    numpyro.sample("y", dist.Normal(mean, scale), obs=y)


Y = np.array([0.7, -1.9])
SHORT = {"num_warmup": 60, "num_samples": 20}
FIELDS = (
    *("swap_acceptance", "accept_prob", "round_trips", "round_trip_rate"),
    *("communication_barrier", "mean_log_likelihood", "mean_swap_acceptance"),
    *("temperatures", "potential_energy"),
)


@pytest.fixture(scope="module")
def vectorized():
    """A short run of two populations."""
    mcmc = runner(ratio, **SHORT)
    mcmc.run(jax.random.key(3), Y, extra_fields=FIELDS)
    return mcmc


def test_shapes_and_meaning_of_what_is_collected(vectorized):
    samples = vectorized.get_samples(group_by_chain=True)
    assert samples["rate"].shape == (2, 20)
    assert samples["shift"].shape == samples["mean"].shape == (2, 20, 2)
    assert np.all(samples["rate"] > 0)
    extra = vectorized.get_extra_fields(group_by_chain=True)
    assert extra["replica_log_likelihood"].shape == (2, 20, 4)
    assert extra["mean_log_likelihood"].shape == (2, 20, 4)
    assert extra["temperatures"].shape == extra["accept_prob"].shape == (2, 20, 4)
    assert extra["swap_acceptance"].shape == (2, 20, 3)
    for name in ("round_trips", "round_trip_rate", "communication_barrier"):
        assert extra[name].shape == (2, 20)
    # The chain at t = 1 is what is collected.
    expected = stats.norm.logpdf(Y, samples["mean"], 0.5).sum(-1)
    assert_close(extra["replica_log_likelihood"][..., -1], expected, rtol=(1e-4, 1e-9))
    # Means begin when warm-up ends.
    running = np.cumsum(extra["replica_log_likelihood"], 1) / np.arange(1, 21)[:, None]
    assert_close(extra["mean_log_likelihood"], running, rtol=(1e-4, 1e-9))
    running = np.cumsum(extra["swap_acceptance"], 1) / np.arange(1, 21)[:, None]
    assert_close(extra["mean_swap_acceptance"], running, rtol=(1e-4, 1e-9))
    barrier = (1 - running).sum(-1)
    assert_close(extra["communication_barrier"], barrier, rtol=(1e-4, 1e-9))
    rate = extra["round_trips"] / np.arange(1, 21)
    assert_close(extra["round_trip_rate"], rate)
    state = vectorized.last_state
    assert state.i.tolist() == [80, 80]
    assert np.all(np.sort(state.tracker.replica, -1) == np.arange(4))
    dtype = jnp.zeros(()).dtype
    assert all(x.dtype == dtype for x in (*state.z.values(), *state.replicas))
    # The potential energy is NumPyro's.
    one = jax.tree.map(lambda x: x[1], state)
    expected = numpyro.infer.util.potential_energy(ratio, (Y,), {}, one.z)
    assert_close(one.potential_energy, expected, rtol=(1e-5, 1e-10))
    # Chains differ, and have their own ladders.
    assert not np.any(samples["rate"][0] == samples["rate"][1])
    ladders = np.asarray(state.temperatures)
    assert np.all(np.diff(ladders, axis=-1) > 0)
    assert np.any(ladders[0] != ladders[1])
    assert np.all(ladders[:, [0, -1]] == [0.0, 1.0])
    predictive = Predictive(ratio, vectorized.get_samples())
    assert predictive(jax.random.key(0), None)["y"].shape == (40, 2)


@pytest.mark.long
def test_other_ways_to_run_give_the_same_draws(vectorized):
    """Chain methods, warm-up by itself, thinning, and a key of the old kind."""
    # Over a few iterations: rounding differs, and grows along a chain.
    runs = []
    for chain_method in ("vectorized", "sequential", "parallel"):
        mcmc = runner(ratio, 2, 0, 4, chain_method=chain_method)
        mcmc.run(jax.random.key(3), Y, extra_fields=("swap_acceptance",))
        assert mcmc.last_state.replicas.position.shape == (2, 4, 3)
        extra = mcmc.get_extra_fields(group_by_chain=True)
        runs.append({**mcmc.get_samples(group_by_chain=True), **extra})
    for other in runs[1:]:
        for name, draws in runs[0].items():
            assert_close(other[name], draws, rtol=(1e-3, 1e-9), atol=(1e-3, 1e-9))
    apart, thinning = runner(ratio, **SHORT), runner(ratio, **SHORT, thinning=2)
    apart.warmup(jax.random.key(3), Y, collect_warmup=True)
    assert apart.get_samples()["rate"].shape == (2 * 60,)
    apart.run(apart.post_warmup_state.rng_key, Y)
    thinning.run(jax.random.key(3), Y)
    for name, draws in vectorized.get_samples(group_by_chain=True).items():
        of_apart = apart.get_samples(group_by_chain=True)[name]
        np.testing.assert_array_equal(of_apart, draws)
        thinned = thinning.get_samples(group_by_chain=True)[name]
        np.testing.assert_array_equal(thinned, draws[:, 1::2])
    mcmc = runner(ratio, 1, 60, 5)
    mcmc.run(jax.random.PRNGKey(3), y=Y)
    state = mcmc.last_state
    assert state.replicas.position.shape == (4, 3)
    assert "round trips" in mcmc.sampler.get_diagnostics_str(state)
    mcmc.post_warmup_state = state
    mcmc.run(state.rng_key, y=Y)
    assert mcmc.last_state.i == 70


def test_resuming_with_a_pickled_kernel_gives_the_draws_of_one_run(vectorized):
    mcmc = runner(ratio, 2, 60, 10)
    mcmc.run(jax.random.key(3), Y)
    first = mcmc.get_samples(group_by_chain=True)
    # Another process would begin with the pickled state, and a kernel of its own.
    state = pickle.loads(pickle.dumps(mcmc.last_state))
    kernel = pickle.loads(pickle.dumps(AnnealedLangevin(ratio, num_temperatures=4)))
    assert kernel.model is ratio
    mcmc = runner(kernel, 2, 60, 10)
    mcmc.post_warmup_state = state
    mcmc.run(mcmc.post_warmup_state.rng_key, Y)
    second = mcmc.get_samples(group_by_chain=True)
    run = pickle.loads(pickle.dumps(vectorized))
    for name, draws in vectorized.get_samples(group_by_chain=True).items():
        joined = np.concatenate([first[name], second[name]], 1)
        np.testing.assert_array_equal(joined, draws)
        np.testing.assert_array_equal(run.get_samples(group_by_chain=True)[name], draws)
    leaves = (
        jax.tree.leaves(m.last_state._replace(rng_key=0)) for m in (mcmc, vectorized)
    )
    for mine, one_run in zip(*leaves, strict=True):
        np.testing.assert_array_equal(mine, one_run)


def test_new_data_are_used_by_the_compiled_sampler():
    """A conjugate model, so that draws of stale data are far away."""

    def normal(y):
        z = numpyro.sample("z", dist.Normal(0.0, 5.0))
        numpyro.sample("y", dist.Normal(z, 0.1), obs=y)

    mcmc = runner(normal, 1, 150, 100, num_temperatures=6, jit_model_args=True)
    for y in (-4.0, 4.0):
        mcmc.run(jax.random.key(0), jnp.array(y))
        assert np.all(np.abs(mcmc.get_samples()["z"] - y) < 1.0)
        expected = stats.norm.logpdf(y, mcmc.get_samples()["z"], 0.1)
        value = mcmc.get_extra_fields()["replica_log_likelihood"][:, -1]
        assert_close(value, expected, rtol=(1e-3, 1e-9), atol=(1e-3, 1e-9))
    # New data in the middle of a run: only the likelihoods that are cached lag.
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key, jnp.array(3.5))
    assert np.all(np.abs(mcmc.get_samples()["z"][50:] - 3.5) < 1.0)


def test_what_is_given_is_kept():
    """Where chains start, a fixed ladder, and the step size of uncorrected moves."""
    start = {"rate": jnp.array([0.1, 0.2]), "shift": jnp.ones((2, 2))}
    kernel = AnnealedLangevin(ratio, num_temperatures=4)
    state = kernel.init(jax.random.split(jax.random.key(0)), 0, start, (Y,), {})
    assert_close(
        state.replicas.position[:, 2], np.array([[0.1, 1.0, 1.0], [0.2, 1, 1]])
    )
    given = init_to_value(values={"rate": 2.0, "shift": jnp.array([0.5, -0.5])})
    kernel = AnnealedLangevin(ratio, num_temperatures=3, init_strategy=given)
    state = kernel.init(jax.random.key(0), 0, None, (Y,), {})
    expected = np.tile([np.log(2.0), 0.5, -0.5], (3, 1))
    assert_close(state.replicas.position, expected, rtol=(1e-5, 1e-7))
    ladder = [0.0, 0.1, 1.0]
    options = {"num_temperatures": 3, "temperatures": ladder, "adapt_ladder": False}
    mcmc = runner(ratio, **SHORT, **options, local_move="ula", step_size=0.125)
    mcmc.run(jax.random.key(0), Y)
    state = mcmc.last_state
    assert_close(state.temperatures, np.tile(ladder, (2, 1)))
    assert np.all(state.adaptation.step_size == 0.125)
    assert not np.any(state.adaptation.scale[:, 1:] == 1.0)


# --- errors ---------------------------------------------------------------------------


def test_bad_arguments():
    for arguments, message in (
        ({"num_temperatures": 1}, "num_temperatures must be an integer >= 2, got 1"),
        ({"temperatures": [0.0, 0.5, 0.9]}, "temperatures must begin with 0"),
        (
            {"temperatures": [0.0, 1.0], "num_temperatures": 3},
            "num_temperatures must be the length of temperatures, 2, got 3",
        ),
        ({"power": -1.0}, "power must be a finite number > 0"),
        ({"num_local_steps": 0}, "num_local_steps must be"),
        ({"step_size": 0.0}, "step_size must be"),
        ({"target_accept_prob": 1.5}, "target_accept_prob must be"),
        ({"local_move": "gibbs"}, "local_move must be one of 'mala', 'pcnl'"),
        (
            {"local_move": "ula", "target_accept_prob": 0.5},
            "target_accept_prob must be left out with local_move='ula'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            AnnealedLangevin(ratio, **arguments)
    with pytest.raises(TypeError, match="num_local_steps must be a positive integer"):
        AnnealedLangevin(ratio, num_local_steps=1.5)
    with pytest.raises(TypeError, match="model must be a NumPyro model"):
        AnnealedLangevin(None)


def unobserved():
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def impossible():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("never", jnp.where(z > jnp.inf, 0.0, -jnp.inf))


@pytest.mark.parametrize("num_chains", [1, 2])
def test_models_and_starts_that_do_not_fit(num_chains):
    for model, message in ((unobserved, "observed"), (impossible, "init")):
        with pytest.raises(ValueError, match=message):
            runner(model, num_chains).run(jax.random.key(0))
    rate = jnp.full(num_chains, jnp.inf).squeeze()
    shift = jnp.zeros((num_chains, 2)).squeeze()
    with pytest.raises(ValueError, match="init_params"):
        runner(ratio, num_chains).run(
            jax.random.key(0), Y, init_params={"rate": rate, "shift": shift}
        )
