"""Resampling is unbiased, varies as it should, and never chooses what has no weight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from numpyro_kaem.infer import resample_below, resample_indices
from numpyro_kaem.infer.weights import METHODS, effective_sample_size
from tests.helpers import assert_close

WEIGHTS = np.array([0.0, 0.31, 0.02, 0.0, 0.27, 0.0, 0.4, 0.0])
with np.errstate(divide="ignore"):
    LOG_WEIGHTS = jnp.asarray(np.log(WEIGHTS) + 700.0)
NUM_SAMPLES = 13
REPEATS = 20_000


def counts_of(method):
    """How often each particle was chosen, in many repeats."""
    keys = jax.random.split(jax.random.key(3), REPEATS)

    def counts(key):
        indices = resample_indices(key, LOG_WEIGHTS, NUM_SAMPLES, method=method)
        return jnp.bincount(indices, length=WEIGHTS.size)

    return np.asarray(jax.jit(jax.vmap(counts))(keys), np.float64)


def test_counts_have_the_mean_and_variance_of_their_method():
    counts = {method: counts_of(method) for method in METHODS}
    for value in counts.values():
        error = value.std(0, ddof=1) / np.sqrt(REPEATS)
        assert np.all(np.abs(value.mean(0) - NUM_SAMPLES * WEIGHTS) <= 4.5 * error)
        np.testing.assert_array_equal(value.sum(1), NUM_SAMPLES)
        assert np.all(value[:, WEIGHTS == 0] == 0)
    variance = {method: value.var(0, ddof=1) for method, value in counts.items()}
    drawn = WEIGHTS > 0
    exact = NUM_SAMPLES * WEIGHTS * (1 - WEIGHTS)
    # The variance of a sample variance: 4.5 errors, the kurtosis being moderate.
    np.testing.assert_allclose(
        variance["multinomial"][drawn], exact[drawn], rtol=4.5 * np.sqrt(4 / REPEATS)
    )
    whole = np.floor(NUM_SAMPLES * WEIGHTS)
    rest = NUM_SAMPLES * WEIGHTS - whole
    left = NUM_SAMPLES - whole.sum()
    np.testing.assert_allclose(
        variance["residual"][drawn],
        (rest * (1 - rest / left))[drawn],
        rtol=4.5 * np.sqrt(4 / REPEATS),
    )
    # One systematic count is a whole part and a Bernoulli choice.
    np.testing.assert_allclose(
        variance["systematic"], rest * (1 - rest), atol=4.5 * np.sqrt(1 / REPEATS)
    )
    for method in ("residual", "stratified", "systematic"):
        assert np.all(variance[method][drawn] < variance["multinomial"][drawn])


@pytest.mark.parametrize("num_particles", [7, 1000])
def test_equal_weights_and_one_weight(num_particles):
    """Equal ones choose each particle once; a single one is chosen however small."""
    log_weights = np.full((num_particles, 2), -3.0)
    log_weights[:, 1] = np.where(np.arange(num_particles) == 4, -1e4, -np.inf)
    each_once = np.arange(num_particles)
    for method in METHODS:
        choose = jax.jit(partial(resample_indices, method=method))
        equal, single = choose(jax.random.key(1), log_weights).T
        np.testing.assert_array_equal(single, 4)
        if method == "stratified":
            # Up to the rounding of the ends of the shares.
            np.testing.assert_allclose(equal, each_once, atol=1)
        elif method != "multinomial":
            np.testing.assert_array_equal(np.sort(equal), each_once)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_units_are_resampled_independently(make_key):
    log_weights = np.tile(LOG_WEIGHTS[:, None], (1, 3))
    log_weights[:, 1] = np.where(np.arange(WEIGHTS.size) == 2, 0.0, -np.inf)
    indices = resample_indices(make_key(0), log_weights, 500, method="multinomial")
    assert indices.shape == (500, 3)
    np.testing.assert_array_equal(indices[:, 1], 2)
    assert np.mean(indices[:, 0] == indices[:, 2]) < 0.6


def test_only_units_below_the_threshold(key):
    even, uneven = np.array([0.0, 0.1, 0.0, -0.1]), np.array([0.0, 9.0, 0.0, 0.0])
    log_weights = np.stack([even, uneven], axis=1)
    result = resample_below(key, log_weights, 0.5)
    np.testing.assert_array_equal(result.resampled, [False, True])
    np.testing.assert_array_equal(result.indices[:, 0], np.arange(4))
    np.testing.assert_array_equal(result.indices[:, 1], 1)
    assert_close(result.log_weights[:, 0], log_softmax(even))
    assert_close(result.log_weights[:, 1], np.full(4, -np.log(4)))
    alone = resample_below(key, uneven, 1.0)
    assert alone.indices.shape == (4,)
    assert bool(alone.resampled)
    assert not bool(resample_below(key, uneven, 0.0).resampled)
    # Their size; zero where no particle carries weight.
    weights = np.array([[1.0, 0.0, 0.5], [1.0, 0.0, 0.25], [1.0, 0.0, 0.25]])
    with np.errstate(divide="ignore"):
        log_weights = jnp.asarray(np.log(weights) - 90.0)
    assert_close(effective_sample_size(log_weights), np.array([3.0, 0.0, 1 / 0.375]))


def test_bad_input(key):
    for log_weights, options, message in (
        (np.zeros(4), {"method": "best"}, "method must be one of 'multinomial'"),
        (np.zeros(4), {"num_samples": 0}, "num_samples must be a positive integer"),
        (np.zeros((2, 2, 2)), {}, "log_weights must have shape"),
        (np.zeros(0), {}, "log_weights must have shape"),
        (np.array([0.0, np.nan]), {}, "got NaN or inf"),
        (np.array([0.0, np.inf]), {}, "got NaN or inf"),
        (np.full(4, -np.inf), {}, "no particle carries weight"),
        (np.array([[0.0, -np.inf]] * 2), {}, "no particle carries weight in unit 1"),
    ):
        with pytest.raises(ValueError, match=message):
            resample_indices(key, log_weights, **options)
    with pytest.raises(TypeError, match="num_samples must be a positive integer"):
        resample_indices(key, np.zeros(4), 2.5)
    with pytest.raises(ValueError, match="threshold must be within"):
        resample_below(key, np.zeros(3), 1.5)
