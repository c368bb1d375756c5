"""An autoregressive transformer over tokens, given latents."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_vectors, check_key
from numpyro_kaem.distributions.token_sequence import TokenSequence, as_tokens

__all__ = ["SequenceDecoder"]


class SequenceDecoder(eqx.Module):
    r"""Autoregressive transformer: latents to a distribution of token sequences.

    .. math:: p(x \mid z) = \prod_{t=1}^{T} p(x_t \mid x_1, \dots, x_{t-1}, z).

    Each position is the sum of the embeddings of the previous token, of the position
    and of the latents; blocks of causal attention and a perceptron follow.

    Parameters
    ----------
    key, num_latents
        Random key, and number of latents.
    num_tokens, length
        Size of the vocabulary, with tokens from 0 to ``num_tokens - 1``; number
        :math:`T` of tokens in a sequence.
    width, num_heads, num_blocks
        Size of the embeddings; number of attention heads, which divides it; number of
        blocks.
    context
        Number of positions that attention sees, the present one included; ``None`` for
        all.

    Raises
    ------
    TypeError
        If a size is not an integer.
    ValueError
        If one is too small, or ``num_heads`` does not divide ``width``.

    Notes
    -----
    - Calling the decoder gives a distribution, so a model reads
      ``numpyro.sample("x", decoder(z), obs=tokens)``.
    - A token depends on the ``num_blocks * (context - 1) + 1`` before it. A decoder
      that sees all of them may ignore the latents ("posterior collapse"); with a short
      context, only the latents carry what reaches further.
    - Layer normalisation comes before attention and before the perceptron.

    References
    ----------
    Vaswani et al. (2017), "Attention is all you need", *Advances in Neural Information
    Processing Systems* 30.
    Chen et al. (2017), "Variational lossy autoencoder", *International Conference on
    Learning Representations*, on short contexts.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> key = jax.random.key(0)
    >>> decoder = kaem.SequenceDecoder(key, num_latents=3, num_tokens=5, length=7)
    >>> sequences = decoder(jnp.zeros((4, 3)))
    >>> tokens = sequences.sample(jax.random.key(1))
    >>> tokens.shape, sequences.log_prob(tokens).shape
    ((4, 7), (4,))
    """

    token_embedding: jax.Array
    position_embedding: jax.Array
    latent_embedding: eqx.nn.Linear
    blocks: tuple["_Block", ...]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(
        self,
        key: jax.Array,
        num_latents: int,
        num_tokens: int,
        length: int,
        *,
        width: int = 64,
        num_heads: int = 4,
        num_blocks: int = 1,
        context: int | None = None,
    ) -> None:
        check_key(key, "key")
        num_latents = as_count("num_latents", num_latents)
        num_tokens = as_count("num_tokens", num_tokens, minimum=2)
        length = as_count("length", length)
        width = as_count("width", width)
        num_heads = as_count("num_heads", num_heads)
        num_blocks = as_count("num_blocks", num_blocks)
        if context is not None:
            context = as_count("context", context)
        if width % num_heads != 0:
            raise ValueError(
                "num_heads must divide width, got "
                f"num_heads={num_heads} and width={width}."
            )
        (
            self.token_embedding,
            self.position_embedding,
            self.latent_embedding,
            self.blocks,
            self.norm,
            self.head,
        ) = _initial(
            key, num_latents, num_tokens, length, width, num_heads, num_blocks, context
        )

    @property
    def num_latents(self) -> int:
        """Number of latents."""
        return int(self.latent_embedding.in_features)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self.token_embedding.shape[-2]

    @property
    def length(self) -> int:
        """Number of tokens in a sequence."""
        return self.position_embedding.shape[-2]

    def __call__(self, z: ArrayLike) -> TokenSequence:
        """Distribution, batch shape ``z.shape[:-1]``, event shape ``(length,)``."""
        return TokenSequence(self, z)

    def logits(self, z: ArrayLike, tokens: ArrayLike) -> jax.Array:
        """Unnormalised log probabilities of each token given ``z`` and those before it.

        ``(*batch, num_latents)`` and ``(*batch, length)``, whose batches broadcast, to
        ``(*batch, length, num_tokens)``.
        """
        z = as_vectors("z", z, self.num_latents, self.token_embedding.dtype)
        tokens = as_tokens("tokens", tokens, self.length)
        batch = jnp.broadcast_shapes(z.shape[:-1], tokens.shape[:-1])
        z = jnp.broadcast_to(z, (*batch, z.shape[-1]))
        tokens = jnp.broadcast_to(tokens, (*batch, self.length))
        size = math.prod(batch)
        logits = _logits(
            self, z.reshape(size, z.shape[-1]), tokens.reshape(size, self.length)
        )
        return logits.reshape(*batch, self.length, self.num_tokens)


class _Block(eqx.Module):
    """Causal attention and a perceptron, each added to its input."""

    attention_norm: eqx.nn.LayerNorm
    query_key_value: eqx.nn.Linear
    attention_output: eqx.nn.Linear
    perceptron_norm: eqx.nn.LayerNorm
    perceptron_input: eqx.nn.Linear
    perceptron_output: eqx.nn.Linear
    num_heads: int = eqx.field(static=True)
    context: int | None = eqx.field(static=True)

    def __init__(
        self, key: jax.Array, width: int, num_heads: int, context: int | None
    ) -> None:
        keys = jax.random.split(key, 4)
        self.attention_norm = eqx.nn.LayerNorm(width)
        # Without offset: attention does not depend on that of the keys.
        self.query_key_value = eqx.nn.Linear(
            width, 3 * width, use_bias=False, key=keys[0]
        )
        self.attention_output = eqx.nn.Linear(width, width, key=keys[1])
        self.perceptron_norm = eqx.nn.LayerNorm(width)
        self.perceptron_input = eqx.nn.Linear(width, 4 * width, key=keys[2])
        self.perceptron_output = eqx.nn.Linear(4 * width, width, key=keys[3])
        self.num_heads = num_heads
        self.context = context

    def __call__(self, x: jax.Array) -> jax.Array:
        """One sequence: (length, width) -> (length, width)."""
        length, width = x.shape
        projected = jax.vmap(self.query_key_value)(jax.vmap(self.attention_norm)(x))
        heads = projected.reshape(length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads[:, 0], heads[:, 1], heads[:, 2]
        # Not by jax.nn.dot_product_attention: its softmax is in float32 always.
        scores = jnp.einsum("tnh,snh->nts", query, key) * query.shape[-1] ** -0.5
        seen = jnp.tril(jnp.ones((length, length), bool))
        if self.context is not None:
            seen = jnp.triu(seen, 1 - self.context)
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        attended = jnp.einsum("nts,snh->tnh", weights, value)
        x = x + jax.vmap(self.attention_output)(attended.reshape(length, width))
        hidden = jax.vmap(self.perceptron_input)(jax.vmap(self.perceptron_norm)(x))
        return x + jax.vmap(self.perceptron_output)(jax.nn.gelu(hidden))


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0))
def _logits(decoder: SequenceDecoder, z: jax.Array, tokens: jax.Array) -> jax.Array:
    """Logits of each sequence, shape ``(num_sequences, length, num_tokens)``."""
    # Nothing precedes the first token; its position says that it is the first.
    before = jnp.take(decoder.token_embedding, tokens[:-1], axis=0, mode="clip")
    x = decoder.position_embedding + decoder.latent_embedding(z)
    x = x + jnp.pad(before, ((1, 0), (0, 0)))
    for block in decoder.blocks:
        x = block(x)
    return jax.vmap(decoder.head)(jax.vmap(decoder.norm)(x))


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6, 7))
def _initial(
    key: jax.Array,
    num_latents: int,
    num_tokens: int,
    length: int,
    width: int,
    num_heads: int,
    num_blocks: int,
    context: int | None,
) -> tuple:
    """Random arrays and modules, in the order of the leaves."""
    keys = jax.random.split(key, 4 + num_blocks)
    return (
        jax.random.normal(keys[0], (num_tokens, width)),
        jax.random.normal(keys[1], (length, width)),
        # The positions have an offset already.
        eqx.nn.Linear(num_latents, width, use_bias=False, key=keys[2]),
        tuple(_Block(block_key, width, num_heads, context) for block_key in keys[4:]),
        eqx.nn.LayerNorm(width),
        eqx.nn.Linear(width, num_tokens, key=keys[3]),
    )
