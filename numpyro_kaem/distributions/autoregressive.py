"""Autoregressive priors, and the masked network that gives their coefficients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import validate_sample

from numpyro_kaem._checks import as_count, as_sample_shape, as_vectors, check_key
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.bases._base import on_grid
from numpyro_kaem.distributions.prior import KAEMPrior, computed_once
from numpyro_kaem.energy import Energy
from numpyro_kaem.numerics import chain as conditionals
from numpyro_kaem.numerics.chain import Chain
from numpyro_kaem.numerics.inverse import uniform_tail_mass
from numpyro_kaem.references import ReferenceParameters

__all__ = ["AutoregressiveKAEMPrior", "MaskedConditioner"]

_STEEPNESS = 3.0


class MaskedConditioner(eqx.Module):
    r"""Network whose output for a dimension depends only on the dimensions before it.

    .. math:: c_i = b_i + N_i(x_1, \dots, x_{i-1}), \qquad i = 1, \dots, D.

    One multilayer perceptron gives all outputs at once; masks remove every path from
    :math:`x_j` to :math:`c_i` with :math:`j \ge i`, and :math:`c_1 = b_1`.

    Parameters
    ----------
    key, dim
        Random key, and number :math:`D` of dimensions.
    num_features
        Number of coefficients per dimension.
    width, depth
        Number of units of a hidden layer, and number of hidden layers. With fewer than
        ``dim - 1`` units some dimensions have no effect.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If one is not positive.

    Notes
    -----
    - The last layer and so all coefficients start at zero: a density starts as its
      reference.
    - Inputs are expected in [-1, 1], as :class:`AutoregressiveKAEMPrior` gives them:
      positions in the grid. The activation is ``tanh``.
    - Masked weights have no effect and no gradient.

    References
    ----------
    Germain, Gregor, Murray and Larochelle (2015), "MADE: masked autoencoder for
    distribution estimation", *International Conference on Machine Learning*.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> conditioner = kaem.MaskedConditioner(jax.random.key(0), dim=3, num_features=8)
    >>> conditioner(jnp.zeros((5, 3))).shape
    (5, 3, 8)
    """

    weights: tuple[jax.Array, ...]
    """Weights, shape ``(num_inputs, num_outputs)`` per layer."""
    biases: tuple[jax.Array, ...]
    """Offsets, shape ``(num_outputs,)`` per layer; the last ``(dim, num_features)``."""
    dim: int = eqx.field(static=True)
    num_features: int = eqx.field(static=True)

    def __init__(
        self,
        key: jax.Array,
        dim: int,
        num_features: int,
        width: int = 64,
        depth: int = 2,
    ) -> None:
        check_key(key, "key")
        self.dim = as_count("dim", dim)
        self.num_features = as_count("num_features", num_features)
        width, depth = as_count("width", width), as_count("depth", depth)
        weights: list[jax.Array] = []
        biases: list[jax.Array] = []
        for mask in _masks(self.dim, width, depth)[:-1]:
            key, weight_key, bias_key = jax.random.split(key, 3)
            # Divided by the root of the number of unmasked inputs. The first layer is
            # steeper, because samples fill only a part of their grid.
            steepness = 1.0 if weights else _STEEPNESS
            scale = steepness / np.sqrt(np.maximum(mask.sum(0), 1))
            weights.append(jax.random.normal(weight_key, mask.shape) * scale)
            biases.append(jax.random.uniform(bias_key, mask.shape[1:], minval=-1.0))
        weights.append(jnp.zeros((width, self.dim, self.num_features)))
        biases.append(jnp.zeros((self.dim, self.num_features)))
        self.weights, self.biases = tuple(weights), tuple(biases)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Coefficients: (..., dim) -> (..., dim, num_features)."""
        width, depth = self.weights[0].shape[1], len(self.weights) - 1
        *hidden, last = _masks(self.dim, width, depth)
        x = jnp.asarray(x)
        for weight, bias, mask in zip(self.weights, self.biases, hidden, strict=False):
            product = jnp.matmul(x, jnp.where(mask, weight, 0), precision="highest")
            x = jnp.tanh(product + bias)
        weight = jnp.where(last[..., None], self.weights[-1], 0)
        product = jnp.tensordot(x, weight, axes=1, precision="highest")
        return product + self.biases[-1]


