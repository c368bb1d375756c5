"""What NumPyro's MCMC does with the Langevin kernels: chains, fields, resuming."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_array_equal
from numpyro.infer import MCMC, init_to_value
from numpyro.infer.mcmc import MCMCKernel

from numpyro_kaem.infer import MALA, PCNL, ULA, AutoMALA
from tests.helpers import assert_close, with_long

KERNELS = [ULA, MALA, AutoMALA, PCNL]
Y = jnp.array([0.5, 1.5, 4.0])


def model(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    share = numpyro.sample("share", dist.Uniform(-1.0, 3.0))
    numpyro.deterministic("twice", 2 * rate)
    numpyro.sample("y", dist.Normal(rate + share, 1.0), obs=y)


def run(kernel, y=Y, key=0, num_warmup=40, num_samples=30, extra_fields=(), **options):
    options = {"progress_bar": False, **options}
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, **options)
    mcmc.run(jax.random.key(key), y, extra_fields=extra_fields)
    return mcmc


@pytest.mark.parametrize("kernel", KERNELS)
def test_chains_fields_and_sites(kernel):
    assert issubclass(kernel, MCMCKernel)
    fields = ("accept_prob", "step_size", "used_step_size", "potential_energy", "i")
    mcmc = run(
        kernel(model), extra_fields=fields, num_chains=3, chain_method="vectorized"
    )
    samples = mcmc.get_samples(group_by_chain=True)
    assert {name: v.shape for name, v in samples.items()} == dict.fromkeys(
        ("rate", "share", "twice"), (3, 30)
    )
    assert_close(samples["twice"], 2 * np.asarray(samples["rate"]))
    assert np.all(samples["rate"] > 0)
    assert np.all((samples["share"] > -1) & (samples["share"] < 3))
    assert len(np.unique(samples["rate"][:, -1])) == 3
    extra = mcmc.get_extra_fields(group_by_chain=True)
    assert np.all((extra["accept_prob"] >= 0) & (extra["accept_prob"] <= 1))
    assert np.all(extra["step_size"] == extra["step_size"][:, :1])
    assert_array_equal(extra["i"][0], np.arange(41, 71))
    rate, share = (np.asarray(samples[name], float) for name in ("rate", "share"))
    position = np.log(rate), np.log((share + 1) / (3 - share))
    energy = -(np.log(rate) - rate) - position[0]
    energy -= np.log((share + 1) * (3 - share) / 4) - np.log(4.0)
    energy += 0.5 * np.sum((np.asarray(Y) - (rate + share)[..., None]) ** 2, -1)
    energy += 1.5 * np.log(2 * np.pi)
    assert_close(
        extra["potential_energy"], energy, rtol=(1e-4, 1e-9), atol=(1e-4, 1e-9)
    )


def test_methods_of_chains_agree():
    draws = {}
    for method in ("sequential", "vectorized"):
        mcmc = run(MALA(model), num_chains=2, chain_method=method)
        draws[method] = mcmc.get_samples(group_by_chain=True)["share"]
    assert_close(draws["vectorized"], draws["sequential"], rtol=(1e-3, 1e-7))


@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices")
def test_parallel_chains():
    mcmc = run(MALA(model), num_chains=2, chain_method="parallel")
    assert mcmc.get_samples(group_by_chain=True)["share"].shape == (2, 30)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)])
def test_keys_of_both_kinds(key):
    for num_chains in (1, 2):
        mcmc = MCMC(
            PCNL(model),
            num_warmup=5,
            num_samples=5,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(key, Y)
        assert mcmc.get_samples()["rate"].shape == (5 * num_chains,)


def test_thinning_takes_every_third():
    every = run(MALA(model)).get_samples()["rate"]
    thinned = run(MALA(model), thinning=3).get_samples()["rate"]
    assert_array_equal(thinned, every[2::3])


@pytest.mark.parametrize("kernel", with_long(KERNELS, MALA))
def test_resuming_continues_the_run(kernel):
    unbroken = run(kernel(model), num_samples=40).get_samples()["rate"]
    mcmc = run(kernel(model), num_samples=20)
    first = mcmc.get_samples()["rate"]
    # In a new process nothing is left but the state.
    state = pickle.loads(pickle.dumps(jax.device_get(_without_keys(mcmc.last_state))))
    state = state._replace(rng_key=mcmc.last_state.rng_key)
    resumed = MCMC(kernel(model), num_warmup=40, num_samples=20, progress_bar=False)
    resumed.post_warmup_state = state
    resumed.run(state.rng_key, Y)
    both = np.concatenate([first, resumed.get_samples()["rate"]])
    assert_array_equal(both, unbroken)


def _without_keys(state):
    return state._replace(rng_key=None)


@pytest.mark.parametrize("kernel", with_long(KERNELS, AutoMALA, PCNL))
def test_pickles(kernel):
    mcmc = run(kernel(model))
    again = pickle.loads(pickle.dumps(mcmc.sampler))
    assert_array_equal(run(again).get_samples()["rate"], mcmc.get_samples()["rate"])


def test_compiled_once_for_new_data():
    mcmc = run(MALA(model), num_samples=2000, num_warmup=500, jit_model_args=True)
    first = mcmc.get_samples()["rate"].mean()
    mcmc.run(jax.random.key(1), Y + 3)
    second = mcmc.get_samples()["rate"].mean()
    fresh = run(MALA(model), Y + 3, 1, 500, 2000).get_samples()["rate"].mean()
    assert second > first + 1
    assert abs(second - fresh) < 0.3


def test_text_beside_the_progress_bar():
    mcmc = run(MALA(model))
    text = mcmc.sampler.get_diagnostics_str(mcmc.last_state)
    assert text.startswith("step size ")
    assert f"acceptance {mcmc.last_state.mean_accept_prob:.2f}" in text
    assert mcmc.sampler.model is model


def test_options_hold():
    kernel = MALA(model, step_size=0.25, adapt_step_size=False, adapt_scale=False)
    state = run(kernel).last_state
    assert state.step_size == 0.25
    assert_array_equal(state.adaptation.preconditioner.scale, np.ones(2))
    kernel = MALA(
        model, init_strategy=init_to_value(values={"rate": 2.0, "share": 1.0})
    )
    state = kernel.init(jax.random.key(0), 0, None, (Y,), {})
    assert_close(state.z["rate"], np.log(2.0))
    state = kernel.init(jax.random.key(0), 0, {"rate": 0.5, "share": 0.1}, (Y,), {})
    assert_close(state.langevin.position, np.array([0.5, 0.1]))
    # Without a warm-up nothing is learned, and the step size is the one given.
    assert run(ULA(model, step_size=0.3), num_warmup=0).last_state.step_size == 0.3
    assert run(ULA(model, step_size=0.3)).last_state.step_size == 0.3


@pytest.mark.long
def test_the_target_acceptance_is_reached():
    def wide(y):
        with numpyro.plate("units", 20):
            z = numpyro.sample("z", dist.Normal(0.0, jnp.linspace(0.5, 5.0, 20)))
        numpyro.sample("y", dist.Normal(z.sum(), 10.0), obs=y)

    for wanted in (0.4, 0.8):
        mcmc = run(
            MALA(wide, target_accept_prob=wanted),
            1.0,
            num_warmup=800,
            num_samples=800,
            extra_fields=("accept_prob",),
            num_chains=4,
            chain_method="vectorized",
        )
        assert abs(mcmc.get_extra_fields()["accept_prob"].mean() - wanted) < 0.1


@pytest.mark.parametrize("kernel", KERNELS)
def test_bad_arguments(kernel):
    name = kernel.__name__
    with pytest.raises(
        TypeError, match=r"model must be a NumPyro model, .* of type int"
    ):
        kernel(3)
    for size in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"step_size must be a finite number > 0"):
            kernel(model, step_size=size)
    if kernel in (MALA, PCNL):
        with pytest.raises(ValueError, match=r"within \(0, 1\), got 1.5"):
            kernel(model, target_accept_prob=1.5)
    elif kernel is AutoMALA:
        with pytest.raises(ValueError, match=f"left out, got 0.5: .* of {name}"):
            kernel(model, target_accept_prob=0.5)

    def discrete(y):
        numpyro.sample("k", dist.Poisson(2.0))

    with pytest.raises(ValueError, match="got the discrete 'k'"):
        run(kernel(discrete))
