"""The search among sorted keys, beside NumPy's."""

import jax
import numpy as np
import pytest

from numpyro_kaem.numerics.cells import find_interval, find_interval_in_rows


def expected(keys, w, num_intervals):
    """Number of inner edges whose key is at most each number, row by row."""
    rows = [
        np.searchsorted(key[1:num_intervals], row, side="right")
        for key, row in zip(keys, w, strict=True)
    ]
    return np.stack(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("num_intervals", [1, 2, 3, 19, 20, 21, 152])
def test_intervals_are_those_of_numpy(num_intervals, dtype):
    rng = np.random.default_rng(num_intervals)
    # Coarse numbers, so that keys repeat and numbers meet them.
    keys = np.sort(rng.integers(-50, 50, (3, num_intervals + 1)), axis=1).astype(dtype)
    w = rng.integers(-55, 55, (3, 400)).astype(dtype)
    truth = expected(keys, w, num_intervals)
    in_rows = jax.jit(find_interval_in_rows, static_argnums=2)(keys, w, num_intervals)
    np.testing.assert_array_equal(in_rows, truth)
    column = np.broadcast_to(np.arange(3)[:, None], w.shape)
    found = jax.jit(find_interval, static_argnums=3)(keys, w, column, num_intervals)
    np.testing.assert_array_equal(found, truth)


def test_any_column_may_be_searched_and_no_number_or_row():
    keys = np.array([[0.0, 1.0, 2.0], [0.0, 0.1, 0.2]])
    w, column = np.array([0.5, 0.5, 1.5]), np.array([0, 1, 0])
    np.testing.assert_array_equal(find_interval(keys, w, column, 2), [0, 1, 1])
    assert find_interval_in_rows(keys[:1], np.zeros((1, 0)), 2).shape == (1, 0)
    assert find_interval_in_rows(keys[:0], np.zeros((0, 5)), 2).shape == (0, 5)
