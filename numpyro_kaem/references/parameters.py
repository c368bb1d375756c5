"""The parameters of a reference law, by name."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

__all__ = [
    "ReferenceParameters",
    "arguments_of",
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


def arguments_of(law: Any, name: str) -> dict[str, Any]:
    """Arguments from which a distribution or transform can be made again.

    Parameters
    ----------
    law
        Distribution or transform that keeps its arguments as attributes.
    name
        What it is, for messages.

    Returns
    -------
    dict
        Values by name, in the order of the names, without ``validate_args``.

    Raises
    ------
    TypeError
        If it does not keep an argument.
    """
    values = {}
    parameters = inspect.signature(type(law).__init__).parameters
    for argument in sorted(parameters.keys() - {"self", "validate_args"}):
        parameter = parameters[argument]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        attribute = _ATTRIBUTES.get(argument, argument)
        if not hasattr(law, attribute):
            raise TypeError(
                f"{name} must keep its parameter {argument!r} as an attribute, which "
                f"{type(law).__name__} does not."
            )
        values[argument] = getattr(law, attribute)
    return values


@jax.tree_util.register_pytree_node_class
class ReferenceParameters:
    """The parameters of a NumPyro distribution, by name and in the order of the names.

    NumPyro flattens a distribution in the order of a Python set, which changes from
    process to process, and stores some parameters twice. This holds the arguments of
    the constructor instead, from which :meth:`build` makes the distribution again.
    """

    def __init__(self, law: type, values: dict[str, Any]) -> None:
        self.law = law
        self.values = values

    @classmethod
    def of(cls, reference: dist.Distribution) -> "ReferenceParameters":
        """Read the parameters of a distribution, recursively.

        Raises
        ------
        TypeError
            If the distribution is expanded, or does not keep its arguments.
        """
        if isinstance(reference, dist.ExpandedDistribution):
            raise TypeError(
                "reference must have its batch shape in its parameters, got an "
                f"expanded {type(reference.base_dist).__name__}; pass arrays of the "
                "full shape."
            )
        values = {
            name: cls.of(value) if isinstance(value, dist.Distribution) else value
            for name, value in arguments_of(reference, "reference").items()
        }
        return cls(type(reference), values)

    def build(self) -> dist.Distribution:
        """Distribution with these parameters."""
        values = {
            name: value.build() if isinstance(value, ReferenceParameters) else value
            for name, value in self.values.items()
        }
        return self.law(**values, validate_args=False)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[type, tuple[str, ...]]]:
        """Children in the order of the names."""
        return tuple(self.values.values()), (self.law, tuple(self.values))

    @classmethod
    def tree_unflatten(cls, aux: tuple, children: tuple) -> "ReferenceParameters":
        """Inverse of :meth:`tree_flatten`."""
        law, names = aux
        return cls(law, dict(zip(names, children, strict=True)))
