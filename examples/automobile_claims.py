"""Claims of automobile policies
=============================

Each of 9461 policies has a rate of claims, and its number of claims in a year is
Poisson. The prior of the rates is learned from the numbers of policies with 0 to 7
claims, as a tilted gamma distribution. The posterior mean of the rate is the expected
number of claims next year; it is compared with Robbins' formula, which needs no prior,
and with the gamma prior fitted by maximum likelihood.

Run it with ``python examples/automobile_claims.py``; it takes less than a minute.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from _claims import (
    CLAIMS,
    NONPARAMETRIC_MAXIMUM,
    POLICIES,
    check_claims,
    fit_gamma,
)

import numpyro_kaem as kaem

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#E69F00", "#009E73", "#000000"

parser = argparse.ArgumentParser(description="Claims of automobile policies")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few bootstrap replicates")
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)

# %%
# Learn the prior
# ---------------
# Policies with the same number of claims are one unit, with their number as its count.
# The reference is the gamma distribution of maximum likelihood: the learned density
# departs from it only where the data require it, and keeps its tail.

check_claims()
shape, scale, gamma_value = fit_gamma()
units = kaem.unit_log_likelihood(lambda rate: dist.Poisson(rate), CLAIMS)
fit = kaem.fit_marginal(
    units,
    kaem.BSpline(0.0, 4.0, num_basis=24),
    dist.Gamma(float(shape), float(1 / scale)),
    counts=POLICIES,
)
print(fit)
print("\nLog marginal likelihood of all policies:")
print(f"  gamma prior            {gamma_value:.3f}")
print(f"  learned prior          {fit.log_marginal_likelihood:.3f}")
print(f"  nonparametric maximum  {NONPARAMETRIC_MAXIMUM:.3f}  (no prior is above)")

# %%
# No prior can exceed the nonparametric maximum, so a fit above it would have a wrong
# normalizing constant. The learned prior comes close to it with a smooth density.
#
# Expected claims
# ---------------
# ``fit.unit_mean_band`` gives the uncertainty of each posterior mean due to the learned
# prior: by the delta method, or from a parametric bootstrap.

means = np.asarray(kaem.unit_posterior(fit.prior, units).mean)
robbins = (CLAIMS[:-1] + 1) * POLICIES[1:] / POLICIES[:-1]
gamma = (CLAIMS + shape) * scale / (1 + scale)
delta = fit.unit_mean_band()
replicates = fit.bootstrap(jax.random.key(0), 20 if args.quick else 200)
bootstrap = fit.unit_mean_band(bootstrap=replicates)
print("\nExpected claims next year, with 90 % intervals:")
print(" claims  policies  Robbins   gamma  learned   delta method     bootstrap")
for i, number in enumerate(CLAIMS):
    first = f"{robbins[i]:8.3f}" if i < len(robbins) else "       -"
    print(
        f"{number:7}{POLICIES[i]:10}{first}{gamma[i]:9.3f}{means[i]:9.3f}"
        f"   [{delta.lower[i]:.3f}, {delta.upper[i]:.3f}]"
        f"   [{bootstrap.lower[i]:.3f}, {bootstrap.upper[i]:.3f}]"
    )

# %%
# Robbins' formula is erratic where policies are few, and undefined for the last row.
# The gamma prior is smooth, and biased for policies with many claims.


def draw(fit: kaem.MarginalFit, means: np.ndarray, others: dict) -> plt.Figure:
    """Draw the learned prior beside the gamma prior, and the expected claims."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")
    z = np.geomspace(0.01, 5.0, 400)
    kaem.plot_band(
        z, fit.density_band(z), ax=left, label="learned prior", xlabel="claims per year"
    )
    gamma = np.exp(fit.prior.reference.log_prob(z))
    left.plot(z, gamma, color=ORANGE, ls="--", label="gamma prior")
    left.set(xscale="log", yscale="log", ylim=(1e-6, 30))
    left.legend(frameon=False, fontsize="small")
    band = fit.unit_mean_band()
    right.errorbar(
        CLAIMS,
        means,
        [means - band.lower, band.upper - means],
        fmt="o",
        color=BLUE,
        capsize=3,
        label="learned prior and 90 %",
    )
    for (name, values), style in zip(others.items(), ("x", "s"), strict=True):
        color = ORANGE if style == "s" else GREEN
        right.plot(
            CLAIMS[: len(values)], values, style, color=color, mfc="none", label=name
        )
    right.set(xlabel="claims this year", ylabel="expected claims next year")
    right.legend(frameon=False, fontsize="small")
    return fig


fig = draw(fit, means, {"Robbins": robbins, "gamma prior": gamma})
fig.savefig(
    args.output / "automobile_claims.png",
    dpi=150,
    metadata={
        "Description": "Left: the learned density of the rate of claims with its band, "
        "beside the gamma prior, on logarithmic axes. Right: expected claims next year "
        "against claims this year, by the learned prior with intervals, by Robbins' "
        "formula and by the gamma prior."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
