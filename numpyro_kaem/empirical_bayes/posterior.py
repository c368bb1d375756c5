"""The posterior of every unit's latent value under one prior."""

from functools import cached_property, partial

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from numpyro_kaem._checks import as_count, as_sample_shape, check_key
from numpyro_kaem._quadrature import mean_and_variance
from numpyro_kaem.distributions import KAEMPrior, PriorWithAtoms
from numpyro_kaem.distributions.atoms import masses_beside, tail_beside
from numpyro_kaem.empirical_bayes.likelihood import LogLikelihood
from numpyro_kaem.empirical_bayes.quadrature import (
    UnitQuadrature,
    check_prior,
    node_positions,
    prior_masses,
    quadrature_under,
)
from numpyro_kaem.energy import UnitGridEnergy
from numpyro_kaem.estimation.samples import Numbers
from numpyro_kaem.numerics.cells import Table, tabulate_integrand
from numpyro_kaem.numerics.density import integrand
from numpyro_kaem.numerics.inverse import icdf, icdf_of_tail, masses, sample
from numpyro_kaem.references import ReferenceParameters, is_concrete

__all__ = ["UnitPosterior", "average_below", "unit_posterior"]


def unit_posterior(
    prior: KAEMPrior | PriorWithAtoms, log_likelihood: LogLikelihood
) -> "UnitPosterior":
    r"""Posterior of every unit's latent value under a given prior, by quadrature.

    Parameters
    ----------
    prior
        Distribution of the latent value, shared by all units, such as the ``prior`` of
        a :func:`fit_marginal`: a concrete :class:`KAEMPrior` or
        :class:`PriorWithAtoms` of batch shape ().
    log_likelihood
        Maps latent values ``(num_nodes,)`` to ``(num_units, num_nodes)``, see
        :func:`unit_log_likelihood`. The units need not be those of the fit.

    Returns
    -------
    UnitPosterior
        Means, variances, quantiles, tail probabilities and draws; probabilities of
        atoms, rates of false discoveries and of false signs, ranks.

    Raises
    ------
    TypeError
        If ``prior`` is neither of these or is traced, or ``log_likelihood`` is not a
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
    if not is_concrete(prior.tree_flatten()[0]):
        raise TypeError(
            "unit_posterior needs a concrete prior, got a traced one; call it outside "
            "jit, vmap and grad."
        )
    return UnitPosterior(prior, quadrature_under(prior, log_likelihood)[1])


class UnitPosterior:
    """Posterior of the latent value of every unit; made by :func:`unit_posterior`.

    Parameters
    ----------
    prior
        Distribution of the latent value, shared by all units, of batch shape ().
    units
        Quadrature of the units' likelihoods, which :func:`unit_posterior` makes.

    References
    ----------
    Efron, Tibshirani, Storey and Tusher (2001), "Empirical Bayes analysis of a
    microarray experiment", *Journal of the American Statistical Association* 96(456),
    on local false discovery rates.
    Storey (2003), "The positive false discovery rate: a Bayesian interpretation and the
    q-value", *Annals of Statistics* 31(6).
    Stephens (2017), "False discovery rates: a new deal", *Biostatistics* 18(2), on
    false signs and s-values.
    Laird and Louis (1989), "Empirical Bayes ranking methods", *Journal of Educational
    Statistics* 14(1), on expected ranks.

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

    Half of the values are zero:

    >>> posterior = kaem.unit_posterior(kaem.PriorWithAtoms([0.0], [0.5], prior), units)
    >>> [f"{value:.3f}" for value in posterior.local_false_discovery_rate()]
    ['0.524', '0.130']
    >>> [f"{value:.2f}" for value in posterior.local_false_sign_rate()]
    ['0.64', '0.14']
    >>> [f"{value:.2f}" for value in posterior.s_values()]
    ['0.39', '0.14']
    >>> [f"{value:.2f}" for value in posterior.expected_ranks()]
    ['1.07', '1.93']
    """

    def __init__(
        self, prior: KAEMPrior | PriorWithAtoms, units: UnitQuadrature
    ) -> None:
        self.prior = prior
        self._units = units
        self._density = prior.prior if isinstance(prior, PriorWithAtoms) else prior

    def __repr__(self) -> str:
        return f"UnitPosterior(num_units={self.num_units}, prior={self.prior!r})"

    @property
    def num_units(self) -> int:
        """Number of units."""
        return self._units.log_likelihood.shape[0]

    @cached_property
    def _parts(self) -> tuple:
        density = self._density
        return density.energy.on_unit_grid, density._parameters, self._units

    @cached_property
    def _moments(self) -> tuple[jax.Array, ...]:
        moments = _moments(*self._parts)
        if not isinstance(self.prior, PriorWithAtoms):
            return *moments, jnp.zeros((self.num_units, 0), moments[0].dtype)
        return _with_atoms(self.prior, self._units.at_atoms, moments)

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

    @property
    def atom_probabilities(self) -> jax.Array:
        """Posterior probabilities of the prior's atoms, ``(num_units, num_atoms)``."""
        return self._moments[3]

    @property
    def _atoms(self) -> jax.Array:
        """Atoms of the prior, shape ``(num_atoms,)``."""
        if isinstance(self.prior, PriorWithAtoms):
            return self.prior.atoms
        return jnp.zeros(0, self._density.energy.dtype)

    def _probability_of(self, z: jax.Array) -> jax.Array:
        """Posterior probabilities of single values, shaped as ``cdf``."""
        at = z[..., None] == self._atoms
        at = at.reshape((1,) * (2 - at.ndim) + at.shape)
        return jnp.sum(jnp.where(at, self.atom_probabilities, 0), axis=-1)

    def expectation(self, function: LogLikelihood) -> jax.Array:
        """Posterior means of a function of the latent value.

        Parameters
        ----------
        function
            Elementwise and smooth but at atoms: ``(num_nodes,)`` to ``(num_nodes,)``.

        Returns
        -------
        Array
            Shape ``(num_units,)``.
        """
        values = function(node_positions(self._units.panels))
        mean, at_atoms = _expectation(*self._parts, values), self.atom_probabilities
        if at_atoms.shape[1] == 0:
            return mean
        rest = 1 - jnp.sum(at_atoms, axis=1)
        return rest * mean + jnp.matmul(
            at_atoms, function(self._atoms), precision="highest"
        )

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
        u = jnp.asarray(q, self._density.energy.dtype)[..., None]
        u = jnp.broadcast_to(u, (*u.shape[:-1], self.num_units))
        of_tail = partial(icdf_of_tail, self._table, self._density._parameters)
        if not isinstance(self.prior, PriorWithAtoms):
            return icdf(of_tail, self._density._ends, u)
        column = jnp.broadcast_to(
            self._atoms[:, None], (len(self._atoms), self.num_units)
        )
        below, above = _masses(self._table, self._density._parameters, column)

        def with_atoms(mass: jax.Array, upper: jax.Array) -> jax.Array:
            with jax.numpy_rank_promotion("allow"):
                jump, *tail = tail_beside(
                    self._atoms,
                    self.atom_probabilities,
                    (below.T, above.T),
                    mass,
                    upper,
                )
            return jnp.where(jnp.isnan(jump), of_tail(*tail), jump)

        return icdf(with_atoms, self._density._ends, u)

    def cdf(self, z: Numbers) -> jax.Array:
        """Posterior probabilities of a latent value up to ``z``.

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
        z = jnp.asarray(z, self._density.energy.dtype)
        try:
            shape = jnp.broadcast_shapes(z.shape, (self.num_units,))
        except ValueError:
            shape = ()
        if shape[-1:] != (self.num_units,):
            raise ValueError(
                f"z must broadcast with the units, of shape ({self.num_units},), got "
                f"shape {z.shape}; several values for all units have the shape (n, 1)."
            )
        masses = _masses(self._table, self._density._parameters, z)
        if not isinstance(self.prior, PriorWithAtoms):
            return masses
        with jax.numpy_rank_promotion("allow"):
            return masses_beside(self._atoms, self.atom_probabilities, masses, z)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Independent posterior draws, shape ``(*sample_shape, num_units)``."""
        check_key(key, "key")
        sample_shape = as_sample_shape(sample_shape)
        density, probability = self._density, self.atom_probabilities
        parts = self._table, density._parameters, density._ends
        if not isinstance(self.prior, PriorWithAtoms):
            return sample(*parts, key, sample_shape)
        first, second = jax.random.split(key)
        rest = 1 - jnp.sum(probability, axis=1, keepdims=True)
        logits = jnp.log(jnp.concatenate([probability, rest], axis=1))
        shape = (*sample_shape, self.num_units)
        part = jax.random.categorical(first, logits, shape=shape)
        z = sample(*parts, second, sample_shape)
        atoms = jnp.pad(self._atoms, (0, 1))[part]
        return jnp.where(part < probability.shape[1], atoms, z)

    # --- decisions -------------------------------------------------------------------

    def local_false_discovery_rate(self, null: float = 0.0) -> jax.Array:
        """Posterior probabilities of a null value, shape ``(num_units,)``.

        Parameters
        ----------
        null
            An atom of the prior.

        Raises
        ------
        ValueError
            If it is none.
        """
        z = jnp.asarray(null, self._density.energy.dtype)
        if z.shape != () or not bool(jnp.any(z == self._atoms)):
            raise ValueError(
                f"null must be an atom of the prior, which has {self._atoms}, got "
                f"{null!r}; fit_marginal(..., atoms=(0.0,)) makes one."
            )
        return self._probability_of(z)

    def local_false_sign_rate(self, threshold: float = 0.0) -> jax.Array:
        r"""Probabilities of a wrong sign, if one is claimed: shape ``(num_units,)``.

        :math:`\min\{P(z_i \ge t), P(z_i \le t)\}` (Stephens 2017), with the side of
        ``threshold`` :math:`t` in place of the sign. Zero itself has none: an atom at
        ``threshold`` counts as wrong either way.
        """
        z = jnp.asarray(threshold, self._density.energy.dtype)
        below, above = self._masses(z)
        return jnp.minimum(below, above + self._probability_of(z))

    def q_values(self, null: float = 0.0) -> jax.Array:
        """Share of null values among the units with at most a unit's local rate.

        Shape ``(num_units,)``. The units with ``q_values() <= 0.05`` are a set with an
        expected share of 5 % of null values (Storey 2003); arguments and errors as
        for :meth:`local_false_discovery_rate`.
        """
        return average_below(self.local_false_discovery_rate(null))

    def s_values(self, threshold: float = 0.0) -> jax.Array:
        """Share of wrong signs among the units with at most a unit's local rate.

        Shape ``(num_units,)``. The units with ``s_values() <= 0.05`` are a set with an
        expected share of 5 % of wrong signs (Stephens 2017); arguments as for
        :meth:`local_false_sign_rate`.
        """
        return average_below(self.local_false_sign_rate(threshold))

    def expected_ranks(self, *others: "UnitPosterior") -> jax.Array:
        r"""Posterior means of the ranks, the largest value being first, by quadrature.

        :math:`1 + \sum_{j \ne i} \{P(z_j > z_i) + P(z_j = z_i) / 2\}`, given the prior.

        Parameters
        ----------
        others
            Posteriors of more units that are ranked with these, for units that are
            treated in blocks.

        Returns
        -------
        Array
            Shape ``(num_units,)``.
        """
        blocks = (self, *others)

        def num_above(z: jax.Array) -> jax.Array:
            # One value at a time, for the memory.
            return sum(
                jax.lax.map(
                    lambda z, block=block: jnp.sum(
                        block._masses(z)[1] + 0.5 * block._probability_of(z)
                    ),
                    z,
                )
                for block in blocks
            )

        for block in blocks:
            # Made outside of the loop.
            block._table, block._moments  # noqa: B018
        # A unit is above itself with probability one half.
        return 0.5 + self.expectation(num_above)

    def top_probabilities(
        self, rng_key: jax.Array, num_top: int, num_draws: int = 1000
    ) -> jax.Array:
        """Probabilities of being among the largest values, from joint draws.

        Parameters
        ----------
        rng_key
            Random key.
        num_top
            How many units are at the top, at most ``num_units``; equal values are
            ordered at random.
        num_draws
            Number of draws of all units together. The standard error of a probability
            is at most ``0.5 / sqrt(num_draws)``.

        Returns
        -------
        Array
            Shape ``(num_units,)``, with the sum ``num_top``.

        Raises
        ------
        TypeError
            If the key is none, or a number not an integer.
        ValueError
            If a number is not positive, or ``num_top`` exceeds that of the units.
        """
        check_key(rng_key)
        num_top = as_count("num_top", num_top)
        num_draws = as_count("num_draws", num_draws)
        if num_top > self.num_units:
            raise ValueError(
                f"num_top must be at most the number of units, {self.num_units}, got "
                f"{num_top}."
            )
        self._table, self._moments  # noqa: B018

        def count(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            first, second = jax.random.split(key)
            ties = jax.random.uniform(second, (self.num_units,))
            order = jnp.lexsort((ties, -self.sample(first)))
            return total.at[order[:num_top]].add(1), None

        start = jnp.zeros(self.num_units, int)
        keys = jax.random.split(rng_key, num_draws)
        return jax.lax.scan(count, start, keys)[0] / num_draws


def average_below(rates: Numbers) -> jax.Array:
    """Mean of the local rates that are at most a unit's, for every unit.

    The s-values or q-values of units whose local rates were found in blocks.

    Parameters
    ----------
    rates
        Local rates of all units together, shape ``(num_units,)``.

    Returns
    -------
    Array
        Shape ``(num_units,)``; equal rates have equal means.

    References
    ----------
    Stephens (2017), "False discovery rates: a new deal", *Biostatistics* 18(2).

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.empirical_bayes import average_below
    >>> print(average_below(np.array([0.5, 0.25, 0.0, 0.25])))
    [0.25       0.16666667 0.         0.16666667]
    """
    rates = jnp.asarray(rates)
    ascending = jnp.sort(rates)
    # Sums of many small numbers keep their digits.
    with jax.enable_x64(True):
        means = jnp.cumsum(ascending.astype(float)) / jnp.arange(1, rates.size + 1)
        means = means.astype(rates.dtype)
    return means[jnp.searchsorted(ascending, rates, side="right") - 1]


@jax.jit
def _with_atoms(
    prior: PriorWithAtoms, at_atoms: jax.Array, moments: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Moments with those of the atoms, and the probabilities of these."""
    marginal, mean, variance = moments
    log_weights = jnp.log(jnp.append(prior.weights, prior.prior_weight))
    joint = jnp.concatenate([at_atoms, marginal[:, None]], axis=1) + log_weights[None]
    probability = jax.nn.softmax(joint, axis=1)
    atoms = jnp.broadcast_to(prior.atoms, at_atoms.shape)
    means = jnp.concatenate([atoms, mean[:, None]], axis=1)
    variances = jnp.pad(variance[:, None], ((0, 0), (at_atoms.shape[1], 0)))
    total = jnp.sum(probability * means, axis=1)
    spread = variances + jnp.square(means - total[:, None])
    variance = jnp.sum(probability * spread, axis=1)
    return logsumexp(joint, axis=1), total, variance, probability[:, :-1]


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
        log_mass=log_mass, log_tails=(tails[0], tails[1]), energy_ends=tuple(heights)
    )
    return tabulate_integrand(values, units.panels)


_masses = jax.jit(masses)
