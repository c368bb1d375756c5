"""Ladders start at a power law and learn equal rejection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from numpyro_kaem.infer.annealed import Adaptation, Means, Warmup
from numpyro_kaem.infer.ladder import (
    _monotone_interpolation,
    check_ladder,
    equal_rejection_ladder,
    power_ladder,
)
from tests.helpers import assert_close


def test_power_law_and_given_ladder():
    """And those that are refused."""
    for power in (0.5, 1.0, 5.0):
        ladder = power_ladder(7, power)
        assert_close(ladder, (np.arange(7) / 6) ** power)
        assert ladder[0] == 0.0
        assert ladder[-1] == 1.0
    np.testing.assert_array_equal(check_ladder([0, 0.25, 1]), [0.0, 0.25, 1.0])
    for function, arguments, message in (
        (power_ladder, (1,), "num_temperatures must be an integer >= 2, got 1"),
        (power_ladder, (4, 0.0), "power must be a finite number > 0"),
        (power_ladder, (4, np.inf), "power must be a finite number > 0"),
        (power_ladder, (40, 30.0), "power must leave 40 temperatures distinct"),
        (check_ladder, ([1.0],), "at least 2 values"),
        (check_ladder, ([],), "at least 2 values"),
        (check_ladder, ([[0.0, 1.0]],), r"one-dimensional, got .* shape \(1, 2\)"),
        (check_ladder, ([0.1, 0.5, 1.0],), "begin with 0 .* got 0.1 to 1"),
        (check_ladder, ([0.0, 0.5, 0.9],), "end with 1 .* got 0 to 0.9"),
        (check_ladder, ([1.0, 0.5, 0.0],), "begin with 0"),
        (check_ladder, ([0.0, 0.6, 0.5, 1.0],), "increasing .* 0.6 followed by 0.5"),
        (check_ladder, ([0.0, 0.5, 0.5, 1.0],), "increasing"),
        (check_ladder, ([0.0, 0.5, np.nan, 1.0],), "increasing"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    for number in (2.5, True):
        with pytest.raises(TypeError, match="num_temperatures must be an integer"):
            power_ladder(number)


def test_interpolation_is_that_of_scipy():
    interpolate = jax.jit(_monotone_interpolation)
    for size in (2, 3, 4, 12):
        rng = np.random.default_rng(size)
        x = np.cumsum(rng.uniform(0.05, 1.0, size)).astype(np.float32)
        y = np.cumsum(rng.uniform(0.0, 1.0, size) ** 8).astype(np.float32)
        new_x = np.linspace(x[0], x[-1], 101, dtype=np.float32)
        values = interpolate(x, y, new_x)
        expected = PchipInterpolator(x.astype(float), y.astype(float))(
            new_x.astype(float)
        )
        assert_close(values, expected, rtol=(2e-5, 1e-9), atol=(2e-6, 1e-9))
        assert np.all(np.diff(values) >= -1e-6)


def test_ladder_settles_where_all_reject_equally():
    renew = jax.jit(equal_rejection_ladder)

    def rejected(ladder):
        """Differences of a barrier that is steep at 0, as those of wide priors are."""
        return np.diff(np.log1p(500.0 * np.asarray(ladder, dtype=np.float64)) / 2)

    ladder = power_ladder(16, 2.0)
    for _ in range(6):
        ladder = renew(ladder, np.clip(rejected(ladder), 0.0, 1.0))
    rejection = rejected(ladder)
    np.testing.assert_allclose(rejection, rejection.mean(), rtol=0.01)
    assert ladder[0] == 0.0
    assert ladder[-1] == 1.0
    # Equal rejection keeps a ladder, and one of two temperatures has nothing to learn.
    ladder = power_ladder(16, 3.0)
    for rejection in (0.0, 0.4, 1.0):
        assert_close(renew(ladder, np.full(15, rejection)), ladder)
    assert renew(np.array([0.0, 1.0]), np.array([0.7])).tolist() == [0.0, 1.0]
    # Under extreme rejection temperatures move far, and stay apart.
    ladder = power_ladder(16, 5.0)
    new = renew(ladder, np.eye(15)[0])
    assert np.all(np.diff(new) > 0)
    assert new[1] < 0.1 * ladder[1]
    new = renew(ladder, np.eye(15)[-1])
    assert np.all(np.diff(new) > 0)
    assert np.sum(new > ladder[-2]) >= 14


def test_warmup_moves_temperatures_to_where_swaps_are_rejected():
    ladder, position = jnp.array([0.0, 0.5, 1.0]), jnp.zeros((3, 1))
    acceptance = jnp.array([0.2, 0.9])
    means = Means.start(position)._replace(swap_acceptance=acceptance)
    known = Adaptation.start(ladder, 1.0, position)
    new = Warmup(100, None, True, True)._renew(known, means).temperatures
    assert_close(new, equal_rejection_ladder(ladder, jnp.array([0.8, 0.1])))
    assert new[1] < 0.4
