"""Schedules against their formula, in optax and under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numpyro_kaem.training import cyclical_schedule
from tests.helpers import assert_close


def formula(step, period, low, high, power, ramp):
    position = (step % period) / period
    return low + (high - low) * (min(position / ramp, 1.0) ** power)


def test_values():
    for arguments in (
        (8, 0.0, 1.0, 1.0, 0.5),
        (7, -1.0, 3.0, 2.0, 0.8),
        (5, 2.0, 0.5, 0.5, 1.0),
        (1, 0.5, 2.0, 1.0, 0.5),
    ):
        *given, ramp = arguments
        schedule = cyclical_schedule(*given, ramp=ramp)
        steps = np.arange(23)
        expected = np.array([formula(step, *arguments) for step in steps.tolist()])
        assert_close(schedule(steps), expected)
        assert_close(jax.jit(schedule)(3), expected[3])
    # The ends are exact, and late steps are as the first.
    schedule = cyclical_schedule(10, 0.1, 0.7)
    at = np.asarray(schedule(np.array([0, 5, 9, 10])))
    low, high = (at.dtype.type(value) for value in (0.1, 0.7))
    np.testing.assert_array_equal(at, [low, high, high, low])
    late = 2_000_000_000 + np.arange(4, dtype=np.int32)
    np.testing.assert_array_equal(schedule(late), schedule(np.arange(4)))


def test_with_optax():
    schedule = optax.join_schedules(
        [optax.constant_schedule(0.5), cyclical_schedule(4, 1.0, 2.0)], [3]
    )
    assert_close(schedule(jnp.array(2)), 0.5)
    assert_close(schedule(jnp.array(4)), 1.5)
    optimizer = optax.sgd(cyclical_schedule(4, 1.0, 2.0))
    state = optimizer.init(jnp.array(0.0))
    moves = []
    for _ in range(5):
        update, state = optimizer.update(jnp.array(1.0), state)
        moves.append(-float(update))
    assert moves == [1.0, 1.5, 2.0, 2.0, 1.0]


def test_arguments():
    for arguments, error, message in (
        ({"period": 0}, ValueError, "period must be a positive integer, got 0"),
        ({"period": 2.5}, TypeError, "period must be a positive integer, got 2.5"),
        ({"low": np.inf}, ValueError, "low must be finite, got inf"),
        ({"high": np.nan}, ValueError, "high must be finite, got nan"),
        ({"power": 0.0}, ValueError, "power must be a finite number > 0, got 0.0"),
        ({"power": np.inf}, ValueError, "power must be a finite number > 0, got inf"),
        ({"ramp": 0.0}, ValueError, r"ramp must be in \(0, 1\], got 0.0"),
        ({"ramp": 1.5}, ValueError, r"ramp must be in \(0, 1\], got 1.5"),
    ):
        with pytest.raises(error, match=message):
            cyclical_schedule(**{"period": 10} | arguments)
