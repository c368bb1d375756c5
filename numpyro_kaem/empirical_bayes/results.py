"""A fitted prior with its uncertainty."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from numpyro_kaem._checks import as_count, check_key
from numpyro_kaem.distributions import KAEMPrior, PriorWithAtoms
from numpyro_kaem.empirical_bayes.family import (
    Maximum,
    Model,
    Problem,
    maximise,
    unit_moments,
)
from numpyro_kaem.empirical_bayes.likelihood import LogLikelihood
from numpyro_kaem.empirical_bayes.quadrature import node_positions
from numpyro_kaem.estimation.samples import Numbers
from numpyro_kaem.numerics.panels import Panels

__all__ = ["Band", "Bootstrap", "MarginalFit"]


class Band(NamedTuple):
    """An estimate between the ends of pointwise intervals, arrays of one shape.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.empirical_bayes import Band
    >>> estimate = np.array([0.2, 0.5])
    >>> band = Band(estimate - 0.1, estimate, estimate + 0.1)
    >>> print((band.upper - band.lower).round(1))
    [0.2 0.2]
    """

    lower: jax.Array
    """Lower ends."""
    value: jax.Array
    """Estimate."""
    upper: jax.Array
    """Upper ends."""


class Bootstrap(NamedTuple):
    """Priors refitted to units drawn again; made by :meth:`MarginalFit.bootstrap`.

    References
    ----------
    Efron and Tibshirani (1993), *An Introduction to the Bootstrap*, Chapman and Hall,
    chapter 6.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> x = np.random.default_rng(0).normal(1.0, 1.5, size=60)
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    >>> basis = kaem.BSpline(-4.0, 6.0, 8)
    >>> fit = kaem.fit_marginal(units, basis, dist.Normal(1.0, 2.0))
    >>> bootstrap = fit.bootstrap(jax.random.key(0), num_replicates=20)
    >>> bootstrap.prior.batch_shape
    (20,)
    >>> fit.density_band(np.linspace(-1.0, 3.0, 5), bootstrap=bootstrap).lower.shape
    (5,)
    """

    prior: KAEMPrior | PriorWithAtoms
    """Priors of batch shape ``(num_replicates,)``."""
    parameters: jax.Array
    """Their parameters in the fit, shape ``(num_replicates, num_parameters)``."""


@dataclass(frozen=True, repr=False)
class MarginalFit:
    """A prior learned from many units; made by :func:`fit_marginal`.

    References
    ----------
    Efron (2016), "Empirical Bayes deconvolution estimates", *Biometrika* 103(1), on
    bands by the delta method.

    Examples
    --------
    >>> import numpy as np
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> x = np.random.default_rng(0).normal(1.0, 1.5, size=60)
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    >>> basis = kaem.BSpline(-4.0, 6.0, 8)
    >>> fit = kaem.fit_marginal(units, basis, dist.Normal(1.0, 2.0))
    >>> fit.converged, fit.covariance.shape
    (True, (8, 8))
    >>> band = fit.density_band(np.linspace(-1.0, 3.0, 5))
    >>> bool(np.all((band.lower <= band.value) & (band.value <= band.upper)))
    True
    >>> fit.unit_mean_band().value.shape
    (60,)
    """

    prior: KAEMPrior | PriorWithAtoms
    """The fitted prior, of batch shape (): with atoms a :class:`PriorWithAtoms`."""
    log_marginal_likelihood: float
    """Log marginal likelihood of all units at the fit, without the penalty. Twice the
    difference between fits with and without atoms, at one penalty, is the likelihood
    ratio statistic of no atom."""
    penalty: float
    """Weight of the roughness, given or chosen."""
    covariance: jax.Array
    """Covariance of the coefficients, shape ``(num_features, num_features)``: the
    inverse of the penalised observed information. Constants have no variance."""
    degrees_of_freedom: float
    """Effective number of parameters."""
    log_evidence: float
    """Laplace approximation of the log marginal likelihood of the penalty, up to a
    constant; compares penalties, bases and atoms on the same data."""
    converged: bool
    """Whether Newton's method converged at the best maximum."""
    num_steps: int
    """Newton steps of all starts together."""
    log_posteriors: np.ndarray
    """Penalised log marginal likelihood that each start reached, shape
    ``(num_starts,)``; several values far apart mean several maxima."""
    log_likelihood: LogLikelihood
    """Log likelihood of the units."""
    counts: np.ndarray
    """How often each unit counts, shape ``(num_units,)``."""
    _model: Model
    _maximum: Maximum
    _ridge: jax.Array
    _problem: Problem
    _panels: Panels

    def __repr__(self) -> str:
        return (
            f"MarginalFit(log_marginal_likelihood={self.log_marginal_likelihood:.3f}, "
            f"degrees_of_freedom={self.degrees_of_freedom:.1f}, "
            f"converged={self.converged}, num_units={len(self.counts)})"
        )

    # --- atoms -----------------------------------------------------------------------

    @property
    def atom_weights(self) -> jax.Array:
        """Probabilities of the atoms, shape ``(num_atoms,)``."""
        return _weights(self.prior, self._model.atoms)

    @cached_property
    def atom_standard_errors(self) -> jax.Array:
        """Standard errors of ``atom_weights`` by the delta method."""
        parts = self._model, self._maximum.parameters, self._model.atoms
        return _deviation(_slopes(_weights, *parts), self._maximum)

    def atom_weight_band(
        self, level: float = 0.9, *, bootstrap: Bootstrap | None = None
    ) -> Band:
        """Intervals of ``atom_weights``.

        As :meth:`cdf_band`, for arguments, method and errors, with arrays of shape
        ``(num_atoms,)``.
        """
        atoms = self._model.atoms
        return self._band(_log_odds_of_weights, jax.nn.sigmoid, atoms, level, bootstrap)

    # --- bands -----------------------------------------------------------------------

    def density_band(
        self,
        z: Numbers,
        level: float = 0.9,
        *,
        bootstrap: Bootstrap | None = None,
    ) -> Band:
        """Pointwise intervals of the density.

        With atoms, that of all other values, times their probability.

        Parameters
        ----------
        z
            Latent values, shape (...,).
        level
            Nominal coverage of each interval, in (0, 1).
        bootstrap
            Result of :meth:`bootstrap`, whose quantiles are the interval. ``None``
            takes the delta method, with intervals that end at zero.

        Returns
        -------
        Band
            Arrays of the shape of ``z``.

        Raises
        ------
        TypeError
            If ``bootstrap`` is not the result of :meth:`bootstrap`.
        ValueError
            If ``level`` is not in (0, 1).
        """
        band = self._band(_density, lambda x: x, z, level, bootstrap)
        return band._replace(lower=jnp.maximum(band.lower, 0))

    def cdf_band(
        self,
        z: Numbers,
        level: float = 0.9,
        *,
        bootstrap: Bootstrap | None = None,
    ) -> Band:
        """Pointwise intervals of the distribution function.

        As :meth:`density_band`, for arguments, shapes and errors; the delta method is
        applied to the log odds.
        """
        return self._band(_log_odds, jax.nn.sigmoid, z, level, bootstrap)

    def unit_mean_band(
        self, level: float = 0.9, *, bootstrap: Bootstrap | None = None
    ) -> Band:
        """Intervals of the units' posterior means for the error of the prior.

        They say how well the empirical Bayes estimate is known, not how far a latent
        value may lie from it: that is the unit's posterior.

        Parameters
        ----------
        level
            Nominal coverage of each interval, in (0, 1).
        bootstrap
            Result of :meth:`bootstrap`, or ``None`` for the delta method.

        Returns
        -------
        Band
            Arrays of shape ``(num_units,)``.

        Raises
        ------
        TypeError
            If ``bootstrap`` is not the result of :meth:`bootstrap`.
        ValueError
            If ``level`` is not in (0, 1).
        """
        _check(level, bootstrap)
        nodes = jnp.concatenate([node_positions(self._panels), self._model.atoms])
        count = len(self.counts)
        mean, slopes = (
            moments[:count]
            for moments in unit_moments(self._problem, self._maximum.parameters, nodes)
        )
        if bootstrap is None:
            half = ndtri(0.5 + 0.5 * level) * _deviation(slopes, self._maximum)
            return Band(mean - half, mean, mean + half)
        means = jax.lax.map(
            lambda row: unit_moments(self._problem, row, nodes)[0][:count],
            bootstrap.parameters,
        )
        return _quantiles(means, level, mean)

    def _band(
        self,
        function: Callable[[Any, jax.Array], jax.Array],
        link: Callable[[jax.Array], jax.Array],
        z: Numbers,
        level: float,
        bootstrap: Bootstrap | None,
    ) -> Band:
        _check(level, bootstrap)
        z = jnp.asarray(z, self._model.flat.dtype)
        flat = z.reshape(-1)
        value = function(self.prior, flat)
        if bootstrap is None:
            slopes = _slopes(function, self._model, self._maximum.parameters, flat)
            deviation = _deviation(slopes, self._maximum)
            half = ndtri(0.5 + 0.5 * level) * deviation
            band = Band(link(value - half), link(value), link(value + half))
        else:
            values = link(function(bootstrap.prior, flat[:, None])).T
            band = _quantiles(values, level, link(value))
        return Band(*(end.reshape(z.shape) for end in band))

    # --- the bootstrap ---------------------------------------------------------------

    def bootstrap(self, rng_key: jax.Array, num_replicates: int = 200) -> Bootstrap:
        """Refit the prior to units drawn again with replacement.

        The penalty is kept, and each fit starts from the best one.

        Parameters
        ----------
        rng_key
            Random key.
        num_replicates
            Number of data sets, at least 2.

        Returns
        -------
        Bootstrap
            Priors of batch shape ``(num_replicates,)``, for the bands.

        Raises
        ------
        TypeError
            If the key is none, or ``num_replicates`` not an integer.
        ValueError
            If there are fewer than 2 replicates.
        """
        check_key(rng_key)
        num_replicates = as_count("num_replicates", num_replicates, 2)
        counts = np.asarray(self.counts, float)
        total = round(counts.sum())
        seed = np.asarray(jax.random.bits(rng_key, (4,)))
        draws = np.random.default_rng(seed).multinomial(
            total, counts / counts.sum(), size=num_replicates
        )
        start = self._maximum.parameters
        rows = [
            maximise(
                self._problem._replace(
                    counts=self._model.with_known(jnp.asarray(row, start.dtype))
                ),
                self._ridge,
                start,
                1e-3,
            ).parameters
            for row in draws
        ]
        parameters = jnp.stack(rows)
        return Bootstrap(self._model.prior(parameters), parameters)


