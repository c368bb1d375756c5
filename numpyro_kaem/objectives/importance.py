"""Maximum likelihood by importance sampling from the prior."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from numpyro_kaem._checks import as_count, as_flag, as_name, as_number
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.infer.weights import (
    MAX_PARETO_K,
    METHODS,
    effective_sample_size,
    pareto_smooth,
    resample_below,
)
from numpyro_kaem.objectives.base import MaximumLikelihood, Memory

__all__ = ["Degeneracy", "ImportanceMLE"]

# Observed numbers of all particles of a chunk: a likelihood of every particle and unit
# that leaves the caches takes twice as long, though it is computed again in each chunk.
_CHUNK = 1 << 20


class Degeneracy(NamedTuple):
    """Whether draws of the prior represent the posteriors, unit by unit."""

    ess: np.ndarray
    """Effective sample size of each unit, shape ``(num_units,)``."""
    pareto_k: np.ndarray
    """Tail shape of each unit's weights, shape ``(num_units,)``."""
    degenerate: bool
    """Whether most units have a tail shape above 0.7."""
    verdict: str
    """In words."""


class ImportanceMLE(MaximumLikelihood):
    r"""Maximum likelihood with draws of the prior, weighted by the likelihood.

    With proposals :math:`z_s \sim \pi` that all units of a batch share,

    .. math::

        \log \hat p(x) = \log \frac{1}{S} \sum_s p(x \mid z_s), \qquad
        \nabla \log p(x) \approx \sum_s w_s \nabla [\log \pi(z_s) + \log p(x \mid z_s)],
        \qquad w_s = \frac{p(x \mid z_s)}{\sum_r p(x \mid z_r)}.

    It is a NumPyro ``ELBO``, to be used in ``SVI`` as below.

    Parameters
    ----------
    num_particles
        Number :math:`S` of proposals.
    unit_plate
        Name of the plate that makes units independent; it may subsample.
    share_proposals
        Whether all units take the same proposals, so that a batch costs :math:`S` runs
        of the decoder and not :math:`S` per unit. The model must broadcast a value
        over the plate.
    resampling
        ``"multinomial"``, ``"residual"``, ``"systematic"`` or ``"stratified"``: a
        unit's particles are resampled where its effective sample size is below the
        threshold. None keeps the weights, whose gradient is less noisy.
    ess_threshold
        Share of ``num_particles``.
    chunk_size
        How many particles run through the model at once. Memory grows with it, and
        results do not change. None is as many as keep what is computed of the observed
        numbers of a batch within the caches of a CPU.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range, or ``resampling`` is none of these methods; in
        use, if the model has latent or observed sites outside the plate, or none.

    Notes
    -----
    - **Bias**: self-normalised weights bias the gradient by :math:`O(1/S)`; the value
      is low by about half the variance of the mean weight.
    - **Degenerates** within a few effective latents: with twenty, one proposal of
      thousands has all the weight. :meth:`diagnose` tells; the memory of :meth:`guide`
      keeps the mean effective sample size of the last step, as ``"ess"``.
    - A prior without a normalizing constant (:class:`~numpyro_kaem.DeepEnergyPrior`) is
      drawn from approximately, so that the weights are approximate too.

    References
    ----------
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.
    Owen (2013), *Monte Carlo theory, methods and examples*, chapter 9.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import SVI
    >>> from numpyro_kaem.objectives import ImportanceMLE
    >>> def model(x):
    ...     loc = numpyro.param("loc", 0.0)
    ...     with numpyro.plate("data", len(x)):
    ...         z = numpyro.sample("z", dist.Normal(loc, 1.0))
    ...         numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
    >>> objective = ImportanceMLE(num_particles=500)
    >>> optimizer = numpyro.optim.Adam(0.1)
    >>> svi = SVI(model, objective.guide(model), optimizer, loss=objective)
    >>> x = jnp.array([0.5, 1.0, 2.5, 2.0])
    >>> result = svi.run(jax.random.key(0), 200, x, progress_bar=False)
    >>> bool(abs(result.params["loc"] - 1.5) < 0.1)
    True
    """

    def __init__(
        self,
        num_particles: int = 100,
        *,
        unit_plate: str = "data",
        share_proposals: bool = True,
        resampling: str | None = None,
        ess_threshold: float = 0.5,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(unit_plate)
        self.num_particles = as_count("num_particles", num_particles)
        ess_threshold = as_number(
            "ess_threshold", ess_threshold, "in (0, 1]", lambda x: 0 < x <= 1
        )
        if chunk_size is not None:
            chunk_size = min(as_count("chunk_size", chunk_size), num_particles)
        self.share_proposals = as_flag("share_proposals", share_proposals)
        self.resampling = as_name("resampling", resampling, {None: None, **METHODS})
        self.ess_threshold = ess_threshold
        self.chunk_size = chunk_size

    def start(self, rng_key: jax.Array, unit_model: UnitModel) -> Memory:
        """Keep the mean effective sample size of the last batch."""
        return {"ess": jnp.zeros(())}

    def _weigh(
        self, rng_key: jax.Array, unit_model: UnitModel, params: dict[str, Any]
    ) -> tuple[jax.Array, jax.Array]:
        """Log weights, and log prior less its value, ``(num_particles, num_units)``."""

        def weigh(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = unit_model.draw_prior(key, self.share_proposals)
            values = jax.lax.stop_gradient(values)
            log_prior, log_likelihood = unit_model.log_densities_of(values, params)
            return log_likelihood, log_prior - jax.lax.stop_gradient(log_prior)

        keys = jax.random.split(rng_key, self.num_particles)
        chunk_size = self.chunk_size or self._chunk_size(unit_model)
        if chunk_size >= self.num_particles:
            return jax.vmap(weigh)(keys)
        # What a chunk computes is computed again for its gradient, not kept.
        return jax.lax.map(jax.checkpoint(weigh), keys, batch_size=chunk_size)

    def _chunk_size(self, unit_model: UnitModel) -> int:
        """How many particles run at once, where the user leaves it open."""
        size = sum(np.size(values) for values in unit_model.observed.values())
        most = max(1, _CHUNK // max(size, 1))
        if most >= self.num_particles:
            return self.num_particles
        # A smaller last chunk would be compiled by itself.
        whole = (n for n in range(most, most // 2, -1) if self.num_particles % n == 0)
        return next(whole, most)

    def estimate(
        self,
        rng_key: jax.Array,
        unit_model: UnitModel,
        params: dict[str, Any],
        memory: Memory | None,
    ) -> tuple[jax.Array, jax.Array, Memory | None]:
        """Log mean weight, and the weighted score."""
        key_draw, key_resample = jax.random.split(rng_key)
        log_weights, score = self._weigh(key_draw, unit_model, params)
        fixed = jax.lax.stop_gradient(log_weights)
        value = logsumexp(fixed, axis=0) - np.log(self.num_particles)
        # Without any weight there is no direction.
        some = jnp.isfinite(value)
        weights = jnp.where(some, jax.nn.softmax(jnp.where(some, fixed, 0.0), 0), 0.0)
        ess = jnp.where(some, effective_sample_size(fixed), 0.0)
        if self.resampling is not None:
            weights = jnp.where(some, self._resample(key_resample, fixed), 0.0)
        terms = jnp.where(weights > 0, log_weights, 0.0) + score
        surrogate = jnp.mean(jnp.sum(weights * terms, axis=0))
        if memory is not None:
            memory = {"ess": jnp.mean(ess)}
        return jnp.mean(value), surrogate, memory

    def _resample(self, rng_key: jax.Array, log_weights: jax.Array) -> jax.Array:
        """Weights after resampling below the threshold."""
        drawn = resample_below(
            rng_key, log_weights, self.ess_threshold, method=self.resampling
        )
        units = jnp.arange(log_weights.shape[1])
        shares = jnp.exp(drawn.log_weights)
        return jnp.zeros_like(shares).at[drawn.indices, units].add(shares)

    def diagnose(
        self, rng_key: jax.Array, params: dict[str, Any], model: Any, *args: Any
    ) -> Degeneracy:
        """Whether draws of the prior still represent the posteriors of the batch.

        ``params`` are values of the model's parameters, ``args`` its arguments.
        """
        key_model, key_draws = jax.random.split(rng_key)
        unit_model = UnitModel(key_model, params, model, args, {}, self.unit_plate)
        log_weights = np.asarray(self._weigh(key_draws, unit_model, params)[0])
        pareto_k = pareto_smooth(log_weights).pareto_k
        ess = np.asarray(effective_sample_size(log_weights))
        # Too few particles for a tail shape are no help either.
        bad = ~(pareto_k <= MAX_PARETO_K)
        degenerate = bool(bad.mean() > 0.5)
        verdict = (
            f"{bad.mean():.0%} of the units have a Pareto k above {MAX_PARETO_K}; the "
            f"median effective sample size is {np.median(ess):.1f} of "
            f"{self.num_particles}. "
        )
        if degenerate:
            verdict += (
                "The proposals have degenerated: too many latents matter for draws of "
                "the prior. Train with LangevinMLE or ThermodynamicMLE."
            )
        else:
            verdict += "The proposals represent the posteriors."
        return Degeneracy(ess, pareto_k, degenerate, verdict)
