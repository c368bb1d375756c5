"""The law that a decoder and a likelihood give the data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from numpyro_kaem.likelihoods import AbstractLikelihood

__all__ = ["event_shape_of", "law_of", "mean_of"]

# A batch of this size tells a decoder's batch axis from others.
_PROBE = 3


def law_of(
    outputs: Any, likelihood: Callable | None, event_ndim: int | None
) -> dist.Distribution:
    """Law of the data given what the decoder returns.

    Parameters
    ----------
    outputs
        What the decoder returns.
    likelihood
        Function from it to a distribution; ``None`` if it is one.
    event_ndim
        Number of axes of one datum; ``None`` takes all but the first batch axis.

    Returns
    -------
    Distribution
        Its event axes are those of one datum.

    Raises
    ------
    TypeError
        If the likelihood does not return a distribution, or the decoder does not
        without a likelihood, or does with one.
    """
    is_law = isinstance(outputs, dist.Distribution)
    if likelihood is None:
        if not is_law:
            raise TypeError(
                "decoder must return a NumPyro distribution where likelihood is None, "
                f"got {type(outputs).__name__}; pass a likelihood such as "
                "NormalLikelihood()."
            )
        return outputs
    if is_law:
        raise TypeError(
            "likelihood must be None where the decoder returns a distribution, got "
            f"{type(likelihood).__name__}."
        )
    if isinstance(likelihood, AbstractLikelihood):
        return likelihood(outputs, event_ndim)
    law = likelihood(outputs)
    if not isinstance(law, dist.Distribution):
        raise TypeError(
            f"likelihood must return a NumPyro distribution, got {type(law).__name__}."
        )
    return law


def event_shape_of(
    decoder: Callable, likelihood: Callable | None, num_latents: int
) -> tuple[int, ...]:
    """Shape of one datum, from shapes alone.

    Parameters
    ----------
    decoder, likelihood
        Parts of the model.
    num_latents
        Number ``Q`` of latents that the decoder takes.

    Raises
    ------
    ValueError
        If the decoder does not take the latents, or the law loses the batch axis.
    """
    laws = []

    def probe(z: jax.Array) -> None:
        try:
            outputs = decoder(z)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"decoder must take latents of shape (*batch, {num_latents}), got an "
                f"error for {z.shape}: {error}"
            ) from error
        laws.append(law_of(outputs, likelihood, None))

    shape = (_PROBE, num_latents)
    jax.eval_shape(probe, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))
    law = laws[0]
    if law.batch_shape != (_PROBE,):
        raise ValueError(
            "decoder and likelihood must give a law of batch shape (*batch,) for "
            f"latents of shape (*batch, {num_latents}), got batch shape "
            f"{law.batch_shape} and event shape {law.event_shape} for {shape}; use "
            "to_event for the axes of one datum."
        )
    return law.event_shape


def mean_of(law: dist.Distribution) -> jax.Array:
    """Mean of a law, or probabilities of classes, which have no mean.

    Parameters
    ----------
    law
        Law of batch shape ``batch`` and event shape ``event_shape``.

    Returns
    -------
    Array
        Shape ``(*batch, *event_shape)``; for categorical data with a last axis of the
        classes.
    """
    base = law
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
        return base.probs
    return law.mean
