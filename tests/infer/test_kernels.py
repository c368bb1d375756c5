"""What NumPyro's MCMC does with the Langevin kernels: chains, fields, resuming."""

import pickle
from functools import cache

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


KEY = jax.random.key(0)


def run(kernel, y=Y, key=KEY, extra_fields=(), **options):
    options = {"num_warmup": 40, "num_samples": 30, "progress_bar": False, **options}
    mcmc = MCMC(kernel, **options)
    mcmc.run(key, y, extra_fields=extra_fields)
    return mcmc


@cache
def one_chain(kernel):
    return run(kernel(model))


@pytest.mark.parametrize("kernel", KERNELS)
def test_chains_fields_and_sites(kernel):
    assert issubclass(kernel, MCMCKernel)
    fields = ("accept_prob", "step_size", "used_step_size", "potential_energy", "i")
    options = {"num_chains": 3, "chain_method": "vectorized"}
    mcmc = run(kernel(model), extra_fields=fields, **options)
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
    """Where one of them has a key of the old kind, too."""
    keys = {"sequential": KEY, "vectorized": jax.random.PRNGKey(0)}
    if jax.local_device_count() > 1:
        keys["parallel"] = KEY
    expected = None
    for method, key in keys.items():
        mcmc = run(MALA(model), key=key, num_chains=2, chain_method=method)
        draws = np.asarray(mcmc.get_samples(group_by_chain=True)["share"])
        expected = draws if expected is None else expected
        assert_close(draws, expected, rtol=(1e-3, 1e-7), err_msg=method)


@pytest.mark.parametrize("kernel", with_long(KERNELS, MALA))
def test_resuming_continues_the_run(kernel):
    """And pickled kernels draw the same, of which thinning takes every third."""
    mcmc = run(kernel(model), num_samples=15)
    # In a new process nothing is left but the state.
    last = mcmc.last_state
    state = pickle.loads(pickle.dumps(jax.device_get(last._replace(rng_key=None))))
    state = state._replace(rng_key=last.rng_key)
    resumed = MCMC(kernel(model), num_warmup=40, num_samples=15, progress_bar=False)
    resumed.post_warmup_state = state
    resumed.run(state.rng_key, Y)
    both = [m.get_samples()["rate"] for m in (mcmc, resumed)]
    unbroken = one_chain(kernel)
    rate = unbroken.get_samples()["rate"]
    assert_array_equal(np.concatenate(both), rate)
    again = pickle.loads(pickle.dumps(unbroken.sampler))
    assert_array_equal(run(again, thinning=3).get_samples()["rate"], rate[2::3])


def test_new_data_are_used_by_the_compiled_sampler():
    """One chain, with a key of the old kind."""
    mcmc = run(MALA(model), Y + 3, jax.random.PRNGKey(1), jit_model_args=True)
    mcmc.run(jax.random.PRNGKey(0), Y)
    for name, draws in one_chain(MALA).get_samples().items():
        assert_close(mcmc.get_samples()[name], np.asarray(draws), rtol=(1e-3, 1e-7))
    # The text beside the progress bar.
    text = mcmc.sampler.get_diagnostics_str(mcmc.last_state)
    assert text.startswith("step size ")
    assert f"acceptance {mcmc.last_state.mean_accept_prob:.2f}" in text
    assert mcmc.sampler.model is model


def test_options_hold():
    kernel = MALA(model, step_size=0.25, adapt_step_size=False, adapt_scale=False)
    state = run(kernel).last_state
    assert state.step_size == 0.25
    assert_array_equal(state.adaptation.scale, np.ones(2))
    given = init_to_value(values={"rate": 2.0, "share": 1.0})
    kernel = MALA(model, init_strategy=given)
    state = kernel.init(KEY, 0, None, (Y,), {})
    assert_close(state.z["rate"], np.log(2.0))
    state = kernel.init(KEY, 0, {"rate": 0.5, "share": 0.1}, (Y,), {})
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


def test_bad_arguments():
    def discrete(y):
        numpyro.sample("k", dist.Poisson(2.0))

    size, wanted = "step_size must be a finite number > 0", "target_accept_prob"
    for kernel in KERNELS:
        bad = [({"step_size": h}, size) for h in (0.0, -1.0, np.inf, np.nan)]
        if kernel in (MALA, PCNL):
            bad.append(({wanted: 1.5}, r"within \(0, 1\), got 1.5"))
        elif kernel is AutoMALA:
            bad.append(({wanted: 0.5}, f"left out with {kernel.__name__}, .*, got 0.5"))
        for arguments, message in bad:
            with pytest.raises(ValueError, match=message):
                kernel(model, **arguments)
        with pytest.raises(TypeError, match=r"a NumPyro model, .* of type int"):
            kernel(3)
        with pytest.raises(ValueError, match="got the discrete 'k'"):
            run(kernel(discrete))
