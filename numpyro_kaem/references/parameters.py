"""The parameters of a reference as a pytree, and its checks."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from numpyro_kaem.references.traits import support_bounds, traits_of

__all__ = [
    "ReferenceParameters",
    "arguments_of",
    "check_reference",
    "concretely",
    "is_concrete",
]


def is_concrete(tree: Any) -> bool:
    """Whether no array in ``tree`` is traced, so that values can be looked at."""
    return not any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree_util.tree_leaves(tree)
    )


def concretely() -> AbstractContextManager:
    """Context in which concrete arrays give concrete results, inside a trace too.

    Outside of traces it does nothing: JAX's own context would evaluate the constants of
    compiled functions one operation after the other.
    """
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        return jax.ensure_compile_time_eval()
    return nullcontext()


# Arguments that are kept under another name.
_ATTRIBUTES = {"base_distribution": "base_dist", "mask": "_mask"}


def arguments_of(made: Any, name: str) -> dict[str, Any]:
    """Arguments that make a distribution or transform, in the order of their names."""
    values = {}
    parameters = inspect.signature(type(made).__init__).parameters
    for argument in sorted(parameters.keys() - {"self", "validate_args"}):
        parameter = parameters[argument]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        attribute = _ATTRIBUTES.get(argument, argument)
        if not hasattr(made, attribute):
            raise TypeError(
                f"{name} must keep its parameter {argument!r} as an attribute, which "
                f"{type(made).__name__} does not."
            )
        values[argument] = getattr(made, attribute)
    return values


# The name of a distribution that is kept whole, as a pytree of its own, and that of
# what is made once of its numbers: compiled functions take both, rather than make it
# again.
_WHOLE, _MADE = "distribution", "made"


@jax.tree_util.register_pytree_node_class
class ReferenceParameters:
    """The parameters of a NumPyro distribution, by name and in the order of the names.

    NumPyro flattens a distribution in the order of a Python set, which changes from
    process to process, and stores some parameters twice. This holds the class and the
    arguments of its constructor instead, from which :meth:`build` makes the
    distribution again. One whose leaves have an order of their own is kept whole.
    """

    def __init__(
        self,
        distribution: type[dist.Distribution],
        values: dict[str, Any],
        static: tuple[str, ...] | None = None,
    ) -> None:
        self.distribution = distribution
        self.values = values
        if static is None:
            static = tuple(
                name for name, v in values.items() if _is_static(distribution, name, v)
            )
        self.static = static

    @classmethod
    def of(cls, reference: dist.Distribution) -> "ReferenceParameters":
        """Read the parameters of a distribution, and of those in its arguments."""
        if isinstance(reference, dist.ExpandedDistribution):
            raise TypeError(
                "reference must have its batch shape in its parameters, got an "
                f"expanded {type(reference.base_dist).__name__}; pass arrays of the "
                "full shape."
            )
        if isinstance(reference, dist.MaskedDistribution):
            raise TypeError(
                "reference must be a density, got a masked "
                f"{type(reference.base_dist).__name__}; mask the prior instead."
            )
        if traits_of(reference).is_whole:
            return cls(type(reference), {_WHOLE: reference})
        values = {
            name: _as_parameter(
                reference, name, _replace(dist.Distribution, cls.of, value)
            )
            for name, value in arguments_of(reference, "reference").items()
        }
        return cls(type(reference), values)

    @property
    def _is_whole(self) -> bool:
        # Another distribution may have an argument of that name.
        return isinstance(self.values.get(_WHOLE), self.distribution)

    def build(self) -> dist.Distribution:
        """Distribution with these parameters."""
        if self._is_whole:
            whole = self.values[_WHOLE]
            if _MADE in self.values:
                whole._keep_made(self.values[_MADE])
            return whole
        values = {
            name: _replace(ReferenceParameters, ReferenceParameters.build, value)
            for name, value in self.values.items()
        }
        return self.distribution(**values, validate_args=False)

    @property
    def prepared(self) -> "ReferenceParameters":
        """The same with what a whole distribution makes once of its numbers."""
        if not self._is_whole:
            return self
        whole = self.values[_WHOLE]
        values = {_WHOLE: whole, _MADE: whole._made()}
        return ReferenceParameters(self.distribution, values)

    @property
    def is_elementwise(self) -> bool:
        """Whether every array has the batch shape: none has an axis of its own."""
        if self._is_whole:
            return False
        for name, value in self.values.items():
            constraint = self.distribution.arg_constraints.get(name)
            if constraint is not None and constraint.event_dim > 0:
                return False
            parts = jax.tree_util.tree_leaves(
                value, is_leaf=lambda v: isinstance(v, ReferenceParameters)
            )
            parts = [part for part in parts if isinstance(part, ReferenceParameters)]
            if not all(part.is_elementwise for part in parts):
                return False
        return True

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple]:
        """Children in the order of the names; what is no number is static."""
        names = tuple(name for name in self.values if name not in self.static)
        static = tuple((name, self.values[name]) for name in self.static)
        return tuple(self.values[n] for n in names), (self.distribution, names, static)

    @classmethod
    def tree_unflatten(cls, aux: tuple, children: tuple) -> "ReferenceParameters":
        """Inverse of :meth:`tree_flatten`."""
        distribution, names, static = aux
        values = {**dict(zip(names, children, strict=True)), **dict(static)}
        values = {name: values[name] for name in sorted(values)}
        return cls(distribution, values, tuple(name for name, _ in static))


def _replace(kind: type, function: Callable, value: Any) -> Any:
    """Apply a function to all objects of a class in an argument."""
    if not isinstance(value, kind | list | tuple):
        return value
    return jax.tree_util.tree_map(
        lambda v: function(v) if isinstance(v, kind) else v,
        value,
        is_leaf=lambda v: isinstance(v, kind),
    )


def _as_parameter(reference: dist.Distribution, name: str, value: Any) -> Any:
    """Make a float of a parameter that is an integer, which has no derivatives."""
    if name not in reference.arg_constraints or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value)
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    if is_array and jnp.issubdtype(value.dtype, jnp.integer):
        return jnp.asarray(value, jnp.result_type(float))
    return value


def _is_static(distribution: type[dist.Distribution], name: str, value: Any) -> bool:
    """Whether an argument is none of the numbers that a density depends on."""
    if isinstance(value, str | bool | type | constraints.Constraint):
        return True
    return name not in distribution.arg_constraints and (
        isinstance(value, int)
        or (callable(value) and jax.tree_util.all_leaves([value]))
    )


@jax.jit
def _cdf(parameters: ReferenceParameters, z: jax.Array) -> jax.Array:
    """Traced once for all distributions of a class, and never run."""
    return parameters.build().cdf(z)


def check_reference(reference: Any, energy: Any) -> None:
    """Check that a reference is a continuous distribution that an energy can tilt."""
    if not isinstance(reference, dist.Distribution):
        raise TypeError(
            "reference must be a NumPyro distribution or None, got "
            f"{type(reference).__name__}."
        )
    name = type(reference).__name__
    if reference.event_shape != ():
        raise TypeError(
            f"reference must be univariate, got {name} with event_shape "
            f"{reference.event_shape}; put the batch in its parameters and call "
            "to_event on the prior instead."
        )
    if getattr(reference.support, "is_discrete", False):
        raise TypeError(f"reference must be continuous, got the discrete {name}.")
    try:
        shape = jnp.broadcast_shapes(energy.batch_shape, reference.batch_shape)
    except ValueError:
        raise ValueError(
            "energy and reference must have batch shapes that broadcast, got "
            f"{energy.batch_shape} and {reference.batch_shape}."
        ) from None
    # Refuses a distribution that cannot be made again from its parameters.
    parameters = ReferenceParameters.of(reference)
    try:
        jax.eval_shape(_cdf, parameters, jax.ShapeDtypeStruct(shape, energy.dtype))
    except (NotImplementedError, AttributeError) as error:
        raise TypeError(
            f"reference must have a cdf, which {name} does not: {error}"
        ) from None
    low, high = support_bounds(reference)
    if is_concrete((low, high)):
        with concretely():
            misses = (np.asarray(low) >= np.asarray(energy.basis.high)) | (
                np.asarray(high) <= np.asarray(energy.basis.low)
            )
        if np.any(misses):
            raise ValueError(
                "reference must have a support that meets the grid "
                f"[{energy.basis.low}, {energy.basis.high}], got {name} on "
                f"[{low}, {high}]."
            )
