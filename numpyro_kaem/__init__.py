"""Kolmogorov-Arnold energy models for NumPyro."""

import importlib
from typing import TYPE_CHECKING, Any

from numpyro_kaem._version import __version__
from numpyro_kaem.bases import (
    RBF,
    RSWAF,
    BSpline,
    Chebyshev,
    Fourier,
    Wavelet,
)
from numpyro_kaem.distributions import (
    AutoregressiveKAEMPrior,
    DeepEnergyPrior,
    InverseCDFTransform,
    KAEMMixture,
    KAEMPrior,
    TokenSequence,
    truncated,
)
from numpyro_kaem.distributions.autoregressive import MaskedConditioner
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation.density import fit_density
from numpyro_kaem.estimation.mixture import fit_mixture
from numpyro_kaem.models.energies import parameter_priors, random_walk_energy
from numpyro_kaem.models.kaem import kart
from numpyro_kaem.models.likelihoods import (
    AbstractLikelihood,
    BernoulliLikelihood,
    CategoricalLikelihood,
    NormalLikelihood,
)
from numpyro_kaem.numerics.nodes import avoid_wrong_sums
from numpyro_kaem.symbolic import (
    PriorSummary,
    SymbolicResult,
    SymbolicResults,
    summarize_prior,
    symbolic,
)

avoid_wrong_sums()

if TYPE_CHECKING:
    from numpyro_kaem import datasets, infer, objectives
    from numpyro_kaem.decoders import (
        ConvDecoder,
        KANDecoder,
        KANLayer,
        SequenceDecoder,
    )
    from numpyro_kaem.diagnostics import (
        CalibrationResult,
        posterior_predictive_p_values,
        simulation_based_calibration,
        to_arviz,
    )
    from numpyro_kaem.diagnostics.sample_quality import SampleQuality, sample_quality
    from numpyro_kaem.empirical_bayes import (
        MarginalFit,
        UnitPosterior,
        fit_marginal,
        log_marginal_likelihood,
        unit_log_likelihood,
        unit_posterior,
    )
    from numpyro_kaem.estimation.autoregressive import fit_autoregressive
    from numpyro_kaem.files.saving import load, save
    from numpyro_kaem.models.autoguide import AutoKAEM
    from numpyro_kaem.models.kaem import KAEM
    from numpyro_kaem.models.learning import learn_prior, set_parameters
    from numpyro_kaem.plotting import (
        interpolate_latents,
        plot_band,
        plot_calibration,
        plot_history,
        plot_interpolation,
        plot_ladder,
        plot_prior,
        plot_samples,
        plot_traversal,
        plot_weights,
    )
    from numpyro_kaem.training import (
        Checkpoint,
        FitProgress,
        FitResult,
        GridUpdate,
        PriorRefit,
        cyclical_schedule,
        fit,
        kan_penalty,
        refit_prior,
    )

__all__ = [
    "KAEM",
    "RBF",
    "RSWAF",
    "AbstractLikelihood",
    "AutoKAEM",
    "AutoregressiveKAEMPrior",
    "BSpline",
    "BernoulliLikelihood",
    "CalibrationResult",
    "CategoricalLikelihood",
    "Chebyshev",
    "Checkpoint",
    "ConvDecoder",
    "DeepEnergyPrior",
    "Energy",
    "FitProgress",
    "FitResult",
    "Fourier",
    "GridUpdate",
    "InverseCDFTransform",
    "KAEMMixture",
    "KAEMPrior",
    "KANDecoder",
    "KANLayer",
    "MarginalFit",
    "MaskedConditioner",
    "NormalLikelihood",
    "PriorRefit",
    "PriorSummary",
    "SampleQuality",
    "SequenceDecoder",
    "SymbolicResult",
    "SymbolicResults",
    "TokenSequence",
    "UnitPosterior",
    "Wavelet",
    "__version__",
    "cyclical_schedule",
    "datasets",
    "fit",
    "fit_autoregressive",
    "fit_density",
    "fit_marginal",
    "fit_mixture",
    "infer",
    "interpolate_latents",
    "kan_penalty",
    "kart",
    "learn_prior",
    "load",
    "log_marginal_likelihood",
    "objectives",
    "parameter_priors",
    "plot_band",
    "plot_calibration",
    "plot_history",
    "plot_interpolation",
    "plot_ladder",
    "plot_prior",
    "plot_samples",
    "plot_traversal",
    "plot_weights",
    "posterior_predictive_p_values",
    "random_walk_energy",
    "refit_prior",
    "sample_quality",
    "save",
    "set_parameters",
    "simulation_based_calibration",
    "summarize_prior",
    "symbolic",
    "to_arviz",
    "truncated",
    "unit_log_likelihood",
    "unit_posterior",
]

# Imported when first asked for, since most programs need few of them; the imports above
# show them to type checkers. A name that is also its folder's, ``symbolic``, cannot
# wait: an import of the folder from elsewhere would put the folder in its place.
_LATER = {
    "datasets": [],
    "infer": [],
    "objectives": [],
    "models.autoguide": ["AutoKAEM"],
    "estimation.autoregressive": ["fit_autoregressive"],
    "decoders": ["ConvDecoder", "KANDecoder", "KANLayer", "SequenceDecoder"],
    "diagnostics": [
        "CalibrationResult",
        "posterior_predictive_p_values",
        "simulation_based_calibration",
        "to_arviz",
    ],
    "diagnostics.sample_quality": ["SampleQuality", "sample_quality"],
    "empirical_bayes": [
        "MarginalFit",
        "UnitPosterior",
        "fit_marginal",
        "log_marginal_likelihood",
        "unit_log_likelihood",
        "unit_posterior",
    ],
    "files.saving": ["load", "save"],
    "models.learning": ["learn_prior", "set_parameters"],
    "models.kaem": ["KAEM"],
    "training": [
        "Checkpoint",
        "FitProgress",
        "FitResult",
        "GridUpdate",
        "PriorRefit",
        "cyclical_schedule",
        "fit",
        "kan_penalty",
        "refit_prior",
    ],
    "plotting": [
        "interpolate_latents",
        "plot_band",
        "plot_calibration",
        "plot_history",
        "plot_interpolation",
        "plot_ladder",
        "plot_prior",
        "plot_samples",
        "plot_traversal",
        "plot_weights",
    ],
}
_MODULE_OF = {name: module for module, names in _LATER.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
