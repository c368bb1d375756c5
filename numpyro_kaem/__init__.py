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
    PriorWithAtoms,
    TokenSequence,
    truncated,
)
from numpyro_kaem.distributions.autoregressive import MaskedConditioner
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation.density import fit_density
from numpyro_kaem.estimation.mixture import fit_mixture
from numpyro_kaem.numerics.device import avoid_wrong_sums

avoid_wrong_sums()

if TYPE_CHECKING:
    from numpyro_kaem import datasets, infer, objectives
    from numpyro_kaem.closed_forms import (
        PriorSummary,
        SymbolicResult,
        SymbolicResults,
        summarize_prior,
        symbolic,
    )
    from numpyro_kaem.decoders import (
        ConvDecoder,
        KANDecoder,
        KANLayer,
        SequenceDecoder,
    )
    from numpyro_kaem.diagnostics import (
        CalibrationResult,
        SampleQuality,
        posterior_predictive_p_values,
        sample_quality,
        simulation_based_calibration,
        to_arviz,
    )
    from numpyro_kaem.empirical_bayes import (
        MarginalFit,
        UnitPosterior,
        fit_marginal,
        unit_log_likelihood,
        unit_log_marginal_likelihood,
        unit_posterior,
    )
    from numpyro_kaem.estimation.autoregressive import fit_autoregressive
    from numpyro_kaem.files.saving import load, save
    from numpyro_kaem.models.autoguide import AutoKAEM
    from numpyro_kaem.models.energies import parameter_priors, random_walk_energy
    from numpyro_kaem.models.kaem import KAEM, kart
    from numpyro_kaem.models.learning import learn_prior, set_parameters
    from numpyro_kaem.models.likelihoods import (
        AbstractLikelihood,
        BernoulliLikelihood,
        CategoricalLikelihood,
        NormalLikelihood,
    )
    from numpyro_kaem.plotting import (
        interpolate_latents,
        plot_band,
        plot_calibration,
        plot_false_signs,
        plot_history,
        plot_interpolation,
        plot_ladder,
        plot_prior,
        plot_ranks,
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
        kan_regularizer,
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
    "PriorWithAtoms",
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
    "kan_regularizer",
    "kart",
    "learn_prior",
    "load",
    "objectives",
    "parameter_priors",
    "plot_band",
    "plot_calibration",
    "plot_false_signs",
    "plot_history",
    "plot_interpolation",
    "plot_ladder",
    "plot_prior",
    "plot_ranks",
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
    "unit_log_marginal_likelihood",
    "unit_posterior",
]

# Imported at first use, since most programs need few of them; the imports above show
# them to type checkers.
_MODULES = ("datasets", "infer", "objectives")
_NAMES = {
    "closed_forms": """PriorSummary SymbolicResult SymbolicResults summarize_prior
        symbolic""",
    "decoders": "ConvDecoder KANDecoder KANLayer SequenceDecoder",
    "diagnostics": """CalibrationResult SampleQuality posterior_predictive_p_values
        sample_quality simulation_based_calibration to_arviz""",
    "empirical_bayes": """MarginalFit UnitPosterior fit_marginal unit_log_likelihood
        unit_log_marginal_likelihood unit_posterior""",
    "estimation.autoregressive": "fit_autoregressive",
    "files.saving": "load save",
    "models.autoguide": "AutoKAEM",
    "models.energies": "parameter_priors random_walk_energy",
    "models.kaem": "KAEM kart",
    "models.learning": "learn_prior set_parameters",
    "models.likelihoods": """AbstractLikelihood BernoulliLikelihood
        CategoricalLikelihood NormalLikelihood""",
    "plotting": """interpolate_latents plot_band plot_calibration
        plot_false_signs plot_history plot_interpolation plot_ladder plot_prior
        plot_ranks plot_samples plot_traversal plot_weights""",
    "training": """Checkpoint FitProgress FitResult GridUpdate PriorRefit
        cyclical_schedule fit kan_regularizer refit_prior""",
}
_MODULE_OF = {
    name: module for module, names in _NAMES.items() for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
