"""The classes of NumPyro, JAX, Equinox and optax that occur in files."""

import functools
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.example_libraries.optimizers import OptimizerState
from numpyro.distributions import constraints, transforms
from numpyro.infer.svi import SVIRunResult, SVIState

from numpyro_kaem.distributions import KAEMMixture, KAEMPrior, SkewNormal
from numpyro_kaem.files.kinds import (
    Kind,
    constructor_kind,
    law_kind,
    module_kind,
    record_kind,
)
from numpyro_kaem.references import ReferenceParameters

__all__ = ["CONSTANTS", "LIBRARY_KINDS", "optax_kinds"]

# Their arguments are sizes of what their constructors make, or functions.
_LEFT_OUT = {
    "Distribution",
    "EulerMaruyama",
    "GaussianRandomWalk",
    "GaussianStateSpace",
    "ImproperUniform",
    "LKJ",
    "LKJCholesky",
}
_LAWS = {
    name: cls
    for name, cls in vars(dist).items()
    if name in dist.__all__
    and name not in _LEFT_OUT
    and isinstance(cls, type)
    and issubclass(cls, dist.Distribution)
}
_TRANSFORMS = (
    transforms.AbsTransform,
    transforms.AffineTransform,
    transforms.ComposeTransform,
    transforms.ExpTransform,
    transforms.IdentityTransform,
    transforms.IndependentTransform,
    transforms.PowerTransform,
    transforms.SigmoidTransform,
    transforms.SoftplusTransform,
)
_ACTIVATIONS = (
    *("celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh"),
    *("identity", "leaky_relu", "log_sigmoid", "log_softmax", "mish", "relu", "relu6"),
    *("selu", "sigmoid", "silu", "soft_sign", "softmax", "softplus", "squareplus"),
)

CONSTANTS: dict[str, Any] = {
    # What MLP applies to its output by default.
    "equinox.nn.MLP.final_activation": (
        inspect.signature(eqx.nn.MLP.__init__).parameters["final_activation"].default
    ),
    **{f"jax.nn.{name}": getattr(jax.nn, name) for name in _ACTIVATIONS},
    **{
        f"jax.numpy.{name}": getattr(jnp, name)
        for name in ("abs", "cos", "exp", "sin", "square", "tanh")
    },
    **{
        f"numpyro.distributions.constraints.{name}": getattr(constraints, name)
        for name in sorted(constraints.__all__)
        if isinstance(getattr(constraints, name), constraints.ParameterFreeConstraint)
    },
}
"""Functions and constraints by the names that files may use."""


# --- references ----------------------------------------------------------------------

_LAW = "(law)"
_OWN_LAWS = {law.__name__: law for law in (KAEMPrior, KAEMMixture, SkewNormal)}


def _describe_reference(parameters: ReferenceParameters) -> dict[str, Any]:
    """Describe the law by name, and its parameters.

    Raises
    ------
    TypeError
        If the law is not one of NumPyro's.
    """
    law = parameters.law
    if law not in _OWN_LAWS.values() and _LAWS.get(law.__name__) is not law:
        raise TypeError(f"the law {law.__name__} is not one of NumPyro's")
    return {_LAW: law.__name__, **parameters.values}


def _build_reference(parts: dict[str, Any]) -> ReferenceParameters:
    """Make parameters of a law of NumPyro.

    Raises
    ------
    ValueError
        If the law is not known.
    """
    name = parts.pop(_LAW)
    law = {**_LAWS, **_OWN_LAWS}.get(name) if type(name) is str else None
    if law is None:
        raise ValueError(f"expected the name of a law of NumPyro, got {name!r}")
    parameters = ReferenceParameters(law, dict(sorted(parts.items())))
    parameters.build()
    return parameters


# --- optimisers ----------------------------------------------------------------------


def _describe_optimizer(state: OptimizerState) -> dict[str, Any]:
    """Describe the state by the pytrees of the parameters and of each of their moments.

    Raises
    ------
    TypeError
        If parameters have moments of different structure.
    """
    rows, structure, subtrees = state
    if len(set(subtrees)) > 1:
        raise TypeError("the optimiser has different moments for different parameters")
    # Both change in the first step under jit.
    containers = [type(rows).__name__, type([*rows, ()][0]).__name__]
    moments = subtrees[0] if subtrees else jax.tree.structure(0)
    count = moments.num_leaves
    trees = tuple(structure.unflatten([row[i] for row in rows]) for i in range(count))
    return {
        "trees": trees,
        "moments": moments.unflatten(range(count)),
        "containers": containers,
    }


def _build_optimizer(parts: dict[str, Any]) -> OptimizerState:
    """Inverse of :func:`_describe_optimizer`.

    Raises
    ------
    ValueError
        If the pytrees differ, or their number is another one.
    """
    trees, moments = parts["trees"], jax.tree.structure(parts["moments"])
    structures = [jax.tree.structure(tree) for tree in trees]
    if len(trees) != moments.num_leaves or len(set(structures)) != 1:
        raise ValueError("expected equal pytrees of the parameters and their moments")
    outer, inner = ({"list": list, "tuple": tuple}[c] for c in parts["containers"])
    leaves = [jax.tree.leaves(tree) for tree in trees]
    rows = outer(inner(row) for row in zip(*leaves, strict=True))
    return OptimizerState(rows, structures[0], (moments,) * len(rows))


@functools.cache
def optax_kinds() -> dict[type, Kind]:
    """Kinds of the states of optax, which is imported where it is used; if it is there.

    Returns
    -------
    dict
        Kinds by class.
    """
    try:
        import optax
    except ImportError:
        return {}
    return {
        cls: record_kind(cls, f"optax.{name}")
        for name, cls in sorted(vars(optax).items())
        if isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")
    }


LIBRARY_KINDS: dict[type, Kind] = {
    **{
        cls: law_kind(cls, f"numpyro.distributions.{name}")
        for name, cls in _LAWS.items()
    },
    **{
        cls: constructor_kind(cls, f"numpyro.distributions.transforms.{cls.__name__}")
        for cls in _TRANSFORMS
    },
    **{
        cls: module_kind(cls, name=f"equinox.nn.{name}")
        for name, cls in sorted(vars(eqx.nn).items())
        if isinstance(cls, type)
        and issubclass(cls, eqx.Module)
        and not inspect.isabstract(cls)
    },
    ReferenceParameters: Kind("reference", _describe_reference, _build_reference),
    OptimizerState: Kind("optimizer", _describe_optimizer, _build_optimizer),
    SVIState: record_kind(SVIState, "numpyro.infer.SVIState"),
    SVIRunResult: record_kind(SVIRunResult, "numpyro.infer.SVIRunResult"),
}
"""Kinds by class."""
