"""The ready generative model: prior, decoder and likelihood as one NumPyro model."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro import handlers

from numpyro_kaem._checks import (
    as_count,
    as_flag,
    as_real,
    check_function,
    check_key,
    check_name,
)
from numpyro_kaem.distributions import InverseCDFTransform, KAEMPrior
from numpyro_kaem.models.learning import learn_module, learn_prior, with_values
from numpyro_kaem.models.likelihoods import (
    check_shape,
    check_values,
    event_shape_of,
    law_of,
    mean_of,
)

__all__ = ["KAEM", "check_parts", "kart"]


class KAEM(eqx.Module):
    r"""Generative model with a learned latent prior; calling it is a NumPyro model.

    .. math::

        z_i \sim \pi, \qquad
        x_i \mid z_i \sim p(x \mid \mathrm{decoder}(z_i)), \qquad i = 1, \dots, N.

    With densities :math:`\pi_{q,p}` in a table, the decoder takes the inner sums of
    Kolmogorov and Arnold's form, :math:`\sum_p z_{q,p}`.

    Parameters
    ----------
    prior
        Law of the latents of one datum: any distribution whose batch and event shape
        together are ``(Q,)``, or ``(Q, P)`` for inner sums over ``P``.
    decoder
        Equinox module, or function, from latents ``(*batch, Q)`` to the parameters of
        the likelihood, or to a NumPyro distribution of batch shape ``batch``.
    likelihood
        Such as :class:`~numpyro_kaem.NormalLikelihood`; or any function
        from what the decoder returns to a distribution; ``None`` if the decoder returns
        a distribution.
    joint
        ``None`` for latents that follow ``prior``; ``"kart"`` for the few base latents
        of :func:`numpyro_kaem.kart`, which drive all densities of a table
        ``(2 * P + 1, P)``.
    learn_proportions
        Whether the weights of a mixture prior are learned.
    learn_reference
        Whether the parameters of the reference laws are.

    Raises
    ------
    TypeError
        If ``prior`` is not a continuous distribution, or not a :class:`KAEMPrior` with
        ``joint="kart"``; if ``decoder`` or ``likelihood`` cannot be called; if the
        likelihood does not return a distribution, or the decoder does not without a
        likelihood, or does with one.
    ValueError
        If the prior has another shape, ``joint`` is another name, the decoder does not
        take the latents, or the law of the data loses the batch axis.

    Notes
    -----
    - **Sites**: the plate ``"data"``; the latents ``"z"``, shape ``(N, Q)`` or
      ``(N, Q, P)``, or ``"z_base"``, shape ``(N, P)``, with ``joint="kart"``; the data
      ``"x"``. Parameters are registered under ``"prior"`` (see
      :func:`~numpyro_kaem.learn_prior`), ``"decoder$params"`` and
      ``"likelihood$params"``; Bayesian inference with ``MCMC`` keeps them fixed.
    - The published system draws by ``joint="kart"``, and evaluates densities as if the
      latents were independent. Here each is a law of its own, drawn as evaluated.
    - Leaves of the pytree are those of prior, decoder and likelihood; the rest is
      static.

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
    >>> from numpyro_kaem.models.likelihoods import NormalLikelihood
    >>> from numpyro_kaem import KAEM
    >>> energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-1.0, 1.0, 8), (2,))
    >>> weights = jnp.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    >>> model = KAEM(kaem.KAEMPrior(energy), lambda z: z @ weights, NormalLikelihood())
    >>> x = model.sample(jax.random.key(1), 5)
    >>> x.shape, model.decode(model.latents(jax.random.key(2), 7)).shape
    ((5, 3), (7, 3))
    """

    prior: dist.Distribution
    """Law of the latents of one datum."""
    decoder: Callable
    """From latents to parameters of the likelihood, or a distribution."""
    likelihood: Callable | None
    """From these parameters to a distribution, or ``None``."""
    joint: str | None = eqx.field(static=True)
    """How latents are drawn: ``None`` or ``"kart"``."""
    learn_proportions: bool = eqx.field(static=True)
    """Whether the weights of a mixture are learned."""
    learn_reference: bool = eqx.field(static=True)
    """Whether the parameters of the reference laws are learned."""
    event_shape: tuple[int, ...] = eqx.field(static=True)
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
        check_parts(prior, decoder, likelihood, joint)
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.joint = joint
        self.learn_proportions = as_flag("learn_proportions", learn_proportions)
        self.learn_reference = as_flag("learn_reference", learn_reference)
        self.event_shape = event_shape_of(decoder, likelihood, self.num_latents)

    @property
    def num_latents(self) -> int:
        """Number of latents that the decoder takes."""
        return self.prior.shape()[0]

    @property
    def params(self) -> dict[str, Any]:
        """Values of all parameters by the name of their site, as ``SVI`` gives them."""
        with handlers.block(), handlers.trace() as trace:
            self._learned()
        return {name: site["value"] for name, site in trace.items()}

    # --- the NumPyro model -----------------------------------------------------------

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
            Number of data of a random subsample, over which the log density is scaled
            to all of them.

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
            return numpyro.sample("x", self._law(decoder, likelihood, z), obs=x)

    def _learned(self) -> tuple[dist.Distribution, Callable, Callable | None]:
        prior = learn_prior(
            "prior",
            self.prior,
            learn_proportions=self.learn_proportions,
            learn_reference=self.learn_reference,
        )
        decoder = learn_module("decoder", self.decoder)
        return prior, decoder, learn_module("likelihood", self.likelihood)

    def _law(
        self, decoder: Callable, likelihood: Callable | None, z: jax.Array
    ) -> dist.Distribution:
        """Law of the data given latents, or given inner sums where they are a table."""
        if len(self.prior.shape()) == 2:
            z = jnp.sum(z, axis=-1)
        return law_of(decoder(z), likelihood, len(self.event_shape))

    def check_data(self, x: ArrayLike) -> ArrayLike:
        """Check data before they are used; the model itself does it on concrete data.

        Parameters
        ----------
        x
            Data, shape ``(num_data, *event_shape)``; of traced data only the shape is
            checked.

        Returns
        -------
        Array
            The data.

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
        >>> from numpyro_kaem.models.likelihoods import NormalLikelihood
        >>> from numpyro_kaem import KAEM
        >>> prior = dist.Normal(jnp.zeros(2), 1.0)
        >>> model = KAEM(prior, lambda z: z.sum(-1), NormalLikelihood())
        >>> model.check_data(jnp.ones((10, 1)))
        Traceback (most recent call last):
        ValueError: x must have shape (num_data,), ... got (10, 1).
        """
        x = check_shape(x, self.event_shape)
        if not isinstance(x, jax.core.Tracer):
            laws = []
            z = jax.ShapeDtypeStruct((1, *self.prior.shape()), jnp.result_type(float))
            parts = (self.decoder, self.likelihood)
            jax.eval_shape(lambda z: laws.append(self._law(*parts, z)), z)
            check_values(x, laws[0])
        return x

    # --- draws -----------------------------------------------------------------------

    def sample(self, rng_key: jax.Array, num_samples: int = 1) -> jax.Array:
        """Draw data by one compiled pass.

        Parameters
        ----------
        rng_key
            Random key.
        num_samples
            Number of draws; each new number compiles once.

        Returns
        -------
        Array
            Shape ``(num_samples, *event_shape)``.

        Raises
        ------
        TypeError
            If ``rng_key`` is not a random key, or ``num_samples`` not an integer.
        ValueError
            If it is not positive.
        """
        check_key(rng_key)
        return draw(self, rng_key, as_count("num_samples", num_samples), "x")

    def latents(self, rng_key: jax.Array, num_samples: int = 1) -> jax.Array:
        """Draw latents: shape ``(num_samples, Q)`` or ``(num_samples, Q, P)``.

        They are those of :meth:`sample` with the same key and number.

        Raises
        ------
        TypeError
            If ``rng_key`` is not a random key, or ``num_samples`` not an integer.
        ValueError
            If it is not positive.
        """
        check_key(rng_key)
        return draw(self, rng_key, as_count("num_samples", num_samples), "z")

    def conditional(self, z: ArrayLike) -> dist.Distribution:
        """Law of data given latents ``(*batch, Q)`` or ``(*batch, Q, P)``.

        Returns
        -------
        Distribution
            Of batch shape ``batch`` and event shape ``event_shape``.

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
        return self._law(self.decoder, self.likelihood, z)

    def decode(self, z: ArrayLike) -> jax.Array:
        """Mean of data given latents ``(*batch, Q)`` or ``(*batch, Q, P)``.

        Returns
        -------
        Array
            Shape ``(*batch, *event_shape)``. For categorical data, which have no mean,
            probabilities of shape ``(*batch, *event_shape, num_classes)``.

        Raises
        ------
        ValueError
            If the latents have another shape.
        """
        return mean_of(self.conditional(z))

    def with_params(self, params: Mapping[str, Any]) -> "KAEM":
        """Model with fitted values, as one pytree.

        Parameters
        ----------
        params
            Values by the name of their site, such as ``params`` of a result of
            :meth:`numpyro.infer.SVI.run`. Those of a guide are left out; parts without
            a value keep theirs.

        Returns
        -------
        KAEM
            The fitted model.

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
        parts = with_values(self._learned, params, ["prior", "decoder", "likelihood"])
        return KAEM(
            *parts,
            joint=self.joint,
            learn_proportions=self.learn_proportions,
            learn_reference=self.learn_reference,
        )


@eqx.filter_jit
def draw(model: KAEM, rng_key: jax.Array, num_samples: int, site: str) -> jax.Array:
    """Value of a site in a run of the model, shape ``(num_samples, ...)``."""
    with handlers.block(), handlers.seed(rng_seed=rng_key), handlers.trace() as trace:
        model(num_data=num_samples)
    return trace[site]["value"]


def check_parts(prior: Any, decoder: Any, likelihood: Any, joint: str | None) -> None:
    """Check that the parts are of their kinds, and the shape of the prior.

    Parameters
    ----------
    prior, decoder, likelihood, joint
        As :class:`~numpyro_kaem.KAEM` is given them.

    Raises
    ------
    TypeError
        If ``prior`` is not a continuous distribution, or not a
        :class:`~numpyro_kaem.KAEMPrior` with ``joint="kart"``; if ``decoder`` or
        ``likelihood`` cannot be called.
    ValueError
        If the prior has another shape, or ``joint`` is another name.
    """
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
            f"prior must have batch and event shape {expected}, one law for each "
            f"latent of a datum, got {shape}."
        )


def kart(name: str, prior: KAEMPrior, *, base: str = "normal") -> jax.Array:
    r"""Sample base latents that drive all densities, inside a NumPyro model.

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
        Name of the deterministic site of ``z``. The latents are the sample site
        ``f"{name}_base"``.
    prior
        The densities, of batch shape ``(2 * P + 1, P)``.
    base
        Law of the latents: ``"normal"``, which samplers explore better, or
        ``"uniform"`` on (0, 1).

    Returns
    -------
    Array
        ``z``, shape ``(*plates, 2 * P + 1, P)``.

    Raises
    ------
    TypeError
        If ``prior`` is not a :class:`KAEMPrior`.
    ValueError
        If its batch shape is not ``(2 * P + 1, P)``, or ``base`` is neither law.

    Notes
    -----
    - There are ``P`` latents, not ``(2 * P + 1) * P``. Each ``z[..., q, p]`` alone
      follows ``prior``'s density ``(q, p)``, but a column is a function of one latent.
      So ``z`` has no density on its own space: the log density of the model is that of
      the base, in which ``prior`` does not appear. Its parameters are learned through
      what ``z`` explains. For independent latents sample ``prior.to_event(2)``.
    - A decoder sees the rows, often as their sums. Where all rows have the same
      densities it is told the same ``2 * P + 1`` times: start training from energies
      that differ, such as :meth:`Energy.init` makes, not from flat ones.
    - Inside plates the base gets their shape, whatever their sizes: the prior's own
      shape is never broadcast against a plate.
    - Uniform latents of 0 and 1 are moved inside by less than the spacing of draws.

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
    transform = InverseCDFTransform(prior, base=base)
    shape = prior.batch_shape
    if len(shape) != 2 or shape[0] != 2 * shape[1] + 1 or shape[1] == 0:
        raise ValueError(
            "prior must have batch_shape (2 * P + 1, P) for P latents, such as (3, 1) "
            f"or (5, 2), got {shape}; for independent latents sample the prior itself."
        )
    law = dist.Uniform(0.0, 1.0) if base == "uniform" else dist.Normal(0.0, 1.0)
    latent = numpyro.sample(f"{name}_base", law.expand(shape[1:]).to_event(1))
    if base == "uniform":
        # A uniform draw may be 0, whose quantile may be infinite.
        limits = jnp.finfo(latent.dtype)
        latent = jnp.clip(latent, float(limits.eps) ** 4, 1 - limits.epsneg)
    rows = jnp.broadcast_to(latent[..., None, :], (*latent.shape[:-1], *shape))
    return numpyro.deterministic(name, transform(rows))
