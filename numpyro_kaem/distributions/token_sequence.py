"""Sequences of tokens, each given those before it."""

from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape, vmap_over
from numpyro.distributions.util import validate_sample

from numpyro_kaem._checks import as_sample_shape, as_vectors, check_key

__all__ = ["NextTokenLogits", "TokenSequence", "as_tokens"]


@runtime_checkable
class NextTokenLogits(Protocol):
    """What :class:`TokenSequence` asks of a decoder, which must be a pytree."""

    @property
    def num_latents(self) -> int:
        """Number of latents."""

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""

    @property
    def length(self) -> int:
        """Number of tokens in a sequence."""

    def logits(self, z: ArrayLike, tokens: ArrayLike) -> jax.Array:
        """(*batch, num_latents), (*batch, length) -> (*batch, length, num_tokens).

        Position ``t`` must not depend on the tokens from ``t`` on.
        """


class TokenSequence(dist.Distribution):
    r"""Sequence of tokens from an autoregressive decoder, given latents.

    .. math:: p(x \mid z) = \prod_{t=1}^{T} p(x_t \mid x_1, \dots, x_{t-1}, z).

    Parameters
    ----------
    decoder
        A :class:`SequenceDecoder`, or another pytree with ``num_latents``,
        ``num_tokens``, ``length`` and ``logits(z, tokens)``.
    z
        Latents, shape ``(*batch_shape, decoder.num_latents)``.
    validate_args
        Check parameters and values, as NumPyro does.

    Raises
    ------
    TypeError
        If ``decoder`` lacks one of these attributes, or tokens are not integers.
    ValueError
        If the last axis of ``z``, or of tokens, has another size.

    Notes
    -----
    - Values are integers from 0 to ``num_tokens - 1``, event shape ``(length,)``.
    - ``log_prob`` takes one pass over the sequence. ``sample`` takes a pass for each
      token, in a loop that is compiled once, and keeps no values between them.
    - Where :func:`jax.vmap` returns the distribution itself, only ``z`` may be mapped:
      ``out_axes=vmap_over(distribution, z=0)``.

    References
    ----------
    Williams and Zipser (1989), "A learning algorithm for continually running fully
    recurrent neural networks", *Neural Computation* 1(2), on teacher forcing.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> decoder = kaem.SequenceDecoder(jax.random.key(0), 2, num_tokens=3, length=4)
    >>> sequences = kaem.TokenSequence(decoder, jnp.zeros((6, 2)))
    >>> sequences.sample(jax.random.key(1), (5,)).shape
    (5, 6, 4)
    >>> sequences.log_prob(jnp.array([0, 2, 1, 1])).shape
    (6,)
    """

    arg_constraints = {
        "decoder": constraints.dependent(is_discrete=False, event_dim=0),
        "z": constraints.real_vector,
    }
    pytree_data_fields = ("decoder", "z")

    def __init__(
        self,
        decoder: NextTokenLogits,
        z: ArrayLike,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(decoder, NextTokenLogits):
            raise TypeError(
                "decoder must have num_latents, num_tokens, length and logits, as "
                f"numpyro_kaem.SequenceDecoder has, got {type(decoder).__name__}."
            )
        self.decoder = decoder
        self.z = z = as_vectors("z", z, decoder.num_latents)
        super().__init__(z.shape[:-1], (decoder.length,), validate_args=validate_args)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the latents without their last axis."""
        return jnp.shape(self.z)[:-1]

    @property
    def support(self) -> constraints.Constraint:
        """Vectors of integers from 0 to ``num_tokens - 1``."""
        tokens = constraints.integer_interval(0, self.decoder.num_tokens - 1)
        return constraints.independent(tokens, 1)

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """Flatten to decoder and latents; the rest is static."""
        return (self.decoder, self.z), (self._validate_args,)

    @classmethod
    def tree_unflatten(cls, aux_data: tuple, params: tuple) -> "TokenSequence":
        """Inverse of :meth:`tree_flatten`, without checks."""
        new = cls.__new__(cls)
        new.decoder, new.z = params
        (new._validate_args,) = aux_data
        # A tree of something else than arrays, such as axes, has no shape.
        new._event_shape = (getattr(new.decoder, "length", None),)
        return new

    def __repr__(self) -> str:
        return (
            f"TokenSequence({type(self.decoder).__name__}, batch_shape="
            f"{self.batch_shape}, length={self.decoder.length}, num_tokens="
            f"{self.decoder.num_tokens})"
        )

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        """Log probability: (..., length) -> broadcast((...), batch_shape)."""
        value = as_tokens("value", value, self.decoder.length)
        return _log_prob(self.decoder, self.z, value)

    def sample(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Draw token by token, shape ``sample_shape + batch_shape + (length,)``."""
        check_key(key, "key")
        sample_shape = as_sample_shape(sample_shape)
        return _sample(self.decoder, self.z, key, sample_shape)


@jax.jit
def _log_prob(decoder: NextTokenLogits, z: jax.Array, value: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(decoder.logits(z, value), axis=-1)
    value = jnp.broadcast_to(value, log_probs.shape[:-1])[..., None]
    return jnp.sum(jnp.take_along_axis(log_probs, value, axis=-1), axis=(-2, -1))


@partial(jax.jit, static_argnames="sample_shape")
def _sample(
    decoder: NextTokenLogits,
    z: jax.Array,
    key: jax.Array,
    sample_shape: tuple[int, ...],
) -> jax.Array:
    z = jnp.broadcast_to(z, (*sample_shape, *z.shape))

    def step(tokens: jax.Array, position_and_key: tuple) -> tuple:
        position, step_key = position_and_key
        # The tokens still to come are zeros, which this position does not see.
        logits = jnp.take(decoder.logits(z, tokens), position, axis=-2)
        token = jax.random.categorical(step_key, logits).astype(tokens.dtype)
        return tokens.at[..., position].set(token), None

    length = decoder.length
    start = jnp.zeros((*z.shape[:-1], length), jnp.result_type(int))
    steps = (jnp.arange(length), jax.random.split(key, length))
    return jax.lax.scan(step, start, steps)[0]


def as_tokens(name: str, value: Any, length: int) -> jax.Array:
    """Check that tokens are integers of shape ``(..., length)``."""
    value = as_vectors(name, value, length)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {value.dtype}.")
    return value


@vmap_over.register
def _vmap_over_token_sequence(
    sequence: TokenSequence, decoder: Any = None, z: Any = None
) -> TokenSequence:
    return TokenSequence.tree_unflatten((sequence._validate_args,), (decoder, z))


promote_batch_shape.register(TokenSequence, lambda sequence: sequence)
