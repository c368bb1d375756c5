"""From a sample to a prior and a posterior
========================================

Velocities of 82 galaxies become a density, and the density becomes the prior of a
NumPyro model.

1. Learn the density of the velocities, and compare it with a kernel density estimate
   and a Gaussian mixture on velocities that were held out.
2. Use the learned density as the prior of a NumPyro model of noisy new measurements.
3. Sample the posterior with NUTS, directly and on a Normal base, and compare both with
   the exact posterior, which is easy to compute in one dimension.

Run it with ``python examples/quickstart.py``; it takes a minute or two on two cores.
"""

import argparse
from pathlib import Path

import arviz as az
import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from _galaxies import VELOCITIES, check_velocities
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import TransformReparam
from scipy.stats import gaussian_kde, norm
from sklearn.mixture import GaussianMixture
from tqdm import tqdm

import numpyro_kaem as kaem

# Colours of Okabe and Ito, as in kaem.plot_prior.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
BLACK = "#000000"
LABEL = "velocity (1000 km/s)"

parser = argparse.ArgumentParser(description="From a sample to a prior and a posterior")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few folds, short chains")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)

# %%
# Learn a density
# ---------------
# One call learns it from a sample. ``support="real"`` states that any velocity is
# possible: the tails are those of a Normal distribution at the sample's location and
# scale.

check_velocities()
print(
    f"{len(VELOCITIES)} galaxies, velocities {VELOCITIES.min()} to "
    f"{VELOCITIES.max()}, mean {VELOCITIES.mean():.2f}, standard deviation "
    f"{VELOCITIES.std(ddof=1):.2f} (in 1000 km/s)."
)
prior = kaem.fit_density(VELOCITIES, support="real")
print(
    f"Learned {prior}: mean {prior.mean:.2f}, standard deviation "
    f"{prior.variance**0.5:.2f}."
)

# %%
# Two other estimates
# -------------------
# A kernel density estimate and a Gaussian mixture, each with its best setting.


def kernel_density(samples: np.ndarray) -> gaussian_kde:
    """Gaussian kernels, of the bandwidth with the best leave-one-out likelihood."""
    distances = samples[:, None] - samples

    def score(width: float) -> float:
        kernels = norm.pdf(distances, scale=width)
        np.fill_diagonal(kernels, 0.0)
        return np.sum(np.log(kernels.sum(axis=1)))

    width = max(np.geomspace(0.3, 3.0, 50), key=score)
    return gaussian_kde(samples, bw_method=width / samples.std(ddof=1))


def gaussian_mixture(samples: np.ndarray, seed: int) -> GaussianMixture:
    """Gaussian mixture with the number of components of the smallest BIC."""
    fits = [
        GaussianMixture(k, n_init=3, random_state=seed).fit(samples[:, None])
        for k in range(1, 7)
    ]
    return min(fits, key=lambda fit: fit.bic(samples[:, None]))


# %%
# By repeated cross-validation, all three are fitted to a part of the galaxies and
# evaluated on the others.


def log_densities(samples: np.ndarray, z: np.ndarray, seed: int) -> dict:
    """Log densities at ``z``, by name, of three estimates from the samples."""
    return {
        "KAEM": np.asarray(kaem.fit_density(samples, support="real").log_prob(z)),
        "kernel density": kernel_density(samples).logpdf(z),
        "Gaussian mixture": gaussian_mixture(samples, seed).score_samples(z[:, None]),
    }


def cross_validate(
    samples: np.ndarray, num_folds: int, num_repeats: int, seed: int
) -> dict:
    """Log density of each velocity under estimates made without its fold."""
    rng = np.random.default_rng(seed)
    scores: dict[str, np.ndarray] = {}
    for _, fold in tqdm(
        [(r, f) for r in range(num_repeats) for f in range(num_folds)], desc="folds"
    ):
        if fold == 0:
            folds = rng.permutation(len(samples)) % num_folds
        held_out = folds == fold
        values = log_densities(samples[~held_out], samples, seed)
        for name, value in values.items():
            total = scores.setdefault(name, np.zeros(len(samples)))
            total[held_out] += value[held_out] / num_repeats
    return scores


