"""Ladders start at a power law and learn equal rejection."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from numpyro_kaem.infer.annealed_warmup import Rules, Tuning
from numpyro_kaem.infer.ladder import (
    check_ladder,
    equal_rejection_ladder,
    monotone_interpolation,
    power_ladder,
)
from numpyro_kaem.infer.population import Means
from tests.helpers import assert_close


@pytest.mark.parametrize("power", [0.5, 1.0, 5.0])
def test_power_law(power):
    ladder = power_ladder(7, power)
    assert_close(ladder, (np.arange(7) / 6) ** power)
    assert ladder[0] == 0.0
    assert ladder[-1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "num_temperatures must be at least 2"),
        ((2.5,), "num_temperatures must be an integer"),
        ((True,), "num_temperatures must be an integer"),
        ((4, 0.0), "power must be a finite number > 0"),
        ((4, np.inf), "power must be a finite number > 0"),
        ((40, 30.0), "power must leave 40 rungs apart"),
    ],
)
def test_power_law_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        power_ladder(*arguments)


def test_given_ladder_is_kept():
    np.testing.assert_array_equal(check_ladder([0, 0.25, 1]), [0.0, 0.25, 1.0])


@pytest.mark.parametrize(
    ("temperatures", "message"),
    [
        ([1.0], "at least 2 rungs"),
        ([], "at least 2 rungs"),
        ([[0.0, 1.0]], r"one-dimensional, got an array of shape \(1, 2\)"),
        ([0.1, 0.5, 1.0], "begin with 0 .* got 0.1 to 1"),
        ([0.0, 0.5, 0.9], "end with 1 .* got 0 to 0.9"),
        ([1.0, 0.5, 0.0], "begin with 0"),
        ([0.0, 0.6, 0.5, 1.0], "increasing .* got 0.6 followed by 0.5"),
        ([0.0, 0.5, 0.5, 1.0], "increasing"),
        ([0.0, 0.5, np.nan, 1.0], "increasing"),
    ],
)
def test_given_ladder_errors(temperatures, message):
    with pytest.raises(ValueError, match=message):
        check_ladder(temperatures)


@pytest.mark.parametrize("size", [2, 3, 4, 12])
def test_interpolation_is_that_of_scipy(size):
    rng = np.random.default_rng(size)
    x = np.cumsum(rng.uniform(0.05, 1.0, size)).astype(np.float32)
    y = np.cumsum(rng.uniform(0.0, 1.0, size) ** 8).astype(np.float32)
    new_x = np.linspace(x[0], x[-1], 101, dtype=np.float32)
    values = monotone_interpolation(*map(jnp.asarray, (x, y, new_x)))
    expected = PchipInterpolator(x.astype(float), y.astype(float))(new_x.astype(float))
    assert_close(values, expected, rtol=(2e-5, 1e-9), atol=(2e-6, 1e-9))
    assert np.all(np.diff(values) >= -1e-6)


def barrier(t):
    """A cumulative rejection that is steep at 0, as those of wide priors are."""
    return np.log1p(500.0 * t) / 2


def test_ladder_settles_where_all_reject_equally():
    ladder = jnp.asarray(power_ladder(9, 2.0))
    for _ in range(6):
        rejection = jnp.diff(barrier(np.asarray(ladder, dtype=np.float64)))
        ladder = equal_rejection_ladder(ladder, jnp.clip(rejection, 0.0, 1.0))
    rejection = np.diff(barrier(np.asarray(ladder, dtype=np.float64)))
    np.testing.assert_allclose(rejection, rejection.mean(), rtol=0.01)
    assert ladder[0] == 0.0
    assert ladder[-1] == 1.0


@pytest.mark.parametrize("rejection", [0.0, 0.4, 1.0])
def test_equal_rejection_keeps_the_ladder(rejection):
    ladder = jnp.asarray(power_ladder(6, 3.0))
    assert_close(equal_rejection_ladder(ladder, jnp.full(5, rejection)), ladder)


def test_rungs_stay_apart_under_extreme_rejection():
    ladder = jnp.asarray(power_ladder(16, 5.0))
    rejection = jnp.zeros(15).at[0].set(1.0)
    new = equal_rejection_ladder(ladder, rejection)
    assert np.all(np.diff(new) > 0)
    assert new[1] < 0.1 * ladder[1]
    new = equal_rejection_ladder(ladder, jnp.zeros(15).at[-1].set(1.0))
    assert np.all(np.diff(new) > 0)
    assert np.sum(new > ladder[-2]) >= 14


def test_warmup_moves_rungs_to_where_swaps_are_rejected():
    ladder, position = jnp.array([0.0, 0.5, 1.0]), jnp.zeros((3, 1))
    acceptance = jnp.array([0.2, 0.9])
    means = Means.start(position)._replace(swap_acceptance=acceptance)
    tuning = Tuning.start(ladder, 1.0, position)
    new = Rules(100, None, True, True)._renew(tuning, means).temperatures
    assert_close(new, equal_rejection_ladder(ladder, jnp.array([0.8, 0.1])))
    assert new[1] < 0.4


def test_two_rungs_have_nothing_to_learn():
    ladder = jnp.array([0.0, 1.0])
    assert equal_rejection_ladder(ladder, jnp.array([0.7])).tolist() == [0.0, 1.0]
