"""Priors that are fitted to draws of the posteriors, not by gradient."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem.autoregressive_estimation import fit_autoregressive
from numpyro_kaem.distributions import AutoregressiveKAEMPrior, KAEMPrior
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation import fit_density
from numpyro_kaem.mixture_estimation import fit_mixture
from numpyro_kaem.objectives.occasions import Occasions

__all__ = ["PriorRefit", "refit_prior"]

_MIXTURE_STEPS = 20


@dataclass(frozen=True)
class PriorRefit(Occasions):
    """When :func:`~numpyro_kaem.fit` refits the prior to its chains.

    Until ``start`` the prior is as it is given: with flat energies, its reference. Its
    parameters are never trained by gradient.

    Parameters
    ----------
    start
        Step of the first refit.
    every
        Number of steps from one to the next.
    stop
        Step after which there is none; None goes on to the end.
    options
        For the function that fits, see :func:`refit_prior`. A mixture takes 20
        iterations, unless ``max_steps`` says otherwise.

    Raises
    ------
    TypeError, ValueError
        If a number is not a positive integer.

    Examples
    --------
    >>> import numpyro_kaem as kaem
    >>> refit = kaem.PriorRefit(start=200, every=50, options={"penalty": 0.1})
    >>> [step for step in range(400) if refit.is_due(step)]
    [200, 250, 300, 350]
    """

    options: dict[str, Any] = field(default_factory=dict)
    """For :func:`refit_prior`."""

    def fit(
        self, prior: dist.Distribution, draws: np.ndarray, rng_key: jax.Array
    ) -> dist.Distribution:
        """Refit a prior: :func:`refit_prior` with the options."""
        options = dict(self.options)
        if isinstance(prior, dist.MixtureSameFamily):
            options.setdefault("max_steps", _MIXTURE_STEPS)
        with warnings.catch_warnings():
            # The next refit goes on.
            warnings.filterwarnings("ignore", message="the fit stopped after max_steps")
            return refit_prior(prior, draws, rng_key=rng_key, **options)


def refit_prior(
    prior: dist.Distribution,
    draws: ArrayLike,
    *,
    rng_key: jax.Array | None = None,
    **options: Any,
) -> dist.Distribution:
    """Fit a prior of the same form, bases and references to draws of the latents.

    With draws of each datum's posterior this is the exact maximisation step of the
    prior: for a decoder that was trained with another prior, a variational
    autoencoder's too, it makes generated data like the training data.

    Parameters
    ----------
    prior
        A :class:`KAEMPrior` of batch shape ``(dim,)``, a ``MixtureSameFamily`` of such,
        or an :class:`AutoregressiveKAEMPrior`; also with ``to_event``.
    draws
        Latent values, shape ``(num_draws, dim)``.
    rng_key
        Random key of the start of a mixture and of an autoregressive fit.
    options
        For :func:`fit_density`, :func:`fit_mixture` or :func:`fit_autoregressive`.

    Returns
    -------
    Distribution
        Of the same class and shapes.

    Raises
    ------
    TypeError
        If ``prior`` is of none of these forms.
    ValueError
        If the draws have another shape, or as the function that fits.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.BSpline(-3.0, 4.0, 12), jnp.zeros((2, 12)))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    >>> draws = 0.5 + 0.7 * jax.random.normal(jax.random.key(0), (5000, 2))
    >>> refitted = kaem.refit_prior(prior, draws)
    >>> print(refitted.mean.round(1))
    [0.5 0.5]
    """
    law, num_events = prior, 0
    while isinstance(law, dist.Independent):
        law, num_events = law.base_dist, num_events + law.reinterpreted_batch_ndims
    draws = np.asarray(draws)
    shape = prior.shape()
    if draws.ndim != 2 or draws.shape[1:] != shape:
        expected = f"(num_draws, {', '.join(map(str, shape))})"
        raise ValueError(
            f"draws must have shape {expected}, those of the prior, got {draws.shape}."
        )
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    if isinstance(law, KAEMPrior):
        fitted = _fit_independent(law, draws, options)
    elif isinstance(law, dist.MixtureSameFamily):
        fitted = _fit_mixture(law, draws, rng_key, options)
    elif isinstance(law, AutoregressiveKAEMPrior):
        fitted = _fit_autoregressive(law, draws, rng_key, options)
    else:
        raise TypeError(
            "prior must be a KAEMPrior, a MixtureSameFamily of it or an "
            f"AutoregressiveKAEMPrior, got {type(law).__name__}."
        )
    return fitted.to_event(num_events) if num_events else fitted


def _with_coefficients(prior: KAEMPrior, fitted: KAEMPrior) -> KAEMPrior:
    """Prior with the energy of another, of the same structure; nothing cached."""
    (energy, parameters), aux = prior.tree_flatten()
    coefficients = jnp.broadcast_to(
        fitted.energy.coefficients, energy.coefficients.shape
    ).astype(energy.coefficients.dtype)
    base = energy.base_weight
    base = None if base is None else jnp.zeros_like(base)
    energy = Energy(energy.basis, coefficients, base, energy.base_activation)
    return KAEMPrior.tree_unflatten(aux, (energy, parameters))


def _reference(prior: KAEMPrior) -> dist.Distribution | None:
    return None if prior.tree_flatten()[0][1] is None else prior.reference


def _fit_independent(
    prior: KAEMPrior, draws: np.ndarray, options: dict[str, Any]
) -> KAEMPrior:
    with warnings.catch_warnings():
        # That of the user's choice of independent latents.
        warnings.filterwarnings("ignore", message="only the marginals are kept")
        fitted = fit_density(draws, prior.energy.basis, _reference(prior), **options)
    return _with_coefficients(prior, fitted)


def _fit_mixture(
    law: dist.MixtureSameFamily,
    draws: np.ndarray,
    rng_key: jax.Array,
    options: dict[str, Any],
) -> dist.MixtureSameFamily:
    component = law.component_distribution
    prior = component
    while isinstance(prior, dist.Independent):
        prior = prior.base_dist
    if not isinstance(prior, KAEMPrior):
        raise TypeError(
            f"prior must be a mixture of KAEMPrior, got one of {type(prior).__name__}."
        )
    mixing = law.mixing_distribution
    num_components = mixing.probs.shape[-1]
    fitted = fit_mixture(
        draws,
        num_components,
        prior.energy.basis,
        _reference(prior),
        rng_key=rng_key,
        **options,
    )
    new = _with_coefficients(prior, fitted.component_distribution.base_dist)
    # Of the same class, so that its parameter keeps its name.
    if isinstance(mixing, dist.CategoricalProbs):
        mixing = dist.CategoricalProbs(fitted.mixing_distribution.probs)
    else:
        mixing = dist.CategoricalLogits(fitted.mixing_distribution.logits)
    return dist.MixtureSameFamily(mixing, new.to_event(component.event_dim))


def _fit_autoregressive(
    law: AutoregressiveKAEMPrior,
    draws: np.ndarray,
    rng_key: jax.Array,
    options: dict[str, Any],
) -> AutoregressiveKAEMPrior:
    (basis, conditioner, parameters), aux = law.tree_flatten()
    fitted = fit_autoregressive(
        draws,
        basis,
        None if parameters is None else law.reference,
        rng_key=rng_key,
        width=conditioner.weights[0].shape[1],
        depth=len(conditioner.weights) - 1,
        **options,
    )
    return AutoregressiveKAEMPrior.tree_unflatten(
        aux, (basis, fitted.conditioner, parameters)
    )
