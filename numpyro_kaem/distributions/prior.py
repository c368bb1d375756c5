"""Tilted densities as NumPyro distributions, and what all learned densities share."""

import functools
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints, transforms
from numpyro.distributions.batch_util import promote_batch_shape, vmap_over
from numpyro.distributions.util import validate_sample

from numpyro_kaem._checks import (
    as_count,
    as_real,
    as_sample_shape,
    as_tuples,
    check_key,
)
from numpyro_kaem.distributions.transform import InverseCDFTransform
from numpyro_kaem.energy import Energy, UnitGridEnergy
from numpyro_kaem.numerics import cells, density, inverse
from numpyro_kaem.numerics.density import (
    Resolution,
    check_not_nan,
    needed_refinement,
    warn_of_error,
    warn_of_reference,
    warn_of_spacing,
)
from numpyro_kaem.numerics.panels import Panels, make_panels
from numpyro_kaem.references import (
    TRAITS,
    ReferenceParameters,
    Traits,
    check_reference,
    concretely,
    density_breaks,
    has_regular_ends,
    is_concrete,
    support_bounds,
    with_rank,
)

__all__ = [
    "KAEMPrior",
    "LearnedDensity",
    "StaticInterval",
    "breaks_of",
    "computed_once",
    "promoting_ranks",
]

T = TypeVar("T")


class computed_once(Generic[T]):
    """Attribute computed once from concrete parameters, at each use from traced ones.

    The parameters are the leaves of the pytree, unless others are given.
    """

    def __init__(
        self,
        compute: Callable[[Any], T],
        parameters: Callable[[Any], Any] = lambda owner: owner.tree_flatten()[0],
    ) -> None:
        self._compute = compute
        self._parameters = parameters

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: type | None = None) -> T:
        # A value in the dictionary of the owner is found before this is called.
        if not is_concrete(self._parameters(owner)):
            return self._compute(owner)
        with concretely():
            value = self._compute(owner)
        # Nothing of an outer trace may be kept beyond it.
        if is_concrete(value):
            owner.__dict__[self._name] = value
        return value


# Its options have no declared types.
_CONFIG: Any = jax.config


def promoting_ranks(method: Callable) -> Callable:
    """Let a method broadcast arrays of different rank where JAX is told not to."""
    # Points and batches of densities broadcast by design, as in NumPyro.

    @functools.wraps(method)
    def promoting(*args: Any, **kwargs: Any) -> Any:
        if _CONFIG.jax_numpy_rank_promotion == "allow":
            return method(*args, **kwargs)
        with jax.numpy_rank_promotion("allow"):
            return method(*args, **kwargs)

    return promoting


class LearnedDensity(dist.Distribution):
    """Univariate distribution with ``cdf_pair``, ``icdf_of_tail`` and ``_ends``."""

    # NumPyro's own are shapes, which change under vmap.
    pytree_aux_fields: tuple[str, ...] = ()

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """Parameters, and what is static."""
        static = (*self.pytree_aux_fields, "_validate_args")
        data = tuple(getattr(self, name) for name in self.pytree_data_fields)
        return data, tuple(getattr(self, name) for name in static)

    @classmethod
    def tree_unflatten(cls, aux_data: tuple, params: tuple) -> Any:
        """Inverse of :meth:`tree_flatten`, without checks."""
        new = cls.__new__(cls)
        aux = (*cls.pytree_aux_fields, "_validate_args")
        new.__dict__.update(zip(cls.pytree_data_fields, params, strict=True))
        new.__dict__.update(zip(aux, aux_data, strict=True))
        new._event_shape = ()
        return new

    def cdf(self, value: ArrayLike) -> jax.Array:
        """Mass below ``value``, shape broadcast(value.shape, batch_shape)."""
        return self.cdf_pair(value)[0]

    @promoting_ranks
    def icdf(self, q: ArrayLike) -> jax.Array:
        """Quantile, shape broadcast(q.shape, batch_shape); ``q`` in [0, 1], else NaN.

        ``icdf(0)`` and ``icdf(1)`` are the ends of the support.
        """
        return inverse.icdf(self.icdf_of_tail, self._ends, self._as_float(q, "q"))

    def as_transformed(self, base: str = "uniform") -> dist.TransformedDistribution:
        """Return the same distribution as the transform of a fixed one.

        NumPyro's ``TransformReparam`` then samples that instead. Draws are
        reparameterised.

        Parameters
        ----------
        base
            ``"uniform"``: Uniform(0, 1) through the quantile function. ``"normal"``:
            Normal(0, 1) through the quantiles of its own distribution function, which
            samplers explore better.

        Raises
        ------
        ValueError
            If ``base`` is neither.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> import numpyro_kaem as kaem
        >>> energy = kaem.Energy(kaem.RBF(-1.0, 3.0, 5), jnp.zeros((2, 5)))
        >>> prior = kaem.KAEMPrior(energy)
        >>> print(prior.as_transformed("normal").transforms[0](jnp.zeros(2)))
        [1. 1.]
        >>> mixture = kaem.KAEMMixture(jnp.zeros(2), prior).as_transformed()
        >>> print(mixture.transforms[0](jnp.array([0.25, 0.75])))
        [0. 2.]
        """
        transform = InverseCDFTransform(self, base=base)
        fixed = dist.Uniform(0.0, 1.0) if base == "uniform" else dist.Normal(0.0, 1.0)
        return dist.TransformedDistribution(fixed.expand(self.batch_shape), transform)


