"""Likelihoods: from what a decoder returns to the law of one datum."""

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
