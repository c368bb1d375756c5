"""Chains of conditional densities from samples."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from numpyro_kaem.estimation import autoregressive
from tests.helpers import assert_close
from tests.joint_distributions import DISTRIBUTIONS

GRID = kaem.BSpline([-3.0, 1.0], [5.0, 9.0], num_basis=10)
REFERENCE = dist.Normal(jnp.array([1.0, 5.0]), 2.0)
SHORT = {"num_steps": 150, "batch_size": 64, "width": 16}


def ring_samples(size=400, seed=0):
    return DISTRIBUTIONS["ring"].sample(np.random.default_rng(seed), size)


def marginals(samples, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only the marginals")
        return kaem.fit_density(samples, GRID, REFERENCE, **options)


@pytest.fixture(scope="module")
def ring():
    return kaem.fit_autoregressive(ring_samples(), GRID, REFERENCE, **SHORT)


def test_keeps_dependence(ring):
    test = ring_samples(2000, seed=3)
    independent = float(marginals(ring_samples()).log_prob(test).sum(-1).mean())
    assert float(ring.log_prob(test).mean()) > independent + 0.1
    # The hole of the ring: two modes given the middle, one at the left.
    middle, left = (ring.conditional(1, jnp.array([x])) for x in (1.0, -1.2))
    assert middle.log_prob(5.0) < middle.log_prob(3.0) - 1
    assert left.log_prob(5.0) > left.log_prob(3.0)


def test_core_is_the_density_of_the_object():
    samples = ring_samples(20)
    rng = np.random.default_rng(0)
    flat = kaem.KAEMPrior(kaem.Energy(GRID, jnp.zeros((2, 10))), REFERENCE)
    setting = autoregressive._make_setting(
        GRID, flat._parameters, 2, np.array([1e-6, 1e-4]), 20.0
    )
    conditioner = kaem.MaskedConditioner(jax.random.key(0), 2, 10, width=4)
    # Constants have no coordinate.
    last = 0.3 * rng.normal(size=(4, 2, 10)) * setting.family.design.used
    last = jnp.asarray(last, jnp.zeros(()).dtype)
    object.__setattr__(conditioner, "weights", (*conditioner.weights[:-1], last))
    position = GRID.to_unit(jnp.asarray(samples, jnp.zeros(()).dtype))
    values, coordinates = autoregressive._log_prob(conditioner, setting, position)
    prior = kaem.AutoregressiveKAEMPrior(
        GRID, autoregressive._in_coefficients(setting, conditioner), REFERENCE
    )
    expected = prior.log_prob(samples) - REFERENCE.log_prob(samples).sum(-1)
    assert_close(values, expected, rtol=(1e-3, 1e-8), atol=(1e-3, 1e-8))
    # The roughness of a cubic spline: squared third differences.
    coefficients = np.asarray(prior.conditioner(2 * position - 1), float)
    rough = np.sum(np.diff(coefficients, 3, axis=-1) ** 2, -1) * 7.0**5
    features = GRID.unit_features(jnp.linspace(0.0, 1.0, 2001))
    energies = coefficients @ np.asarray(features, float).T
    expected = (np.array([1e-6, 1e-4]) * rough + 1e-3 * energies.var(-1)) / 20
    penalty = jnp.sum(setting.ridge * coordinates**2, -1)
    assert_close(penalty, expected, rtol=1e-2, atol=1e-6)


@pytest.mark.long
def test_starts_at_the_marginals_and_warns_without_gain():
    samples = np.random.default_rng(0).normal([1.0, 5.0], size=(400, 2))
    with pytest.warns(UserWarning, match="no network was better"):
        prior = kaem.fit_autoregressive(
            samples, GRID, REFERENCE, learning_rate=3.0, **{**SHORT, "num_steps": 10}
        )
    # From the same nine samples in ten.
    z = np.array([[0.5, 4.0], [1.0, 6.0], [2.5, 5.0]])
    expected = marginals(samples).log_prob(z).sum(-1)
    np.testing.assert_allclose(prior.log_prob(z), expected, atol=0.15)
    second = prior.conditional(1, jnp.array([[-1.0], [0.5], [2.0]]))
    assert_close(second.mean, np.repeat(second.mean[:1], 3), rtol=1e-4)


def test_same_key_same_fit(ring):
    samples = ring_samples()
    keys = (jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(7))
    values = [
        kaem.fit_autoregressive(samples, GRID, REFERENCE, rng_key=k, **SHORT).log_prob(
            samples
        )
        for k in keys
    ]
    expected = np.asarray(ring.log_prob(samples))
    assert_close(values[0], expected, rtol=0, atol=0)
    assert_close(values[1], expected, rtol=0, atol=0)
    assert not np.allclose(values[2], expected)


def test_samples_without_weight_do_not_matter(ring):
    samples = ring_samples()
    samples[360:] = [4.0, 8.0]
    weights = np.where(np.arange(400) < 360, 2.0, 0.0)
    prior = kaem.fit_autoregressive(samples, GRID, REFERENCE, weights=weights, **SHORT)
    assert float(prior.log_prob(jnp.array([4.0, 8.0]))) < -5
    test = ring_samples(1000, seed=3)
    gap = prior.log_prob(test).mean() - ring.log_prob(test).mean()
    assert abs(float(gap)) < 0.1


@pytest.mark.long
@pytest.mark.parametrize("support", ["positive", (0.0, 30.0)])
def test_supports_and_one_dimension(support, key):
    samples = np.random.default_rng(0).gamma(3.0, 2.0, size=(300, 1))
    basis = kaem.BSpline(0.0, 30.0, num_basis=10)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no network was better")
        prior = kaem.fit_autoregressive(samples, basis, support=support, **SHORT)
    assert prior.event_shape == (1,)
    draws = prior.sample(key, (1000,))
    assert bool(jnp.all(prior.support(draws)))
    assert abs(float(draws.mean()) - 6.0) < 0.6
    assert np.all(np.isfinite(prior.log_prob(jnp.array([[1e-3], [29.0]]))))


# --- errors --------------------------------------------------------------------------

PAIRS = np.stack([np.arange(12.0), np.arange(12.0) ** 2], axis=-1)


@pytest.mark.parametrize(
    ("samples", "options", "error", "message"),
    [
        (PAIRS[:9], {}, ValueError, "at least 10 .* got 9"),
        (PAIRS, {"weights": [1.0] * 9 + [0.0] * 3}, ValueError, "at least 10 .* got 9"),
        (PAIRS, {"support": (1.0, 200.0)}, ValueError, "outside"),
        (PAIRS, {"penalty": -1.0}, ValueError, "penalty must be"),
        (PAIRS, {"penalty": None}, TypeError, "penalty must be a number"),
        (PAIRS, {"rng_key": 3}, TypeError, "rng_key must be one random key"),
        (PAIRS, {"num_steps": 0}, ValueError, "num_steps must be"),
        (PAIRS, {"batch_size": 1.5}, TypeError, "batch_size must be"),
        (PAIRS, {"learning_rate": 0.0}, ValueError, "learning_rate must be a finite"),
        (PAIRS, {"width": 0}, ValueError, "width must be"),
        (PAIRS, {"depth": 0}, ValueError, "depth must be"),
    ],
)
def test_bad_input(samples, options, error, message):
    with pytest.raises(error, match=message):
        kaem.fit_autoregressive(samples, **options)
