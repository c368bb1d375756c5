"""What `import numpyro_kaem` offers, and that all of it says what it is."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import numpyro_kaem as kaem

PUBLIC = sorted(set(kaem.__all__) - {"__version__", "datasets", "infer", "objectives"})
SAMPLERS = sorted({*kaem.infer.__all__, *kaem.objectives.__all__})
READERS = [name for name in kaem.datasets.__all__ if name[0].islower()]
# Results, which functions make: their fields and methods say what they are.
RESULTS = set(
    """
    CalibrationResult Degeneracy Evidence Estimate FitProgress FitResult
    HeldOutLogLikelihood ImportanceResult MarginalFit MissedModes
    PosteriorSample PriorSummary Resampled ResampledDraws SampleQuality
    SmoothedWeights SymbolicResult SymbolicResults TemperedSMCResult UnitPosterior
    """.split()
)


def test_names_are_those_that_are_there():
    for module in (kaem, kaem.infer, kaem.objectives, kaem.datasets):
        assert all(hasattr(module, name) for name in module.__all__)
    expected = """
        AbstractLikelihood AutoKAEM AutoregressiveKAEMPrior BSpline BernoulliLikelihood
        CategoricalLikelihood Chebyshev Checkpoint ConvDecoder DeepEnergyPrior Energy
        Fourier GridUpdate InverseCDFTransform KAEM KAEMMixture KAEMPrior KANDecoder
        KANLayer MaskedConditioner NormalLikelihood PriorRefit PriorWithAtoms RBF RSWAF
        SequenceDecoder TokenSequence Wavelet cyclical_schedule fit fit_autoregressive
        fit_density fit_marginal fit_mixture interpolate_latents kan_regularizer kart
        learn_prior load parameter_priors plot_band plot_calibration plot_false_signs
        plot_history plot_interpolation plot_ladder plot_prior plot_ranks plot_samples
        plot_traversal plot_weights posterior_predictive_p_values random_walk_energy
        refit_prior sample_quality save set_parameters simulation_based_calibration
        summarize_prior symbolic to_arviz truncated unit_log_likelihood
        unit_log_marginal_likelihood unit_posterior
    """
    assert set(PUBLIC) - RESULTS == set(expected.split())
    expected = """
        AmortisedELBO AnnealedLangevin AutoMALA ImportanceMLE ImportanceSampling
        LangevinMLE MALA PCNL TemperedSMC ThermodynamicMLE ULA check_missed_modes
        held_out_log_likelihood log_evidence pareto_smooth resample_below
        resample_indices sample_posterior
    """
    assert set(SAMPLERS) - RESULTS == set(expected.split())
    with pytest.raises(AttributeError, match="no attribute 'KAEMPosterior'"):
        kaem.KAEMPosterior  # noqa: B018


def test_docstrings_have_parameters_errors_and_an_example():
    for name in sorted({*PUBLIC, *SAMPLERS, *READERS} - RESULTS):
        modules = (kaem, kaem.infer, kaem.objectives, kaem.datasets)
        thing = next(getattr(m, name) for m in modules if name in m.__all__)
        text = inspect.getdoc(thing)
        parameters = inspect.signature(thing).parameters
        sections = ("Parameters", "Raises", "Examples") if parameters else ("Examples",)
        for section in sections:
            assert f"{section}\n---" in text, f"{name} has no section {section}"
        for parameter in parameters:
            assert parameter in text, f"{name} does not document {parameter}"


def test_imports_of_a_new_process():
    """Nothing is imported before its use, and in any order."""
    code = """
import importlib, sys
import numpyro_kaem as kaem

# Figures and diagnostics are imported where they are used, and so is the rest.
modules = (*kaem._MODULES, *kaem._NAMES)
later = {f"numpyro_kaem.{module}" for module in modules}
assert not {"matplotlib", "arviz", *later} & set(sys.modules)
assert set(kaem.__all__) <= set(dir(kaem))
before = set(sys.modules)
import numpyro_kaem.datasets
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
assert loaded <= {"numpyro_kaem"}, loaded
for name in modules:
    for module in [m for m in sys.modules if m.split(".")[0] == "numpyro_kaem"]:
        del sys.modules[module]
    importlib.import_module(f"numpyro_kaem.{name}")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_type_checkers_see_what_is_imported_later():
    tree = ast.parse(inspect.getsource(kaem))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module: {name.name for name in node.names} for node in block.body}
    assert seen.pop("numpyro_kaem") == set(kaem._MODULES)
    later = {f"numpyro_kaem.{m}": set(n.split()) for m, n in kaem._NAMES.items()}
    assert seen == later


def test_no_public_name_hides_a_module():
    for found in pkgutil.walk_packages(kaem.__path__, "numpyro_kaem."):
        importlib.import_module(found.name)
        package, _, name = found.name.rpartition(".")
        package = sys.modules[package]
        assert getattr(package, name) is sys.modules[found.name], found.name
        # Nor is there a name that hides it once it is loaded.
        names = set(getattr(package, "__all__", ())) - set(kaem._MODULES)
        assert name not in names, found.name