folds, repeats = (3, 1) if args.quick else (10, 3)
print(
    f"\nMean log density of galaxies that an estimate has not seen ({folds} folds, "
    f"{repeats} times), and its difference from that of KAEM:",
    flush=True,
)
scores = cross_validate(VELOCITIES, folds, repeats, args.seed)
for name, values in scores.items():
    difference = values - scores["KAEM"]
    error = difference.std(ddof=1) / len(difference) ** 0.5
    compared = "" if name == "KAEM" else f" {difference.mean():+.3f} ± {error:.3f}"
    print(f"  {name:<17}{values.mean():.3f} {compared}")

# %%
# The three densities are shown over a histogram of the velocities. ``kaem.plot_prior``
# draws the learned one and its reference.


def draw_estimates(prior: kaem.KAEMPrior, seed: int) -> plt.Figure:
    """Figure 1: the learned density, two other estimates, and the data."""
    fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    kaem.plot_prior(
        prior, data=VELOCITIES, bins=np.arange(8, 37), ax=ax, label="KAEM", xlabel=LABEL
    )
    kernels, mixture = kernel_density(VELOCITIES), gaussian_mixture(VELOCITIES, seed)
    z = np.linspace(5.0, 40.0, 1000)
    ax.plot(z, kernels(z), color=GREEN, ls=":", lw=1.8, label="kernel density")
    ax.plot(
        z,
        np.exp(mixture.score_samples(z[:, None])),
        color=PURPLE,
        ls="-.",
        lw=1.2,
        label=f"Gaussian mixture ({mixture.n_components})",
    )
    ax.plot(
        VELOCITIES, np.zeros_like(VELOCITIES), "|", color=BLACK, ms=8, clip_on=False
    )
    ax.set_xlim(5.0, 40.0)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[1:] + handles[:1],
        labels[1:] + labels[:1],
        frameon=False,
        fontsize="small",
    )
    return fig


fig = draw_estimates(prior, args.seed)
fig.savefig(
    args.output / "quickstart_1.png",
    dpi=150,
    metadata={
        "Description": "Density of the velocities over their histogram, which has a "
        "small group on either side of two large ones: the learned density, its Normal "
        "reference, a kernel density estimate and a Gaussian mixture."
    },
)
plt.close(fig)

# %%
# Use it as a prior
# -----------------
# Five galaxies are measured by a coarse instrument. The learned density is used in
# ``numpyro.sample`` like any distribution.

# Five galaxies that were not in the survey (made up for this example): what a coarse
# instrument reads, and the standard deviation of its error, in 1000 km/s.
MEASURED = np.array([14.0, 17.5, 21.5, 30.0, 38.0])
ERROR = np.array([2.0, 1.0, 1.5, 2.0, 2.0])


def measurement_model(prior: dist.Distribution) -> None:
    """Velocities from the prior, each measured with a Normal error."""
    with numpyro.plate("galaxy", len(MEASURED)):
        velocity = numpyro.sample("velocity", prior)
        numpyro.sample("measured", dist.Normal(velocity, ERROR), obs=MEASURED)


# %%
# In one dimension the exact posterior is prior times likelihood on a grid.


def exact_posterior(prior: kaem.KAEMPrior) -> tuple[np.ndarray, np.ndarray]:
    """Posterior densities on a grid: prior times likelihood, normalised there."""
    grid = np.linspace(0.0, 60.0, 6001)
    log_prior = np.asarray(prior.log_prob(grid), float)
    density = np.exp(log_prior[:, None]) * norm.pdf(grid[:, None], MEASURED, ERROR)
    return grid, density / np.trapezoid(density, grid, axis=0)


exact = exact_posterior(prior)
grid, posterior = exact
exact_mean = np.trapezoid(grid[:, None] * posterior, grid, axis=0)

