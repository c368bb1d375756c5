"""Calibration finds what is wrong, and nothing where all is right."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_kaem as kaem


def model(y, scale=1.0):
    """Two means, one observation each."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)


def conjugate(width):
    """Draws of the exact posterior, ``width`` times too wide."""

    def sampler(key, known, args, kwargs):
        with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
            known(*args, **kwargs)
        data = trace["y"]["value"]
        noise = jax.random.normal(key, (49, 2))
        return {"mean": data / 2 + width * jnp.sqrt(0.5) * noise}

    return sampler


def test_exact_and_overconfident_posterior():
    """Ranks are uniform, or pile up at both ends."""
    for width, calibrated in [(1.0, True), (0.5, False)]:
        result = sbc(model, num_simulations=200, sampler=conjugate(width))
        assert result.ranks["mean"].shape == (200, 2)
        assert result.ranks["mean"].min() >= 0
        assert result.ranks["mean"].max() <= 49
        p_values = result.p_values["mean"]
        assert bool(np.all(p_values > 1e-3)) is calibrated
        fractions = (result.ranks["mean"][:, 0] + 0.5) / 50
        assert p_values[0] == stats.kstest(fractions, "uniform").pvalue
        assert "200 simulations of 49 draws, 2 components" in repr(result)


def test_a_kernel_is_run_on_each_data_set():
    """New data reach the compiled chain."""
    result = kaem.simulation_based_calibration(
        jax.random.key(1),
        model,
        jnp.zeros(2),
        num_simulations=60,
        num_samples=19,
        num_warmup=150,
        scale=0.3,
        progress_bar=False,
    )
    # With data that never changed, ranks would lie at the ends: truths have sd 1,
    # posteriors .29.
    assert np.all(result.p_values["mean"] > 1e-3)


@pytest.mark.arviz
def test_ranks_for_arviz():
    """One chain of simulations, between 0 and 1."""
    result = kaem.CalibrationResult({"a": np.array([[0], [4], [9]])}, 9)
    data = result.to_arviz(dims={"a": ["side"]})
    found = data["prior_sbc"]["a"]
    assert found.dims == ("chain", "draw", "side")
    np.testing.assert_allclose(found.values[0, :, 0], [0.05, 0.45, 0.95])


def test_predictive_p_values():
    """Against counting by hand."""
    replicated = np.array([[1.0, 2.0], [3.0, 3.0], [0.0, 5.0], [2.0, 2.0]])
    values = kaem.posterior_predictive_p_values(
        replicated, np.array([2.0, 2.0]), {"sum": jnp.sum, "itself": lambda x: x}
    )
    assert values["sum"] == (2 + 0.5) / 4
    np.testing.assert_array_equal(values["itself"], [(1 + 0.5) / 4, (2 + 1.0) / 4])


def test_bad_input():
    """Errors name the argument."""
    p_values = kaem.posterior_predictive_p_values
    log = {"log": lambda x: jnp.log(x).sum()}
    shape_match = r"replicated must have shape \(num_draws, 3\), got \(3, 2\)"
    for call, match in [
        (lambda: sbc(model, 3), "rng_key must be"),
        (lambda: sbc(lambda y: None), "observed site"),
        (lambda: sbc(without_latent), "latent site"),
        (lambda: sbc(model, num_samples=50), "sampler must return 50 draws, got 49"),
        (lambda: sbc(model, num_simulations=0), "num_simulations must be"),
        (lambda: p_values(np.ones((3, 2)), np.ones(3)), shape_match),
        (lambda: p_values(np.ones((0, 2)), np.ones(2)), "replicated must hold draws"),
        (
            lambda: p_values(-np.ones((3, 2)), np.ones(2), log),
            "statistic 'log' is not finite",
        ),
    ]:
        with pytest.raises((ValueError, TypeError), match=match):
            call()


def without_latent(y):
    """Data alone."""
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def sbc(model, key=None, **options):
    """Of the exact posterior, with few simulations, unless told otherwise."""
    key = jax.random.key(0) if key is None else key
    defaults = {"num_simulations": 2, "num_samples": 49, "sampler": conjugate(1.0)}
    return kaem.simulation_based_calibration(
        key, model, jnp.zeros(2), progress_bar=False, **(defaults | options)
    )
