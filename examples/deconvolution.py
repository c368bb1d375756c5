"""Deconvolution
=============

The density of values that were measured with error, and its uncertainty. Units have
latent values from a distribution with two skewed modes, and each is measured with a
Normal error. The density of the latent values is learned from the measurements alone,
for an increasing number of units, and compared with the truth and with a mixture of two
Gaussians fitted to the same measurements. Over many simulated data sets, the 90 % bands
should cover the truth about nine times in ten.

Run it with ``python examples/deconvolution.py``; it takes several minutes, less with
``--quick``.
"""

import argparse
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from scipy import stats
from tqdm import tqdm

import numpyro_kaem as kaem

BLUE, ORANGE = "#0072B2", "#E69F00"

# %%
# The truth, and measurements of it
# ---------------------------------

ERROR = 0.7
"""Standard deviation of the error of a measurement."""

GRID = np.linspace(-5.0, 6.0, 600)
LEVELS = np.array([0.02, 0.05, *np.arange(0.1, 0.95, 0.1), 0.95, 0.98])
"""Probabilities of the true quantiles at which coverage of bands is counted."""

_SHARE, _LEFT, _RIGHT = 0.6, stats.skewnorm(5, -2.5, 1.5), stats.gamma(4, 0.5, 0.45)


def true_density(z: np.ndarray) -> np.ndarray:
    """Density of the latent values."""
    return _SHARE * _LEFT.pdf(z) + (1 - _SHARE) * _RIGHT.pdf(z)


@cache
def true_quantiles() -> np.ndarray:
    """Quantiles of the latent values at the levels."""
    z = np.linspace(-8.0, 12.0, 20_001)
    return np.interp(LEVELS, _SHARE * _LEFT.cdf(z) + (1 - _SHARE) * _RIGHT.cdf(z), z)


def simulate(num_units: int, seed: int) -> np.ndarray:
    """Measurements of units with latent values from the true distribution."""
    rng = np.random.default_rng(seed)
    latent = np.where(
        rng.random(num_units) < _SHARE,
        _LEFT.rvs(num_units, random_state=rng),
        _RIGHT.rvs(num_units, random_state=rng),
    )
    return latent + ERROR * rng.normal(size=num_units)


# %%
# Learn the density
# -----------------
# Each unit has one measurement, whose density is its likelihood of the latent value.
# The reference is wide; the grid of the basis covers the plausible latent values.


def learn(x: np.ndarray) -> kaem.MarginalFit:
    """Prior of the latent values by maximum marginal likelihood."""
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, ERROR), x)
    return kaem.fit_marginal(units, kaem.BSpline(-5.0, 9.0, 35), dist.Normal(0.0, 3.0))


# %%
# A parametric alternative
# ------------------------
# A mixture of two Gaussians, fitted by expectation-maximisation (EM).


def gaussian_mixture(x: np.ndarray, seed: int, num_starts: int = 5) -> np.ndarray:
    """Density on the grid of a mixture of two Gaussians for the latent values.

    Fitted by EM that accounts for the errors.
    """
    rng = np.random.default_rng(seed)
    best: tuple = (-np.inf,)
    for _ in range(num_starts):
        mean, variance = rng.choice(x, 2, replace=False), np.full(2, x.var() / 2)
        share, last = np.full(2, 0.5), -np.inf
        for _ in range(2000):
            total = variance + ERROR**2
            log_joint = np.log(share) + stats.norm.logpdf(
                x[:, None], mean, np.sqrt(total)
            )
            log_marginal = np.logaddexp.reduce(log_joint, axis=1)
            weight = np.exp(log_joint - log_marginal[:, None])
            latent = mean + variance / total * (x[:, None] - mean)
            count = weight.sum(0)
            share, mean = count / len(x), (weight * latent).sum(0) / count
            spread = (latent - mean) ** 2 + variance * ERROR**2 / total
            variance = (weight * spread).sum(0) / count
            if log_marginal.sum() - last < 1e-5:
                break
            last = log_marginal.sum()
        if log_marginal.sum() > best[0]:
            best = (log_marginal.sum(), share, mean, variance)
    _, share, mean, variance = best
    return (share * stats.norm.pdf(GRID[:, None], mean, np.sqrt(variance))).sum(1)


