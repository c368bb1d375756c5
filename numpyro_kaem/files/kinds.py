"""What can be saved: kinds of objects, and how each is taken apart and built again."""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.example_libraries.optimizers import OptimizerState
from numpyro.distributions import constraints, transforms
from numpyro.infer.svi import SVIRunResult, SVIState

from numpyro_kaem.bases import (
    RBF,
    RSWAF,
    AbstractBasis,
    BSpline,
    Chebyshev,
    Fourier,
    Wavelet,
)
from numpyro_kaem.decoders import ConvDecoder, KANDecoder, KANLayer, SequenceDecoder
from numpyro_kaem.decoders.sequence import _Block
from numpyro_kaem.distributions import (
    AutoregressiveKAEMPrior,
    DeepEnergyPrior,
    InverseCDFTransform,
    KAEMMixture,
    KAEMPrior,
    SkewNormal,
    TokenSequence,
    TruncatedKAEM,
)
from numpyro_kaem.distributions.autoregressive import MaskedConditioner
from numpyro_kaem.empirical_bayes import UnitPosterior
from numpyro_kaem.empirical_bayes.quadrature import UnitQuadrature
from numpyro_kaem.energy import Energy
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    NormalLikelihood,
)
from numpyro_kaem.numerics.panels import Panels
from numpyro_kaem.references import ReferenceParameters, arguments_of, check_reference
from numpyro_kaem.training import FitResult
from numpyro_kaem.training.trainer import TrainingState

__all__ = [
    "CONSTANTS",
    "LIBRARY_KINDS",
    "PACKAGE_KINDS",
    "Kind",
    "constructor_kind",
    "law_kind",
    "module_kind",
    "optax_kinds",
    "record_kind",
]

# No name of a field has parentheses.
_COMPLETE = "(complete)"


class Kind(NamedTuple):
    """What a file can hold beside arrays, numbers, text and containers."""

    name: str
    """Name in files."""
    describe: Callable[[Any], dict[str, Any]]
    """From an object to its parts by name."""
    build: Callable[[dict[str, Any]], Any]
    """From the parts to the object; raises if they do not fit."""


def module_kind(
    cls: type, check: Callable[[Any], Any] | None = None, *, name: str | None = None
) -> Kind:
    """Kind of an Equinox module: its fields, without its constructor.

    Modules also hold gradients, moments of an optimiser or batches of modules, which no
    constructor takes. So the file says whether the fields are those of a module that
    can be used, and only then are they checked.

    Parameters
    ----------
    cls
        Class of the module.
    check
        Function of a module that raises if its fields do not fit together.
    name
        Name in files; ``None`` is that of the class in this package.

    Returns
    -------
    Kind
        Of objects of exactly this class.
    """
    names = [field.name for field in dataclasses.fields(cls)]

    def describe(module: Any) -> dict[str, Any]:
        parts = {name: getattr(module, name) for name in names}
        try:
            check_complete(module)
        except Exception:
            # A check evaluates the module with whatever is in it.
            return {**parts, _COMPLETE: False}
        return {**parts, _COMPLETE: True}

    def check_complete(module: Any) -> None:
        _check_fields(cls, {name: getattr(module, name) for name in names})
        if check is not None:
            check(module)

    def build(parts: dict[str, Any]) -> Any:
        _check_names(parts, [*names, _COMPLETE])
        module = object.__new__(cls)
        for name in names:
            object.__setattr__(module, name, parts[name])
        if parts[_COMPLETE] is not False:
            check_complete(module)
        return module

    return Kind(name or f"numpyro_kaem.{cls.__name__}", describe, build)


def record_kind(cls: type, name: str) -> Kind:
    """Kind of a dataclass or named tuple: its fields, of the annotated types."""
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    else:
        names = list(cls._fields)

    def build(parts: dict[str, Any]) -> Any:
        _check_names(parts, names)
        _check_fields(cls, parts)
        return cls(**parts)

    return Kind(name, lambda record: {n: getattr(record, n) for n in names}, build)


def constructor_kind(cls: type, name: str) -> Kind:
    """Kind of an object that keeps the arguments of its constructor."""

    def build(parts: dict[str, Any]) -> Any:
        return cls(**parts)

    return Kind(name, lambda value: arguments_of(value, name), build)


def law_kind(cls: type, name: str) -> Kind:
    """Kind of a distribution that keeps the arguments of its constructor.

    Its ``describe`` raises a TypeError where these do not give the same distribution,
    to the last bit.
    """

    def describe(law: dist.Distribution) -> dict[str, Any]:
        parts = arguments_of(law, cls.__name__)
        if parts.keys() & {"scale_tril", "correlation_cholesky"}:
            # The constructor takes one form of a matrix only.
            parts = {k: v for k, v in parts.items() if not k.endswith("_matrix")}
        if "_validate_args" in vars(law):
            parts["validate_args"] = law._validate_args
        try:
            same = _same_leaves(cls(**parts), law)
        except (TypeError, ValueError):
            same = False
        if not same:
            raise TypeError(
                f"a {cls.__name__} does not keep the numbers that it was made from, "
                f"to the last bit; save its parameters, or a {cls.__base__.__name__}"
            )
        return parts

    return Kind(name, describe, lambda parts: cls(**parts))


