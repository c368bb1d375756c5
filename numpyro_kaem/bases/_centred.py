"""Bases that shift and scale one profile to equally spaced centres."""

import math
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from numpyro_kaem._checks import GridLike, as_bandwidth, as_count
from numpyro_kaem.bases._base import (
    AbstractBasis,
    as_float,
    uniform_breaks,
    with_ndim,
)

__all__ = ["AbstractCentredBasis"]

# From this number of sums on they are computed centre by centre: each is done for many
# points at once, by vector instructions, and no array of features is kept for
# derivatives. For fewer the turns of the loop would take longer than the sums.
_MANY_SUMS = 1 << 14


class AbstractCentredBasis(AbstractBasis):
    """One profile, shifted to the centres and scaled by the bandwidth.

    A subclass supplies ``profile``, an elementwise function of the distance to the
    centre in units of the bandwidth times the spacing of the centres.
    """

    num_basis: int = eqx.field(static=True)
    """Number of centres."""
    # The default is for type checkers, which take the fields for the arguments.
    bandwidth: Float[Array, ""] = eqx.field(kw_only=True, default=1.0)
    """Width of the profile, in units of the spacing of the centres."""

    def __init__(
        self,
        low: GridLike,
        high: GridLike,
        num_basis: int,
        *,
        bandwidth: ArrayLike = 1.0,
    ) -> None:
        super().__init__(low, high)
        self.num_basis = as_count("num_basis", num_basis)
        self.bandwidth = as_bandwidth(bandwidth)

    @property
    def num_features(self) -> int:
        """Number of features, one a centre."""
        return self.num_basis

    @property
    def panel_breaks(self) -> tuple[float, ...]:
        """Halves of the intervals between the centres, but at least four panels."""
        return uniform_breaks(2 * (self.num_basis - 1))

    @abstractmethod
    def profile(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Profile at a scaled distance, elementwise."""

    def unit_features(self, s: Real[ArrayLike, "..."]) -> Float[Array, "... features"]:
        """Features at ``s`` in [0, 1], shape ``s.shape + (num_basis,)``."""
        s = as_float(s)
        position, centres = self._in_spacings(s)
        centres = with_ndim(centres, s.ndim + 1)
        distance = jnp.expand_dims(position, -1) - centres
        # Built as a scalar, but a transformation of the tree may have given the leaf a
        # batch, which then broadcasts against s.
        bandwidth = jnp.expand_dims(jnp.asarray(self.bandwidth, s.dtype), -1)
        ndim = max(distance.ndim, bandwidth.ndim)
        return self.profile(with_ndim(distance, ndim) / with_ndim(bandwidth, ndim))

    def unit_combine(
        self, s: Real[ArrayLike, "..."], coefficients: Real[ArrayLike, "... features"]
    ) -> Float[Array, "..."]:
        """Sum of features times coefficients, shape broadcast(s.shape, batch shape).

        See :meth:`AbstractBasis.unit_combine`. Of many sums, centre by centre.
        """
        s, coefficients = self._align(s, coefficients)
        bandwidth = jnp.asarray(self.bandwidth, s.dtype)
        ndim = max(s.ndim, bandwidth.ndim)
        s, bandwidth = with_ndim(s, ndim), with_ndim(bandwidth, ndim)
        coefficients = with_ndim(coefficients, ndim + 1)
        shape = jnp.broadcast_shapes(s.shape, bandwidth.shape, coefficients.shape[:-1])
        if math.prod(shape) < _MANY_SUMS:
            return super().unit_combine(s, coefficients)
        position, centres = self._in_spacings(s)

        # In reverse mode computed again, rather than kept.
        @jax.checkpoint
        def add(total: Array, term: tuple[Array, Array]) -> tuple[Array, None]:
            centre, coefficient = term
            profile = self.profile((position - centre) / bandwidth)
            return total + coefficient * profile, None

        terms = centres, jnp.moveaxis(coefficients, -1, 0)
        zero = jnp.zeros(shape, jnp.result_type(s, coefficients))
        # An accelerator waits for the launch of every turn of a loop.
        unroll = jax.default_backend() != "cpu"
        return jax.lax.scan(add, zero, terms, unroll=unroll)[0]

    def _in_spacings(self, s: Float[Array, "..."]) -> tuple[Array, Array]:
        """``s`` and the centres, in units of the spacing of the centres.

        The centres are integers there, which no format rounds.
        """
        if self.num_basis == 1:
            return s, jnp.full(1, 0.5, s.dtype)
        # Counted in integers: see `avoid_wrong_sums` for sums over floats 0, 1, ....
        return s * (self.num_basis - 1), jnp.arange(self.num_basis).astype(s.dtype)
