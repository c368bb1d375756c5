"""The sequence decoder: its logits against NumPy, causality, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpy.testing import assert_array_equal
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Trace_ELBO
from scipy import special

from numpyro_kaem.decoders import SequenceDecoder
from tests.distributions.cases import ACTIVATIONS
from tests.helpers import assert_close, random_leaves

Z = np.array([0.4, -1.2])
TOKENS = np.array([4, 0, 2, 2, 1, 3])


@pytest.fixture(scope="module")
def decoder():
    return random_leaves(
        lambda key: SequenceDecoder(
            key, 2, num_tokens=5, length=6, width=12, num_heads=3, num_blocks=2
        ),
        scale=0.4,
    )


def linear(layer, x):
    out = x @ np.asarray(layer.weight, float).T
    return out if layer.bias is None else out + np.asarray(layer.bias, float)


def normalised(layer, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.asarray(layer.weight, float) + np.asarray(layer.bias, float)


def attention(block, x):
    """Position by position, over a list of what it may see."""
    width, heads = x.shape[-1], block.num_heads
    size = width // heads
    query, key, value = np.split(linear(block.query_key_value, x), 3, axis=-1)
    out = np.zeros_like(x)
    for t in range(len(x)):
        seen = slice(max(t + 1 - (block.context or len(x)), 0), t + 1)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = key[seen, part] @ query[t, part] / np.sqrt(size)
            out[t, part] = special.softmax(scores) @ value[seen, part]
    return linear(block.attention_output, out)


def by_numpy(decoder, z, tokens):
    x = np.asarray(decoder.position_embedding, float) + linear(
        decoder.latent_embedding, z
    )
    x[1:] += np.asarray(decoder.token_embedding, float)[tokens[:-1]]
    for block in decoder.blocks:
        x = x + attention(block, normalised(block.attention_norm, x))
        hidden = linear(block.perceptron_input, normalised(block.perceptron_norm, x))
        x = x + linear(block.perceptron_output, ACTIVATIONS["gelu"](hidden))
    return linear(decoder.head, normalised(decoder.norm, x))


def test_logits(decoder):
    assert (decoder.num_latents, decoder.num_tokens, decoder.length) == (2, 5, 6)
    assert len(decoder.blocks) == 2
    logits = decoder.logits(Z, TOKENS)
    assert logits.shape == (6, 5)
    expected = by_numpy(decoder, Z, TOKENS)
    assert_close(logits, expected, rtol=(1e-3, 1e-9), atol=(1e-4, 1e-10))
    # Latents and tokens broadcast.
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 2)))
    tokens = np.random.default_rng(1).integers(0, 5, (4, 6))
    logits = decoder.logits(z, tokens)
    assert logits.shape == (3, 4, 6, 5)
    single = decoder.logits(z[2, 0], tokens[1])
    assert_close(logits[2, 1], single, rtol=(1e-4, 1e-10), atol=(1e-5, 1e-12))
    short = random_leaves(
        lambda key: SequenceDecoder(key, 1, 2, length=1, width=4, num_heads=1)
    )
    shape = jax.eval_shape(short.logits, np.zeros((3, 1)), np.array([1])).shape
    assert shape == (3, 1, 2)


def test_causality(decoder):
    """A position sees the tokens before it, all of them, and no other."""
    logits = np.asarray(decoder.logits(Z, TOKENS))
    for changed in range(6):
        tokens = TOKENS.copy()
        tokens[changed] = (tokens[changed] + 1) % 5
        other = np.asarray(decoder.logits(Z, tokens))
        assert_array_equal(other[: changed + 1], logits[: changed + 1])
        for t in range(changed + 1, 6):
            assert np.max(np.abs(other[t] - logits[t])) > 1e-4
    # The latents are seen everywhere.
    other = np.asarray(decoder.logits(Z + 0.5, TOKENS))
    assert np.all(np.max(np.abs(other - logits), axis=-1) > 1e-4)
    # Two blocks that look back on two positions: the three tokens before.
    decoder = random_leaves(
        lambda key: SequenceDecoder(
            key, 2, 5, 6, width=4, num_heads=2, num_blocks=2, context=2
        )
    )
    logits = np.asarray(decoder.logits(Z, TOKENS))
    expected = by_numpy(decoder, Z, TOKENS)
    assert_close(logits, expected, rtol=(1e-3, 1e-9), atol=(1e-4, 1e-10))
    tokens = TOKENS.copy()
    tokens[1] = 4
    changed = np.max(np.abs(decoder.logits(Z, tokens) - logits), axis=-1) > 0
    assert_array_equal(changed, [False, False, True, True, True, False])


def test_errors(key, decoder):
    for options, error, match in [
        ({"num_tokens": 1}, ValueError, "num_tokens must be an integer >= 2"),
        ({"length": 0}, ValueError, "length must be a positive integer"),
        ({"width": 8.0}, TypeError, "width must be a positive integer"),
        ({"num_heads": 0}, ValueError, "num_heads must be a positive integer"),
        ({"num_blocks": 0}, ValueError, "num_blocks must be a positive integer"),
        ({"context": 0}, ValueError, "context must be a positive integer"),
        ({"width": 10}, ValueError, "num_heads must divide width, got num_heads=4 and"),
    ]:
        with pytest.raises(error, match=match):
            SequenceDecoder(key, 2, **{"num_tokens": 3, "length": 4, **options})
    with pytest.raises(TypeError, match="tokens must be integers, got dtype float"):
        decoder.logits(Z, TOKENS * 1.0)
    with pytest.raises(ValueError, match=r"tokens must have shape \(\.\.\., 6\), got"):
        decoder.logits(Z, TOKENS[:-1])
    with pytest.raises(ValueError, match=r"z must have shape \(\.\.\., 2\)"):
        decoder.logits(np.zeros(3), TOKENS)


@pytest.mark.long
def test_svi_learns_sequences(key):
    """Words that repeat one token: which one is for the latents to say."""
    decoder = SequenceDecoder(key, 2, num_tokens=3, length=4, width=8, num_heads=2)
    words = jnp.asarray(np.repeat(np.arange(3), 8)[:, None] * np.ones((1, 4), int))

    def model(words):
        decode = eqx_module("decoder", decoder)
        with numpyro.plate("words", len(words)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            numpyro.sample("x", decode(z), obs=words)

    def guide(words):
        loc = numpyro.param("loc", jnp.zeros((len(words), 2)))
        scale = numpyro.param("scale", 0.3, constraint=dist.constraints.positive)
        with numpyro.plate("words", len(words)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    svi = SVI(model, guide, optax.adam(0.03), Trace_ELBO())
    result = jax.jit(lambda key: svi.run(key, 200, words, progress_bar=False))(key)
    # A word carries log 3 nats, and at random it would cost 4 log 3.
    loss = np.mean(result.losses[-20:]) / len(words)
    assert loss < 1.6 * np.log(3)
    assert np.mean(result.losses[:5]) / len(words) > 3 * np.log(3)