def _same_leaves(one: Any, other: Any) -> bool:
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(
        a is b or np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(leaves, others, strict=True)
    )


def _check_names(parts: dict[str, Any], names: list[str]) -> None:
    """Check which parts there are.

    Raises
    ------
    ValueError
        If one is missing or unknown.
    """
    if parts.keys() != set(names):
        raise ValueError(f"expected the parts {sorted(names)}, got {sorted(parts)}")


def _check_fields(cls: type, values: dict[str, Any]) -> None:
    """Check fields against their annotations.

    Raises
    ------
    TypeError
        If one is of another type.
    """
    for name, hint in _hints(cls).items():
        if name in values and not _fits(values[name], hint):
            raise TypeError(
                f"expected {name} of type {hint}, got {values[name]!r} of type "
                f"{type(values[name]).__name__}"
            )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:
        # Annotations that name what only a type checker imports.
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; True where that cannot be told."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1:] == (...,):
            return all(_fits(entry, arguments[0]) for entry in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    hint = origin or hint
    if hint is float:
        return type(value) in (int, float)
    if hint in (bool, int, str):
        return type(value) is hint
    if hint is Callable:
        return callable(value)
    return isinstance(value, hint) if isinstance(hint, type) else True


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
    law = parameters.distribution
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


def _check_by_constructor(module: Any) -> None:
    """Check a module whose fields are the arguments of its constructor."""
    type(module)(**vars(module))


def _check_decoder(decoder: KANDecoder | ConvDecoder) -> None:
    """Evaluate shapes only.

    Raises
    ------
    ValueError
        If the output has another shape than the decoder says.
    """
    shape = jax.eval_shape(decoder, _floats(2, decoder.num_latents)).shape
    if shape != (2, *decoder.output_shape):
        raise ValueError(f"expected outputs {decoder.output_shape}, got {shape[1:]}")


def _check_sequence_decoder(decoder: SequenceDecoder) -> None:
    tokens = jax.ShapeDtypeStruct((2, decoder.length), jnp.int32)
    jax.eval_shape(decoder.logits, _floats(2, decoder.num_latents), tokens)


def _check_conditioner(conditioner: MaskedConditioner) -> None:
    """Compare shapes, before masks of these sizes are made.

    Raises
    ------
    ValueError
        If layers do not fit together.
    """
    width = conditioner.weights[0].shape[-1]
    inputs = [conditioner.dim, *[width] * (len(conditioner.weights) - 1)]
    outputs = [
        *[(width,)] * (len(conditioner.weights) - 1),
        (conditioner.dim, conditioner.num_features),
    ]
    shapes = [(size, *shape) for size, shape in zip(inputs, outputs, strict=True)]
    if [w.shape for w in conditioner.weights] != shapes:
        raise ValueError(f"expected weights of shapes {shapes}")
    if [b.shape for b in conditioner.biases] != outputs:
        raise ValueError(f"expected biases of shapes {outputs}")


def _check_normal_likelihood(likelihood: NormalLikelihood) -> None:
    """Check that the scale is either fixed or learned.

    Raises
    ------
    ValueError
        If it is neither, or has a shape.
    """
    if (likelihood.raw_scale is None) == (likelihood.fixed_scale is None):
        raise ValueError("expected one of raw_scale and fixed_scale")
    if jnp.shape(likelihood.scale) != ():
        raise ValueError(f"expected one scale, got shape {likelihood.scale.shape}")


def _check_model(model: KAEM) -> None:
    """Make the model again from its parts.

    Raises
    ------
    ValueError
        If data have another shape than it says.
    """
    fields = dict(vars(model))
    event_shape = fields.pop("event_shape")
    made = KAEM(**fields).event_shape
    if made != event_shape:
        raise ValueError(f"expected data of shape {event_shape}, got {made}")


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.result_type(float))


# --- priors --------------------------------------------------------------------------
# As they are flattened: the reference keeps its values to the last bit.


def _describe_prior(prior: KAEMPrior | AutoregressiveKAEMPrior) -> dict[str, Any]:
    parts = {
        "reference": prior._parameters,
        "refinement": prior._refinement,
        "validate_args": vars(prior).get("_validate_args"),
    }
    if isinstance(prior, KAEMPrior):
        return {"energy": prior.energy, **parts}
    return {"basis": prior.basis, "conditioner": prior.conditioner, **parts}