# %%
# Two criteria: the distance of a density from the truth, and whether the band
# covers it.


def squared_error(density: np.ndarray) -> float:
    """Integrated squared error of a density on the grid."""
    return float(np.trapezoid((density - true_density(GRID)) ** 2, GRID))


def covers(fit: kaem.MarginalFit) -> np.ndarray:
    """Whether the 90 % band covers the true density at its quantiles."""
    z = true_quantiles()
    band, truth = fit.density_band(z), true_density(z)
    return (np.asarray(band.lower) <= truth) & (truth <= np.asarray(band.upper))


# %%
# The figure
# ----------


def draw(fit: kaem.MarginalFit, x: np.ndarray, errors: dict) -> plt.Figure:
    """Draw the last fit with its band, and errors against the number of units."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    left.hist(x, 60, density=True, color="0.85", zorder=0, label="measurements")
    kaem.plot_band(
        GRID,
        fit.density_band(GRID),
        truth=true_density(GRID),
        ax=left,
        label="learned prior",
        xlabel="latent value",
    )
    left.set_title(f"{len(x)} units", fontsize="medium")
    sizes = np.array(sorted(errors))
    for name, color, marker in (
        ("learned prior", BLUE, "o"),
        ("two Gaussians", ORANGE, "s"),
    ):
        values = np.array([np.median(errors[size][name]) for size in sizes])
        right.loglog(sizes, values, color=color, marker=marker, label=name)
    right.set(xlabel="number of units", ylabel="integrated squared error (median)")
    right.legend(frameon=False, fontsize="small")
    return fig


# %%
# Run it
# ------
# For each number of units, over many data sets.


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Deconvolution")
    parser.add_argument("--output", type=Path, default=Path("figures"))
    parser.add_argument("--quick", action="store_true", help="few, small data sets")
    args = parser.parse_args()
    matplotlib.use("Agg")
    args.output.mkdir(parents=True, exist_ok=True)

    sizes = (300, 1000) if args.quick else (300, 1000, 5000, 20_000)
    repeats = {size: 2 if args.quick else 20 for size in sizes}
    if not args.quick:
        repeats[5000] = 100
    errors, coverage = {}, {}
    print("  units  data sets  error: learned prior      two Gaussians  coverage")
    for size in sizes:
        learned, mixture, covered = [], [], []
        for seed in tqdm(range(repeats[size]), desc=f"{size} units", leave=False):
            x = simulate(size, seed)
            fit = learn(x)
            learned.append(squared_error(np.exp(fit.prior.log_prob(jnp.array(GRID)))))
            covered.append(covers(fit))
            if seed < 20:
                mixture.append(squared_error(gaussian_mixture(x, seed)))
        errors[size] = {"learned prior": learned, "two Gaussians": mixture}
        coverage[size] = np.mean(covered)
        print(
            f"{size:7}{repeats[size]:11}{np.median(learned):22.5f}"
            f"{np.median(mixture):19.5f}{coverage[size]:10.2f}",
            flush=True,
        )
    print("Errors are medians of the integrated squared error of the density.")

    fig = draw(fit, x, errors)
    fig.savefig(
        args.output / "deconvolution.png",
        dpi=150,
        metadata={
            "Description": "Left: the learned density with its band over the histogram "
            "of the measurements, which is smoother than the true density with two "
            "modes. Right: the error against the number of units; that of the learned "
            "density falls below that of two Gaussians."
        },
    )
    plt.close(fig)
    print(f"\nFigures: {args.output.resolve()}")


if __name__ == "__main__":
    main()
