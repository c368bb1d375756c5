"""Likelihoods: the distribution of data, given what a decoder returns."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem._checks import as_count, as_flag, as_number

__all__ = [
    "AbstractLikelihood",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "NormalLikelihood",
]


class AbstractLikelihood(eqx.Module):
    """Distribution of the data, given what a decoder returns.

    A subclass supplies ``distribution`` and, where a number of the datum takes several
    outputs, the class attribute ``num_parameter_axes``. Calling one takes outputs of
    shape ``(*batch, *datum)``, and then parameter axes, to a distribution of batch
    shape ``batch`` and event shape ``datum``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> class PoissonLikelihood(kaem.AbstractLikelihood):
    ...     def distribution(self, outputs):
    ...         return dist.Poisson(jnp.exp(outputs))
    >>> counts = PoissonLikelihood()(jnp.zeros((10, 3)))
    >>> counts.batch_shape, counts.event_shape
    ((10,), (3,))
    """

    num_parameter_axes = 0
    """Number of last axes of the outputs that are parameters of one number."""

    @abc.abstractmethod
    def distribution(self, outputs: jax.Array) -> dist.Distribution:
        """Independent numbers, of the shape of the outputs without parameter axes."""

    def __call__(
        self, outputs: jax.Array, event_ndim: int | None = None
    ) -> dist.Distribution:
        """Distribution of the data, of event shape ``datum``.

        Parameters
        ----------
        outputs
            What the decoder returns, shape ``(*batch, *datum)``, and then parameter
            axes, if there are any.
        event_ndim
            Number of axes of one datum; ``None`` for all but the first axis.

        Raises
        ------
        ValueError
            If the outputs have fewer axes.
        """
        numbers = self.distribution(jnp.asarray(outputs))
        ndim = len(numbers.batch_shape)
        event_ndim = ndim - 1 if event_ndim is None else event_ndim
        event_ndim = as_count("event_ndim", event_ndim, minimum=0)
        if event_ndim > ndim:
            raise ValueError(
                f"outputs must have at least {event_ndim + self.num_parameter_axes} "
                f"axes for data with event_ndim={event_ndim}, got shape "
                f"{jnp.shape(outputs)}."
            )
        return numbers.to_event(event_ndim)


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
        Lower bound :math:`\sigma_{\min}` of a learned scale. Without one a flexible
        decoder shrinks the noise until it fits single data, and the likelihood of new
        data falls.

    Raises
    ------
    ValueError
        If a scale is not positive and finite, or a learned one not above its bound.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> likelihood = kaem.NormalLikelihood(0.5, learn_scale=True)
    >>> images = likelihood(jnp.zeros((10, 8, 8)))
    >>> images.batch_shape, images.event_shape, round(float(likelihood.scale), 4)
    ((10,), (8, 8), 0.5)
    """

    raw_scale: jax.Array | None
    """The parameter :math:`r`, shape ``()``, or ``None`` for a fixed scale."""
    fixed_scale: float | None = eqx.field(static=True)
    """The scale, if it is fixed."""
    min_scale: float = eqx.field(static=True)

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
        if self.fixed_scale is not None:
            return self.fixed_scale
        return self.min_scale + jax.nn.softplus(jnp.asarray(self.raw_scale))

    def distribution(self, outputs: jax.Array) -> dist.Normal:
        """Independent Normal numbers around the outputs, of their shape."""
        return dist.Normal(outputs, self.scale)


class BernoulliLikelihood(AbstractLikelihood):
    """Data of zeros and ones, the outputs being log odds, shape ``(*batch, *datum)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> print(kaem.BernoulliLikelihood()(jnp.zeros((1, 3))).mean)
    [[0.5 0.5 0.5]]
    """

    def distribution(self, outputs: jax.Array) -> dist.Distribution:
        """Independent Bernoulli numbers, of the shape of the outputs."""
        return dist.Bernoulli(logits=outputs)


class CategoricalLikelihood(AbstractLikelihood):
    """Data of classes ``0, ..., num_classes - 1``, such as the tokens of a text.

    The outputs are unnormalised log probabilities, the classes along the last axis:
    shape ``(*batch, *datum, num_classes)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> tokens = kaem.CategoricalLikelihood()(jnp.zeros((10, 16, 100)))
    >>> tokens.batch_shape, tokens.event_shape
    ((10,), (16,))
    """

    num_parameter_axes = 1

    def distribution(self, outputs: jax.Array) -> dist.Distribution:
        """Independent classes, of the shape of the outputs without the last axis."""
        return dist.Categorical(logits=outputs)