def _build_prior(parts: dict[str, Any]) -> KAEMPrior:
    """Make a prior from its parts, without a quadrature."""
    return _unflatten(KAEMPrior, (parts.pop("energy"),), **parts)


def _build_autoregressive(parts: dict[str, Any]) -> AutoregressiveKAEMPrior:
    """Make a prior from its parts, without a quadrature.

    Raises
    ------
    TypeError
        If there is another object in place of a part.
    ValueError
        If basis and conditioner do not fit.
    """
    basis, conditioner = parts.pop("basis"), parts.pop("conditioner")
    if not isinstance(basis, AbstractBasis) or not isinstance(conditioner, eqx.Module):
        raise TypeError("expected a basis and a conditioner")
    if isinstance(conditioner, MaskedConditioner):
        _check_conditioner(conditioner)
    AutoregressiveKAEMPrior(basis, conditioner)
    return _unflatten(AutoregressiveKAEMPrior, (basis, conditioner), **parts)


def _unflatten(
    cls: type, data: tuple, reference: Any, refinement: Any, validate_args: Any
) -> Any:
    """Prior from its leaves and static values.

    Raises
    ------
    TypeError
        If a part has another type.
    ValueError
        If the refinement is not positive, or the reference does not fit.
    """
    if reference is not None and not isinstance(reference, ReferenceParameters):
        raise TypeError(f"expected a reference, got {type(reference).__name__}")
    if type(refinement) is not int or refinement < 1:
        raise ValueError(f"expected a positive refinement, got {refinement!r}")
    if validate_args not in (None, True, False):
        raise TypeError(f"expected validate_args, got {validate_args!r}")
    prior = cls.tree_unflatten((refinement, validate_args), (*data, reference))
    if validate_args is None:
        del prior._validate_args
    if cls is KAEMPrior:
        energy = prior.energy
        if not isinstance(energy, Energy):
            raise TypeError(f"expected an energy, got {type(energy).__name__}")
    else:
        energy = prior._flat.energy
    if reference is not None:
        check_reference(reference.build(), energy)
    # Raises where shapes do not broadcast.
    prior.batch_shape  # noqa: B018
    return prior


def _prior_kind(cls: type, build: Any) -> tuple[type, Kind]:
    return cls, Kind(f"numpyro_kaem.{cls.__name__}", _describe_prior, build)


# --- results -------------------------------------------------------------------------


def _build_unit_posterior(parts: dict[str, Any]) -> UnitPosterior:
    """Make a posterior from its parts.

    Raises
    ------
    TypeError
        If one has another type.
    ValueError
        If the likelihood has another shape than the panels.
    """
    prior, units = parts["prior"], parts["units"]
    if not isinstance(prior, KAEMPrior) or not isinstance(units, UnitQuadrature):
        raise TypeError("expected a prior and the likelihood of its units")
    # In an object of its own, which keeps what is traced.
    jax.eval_shape(lambda: UnitPosterior(prior, units).mean)
    return UnitPosterior(prior, units)


def _module(cls: type, check: Any = None) -> tuple[type, Kind]:
    return cls, module_kind(cls, check)


def _qualified(make: Any, cls: type) -> tuple[type, Kind]:
    return cls, make(cls, f"numpyro_kaem.{cls.__name__}")


PACKAGE_KINDS: dict[type, Kind] = dict(
    [
        *(
            _module(cls, _check_by_constructor)
            for cls in (RBF, BSpline, Fourier, Chebyshev, RSWAF, Wavelet)
        ),
        _module(Energy, _check_by_constructor),
        _module(KANLayer, _check_by_constructor),
        _module(KANDecoder, _check_decoder),
        _module(ConvDecoder, _check_decoder),
        _module(SequenceDecoder, _check_sequence_decoder),
        _module(_Block),
        _module(MaskedConditioner, _check_conditioner),
        _module(NormalLikelihood, _check_normal_likelihood),
        _module(BernoulliLikelihood),
        _module(CategoricalLikelihood),
        _module(KAEM, _check_model),
        _module(Panels),
        _prior_kind(KAEMPrior, _build_prior),
        _prior_kind(AutoregressiveKAEMPrior, _build_autoregressive),
        _qualified(law_kind, KAEMMixture),
        _qualified(law_kind, DeepEnergyPrior),
        _qualified(law_kind, TokenSequence),
        _qualified(law_kind, TruncatedKAEM),
        _qualified(constructor_kind, InverseCDFTransform),
        _qualified(record_kind, FitResult),
        _qualified(record_kind, TrainingState),
        _qualified(record_kind, UnitQuadrature),
        (
            UnitPosterior,
            Kind(
                "numpyro_kaem.UnitPosterior",
                lambda p: {"prior": p.prior, "units": p._units},
                _build_unit_posterior,
            ),
        ),
    ]
)
"""Kinds by class."""