promote_batch_shape.register(LearnedDensity, lambda density: density)


class KAEMPrior(LearnedDensity):
    r"""Reference density tilted by an energy: a learnable density on the line.

    .. math::

        \pi(z) = \frac{e^{f(z)}\,\pi_0(z)}{Z}, \qquad
        Z = \int e^{f(z)}\,\pi_0(z)\,\mathrm{d}z.

    Outside its grid :math:`[l, h]` the energy :math:`f` is constant, so the tails are
    those of the reference :math:`\pi_0`. The normalizing constant :math:`Z` is found by
    quadrature, and a draw inverts the distribution function: ``sample``, ``cdf``,
    ``icdf`` and ``log_prob`` agree to rounding.

    Parameters
    ----------
    energy
        Energy :math:`f`, such as ``Energy(RBF(-1.0, 1.0, 20), coefficients)``.
    reference
        Any continuous univariate NumPyro distribution with a ``cdf``; its parameters
        may be learned. ``None`` is the uniform distribution on the grid.
    refinement
        Number of parts into which every panel of the quadrature is divided. ``None``:
        as many as a concrete energy needs, and 1 for a traced one.
    validate_args
        Check the values given to ``log_prob``, as NumPyro does.

    Raises
    ------
    TypeError
        If ``energy`` is not an :class:`Energy` in float32 or float64, ``reference`` is
        not a continuous univariate distribution with a ``cdf``, or ``refinement`` is
        not an integer.
    ValueError
        If the batch shapes do not broadcast, if the support of the reference misses the
        grid or its density is NaN somewhere, or if ``refinement`` is not positive.

    Warns
    -----
    UserWarning
        For a concrete energy, if the estimated relative error of :math:`Z` is above
        1e-4, if the mass of the reference differs from 1 by as much, or if more than
        1e-3 of the mass lies between two neighbouring numbers of the precision.

    Notes
    -----
    - Accuracy: the distribution function is exact to 1e-12 in float64, and to
      ``max(1e-6, 4 * density * spacing of numbers)`` in float32, for energies up to 20;
      beyond, see ``quadrature_error``.
    - Draws are reparameterised, with implicit derivatives.
    - Leaves: those of the energy, then the reference's parameters by name.

    References
    ----------
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.
    Devroye (1986), *Non-Uniform Random Variate Generation*, Springer, section II.2.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.BSpline(low=-1.0, high=3.0, num_basis=6)
    >>> energy = kaem.Energy(basis, jnp.array([0.0, 1.0, -2.0, 0.0, 2.0, 0.0]))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0))
    >>> z = prior.sample(jax.random.key(0), (1000,))
    >>> u = prior.cdf(z)
    >>> bool(jnp.all(jnp.abs(prior.icdf(u) - z) < 1e-4))
    True
    """

    arg_constraints = {"energy": constraints.dependent(is_discrete=False, event_dim=0)}
    reparametrized_params = ["energy"]
    pytree_data_fields: tuple[str, ...] = ("energy", "_parameters")
    pytree_aux_fields = ("_refinement",)

    @promoting_ranks
    def __init__(
        self,
        energy: Energy,
        reference: dist.Distribution | None = None,
        *,
        refinement: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(energy, Energy):
            raise TypeError(
                f"energy must be a numpyro_kaem.Energy, got {type(energy).__name__}; "
                "wrap a basis and its coefficients in one."
            )
        if energy.dtype not in (jnp.float32, jnp.float64):
            raise TypeError(
                "energy must have coefficients in float32 or float64, got "
                f"{energy.dtype}; convert them by coefficients.astype(jnp.float32)."
            )
        self.energy = energy
        self._parameters = None
        if reference is not None:
            check_reference(reference, energy)
            self._parameters = ReferenceParameters.of(reference)
        chosen = refinement is None
        self._refinement = 1 if chosen else as_count("refinement", refinement)
        super().__init__(self.batch_shape, (), validate_args=validate_args)
        if self._is_concrete and 0 not in self.batch_shape:
            self._check_resolution(choose=chosen)

    # --- parameters ------------------------------------------------------------------

    @property
    def reference(self) -> dist.Distribution:
        """The reference distribution."""
        if self._parameters is None:
            ends = (self.energy.basis.low, self.energy.basis.high)
            return dist.Uniform(*(jnp.asarray(end, self.energy.dtype) for end in ends))
        return self._parameters.build()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Broadcast of the energy's and the reference's batch shapes."""
        # From the leaves, which change their shapes under vmap.
        if self._parameters is None:
            return self.energy.batch_shape
        return jnp.broadcast_shapes(
            self.energy.batch_shape, self._parameters.build().batch_shape
        )

    @property
    def support(self) -> constraints.Constraint:
        """That of the reference, with static ends where they are known."""
        if self._parameters is None:
            return StaticInterval(self.energy.basis.low, self.energy.basis.high)
        return _static_support(self._parameters.build())

    @property
    def refinement(self) -> int:
        """Number of parts into which every panel of the quadrature is divided."""
        return self._refinement

    def __repr__(self) -> str:
        name = None if self._parameters is None else type(self.reference).__name__
        basis = self.energy.basis
        return (
            f"KAEMPrior({type(basis).__name__} with {basis.num_features} features, "
            f"reference={name}, batch_shape={self.batch_shape})"
        )

    @classmethod
    def infer_shapes(
        cls, energy: tuple[int, ...], reference: tuple[int, ...] = ()
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch and event shape from the batch shapes of energy and reference."""
        return jnp.broadcast_shapes(energy, reference), ()

    # --- computed once ---------------------------------------------------------------

    @property
    def _is_concrete(self) -> bool:
        return is_concrete(self.tree_flatten()[0])

    @computed_once
    def _on_unit_grid(self) -> UnitGridEnergy:
        return self.energy.on_unit_grid

    @computed_once
    def _prepared(self) -> ReferenceParameters | None:
        """Parameters of the reference for compiled functions."""
        return None if self._parameters is None else self._parameters.prepared

    @computed_once
    def _ends(self) -> tuple[ArrayLike, ArrayLike]:
        if self._parameters is None:
            basis = self.energy.basis
            return np.asarray(basis.low), np.asarray(basis.high)
        return support_bounds(self._parameters.build())

    @computed_once
    def _panels(self) -> Panels:
        return make_panels(self.energy, self._prepared, self._refinement)

    @property
    def _parts(self) -> tuple[UnitGridEnergy, ReferenceParameters | None, Panels]:
        return self._on_unit_grid, self._prepared, self._panels

    @computed_once
    def _table(self) -> cells.Table:
        return cells.tabulate(*self._parts)

    @computed_once
    def _resolution(self) -> Resolution:
        return density.resolution(*self._parts)

    @computed_once
    def _error(self) -> jax.Array:
        return self._resolution.error

    def _made(self) -> tuple:
        """Return what compiled functions take instead of computing it again."""
        return self._panels, self._table, self._prepared

    def _keep_made(self, made: tuple) -> None:
        """Keep what :meth:`_made` returned, in a copy inside compiled code."""
        names = ("_panels", "_table", "_prepared")
        self.__dict__.update(zip(names, made, strict=True))

    def _check_resolution(self, choose: bool) -> None:
        """Refine the panels of a concrete energy, and warn where that is not enough."""
        first = self._resolution
        if self._parameters is not None:
            check_not_nan(first, self._parameters)
        refinement = needed_refinement(first, self.energy.dtype)
        if choose and refinement > 1:
            self._refinement = refinement
            del self.__dict__["_panels"], self.__dict__["_resolution"]
        change = float(first.change)
        resolution = self._resolution
        warn_of_spacing(resolution, self.energy.dtype)
        if self._parameters is not None:
            warn_of_reference(resolution, self._parameters, self.energy.dtype)
        # Not a sum of JAX's, which a trace would make a tracer of.
        parts = (resolution.panels, resolution.series, resolution.rounding)
        error = sum(np.asarray(part) for part in parts)
        warn_of_error(error, change, self._refinement, stacklevel=4)

    # --- the density -----------------------------------------------------------------

    @property
    @promoting_ranks
    def log_normalizer(self) -> jax.Array:
        """Log of the normalizing constant :math:`Z`, shape ``batch_shape``."""
        if "_table" in self.__dict__ or self._is_concrete:
            return self._table.log_normalizer
        return density.log_normalizer(*self._parts)

    @property
    @promoting_ranks
    def quadrature_error(self) -> jax.Array:
        """Estimated error of :math:`Z`, relative, and of masses: shape ``batch_shape``.

        By the Gauss-Kronrod rule, plus the last terms of the series within a panel,
        rounding, and the difference from 1 of the mass of the reference.
        """
        return self._error

    @promoting_ranks
    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> jax.Array:
        """Log density, shape broadcast(value.shape, batch_shape)."""
        parts = (self._on_unit_grid, self._prepared, self.log_normalizer)
        return density.log_prob(*parts, self._as_float(value))

    @promoting_ranks
    def cdf_pair(self, value: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Masses below and above ``value``, each to its own relative precision.

        Shapes broadcast(value.shape, batch_shape). The second is the survival
        probability, which ``1 - cdf`` loses to rounding in the upper tail.
        """
        parts = (self._table, self._on_unit_grid, self._prepared)
        return inverse.cdf_pair(*parts, self._as_float(value))

    @promoting_ranks
    def icdf_of_tail(self, mass: jax.Array, upper: jax.Array) -> jax.Array:
        """Point with a mass of at most 1/2 below it, or above it where ``upper``."""
        return inverse.icdf_of_tail(self._table, self._prepared, mass, upper)

    @promoting_ranks
    def sample(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Draw by inversion, shape ``sample_shape + batch_shape``; never an end."""
        check_key(key, "key")
        sample_shape = as_sample_shape(sample_shape)
        if math.prod(sample_shape) == 1 and not self._is_concrete:
            # A table for one draw would mostly not be used.
            z = inverse.sample_once(*self._parts, self._ends, key)
            return jnp.reshape(z, (*sample_shape, *self.batch_shape))
        parts = (self._table, self._prepared, self._ends)
        return inverse.sample(*parts, key, sample_shape)

    def _as_float(self, value: ArrayLike, name: str = "value") -> jax.Array:
        value = as_real(name, value)
        return value.astype(jnp.result_type(value.dtype, self.energy.dtype))

    # --- moments ---------------------------------------------------------------------

    @promoting_ranks
    def expectation(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Mean of a function under the density, by quadrature: shape ``batch_shape``.

        Parameters
        ----------
        function
            Elementwise and smooth: ``(num_nodes, *batch_shape)`` to the same shape.

        Raises
        ------
        ValueError
            If it changes the shape, or its values depend on the order of the nodes.

        Examples
        --------
        >>> import numpy as np
        >>> import numpyro_kaem as kaem
        >>> flat = kaem.KAEMPrior(kaem.Energy(kaem.RBF(0.0, 3.0, 5), np.zeros(5)))
        >>> round(float(flat.expectation(lambda z: z**2)), 4)
        3.0
        """
        nodes, masses = self.nodes()
        values = function(nodes)
        if jnp.shape(values) != nodes.shape:
            raise ValueError(
                "function must be elementwise, from an array to one of the same shape, "
                f"got shape {jnp.shape(values)} from {nodes.shape}; a constant is "
                "lambda z: jnp.full_like(z, constant)."
            )
        reversed_values = function(nodes[::-1])[::-1]
        if is_concrete((values, reversed_values)):
            _check_order(np.asarray(values), np.asarray(reversed_values))
        # A node without mass may lie where the function is infinite.
        return jnp.sum(jnp.where(masses > 0, masses * values, 0), axis=0)

    @promoting_ranks
    def nodes(self) -> tuple[jax.Array, jax.Array]:
        """Nodes and masses of the quadrature, each ``(num_nodes, *batch_shape)``.

        Tails are included: the masses sum to 1.
        """
        return density.nodes(*self._parts, self.log_normalizer)

    @property
    @promoting_ranks
    def mean(self) -> jax.Array:
        """Mean, shape ``batch_shape``; not finite where the reference's is not."""
        return self._with_reference_moment("mean", self._moments()[0])

    @property
    @promoting_ranks
    def variance(self) -> jax.Array:
        """Variance, shape ``batch_shape``; not finite where the reference's is not."""
        return self._with_reference_moment("variance", self._moments()[1])

    def _moments(self) -> tuple[jax.Array, jax.Array]:
        return density.moments(*self._parts, self.log_normalizer)

    def _with_reference_moment(self, name: str, moment: jax.Array) -> jax.Array:
        if self._parameters is None or not any(self._panels.has_tails):
            return moment
        try:
            reference_moment = getattr(self._parameters.build(), name)
        except NotImplementedError:
            return moment
        finite = jnp.isfinite(reference_moment)
        return jnp.where(finite, moment, jax.lax.stop_gradient(reference_moment))

    @promoting_ranks
    def entropy(self) -> jax.Array:
        """Differential entropy in nats, shape ``batch_shape``."""
        parts = (self._on_unit_grid, self._prepared, self.log_normalizer)
        return -self.expectation(lambda z: density.log_prob(*parts, z))


def _check_order(values: np.ndarray, reversed_values: np.ndarray) -> None:
    """Refuse a function of all nodes at once, which changes with their order."""
    finite = np.isfinite(values) & np.isfinite(reversed_values)
    # Truth values become numbers.
    one, other = values[finite] + 0.0, reversed_values[finite] + 0.0
    size = np.maximum(np.abs(one), np.abs(other))
    # Far more than rounding.
    if size.size and np.any(abs(one - other) > 0.01 * size + 1e-3 * np.median(size)):
        raise ValueError(
            "function must be elementwise, got one whose value at a node changes with "
            "the order of the nodes."
        )


# --- as the reference of another -----------------------------------------------------


def _has_regular_ends(prior: KAEMPrior) -> bool:
    return prior._parameters is None or has_regular_ends(prior._parameters.build())


def breaks_of(prior: KAEMPrior) -> jax.Array:
    """Points between which the density is smooth, ``(count, *shape)``."""
    # The edges of its panels, and those of the reference, for tails without panels.
    rows = [prior._panels.edges]
    if prior._parameters is not None:
        rows += density_breaks(prior.reference)
    rank = max(row.ndim for row in rows) - 1
    rows = [with_rank(row, rank) for row in rows]
    shape = np.broadcast_shapes(*(row.shape[1:] for row in rows))
    return jnp.concatenate([jnp.broadcast_to(r, (len(r), *shape)) for r in rows])


TRAITS[KAEMPrior] = Traits(
    mass=lambda d, x, upper: d.cdf_pair(x)[upper],
    breaks=breaks_of,
    regular_ends=_has_regular_ends,
    tails=lambda d: d.reference,
    is_whole=True,
)


# --- NumPyro's vmap ------------------------------------------------------------------


@vmap_over.register
def _vmap_over_prior(
    prior: KAEMPrior, energy: Any = None, reference: Any = None
) -> KAEMPrior:
    """Axes of a batch of priors: an axis for all arrays with one, or a tree of axes."""
    shared = prior._parameters is None or prior._parameters.build().batch_shape == ()
    if shared and isinstance(reference, int):
        # An array of a reference without a batch may have axes of its own.
        reference = None
    parts = (_axes_of(prior.energy, energy), _axes_of(prior._parameters, reference))
    return KAEMPrior.tree_unflatten(prior.tree_flatten()[1], parts)


def _axes_of(tree: Any, axis: Any) -> Any:
    if axis is not None and not isinstance(axis, int):
        return axis
    # A scalar, such as the bandwidth, is shared.
    return jax.tree_util.tree_map(
        lambda leaf: axis if np.ndim(leaf) > 0 else None, tree
    )


# --- supports ------------------------------------------------------------------------


class StaticInterval(constraints.ParameterFreeConstraint):
    """Closed interval with floats, or nested tuples of floats, as its ends.

    Without arrays it is hashable and the same in every trace, which NumPyro's mixtures
    ask of the support of their components. All ends of one side may be infinite.
    """

    event_dim = 0

    def __init__(self, lower_bound: Any, upper_bound: Any) -> None:
        self._ends = (lower_bound, upper_bound)

    @classmethod
    def of(cls, low: ArrayLike, high: ArrayLike) -> "StaticInterval":
        """Interval from concrete numbers or arrays."""
        ends = np.broadcast_arrays(np.asarray(low, float), np.asarray(high, float))
        return cls(*(as_tuples(end.tolist()) for end in ends))

    @property
    def bounds(self) -> tuple[Any, Any]:
        """Lower and upper ends, floats or arrays."""
        low, high = (
            np.asarray(end) if isinstance(end, tuple) else end for end in self._ends
        )
        return low, high

    @property
    def lower_bound(self) -> Any:
        """Lower ends."""
        return self.bounds[0]

    @property
    def upper_bound(self) -> Any:
        """Upper ends."""
        return self.bounds[1]

    def __call__(self, x: ArrayLike) -> ArrayLike:
        """Whether ``x`` lies in the interval, elementwise."""
        # In the precision of x: the ends of a float32 density are float32 numbers.
        dtype = jnp.result_type(x, float)
        low, high = (np.asarray(end, dtype) for end in self._ends)
        return (x >= low) & (x <= high)

    def __repr__(self) -> str:
        return f"StaticInterval({self._ends[0]}, {self._ends[1]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticInterval) and self._ends == other._ends

    def __hash__(self) -> int:
        return hash(self._ends)

    def eq(self, other: object, static: bool = False) -> bool:
        """Whether both are the same interval."""
        return self == other

    def feasible_like(self, prototype: ArrayLike) -> ArrayLike:
        """Return a point of the interval, of the shape of ``prototype``."""
        low, high = self.bounds
        has_low, has_high = np.all(np.isfinite(low)), np.all(np.isfinite(high))
        if has_low and has_high:
            inside = 0.5 * (low + high)
        else:
            inside = low + 1.0 if has_low else high - 1.0
        return jnp.broadcast_to(inside, jnp.shape(prototype))

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """No leaves: the ends are static."""
        return (), ((), {"_ends": self._ends})


@transforms.biject_to.register(StaticInterval)
def _biject_to_static_interval(constraint: StaticInterval) -> transforms.Transform:
    low, high = constraint.bounds
    has_low, has_high = np.all(np.isfinite(low)), np.all(np.isfinite(high))
    if has_low and has_high:
        onto_unit, domain = transforms.SigmoidTransform(), constraints.unit_interval
        last = transforms.AffineTransform(low, high - low, domain=domain)
        return transforms.ComposeTransform([onto_unit, last])
    end, sign = (low, 1.0) if has_low else (high, -1.0)
    last = transforms.AffineTransform(end, sign, domain=constraints.positive)
    return transforms.ComposeTransform([transforms.ExpTransform(), last])


def _static_support(reference: dist.Distribution) -> constraints.Constraint:
    """Support of a distribution, with static ends where they are known."""
    support, ends = reference.support, support_bounds(reference)
    is_static = isinstance(support, constraints.ParameterFreeConstraint)
    if is_static or not is_concrete(ends):
        return support
    with concretely():
        low, high = (np.asarray(end) for end in ends)
    bounded = np.all(np.isfinite(high)) or np.all(high == np.inf)
    has_static_ends = np.all(np.isfinite(low)) and bounded
    return StaticInterval.of(low, high) if has_static_ends else support
