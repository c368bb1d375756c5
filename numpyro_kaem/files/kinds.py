"""What can be saved: kinds of objects, and how each is taken apart and built again."""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.example_libraries.optimizers import OptimizerState
from numpyro.distributions import constraints, transforms
from numpyro.infer.svi import SVIRunResult, SVIState

from numpyro_kaem import bases, decoders, distributions
from numpyro_kaem.decoders import sequence
from numpyro_kaem.distributions import (
    AutoregressiveKAEMPrior,
    KAEMPrior,
    PriorWithAtoms,
)
from numpyro_kaem.distributions.autoregressive import MaskedConditioner
from numpyro_kaem.empirical_bayes import UnitPosterior
from numpyro_kaem.empirical_bayes.quadrature import UnitQuadrature
from numpyro_kaem.energy import Energy
from numpyro_kaem.models import likelihoods
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.numerics.panels import Panels
from numpyro_kaem.references import ReferenceParameters, arguments_of, check_reference
from numpyro_kaem.training import FitResult
from numpyro_kaem.training.trainer import TrainingState

__all__ = ["CONSTANTS", "Registry"]

# No name of a field or argument has parentheses.
_COMPLETE = "(complete)"
_CLASS = "(law)"

_ACTIVATIONS = (
    *("celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh"),
    *("identity", "leaky_relu", "log_sigmoid", "log_softmax", "mish", "relu", "relu6"),
    *("selu", "sigmoid", "silu", "soft_sign", "softmax", "softplus", "squareplus"),
)
# Functions and constraints by the names that files may use.
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


class _Kind(NamedTuple):
    """How objects of exactly one class become parts by name, and parts an object.

    ``describe`` raises a TypeError if an object cannot be saved, and ``build`` any
    error if the parts do not fit. Files use ``name`` for the class.
    """

    cls: type
    name: str
    describe: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any]], Any]


# --- kinds of many classes -----------------------------------------------------------


