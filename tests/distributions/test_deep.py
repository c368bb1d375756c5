"""Deep energies: density up to a constant, approximate draws, contrast."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_kaem.distributions.deep import DeepEnergyPrior
from tests.helpers import assert_close, random_leaves


class Quadratic(eqx.Module):
    """Energy ``slope * z - z**2 / 2``, summed: a Normal tilted to a Normal."""

    slope: jax.Array

    def __call__(self, z):
        return jnp.sum(self.slope * z - 0.5 * z**2)


def quadratic(slope=(1.5, -0.5), **kwargs):
    return DeepEnergyPrior(Quadratic(jnp.array(slope)), 2, **kwargs)


def tilted_moments(slope, scale):
    """Mean and variance of exp(slope z - z^2 / 2) Normal(z; 0, scale^2)."""
    variance = 1 / (1 + 1 / np.square(scale))
    return variance * np.asarray(slope), np.broadcast_to(variance, np.shape(slope))


def test_log_prob_is_energy_plus_reference():
    z = np.random.default_rng(0).normal(size=(3, 4, 2))
    for scale in (2.0, (0.5, 2.0)):
        expected = np.sum(np.array([1.5, -0.5]) * z - 0.5 * z**2, -1)
        expected += stats.norm.logpdf(z, 0.0, scale).sum(-1)
        actual = quadratic(scale=jnp.array(scale)).log_prob(jnp.asarray(z))
        assert_close(actual, expected, rtol=(1e-5, 1e-12))
    strict = quadratic(validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        strict.log_prob(jnp.array([jnp.nan, 0.0]))


def test_draws_are_near_the_density(key):
    prior = quadratic(scale=2.0, num_steps=300, step_size=0.1)
    draws = np.asarray(prior.sample(key, (4000,)), float)
    mean, variance = tilted_moments([1.5, -0.5], 2.0)
    assert_close(draws.mean(0), mean, rtol=0, atol=0.06)
    assert_close(draws.var(0), variance, rtol=0.1)
    # A flat network leaves the reference, in density and draws.
    prior = DeepEnergyPrior(lambda z: jnp.zeros(1), 3, scale=2.0)
    z = jnp.array([[0.3, -1.0, 4.0]])
    assert_close(prior.log_prob(z), stats.norm.logpdf(z, 0.0, 2.0).sum(-1), rtol=1e-5)
    draws = np.asarray(prior.sample(key, (4000,)), float)
    # Unadjusted Langevin steps of size 0.4 widen a Normal by 1 / (1 - 0.04).
    expected = 2.0 / np.sqrt(1 - 0.2**2)
    assert_close(draws.std(0), np.full(3, expected), rtol=0.04)
    # No derivative goes through draws.
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(p.sample(key, (5,)))))(quadratic())
    assert all(np.all(g == 0) for g in jax.tree_util.tree_leaves(gradient))
    assert not quadratic().has_rsample


def test_contrast_is_the_mean_energy_of_draws(key):
    """And has the gradient of the normaliser."""
    prior = quadratic()
    expected, actual = jax.jit(
        lambda: (
            jnp.mean(prior.energy(prior.sample(key, (50,)))),
            prior.contrast(key, 50),
        )
    )()
    assert_close(actual, expected)
    for count, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="num_samples must be a positive integer"):
            prior.contrast(key, count)
    slope, scale = np.array([1.5, -0.5]), 1.5

    def log_normalizer(slope, scale):
        # The integral of exp(slope z - z^2 / 2) under Normal(0, scale^2).
        precision = 1 + 1 / scale**2
        return np.sum(slope**2 / (2 * precision) - np.log(scale**2 * precision) / 2)

    prior = quadratic(scale=jnp.array(scale), num_steps=300, step_size=0.1)
    gradient = jax.jit(jax.grad(lambda p: p.contrast(key, 20_000)))(prior)
    step = 1e-4
    for axis, unit in enumerate(np.eye(2)):
        up, down = (log_normalizer(slope + s * unit, scale) for s in (step, -step))
        expected = (up - down) / (2 * step)
        assert abs(float(gradient.network.slope[axis]) - expected) < 0.04
    up, down = (log_normalizer(slope, scale + s) for s in (step, -step))
    assert abs(float(gradient.scale) - (up - down) / (2 * step)) < 0.04


def test_shapes_jit_and_pytree(key):
    network = random_leaves(
        lambda key: eqx.nn.MLP(3, "scalar", 8, 2, jax.nn.silu, key=key), scale=0.4
    )
    prior = DeepEnergyPrior(network, 3)
    distribution = prior.expand((4,)).to_event(1)
    assert (distribution.batch_shape, distribution.event_shape) == ((), (4, 3))
    z = jax.jit(lambda distribution, key: distribution.sample(key, (5,)))(
        distribution, key
    )
    assert z.shape == (5, 4, 3)
    assert jax.eval_shape(distribution.log_prob, z).shape == (5,)
    log_prob = jax.jit(lambda p, z: p.log_prob(z))
    expected = log_prob(prior, z)
    assert_close(expected, prior.log_prob(z), rtol=1e-5)
    leaves, treedef = jax.tree_util.tree_flatten(prior)
    assert len(leaves) == 2 * 3 + 1
    copy = jax.tree_util.tree_unflatten(treedef, leaves)
    assert_close(log_prob(copy, z), expected)
    assert hash(treedef) == hash(jax.tree_util.tree_structure(copy))
    # Also of a tree of other things than arrays, as compiling ahead of time makes them.
    shapes = jax.tree_util.tree_map(jax.typeof, prior)
    assert jax.tree_util.tree_structure(shapes) == treedef
    compiled = log_prob.lower(prior, z).compile()
    assert_close(compiled(prior, z), log_prob(prior, z), rtol=1e-6)
    many = jax.vmap(lambda scale: prior.replace(prior.network, scale).log_prob(z[0, 0]))
    assert jax.eval_shape(many, jnp.array([1.0, 2.0])).shape == (2,)
    assert isinstance(prior, dist.Distribution)
    assert "num_steps=60" in repr(prior)
    # The default network is that of the paper.
    for options, width in (({}, 200), ({"width": 8}, 8)):
        network = eqx.filter_eval_shape(
            lambda key, options=options: (
                DeepEnergyPrior.init(key, 4, **options).network
            ),
            key,
        )
        sizes = [layer.out_features for layer in network.layers]
        assert sizes == [width, width, "scalar"]


def test_bad_arguments():
    for arguments, error, match in (
        ({"network": 3}, TypeError, "network must be an Equinox module"),
        ({"dim": 2.0}, TypeError, "dim must be a positive integer"),
        ({"dim": 0}, ValueError, "dim must be a positive integer"),
        ({"num_steps": 0}, ValueError, "num_steps must be a positive integer"),
        ({"step_size": 0.0}, ValueError, "step_size must be a finite number > 0"),
        ({"scale": -1.0}, ValueError, "scale must be positive"),
        ({"scale": np.ones(3)}, ValueError, r"scale must have shape \(\) or \(2,\)"),
        ({"network": lambda z: z}, ValueError, r"to a number.*got \(2,\)"),
    ):
        with pytest.raises(error, match=match):
            DeepEnergyPrior(**({"network": jnp.sum, "dim": 2} | arguments))
