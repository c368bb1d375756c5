"""The Langevin steps alone: their acceptance, and the distributions that they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from numpyro_kaem.infer import langevin
from numpyro_kaem.infer.langevin import evaluate
from tests.helpers import assert_close

STEPS = [langevin.mala_step, langevin.auto_mala_step, langevin.pcnl_step]
SCALE = np.array([0.5, 2.0])


def log_gamma(z):
    """Log density of the logarithms of two Gamma(3) numbers, up to a constant."""
    return jnp.sum(3.0 * z - jnp.exp(z))


def advance(step, position, step_size, keys, log_density=log_gamma):
    scale = jnp.asarray(SCALE)
    state = jax.vmap(lambda z: evaluate(log_density, z))(position)

    def one(key, state, step_size):
        return step(key, log_density, state, step_size, scale)

    many = jax.jit(jax.vmap(one))
    step_size = np.broadcast_to(step_size, len(position))
    for key in keys:
        state, info = many(jax.random.split(key, len(position)), state, step_size)
    return state, info


def mean_of_mala(z, gradient, step_size):
    return z + 0.5 * step_size**2 * SCALE**2 * gradient, step_size * SCALE


def mean_of_pcnl(z, gradient, step_size):
    centre, ratio = np.array([0.7, -1.3]), 1 / np.sqrt(1 + step_size**2)
    slope = (z - centre) / SCALE**2
    mean = centre + ratio * (z - centre) + (1 - ratio) * SCALE**2 * (gradient + slope)
    return mean, np.sqrt(1 - ratio**2) * SCALE


@pytest.mark.parametrize(
    ("step", "distribution"),
    [(langevin.mala_step, mean_of_mala), (langevin.pcnl_step, mean_of_pcnl)],
)
def test_acceptance_is_that_of_metropolis_and_hastings(step, distribution):
    size, count = 0.7, 200
    start = jnp.asarray(np.random.default_rng(0).normal(0.8, 0.5, (count, 2)))
    state, info = advance(step, start, size, [jax.random.key(0)])
    moved = np.any(np.asarray(state.position != start), axis=-1)
    assert 20 < moved.sum() < count
    old, new = (np.asarray(z, float)[moved] for z in (start, state.position))

    def log_proposal(end, begin):
        mean, sd = distribution(begin, 3.0 - np.exp(begin), size)
        return stats.norm.logpdf(end, mean, sd).sum(-1)

    log_ratio = np.sum(3 * (new - old) - (np.exp(new) - np.exp(old)), axis=-1)
    log_ratio += log_proposal(old, new) - log_proposal(new, old)
    assert np.any(log_ratio < -0.1)
    expected = np.exp(np.minimum(log_ratio, 0.0))
    assert_close(info.acceptance[moved], expected, rtol=(1e-3, 1e-9), atol=(1e-4, 1e-9))


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("step", "step_size"), [*((step, 0.8) for step in STEPS), (langevin.hmc_step, 0.5)]
)
def test_exact_draws_keep_their_distribution(step, step_size):
    """Each chain starts in the target, and so follows it after any number of steps."""
    draws = np.random.default_rng(1).gamma(3.0, size=(100_000, 2))
    keys = jax.random.split(jax.random.key(0), 12)
    start = jnp.asarray(np.log(draws))
    state, info = advance(step, start, step_size, keys)
    position = np.asarray(state.position, float)
    assert np.mean(position != np.asarray(start, float)) > 0.9
    assert 0.05 < np.mean(info.acceptance) < 0.95
    for column in position.T:
        assert stats.kstest(np.exp(column), stats.gamma(3.0).cdf).pvalue > 1e-3
    # The two are independent in the target.
    below = stats.gamma(3.0).cdf(np.exp(position)) < 0.5
    counts = np.bincount(below @ [1, 2], minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_crank_nicolson_is_exact_on_its_reference_at_any_step_size():
    def normal(z):
        return -0.5 * jnp.sum(((z - 1.0) / SCALE) ** 2)

    # 3e38 is next to the largest number in float32.
    step_size = np.repeat(3.0 * 10.0 ** np.array([-20, -3, 0, 20, 37, 38]), 4)
    start = jnp.full((24, 2), 1.3)
    _, info = advance(langevin.pcnl_step, start, step_size, [jax.random.key(0)], normal)
    assert_close(info.acceptance, np.ones(24), rtol=(1e-4, 1e-9))


@pytest.mark.parametrize("step", [*STEPS, langevin.hmc_step])
def test_points_without_a_density_are_refused(step):
    def half(z):
        return jnp.where(jnp.all(z > 0), -jnp.sum(z), jnp.nan)

    start = jnp.full((500, 2), 0.3)
    state, _ = advance(step, start, 1.0, [jax.random.key(0)], half)
    assert np.all(np.asarray(state.position) > 0)
    assert np.all(np.isfinite(np.asarray(state.gradient)))
