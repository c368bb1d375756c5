"""Variational maximum likelihood with an encoder."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.module import eqx_module
from numpyro.distributions import biject_to

from numpyro_kaem._checks import as_count, as_positive, check_function, check_name
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.objectives.base import MaximumLikelihood, Memory, along

__all__ = ["AmortisedELBO"]


class AmortisedELBO(MaximumLikelihood):
    r"""Evidence lower bound with an encoder, and a weight of its divergence.

    .. math::

        \mathrm{E}_{q(z \mid x)}[\log p(x \mid z)]
        - \beta\,\mathrm{E}_{q(z \mid x)}[\log q(z \mid x) - \log \pi(z)],

    with :math:`q` Normal in unconstrained space, its mean and log scale from an encoder
    network: a variational autoencoder whose prior may be a KAEM.

    Parameters
    ----------
    encoder
        Equinox module from a batch of data, as the model's observed site gets them, to
        ``(num_units, 2 * dim)``: the means of the unconstrained latent numbers and
        their log scales. It is learned, as NumPyro's module ``"encoder"``.
    observed
        Name of the observed site.
    kl_weight
        Weight :math:`\beta \ge 0`, or a function from the number of the step to it,
        such as :func:`~numpyro_kaem.cyclical_schedule`.
    num_particles
        Draws of :math:`q` per unit.
    unit_plate
        Name of the plate that makes units independent; it may subsample.

    Raises
    ------
    TypeError, ValueError
        If ``encoder`` is not callable, ``kl_weight`` is negative or a number is out of
        its range; in use, as other objectives, or if the encoder's output has
        another shape, or a schedule has no memory to count steps in.

    Notes
    -----
    - Here the draws of :math:`q` are followed by the gradient: they are reparameterised
      and the bound is an expectation over :math:`q`.
    - With :math:`\beta = 1` the value is minus the evidence lower bound.
    - With a :class:`~numpyro_kaem.DeepEnergyPrior` the value lacks its normalizing
      constant.

    References
    ----------
    Kingma and Welling (2014), "Auto-encoding variational Bayes", *International
    Conference on Learning Representations*.
    Fu, Li, Liu, Gao, Celikyilmaz and Carin (2019), "Cyclical annealing schedule: a
    simple approach to mitigating KL vanishing", *NAACL*.

    Examples
    --------
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import SVI
    >>> from numpyro_kaem.objectives import AmortisedELBO
    >>> def model(x):
    ...     loc = numpyro.param("loc", 0.0)
    ...     with numpyro.plate("data", len(x)):
    ...         z = numpyro.sample("z", dist.Normal(loc, 1.0))
    ...         numpyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)
    >>> class Encoder(eqx.Module):
    ...     linear: eqx.nn.Linear
    ...
    ...     def __call__(self, x):
    ...         return jax.vmap(self.linear)(x)
    >>> encoder = Encoder(eqx.nn.Linear(1, 2, key=jax.random.key(1)))
    >>> objective = AmortisedELBO(encoder, num_particles=5)
    >>> optimizer = numpyro.optim.Adam(0.05)
    >>> svi = SVI(model, objective.guide(model), optimizer, loss=objective)
    >>> x = jnp.array([[0.5], [1.0], [2.5], [2.0]])
    >>> result = svi.run(jax.random.key(0), 500, x, progress_bar=False)
    >>> bool(abs(result.params["loc"] - 1.5) < 0.3)
    True
    """

    def __init__(
        self,
        encoder: Callable[[jax.Array], jax.Array],
        *,
        observed: str = "x",
        kl_weight: float | Callable[[jax.Array], jax.Array] = 1.0,
        num_particles: int = 1,
        unit_plate: str = "data",
    ) -> None:
        super().__init__(unit_plate)
        what = "an Equinox module, called with a batch of data"
        check_function("encoder", encoder, what)
        check_name("observed", observed)
        if callable(kl_weight):
            check_function("kl_weight", kl_weight, "a number or a schedule")
        else:
            kl_weight = as_positive("kl_weight", kl_weight, or_zero=True)
        self.encoder = encoder
        self.observed = observed
        self.kl_weight = kl_weight
        self.num_particles = as_count("num_particles", num_particles)

    def start(self, rng_key: jax.Array, unit_model: UnitModel) -> Memory:
        """Count the steps, for a schedule."""
        return {"step": jnp.array(0)}

    def guide(self, model: Callable) -> Callable:
        """Guide that draws the latent sites of a model from the encoder's Normal."""
        remember = super().guide(model)

        def guide(*args: Any, **kwargs: Any) -> None:
            if callable(self.kl_weight):
                remember(*args, **kwargs)
            encoder = eqx_module("encoder", self.encoder)
            rng_key = numpyro.prng_key()
            rng_key = jax.random.key(0) if rng_key is None else rng_key
            with handlers.block():
                whole = UnitModel(rng_key, {}, model, args, kwargs, self.unit_plate)
            plate = numpyro.plate(
                self.unit_plate, whole.num_data, subsample_size=whole.num_units
            )
            with plate as index:
                given = {self.unit_plate: index}
                with handlers.block():
                    batch = UnitModel(
                        rng_key, given, model, args, kwargs, self.unit_plate
                    )
                    loc, log_scale = self._encode(encoder, batch)
                for name, site in batch.latent.items():
                    part = slice(site.offset, site.offset + site.size)
                    shape = (batch.num_units, *site.shape)
                    base = dist.Normal(
                        loc[:, part].reshape(shape),
                        jnp.exp(log_scale[:, part]).reshape(shape),
                    ).to_event(len(site.shape))
                    bijection = biject_to(site.support)
                    numpyro.sample(name, dist.TransformedDistribution(base, bijection))

        return guide

    def learned_encoder(self, params: dict[str, Any]) -> Callable:
        """Return the encoder with values of its parameters."""
        return eqx.combine(params["encoder$params"], self.encoder)

    def draw(
        self, rng_key: jax.Array, unit_model: UnitModel, params: dict[str, Any]
    ) -> jax.Array:
        """Draw unconstrained latent values of each unit, ``(num_units, dim)``."""
        loc, log_scale = self._encode(self.learned_encoder(params), unit_model)
        return loc + jnp.exp(log_scale) * jax.random.normal(rng_key, loc.shape)

    def _encode(
        self, encoder: Callable, unit_model: UnitModel
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and log scale of unconstrained latent values, ``(num_units, dim)``."""
        if self.observed not in unit_model.observed:
            raise ValueError(
                "observed must name an observed site of the model, which are "
                f"{sorted(unit_model.observed)}, got {self.observed!r}."
            )
        for name, site in unit_model.latent.items():
            if len(site.shape) != biject_to(site.support).domain.event_dim:
                raise ValueError(
                    "model must have latent sites with no plate but "
                    f"{self.unit_plate!r}, got {name!r} in another."
                )
        output = encoder(unit_model.observed[self.observed])
        expected = (unit_model.num_units, 2 * unit_model.dim)
        if jnp.shape(output) != expected:
            raise ValueError(
                f"encoder must give the shape {expected}, a mean and a log scale for "
                f"each of {unit_model.dim} latent numbers, got {jnp.shape(output)}."
            )
        loc, log_scale = jnp.split(output, 2, axis=-1)
        return loc, log_scale

    def estimate(
        self,
        rng_key: jax.Array,
        unit_model: UnitModel,
        params: dict[str, Any],
        memory: Memory | None,
    ) -> tuple[jax.Array, jax.Array, Memory | None]:
        """Bound at draws of the encoder's distribution."""
        weight: float | jax.Array | Callable = self.kl_weight
        if callable(weight):
            if memory is None:
                raise ValueError(
                    "guide must be that of AmortisedELBO.guide(model), which counts "
                    "the steps of the schedule kl_weight."
                )
            weight = weight(memory["step"])
        if "encoder$params" not in params:
            raise ValueError(
                "guide must be that of AmortisedELBO.guide(model), which holds the "
                "encoder."
            )
        encoder = self.learned_encoder(params)
        loc, log_scale = self._encode(encoder, unit_model)

        def bound(key: jax.Array) -> jax.Array:
            noise = jax.random.normal(key, loc.shape, loc.dtype)
            position = loc + jnp.exp(log_scale) * noise
            log_prior, log_likelihood = unit_model.log_densities(position, params)
            log_guide = dist.Normal(0.0, 1.0).log_prob(noise) - log_scale
            return log_likelihood - weight * (log_guide.sum(-1) - log_prior)

        keys = jax.random.split(rng_key, self.num_particles)
        value = jnp.mean(along(0, bound)(keys))
        if memory is not None:
            memory = {"step": memory["step"] + 1}
        return value, value, memory
