"""The posterior of every unit's latent value under one prior."""

from functools import cached_property, partial

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from numpyro_kaem._checks import as_sample_shape, check_key
from numpyro_kaem._quadrature import mean_and_variance
from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.empirical_bayes.likelihood import LogLikelihood
from numpyro_kaem.empirical_bayes.quadrature import (
    UnitQuadrature,
    check_prior,
    node_positions,
    prior_masses,
    unit_quadrature,
)
from numpyro_kaem.energy import UnitGridEnergy
from numpyro_kaem.estimation.samples import Numbers
from numpyro_kaem.numerics.cells import Table, tabulate_integrand
from numpyro_kaem.numerics.density import integrand
from numpyro_kaem.numerics.inverse import icdf, icdf_of_tail, masses, sample
from numpyro_kaem.references import ReferenceParameters, is_concrete

__all__ = ["UnitPosterior", "unit_posterior"]


def unit_posterior(prior: KAEMPrior, log_likelihood: LogLikelihood) -> "UnitPosterior":
    r"""Posterior of every unit's latent value under a given prior, by quadrature.

    Parameters
    ----------
    prior
        Density of the latent value, shared by all units, such as the ``prior`` of a
        :func:`fit_marginal`: concrete, of batch shape ().
    log_likelihood
        Maps latent values ``(num_nodes,)`` to ``(num_units, num_nodes)``, see
        :func:`unit_log_likelihood`. The units need not be those of the fit.

    Returns
    -------
    UnitPosterior
        Means, variances, quantiles, tail probabilities and draws.

    Raises
    ------
    TypeError
        If ``prior`` is not a KAEM prior or is traced, or ``log_likelihood`` is not a
        function.
    ValueError
        If shapes do not fit; if a log likelihood is not a number, or a unit has
        likelihood zero everywhere (which is named).

    Warns
    -----
    UserWarning
        If a likelihood is too narrow for the quadrature.

    Notes
    -----
    The posterior :math:`p(x_i \mid z)\, \pi(z) / p(x_i)` is another density on the
    line. It has the panels and the exact inverse of a prior, so that draws, quantiles
    and probabilities are those of one distribution. Under a fitted prior they do not
    know the error of that prior, see :class:`MarginalFit`.

    References
    ----------
    Robbins (1956), "An empirical Bayes approach to statistics", *Proceedings of the
    Third Berkeley Symposium* 1.

    Examples
    --------
    A Normal prior and Normal noise shrink halfway to the mean:

    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.BSpline(-3.0, 3.0, 8)
    >>> prior = kaem.KAEMPrior(kaem.Energy(basis, jnp.zeros(8)), dist.Normal(0.0, 1.0))
    >>> x = jnp.array([1.0, -3.0])
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    >>> posterior = kaem.unit_posterior(prior, units)
    >>> [f"{value:.3f}" for value in posterior.mean]
    ['0.500', '-1.500']
    >>> [f"{value:.3f}" for value in posterior.quantile(0.9)]
    ['1.406', '-0.594']
    >>> [f"{value:.3f}" for value in posterior.sf(0.0)]
    ['0.760', '0.017']
    """
    check_prior(prior)
    if not is_concrete((prior.energy, prior._parameters)):
        raise TypeError(
            "unit_posterior needs a concrete prior, got a traced one; call it outside "
            "jit, vmap and grad."
        )
    units = unit_quadrature(
        prior.energy, prior._parameters, prior.refinement, log_likelihood
    )
    return UnitPosterior(prior, units)


