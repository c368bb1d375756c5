"""A choice between two regressions
================================

Which density predicts the strength of pine? The strength of 42 specimens of radiata
pine is regressed on their density, or on their density adjusted for the resin. The two
models are not nested, so they are compared by their evidences. An annealed population
estimates each twice, by thermodynamic integration and by steppingstone sampling, with
standard errors. They are compared with the exact values by quadrature, and with the
Bayes factor published for these data and priors.

Run it with ``python examples/choose_regression.py``; it takes less than a minute.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from _pines import (
    ADJUSTED_DENSITY,
    DENSITY,
    PUBLISHED_BAYES_FACTOR,
    STRENGTH,
    check_pines,
    exact_log_evidence,
)
from numpyro.infer import MCMC

from numpyro_kaem.infer import AnnealedLangevin, Evidence, log_evidence

BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"

parser = argparse.ArgumentParser(description="A choice between two regressions")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="a fifth of the draws")
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)

# %%
# The two models
# --------------
# One function serves for both. The priors are those of Carlin and Chib (1995); the
# evidence is defined only for proper priors.


def regression(density: np.ndarray, strength: np.ndarray) -> None:
    """Model of the strengths, with the priors of Carlin and Chib (1995)."""
    level = numpyro.sample("level", dist.Normal(3000.0, 1000.0))
    slope = numpyro.sample("slope", dist.Normal(185.0, 100.0))
    variance = numpyro.sample("variance", dist.InverseGamma(3.0, 2 * 300.0**2))
    mean = level + slope * (density - density.mean())
    numpyro.sample("strength", dist.Normal(mean, variance**0.5), obs=strength)


check_pines()
variables = {"density": DENSITY, "adjusted density": ADJUSTED_DENSITY}

# %%
# Their evidences
# ---------------
# ``AnnealedLangevin`` runs each model at 16 temperatures between prior and posterior,
# and ``log_evidence`` computes both estimates from the run. Where the two disagree by
# more than their errors, there are too few temperatures or too few draws.

evidences, exact = {}, []
print(f"{'log evidence':<18}{'exact':>9}{'integral':>20}{'steppingstone':>20}")
for seed, (name, variable) in enumerate(variables.items()):
    mcmc = MCMC(
        AnnealedLangevin(regression, num_temperatures=16),
        num_warmup=1000,
        num_samples=1000 if args.quick else 5000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), variable, STRENGTH)
    evidence = evidences[name] = log_evidence(mcmc)
    exact.append(exact_log_evidence(variable))
    row = f"{name:<18}{exact[-1]:9.3f}"
    for estimate in (evidence.thermodynamic, evidence.steppingstone):
        row += f"{estimate.value:12.3f} ± {estimate.standard_error:.3f}"
    print(row)

# %%
# The Bayes factor is the exponential of the difference.

first, second = (evidence.steppingstone for evidence in evidences.values())
log_factor = second.value - first.value
error = np.hypot(first.standard_error, second.standard_error)
low, high = np.exp([log_factor - 2 * error, log_factor + 2 * error])
print(
    f"\nBayes factor for the adjusted density: {np.exp(log_factor):.0f}, two "
    f"standard errors {low:.0f} to {high:.0f}"
)
print(f"exact {np.exp(exact[1] - exact[0]):.0f}, published {PUBLISHED_BAYES_FACTOR}")

# %%
# The integrand
# -------------
# On the right the mean log likelihood at each inverse temperature, whose integral from
# 0 to 1 is the log evidence. It is steep near the prior, where the ladder is dense.


def draw(evidences: dict[str, Evidence]) -> plt.Figure:
    """Draw the integrands and the data."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")
    variables = (DENSITY, ADJUSTED_DENSITY)
    styles = ((ORANGE, "o", "--"), (BLUE, "s", "-"))
    for (name, evidence), variable, (color, marker, line) in zip(
        evidences.items(), variables, styles, strict=True
    ):
        left.plot(variable, STRENGTH, marker, color=color, mfc="none", label=name)
        slope, level = np.polyfit(variable, STRENGTH, 1)
        ends = np.array([variable.min(), variable.max()])
        left.plot(ends, level + slope * ends, line, color=color)
        for i, chain in enumerate(evidence.temperatures):
            right.plot(
                chain,
                evidence.mean_log_likelihood[i],
                line,
                marker=marker,
                ms=4,
                color=color,
                mfc="none",
                label=name if i == 0 else None,
            )
    left.set(xlabel="density, pounds per cubic foot", ylabel="strength, psi")
    right.set(xlabel="inverse temperature t", ylabel="mean log likelihood at t")
    right.set_xscale("symlog", linthresh=1e-3)
    right.set_xlim(0, 1)
    for ax in (left, right):
        ax.legend(frameon=False, fontsize="small")
    return fig


fig = draw(evidences)
fig.savefig(
    args.output / "choose_regression.png",
    dpi=150,
    metadata={
        "Description": "Left: strength against density and against adjusted density, "
        "with a line for each; the latter scatters less. Right: mean log likelihood "
        "against inverse temperature, which rises from the prior to the posterior and "
        "is higher for the adjusted density."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