def _density(prior: KAEMPrior | PriorWithAtoms, z: jax.Array) -> jax.Array:
    if isinstance(prior, PriorWithAtoms):
        return jnp.exp(prior.log_prob_beside(z))
    return jnp.exp(prior.log_prob(z))


def _weights(prior: KAEMPrior | PriorWithAtoms, atoms: jax.Array) -> jax.Array:
    return prior.weights if isinstance(prior, PriorWithAtoms) else atoms


def _log_odds_of_weights(
    prior: KAEMPrior | PriorWithAtoms, atoms: jax.Array
) -> jax.Array:
    weights = jnp.moveaxis(_weights(prior, atoms), -1, 0)
    return jnp.log(weights) - jnp.log1p(-weights)


def _log_odds(prior: KAEMPrior | PriorWithAtoms, z: jax.Array) -> jax.Array:
    below, above = prior.cdf_pair(z)
    return jnp.log(below) - jnp.log(above)


@partial(jax.jit, static_argnames="function")
def _slopes(
    function: Callable, model: Model, parameters: jax.Array, z: jax.Array
) -> jax.Array:
    """Differentiate in the parameters, shape ``(num_values, num_parameters)``."""
    return jax.jacfwd(lambda parameters: function(model.prior(parameters), z))(
        parameters
    )


@jax.jit
def _deviation(slopes: jax.Array, maximum: Maximum) -> jax.Array:
    """Compute standard errors of functions of the parameters (delta method)."""
    variance = jnp.sum((slopes @ maximum.covariance) * slopes, axis=-1)
    return jnp.sqrt(jnp.maximum(variance, 0))


def _quantiles(values: jax.Array, level: float, value: jax.Array) -> Band:
    tail = 0.5 - 0.5 * level
    lower, upper = jnp.quantile(values, jnp.asarray([tail, 1 - tail]), axis=0)
    return Band(lower, value, upper)


def _check(level: float, bootstrap: Bootstrap | None) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}.")
    if not isinstance(bootstrap, Bootstrap | None):
        raise TypeError(
            "bootstrap must be the result of the method bootstrap, or None, got "
            f"{type(bootstrap).__name__}."
        )
