"""A learned prior and its uncertainty
===================================

Each of 200 groups has an effect, measured once with a known standard error. The density
of the effects has two modes, which the errors blur. It is learned twice: by empirical
Bayes, which maximises the marginal likelihood of the energy's coefficients, and by full
Bayes, which samples them. Both give a band, and both bands are compared with the truth.

Run it with ``python examples/full_bayes.py``; it takes one to two minutes on two
cores.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import arviz as az
import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray
from numpyro.infer import MCMC, NUTS

import numpyro_kaem as kaem

# Colours of Okabe and Ito, as in kaem.plot_prior.
BLUE, ORANGE = "#0072B2", "#E69F00"

parser = argparse.ArgumentParser(description="A learned prior and its uncertainty")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="two short chains")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)

# %%
# The data
# --------

NUM_GROUPS = 200
NOISE = 0.7
WEIGHTS = np.array([0.35, 0.65])
MEANS = np.array([-2.0, 1.5])
SDS = np.array([0.6, 0.9])


def simulate(seed: int) -> np.ndarray:
    """Measured effects of all groups."""
    rng = np.random.default_rng(seed)
    component = rng.choice(2, size=NUM_GROUPS, p=WEIGHTS)
    effects = rng.normal(MEANS[component], SDS[component])
    return rng.normal(effects, NOISE)


def true_density() -> dist.Distribution:
    """Return the density of the effects, which the fits should recover."""
    return dist.MixtureSameFamily(
        dist.Categorical(probs=WEIGHTS), dist.Normal(MEANS, SDS)
    )


x = simulate(args.seed)
print(
    f"{NUM_GROUPS} groups, one measurement each with error {NOISE}: mean "
    f"{x.mean():.2f}, standard deviation {x.std(ddof=1):.2f}."
)

# %%
# Empirical Bayes
# ---------------
# The effects are integrated out by quadrature. ``kaem.fit_marginal`` chooses the
# smoothness of the density, maximises, and computes a band by the delta method.

BASIS = kaem.BSpline(-6.0, 6.0, 16)
REFERENCE = dist.Normal(0.0, 3.0)
GRID = np.linspace(-4.5, 4.5, 181)

units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, NOISE), x)

print("\nEmpirical Bayes: one density, by maximum marginal likelihood", flush=True)
start = time.perf_counter()
fit = kaem.fit_marginal(units, BASIS, REFERENCE)
empirical = fit.density_band(GRID)
print(
    f"log marginal likelihood {fit.log_marginal_likelihood:.2f}, "
    f"{fit.degrees_of_freedom:.1f} effective parameters, "
    f"{time.perf_counter() - start:.0f} s"
)

# %%
# Full Bayes
# ----------
# The same likelihood in a NumPyro model: ``kaem.random_walk_energy`` gives the
# coefficients a random-walk prior whose scale is sampled too, and
# ``kaem.unit_log_marginal_likelihood`` integrates the effects out, so that NUTS samples
# 17 values instead of 217.


def model(units) -> None:
    """Effects with a random smooth density, integrated out."""
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    energy = kaem.random_walk_energy("energy", BASIS, scale)
    prior = kaem.KAEMPrior(energy, REFERENCE)
    numpyro.factor("units", kaem.unit_log_marginal_likelihood(prior, units).sum())


def run_nuts(units, seed: int, quick: bool) -> MCMC:
    """Four chains of NUTS, or two in a quick run."""
    mcmc = MCMC(
        NUTS(model, dense_mass=True),
        num_warmup=100 if quick else 500,
        num_samples=100 if quick else 500,
        num_chains=2 if quick else 4,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(seed), units, extra_fields=("diverging",))
    return mcmc


print("\nFull Bayes: draws of the density, by NUTS", flush=True)
start = time.perf_counter()
mcmc = run_nuts(units, args.seed, args.quick)
draws = mcmc.get_samples(group_by_chain=True)
print(
    f"{draws['scale'].size} draws in {time.perf_counter() - start:.0f} s, "
    f"{int(mcmc.get_extra_fields()['diverging'].sum())} divergent"
)

# %%
# Single coefficients have no meaning; the density has. Its draws are a batch of priors,
# and its values at some points become a variable for ArviZ.

# Where the draws of the density are checked.
POINTS = np.array([-3.0, -2.0, -0.5, 1.5, 3.0])
coefficients = draws["energy_coefficients"].reshape(-1, BASIS.num_features)
priors = kaem.KAEMPrior(kaem.Energy(BASIS, coefficients), REFERENCE)
density = np.exp(priors.log_prob(GRID[:, None]))
at_points = np.exp(priors.log_prob(POINTS[:, None])).T
data = az.from_numpyro(mcmc)
data["posterior"]["density"] = xarray.DataArray(
    at_points.reshape(*draws["scale"].shape, len(POINTS)),
    dims=("chain", "draw", "effect"),
    coords={"effect": POINTS},
)
table = az.summary(data, var_names=["scale", "density"], round_to="none")
columns = ["mean", "sd", "ess_bulk", "ess_tail", "r_hat"]
table = table[columns].astype(float)
print(table.round(3).to_string())
print(f"largest R-hat: {table['r_hat'].max():.3f}")
print(f"smallest effective sample size: {table['ess_bulk'].min():.0f}")

# %%
# The bands
# ---------

ends = {
    "empirical Bayes": (empirical.lower, empirical.upper),
    "full Bayes": np.quantile(density, [0.05, 0.95], axis=1),
}
truth = np.exp(true_density().log_prob(GRID))
inner = np.abs(GRID) <= 3.0
print("\nThe 90 % bands, at effects between -3 and 3:")
for name, (lower, upper) in ends.items():
    covered = np.mean(((lower <= truth) & (truth <= upper))[inner])
    width = np.mean((upper - lower)[inner])
    print(f"  {name:<16} mean width {width:.3f}, truth inside at {covered:.0%}")
print(
    "Empirical Bayes treats the chosen smoothness as known, full Bayes does not.\n"
    "They also measure it differently: by third and by first differences of the\n"
    "coefficients. Where there are no data, the delta method gives bands too wide."
)

# %%
# ``kaem.plot_band`` draws either: a fitted band, or draws of the density.


def draw(bands: dict, x: np.ndarray) -> plt.Figure:
    """Both bands with the truth and the measurements."""
    fig, axes = plt.subplots(
        1, 2, figsize=(10.0, 3.8), sharex=True, sharey=True, layout="constrained"
    )
    styles: list[dict[str, Any]] = [
        {"color": ORANGE, "linestyle": "-."},
        {"color": BLUE, "linestyle": "-"},
    ]
    truth = true_density()
    for ax, style, (name, band) in zip(axes, styles, bands.items(), strict=True):
        kaem.plot_band(
            GRID, band, truth=truth, ax=ax, label=name, xlabel="effect", **style
        )
        ax.plot(x, np.zeros_like(x), "|", color="0.4", ms=7, clip_on=False)
        ax.set_ylim(0.0, 0.5)
    return fig


fig = draw({"empirical Bayes": empirical, "full Bayes": priors}, x)
fig.savefig(
    args.output / "full_bayes.png",
    dpi=150,
    metadata={
        "Description": "The true density of the effects, with two modes, inside the 90 "
        "per cent bands of empirical Bayes on the left and of full Bayes on the right; "
        "the latter is wider."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