def _masks(dim: int, width: int, depth: int) -> list[np.ndarray]:
    """Which inputs each unit of a layer has, shape ``(num_inputs, num_outputs)``."""
    # A hidden unit of order m may depend on the first m dimensions.
    orders = np.arange(width) % max(dim - 1, 1) + 1
    first = np.arange(1, dim + 1)[:, None] <= orders
    inner = orders[:, None] <= orders
    last = orders[:, None] < np.arange(1, dim + 1)
    return [first, *[inner] * (depth - 1), last]


class AutoregressiveKAEMPrior(dist.Distribution):
    r"""Joint density whose conditional densities are tilted references.

    .. math::

        p(z) = \prod_{i=1}^D p(z_i \mid z_{<i}), \qquad
        p(z_i \mid z_{<i}) \propto
        \exp\Bigl(\sum_g c_{i,g}(z_{<i})\,\phi_g(z_i)\Bigr)\,\pi_{0,i}(z_i).

    A masked network gives the coefficients. Every conditional is a one-dimensional
    :class:`KAEMPrior`, with an exact density; a draw takes one step per dimension.

    Parameters
    ----------
    basis
        Features :math:`\phi`, with one grid for all dimensions or grids of shape
        ``(dim,)``.
    conditioner
        Equinox module with an attribute ``dim`` and arrays as leaves, such as
        :class:`MaskedConditioner`. It maps positions in the grids, from -1 to 1, shape
        ``(..., dim)``, to coefficients ``(..., dim, basis.num_features)``. Those of
        dimension ``i`` must depend on positions before ``i`` only; this is not checked.
    reference
        Reference distributions :math:`\pi_{0,i}`, of batch shape ``(dim,)`` or ``()``.
        ``None`` is the uniform distribution on the grid.
    refinement
        Number of parts into which every panel of the quadrature is divided: more than 1
        for energies that change by more than about 10 between two knots.
    validate_args
        Check the values given to ``log_prob``, as NumPyro does.

    Raises
    ------
    TypeError
        If an argument is of another kind, or ``reference`` is not a continuous
        univariate distribution with a ``cdf``.
    ValueError
        If shapes do not match, the support of the reference misses the grid, or
        ``refinement`` is not positive.

    Notes
    -----
    - **The order of the dimensions matters.** In one order a conditional may be simple,
      and in another have several modes or a sharp edge. Put causes before effects.
    - Draws are reparameterised, with implicit derivatives through all dimensions.
    - Beyond the grid the conditional densities do not change with the previous
      dimensions, and the tails are those of the reference.
    - The panels of the quadrature do not adapt to the energies; where a conditional is
      steep, look at ``conditional(i, z).quadrature_error``.
    - Leaves: those of the basis, of the conditioner, then the reference's parameters.

    References
    ----------
    Rosenblatt (1952), "Remarks on a multivariate transformation", *Annals of
    Mathematical Statistics* 23(3).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.BSpline(low=-3.0, high=3.0, num_basis=8)
    >>> conditioner = kaem.MaskedConditioner(jax.random.key(0), dim=2, num_features=8)
    >>> prior = kaem.AutoregressiveKAEMPrior(basis, conditioner, dist.Normal(0.0, 1.0))
    >>> z = prior.sample(jax.random.key(1), (5,))
    >>> z.shape, prior.log_prob(z).shape
    ((5, 2), (5,))
    >>> prior.conditional(1, z[:, :1]).batch_shape
    (5,)
    """

    arg_constraints = {
        "conditioner": constraints.dependent(is_discrete=False, event_dim=0)
    }
    reparametrized_params = ["conditioner"]
    pytree_data_fields = ("basis", "conditioner", "_parameters")
    pytree_aux_fields = ("_refinement",)

    def __init__(
        self,
        basis: AbstractBasis,
        conditioner: eqx.Module,
        reference: dist.Distribution | None = None,
        *,
        refinement: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(basis, AbstractBasis):
            raise TypeError(
                "basis must be a basis such as numpyro_kaem.BSpline(low, high, "
                f"num_basis), got {type(basis).__name__}."
            )
        if (
            not isinstance(conditioner, eqx.Module)
            or not callable(conditioner)
            or not hasattr(conditioner, "dim")
        ):
            raise TypeError(
                "conditioner must be an Equinox module with an attribute dim, such as "
                f"numpyro_kaem.MaskedConditioner, got {type(conditioner).__name__}."
            )
        self._refinement = as_count("refinement", refinement)
        dim = conditioner.dim
        if basis.grid_shape not in ((), (1,), (dim,)):
            raise ValueError(
                f"the grid of basis must broadcast to ({dim},), one for each dimension "
                f"of conditioner, got {basis.grid_shape}."
            )
        shape = jax.eval_shape(conditioner, jnp.zeros(dim)).shape
        if shape != (dim, basis.num_features):
            raise ValueError(
                f"conditioner must give coefficients of shape ({dim}, "
                f"{basis.num_features}), one for each dimension and feature of "
                f"{type(basis).__name__}, got {shape}."
            )
        self.basis = basis
        self.conditioner: Any = conditioner
        self._parameters = None
        if reference is not None:
            # A prior of the same shapes makes the checks of a reference.
            flat = Energy(basis, jnp.zeros((dim, basis.num_features)))
            if KAEMPrior(flat, reference, refinement=1).batch_shape != (dim,):
                raise ValueError(
                    f"the batch shape of reference must broadcast to ({dim},), one "
                    f"distribution for each dimension, got {reference.batch_shape}."
                )
            self._parameters = ReferenceParameters.of(reference)
            if reference.batch_shape != () and not self._parameters.is_elementwise:
                raise ValueError(
                    f"reference must be one {type(reference).__name__} for all "
                    "dimensions, as its arrays have axes beside the batch, got "
                    f"batch_shape {reference.batch_shape}."
                )
        super().__init__((), (dim,), validate_args=validate_args)

    # --- parameters ------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self.conditioner.dim

    @property
    def reference(self) -> dist.Distribution:
        """Reference distributions, of batch shape ``(dim,)`` or ``()``."""
        return self._flat.reference

    @property
    def support(self) -> constraints.Constraint:
        """Those of the references, with static ends where they are known."""
        return constraints.independent(self._flat.support, 1)

    @property
    def refinement(self) -> int:
        """Number of parts into which every panel of the quadrature is divided."""
        return self._refinement

    @property
    def dtype(self) -> jnp.dtype:
        """Floating-point format of the coefficients."""
        return jax.eval_shape(self.conditioner, jnp.zeros(self.dim)).dtype

    @property
    def _flat(self) -> KAEMPrior:
        """Independent prior of the references, batch shape ``(dim,)``, unchecked."""
        zeros = jnp.zeros((self.dim, self.basis.num_features), self.dtype)
        parts = (Energy(self.basis, zeros), self._parameters)
        return KAEMPrior.tree_unflatten((self._refinement, False), parts)

    @computed_once
    def _chain(self) -> Chain:
        parts = (self.basis, self.conditioner, self._parameters)
        return conditionals.make_chain(*parts, self._refinement, self.dtype)

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """Basis, conditioner and reference parameters; the rest is static."""
        data = (self.basis, self.conditioner, self._parameters)
        return data, (self._refinement, self._validate_args)

    @classmethod
    def tree_unflatten(
        cls, aux_data: tuple, params: tuple
    ) -> "AutoregressiveKAEMPrior":
        """Inverse of :meth:`tree_flatten`, without checks."""
        prior = cls.__new__(cls)
        prior.basis, prior.conditioner, prior._parameters = params
        prior._refinement, prior._validate_args = aux_data
        prior._batch_shape = ()
        # A tree of something else than arrays has no shape, such as axes to map over.
        prior._event_shape = (getattr(prior.conditioner, "dim", None),)
        return prior

    def __repr__(self) -> str:
        name = None if self._parameters is None else type(self.reference).__name__
        return (
            f"AutoregressiveKAEMPrior({type(self.basis).__name__} with "
            f"{self.basis.num_features} features, reference={name}, dim={self.dim})"
        )

    # --- the density -----------------------------------------------------------------

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> jax.Array:
        """Log density: (..., dim) -> (...,)."""
        points = self._as_points("value", value)
        if points.size == 0:
            # NumPyro's check of a joint support divides by the number of points.
            return jnp.zeros(points.shape[:-1], points.dtype)
        return self._log_density(value)

    @validate_sample
    def _log_density(self, value: ArrayLike) -> jax.Array:
        return conditionals.log_prob(self._chain, self._as_points("value", value))

    def sample(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Draw by inversion, shape ``sample_shape + (dim,)``; never an end."""
        key = check_key(key, "key")
        sample_shape = as_sample_shape(sample_shape)
        mass, upper = uniform_tail_mass(key, (*sample_shape, self.dim), self.dtype)
        return conditionals.from_unit(self._chain, mass, upper, is_draw=True)

    def to_unit(self, value: ArrayLike) -> jax.Array:
        """Masses below each coordinate given those before: (..., dim) -> (..., dim).

        These are independent uniform numbers if ``value`` is a draw (Rosenblatt's
        transformation). The log Jacobian determinant is ``log_prob``.
        """
        return conditionals.to_unit(self._chain, self._as_points("value", value))[0]

    def from_unit(self, u: ArrayLike) -> jax.Array:
        """Inverse of :meth:`to_unit`: (..., dim) -> (..., dim); NaN outside [0, 1]."""
        u = self._as_points("u", u)
        upper = u > 0.5
        mass = jnp.where(upper, 1 - u, u)
        value = conditionals.from_unit(self._chain, mass, upper, is_draw=False)
        return jnp.where((u >= 0) & (u <= 1), value, jnp.nan)

    def conditional(self, index: int, before: ArrayLike) -> KAEMPrior:
        """Density of one dimension given those before it, of batch shape ``(...,)``.

        Parameters
        ----------
        index
            Which dimension, from 0 to ``dim - 1``.
        before
            Values of the dimensions before it, shape ``(..., index)``.

        Raises
        ------
        TypeError
            If ``index`` is not an integer.
        ValueError
            If ``index`` is not a dimension, or ``before`` has another shape.
        """
        index = as_count("index", index, minimum=0)
        if index >= self.dim:
            raise ValueError(
                f"index must be less than the number of dimensions, {self.dim}, got "
                f"{index}."
            )
        before = as_vectors("before", before, index).astype(self.dtype)
        rest = jnp.zeros((*before.shape[:-1], self.dim - index), before.dtype)
        position = conditionals.positions(
            self._chain, jnp.concatenate([before, rest], axis=-1)
        )
        coefficients = self.conditioner(position)[..., index, :]
        basis = self.basis
        if basis.grid_shape != ():
            ends = np.broadcast_to(np.stack([basis.low, basis.high]).T, (self.dim, 2))
            basis = on_grid(basis, *ends[index])
        reference = None
        if self._parameters is not None:
            parameters = self._parameters
            if parameters.is_elementwise:
                parameters = jax.tree_util.tree_map(
                    lambda leaf: jnp.broadcast_to(leaf, (self.dim,))[index], parameters
                )
            reference = parameters.build()
        return KAEMPrior(Energy(basis, coefficients), reference)

    def _as_points(self, name: str, value: ArrayLike) -> jax.Array:
        value = as_vectors(name, value, self.dim)
        return value.astype(jnp.result_type(value.dtype, self.dtype))


promote_batch_shape.register(AutoregressiveKAEMPrior, lambda prior: prior)