# %%
# Sample it with NUTS
# -------------------
# Directly, and on a Normal base: ``prior.as_transformed("normal")`` is the same
# distribution, written as a transformed Normal, for NumPyro's ``TransformReparam``.


def run_nuts(model, prior: dist.Distribution, seed: int, quick: bool) -> MCMC:
    """Four chains of NUTS."""
    mcmc = MCMC(
        NUTS(model),
        num_warmup=200 if quick else 1000,
        num_samples=200 if quick else 2500,
        num_chains=4,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(seed), prior)
    return mcmc


runs = {
    "NUTS": (measurement_model, prior),
    "NUTS on a Normal base": (
        reparam(measurement_model, {"velocity": TransformReparam()}),
        prior.as_transformed("normal"),
    ),
}
draws, effective = {}, {}
for name, (model, form) in runs.items():
    print(f"\n{name}: velocities of five new galaxies", flush=True)
    mcmc = run_nuts(model, form, args.seed, args.quick)
    table = az.summary(az.from_numpyro(mcmc), var_names=["velocity"], round_to="none")
    columns = ["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    table = table[columns].astype(float)
    table.insert(1, "exact_mean", exact_mean)
    print(table.round(3).to_string())
    errors = np.abs(table["mean"] - exact_mean) / table["mcse_mean"]
    print(
        "largest difference from the exact mean: "
        f"{errors.max():.1f} Monte Carlo standard errors"
    )
    draws[name] = np.asarray(mcmc.get_samples()["velocity"])
    effective[name] = table["ess_bulk"].astype(int).to_list()
print(f"\nEffective sample size of {len(draws['NUTS'])} draws, per galaxy:")
for name, numbers in effective.items():
    print(f"  {name}: {', '.join(map(str, numbers))}")
print(
    "The first posterior has a mode on either side of a void. On the Normal base\n"
    "the void is narrow, as it has little prior probability, and chains cross it\n"
    "more easily. With one mode, NUTS does better on the velocities themselves."
)

# %%
# The posteriors
# --------------


def draw_posteriors(prior: kaem.KAEMPrior, draws: dict, exact: tuple) -> plt.Figure:
    """Figure 2: prior, likelihood and posterior of each new galaxy."""
    fig, axes = plt.subplots(2, 3, figsize=(9.0, 4.8), layout="constrained")
    grid, posterior = exact
    density = np.exp(np.asarray(prior.log_prob(grid)))
    for i, ax in enumerate(axes.flat[:-1]):
        likelihood = norm.pdf(grid, MEASURED[i], ERROR[i])
        low, high = MEASURED[i] - 4.5 * ERROR[i], MEASURED[i] + 4.5 * ERROR[i]
        ax.fill_between(grid, density, color=BLUE, alpha=0.25, label="learned prior")
        ax.plot(grid, likelihood, color=ORANGE, ls=":", lw=1.8, label="likelihood")
        for (name, values), color in zip(draws.items(), (GREEN, PURPLE), strict=True):
            ax.hist(
                values[:, i],
                bins=np.linspace(low, high, 46),
                density=True,
                histtype="step",
                color=color,
                label=name,
            )
        ax.plot(grid, posterior[:, i], color=BLACK, lw=1.2, label="exact posterior")
        ax.set_xlim(low, high)
        ax.set_ylim(0.0, 1.15 * max(posterior[:, i].max(), likelihood.max()))
        ax.set_title(f"measured {MEASURED[i]} ± {ERROR[i]}", fontsize="medium")
        ax.set_xlabel(LABEL)
    for ax in axes[:, 0]:
        ax.set_ylabel("density")
    axes.flat[-1].set_axis_off()
    axes.flat[-1].legend(
        *axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False
    )
    return fig


fig = draw_posteriors(prior, draws, exact)
fig.savefig(
    args.output / "quickstart_2.png",
    dpi=150,
    metadata={
        "Description": "Prior, likelihood and posterior of each of the five galaxies. "
        "The histograms of both runs of NUTS follow the exact posterior; that of the "
        "galaxy measured at 14.0 has two modes."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
