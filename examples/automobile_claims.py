"""Claims of 9461 automobile policies, and next year's from a learned prior.

Each policy has a rate of claims, and its number of claims in a year is Poisson. The
prior of the rates is learned from the numbers of policies with 0, 1, ..., 7 claims, as
a tilted gamma law. The posterior mean of the rate is the expected number of claims next
year; it is compared with Robbins' formula, which needs no prior, and with the gamma
prior of maximum likelihood.

Data: Thyrion (1960), "Contribution à l'étude du bonus pour non sinistre en assurance
automobile", *ASTIN Bulletin* 1(3), as given by Simar (1976), "Maximum likelihood
estimation of a compound Poisson process", *Annals of Statistics* 4(6).

Run it with ``python examples/automobile_claims.py``; it takes less than a minute.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from scipy import optimize, stats

import numpyro_kaem as kaem

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#E69F00", "#009E73", "#000000"

CLAIMS = np.arange(8)
POLICIES = np.array([7840, 1317, 239, 42, 14, 4, 4, 1])
"""Number of policies with so many claims, shape ``(8,)``."""

# What no prior can exceed: the maximum over all laws of the rate (Simar 1976).
NONPARAMETRIC_MAXIMUM = -5340.704


def fit_gamma() -> tuple[float, float, float]:
    """Shape and scale of the gamma prior of maximum likelihood, and its log."""

    def loss(logs: np.ndarray) -> float:
        shape, scale = np.exp(logs)
        return -POLICIES @ stats.nbinom.logpmf(CLAIMS, shape, 1 / (1 + scale))

    best = optimize.minimize(
        loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9}
    )
    return *np.exp(best.x), -best.fun


def check_claims(policies: np.ndarray = POLICIES) -> None:
    """Compare the typed numbers with statistics published of them.

    There are 9461 policies; the gamma prior of maximum likelihood has the shape .7015
    and the scale .3056 (Efron and Hastie 2016, *Computer Age Statistical Inference*,
    Cambridge University Press, table 6.1).

    Raises
    ------
    ValueError
        If a statistic differs from the published one, which the message names.
    """
    shape, scale, _ = fit_gamma()
    published = {
        "number of policies": (9461, policies.sum()),
        "shape": (0.7015, round(shape, 4)),
        "scale": (0.3056, round(scale, 4)),
    }
    for name, (expected, found) in published.items():
        if found != expected:
            raise ValueError(f"{name} is {found}, published as {expected}.")


def draw(fit: kaem.MarginalFit, means: np.ndarray, others: dict) -> plt.Figure:
    """Draw the learned prior beside the gamma law, and the expected claims."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")
    z = np.geomspace(0.01, 5.0, 400)
    kaem.plot_band(
        z, fit.density_band(z), ax=left, label="learned prior", xlabel="claims a year"
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


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("figures"))
    parser.add_argument("--quick", action="store_true", help="few bootstrap replicates")
    args = parser.parse_args()
    matplotlib.use("Agg")
    args.output.mkdir(parents=True, exist_ok=True)

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

    fig = draw(fit, means, {"Robbins": robbins, "gamma prior": gamma})
    fig.savefig(args.output / "automobile_claims.png", dpi=150)
    plt.close(fig)
    print(f"\nFigures: {args.output.resolve()}")


if __name__ == "__main__":
    main()
