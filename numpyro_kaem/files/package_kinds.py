"""The classes of this package in files."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

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
    TokenSequence,
    TruncatedKAEM,
)
from numpyro_kaem.distributions.conditioner import MaskedConditioner
from numpyro_kaem.empirical_bayes import UnitPosterior
from numpyro_kaem.empirical_bayes.quadrature import UnitQuadrature
from numpyro_kaem.energy import Energy
from numpyro_kaem.files.kinds import (
    Kind,
    constructor_kind,
    law_kind,
    module_kind,
    record_kind,
)
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    NormalLikelihood,
)
from numpyro_kaem.numerics.panels import Panels
from numpyro_kaem.references import ReferenceParameters, check_reference
from numpyro_kaem.training import FitResult
from numpyro_kaem.training.trainer import TrainingState

__all__ = ["PACKAGE_KINDS"]


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
