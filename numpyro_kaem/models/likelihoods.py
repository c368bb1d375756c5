"""Likelihoods, and the distribution that they and a decoder give the data."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_flag, as_number
from numpyro_kaem.references import is_concrete

__all__ = [
    "AbstractLikelihood",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "NormalLikelihood",
    "as_data",
    "check_shape",
    "check_values",
    "event_shape_of",
    "law_of",
    "mean_of",
]


class AbstractLikelihood(eqx.Module):
    """What a decoder returns, as the law of the data.

    A subclass supplies ``law`` and, where a number of the datum takes several outputs,
    the class attribute ``num_parameter_axes``. Calling one takes outputs of shape
    ``(*batch, *datum)``, and then parameter axes, to a law of batch shape ``batch`` and
    event shape ``datum``.

    Raises
    ------
    ValueError
        When called, if the outputs have fewer axes than a datum.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> from numpyro_kaem.models.likelihoods import AbstractLikelihood
    >>> class PoissonLikelihood(AbstractLikelihood):
    ...     def law(self, outputs):
    ...         return dist.Poisson(jnp.exp(outputs))
    >>> law = PoissonLikelihood()(jnp.zeros((10, 3)))
    >>> law.batch_shape, law.event_shape
    ((10,), (3,))
    """

    num_parameter_axes = 0
    """Number of last axes of the outputs that are parameters of one number."""

    @abc.abstractmethod
    def law(self, outputs: jax.Array) -> dist.Distribution:
        """Independent laws, of the shape of the outputs without parameter axes."""

    def __call__(
        self, outputs: jax.Array, event_ndim: int | None = None
    ) -> dist.Distribution:
        """Law of the data.

        Parameters
        ----------
        outputs
            What the decoder returns, shape ``(*batch, *datum)``, and then parameter
            axes, if there are any.
        event_ndim
            Number of axes of one datum; ``None`` for all but the first axis.

        Returns
        -------
        Distribution
            Of batch shape ``batch`` and event shape ``datum``.

        Raises
        ------
        ValueError
            If the outputs have fewer axes.
        """
        law = self.law(jnp.asarray(outputs))
        ndim = len(law.batch_shape)
        event_ndim = ndim - 1 if event_ndim is None else event_ndim
        event_ndim = as_count("event_ndim", event_ndim, minimum=0)
        if event_ndim > ndim:
            raise ValueError(
                f"outputs must have at least {event_ndim + self.num_parameter_axes} "
                f"axes for data with event_ndim={event_ndim}, got shape "
                f"{jnp.shape(outputs)}."
            )
        return law.to_event(event_ndim)


class NormalLikelihood(AbstractLikelihood):
    r"""Normal noise around what the decoder returns.

    .. math:: x \sim \mathrm{Normal}(\text{outputs}, \sigma), \qquad
              \sigma = \sigma_{\min} + \log(1 + e^{r}) \text{ if it is learned.}

    Parameters
    ----------
    scale
        Standard deviation :math:`\sigma` of the noise, one for all numbers; the initial
        one if it is learned.
    learn_scale
        Whether :math:`r` is a parameter. If not, the scale is static.
    min_scale
        Floor :math:`\sigma_{\min}` of a learned scale.

    Raises
    ------
    ValueError
        If a scale is not positive and finite, or a learned one not above its floor.

    Notes
    -----
    Without a floor a flexible decoder shrinks the noise until it fits single data, and
    the likelihood of new data falls.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.models.likelihoods import NormalLikelihood
    >>> likelihood = NormalLikelihood(0.5, learn_scale=True)
    >>> law = likelihood(jnp.zeros((10, 8, 8)))
    >>> law.batch_shape, law.event_shape, round(float(likelihood.scale), 4)
    ((10,), (8, 8), 0.5)
    """

    raw_scale: jax.Array | None
    """The parameter :math:`r`, shape ``()``, or ``None`` for a fixed scale."""
    fixed_scale: float | None = eqx.field(static=True)
    """The scale, if it is fixed."""
    min_scale: float = eqx.field(static=True)
    """Floor of a learned scale."""

    def __init__(
        self,
        scale: float = 0.1,
        *,
        learn_scale: bool = False,
        min_scale: float = 0.01,
    ) -> None:
        for name, value in (("scale", scale), ("min_scale", min_scale)):
            as_number(name, value, "positive and finite", lambda x: x > 0)
        learn_scale = as_flag("learn_scale", learn_scale)
        if learn_scale and scale <= min_scale:
            raise ValueError(
                f"scale must be above min_scale={min_scale} to be learned, got {scale}."
            )
        self.fixed_scale = None if learn_scale else float(scale)
        self.raw_scale = None
        if learn_scale:
            raw = np.log(np.expm1(float(scale) - float(min_scale)))
            self.raw_scale = jnp.asarray(raw, jnp.result_type(float))
        self.min_scale = float(min_scale)

    @property
    def scale(self) -> jax.Array | float:
        """Standard deviation of the noise."""
        if self.raw_scale is None:
            return self.fixed_scale
        return self.min_scale + jax.nn.softplus(self.raw_scale)

    def law(self, outputs: jax.Array) -> dist.Normal:
        """Laws of numbers around the outputs, of their shape."""
        return dist.Normal(outputs, self.scale)


class BernoulliLikelihood(AbstractLikelihood):
    """Data of zeros and ones, the outputs being log odds, shape ``(*batch, *datum)``.

    Raises
    ------
    ValueError
        When called, if the outputs have fewer axes than a datum.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.models.likelihoods import BernoulliLikelihood
    >>> print(BernoulliLikelihood()(jnp.zeros((1, 3))).mean)
    [[0.5 0.5 0.5]]
    """

    def law(self, outputs: jax.Array) -> dist.Distribution:
        """Bernoulli laws, of the shape of the outputs."""
        return dist.Bernoulli(logits=outputs)


class CategoricalLikelihood(AbstractLikelihood):
    """Data of classes ``0, ..., num_classes - 1``, such as the tokens of a text.

    The outputs are unnormalised log probabilities, the classes along the last axis:
    shape ``(*batch, *datum, num_classes)``.

    Raises
    ------
    ValueError
        When called, if the outputs have fewer axes than a datum and its classes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.models.likelihoods import CategoricalLikelihood
    >>> law = CategoricalLikelihood()(jnp.zeros((10, 16, 100)))
    >>> law.batch_shape, law.event_shape
    ((10,), (16,))
    """

    num_parameter_axes = 1

    def law(self, outputs: jax.Array) -> dist.Distribution:
        """Categorical laws, of the shape of the outputs without the last axis."""
        return dist.Categorical(logits=outputs)


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


def check_shape(x: ArrayLike, event_shape: tuple[int, ...]) -> ArrayLike:
    """Check the shape of data, traced or not, and return them as an array.

    Parameters
    ----------
    x
        Data, shape ``(num_data, *event_shape)``.
    event_shape
        Shape of one datum.

    Raises
    ------
    TypeError
        If the data are not numbers.
    ValueError
        If they have another shape, or there are none.
    """
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"x must be an array of numbers, got dtype {x.dtype}.")
    shape = x.shape
    if shape[1:] != event_shape or len(shape) == 0:
        expected = ", ".join(["num_data", *map(str, event_shape)])
        expected += "" if event_shape else ","
        hint = ""
        if shape == event_shape and shape != ():
            hint = " For a single datum pass x[None]."
        raise ValueError(
            f"x must have shape ({expected}), each datum of the shape that the decoder "
            f"gives, got {shape}.{hint}"
        )
    if x.size == 0:
        raise ValueError(f"x must have at least one datum, got shape {shape}.")
    return x


def check_values(x: ArrayLike, law: dist.Distribution) -> None:
    """Check concrete data: finite, and in the support of their law.

    Parameters
    ----------
    x
        Data of the right shape.
    law
        Their law. Where its support depends on parameters, only finiteness is checked.

    Raises
    ------
    TypeError
        If the classes of a categorical law are not integers.
    ValueError
        If a value is not finite, or not in the support.
    """
    x = np.asarray(x)
    if x.dtype.kind == "f" and not np.all(np.isfinite(x)):
        where = _first(~np.isfinite(x))
        raise ValueError(
            f"x must be finite, got {x[where]} at index {where}; leave such data out, "
            "or mask them in a model of your own."
        )
    base = law
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    is_class = isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs)
    if is_class and x.dtype.kind not in "iu":
        raise TypeError(
            f"x must be integers, the classes of {type(base).__name__}, got dtype "
            f"{x.dtype}."
        )
    support: Any = base.support
    if base.event_dim > 0 or not is_concrete(support):
        return
    inside = np.asarray(support(x))
    if not np.all(inside):
        where = _first(~inside)
        raise ValueError(
            f"x must lie in the support of {type(base).__name__}, {support}, got "
            f"{x[where]} at index {where}."
        )


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])


def as_data(model: Any, data: Any) -> jax.Array:
    """Return data as an array, checked against a ready model.

    Parameters
    ----------
    model, data
        As :func:`~numpyro_kaem.fit` is given them.

    Raises
    ------
    TypeError
        If the data are not an array of numbers.
    ValueError
        If they do not fit the model.
    """
    if hasattr(model, "check_data"):
        return jnp.asarray(model.check_data(data))
    if not isinstance(data, jax.Array):
        try:
            dtype = np.asarray(data).dtype
        except ValueError:
            dtype = np.dtype(object)
        if dtype.kind not in "fiubc":
            raise TypeError(
                "data must be an array of numbers of shape (num_data, ...), got "
                f"{type(data).__name__} of dtype {dtype}."
            )
    return jnp.asarray(data)