class UnitPosterior:
    """Posterior of the latent value of every unit; made by :func:`unit_posterior`.

    Parameters
    ----------
    prior
        Density of the latent value, shared by all units, of batch shape ().
    units
        Quadrature of the units' likelihoods, which :func:`unit_posterior` makes.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.BSpline(-3.0, 3.0, 8)
    >>> prior = kaem.KAEMPrior(kaem.Energy(basis, jnp.zeros(8)), dist.Normal(0.0, 1.0))
    >>> x = jnp.array([1.0, -3.0])
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    >>> posterior = kaem.unit_posterior(prior, units)
    >>> [f"{value:.2f}" for value in posterior.expectation(lambda z: z**2)]
    ['0.75', '2.75']
    >>> posterior.quantile(jnp.array([0.05, 0.95])).shape
    (2, 2)
    >>> posterior.sample(jax.random.key(0), (100,)).shape
    (100, 2)
    """

    def __init__(self, prior: KAEMPrior, units: UnitQuadrature) -> None:
        self.prior = prior
        self._units = units

    def __repr__(self) -> str:
        return f"UnitPosterior(num_units={self.num_units}, prior={self.prior!r})"

    @property
    def num_units(self) -> int:
        """Number of units."""
        return self._units.log_likelihood.shape[0]

    @cached_property
    def _parts(self) -> tuple:
        return self.prior.energy.on_unit_grid, self.prior._parameters, self._units

    @cached_property
    def _moments(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _moments(*self._parts)

    @property
    def log_marginal_likelihood(self) -> jax.Array:
        """Log marginal likelihood of each unit, shape ``(num_units,)``."""
        return self._moments[0]

    @property
    def mean(self) -> jax.Array:
        """Posterior means, shape ``(num_units,)``."""
        return self._moments[1]

    @property
    def variance(self) -> jax.Array:
        """Posterior variances, shape ``(num_units,)``."""
        return self._moments[2]

    def expectation(self, function: LogLikelihood) -> jax.Array:
        """Posterior means of a function of the latent value.

        Parameters
        ----------
        function
            Elementwise and smooth: ``(num_nodes,)`` to ``(num_nodes,)``.

        Returns
        -------
        Array
            Shape ``(num_units,)``.
        """
        values = function(node_positions(self._units.panels))
        return _expectation(*self._parts, values)

    @cached_property
    def _table(self) -> Table:
        return _table(*self._parts)

    def quantile(self, q: Numbers) -> jax.Array:
        """Posterior quantiles.

        Parameters
        ----------
        q
            Probabilities in [0, 1], shape (...,); others give NaN.

        Returns
        -------
        Array
            Shape ``(*q.shape, num_units)``.
        """
        u = jnp.asarray(q, self.prior.energy.dtype)[..., None]
        u = jnp.broadcast_to(u, (*u.shape[:-1], self.num_units))
        of_tail = partial(icdf_of_tail, self._table, self.prior._parameters)
        return icdf(of_tail, self.prior._ends, u)

    def cdf(self, z: Numbers) -> jax.Array:
        """Posterior probabilities of a latent value below ``z``.

        ``z`` broadcasts with ``(num_units,)``: a number for all units, or one per unit.
        The shape is that of the broadcast.

        Raises
        ------
        ValueError
            If it does not.
        """
        return self._masses(z)[0]

    def sf(self, z: Numbers) -> jax.Array:
        """Posterior probabilities of a latent value above ``z``, shaped as ``cdf``."""
        return self._masses(z)[1]

    def _masses(self, z: Numbers) -> tuple[jax.Array, jax.Array]:
        z = jnp.asarray(z, self.prior.energy.dtype)
        try:
            shape = jnp.broadcast_shapes(z.shape, (self.num_units,))
        except ValueError:
            shape = ()
        if shape[-1:] != (self.num_units,):
            raise ValueError(
                f"z must broadcast with the units, of shape ({self.num_units},), got "
                f"shape {z.shape}; several values for all units have the shape (n, 1)."
            )
        return _masses(self._table, self.prior._parameters, z)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Independent posterior draws, shape ``(*sample_shape, num_units)``."""
        check_key(key, "key")
        sample_shape = as_sample_shape(sample_shape)
        prior = self.prior
        return sample(self._table, prior._parameters, prior._ends, key, sample_shape)


@jax.jit
def _moments(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    units: UnitQuadrature,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log marginal likelihoods, posterior means and variances."""
    log_mass = prior_masses(energy, parameters, units.panels)
    joint = units.log_likelihood + log_mass
    marginal = logsumexp(joint, axis=1) - logsumexp(log_mass)
    z = node_positions(units.panels)
    mean, variance = mean_and_variance(z[:, None], jax.nn.log_softmax(joint).T)
    return marginal, mean, variance


@jax.jit
def _expectation(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    units: UnitQuadrature,
    values: jax.Array,
) -> jax.Array:
    log_mass = prior_masses(energy, parameters, units.panels)
    mass = jax.nn.softmax(units.log_likelihood + log_mass, axis=1)
    # A node without mass may lie where the function is infinite.
    return jnp.sum(jnp.where(mass > 0, mass * values, 0), axis=1)


@jax.jit
def _table(
    energy: UnitGridEnergy,
    parameters: ReferenceParameters | None,
    units: UnitQuadrature,
) -> Table:
    values = integrand(energy, parameters, units.panels)
    inner, ends = units.log_likelihood[:, :-2].T, units.log_likelihood[:, -2:].T
    log_mass = values.log_mass[..., None] + inner.reshape(*values.log_mass.shape, -1)
    tails = [
        None if tail is None else tail + end
        for tail, end in zip(values.log_tails, ends, strict=True)
    ]
    heights = [e + end for e, end in zip(values.energy_ends, ends, strict=True)]
    values = values._replace(
        log_mass=log_mass, log_tails=tuple(tails), energy_ends=tuple(heights)
    )
    return tabulate_integrand(values, units.panels)


_masses = jax.jit(masses)
