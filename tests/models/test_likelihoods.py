"""Likelihoods: distributions of a datum, learned noise with a lower bound."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_kaem.models.likelihoods import (
    AbstractLikelihood,
    BernoulliLikelihood,
    CategoricalLikelihood,
    NormalLikelihood,
)
from tests.helpers import assert_close


@pytest.fixture
def outputs():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 4)))


def test_normal(outputs):
    x = outputs + 0.2
    terms = stats.norm.logpdf(np.asarray(x, float), np.asarray(outputs, float), 0.3)
    for event_ndim in (None, 0, 1, 2, 3):
        data = NormalLikelihood(0.3)(outputs, event_ndim)
        ndim = 2 if event_ndim is None else event_ndim
        assert data.event_shape == outputs.shape[3 - ndim :]
        expected = terms.sum(axis=tuple(range(3 - ndim, 3)))
        assert_close(data.log_prob(x), expected, rtol=(1e-4, 1e-10))


def test_discrete_distributions(outputs):
    data = BernoulliLikelihood()(outputs)
    x = (outputs > 0.3).astype(int)
    p = 1 / (1 + np.exp(-np.asarray(outputs, float)))
    expected = np.log(np.where(np.asarray(x) == 1, p, 1 - p)).sum((1, 2))
    assert_close(data.log_prob(x), expected, rtol=(1e-5, 1e-10))

    data = CategoricalLikelihood()(outputs)
    assert (data.batch_shape, data.event_shape) == ((5,), (3,))
    x = np.random.default_rng(1).integers(0, 4, size=(5, 3))
    p = np.exp(np.asarray(outputs, float))
    p = np.take_along_axis(p / p.sum(-1, keepdims=True), x[..., None], -1)[..., 0]
    assert_close(data.log_prob(x), np.log(p).sum(-1), rtol=(1e-5, 1e-10))

    class Poisson(AbstractLikelihood):
        def distribution(self, outputs):
            return dist.Poisson(jnp.exp(outputs))

    assert Poisson()(jnp.zeros((2, 3))).event_shape == (3,)


def test_noise_is_static_or_learned_above_a_bound():
    likelihood = NormalLikelihood(0.3)
    assert jax.tree_util.tree_leaves(likelihood) == []
    assert likelihood.scale == 0.3
    likelihood = NormalLikelihood(0.5, learn_scale=True, min_scale=0.2)
    assert_close(likelihood.scale, 0.5)
    assert len(jax.tree_util.tree_leaves(likelihood)) == 1

    def at(raw):
        changed = eqx.tree_at(lambda m: m.raw_scale, likelihood, jnp.array(raw))
        return float(changed.scale)

    assert 0.2 <= at(-1000.0) < 0.2 + 1e-6
    # Without a limit above.
    assert abs(at(5.0) - (0.2 + np.log1p(np.exp(5.0)))) < 1e-5
    # Data without any error push the noise down.
    gradient = jax.grad(lambda m: m(jnp.zeros((1, 9))).log_prob(0.0).sum())(likelihood)
    assert float(gradient.raw_scale) < 0


def test_bad_input():
    for arguments, match in (
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": np.nan}, "scale must be positive and finite"),
        ({"min_scale": -1.0}, "min_scale must be positive"),
        ({"scale": 0.01, "learn_scale": True}, "scale must be above min_scale=0.01"),
    ):
        with pytest.raises(ValueError, match=match):
            NormalLikelihood(**arguments)
    with pytest.raises(ValueError, match="at least 3 axes for data with event_ndim=2"):
        CategoricalLikelihood()(jnp.zeros((5, 4)), event_ndim=2)
    with pytest.raises(TypeError, match="event_ndim must be an integer"):
        NormalLikelihood()(jnp.zeros((5, 4)), event_ndim=1.0)