def _module(
    cls: type, check: Callable[[Any], Any] | None = None, name: str | None = None
) -> _Kind:
    """Kind of an Equinox module: its fields, without its constructor.

    Modules also hold gradients, moments of an optimiser or batches of modules, which no
    constructor takes. So the file says whether the fields are those of a module that
    can be used, and only then are they checked.
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
        module: Any = object.__new__(cls)
        for name in names:
            object.__setattr__(module, name, parts[name])
        if parts[_COMPLETE] is not False:
            check_complete(module)
        return module

    return _Kind(cls, name or _own_name(cls), describe, build)


def _record(cls: Any, name: str | None = None) -> _Kind:
    """Kind of a dataclass or named tuple: its fields, of the annotated types."""
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    else:
        names = list(cls._fields)

    def describe(record: Any) -> dict[str, Any]:
        return {name: getattr(record, name) for name in names}

    def build(parts: dict[str, Any]) -> Any:
        _check_names(parts, names)
        _check_fields(cls, parts)
        return cls(**parts)

    return _Kind(cls, name or _own_name(cls), describe, build)


def _by_constructor(cls: type, name: str | None = None) -> _Kind:
    """Kind of an object that keeps the arguments of its constructor."""
    name = name or _own_name(cls)
    return _Kind(cls, name, lambda x: arguments_of(x, name), lambda p: cls(**p))


def _distribution(cls: type, name: str | None = None) -> _Kind:
    """Kind of a distribution that its arguments give again, to the last bit."""

    def describe(distribution: dist.Distribution) -> dict[str, Any]:
        parts = arguments_of(distribution, cls.__name__)
        if parts.keys() & {"scale_tril", "correlation_cholesky"}:
            # The constructor takes one form of a matrix only.
            parts = {k: v for k, v in parts.items() if not k.endswith("_matrix")}
        if "_validate_args" in vars(distribution):
            parts["validate_args"] = distribution._validate_args
        # NumPyro keeps a Python number as an array of NumPy with the rank of the other
        # arguments. What it has computed from the number has a weak type.
        numbers = {
            name: value.item()
            if isinstance(value, np.ndarray) and value.size == 1
            else value
            for name, value in parts.items()
        }
        for given, exactly in ((parts, True), (numbers, True), (parts, False)):
            try:
                made = cls(**given)
            except (TypeError, ValueError):
                continue
            if _same_leaves(made, distribution, exactly):
                return given
        raise TypeError(
            f"a {cls.__name__} does not keep the numbers that it was made from, "
            f"to the last bit; save its parameters, or a {cls.__mro__[1].__name__}"
        )

    return _Kind(cls, name or _own_name(cls), describe, lambda parts: cls(**parts))


def _same_leaves(one: Any, other: Any, exactly: bool) -> bool:
    """Whether all leaves have the same bits; exactly, the same kind and weak type."""

    def is_same(a: Any, b: Any) -> bool:
        kinds = [(type(x), getattr(x, "weak_type", None)) for x in (a, b)]
        bits = [np.asarray(x).tobytes() for x in (a, b)]
        return bits[0] == bits[1] and (kinds[0] == kinds[1] or not exactly)

    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(
        a is b or is_same(a, b) for a, b in zip(leaves, others, strict=True)
    )


def _own_name(cls: type) -> str:
    return f"numpyro_kaem.{cls.__name__}"


def _check_names(parts: dict[str, Any], names: list[str]) -> None:
    if parts.keys() != set(names):
        raise ValueError(f"expected the parts {sorted(names)}, got {sorted(parts)}")


def _check_fields(cls: type, values: dict[str, Any]) -> None:
    """Check fields against their annotations."""
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


# --- distributions of NumPyro, alone and as references -------------------------------

# Their arguments are sizes of what their constructors make, or functions.
_LEFT_OUT = (
    *("Distribution", "EulerMaruyama", "GaussianRandomWalk", "GaussianStateSpace"),
    *("ImproperUniform", "LKJ", "LKJCholesky"),
)
_NUMPYRO = {
    name: cls
    for name, cls in vars(dist).items()
    if name in dist.__all__
    and name not in _LEFT_OUT
    and isinstance(cls, type)
    and issubclass(cls, dist.Distribution)
}
_TRANSFORMS = (
    *("Abs", "Affine", "Compose", "Exp", "Identity", "Independent", "Power"),
    *("Sigmoid", "Softplus"),
)
_REFERENCES = _NUMPYRO | {
    "KAEMPrior": KAEMPrior,
    "KAEMMixture": distributions.KAEMMixture,
    "SkewNormal": distributions.SkewNormal,
}


def _describe_reference(parameters: ReferenceParameters) -> dict[str, Any]:
    cls = parameters.distribution
    if _REFERENCES.get(cls.__name__) is not cls:
        raise TypeError(f"the distribution {cls.__name__} is not one of NumPyro's")
    return {_CLASS: cls.__name__, **parameters.values}


def _build_reference(parts: dict[str, Any]) -> ReferenceParameters:
    name = parts.pop(_CLASS)
    cls = _REFERENCES.get(name) if type(name) is str else None
    if cls is None:
        raise ValueError(f"expected the name of a distribution, got {name!r}")
    parameters = ReferenceParameters(cls, dict(sorted(parts.items())))
    parameters.build()
    return parameters


# --- states of optimisers ------------------------------------------------------------


def _describe_optimizer(state: OptimizerState) -> dict[str, Any]:
    """Describe the state by the pytrees of the parameters and of each moment."""
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
    trees = parts["trees"]
    moments: Any = jax.tree.structure(parts["moments"])
    structures = [jax.tree.structure(tree) for tree in trees]
    if len(trees) != moments.num_leaves or len(set(structures)) != 1:
        raise ValueError("expected equal pytrees of the parameters and their moments")
    outer, inner = ({"list": list, "tuple": tuple}[c] for c in parts["containers"])
    leaves = [jax.tree.leaves(tree) for tree in trees]
    rows = outer(inner(row) for row in zip(*leaves, strict=True))
    return OptimizerState(rows, structures[0], (moments,) * len(rows))


@functools.cache
def _optax_kinds() -> dict[type, _Kind]:
    """Kinds of the states of optax, which is imported where it is used, if it can."""
    try:
        import optax
    except ImportError:
        return {}
    return {
        cls: _record(cls, f"optax.{name}")
        for name, cls in sorted(vars(optax).items())
        if isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")
    }


# --- modules of the package ----------------------------------------------------------


def _check_by_constructor(module: Any) -> None:
    """Check a module whose fields are the arguments of its constructor."""
    type(module)(**vars(module))


def _check_decoder(decoder: decoders.KANDecoder | decoders.ConvDecoder) -> None:
    shape = jax.eval_shape(decoder, _floats(2, decoder.num_latents)).shape
    if shape != (2, *decoder.output_shape):
        raise ValueError(f"expected outputs {decoder.output_shape}, got {shape[1:]}")


def _check_sequence_decoder(decoder: decoders.SequenceDecoder) -> None:
    tokens = jax.ShapeDtypeStruct((2, decoder.length), jnp.int32)
    jax.eval_shape(decoder.logits, _floats(2, decoder.num_latents), tokens)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.result_type(float))


def _check_conditioner(conditioner: MaskedConditioner) -> None:
    """Compare shapes, before masks of these sizes are made."""
    weights, biases = conditioner.weights, conditioner.biases
    hidden = [weights[0].shape[-1]] * (len(weights) - 1)
    inputs = [conditioner.dim, *hidden]
    outputs = [*((n,) for n in hidden), (conditioner.dim, conditioner.num_features)]
    shapes = [(size, *shape) for size, shape in zip(inputs, outputs, strict=True)]
    if [w.shape for w in weights] != shapes or [b.shape for b in biases] != outputs:
        raise ValueError(
            f"expected weights of shapes {shapes} and biases of shapes {outputs}"
        )


def _check_normal_likelihood(likelihood: likelihoods.NormalLikelihood) -> None:
    if (likelihood.raw_scale is None) == (likelihood.fixed_scale is None):
        raise ValueError("expected one of raw_scale and fixed_scale")
    if jnp.shape(likelihood.scale) != ():
        shape = jnp.shape(likelihood.scale)
        raise ValueError(f"expected one scale, got shape {shape}")


def _check_model(model: KAEM) -> None:
    """Make the model again from its parts."""
    fields = dict(vars(model))
    event_shape = fields.pop("event_shape")
    made = KAEM(**fields).event_shape
    if made != event_shape:
        raise ValueError(f"expected data of shape {event_shape}, got {made}")


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
    return _unflatten(KAEMPrior, (parts.pop("energy"),), **parts)


def _build_autoregressive(parts: dict[str, Any]) -> AutoregressiveKAEMPrior:
    basis, conditioner = parts.pop("basis"), parts.pop("conditioner")
    if not isinstance(basis, bases.AbstractBasis) or not isinstance(
        conditioner, eqx.Module
    ):
        raise TypeError("expected a basis and a conditioner")
    if isinstance(conditioner, MaskedConditioner):
        _check_conditioner(conditioner)
    # Raises where they do not fit.
    AutoregressiveKAEMPrior(basis, conditioner)
    return _unflatten(AutoregressiveKAEMPrior, (basis, conditioner), **parts)


def _unflatten(
    cls: Any, data: tuple, reference: Any, refinement: Any, validate_args: Any
) -> Any:
    """Prior from its leaves and static values, without a quadrature."""
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


# --- posteriors of units -------------------------------------------------------------


def _describe_unit_posterior(posterior: UnitPosterior) -> dict[str, Any]:
    return {"prior": posterior.prior, "units": posterior._units}


def _build_unit_posterior(parts: dict[str, Any]) -> UnitPosterior:
    prior, units = parts["prior"], parts["units"]
    kind = KAEMPrior if getattr(units, "at_atoms", None) is None else PriorWithAtoms
    if not isinstance(prior, kind) or not isinstance(units, UnitQuadrature):
        raise TypeError("expected a prior and the likelihood of its units")
    # Raises where shapes do not fit. In another object, which keeps what is traced.
    jax.eval_shape(lambda: UnitPosterior(prior, units).mean)
    return UnitPosterior(prior, units)


# --- all of them ---------------------------------------------------------------------

_KINDS: dict[type, _Kind] = {
    kind.cls: kind
    for kind in (
        # Libraries.
        *(_distribution(c, f"numpyro.distributions.{n}") for n, c in _NUMPYRO.items()),
        *(
            _by_constructor(
                getattr(transforms, f"{name}Transform"),
                f"numpyro.distributions.transforms.{name}Transform",
            )
            for name in _TRANSFORMS
        ),
        *(
            _module(cls, name=f"equinox.nn.{name}")
            for name, cls in sorted(vars(eqx.nn).items())
            if isinstance(cls, type)
            and issubclass(cls, eqx.Module)
            and not inspect.isabstract(cls)
        ),
        _Kind(OptimizerState, "optimizer", _describe_optimizer, _build_optimizer),
        _record(SVIState, "numpyro.infer.SVIState"),
        _record(SVIRunResult, "numpyro.infer.SVIRunResult"),
        # Modules of the package.
        _module(bases.RBF, _check_by_constructor),
        _module(bases.BSpline, _check_by_constructor),
        _module(bases.Fourier, _check_by_constructor),
        _module(bases.Chebyshev, _check_by_constructor),
        _module(bases.RSWAF, _check_by_constructor),
        _module(bases.Wavelet, _check_by_constructor),
        _module(Energy, _check_by_constructor),
        _module(decoders.KANLayer, _check_by_constructor),
        _module(decoders.KANDecoder, _check_decoder),
        _module(decoders.ConvDecoder, _check_decoder),
        _module(decoders.SequenceDecoder, _check_sequence_decoder),
        _module(sequence._Block),
        _module(MaskedConditioner, _check_conditioner),
        _module(likelihoods.NormalLikelihood, _check_normal_likelihood),
        _module(likelihoods.BernoulliLikelihood),
        _module(likelihoods.CategoricalLikelihood),
        _module(KAEM, _check_model),
        _module(Panels),
        # Its distributions.
        _Kind(ReferenceParameters, "reference", _describe_reference, _build_reference),
        _Kind(KAEMPrior, _own_name(KAEMPrior), _describe_prior, _build_prior),
        _Kind(
            AutoregressiveKAEMPrior,
            _own_name(AutoregressiveKAEMPrior),
            _describe_prior,
            _build_autoregressive,
        ),
        _distribution(distributions.KAEMMixture),
        _distribution(distributions.PriorWithAtoms),
        _distribution(distributions.DeepEnergyPrior),
        _distribution(distributions.TokenSequence),
        _distribution(distributions.TruncatedKAEM),
        _by_constructor(distributions.InverseCDFTransform),
        # Its results.
        _record(FitResult),
        _record(TrainingState),
        _record(UnitQuadrature),
        _Kind(
            UnitPosterior,
            _own_name(UnitPosterior),
            _describe_unit_posterior,
            _build_unit_posterior,
        ),
    )
}


class Registry:
    """The kinds of a file: those above, and Equinox modules of the user."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._kinds = dict(_KINDS)
        for cls in classes:
            if not (isinstance(cls, type) and issubclass(cls, eqx.Module)):
                raise TypeError(
                    f"classes must be classes of Equinox modules, got {cls!r}."
                )
            if cls not in self._kinds:
                self._kinds[cls] = _module(cls, name=f"user.{cls.__qualname__}")
        self._named = {kind.name: kind for kind in self._kinds.values()}
        if len(self._named) < len(self._kinds):
            raise ValueError("classes must have different names.")

    def of(self, value: Any) -> _Kind | None:
        """Kind of a value; None if its class is unknown."""
        cls = type(value)
        if cls not in self._kinds and cls.__module__.partition(".")[0] == "optax":
            return _optax_kinds().get(cls)
        return self._kinds.get(cls)

    def named(self, name: str) -> _Kind | None:
        """Kind of a name; None if it is unknown."""
        if name.startswith("optax."):
            return {k.name: k for k in _optax_kinds().values()}.get(name)
        return self._named.get(name)
