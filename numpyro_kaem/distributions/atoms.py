"""Learned densities with point masses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_kaem._checks import as_real, as_sample_shape, as_vectors, check_key
from numpyro_kaem.distributions.prior import (
    KAEMPrior,
    LearnedDensity,
    promoting_ranks,
)
from numpyro_kaem.references import concretely, is_concrete, support_bounds

__all__ = ["PriorWithAtoms", "as_atoms", "masses_beside", "tail_beside"]


class PriorWithAtoms(LearnedDensity):
    r"""Point masses beside a learned density.

    .. math::

        \sum_k w_k\, \delta(z - a_k) + \Bigl(1 - \sum_k w_k\Bigr)\, \pi(z).

    Parameters
    ----------
    atoms
        Where the point masses are, :math:`a_k`: different numbers in the support of
        ``prior``, shape ``(num_atoms,)``.
    weights
        Their probabilities :math:`w_k`, of a sum below 1, shape
        ``(*batch_shape, num_atoms)`` or ``(num_atoms,)``.
    prior
        The density :math:`\pi` of all other values, a :class:`KAEMPrior`.
    validate_args
        Check the values given to ``log_prob``, as NumPyro does.

    Raises
    ------
    TypeError
        If ``prior`` is not a :class:`KAEMPrior`, or the others are not real numbers.
    ValueError
        If shapes do not fit; if concrete atoms are not finite, are repeated or outside
        the support; if concrete weights are negative or leave nothing for ``prior``.

    Notes
    -----
    - ``log_prob`` is with respect to the sum of Lebesgue measure and the counting
      measure on the atoms: at an atom it is the log of its probability, elsewhere that
      of a density. The two are not compared with each other.
    - ``cdf`` jumps at the atoms, and ``icdf`` is constant along each jump.
    - The support is marked as discrete, so that samplers which move along a gradient,
      and would never meet an atom, refuse a site with this distribution. In a model
      sample ``u`` from ``Uniform(0, 1)`` and take ``icdf(u)``, as in the example; or
      integrate the latent value out by :func:`unit_log_marginal_likelihood`.

    References
    ----------
    Mitchell and Beauchamp (1988), "Bayesian variable selection in linear regression",
    *Journal of the American Statistical Association* 83(404).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.BSpline(-3.0, 3.0, 8), jnp.zeros(8))
    >>> slab = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    >>> prior = kaem.PriorWithAtoms([0.0], [0.5], slab)
    >>> print(prior.cdf(jnp.array([-0.001, 0.0])).round(2))
    [0.25 0.75]
    >>> print(prior.icdf(jnp.array([0.1, 0.3, 0.7])).round(2))
    [-0.84  0.    0.  ]
    >>> def model(x):
    ...     u = numpyro.sample("u", dist.Uniform(0.0, 1.0))
    ...     z = numpyro.deterministic("z", prior.icdf(u))
    ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
    """

    arg_constraints = {
        "atoms": constraints.real_vector,
        "weights": constraints.dependent(is_discrete=False, event_dim=1),
        "prior": constraints.dependent(is_discrete=False, event_dim=0),
    }
    reparametrized_params: list[str] = []
    pytree_data_fields = ("atoms", "weights", "prior")

    def __init__(
        self,
        atoms: ArrayLike,
        weights: ArrayLike,
        prior: KAEMPrior,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(prior, KAEMPrior):
            raise TypeError(f"prior must be a KAEMPrior, got {type(prior).__name__}.")
        dtype = prior.energy.dtype
        if is_concrete(atoms):
            atoms = as_atoms(atoms, prior)
        self.atoms = as_real("atoms", atoms).astype(dtype)
        weights = as_vectors("weights", weights, self.atoms.shape[-1])
        if is_concrete(weights):
            values = np.asarray(weights, float)
            if not (np.all(values >= 0) and np.all(values.sum(-1) < 1)):
                raise ValueError(
                    "weights must not be negative, and their sum must be below 1, got "
                    f"{values}."
                )
        self.weights, self.prior = weights.astype(dtype), prior
        super().__init__(self.batch_shape, (), validate_args=validate_args)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Broadcast of the weights', without the atoms, and the prior's."""
        shapes = np.shape(self.weights)[:-1], self.prior.batch_shape
        return jnp.broadcast_shapes(*shapes)

    @property
    def num_atoms(self) -> int:
        """Number of atoms."""
        return self.atoms.shape[-1]

    @property
    def prior_weight(self) -> jax.Array:
        """Probability that is left for ``prior``, shape ``weights.shape[:-1]``."""
        return 1 - jnp.sum(self.weights, axis=-1)

    @property
    def support(self) -> constraints.Constraint:
        """That of ``prior``, marked as discrete."""
        return _SupportWithAtoms(self.prior.support)

    def __repr__(self) -> str:
        return f"PriorWithAtoms({self.num_atoms} atoms, {self.prior!r})"

    @promoting_ranks
    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> jax.Array:
        """Log of an atom's probability at it, elsewhere log density.

        Shape broadcast(value.shape, batch_shape).
        """
        value = self._as_float(value)
        at = value[..., None] == self.atoms
        mass = jnp.sum(jnp.where(at, self.weights, 0), axis=-1)
        return jnp.where(at.any(-1), jnp.log(mass), self.log_prob_beside(value))

    @promoting_ranks
    def log_prob_beside(self, value: ArrayLike) -> jax.Array:
        """Log density of the values that are not atoms, times their probability.

        Shape broadcast(value.shape, batch_shape); continuous at the atoms.
        """
        return jnp.log(self.prior_weight) + self.prior.log_prob(value)

    @promoting_ranks
    def cdf_pair(self, value: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Masses up to and above ``value``, each to its own relative precision.

        Shapes broadcast(value.shape, batch_shape).
        """
        value = self._as_float(value)
        masses = self.prior.cdf_pair(value)
        return masses_beside(self.atoms, self.weights, masses, value)

    @promoting_ranks
    def icdf_of_tail(self, mass: jax.Array, upper: jax.Array) -> jax.Array:
        """Point with a mass of at most 1/2 below it, or above it where ``upper``."""
        atoms = self.atoms.reshape(-1, *(1,) * len(self.prior.batch_shape))
        below, above = self.prior.cdf_pair(atoms)
        at_atoms = jnp.moveaxis(below, 0, -1), jnp.moveaxis(above, 0, -1)
        jump, mass, upper = tail_beside(self.atoms, self.weights, at_atoms, mass, upper)
        z = self.prior.icdf_of_tail(mass, upper)
        return jnp.where(jnp.isnan(jump), z, jump)

    def as_transformed(self, base: str = "uniform") -> dist.TransformedDistribution:
        """Refuse: the quantile function has no inverse at the atoms.

        Raises
        ------
        TypeError
            Always; sample from ``Uniform(0, 1)`` and take ``icdf`` instead.
        """
        raise TypeError(
            "as_transformed needs a distribution without atoms; in a model sample u "
            "from Uniform(0, 1) and take icdf(u)."
        )

    @promoting_ranks
    def sample(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Draw an atom or from the density, shape ``sample_shape + batch_shape``."""
        shape = (*as_sample_shape(sample_shape), *self.batch_shape)
        first, second = jax.random.split(check_key(key, "key"))
        parts = jnp.concatenate([self.weights, self.prior_weight[..., None]], axis=-1)
        part = jax.random.categorical(first, jnp.log(parts), shape=shape)
        count = len(shape) - len(self.prior.batch_shape)
        z = self.prior.sample(second, shape[:count])
        # The last part is the density.
        return jnp.where(part < self.num_atoms, jnp.pad(self.atoms, (0, 1))[part], z)

    def _as_float(self, value: ArrayLike, name: str = "value") -> jax.Array:
        return self.prior._as_float(value, name)

    @property
    def _ends(self) -> tuple[ArrayLike, ArrayLike]:
        return self.prior._ends

    # --- moments ---------------------------------------------------------------------

    @property
    @promoting_ranks
    def mean(self) -> jax.Array:
        """Mean, shape ``batch_shape``."""
        return self.weights @ self.atoms + self.prior_weight * self.prior.mean

    @property
    @promoting_ranks
    def variance(self) -> jax.Array:
        """Variance, shape ``batch_shape``."""
        spread = jnp.square(self.atoms - self.mean[..., None])
        own = self.prior.variance + jnp.square(self.prior.mean - self.mean)
        return jnp.sum(self.weights * spread, axis=-1) + self.prior_weight * own


class _SupportWithAtoms(constraints.Constraint):
    """Support with points that have a probability."""

    is_discrete = True
    event_dim = 0

    def __init__(self, base: constraints.Constraint) -> None:
        self.base = base

    def __call__(self, x: ArrayLike) -> ArrayLike:
        """Whether ``x`` lies in the support, elementwise."""
        return self.base(x)

    def __repr__(self) -> str:
        return f"{self.base} with atoms"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SupportWithAtoms) and self.base == other.base

    def feasible_like(self, prototype: ArrayLike) -> ArrayLike:
        """Return a point of the support, of the shape of ``prototype``."""
        return self.base.feasible_like(prototype)

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """Take the support of the density as the only part."""
        return (self.base,), (("base",), {})


