"""The generative model ``KAEM``: prior, decoder and likelihood as one NumPyro model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro import handlers

from numpyro_kaem._checks import (
    as_count,
    as_flag,
    as_numpy,
    as_real,
    check_function,
    check_key,
    check_name,
)
from numpyro_kaem.distributions import InverseCDFTransform, KAEMPrior
from numpyro_kaem.models.learning import learn_module, learn_prior, with_values
from numpyro_kaem.models.likelihoods import AbstractLikelihood
from numpyro_kaem.references import is_concrete

__all__ = ["KAEM", "as_data", "kart"]

# A batch of this size tells a decoder's batch axis from others.
_PROBE = 3


class KAEM(eqx.Module):
    r"""Generative model with a learned latent prior; calling it is a NumPyro model.

    .. math::

        z_i \sim \pi, \qquad
        x_i \mid z_i \sim p(x \mid \mathrm{decoder}(z_i)), \qquad i = 1, \dots, N.

    With a table of densities :math:`\pi_{q,p}`, the decoder takes the inner sums of
    Kolmogorov and Arnold's representation, :math:`\sum_p z_{q,p}`.

    Parameters
    ----------
    prior
        Distribution of the latents of one datum: any continuous distribution whose
        batch and event shape together are ``(Q,)``, or ``(Q, P)`` for inner sums over
        ``P``.
    decoder
        Equinox module, or function, from latents ``(*batch, Q)`` to the parameters of
        the likelihood, or to a NumPyro distribution of batch shape ``batch``.
    likelihood
        Such as :class:`~numpyro_kaem.NormalLikelihood`, or any function from what the
        decoder returns to a distribution; ``None`` if the decoder returns a
        distribution.
    joint
        ``None`` for latents that follow ``prior``; ``"kart"`` for the ``P`` base
        latents of :func:`numpyro_kaem.kart`, which determine all latents of a table
        ``(2 * P + 1, P)``.
    learn_proportions
        Whether the weights of a mixture prior are learned.
    learn_reference
        Whether the parameters of the reference distributions are learned.

    Raises
    ------
    TypeError
        If ``prior`` is not a continuous distribution, or not a :class:`KAEMPrior` with
        ``joint="kart"``; if ``decoder`` or ``likelihood`` cannot be called, or not
        exactly one of them returns a distribution.
    ValueError
        If the prior has another shape, ``joint`` is another name, the decoder does not
        take the latents, or the distribution of the data loses the batch axis.

    Notes
    -----
    - **Sites**: the plate ``"data"``; the latents ``"z"``, shape ``(N, Q)`` or
      ``(N, Q, P)``, or ``"z_base"``, shape ``(N, P)``, with ``joint="kart"``; the data
      ``"x"``. Parameters are registered under ``"prior"`` (see
      :func:`~numpyro_kaem.learn_prior`), ``"decoder$params"`` and
      ``"likelihood$params"``; Bayesian inference with ``MCMC`` keeps them fixed.
    - The published system draws with ``joint="kart"`` but evaluates the density of
      independent latents. Here these are two models, each drawn as it is evaluated.
    - The leaves of the pytree are those of prior, decoder and likelihood.

    References
    ----------
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.
    Pang, Han, Nijkamp, Zhu and Wu (2020), "Learning latent space energy-based prior
    model", *Advances in Neural Information Processing Systems* 33.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-1.0, 1.0, 8), (2,))
    >>> weights = jnp.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    >>> likelihood = kaem.NormalLikelihood()
    >>> model = kaem.KAEM(kaem.KAEMPrior(energy), lambda z: z @ weights, likelihood)
    >>> x = model.sample(jax.random.key(1), 5)
    >>> x.shape, model.decode(model.latents(jax.random.key(2), 7)).shape
    ((5, 3), (7, 3))
    """

    prior: dist.Distribution
    decoder: Callable
    likelihood: Callable | None
    joint: str | None = eqx.field(static=True)
    learn_proportions: bool = eqx.field(static=True)
    learn_reference: bool = eqx.field(static=True)
    event_shape: tuple[int, ...] = eqx.field(static=True, init=False)
    """Shape of one datum."""

    def __init__(
        self,
        prior: dist.Distribution,
        decoder: Callable,
        likelihood: Callable | None = None,
        *,
        joint: str | None = None,
        learn_proportions: bool = True,
        learn_reference: bool = False,
    ) -> None:
        _check_parts(prior, decoder, likelihood, joint)
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.joint = joint
        self.learn_proportions = as_flag("learn_proportions", learn_proportions)
        self.learn_reference = as_flag("learn_reference", learn_reference)
        self.event_shape = _event_shape(decoder, likelihood, self.num_latents)

    @property
    def num_latents(self) -> int:
        """Number ``Q`` of latents that the decoder takes."""
        return self.prior.shape()[0]

    @property
    def params(self) -> dict[str, Any]:
        """Values of all parameters by the name of their site, as ``SVI`` gives them."""
        with handlers.block(), handlers.trace() as trace:
            self._learned()
        return {name: site["value"] for name, site in trace.items()}

    def __call__(
        self,
        x: ArrayLike | None = None,
        *,
        num_data: int | None = None,
        subsample_size: int | None = None,
    ) -> jax.Array:
        """NumPyro model of the data.

        Parameters
        ----------
        x
            All data, shape ``(num_data, *event_shape)``; ``None`` to draw them.
        num_data
            Number of data if there is no ``x``; by default 1.
        subsample_size
            Number of data in a random subsample, whose log density is scaled to that
            of all data.

        Returns
        -------
        Array
            Data, shape ``(subsample_size or num_data, *event_shape)``.

        Raises
        ------
        TypeError
            If a count is not an integer, or the data are not of the right type.
        ValueError
            If ``num_data`` is not the number of data, ``subsample_size`` is larger, or
            the data are refused by :meth:`check_data`.
        """
        size = as_count("num_data", 1 if num_data is None else num_data)
        if x is not None:
            x = self.check_data(x)
            if num_data is not None and num_data != len(x):
                raise ValueError(
                    f"num_data must be the number of data, {len(x)}, got {num_data}; x "
                    "must be all data, of which the model takes subsamples itself."
                )
            size = len(x)
        if subsample_size is not None:
            subsample_size = as_count("subsample_size", subsample_size)
            if subsample_size > size:
                raise ValueError(
                    f"subsample_size must be at most the number of data, {size}, got "
                    f"{subsample_size}."
                )
        prior, decoder, likelihood = self._learned()
        with numpyro.plate("data", size, subsample_size=subsample_size) as index:
            if self.joint == "kart":
                z = kart("z", prior)
            else:
                z = numpyro.sample("z", prior.to_event(len(prior.batch_shape)))
            if x is not None:
                x = jnp.asarray(x)
                x = x if len(index) == size else x[index]
            given_z = self._given_latents(decoder, likelihood, z)
            return numpyro.sample("x", given_z, obs=x)

    def _learned(self) -> tuple[dist.Distribution, Callable, Callable | None]:
        """Register the parameters, and return prior, decoder and likelihood."""
        prior = learn_prior(
            "prior",
            self.prior,
            learn_proportions=self.learn_proportions,
            learn_reference=self.learn_reference,
        )
        decoder = learn_module("decoder", self.decoder)
        return prior, decoder, learn_module("likelihood", self.likelihood)

    def _given_latents(
        self, decoder: Callable, likelihood: Callable | None, z: jax.Array
    ) -> dist.Distribution:
        """Distribution of the data given latents; those of a table are summed first."""
        if len(self.prior.shape()) == 2:
            z = jnp.sum(z, axis=-1)
        return _distribution(decoder(z), likelihood, len(self.event_shape))

    def check_data(self, x: ArrayLike) -> jax.Array | np.ndarray:
        """Check data, shape ``(num_data, *event_shape)``, and return them.

        The model itself checks concrete data; of traced data only the shape is checked.

        Raises
        ------
        TypeError
            If they are not numbers, or classes are not integers.
        ValueError
            If they have another shape, which might broadcast, there are none, or a
            value is not finite or not in the support of the likelihood.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> import numpyro.distributions as dist
        >>> import numpyro_kaem as kaem
        >>> prior = dist.Normal(jnp.zeros(2), 1.0)
        >>> model = kaem.KAEM(prior, lambda z: z.sum(-1), kaem.NormalLikelihood())
        >>> model.check_data(jnp.ones((10, 1)))
        Traceback (most recent call last):
        ValueError: x must have shape (num_data,), ... got (10, 1).
        """
        x = _check_shape(x, self.event_shape)
        if not isinstance(x, jax.core.Tracer):
            found = []
            z = jax.ShapeDtypeStruct((1, *self.prior.shape()), jnp.result_type(float))
            parts = (self.decoder, self.likelihood)
            jax.eval_shape(lambda z: found.append(self._given_latents(*parts, z)), z)
            _check_values(x, found[0])
        return x

    def sample(self, rng_key: jax.Array, num_samples: int = 1) -> jax.Array:
        """Draw data, shape ``(num_samples, *event_shape)``, by one compiled pass.

        Each new number of draws compiles once.

        Raises
        ------
        TypeError
            If ``rng_key`` is not a random key, or ``num_samples`` not an integer.
        ValueError
            If ``num_samples`` is not positive.
        """
        check_key(rng_key)
        return _draw(self, rng_key, as_count("num_samples", num_samples), "x")

    def latents(self, rng_key: jax.Array, num_samples: int = 1) -> jax.Array:
        """Draw the latents of :meth:`sample` with this key and number of draws.

        Shape ``(num_samples, Q)``, or ``(num_samples, Q, P)`` of a table.
        """
        check_key(rng_key)
        return _draw(self, rng_key, as_count("num_samples", num_samples), "z")

    def conditional(self, z: ArrayLike) -> dist.Distribution:
        """Distribution of data given latents ``(*batch, Q)`` or ``(*batch, Q, P)``.

        Its batch shape is ``batch``, its event shape ``event_shape``.

        Raises
        ------
        ValueError
            If the latents have another shape.
        """
        z, shape = as_real("z", z), self.prior.shape()
        if z.shape[max(z.ndim - len(shape), 0) :] != shape:
            raise ValueError(
                f"z must have shape (..., {', '.join(map(str, shape))}), got {z.shape}."
            )
        return self._given_latents(self.decoder, self.likelihood, z)

    def decode(self, z: ArrayLike) -> jax.Array:
        """Mean of data given latents ``(*batch, Q)`` or ``(*batch, Q, P)``.

        Its shape is ``(*batch, *event_shape)``. Categorical data have no mean: for them
        it is the probabilities, with a last axis of size ``num_classes``.
        """
        given_z = base = self.conditional(z)
        while isinstance(base, dist.Independent):
            base = base.base_dist
        if isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
            return base.probs
        return given_z.mean

    def with_params(self, params: Mapping[str, Any]) -> "KAEM":
        """Model with fitted values of its parameters.

        Parameters
        ----------
        params
            Values by the name of their site, such as ``params`` of a result of
            :meth:`numpyro.infer.SVI.run`. Those of a guide are left out; parts without
            a value keep theirs.

        Raises
        ------
        ValueError
            If no value is one of the model's, a name is like those of the model's
            parameters but is none, or a value has another structure or shape.

        Warns
        -----
        UserWarning
            If a fitted energy is too steep for the panels of its quadrature.
        """
        names = ["prior", "decoder", "likelihood"]
        parts = with_values(self._learned, params, names)
        return dataclasses.replace(self, **dict(zip(names, parts, strict=True)))


def kart(name: str, prior: KAEMPrior) -> jax.Array:
    r"""Sample latents that are functions of few base latents, inside a NumPyro model.

    Kolmogorov and Arnold's theorem writes a continuous function of :math:`P` variables
    with :math:`2P + 1` rows of one-dimensional functions of these. Here the functions
    are quantile functions of learned densities:

    .. math::

        v_p \sim \mathrm{Normal}(0, 1), \qquad
        z_{q,p} = F_{q,p}^{-1}(\Phi(v_p)), \qquad
        p = 1, \dots, P, \quad q = 1, \dots, 2P + 1.

    Parameters
    ----------
    name
        Name of the deterministic site of ``z``. The base latents are the sample site
        ``f"{name}_base"``.
    prior
        The densities, of batch shape ``(2 * P + 1, P)``.

    Returns
    -------
    Array
        ``z``, shape ``(*plates, 2 * P + 1, P)``.

    Raises
    ------
    TypeError
        If ``prior`` is not a :class:`KAEMPrior`.
    ValueError
        If its batch shape is not ``(2 * P + 1, P)``.

    Notes
    -----
    - There are ``P`` latents, not ``(2 * P + 1) * P``. Each ``z[..., q, p]`` alone
      follows ``prior``'s density ``(q, p)``, but a column is a function of one latent,
      so ``z`` has no density on its own space. The model has the density of the base
      latents, and ``prior`` is learned through the likelihood. For independent latents
      sample ``prior.to_event(2)``.
    - A decoder takes the rows, often summed. Where all rows have the same densities it
      gets the same values ``2 * P + 1`` times: start training from energies that
      differ, such as those of :meth:`Energy.init`, not from flat ones.

    References
    ----------
    Kolmogorov (1957), "On the representation of continuous functions of many variables
    by superposition of continuous functions of one variable and addition", *Doklady
    Akademii Nauk SSSR* 114.
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-1.0, 3.0, 8), (5, 2))
    >>> def model():
    ...     with numpyro.plate("data", 10):
    ...         return kaem.kart("z", kaem.KAEMPrior(energy))
    >>> with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
    ...     z = model()
    >>> z.shape, trace["z_base"]["value"].shape
    ((10, 5, 2), (10, 2))
    """
    check_name("name", name)
    transform = InverseCDFTransform(prior, base="normal")
    shape = prior.batch_shape
    if len(shape) != 2 or shape[0] != 2 * shape[1] + 1 or shape[1] == 0:
        raise ValueError(
            "prior must have batch_shape (2 * P + 1, P) for P latents, such as (3, 1) "
            f"or (5, 2), got {shape}; for independent latents sample the prior itself."
        )
    normal = dist.Normal(0.0, 1.0).expand(shape[1:]).to_event(1)
    latent = numpyro.sample(f"{name}_base", normal)
    rows = jnp.broadcast_to(latent[..., None, :], (*latent.shape[:-1], *shape))
    return numpyro.deterministic(name, transform(rows))


@eqx.filter_jit
def _draw(model: KAEM, rng_key: jax.Array, num_samples: int, site: str) -> jax.Array:
    """Value of a site in a run of the model, shape ``(num_samples, ...)``."""
    with handlers.block(), handlers.seed(rng_seed=rng_key), handlers.trace() as trace:
        model(num_data=num_samples)
    return trace[site]["value"]


def _distribution(
    outputs: Any, likelihood: Callable | None, event_ndim: int | None
) -> dist.Distribution:
    """Distribution of the data given what the decoder returns."""
    is_distribution = isinstance(outputs, dist.Distribution)
    if likelihood is None:
        if not is_distribution:
            raise TypeError(
                "decoder must return a NumPyro distribution where likelihood is None, "
                f"got {type(outputs).__name__}; pass a likelihood such as "
                "NormalLikelihood()."
            )
        return outputs
    if is_distribution:
        raise TypeError(
            "likelihood must be None where the decoder returns a distribution, got "
            f"{type(likelihood).__name__}."
        )
    if isinstance(likelihood, AbstractLikelihood):
        return likelihood(outputs, event_ndim)
    given_z = likelihood(outputs)
    if not isinstance(given_z, dist.Distribution):
        raise TypeError(
            "likelihood must return a NumPyro distribution, got "
            f"{type(given_z).__name__}."
        )
    return given_z


# --- checks of the parts, and of data ------------------------------------------------


def _check_parts(prior: Any, decoder: Any, likelihood: Any, joint: str | None) -> None:
    """Check the types of the parts, and the shape of the prior."""
    if not isinstance(prior, dist.Distribution) or prior.support.is_discrete:
        raise TypeError(
            "prior must be a continuous NumPyro distribution, got "
            f"{type(prior).__name__}."
        )
    what = "an Equinox module or a function of the latents"
    check_function("decoder", decoder, what)
    if likelihood is not None:
        what = "such as NormalLikelihood(), a function of what the decoder returns"
        check_function("likelihood", likelihood, f"{what}, or None")
    if joint not in (None, "kart"):
        raise ValueError(f"joint must be None or 'kart', got {joint!r}.")
    if joint == "kart" and not isinstance(prior, KAEMPrior):
        raise TypeError(
            "prior must be a KAEMPrior of batch shape (2 * P + 1, P) with "
            f"joint='kart', got {type(prior).__name__}."
        )
    shape = prior.shape()
    is_table = len(shape) == 2 and shape[0] == 2 * shape[1] + 1
    if len(shape) not in (1, 2) or 0 in shape or (joint and not is_table):
        expected = "(2 * P + 1, P)" if joint else "(Q,) or (Q, P)"
        raise ValueError(
            f"prior must have batch and event shape {expected}, one entry per latent "
            f"of a datum, got {shape}."
        )


def _event_shape(
    decoder: Callable, likelihood: Callable | None, num_latents: int
) -> tuple[int, ...]:
    """Shape of one datum, without computing anything."""
    found = []

    def probe(z: jax.Array) -> None:
        try:
            outputs = decoder(z)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"decoder must take latents of shape (*batch, {num_latents}), got an "
                f"error for {z.shape}: {error}"
            ) from error
        found.append(_distribution(outputs, likelihood, None))

    shape = (_PROBE, num_latents)
    jax.eval_shape(probe, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))
    batch_shape, event_shape = found[0].batch_shape, found[0].event_shape
    if batch_shape != (_PROBE,):
        raise ValueError(
            "decoder and likelihood must give a distribution of batch shape (*batch,) "
            f"for latents of shape (*batch, {num_latents}), got batch shape "
            f"{batch_shape} and event shape {event_shape} for {shape}; use to_event "
            "for the axes of one datum."
        )
    return event_shape


def _check_shape(x: ArrayLike, event_shape: tuple[int, ...]) -> jax.Array | np.ndarray:
    """Check the shape of data, traced or not, and return them as an array."""
    if not isinstance(x, jax.Array):
        x = as_numpy("x", x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"x must be an array of numbers, got dtype {x.dtype}.")
    shape = x.shape
    if shape[1:] != event_shape or len(shape) == 0:
        expected = ", ".join(["num_data", *map(str, event_shape)])
        expected += "" if event_shape else ","
        is_one = shape == event_shape and shape != ()
        hint = " For a single datum pass x[None]." if is_one else ""
        raise ValueError(
            f"x must have shape ({expected}), each datum of the shape that the decoder "
            f"gives, got {shape}.{hint}"
        )
    if x.size == 0:
        raise ValueError(f"x must have at least one datum, got shape {shape}.")
    return x


def _check_values(x: ArrayLike, given_z: dist.Distribution) -> None:
    """Check that concrete data are finite, and in the support of a distribution."""
    x = np.asarray(x)
    if x.dtype.kind == "f" and not np.all(np.isfinite(x)):
        where = _first(~np.isfinite(x))
        raise ValueError(
            f"x must be finite, got {x[where]} at index {where}; leave such data out, "
            "or mask them in a model of your own."
        )
    base = given_z
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
        # It depends on parameters.
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
    """Return data as an array, checked against the model where it is a ``KAEM``."""
    if hasattr(model, "check_data"):
        return jnp.asarray(model.check_data(data))
    return as_real("data", data, or_bool=True)
