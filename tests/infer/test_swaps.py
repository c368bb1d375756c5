"""Swaps leave the joint distribution invariant, and replicas are tracked."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_kaem.infer.ladder import (
    ReplicaTracker,
    even_odd_permutation,
    swap_probabilities,
)
from tests.helpers import assert_close

LADDER = np.array([0.0, 0.2, 0.5, 1.0])


def ideal_round_trip_rate(rejection):
    """Round trips per iteration if local moves were perfect (Syed et al. 2022)."""
    return 1 / (2 + 2 * jnp.sum(rejection / (1 - rejection), -1))


def test_probability_is_the_ratio_of_the_joint_densities():
    log_likelihood = np.array([0.3, -4.0, -1.0, -1.5])
    expected = []
    for k in range(3):
        swapped = log_likelihood.copy()
        swapped[[k, k + 1]] = swapped[[k + 1, k]]
        ratio = np.exp(LADDER @ swapped - LADDER @ log_likelihood)
        expected.append(min(1.0, ratio))
    probabilities = jax.jit(partial(swap_probabilities, jnp.asarray(LADDER)))
    result = probabilities(log_likelihood)
    assert_close(result, np.array(expected))
    assert 0 < result[1] < 1
    # A likelihood of zero, or none, stays at the prior.
    unlikely = np.array([-np.inf, -3.0, np.nan, 1.0])
    assert probabilities(unlikely).tolist() == [0.0, 0.0, 0.0]
    assert probabilities(np.array([1.0, -np.inf, 0.0, 0.0]))[0] == 1.0


def test_all_pairs_of_one_parity_swap(key):
    for num_temperatures in (2, 3, 6):
        always = jnp.ones(num_temperatures - 1)
        swap = jax.jit(partial(even_odd_permutation, probabilities=always))
        for iteration in (0, 1):
            expected = np.arange(num_temperatures)
            for lower in range(iteration, num_temperatures - 1, 2):
                expected[[lower, lower + 1]] = lower + 1, lower
            np.testing.assert_array_equal(swap(key, iteration), expected)


def test_pairs_swap_as_often_as_they_should(key):
    """Each by its own random number, in each population."""
    probabilities = np.array([0.2, 0.9, 0.5, 0.0, 1.0])
    swap = partial(even_odd_permutation, probabilities=jnp.asarray(probabilities))
    swap = jax.jit(jax.vmap(swap, (0, None)))
    # Pairs that swap at times: two of the even ones, one of the odd ones.
    for parity, num_ways in ((0, 4), (1, 2)):
        permutations = np.asarray(swap(jax.random.split(key, 20_000), parity))
        assert np.all(np.sort(permutations, -1) == np.arange(6))
        swapped = np.mean(permutations[:, :-1] == np.arange(1, 6), 0)
        expected = np.where(np.arange(5) % 2 == parity, probabilities, 0.0)
        np.testing.assert_allclose(swapped, expected, atol=4 * 0.5 / 20_000**0.5)
        assert len(np.unique(permutations, axis=0)) == num_ways


def by_hand(permutations, num_temperatures):
    """Round trips counted replica by replica, from the path of each."""
    at = np.arange(num_temperatures)
    paths = [at]
    for permutation in permutations:
        at = at[permutation]
        paths.append(at)
    trips = 0
    for replica in range(num_temperatures):
        places = [int(np.flatnonzero(row == replica)[0]) for row in paths]
        ends = [place for place in places if place in (0, num_temperatures - 1)]
        turns = [end for i, end in enumerate(ends) if i == 0 or end != ends[i - 1]]
        if turns and turns[0] != 0:
            turns = turns[1:]
        trips += max(0, (len(turns) - 1) // 2)
    return trips


@pytest.mark.parametrize("num_temperatures", [2, 3, 5])
def test_round_trips_of_all_replicas_are_counted(num_temperatures, key):
    @jax.jit
    def follow(keys):
        swap = jax.vmap(even_odd_permutation, (0, 0, None))
        permutations = swap(keys, jnp.arange(400), jnp.full(num_temperatures - 1, 0.7))
        tracker, _ = jax.lax.scan(
            lambda tracker, permutation: (tracker.follow(permutation), None),
            ReplicaTracker.start(num_temperatures),
            permutations,
        )
        return permutations, tracker, tracker.restart()

    permutations, tracker, again = follow(jax.random.split(key, 400))
    trips = by_hand(np.asarray(permutations), num_temperatures)
    assert trips > 10
    assert tracker.round_trips == trips
    assert sorted(tracker.replica.tolist()) == list(range(num_temperatures))
    # A restart keeps the replicas, and forgets their way.
    np.testing.assert_array_equal(again.replica, tracker.replica)
    assert again.round_trips == 0
    np.testing.assert_array_equal(
        again.stage, np.arange(num_temperatures) == int(again.replica[0])
    )


@pytest.mark.long
@pytest.mark.parametrize("acceptance", [0.6, 0.9])
def test_ideal_rate_is_that_of_independent_decisions(acceptance, key):
    """Replicas whose likelihoods are drawn afresh each time decide independently."""
    num_temperatures, num_iterations = 6, 40_000
    probabilities = jnp.full(num_temperatures - 1, acceptance)

    def body(tracker, inputs):
        permutation = even_odd_permutation(*inputs, probabilities)
        return tracker.follow(permutation), None

    inputs = jax.random.split(key, num_iterations), jnp.arange(num_iterations)
    tracker, _ = jax.lax.scan(body, ReplicaTracker.start(num_temperatures), inputs)
    rate = float(tracker.round_trips) / num_iterations
    np.testing.assert_allclose(
        rate, ideal_round_trip_rate(1 - probabilities), rtol=0.05
    )