# --- for posteriors too, which have the same form -------------------------------------


def as_atoms(atoms: Any, prior: KAEMPrior) -> np.ndarray:
    """Check concrete atoms against the support of a density."""
    values = np.asarray(as_real("atoms", atoms), float)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"atoms must have shape (num_atoms,), such as (0.0,), got {values.shape}."
        )
    if not np.all(np.isfinite(values)):
        raise ValueError(f"atoms must be finite, got {values}.")
    if len(np.unique(values.astype(prior.energy.dtype))) < len(values):
        raise ValueError(f"atoms must differ from each other, got {values}.")
    ends = support_bounds(prior)
    if is_concrete(ends):
        with concretely():
            low, high = (np.asarray(end, float) for end in ends)
        outside = (values < low.max()) | (values > high.min())
        if outside.any():
            raise ValueError(
                "atoms must lie in the support of the prior, from "
                f"{low.max():.6g} to {high.min():.6g}, got {values[outside][0]:.6g}; a "
                "reference with a wider support, or without one a wider grid, holds it."
            )
    return values


def masses_beside(
    atoms: jax.Array,
    weights: jax.Array,
    masses: tuple[jax.Array, jax.Array],
    value: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Masses up to and above values, from those of the density beside the atoms."""
    rest = 1 - jnp.sum(weights, axis=-1)
    passed = atoms <= value[..., None]
    below = rest * masses[0] + jnp.sum(jnp.where(passed, weights, 0), axis=-1)
    above = rest * masses[1] + jnp.sum(jnp.where(passed, 0, weights), axis=-1)
    return below, above


def tail_beside(
    atoms: jax.Array,
    weights: jax.Array,
    at_atoms: tuple[jax.Array, jax.Array],
    mass: jax.Array,
    upper: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Atom that is the quantile, or NaN; else mass and tail of it beside the atoms.

    ``at_atoms`` are the masses of the density below and above the atoms, in the last
    axis as in the weights.
    """
    rest = 1 - jnp.sum(weights, axis=-1)
    mass, upper = jnp.broadcast_arrays(mass, upper)
    # The mass strictly beyond each atom, on either side.
    side = atoms < atoms[:, None], atoms > atoms[:, None]
    lower, higher = (
        rest[..., None] * of_density
        + jnp.sum(jnp.where(other, weights[..., None, :], 0), axis=-1)
        for of_density, other in zip(at_atoms, side, strict=True)
    )
    beyond = jnp.where(upper[..., None], higher, lower)
    reached, passed = beyond <= mass[..., None], beyond + weights < mass[..., None]
    inside = reached & ~passed & (weights > 0)
    jump = jnp.sum(jnp.where(inside, atoms, 0), axis=-1)
    jump = jnp.where(inside.any(-1), jump / jnp.sum(inside, axis=-1), jnp.nan)
    of_density = (mass - jnp.sum(jnp.where(passed, weights, 0), axis=-1)) / rest
    far = of_density > 0.5
    of_density = jnp.clip(jnp.where(far, 1 - of_density, of_density), 0, 0.5)
    return jump, of_density, upper ^ far
