"""Figures of samplers, training and calibration show what was computed."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from scipy import stats

import numpyro_kaem as kaem
from numpyro_kaem.plotting.sampling import _envelope


def model(y):
    """Units with a mean each."""
    with numpyro.plate("unit", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


@pytest.fixture(scope="module")
def population():
    """Two annealed populations."""
    kernel = kaem.infer.AnnealedLangevin(model, num_temperatures=4)
    mcmc = MCMC(
        kernel,
        num_warmup=100,
        num_samples=200,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), jnp.array([1.0, -0.5]), extra_fields=("round_trips",))
    return mcmc


def test_ladder_shows_the_integral_swaps_and_trips(population):
    axes = kaem.plot_ladder(population)
    evidence = kaem.infer.log_evidence(population)
    t, mean = axes[0].lines[1].get_data()
    np.testing.assert_array_equal(t, evidence.temperatures[1])
    np.testing.assert_array_equal(mean, evidence.mean_log_likelihood[1])
    # The shaded area is the integral by the plain trapezoid.
    path = axes[0].collections[0].get_paths()[0].vertices
    x, y = path[:, 0], path[:, 1]
    area = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
    plain = np.trapezoid(evidence.mean_log_likelihood[0], evidence.temperatures[0])
    np.testing.assert_allclose(area, abs(plain), rtol=1e-6)
    assert f"{evidence.steppingstone.value:.2f}" in axes[0].get_title()
    swaps = np.asarray(population.last_state.mean_swap_acceptance)
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), swaps[0])
    (barrier,) = (a for a in axes[0].figure.axes if a.get_ylabel() == "local barrier")
    middle, local = barrier.lines[1].get_data()
    t = evidence.temperatures[1]
    np.testing.assert_allclose(middle, (t[1:] + t[:-1]) / 2)
    # Its integral is the communication barrier.
    total = population.last_state.communication_barrier[1]
    np.testing.assert_allclose(local @ np.diff(t), total, rtol=1e-5)
    trips = population.get_extra_fields(group_by_chain=True)["round_trips"]
    np.testing.assert_array_equal(axes[2].lines[1].get_ydata(), trips[1])
    with pytest.raises(ValueError, match="ax must hold 3 axes, got 1"):
        kaem.plot_ladder(population, ax=plt.subplots()[1])
    with pytest.raises(TypeError):
        kaem.plot_ladder(MCMC(NUTS(model), num_warmup=1, num_samples=1))


def test_ladder_of_particles():
    """The acceptance of moves, and the islands about the evidence of all."""
    smc = kaem.infer.TemperedSMC(model, num_particles=1024, progress_bar=False)
    result = smc.run(jax.random.key(1), jnp.array([1.0, -0.5]))
    axes = kaem.plot_ladder(result)
    t, mean = axes[0].lines[0].get_data()
    np.testing.assert_array_equal(t, result.temperatures)
    np.testing.assert_allclose(mean, result.log_likelihood.mean(1), rtol=1e-5)
    assert f"{result.log_evidence.value:.2f}" in axes[0].get_title()
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), result.accept_prob)
    islands = axes[2].lines[1].get_ydata()
    np.testing.assert_array_equal(islands, result.island_log_evidence)


def test_ladder_of_a_run_that_kept_less(population, monkeypatch):
    """A mean that the prior has not is left out, and trips are those at the end."""
    evidence = kaem.infer.log_evidence(population)
    none = kaem.infer.Estimate(np.nan, np.nan)
    monkeypatch.setattr(
        "numpyro_kaem.plotting.sampling.log_evidence",
        lambda mcmc: dataclasses.replace(evidence, thermodynamic=none),
    )
    monkeypatch.setattr(population, "get_extra_fields", lambda **_: {})
    axes = kaem.plot_ladder(population)
    t, mean = axes[0].lines[0].get_data()
    np.testing.assert_array_equal(t, evidence.temperatures[0, 1:])
    np.testing.assert_array_equal(mean, evidence.mean_log_likelihood[0, 1:])
    x, trips = axes[2].lines[1].get_data()
    np.testing.assert_array_equal(x, 200)
    np.testing.assert_array_equal(trips, population.last_state.round_trips[1])


def test_weights_of_particles_and_of_units():
    y = jnp.array([1.0, 3.0, -0.5])
    result = kaem.infer.ImportanceSampling(model, num_samples=500).run(
        jax.random.key(1), y
    )
    ax = kaem.plot_weights(result)
    raw = next(line for line in ax.lines if line.get_label() == "raw").get_ydata()
    expected = np.exp(np.asarray(result.log_weights, float))
    expected = np.sort(expected / expected.sum())[::-1].cumsum()
    np.testing.assert_allclose(raw, expected, rtol=1e-6)
    assert f"Pareto k {result.pareto_k:.2f}" in ax.get_title()

    sampler = kaem.infer.ImportanceSampling(model, num_samples=500, unit_plate="unit")
    result = sampler.run(jax.random.key(2), y)
    ax = kaem.plot_weights(result)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), result.pareto_k)
    assert ax.lines[2].get_ydata()[0] == 0.7
    with pytest.raises(TypeError, match="result must be an ImportanceResult"):
        kaem.plot_weights(y)


def test_history_marks_steps_that_were_not_taken():
    losses = np.linspace(5.0, 1.0, 250)
    losses[[3, 10]] = np.nan, np.inf
    ax = kaem.plot_history(losses)
    loss, median, marks = ax.lines
    np.testing.assert_array_equal(np.isnan(loss.get_ydata()), ~np.isfinite(losses))
    np.testing.assert_allclose(median.get_ydata()[-1], np.median(losses[-5:]))
    np.testing.assert_array_equal(marks.get_xdata(), [4, 11])
    assert marks.get_label() == "2 steps not taken"
    for bad in ([], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="losses of shape"):
            kaem.plot_history(bad)


def test_calibration_shows_the_ranks():
    ranks = np.random.default_rng(0).integers(0, 10, (50, 2))
    ax = kaem.plot_calibration(kaem.CalibrationResult({"a": ranks}, 9))
    points = np.arange(1, 10) / 10
    for column in range(2):
        line = next(x for x in ax.lines if x.get_label() == f"a[{column}]")
        below = np.mean(ranks[:, column, None] < np.arange(1, 10), axis=0)
        np.testing.assert_allclose(line.get_ydata(), below - points)
    with pytest.raises(TypeError, match="result must be a CalibrationResult"):
        kaem.plot_calibration(ranks)


def test_envelope_holds_as_often_as_it_says():
    """For other curves than those that it was made from."""
    points = np.arange(1, 20) / 20
    lower, upper = _envelope(100, points, 0.9)
    uniform = np.random.default_rng(7).uniform(size=(4000, 100))
    curves = np.mean(uniform[:, :, None] < points, axis=1)
    inside = np.all((curves >= lower - 1e-12) & (curves <= upper + 1e-12), axis=1)
    assert 0.88 < inside.mean() < 0.95
    # Wider than each interval for itself.
    alone = stats.binom.ppf(0.05, 100, points) / 100
    assert np.all(lower <= alone)
