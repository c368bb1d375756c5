"""The quantile function as a NumPyro transform."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

__all__ = ["InverseCDFTransform", "Invertible"]


@runtime_checkable
class Invertible(Protocol):
    """What :class:`InverseCDFTransform` needs of a univariate distribution."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """As in NumPyro; so the next three."""

    @property
    def support(self) -> Any:
        """Constraint."""

    def log_prob(self, value: ArrayLike) -> jax.Array:
        """Log density."""

    def icdf(self, q: ArrayLike) -> jax.Array:
        """Quantile."""

    def cdf_pair(self, value: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Masses below and above a point."""

    def icdf_of_tail(self, mass: jax.Array, upper: jax.Array) -> jax.Array:
        """Point with a mass of at most 1/2 below it, or above it where ``upper``."""


class InverseCDFTransform(Transform):
    r"""Quantile function of a distribution: from the unit interval to its support.

    .. math:: z = F^{-1}(u), \qquad \text{or} \qquad z = F^{-1}(\Phi(v)),

    where :math:`\Phi` is the standard Normal distribution function. Uniform ``u`` and
    standard Normal ``v`` become draws of the distribution.

    Parameters
    ----------
    prior
        A :class:`KAEMPrior`, a :class:`KAEMMixture`, one of them truncated, or another
        distribution with their ``cdf_pair`` and ``icdf_of_tail``.
    base
        ``"uniform"`` for the domain (0, 1), ``"normal"`` for the real line.

    Raises
    ------
    TypeError
        If ``prior`` does not have these methods.
    ValueError
        If ``base`` is neither, or if a point's shape does not end in ``batch_shape``:
        one latent must not be broadcast to several densities.

    Notes
    -----
    On the Normal base both tails keep their precision; beyond 13 standard deviations
    float32 has no smaller masses, and ``z`` stays at the last quantile.

    References
    ----------
    Devroye (1986), *Non-Uniform Random Variate Generation*, Springer, section II.2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.RBF(-1.0, 3.0, 5), jnp.zeros(5))
    >>> transform = kaem.InverseCDFTransform(kaem.KAEMPrior(energy))
    >>> print(transform(jnp.array([0.25, 0.75])))
    [0. 2.]
    """

    def __init__(self, prior: Invertible, base: str = "uniform") -> None:
        if not isinstance(prior, Invertible):
            raise TypeError(
                "prior must be a KAEMPrior, a KAEMMixture or one of them truncated, "
                f"got {type(prior).__name__}."
            )
        if base not in ("uniform", "normal"):
            raise ValueError(f"base must be 'uniform' or 'normal', got {base!r}.")
        self.prior = prior
        self.base = base

    @property
    def domain(self) -> constraints.Constraint:
        """Unit interval or real line."""
        uniform = self.base == "uniform"
        return constraints.unit_interval if uniform else constraints.real

    @property
    def codomain(self) -> constraints.Constraint:
        """Support of the prior."""
        return self.prior.support

    @property
    def sign(self) -> int:
        """Always increasing."""
        return 1

    def _check(self, x: ArrayLike) -> jax.Array:
        batch_shape, shape = self.prior.batch_shape, jnp.shape(x)
        if batch_shape and shape[-len(batch_shape) :] != batch_shape:
            raise ValueError(
                "the shape of a point must end in the prior's batch_shape "
                f"{batch_shape}, got {shape}; use prior.icdf for one latent of several "
                "densities."
            )
        return jnp.asarray(x)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Quantile, shape ``(..., *batch_shape)``."""
        x = self._check(x)
        if self.base == "uniform":
            return self.prior.icdf(x)
        upper = x > 0
        # The masses of both tails from their own side.
        mass = jnp.maximum(ndtr(-jnp.abs(x)), _least_mass(x.dtype))
        return self.prior.icdf_of_tail(mass, upper)

    def _inverse(self, y: ArrayLike) -> jax.Array:
        y = self._check(y)
        below, above = self.prior.cdf_pair(y)
        if self.base == "uniform":
            return below
        upper = above < below
        mass = jnp.where(upper, above, below)
        mass = jnp.maximum(mass, _least_mass(below.dtype))
        return jnp.where(upper, -1.0, 1.0) * ndtri(mass)

    def log_abs_det_jacobian(
        self, x: ArrayLike, y: ArrayLike, intermediates: Any = None
    ) -> jax.Array:
        """Log of the slope of the quantile function, shape ``(..., *batch_shape)``."""
        slope = -self.prior.log_prob(y)
        return slope if self.base == "uniform" else slope + norm.logpdf(x)

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """Return the prior as data, and the name of the base as static."""
        return (self.prior,), (("prior",), {"base": self.base})

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        """Whether both have the same base and the same prior."""
        if not isinstance(other, InverseCDFTransform) or self.base != other.base:
            return False
        structures: list[Any] = [
            jax.tree_util.tree_structure(prior) for prior in (self.prior, other.prior)
        ]
        if structures[0] != structures[1]:
            return False
        leaves, others = map(jax.tree_util.tree_leaves, (self.prior, other.prior))
        equal = [jnp.array_equal(a, b) for a, b in zip(leaves, others, strict=True)]
        return all(equal) if static else jnp.all(jnp.asarray(equal))


def _least_mass(dtype: Any) -> float:
    """Mass of a tail that is still a number when an energy scales it."""
    return float(jnp.finfo(dtype).eps) ** 4
