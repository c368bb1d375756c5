"""Do the tests bite? Put small faults into a copy of the package, one at a time.

Usage::

    python tests/mutants.py [--only SUBSTRING] [--check]

For each fault of the list it says whether a test that should notice it fails. It ends
with status 1 unless all do. ``--only`` takes those whose file or description holds the
text, and ``--check`` only looks whether each fault can still be put where it belongs.
The tests must pass without a fault: this is not looked at here.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = (
    "numpyro_kaem",
    "tests",
    "conftest.py",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
)
# A test that does not end has noticed, too.
MAX_SECONDS = 900


class Fault(NamedTuple):
    """A small fault, and the tests that should notice it."""

    what: str
    """In a few words."""
    path: str
    """File in the package."""
    before: str
    """Piece of the source that occurs once."""
    after: str
    """What stands there instead."""
    tests: str
    """Files or tests in ``tests``, separated by spaces."""


FAULTS = [
    # --- numerics --------------------------------------------------------------------
    Fault(
        "variance about zero",
        "_quadrature.py",
        "jnp.square(root * (nodes - mean))",
        "jnp.square(root * nodes)",
        "test_quadrature.py::test_moments_of_heavy_tails",
    ),
    Fault(
        "kinks of a reference left out of the panels",
        "numerics/panels.py",
        "added = [*points.kinks, *points.far]",
        "added = [*points.far]",
        "distributions/test_normalizer.py::test_normalizer[fourier-laplace]",
    ),
    Fault(
        "too few panels towards a singular end",
        "numerics/panels.py",
        "depth = 36 if dtype == np.float64 else 20",
        "depth = 4",
        "distributions/test_normalizer.py::test_normalizer[rbf-gamma-singular]",
    ),
    Fault(
        "no tail where the support reaches above the grid",
        "numerics/panels.py",
        "bool(np.any(np.asarray(bounds[1]) > high))",
        "bool(np.any(np.asarray(bounds[1]) < high))",
        "distributions/test_known_distributions.py"
        "::test_a_constant_energy_leaves_the_reference[exponential]",
    ),
    Fault(
        "series that ring are kept",
        "numerics/cells.py",
        "jnp.where(share < 0.8, 0, share)",
        "jnp.where(share < 0.08, 0, share)",
        "numerics/test_cells.py::test_a_peak_narrower_than_the_panel_is_spread_over_it",
    ),
    Fault(
        "part of a table: masses counted from the wrong edge",
        "numerics/cells.py",
        "jnp.cumsum(masses[:0:-1], axis=0)[::-1] + at(above, right)",
        "jnp.cumsum(masses[:0:-1], axis=0)[::-1] + at(above, left)",
        "numerics/test_cells.py::test_one_point_of_each_density",
    ),
    Fault(
        "derivative of a quantile: sign of the mass",
        "numerics/inverse.py",
        "change -= jnp.where(upper, -mass_dot, mass_dot)",
        "change += jnp.where(upper, -mass_dot, mass_dot)",
        "distributions/test_derivatives.py::test_first_derivatives",
    ),
    Fault(
        "derivative of a quantile: cells that do not widen",
        "numerics/inverse.py",
        "        motion += _take(jnp.diff(edges_dot), index) * s\n",
        "",
        "distributions/test_reference_kinds.py::test_moving_ends_of_the_support",
    ),
    Fault(
        "derivative of a quantile in a tail: sign",
        "numerics/inverse.py",
        "change += beyond * _take(scale_dot, row)",
        "change -= beyond * _take(scale_dot, row)",
        "distributions/test_derivatives.py::test_first_derivatives",
    ),
    Fault(
        "truncated references: the larger tails are subtracted",
        "references/tails.py",
        "is_low = below_high < above_low",
        "is_low = below_high > above_low",
        "distributions/test_reference_kinds.py::test_truncated_references",
    ),
    Fault(
        "quantile of a tail: hazard",
        "references/tails.py",
        "jnp.exp(log_density(reference, start)) / total",
        "jnp.exp(log_density(reference, start)) * total",
        "references/test_references.py::test_tail_quantile",
    ),
    Fault(
        "Fourier sums: sign in the addition formula",
        "bases/spectral.py",
        "sine * first_cosine + cosine * first_sine",
        "sine * first_cosine - cosine * first_sine",
        "bases/test_contract.py::test_unit_combine",
    ),
    Fault(
        "base activation goes on beyond the grid",
        "energy.py",
        "activation(jnp.clip(z, *self.ends(z.dtype)))",
        "activation(z)",
        "test_energy.py::test_values",
    ),
    Fault(
        "refit of an energy counts its base twice",
        "energy.py",
        "jnp.broadcast_to(self(z) - shell(z), ",
        "jnp.broadcast_to(self(z), ",
        "test_energy.py::test_refit_to_a_wider_grid",
    ),
    Fault(
        "nodes of moments: energy beyond the grid",
        "numerics/density.py",
        "log_mass = log_weights + log_reference + values.energy_ends[side]",
        "log_mass = log_weights + log_reference",
        "distributions/test_contract.py::test_moments_against_samples_and_scipy",
    ),
    # --- distributions ---------------------------------------------------------------
    Fault(
        "zero draws under jit",
        "distributions/prior.py",
        "math.prod(sample_shape) == 1",
        "math.prod(sample_shape) <= 1",
        "distributions/test_inversion.py::test_a_single_draw_and_an_empty_one",
    ),
    Fault(
        "moments that a heavy tail has not",
        "distributions/prior.py",
        "jnp.where(finite, moment, jax.lax.stop_gradient(reference_moment))",
        "moment",
        "test_quadrature.py::test_moments_of_heavy_tails",
    ),
    Fault(
        "variance of a mixture within components only",
        "distributions/mixture.py",
        "weights * (self.prior.variance + spread)",
        "weights * self.prior.variance",
        "distributions/test_mixture.py::test_draws_and_quantiles",
    ),
    Fault(
        "support of a mixture from its highest lower end",
        "distributions/mixture.py",
        "least.min(axis=-1), most.max(axis=-1)",
        "least.max(axis=-1), most.max(axis=-1)",
        "distributions/test_mixture.py::test_support_and_ends",
    ),
    Fault(
        "quantile of a mixture: derivative above the median",
        "distributions/mixture.py",
        "jnp.where(upper, above - mass_dot, mass_dot - below)",
        "jnp.where(upper, mass_dot - above, mass_dot - below)",
        "distributions/test_mixture.py::test_derivatives_of_icdf",
    ),
    Fault(
        "truncated mixture keeps its weights",
        "distributions/truncation.py",
        "logits = prior.log_weights + _log_share(cut, prior.prior)",
        "logits = prior.log_weights",
        "distributions/test_truncation.py::test_masses_density_and_moments[mixture-of-grids]",
    ),
    Fault(
        "truncation of a truncation widens it",
        "distributions/truncation.py",
        "low = _both(jnp.maximum, prior.low, low)",
        "low = _both(jnp.minimum, prior.low, low)",
        "distributions/test_truncation.py::test_bounds_and_supports",
    ),
    Fault(
        "coefficients of a dimension see the dimension itself",
        "distributions/autoregressive.py",
        "last = orders[:, None] < np.arange(1, dim + 1)",
        "last = orders[:, None] <= np.arange(1, dim + 1)",
        "distributions/test_autoregressive.py"
        "::test_coefficients_depend_on_the_dimensions_before",
    ),
    Fault(
        "transport of 0 and 1 to the wrong ends",
        "numerics/chain.py",
        "end = jnp.where(upper, most, least)",
        "end = jnp.where(upper, least, most)",
        "distributions/test_autoregressive.py::test_transport_is_rosenblatts",
    ),
    Fault(
        "divergence: breaks of the other law left out",
        "distributions/divergence.py",
        "rows = [with_rank(row, rank) for row in (edges, *rows)]",
        "rows = [with_rank(edges, rank)]",
        "distributions/test_truncation.py"
        "::test_divergence_from_distributions_that_break_within_a_panel",
    ),
    Fault(
        "Normal base: its density left out of the Jacobian",
        "distributions/transform.py",
        "slope + norm.logpdf(x)",
        "slope",
        "distributions/test_contract.py::test_transformed",
    ),
    # --- estimation ------------------------------------------------------------------
    Fault(
        "half of the Occam term in the evidence",
        "estimation/exponential_family.py",
        "return value + 0.5 * (jnp.sum(jnp.log(ridge)) - log_det)",
        "return value + 0.25 * (jnp.sum(jnp.log(ridge)) - log_det)",
        "estimation/test_density.py::test_evidence_of_one_coordinate_is_its_integral",
    ),
    Fault(
        "information of rounded samples: sign",
        "estimation/exponential_family.py",
        "return gradient, complete, complete - within",
        "return gradient, complete, complete + within",
        "estimation/test_rounding.py::test_derivatives_are_those_of_the_likelihood",
    ),
    Fault(
        "shifted weighted quantiles",
        "estimation/density.py",
        "middle = (np.cumsum(shares, 0) - 0.5 * shares)",
        "middle = np.cumsum(shares, 0)",
        "estimation/test_density.py::test_default_reference_and_grid_of_weighted_samples",
    ),
    Fault(
        "default reference is no wider than the samples",
        "estimation/density.py",
        "_INFLATION = 1.5",
        "_INFLATION = 1.0",
        "estimation/test_density.py::test_default_reference_and_grid_of_weighted_samples",
    ),
    Fault(
        "default grid reaches to any outlier",
        "estimation/density.py",
        "_REACH = 2.0",
        "_REACH = 20.0",
        "estimation/test_density.py::test_default_reference_and_grid_of_weighted_samples",
    ),
    Fault(
        "weights do not lower the number of samples",
        "estimation/samples.py",
        "np.broadcast_to(1 / np.square(shares).sum(0), batch_shape)",
        "np.broadcast_to(float(len(data)), batch_shape)",
        "estimation/test_density.py::test_weights_count_by_their_ratios",
    ),
    Fault(
        "cells twice as wide below",
        "estimation/samples.py",
        "np.maximum(data - widths / 2, ends[0])",
        "np.maximum(data - widths, ends[0])",
        "estimation/test_rounding.py::test_rounded_samples",
    ),
    Fault(
        "spacings that fit by chance",
        "estimation/samples.py",
        "chance > 1e-3)",
        "chance > 1e30)",
        "estimation/test_rounding.py::test_other_ties_are_exact",
    ),
    Fault(
        "mixture without its pseudo-count",
        "estimation/mixture_em.py",
        "means = (sums + added * pooled) / share",
        "means = sums / share",
        "estimation/test_mixture.py::test_pseudo_count_is_samples_of_all",
    ),
    Fault(
        "candidates judged by the samples they were fitted to",
        "estimation/mixture.py",
        "rest = problem._replace(shares=left)",
        "rest = problem._replace(shares=kept)",
        "estimation/test_mixture.py::test_candidates_are_compared",
    ),
    Fault(
        "worst network instead of the best",
        "estimation/autoregressive.py",
        "if looks[-1] >= max(looks):",
        "if looks[-1] <= min(looks):",
        "estimation/test_autoregressive.py::test_keeps_dependence",
    ),
    # --- empirical Bayes -------------------------------------------------------------
    Fault(
        "covariance of a fitted reference: sign of the curvature",
        "empirical_bayes/family.py",
        "observed.at[-count:, -count:].add(-curvature)",
        "observed.at[-count:, -count:].add(curvature)",
        "empirical_bayes/test_estimation.py"
        "::test_covariance_with_a_fitted_reference_is_of_the_hessian",
    ),
    Fault(
        "less undersmoothing",
        "empirical_bayes/estimation.py",
        "_UNDERSMOOTHING = 1 / 6",
        "_UNDERSMOOTHING = 1 / 2",
        "empirical_bayes/test_estimation.py"
        "::test_a_sixth_of_the_penalty_of_largest_evidence",
    ),
    Fault(
        "weights of atoms without the constant of the energy",
        "empirical_bayes/family.py",
        "(prior.log_normalizer - constant)",
        "(prior.log_normalizer)",
        "empirical_bayes/test_atoms.py::test_maximum_has_no_gradient_and_its_curvature",
    ),
    Fault(
        "bands of a one-sided level",
        "empirical_bayes/results.py",
        "half = ndtri(0.5 + 0.5 * level) * deviation",
        "half = ndtri(level) * deviation",
        "empirical_bayes/test_estimation.py"
        "::test_bands_contain_their_estimate_and_widen_with_their_level",
    ),
    # --- samplers --------------------------------------------------------------------
    Fault(
        "acceptance of Langevin steps",
        "infer/langevin.py",
        "change * (2 * noise + change)",
        "change * (noise + change)",
        "infer/test_langevin.py::test_acceptance_is_that_of_metropolis_and_hastings",
    ),
    Fault(
        "AutoMALA accepts steps that do not lead back",
        "infer/langevin.py",
        "jnp.where(reversible, _acceptance_of(log_ratio, new), 0.0)",
        "_acceptance_of(log_ratio, new)",
        "infer/test_langevin.py::test_exact_draws_keep_their_distribution",
    ),
    Fault(
        "ladder spread by acceptance instead of rejection",
        "infer/annealed.py",
        "equal_rejection_ladder(old, 1 - means.swap_acceptance)",
        "equal_rejection_ladder(old, means.swap_acceptance)",
        "infer/test_ladder.py::test_warmup_moves_temperatures_to_where_swaps_are_rejected",
    ),
    Fault(
        "swaps of the other parity",
        "infer/ladder.py",
        "asked = pairs % 2 == jnp.asarray(iteration) % 2",
        "asked = pairs % 2 != jnp.asarray(iteration) % 2",
        "infer/test_swaps.py::test_all_pairs_of_one_parity_swap",
    ),
    Fault(
        "weights without the density of the guide",
        "infer/importance.py",
        "log_weight = log_weight - self.run.log_density(sample_sites(guide_trace))",
        "log_weight = 1 * log_weight",
        "infer/test_importance.py::test_exact_guide_has_equal_weights",
    ),
    Fault(
        "effective sample size that calls for resampling",
        "infer/weights.py",
        "effective_sample_size(log_weights) < threshold * num_particles",
        "effective_sample_size(log_weights) > threshold * num_particles",
        "infer/test_resampling.py::test_only_units_below_the_threshold",
    ),
    Fault(
        "tail of the Pareto fit",
        "infer/weights.py",
        "tail = min(num_draws / 5, 3 * num_draws**0.5)",
        "tail = max(num_draws / 5, 3 * num_draws**0.5)",
        "infer/test_smoothing.py::test_equal_to_the_installed_arviz",
    ),
    Fault(
        "evidence by the plain trapezoid",
        "infer/evidence.py",
        "return trapezoid - width**2 / 12 * (variance[j] - variance[i])",
        "return trapezoid",
        "infer/test_evidence.py::test_integral_of_fourth_order_knows_its_error",
    ),
    # --- objectives ------------------------------------------------------------------
    Fault(
        "a NaN likelihood taken for a number",
        "objectives/importance.py",
        "some = jnp.isfinite(value)",
        "some = ~jnp.isneginf(value)",
        "objectives/test_gradients.py::test_a_likelihood_that_is_not_a_number_is_told",
    ),
    Fault(
        "threshold of resampling ignored",
        "objectives/importance.py",
        "rng_key, log_weights, self.ess_threshold, method=self.resampling",
        "rng_key, log_weights, 0.5, method=self.resampling",
        "objectives/test_gradients.py::test_resampling_is_left_out_above_its_threshold",
    ),
    Fault(
        "loss of the batch instead of all data",
        "objectives/base.py",
        "loss = -unit_model.num_data * ",
        "loss = -unit_model.num_units * ",
        "objectives/test_gradients.py::test_objectives_climb_the_likelihood",
    ),
    Fault(
        "annealed weights that are shares",
        "infer/held_out.py",
        "jnp.log(num_particles * shares)",
        "jnp.log(shares)",
        "infer/test_held_out.py::test_linear_model_in_closed_form",
    ),
    Fault(
        "refit: copies of a component keep its whole weight",
        "training/refit.py",
        "logits[sources] - jnp.log(copies)[sources]",
        "logits[sources]",
        "training/test_fit.py::test_refit_fills_the_places_of_empty_components",
    ),
    Fault(
        "penalty of first differences at any order",
        "training/regularizers.py",
        "jnp.diff(coefficients, n=order, axis=-1)",
        "jnp.diff(coefficients, axis=-1)",
        "training/test_regularizers.py::test_values",
    ),
    Fault(
        "one checkpoint too many",
        "training/checkpoint.py",
        "self._files()[self.keep :]",
        "self._files()[self.keep + 1 :]",
        "training/test_checkpoints.py::test_the_newest_are_kept",
    ),
    # --- files and decoders ----------------------------------------------------------
    Fault(
        "checksum is not looked at",
        "files/container.py",
        "if _checksum(file) != archive.comment:",
        "if not _checksum(file):",
        "files/test_files.py::test_damaged_files",
    ),
    Fault(
        "minus infinity comes back as infinity",
        "files/saving.py",
        '"-inf": -math.inf',
        '"-inf": math.inf',
        "files/test_round_trip.py::test_arrays_numbers_and_containers",
    ),
    Fault(
        "context of tokens: one too many",
        "decoders/sequence.py",
        "jnp.triu(seen, 1 - self.context)",
        "jnp.triu(seen, -self.context)",
        "decoders/test_sequence.py::test_causality",
    ),
    Fault(
        "variance of a new KAN layer",
        "decoders/kan.py",
        "jnp.where(varies, (2 * num_inputs * varying) ** -0.5, 0)",
        "jnp.where(varies, (num_inputs * varying) ** -0.5, 0)",
        "decoders/test_kan.py::test_start_keeps_the_variance",
    ),
    Fault(
        "new convolutions as if their stride were 1",
        "decoders/convolutional.py",
        "seen[i + 1] *= square / math.prod(stride)",
        "seen[i + 1] *= square",
        "decoders/test_convolutional.py::test_start_keeps_the_mean_square",
    ),
    Fault(
        "a stride of rows for columns in the gradient of a kernel",
        "decoders/convolutional.py",
        "columns * stride[1], num_outputs",
        "columns * stride[0], num_outputs",
        "decoders/test_convolutional.py"
        "::test_convolutions_and_derivatives_are_those_of_jax[4]",
    ),
    Fault(
        "JAX's own gradients of convolutions on CPUs",
        "decoders/convolutional.py",
        "cpu=lambda x, kernel: _on_cpu(x, kernel, stride)",
        "cpu=lambda x, kernel: _plain(x, kernel, stride)",
        "decoders/test_convolutional.py::test_gradients_in_loops_are_fast_on_cpus",
    ),
    Fault(
        "kernel distance with the kernel of each row and itself",
        "diagnostics/quality.py",
        "(total(rows, rows) - own) / (len(rows) * (len(rows) - 1))",
        "total(rows, rows) / (len(rows) * len(rows))",
        "diagnostics/test_sample_quality.py::test_kernel_distance_by_brute_force",
    ),
    Fault(
        "components that are rounding",
        "diagnostics/quality.py",
        "[: max(1, np.sum(~is_rounding))]",
        "",
        "diagnostics/test_sample_quality.py"
        "::test_components_are_those_of_a_singular_value_decomposition",
    ),
    Fault(
        "draws of an encoder with three times its scale",
        "objectives/amortised.py",
        "loc + jnp.exp(log_scale) * jax.random.normal(rng_key, loc.shape)",
        "loc + 3 * jnp.exp(log_scale) * jax.random.normal(rng_key, loc.shape)",
        "training/test_fit.py::test_refits_to_draws_of_an_encoder",
    ),
]


# --- putting them in -----------------------------------------------------------------


def mutated(root: Path, fault: Fault) -> str | None:
    """Source of the file with the fault in it; ``None`` if it does not apply."""
    source = (root / "numpyro_kaem" / fault.path).read_text()
    if source.count(fault.before) != 1 or fault.before == fault.after:
        return None
    return source.replace(fault.before, fault.after)


def copy_to(folder: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, folder)


def run_tests(folder: Path, tests: list[str]) -> tuple[str, str]:
    """Run tests on the copy, and say what came of it and which test failed."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header"]
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "caught", "did not end"
    if done.returncode == 0:
        return "NOT caught", ""
    failed = re.search(r"^FAILED \S+?::(.+?)( - |$)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed is not None:
        return "caught", failed[1]
    # The tests were not there, or could not even be collected.
    print(done.stdout)
    return "error", ""


def check_copy(folder: Path) -> None:
    """Check that the tests import the copy."""
    find = "import importlib.util as u; print(u.find_spec('numpyro_kaem').origin)"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    origin = subprocess.check_output(
        [sys.executable, "-c", find], cwd=folder, env=environment, text=True
    )
    if not Path(origin).is_relative_to(folder):
        sys.exit(f"the tests would import {origin.strip()}, not the copy")


def main() -> None:
    """Put in one fault after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="run some only")
    parser.add_argument("--check", action="store_true", help="run no tests")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if options.only in f"{f.path}: {f.what}"]
    for fault in chosen:
        if mutated(ROOT, fault) is None:
            print(f"does not apply: {fault.path}: {fault.what}")
    if not chosen or any(mutated(ROOT, fault) is None for fault in chosen):
        sys.exit(1)
    print(f"{len(chosen)} faults apply.", flush=True)
    if options.check:
        return
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_to(folder)
        check_copy(folder)
        for fault in chosen:
            file, start = folder / "numpyro_kaem" / fault.path, time.monotonic()
            source = file.read_text()
            file.write_text(mutated(folder, fault))
            outcome, failed = run_tests(folder, fault.tests.split())
            file.write_text(source)
            seconds = time.monotonic() - start
            by = f" ({failed})" if failed else ""
            print(f"{outcome:10} {seconds:4.0f} s  {fault.path}: {fault.what}{by}")
            sys.stdout.flush()
            outcomes.append(outcome)
    num_caught = outcomes.count("caught")
    print(f"{num_caught} of {len(outcomes)} faults caught.")
    sys.exit(num_caught < len(outcomes))


if __name__ == "__main__":
    main()
