"""Learned densities cut to an interval."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import vmap_over
from numpyro.distributions.util import validate_sample

from numpyro_kaem._checks import as_real
from numpyro_kaem.distributions.mixture import KAEMMixture
from numpyro_kaem.distributions.prior import (
    KAEMPrior,
    LearnedDensity,
    StaticInterval,
    computed_once,
)
from numpyro_kaem.energy import Energy
from numpyro_kaem.numerics.density import warn_of_error
from numpyro_kaem.numerics.panels import Panels
from numpyro_kaem.references import (
    ReferenceParameters,
    concretely,
    density_breaks,
    is_concrete,
    kinks,
    log_density,
    support_bounds,
    with_rank,
)
from numpyro_kaem.references.traits import interior_point, local_length

__all__ = ["TruncatedKAEM", "broadcast_energy", "truncated"]


def truncated(
    prior: "KAEMPrior | KAEMMixture | TruncatedKAEM",
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    *,
    validate_args: bool | None = None,
) -> "TruncatedKAEM":
    r"""Truncate a learned density to an interval.

    .. math:: p(z) = \frac{\pi(z)}{\int_a^b \pi}, \qquad a \le z \le b.

    Parameters
    ----------
    prior
        A :class:`~numpyro_kaem.KAEMPrior` or :class:`~numpyro_kaem.KAEMMixture`, which
        may be truncated already.
    low, high
        Ends :math:`a < b`, of shapes that broadcast with the prior's ``batch_shape``;
        ``None`` for one of them leaves that side as it is. They may be traced.
    validate_args
        Check the values given to ``log_prob``, as NumPyro does.

    Returns
    -------
    TruncatedKAEM
        With the broadcast of the batch shapes of the prior and the bounds.

    Raises
    ------
    TypeError
        If ``prior`` is another distribution, or a bound is not real numbers.
    ValueError
        If there is no bound, if shapes do not broadcast, if a concrete bound is NaN, or
        if concrete ones are not in order or leave no mass.

    Warns
    -----
    UserWarning
        If the estimated relative error of the mass between bounds is above 1e-4.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.BSpline(-1.0, 3.0, 6), jnp.zeros(6))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    >>> tail = kaem.truncated(prior, low=6.0)
    >>> bool(jnp.all(tail.sample(jax.random.key(0), (1000,)) > 6.0))
    True
    >>> print(f"{tail.mean:.3f}, mass {jnp.exp(tail.log_mass):.2e}")
    6.158, mass 9.87e-10
    """
    if isinstance(prior, TruncatedKAEM):
        low = _both(jnp.maximum, prior.low, low)
        high = _both(jnp.minimum, prior.high, high)
        prior = prior.prior
    result = TruncatedKAEM(prior, low, high, validate_args=validate_args)
    if is_concrete(result.tree_flatten()[0]) and 0 not in result.batch_shape:
        result._check_resolution(stacklevel=3)
    return result


def _both(
    join: Callable, one: ArrayLike | None, other: ArrayLike | None
) -> ArrayLike | None:
    return one if other is None else other if one is None else join(one, other)


class TruncatedKAEM(LearnedDensity):
    """Learned density between two bounds, as :func:`~numpyro_kaem.truncated` makes it.

    Parameters
    ----------
    prior, low, high, validate_args
        As for :func:`~numpyro_kaem.truncated`, of a prior that is not truncated.

    Notes
    -----
    - The density between the bounds has a quadrature and a distribution function of its
      own, in logarithms: an interval far in a tail, or a narrow one, is as accurate as
      the whole.
    - Draws of a truncated :class:`~numpyro_kaem.KAEMPrior` are reparameterised, with
      derivatives in the bounds too; those of a mixture have none.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> from numpyro_kaem.distributions import TruncatedKAEM
    >>> flat = kaem.KAEMPrior(kaem.Energy(kaem.RBF(-1.0, 3.0, 5), jnp.zeros(5)))
    >>> print(TruncatedKAEM(flat, 0.0, jnp.array([1.0, 2.0])).mean)
    [0.5 1. ]
    """

    arg_constraints = {
        "prior": constraints.dependent(is_discrete=False, event_dim=0),
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    reparametrized_params = ["prior", "low", "high"]
    pytree_data_fields = ("prior", "low", "high")

    def __init__(
        self,
        prior: KAEMPrior | KAEMMixture,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(prior, KAEMPrior | KAEMMixture):
            raise TypeError(
                "prior must be a KAEMPrior or a KAEMMixture, got "
                f"{type(prior).__name__}; truncate a prior before expand, to_event or "
                "mask, and use numpyro.distributions.TruncatedDistribution for "
                "NumPyro's own."
            )
        if low is None and high is None:
            raise ValueError("low or high must be given, got None for both.")
        self.prior = prior
        dtype = _components(prior).energy.dtype
        self.low = _as_bound("low", low, dtype)
        self.high = _as_bound("high", high, dtype)
        try:
            batch_shape = self.batch_shape
        except ValueError:
            raise ValueError(
                "prior, low and high must have shapes that broadcast, got "
                f"{prior.batch_shape}, {getattr(self.low, 'shape', ())} and "
                f"{getattr(self.high, 'shape', ())}."
            ) from None
        super().__init__(batch_shape, (), validate_args=validate_args)
        if is_concrete((self.low, self.high)):
            self._check_order()

    def _check_order(self) -> None:
        """Check that concrete bounds are in order, and meet the support."""
        low, high = (
            np.asarray(open_end if end is None else end)
            for end, open_end in ((self.low, -np.inf), (self.high, np.inf))
        )
        if np.any(low >= high):
            raise ValueError(f"low must be below high, got {low} and {high}.")
        if is_concrete(self._ends):
            low, high = (np.asarray(end) for end in self._ends)
            if np.any(low >= high):
                raise ValueError(
                    "low and high must leave a part of the support of prior, which is "
                    f"{self.prior.support}, got {self.low} and {self.high}."
                )

    def _check_resolution(self, stacklevel: int) -> None:
        """Check that there is mass between the bounds, and how well it is known."""
        parts = _components(self._inner)
        with concretely():
            log_mass = np.asarray(self.log_mass)
            resolution = parts._resolution
            # Without the error of the reference, of which the panels hold only a part,
            # and that of a component without mass.
            errors = resolution.panels + resolution.series + resolution.rounding
            error = np.asarray(jnp.where(self._log_masses > -jnp.inf, errors, 0))
            change = float(resolution.change)
        if not np.all(log_mass > -np.inf):
            raise ValueError(
                f"low and high must leave some mass, got {self.low} and {self.high}, "
                f"between which prior has a log mass of {log_mass}."
            )
        warn_of_error(error, change, parts.refinement, stacklevel=stacklevel)

    # --- parameters ------------------------------------------------------------------

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Broadcast of the prior's and the bounds'."""
        # From the leaves, which change their shapes under vmap.
        shapes = (np.shape(end) for end in (self.low, self.high) if end is not None)
        return jnp.broadcast_shapes(self.prior.batch_shape, *shapes)

    @property
    def has_rsample(self) -> bool:
        """Whether draws have derivatives: where the prior's have."""
        return self.prior.has_rsample

    def _find_ends(self) -> tuple[jax.Array, jax.Array]:
        dtype = _components(self.prior).energy.dtype
        low, high = (jnp.asarray(end, dtype) for end in support_bounds(self.prior))
        # Where both are equal, derivatives are all those of the bound.
        if self.low is not None:
            low = jnp.where(self.low >= low, self.low, low)
        if self.high is not None:
            high = jnp.where(self.high <= high, self.high, high)
        return low, high

    # Known where the energy of the prior is traced, too.
    _ends = computed_once(
        _find_ends, lambda self: (self.low, self.high, support_bounds(self.prior))
    )

    @property
    def support(self) -> constraints.Constraint:
        """The interval, with static ends where they are known."""
        low, high = self._ends
        if is_concrete((low, high)):
            with concretely():
                ends = np.asarray(low), np.asarray(high)
            if all(np.all(np.isinf(end)) for end in ends):
                return constraints.real
            return StaticInterval.of(*ends)
        least, most = support_bounds(self.prior)
        if self.high is None and isinstance(most, float) and np.isinf(most):
            return constraints.greater_than_eq(low)
        if self.low is None and isinstance(least, float) and np.isinf(least):
            return constraints.less_than_eq(high)
        return constraints.interval(low, high)

    def __repr__(self) -> str:
        return f"TruncatedKAEM({self.prior!r}, low={self.low}, high={self.high})"

    # --- the density -----------------------------------------------------------------

    @computed_once
    def _inner(self) -> KAEMPrior | KAEMMixture:
        """Density whose panels end at the bounds; itself goes on beyond them."""
        prior, bounds = self.prior, list[jax.Array | None](self._ends)
        low, high = bounds
        if is_concrete(support_bounds(prior)):
            # A bound that cuts nothing off leaves the tail to its closed form.
            least, most = (np.asarray(end) for end in support_bounds(prior))
            low = None if is_concrete(low) and np.all(low <= least) else low
            high = None if is_concrete(high) and np.all(high >= most) else high
        if low is None and high is None:
            return prior
        if isinstance(prior, KAEMPrior):
            return _cut_prior(prior, low, high)
        expand = partial(jnp.expand_dims, axis=-1)
        low, high = (None if end is None else expand(end) for end in (low, high))
        cut = _cut_prior(prior.prior, low, high)
        logits = prior.log_weights + _log_share(cut, prior.prior)
        return KAEMMixture.tree_unflatten((False,), (logits, cut))

    @property
    def _log_masses(self) -> jax.Array:
        """Log of the mass that is left, of each component for a mixture."""
        inner = self._inner
        if isinstance(inner, KAEMMixture):
            return jnp.asarray(inner.mixing_logits)
        return _log_share(inner, self.prior)

    @property
    def log_mass(self) -> jax.Array:
        """Log of the prior's mass between the bounds, shape ``batch_shape``."""
        masses = self._log_masses
        if isinstance(self.prior, KAEMMixture):
            masses = logsumexp(masses, axis=-1)
        return jnp.broadcast_to(masses, self.batch_shape)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> jax.Array:
        """Log density, shape broadcast(value.shape, batch_shape)."""
        value = self._as_float(value)
        low, high = (jnp.asarray(end, value.dtype) for end in self._ends)
        inside = (value >= low) & (value <= high)
        safe = jnp.where(inside, value, interior_point(low, high, value.dtype))
        return jnp.where(inside, self._inner.log_prob(safe), -jnp.inf)

    def cdf_pair(self, value: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Masses below and above ``value``, each to its own relative precision.

        Shapes broadcast(value.shape, batch_shape).
        """
        return self._inner.cdf_pair(value)

    def icdf_of_tail(self, mass: jax.Array, upper: jax.Array) -> jax.Array:
        """Point with a mass of at most 1/2 below it, or above it where ``upper``."""
        return self._inner.icdf_of_tail(mass, upper)

    def _as_float(self, value: ArrayLike, name: str = "value") -> jax.Array:
        return _components(self.prior)._as_float(value, name)

    def sample(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Draw by inversion, shape ``sample_shape + batch_shape``; never an end."""
        return self._inner.sample(key, sample_shape)

    # --- moments ---------------------------------------------------------------------

    @property
    def mean(self) -> jax.Array:
        """Mean, shape ``batch_shape``; not finite where an open tail's is not."""
        return self._inner.mean

    @property
    def variance(self) -> jax.Array:
        """Variance, shape ``batch_shape``; not finite where an open tail's is not."""
        return self._inner.variance

    def entropy(self) -> jax.Array:
        """Differential entropy in nats, shape ``batch_shape``, by quadrature."""
        return self._inner.entropy()


def _log_share(cut: KAEMPrior, prior: KAEMPrior) -> jax.Array:
    """Log of the share of a prior's mass that is left; minus infinity where it is 0."""
    if cut is prior:
        return jnp.zeros(prior.batch_shape, prior.energy.dtype)
    share = cut.log_normalizer - prior.log_normalizer
    return jnp.where(cut._given[2], share, -jnp.inf)


def _components(prior: KAEMPrior | KAEMMixture) -> KAEMPrior:
    return prior.prior if isinstance(prior, KAEMMixture) else prior


def _as_bound(name: str, bound: ArrayLike | None, dtype: Any) -> jax.Array | None:
    """Convert to an array of the format of the densities; ``None`` is no bound."""
    if bound is None:
        return None
    as_real(name, bound)
    if is_concrete(bound):
        if np.any(np.isnan(np.asarray(bound))):
            raise ValueError(f"{name} must not be NaN, got {bound}.")
        with concretely():
            return jnp.asarray(bound, dtype)
    return jnp.asarray(bound, dtype)


# --- panels between bounds -----------------------------------------------------------


class _Cut(KAEMPrior):
    """A prior with given panels and ends; its log density does not end where they do.

    Beside those, ``_given`` has where in its batch the panels are not empty.
    """

    pytree_data_fields = ("energy", "_parameters", "_given")

    @property
    def _panels(self) -> Panels:
        return self._given[0]

    @property
    def _ends(self) -> tuple[ArrayLike, ArrayLike]:
        return self._given[1]

    def _with_reference_moment(self, name: str, moment: jax.Array) -> jax.Array:
        # Only a tail that is left, and without end, may have no moments.
        pairs = zip(self._panels.has_tails, support_bounds(self.reference), strict=True)
        if not any(
            has_tail and (not is_concrete(end) or np.any(np.isinf(end)))
            for has_tail, end in pairs
        ):
            return moment
        return super()._with_reference_moment(name, moment)


def _cut_prior(prior: KAEMPrior, low: ArrayLike | None, high: ArrayLike | None) -> _Cut:
    """Cut the panels of a prior at bounds, of which one may be open (``None``)."""
    panels, (least, most) = prior._panels, prior._ends
    dtype = prior.energy.dtype
    bounds = [None if end is None else jnp.asarray(end, dtype) for end in (low, high)]
    beyond = any(panels.has_tails) and not _inside_panels(panels, bounds)
    edges, has_mass = _cut_edges(
        panels.edges, prior._parameters, *bounds, panels.has_tails, beyond
    )
    below, above = panels.has_tails
    tails = below and bounds[0] is None, above and bounds[1] is None
    ends = (
        jnp.asarray(_both(jnp.maximum, least, bounds[0]), dtype),
        jnp.asarray(_both(jnp.minimum, most, bounds[1]), dtype),
    )
    shapes = [np.shape(bound) for bound in bounds if bound is not None]
    shape = jnp.broadcast_shapes(prior.batch_shape, *shapes)
    energy = broadcast_energy(prior.energy, shape)
    # Draws lie between the ends, whose own derivatives are those of the panels.
    given = (Panels(edges, None, tails), jax.lax.stop_gradient(ends), has_mass)
    parts = (energy, prior._parameters, given)
    return _Cut.tree_unflatten((prior.refinement, False), parts)


def broadcast_energy(energy: Energy, shape: tuple[int, ...]) -> Energy:
    """Return the same energy for every density of a larger batch."""
    coefficients = jnp.asarray(energy.coefficients)
    coefficients = jnp.broadcast_to(coefficients, (*shape, coefficients.shape[-1]))
    return eqx.tree_at(lambda e: e.coefficients, energy, coefficients)


def _inside_panels(panels: Panels, bounds: list[jax.Array | None]) -> bool:
    """Whether all bounds are known to lie where there are panels."""
    if not is_concrete((panels.edges, bounds)):
        return False
    first, last = np.asarray(panels.edges[0]), np.asarray(panels.edges[-1])
    given = [np.asarray(bound) for bound in bounds if bound is not None]
    return all(np.all((bound >= first) & (bound <= last)) for bound in given)


# From the end of the panels out into a tail, in lengths over which the density changes:
# far off a tail is a power, on which panels may widen fourfold.
_FROM_PANELS = np.concatenate([2.0 ** np.arange(-2, 7), 4.0 ** np.arange(4, 31)])
# From a bound inwards: over each of these lengths a density that falls has fallen by e.
_FROM_BOUND = 2.0 ** np.arange(-2, 7)
# Farther out, derivatives of a log density may overflow.
_LEAST_LOG_DENSITY = -1e5


@partial(jax.jit, static_argnums=(4, 5))
def _cut_edges(
    edges: jax.Array,
    parameters: ReferenceParameters | None,
    low: jax.Array | None,
    high: jax.Array | None,
    has_tails: tuple[bool, bool],
    beyond: bool,
) -> tuple[jax.Array, jax.Array]:
    """Edges between bounds, and whether there is something between them.

    Where there is nothing, those of the panels; their number depends on shapes only. If
    a bound may lie ``beyond`` the panels, these are continued into the tails, and are
    fine near the panels, near the bounds and where the reference changes.
    """
    bounds, signs = (low, high), (-1.0, 1.0)
    limits = [edges[0], edges[-1]]
    rows = [edges]
    if beyond and parameters is not None:
        reference = jax.lax.stop_gradient(parameters).build()
        rows += [*density_breaks(reference), *(k[None] for k in kinks(reference))]
    for side, (bound, sign) in enumerate(zip(bounds, signs, strict=True)):
        outermost = jax.lax.stop_gradient(edges[-side])
        if beyond and has_tails[side]:
            points = _points_outside(reference, outermost, side)
            rows.append(points)
            if bound is None:
                # All mass may lie in this tail, which gets panels for a while.
                (other,) = (b for b in bounds if b is not None)
                _, last = _points_from(reference, other, sign)
                end = jnp.asarray(support_bounds(reference)[side], edges.dtype)
                last = sign * jnp.minimum(sign * last, sign * end)
                in_tail = sign * (other - outermost) > 0
                limits[side] = jnp.where(in_tail, last, outermost)
            else:
                limits[side] = sign * jnp.max(sign * points, axis=0)
        if bound is not None:
            if beyond:
                rows.append(_points_from(reference, bound, -sign)[0])
            past = sign * (bound - limits[side]) > 0
            limits[side] = jnp.where(past, limits[side], bound)
    has_mass = limits[0] < limits[1]
    start = jnp.where(has_mass, limits[0], edges[0])
    stop = jnp.where(has_mass, limits[1], edges[-1])
    shape = jnp.broadcast_shapes(start.shape, *(row.shape[1:] for row in rows))
    rows = [with_rank(row, len(shape)) for row in rows]
    rows = [jnp.broadcast_to(row, (row.shape[0], *shape)) for row in rows]
    points = jnp.concatenate(rows).astype(edges.dtype)
    # Not by clip: at a panel's own edge the derivative must be all that of the bound.
    points = jnp.where(points <= start, start, jnp.where(points >= stop, stop, points))
    return jnp.sort(points, axis=0), has_mass


def _points_from(
    reference: dist.Distribution, bound: jax.Array, sign: float
) -> tuple[jax.Array, jax.Array]:
    """Points on one side of a bound, and the last of them."""
    bound = jax.lax.stop_gradient(bound)
    length = local_length(reference, bound)
    steps = jnp.asarray(_FROM_BOUND, bound.dtype).reshape((-1,) + (1,) * length.ndim)
    points = bound + sign * steps * length
    return points, points[-1]


def _points_outside(
    reference: dist.Distribution, outermost: jax.Array, side: int
) -> jax.Array:
    """Points from the last edge of the panels out into a tail, or to its end."""
    sign = (-1.0, 1.0)[side]
    length = local_length(reference, outermost)
    column = (-1,) + (1,) * length.ndim
    end = jnp.asarray(support_bounds(reference)[side], outermost.dtype)
    finite = jnp.isfinite(end)
    steps = jnp.asarray(_FROM_PANELS, end.dtype).reshape(column)
    far = outermost + sign * steps * length
    log_values = log_density(reference, far) + jnp.log(length)
    far = jnp.where(log_values > _LEAST_LOG_DENSITY, far, outermost)
    # Towards an end they shrink, down to a distance at which a density that is infinite
    # there is still a number.
    shrink = jnp.asarray(4.0 ** -np.arange(1.0, 1 + len(_FROM_PANELS)), end.dtype)
    info = jnp.finfo(end.dtype)
    span = jnp.where(finite, jnp.abs(outermost - end), 1)
    least = jnp.maximum(
        8 * info.eps * jnp.abs(jnp.where(finite, end, 0)), 4 * info.tiny
    )
    distance = jnp.maximum(shrink.reshape(column) * span, jnp.minimum(least, span))
    near = jnp.where(finite, end, 0) - sign * distance
    return jnp.where(finite, near, far)


# --- NumPyro's vmap ------------------------------------------------------------------


@vmap_over.register
def _vmap_over_truncated(
    truncated: TruncatedKAEM, prior: Any = None, low: Any = None, high: Any = None
) -> TruncatedKAEM:
    """Axes of a batch; ``prior`` is an axis for all its arrays with one."""
    axes = TruncatedKAEM.__new__(TruncatedKAEM)
    if isinstance(truncated.prior, KAEMMixture):
        axes.prior = vmap_over(truncated.prior, mixing_logits=prior, prior=prior)
    else:
        axes.prior = vmap_over(truncated.prior, energy=prior, reference=prior)
    axes.low, axes.high = low, high
    axes._validate_args = truncated._validate_args
    return axes
