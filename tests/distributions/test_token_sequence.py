"""Sequences of tokens: draws and probabilities agree, as NumPyro expects."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_array_equal
from numpyro import handlers
from numpyro.distributions.batch_util import promote_batch_shape, vmap_over
from numpyro.infer import Predictive, log_likelihood
from scipy import stats

from numpyro_kaem.decoders import SequenceDecoder
from numpyro_kaem.distributions.token_sequence import TokenSequence
from tests.helpers import assert_close, random_leaves

WORDS = np.array(list(itertools.product(range(3), repeat=4)))
Z = np.array([[0.5, -1.0], [2.0, 0.3]])


@pytest.fixture(scope="module")
def decoder():
    return random_leaves(
        lambda key: SequenceDecoder(key, 2, 3, 4, width=8, num_heads=2), scale=0.6
    )


def test_shapes_and_support(decoder):
    """Also when expanded, masked and taken as an event."""
    distribution = decoder(Z)
    assert isinstance(distribution, TokenSequence)
    assert (
        distribution.batch_shape,
        distribution.event_shape,
        distribution.event_dim,
    ) == ((2,), (4,), 1)
    assert distribution.support.is_discrete
    assert distribution.has_enumerate_support is False
    assert_array_equal(
        distribution.support(np.array([[0, 2, 1, 1], [0, 3, 0, 0]])), [True, False]
    )
    for one, value, shape in (
        (distribution, WORDS[5], (2,)),
        (distribution, WORDS[:2], (2,)),
        (distribution, WORDS[:, None], (81, 2)),
        (decoder(Z[0]), WORDS[:6].reshape(3, 2, 4), (3, 2)),
    ):
        assert jax.eval_shape(one.log_prob, value).shape == shape
    draws = jax.eval_shape(
        lambda key: distribution.sample(key, (5, 3)), jax.random.key(0)
    )
    assert draws.shape == (5, 3, 2, 4)
    assert jnp.issubdtype(draws.dtype, jnp.integer)
    assert "TokenSequence(SequenceDecoder, batch_shape=(2,), length=4, num" in repr(
        distribution
    )
    wide = distribution.expand([3, 2])
    assert wide.batch_shape == (3, 2)
    draws = wide.sample(jax.random.key(0))
    assert draws.shape == (3, 2, 4)
    assert not np.array_equal(draws[0], draws[1])
    assert_close(wide.log_prob(draws), distribution.log_prob(draws))
    assert distribution.to_event(1).log_prob(draws).shape == (3,)
    masked = distribution.mask(np.array([True, False])).log_prob(WORDS[7])
    assert float(masked[1]) == 0.0
    assert_close(masked[0], distribution.log_prob(WORDS[7])[0])


def test_draws_have_these_probabilities(decoder):
    """They sum to one, and are products of the conditionals of the decoder."""
    distribution = decoder(Z)
    log_probs = np.asarray(distribution.log_prob(WORDS[:, None]))
    assert_close(np.exp(log_probs).sum(0), np.ones(2), rtol=(1e-5, 1e-12))
    # And they are no trivial distribution.
    assert np.std(log_probs[:, 0]) > 0.2
    assert np.max(np.abs(log_probs[:, 0] - log_probs[:, 1])) > 0.2
    word = np.array([2, 0, 1, 2])
    total = np.zeros(2)
    for t in range(4):
        before = np.concatenate([word[:t], np.zeros(4 - t, int)])
        logits = np.asarray(decoder.logits(Z, before), float)[:, t]
        total += logits[:, word[t]] - np.log(np.exp(logits).sum(-1))
    assert_close(distribution.log_prob(word), total, rtol=(1e-4, 1e-10))
    draws = np.asarray(distribution.sample(jax.random.key(1), (20_000,)))
    expected = np.exp(log_probs.astype(float))
    for row in range(2):
        index = draws[:, row] @ 3 ** np.arange(3, -1, -1)
        counts = np.bincount(index, minlength=81)
        probabilities = expected[:, row] / expected[:, row].sum()
        assert stats.chisquare(counts, 20_000 * probabilities).pvalue > 1e-4
    # Draws of batch members are independent.
    same = decoder(jnp.broadcast_to(Z[0], (2, 2)))
    draws = np.asarray(same.sample(jax.random.key(2), (20_000,)))
    table = np.histogram2d(draws[:, 0, 0], draws[:, 1, 0], bins=3)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_transformations(decoder):
    distribution = decoder(Z)
    expected = distribution.log_prob(WORDS[7])
    leaves, structure = jax.tree.flatten(distribution)
    again = jax.tree.unflatten(structure, leaves)
    assert (again.batch_shape, again.event_shape) == ((2,), (4,))
    assert_array_equal(again.log_prob(WORDS[7]), expected)
    assert_close(
        jax.jit(lambda distribution: distribution.log_prob(WORDS[7]))(distribution),
        expected,
    )
    mapped = jax.vmap(lambda z: decoder(z).log_prob(WORDS[7]))(Z)
    assert_close(mapped, expected, rtol=(1e-4, 1e-10))
    keys, z = jax.random.split(jax.random.key(0), 2), jnp.stack([Z, Z[::-1]])
    draws = jax.vmap(lambda z, key: decoder(z).sample(key, (3,)))(z, keys)
    assert_array_equal(draws[1], decoder(z[1]).sample(keys[1], (3,)))
    copy = pickle.loads(pickle.dumps(distribution))
    assert_array_equal(copy.log_prob(WORDS[7]), expected)
    gradient = jax.grad(lambda z: decoder(z).log_prob(WORDS[7]).sum())(jnp.asarray(Z))
    assert np.all(np.isfinite(gradient) & (gradient != 0))
    assert jax.tree.map(lambda _: 0, distribution).event_shape == (None,)
    # A mapped function that returns the distribution: the decoder is shared.
    z = jnp.stack([Z, Z[::-1], -Z])
    axes = vmap_over(decoder(Z), z=0)
    distribution = jax.vmap(decoder, out_axes=axes)(z)
    distribution = promote_batch_shape(distribution)
    assert distribution.batch_shape == (3, 2)
    expected = decoder(z).log_prob(WORDS[7])
    assert_close(distribution.log_prob(WORDS[7]), expected, rtol=(1e-4, 1e-10))
    once = jax.vmap(
        lambda distribution: distribution.log_prob(WORDS[7]), in_axes=(axes,)
    )(distribution)
    assert_close(once, expected, rtol=(1e-4, 1e-10))


def test_in_a_model(decoder):
    words = jnp.asarray(WORDS[[7, 7, 50]])

    def model(words=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("words", 3):
            numpyro.sample("x", decoder(z), obs=words)

    samples = {"z": jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)))}
    with numpyro.validation_enabled(), handlers.substitute(data={"z": Z[0]}):
        trace = handlers.trace(model).get_trace(words)
    assert trace["x"]["fn"].event_dim == 1
    per_word = log_likelihood(model, samples, words)["x"]
    expected = decoder(samples["z"][:, None]).log_prob(words)
    assert_close(per_word, expected, rtol=(1e-4, 1e-9))
    predicted = Predictive(model, samples)(jax.random.key(1))["x"]
    assert predicted.shape == (20, 3, 4)
    assert np.all((predicted >= 0) & (predicted < 3))


def test_errors(decoder):
    with pytest.raises(
        TypeError, match=r"decoder must have num_latents, .*got function"
    ):
        TokenSequence(lambda z: z, Z)
    for z in (np.zeros((2, 3)), 1.0):
        with pytest.raises(ValueError, match=r"z must have shape \(\.\.\., 2\), got"):
            TokenSequence(decoder, z)
    distribution = decoder(Z)
    with pytest.raises(TypeError, match="value must be integers, got dtype float"):
        distribution.log_prob(WORDS * 1.0)
    with pytest.raises(ValueError, match=r"value must have shape \(\.\.\., 4\), got"):
        distribution.log_prob(WORDS[:, :3])
    with pytest.raises(ValueError, match="z"):
        TokenSequence(decoder, Z * np.nan, validate_args=True)
    strict = TokenSequence(decoder, Z, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        strict.log_prob(np.array([0, 3, 0, 0]))
