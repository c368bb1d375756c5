"""What `import numpyro_kaem` offers, and that all of it says what it is."""

import ast
import inspect
import subprocess
import sys

import pytest

import numpyro_kaem as kaem

PUBLIC = sorted(set(kaem.__all__) - {"__version__", "datasets", "infer"})
SAMPLERS = sorted(kaem.infer.__all__)
# Results, which functions make: their fields and methods say what they are.
RESULTS = {
    "CalibrationResult",
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
        "posterior_predictive_p_values",
        "simulation_based_calibration",
        "to_arviz",
        "random_walk_energy",
        "refit_prior",
        "sample_quality",
        "save",
        "set_parameters",
        "summarize_prior",
        "symbolic",
        "truncated",
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


def _run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_import_loads_no_plotting():
    """Figures and diagnostics are imported where they are used."""
    code = "import sys, numpyro_kaem; print({'matplotlib', 'arviz'} & set(sys.modules))"
    assert _run(code) == "set()"


def test_import_leaves_for_later_what_most_programs_do_not_use():
    later = {f"numpyro_kaem.{module}" for module in kaem._LATER}
    code = f"import sys, numpyro_kaem; print({later} & set(sys.modules))"
    assert _run(code) == "set()"
    assert _run("import numpyro_kaem as k; print(set(k.__all__) - set(dir(k)))") == (
        "set()"
    )


def test_any_name_may_be_asked_for_first():
    """No order of imports is needed, though the parts use each other."""
    code = """
import importlib, sys
import numpyro_kaem
for name in numpyro_kaem._LATER:
    for module in [m for m in sys.modules if m.split(".")[0] == "numpyro_kaem"]:
        del sys.modules[module]
    importlib.import_module(f"numpyro_kaem.{name}")
"""
    assert _run(code) == ""


def test_type_checkers_see_what_is_imported_later():
    tree = ast.parse(inspect.getsource(kaem))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module: {name.name for name in node.names} for node in block.body}
    modules = seen.pop("numpyro_kaem")
    assert modules == {module for module, names in kaem._LATER.items() if not names}
    later = {f"numpyro_kaem.{m}": set(names) for m, names in kaem._LATER.items()}
    assert seen == {module: names for module, names in later.items() if names}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'KAEMPosterior'"):
        kaem.KAEMPosterior  # noqa: B018
