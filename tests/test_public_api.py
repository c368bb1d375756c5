"""What `import numpyro_kaem` offers, and that all of it says what it is."""

import inspect
import subprocess
import sys

import pytest

import numpyro_kaem as kaem

PUBLIC = sorted(set(kaem.__all__) - {"__version__", "datasets", "infer"})
SAMPLERS = sorted(kaem.infer.__all__)
# Results, which functions make: their fields and methods say what they are.
RESULTS = {
    "Degeneracy",
    "Evidence",
    "EvidenceEstimate",
    "FitProgress",
    "FitResult",
    "ImportanceResult",
    "LogEvidence",
    "MarginalFit",
    "MarginalLogLikelihood",
    "MissedModes",
    "PosteriorSample",
    "PriorSummary",
    "Resampled",
    "ResampledDraws",
    "SampleQuality",
    "SmoothedWeights",
    "SymbolicResult",
    "SymbolicResults",
    "UnitPosterior",
}


def test_names_are_those_that_are_there():
    assert all(hasattr(kaem, name) for name in kaem.__all__)
    expected = {
        "AbstractLikelihood",
        "AutoregressiveKAEMPrior",
        "AutoKAEM",
        "BSpline",
        "BernoulliLikelihood",
        "CategoricalLikelihood",
        "Checkpoint",
        "ConvDecoder",
        "DeepEnergyPrior",
        "KAEM",
        "KANDecoder",
        "KANLayer",
        "NormalLikelihood",
        "PriorRefit",
        "SequenceDecoder",
        "TokenSequence",
        "Chebyshev",
        "Energy",
        "Fourier",
        "GridUpdate",
        "InverseCDFTransform",
        "KAEMMixture",
        "KAEMPrior",
        "MaskedConditioner",
        "RBF",
        "RSWAF",
        "Wavelet",
        "cyclical_schedule",
        "fit",
        "fit_autoregressive",
        "fit_density",
        "fit_mixture",
        "kan_penalty",
        "kart",
        "learn_prior",
        "load",
        "fit_marginal",
        "log_marginal_likelihood",
        "parameter_priors",
        "plot_band",
        "plot_prior",
        "random_walk_energy",
        "refit_prior",
        "sample_quality",
        "save",
        "set_parameters",
        "summarize_prior",
        "symbolic",
        "unit_log_likelihood",
        "unit_posterior",
    }
    assert set(PUBLIC) - RESULTS == expected


def test_samplers_are_those_that_are_there():
    expected = {
        "ULA",
        "MALA",
        "AutoMALA",
        "PCNL",
        "AmortisedELBO",
        "AnnealedLangevin",
        "ImportanceMLE",
        "ImportanceSampling",
        "LangevinMLE",
        "ThermodynamicMLE",
        "check_missed_modes",
        "log_evidence",
        "log_marginal_likelihood",
        "pareto_smooth",
        "resample_below",
        "resample_indices",
        "sample_posterior",
    }
    assert set(SAMPLERS) - RESULTS == expected
    assert all(hasattr(kaem.infer, name) for name in SAMPLERS)


@pytest.mark.parametrize("name", sorted({*PUBLIC, *SAMPLERS} - RESULTS))
def test_docstring_has_parameters_errors_and_an_example(name):
    thing = getattr(kaem if name in PUBLIC else kaem.infer, name)
    text = inspect.getdoc(thing)
    documented = inspect.signature(thing).parameters
    sections = ("Parameters", "Raises", "Examples") if documented else ("Examples",)
    for section in sections:
        assert f"{section}\n---" in text, f"{name} has no section {section}"
    for parameter in documented:
        assert parameter in text, f"{name} does not document {parameter}"


def test_import_loads_no_plotting():
    """Figures and diagnostics are imported where they are used."""
    code = "import sys, numpyro_kaem; print({'matplotlib', 'arviz'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"
