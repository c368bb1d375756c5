"""Mixtures of tilted densities in one dimension."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import vmap_over
from numpyro.distributions.util import validate_sample

from numpyro_kaem._checks import as_real, as_sample_shape, as_vectors, check_key
from numpyro_kaem.distributions.prior import (
    KAEMPrior,
    LearnedDensity,
    StaticInterval,
    breaks_of,
    computed_once,
    promoting_ranks,
)
from numpyro_kaem.numerics import density, inverse
from numpyro_kaem.numerics.cells import Table, bracketed_step, mix_table
from numpyro_kaem.references import (
    TRAITS,
    ReferenceParameters,
    Traits,
    has_regular_ends,
    support_bounds,
)

__all__ = ["KAEMMixture"]


class KAEMMixture(LearnedDensity):
    r"""Mixture of tilted densities, drawn by inversion.

    .. math:: p(z) = \sum_k \alpha_k\,\pi_k(z), \qquad
              \alpha = \mathrm{softmax}(\text{mixing logits}).

    Parameters
    ----------
    mixing_logits
        Unnormalised log weights, shape ``(*batch_shape, num_components)`` or
        ``(num_components,)``; minus infinity excludes a component.
    prior
        The components, along the last batch dimension of a :class:`KAEMPrior`.
    validate_args
        Check the values given to ``log_prob``, as NumPyro does.

    Raises
    ------
    TypeError
        If ``prior`` is not a :class:`KAEMPrior`, or the logits are not real numbers,
        such as a distribution.
    ValueError
        If the prior has no batch dimension, if shapes do not match, or if concrete
        logits are NaN, plus infinity, or all minus infinity.

    Notes
    -----
    - Components that share a grid and a reference have their distribution functions on
      the same cells: that of the mixture is tabulated too, and a draw is one inversion
      for any number of components. Otherwise a draw selects a component and inverts it,
      and ``icdf`` searches between the quantiles of all components.
    - Derivatives of ``icdf`` are implicit. Draws have none (``has_rsample`` is False);
      those of :meth:`as_transformed` have.
    - Components with grids of their own share the support that covers all of them.
    - ``component_log_probs`` gives the responsibilities of the components.

    References
    ----------
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-1.0, 3.0, 8), (4,))
    >>> mixture = kaem.KAEMMixture(jnp.zeros(4), kaem.KAEMPrior(energy))
    >>> mixture.sample(jax.random.key(1), (1000,)).shape
    (1000,)
    """

    arg_constraints = {
        "mixing_logits": constraints.dependent(is_discrete=False, event_dim=1),
        "prior": constraints.dependent(is_discrete=False, event_dim=1),
    }
    reparametrized_params: list[str] = []
    pytree_data_fields = ("mixing_logits", "prior")

    def __init__(
        self,
        mixing_logits: ArrayLike,
        prior: KAEMPrior,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(mixing_logits, dist.Distribution):
            raise TypeError(
                "mixing_logits must be an array of log weights, such as the logits of "
                f"a Categorical, and come first, got a {type(mixing_logits).__name__}."
            )
        if not isinstance(prior, KAEMPrior):
            raise TypeError(
                f"prior must be a KAEMPrior, got {type(prior).__name__}; for other "
                "components, and for mixtures of products (to_event), use "
                "numpyro.distributions.MixtureSameFamily."
            )
        if prior.batch_shape == ():
            raise ValueError(
                "prior must have its components along its last batch dimension, got "
                "batch_shape ()."
            )
        num_components, dtype = prior.batch_shape[-1], prior.energy.dtype
        logits = as_vectors("mixing_logits", mixing_logits, num_components, dtype)
        if not isinstance(mixing_logits, jax.core.Tracer):
            values = np.asarray(mixing_logits, float)
            empty = values.size > 0 and np.any(np.all(values == -np.inf, axis=-1))
            if np.any(np.isnan(values) | (values == np.inf)) or empty:
                raise ValueError(
                    "mixing_logits must be finite or minus infinity, and not minus "
                    f"infinity for all components, got {mixing_logits}."
                )
        self.mixing_logits = logits
        self.prior = prior
        try:
            batch_shape = self.batch_shape
        except ValueError:
            raise ValueError(
                "mixing_logits and prior must have batch shapes that broadcast, got "
                f"{logits.shape} and {prior.batch_shape}."
            ) from None
        super().__init__(batch_shape, (), validate_args=validate_args)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Broadcast of the logits' and the prior's, without the components."""
        shapes = (np.shape(self.mixing_logits), self.prior.batch_shape)
        return jnp.broadcast_shapes(*shapes)[:-1]

    @property
    def num_components(self) -> int:
        """Number of components."""
        return self.prior.batch_shape[-1]

    @property
    def log_weights(self) -> jax.Array:
        """Normalised log weights, shape ``mixing_logits.shape``."""
        return jax.nn.log_softmax(self.mixing_logits, axis=-1)

    @property
    def support(self) -> constraints.Constraint:
        """The support that covers those of all components."""
        support = self.prior.support
        if isinstance(support, StaticInterval):
            least, most = (np.asarray(e) for e in support.bounds)
            if least.ndim > 0:
                least, most = least.min(axis=-1), most.max(axis=-1)
            return StaticInterval.of(least, most)
        if isinstance(support, constraints.ParameterFreeConstraint):
            return support
        low: Any = getattr(support, "lower_bound", None)
        high: Any = getattr(support, "upper_bound", None)
        if np.ndim(low) > 0:
            low = jnp.min(low, axis=-1)
        if np.ndim(high) > 0:
            high = jnp.max(high, axis=-1)
        if low is None:
            return constraints.less_than(high)
        if high is None:
            return constraints.greater_than(low)
        return constraints.interval(low, high)

    def __repr__(self) -> str:
        return f"KAEMMixture({self.num_components} components, {self.prior!r})"

    @classmethod
    def infer_shapes(
        cls, mixing_logits: tuple[int, ...], prior: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch and event shape from the shape of the logits and the components."""
        return jnp.broadcast_shapes(mixing_logits, prior)[:-1], ()

    @promoting_ranks
    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> jax.Array:
        """Log density, shape broadcast(value.shape, batch_shape)."""
        return self._log_density(self._as_float(value))

    @promoting_ranks
    def component_log_probs(self, value: ArrayLike) -> jax.Array:
        """Log of weight times density of each component, components last.

        Shape ``(*broadcast(value.shape, batch_shape), num_components)``, as NumPyro's
        mixtures have it. ``jax.random.categorical`` of it draws the component that a
        value came from.
        """
        values = jnp.expand_dims(as_real("value", value), -1)
        return self.log_weights + self.prior.log_prob(values)

    def _log_density(self, value: jax.Array) -> jax.Array:
        prior = self.prior
        parts = (prior._on_unit_grid, prior._prepared, prior.log_normalizer)
        return density.mixture_log_prob(self.log_weights, *parts, value)

    @promoting_ranks
    def cdf_pair(self, value: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Masses below and above ``value``, each to its own relative precision.

        Shapes broadcast(value.shape, batch_shape).
        """
        value = jnp.expand_dims(as_real("value", value), -1)
        below, above = self.prior.cdf_pair(value)
        weights = jnp.exp(self.log_weights)
        return jnp.sum(weights * below, axis=-1), jnp.sum(weights * above, axis=-1)

    @promoting_ranks
    def icdf_of_tail(self, mass: jax.Array, upper: jax.Array) -> jax.Array:
        """Point with a mass of at most 1/2 below it, or above it where ``upper``."""
        return _compiled_icdf(self, jax.lax.stop_gradient(self._own_table), mass, upper)

    def _as_float(self, value: ArrayLike, name: str = "value") -> jax.Array:
        return self.prior._as_float(value, name)

    @property
    def _ends(self) -> tuple[ArrayLike, ArrayLike]:
        return support_bounds(self)

    def _made(self) -> tuple:
        """Return what compiled functions take instead of computing it again."""
        return self._own_table, self.prior._made()

    def _keep_made(self, made: tuple) -> None:
        """Keep what :meth:`_made` returned, in a copy inside compiled code."""
        self.__dict__["_own_table"], of_components = made
        self.prior._keep_made(of_components)

    @computed_once
    def _own_table(self) -> Table | None:
        """Table of the mixture, if its components have their cells in common."""
        prior = self.prior
        shapes = [prior._panels.edges.shape[1:]]
        if prior._parameters is not None:
            shapes.append(prior._parameters.build().batch_shape)
            if shapes[-1] != () and not prior._parameters.is_elementwise:
                return None
        if any(shape[-1:] not in ((), (1,)) for shape in shapes):
            return None
        return mix_table(prior._table, self.log_weights)

    @property
    def _own_parameters(self) -> ReferenceParameters | None:
        """Parameters of the reference that the components share."""
        parameters = self.prior._prepared
        if parameters is not None and not parameters.is_elementwise:
            return parameters
        return jax.tree_util.tree_map(_without_components, parameters)

    @promoting_ranks
    def sample(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Draw by inversion, shape ``sample_shape + batch_shape``."""
        check_key(key, "key")
        sample_shape = as_sample_shape(sample_shape)
        prior, table = self.prior, self._own_table
        # Draws have no derivatives: those of a table would be computed for nothing.
        fixed = jax.lax.stop_gradient
        if table is not None:
            ends = tuple(_without_components(end) for end in prior._ends)
            own = fixed((table, self._own_parameters, ends))
            return inverse.sample(*own, key, sample_shape)
        parts = fixed((prior._table, prior._prepared, prior._ends, self.log_weights))
        return inverse.sample_mixture(*parts, key, sample_shape, self.batch_shape)

    # --- moments ---------------------------------------------------------------------

    @property
    @promoting_ranks
    def mean(self) -> jax.Array:
        """Mean, shape ``batch_shape``."""
        return jnp.sum(jnp.exp(self.log_weights) * self.prior.mean, axis=-1)

    @property
    @promoting_ranks
    def variance(self) -> jax.Array:
        """Variance, shape ``batch_shape``, by the law of total variance."""
        weights, means = jnp.exp(self.log_weights), self.prior.mean
        spread = jnp.square(means - self.mean[..., None])
        return jnp.sum(weights * (self.prior.variance + spread), axis=-1)

    @promoting_ranks
    def entropy(self) -> jax.Array:
        """Differential entropy in nats, shape ``batch_shape``, by quadrature."""
        nodes, masses = self.prior.nodes()
        shape = (nodes.shape[0], *self.batch_shape, self.num_components)
        nodes = jnp.moveaxis(jnp.broadcast_to(nodes, shape), -1, 1)
        masses = jnp.moveaxis(jnp.exp(self.log_weights) * masses, -1, 1)
        values = self._log_density(nodes)
        return -jnp.sum(jnp.where(masses > 0, masses * values, 0), axis=(0, 1))


def _without_components(leaf: Any) -> Any:
    """Drop the axis of the components, along which there is one entry."""
    return leaf if np.ndim(leaf) == 0 else leaf[..., 0]


@jax.custom_jvp
def _icdf_of_tail(
    mixture: KAEMMixture, table: Table | None, mass: jax.Array, upper: jax.Array
) -> jax.Array:
    """Invert the mixture by its table, or between the quantiles of its components."""
    shape = jnp.broadcast_shapes(mass.shape, mixture.batch_shape)
    mass, upper = jnp.broadcast_to(mass, shape), jnp.broadcast_to(upper, shape)
    if table is not None:
        return inverse.icdf_of_tail(table, mixture._own_parameters, mass, upper)
    bounds = mixture.prior.icdf_of_tail(mass[..., None], upper[..., None])
    used = mixture.log_weights > -jnp.inf
    low = jnp.min(jnp.where(used, bounds, jnp.inf), axis=-1)
    high = jnp.max(jnp.where(used, bounds, -jnp.inf), axis=-1)

    def step(_: ArrayLike, state: tuple) -> tuple:
        z, low, high = state
        below, above = mixture.cdf_pair(z)
        error = jnp.where(upper, mass - above, below - mass)
        slope = jnp.exp(mixture._log_density(z))
        return bracketed_step(z, error, slope, low, high)

    # Newton's steps where they stay in the bracket, else bisection of all its digits.
    steps = 60 if mass.dtype == jnp.float64 else 30
    return jax.lax.fori_loop(0, steps, step, (0.5 * (low + high), low, high))[0]


@_icdf_of_tail.defjvp
def _icdf_of_tail_jvp(primals: tuple, tangents: tuple) -> tuple:
    mixture, table, mass, upper = primals
    mixture_dot, _, mass_dot, _ = tangents
    z = _icdf_of_tail(mixture, table, mass, upper)
    _, (below, above) = jax.jvp(lambda m: m.cdf_pair(z), (mixture,), (mixture_dot,))
    change = jnp.where(upper, above - mass_dot, mass_dot - below)
    log_density = mixture._log_density(z)
    positive = log_density > jnp.log(jnp.finfo(z.dtype).tiny)
    slope = jnp.where(positive, jnp.exp(log_density), 1)
    return z, jnp.where(positive, change / slope, 0)


_compiled_icdf = jax.jit(_icdf_of_tail)


TRAITS[KAEMMixture] = Traits(
    mass=lambda d, x, upper: d.cdf_pair(x)[upper],
    breaks=lambda d: _of_components(d.prior),
    regular_ends=lambda d: has_regular_ends(d.prior),
    # One for all components, or the mixture itself.
    tails=lambda d: d.prior.reference if d.prior.reference.batch_shape == () else None,
    is_whole=True,
)


def _of_components(prior: KAEMPrior) -> jax.Array:
    """Join the breaks of all components, ``(count, *batch_shape)``."""
    edges = breaks_of(prior)
    if edges.ndim == 1:
        return edges
    edges = jnp.moveaxis(edges, -1, 1)
    return edges.reshape(-1, *edges.shape[2:])


@vmap_over.register
def _vmap_over_mixture(
    mixture: KAEMMixture, mixing_logits: Any = None, prior: Any = None
) -> KAEMMixture:
    axes = KAEMMixture.__new__(KAEMMixture)
    axes.mixing_logits = mixing_logits
    axes.prior = vmap_over(mixture.prior, energy=prior, reference=prior)
    axes._validate_args = mixture._validate_args
    return axes
