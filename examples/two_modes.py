"""A posterior of two modes
========================

A transmitter is located by its distances from four receivers along a road. It may be on
either side, and the distances distinguish the sides only slightly, because the road is
not quite straight. Four chains of NUTS start on the same side, stay there, and their
R-hat is 1.00: the chains agree, and are wrong. An annealed population crosses the road
where the likelihood is flattened, and visits both sides in the right proportion, which
quadrature on a grid confirms.

Run it with ``python examples/two_modes.py``; it takes less than a minute.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from scipy import stats

from numpyro_kaem.infer import AnnealedLangevin

BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"

parser = argparse.ArgumentParser(description="A posterior of two modes")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="a quarter of the draws")
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)
num_samples = 1000 if args.quick else 4000

# %%
# The model
# ---------
# An ordinary NumPyro model, with nothing special for annealing.

# Kilometres; simulated from (4.2, 8.6) with a noise of 0.3 and rounded.
RECEIVERS = np.array([[0.0, 5.7], [2.5, 6.2], [5.5, 5.9], [8.0, 6.3]])
DISTANCES = np.array([5.1, 3.0, 2.9, 4.2])
NOISE = 0.3
ROAD = 6.0


def transmitter(distances: np.ndarray) -> None:
    """Model of the distances."""
    position = numpyro.sample("position", dist.Normal(5.0, 5.0).expand([2]).to_event(1))
    squared = ((position - RECEIVERS) ** 2).sum(-1)
    numpyro.sample("distances", dist.Normal(squared**0.5, NOISE), obs=distances)


# %%
# In two dimensions the posterior can be computed on a grid, for comparison.


def exact_posterior() -> tuple[np.ndarray, np.ndarray]:
    """Points of a square grid, ``(n,)``, and probabilities there, ``(n, n)``."""
    grid = np.linspace(-10.0, 20.0, 1501)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    log_density = stats.norm.logpdf(x, 5.0, 5.0) + stats.norm.logpdf(y, 5.0, 5.0)
    for receiver, distance in zip(RECEIVERS, DISTANCES, strict=True):
        expected = np.hypot(x - receiver[0], y - receiver[1])
        log_density += stats.norm.logpdf(distance, expected, NOISE)
    mass = np.exp(log_density - log_density.max())
    return grid, mass / mass.sum()


grid, mass = exact_posterior()
print(f"{'':<22}{'north':>7}{'R-hat':>7}")
print(f"{'exact':<22}{mass[:, grid > ROAD].sum():7.2f}")

# %%
# Two samplers
# ------------
# ``AnnealedLangevin`` is a kernel for ``numpyro.infer.MCMC`` as ``NUTS`` is. One chain
# of it is a population of ten replicas, at temperatures from the prior to the
# posterior, which are swapped; the collected draws are those at the posterior.

kernels = {
    "NUTS": NUTS(transmitter),
    "annealed population": AnnealedLangevin(transmitter, num_temperatures=10),
}
results = {}
for name, kernel in kernels.items():
    mcmc = MCMC(
        kernel,
        num_warmup=1000,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), DISTANCES)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["position"])
    results[name] = draws
    r_hat = split_gelman_rubin(draws).max()
    print(f"{name:<22}{(draws[..., 1] > ROAD).mean():7.2f}{r_hat:7.2f}")

# %%
# R-hat is near 1 for both. It compares chains with each other, and cannot detect a mode
# that none of them has visited. The population reports more: how often a replica has
# moved from the prior to the posterior and back. Many round trips make it likely that
# no mode was missed.

state = mcmc.last_state
print(
    f"\nPopulation: {np.sum(state.round_trips)} round trips between prior and "
    f"posterior, communication barrier {np.mean(state.communication_barrier):.1f}"
)

# %%
# Where the draws are
# -------------------


def draw_maps(grid: np.ndarray, mass: np.ndarray, results: dict) -> plt.Figure:
    """Draw each sampler's draws over the exact posterior."""
    fig, axes = plt.subplots(
        1, 2, figsize=(9.0, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    levels = mass.max() * np.exp([-4.5, -2.0, -0.5])
    for ax, (name, draws) in zip(axes, results.items(), strict=True):
        points = draws.reshape(-1, 2)[::7]
        ax.plot(*points.T, ".", color=BLUE, ms=3, alpha=0.3, label="draws", zorder=1)
        ax.contour(grid, grid, mass.T, levels, colors=BLACK, linewidths=0.8)
        ax.plot(*RECEIVERS.T, "^", color=ORANGE, ms=9, label="receivers")
        ax.axhline(ROAD, color="0.6", lw=1, ls=":", zorder=0)
        share = (draws[..., 1] > ROAD).mean()
        ax.set_title(
            f"{name}: {100 * share:.0f} % north of the road", fontsize="medium"
        )
        ax.set(xlabel="east, km", xlim=(-0.5, 8.7), ylim=(2.0, 10.0))
        ax.set_aspect("equal")
    axes[0].plot([], [], color=BLACK, lw=0.8, label="exact posterior")
    axes[0].set_ylabel("north, km")
    axes[0].legend(frameon=False, fontsize="small", loc="upper left")
    return fig


fig = draw_maps(grid, mass, results)
fig.savefig(
    args.output / "two_modes_1.png",
    dpi=150,
    metadata={
        "Description": "Maps of the draws over the contours of the exact posterior, "
        "which has a mode on either side of the road. The draws of NUTS lie on one "
        "side only, those of the annealed population on both."
    },
)
plt.close(fig)

# %%
# The traces show that the chains of NUTS never leave their side.


def draw_traces(results: dict) -> plt.Figure:
    """Draw how far north each chain is, draw by draw."""
    fig, axes = plt.subplots(
        2, 1, figsize=(9.0, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (name, draws) in zip(axes, results.items(), strict=True):
        for chain, color in zip(
            draws[..., 1], (BLUE, ORANGE, "#009E73", "#CC79A7"), strict=True
        ):
            ax.plot(chain[:500], color=color, lw=0.7)
        ax.axhline(ROAD, color="0.6", lw=1, ls=":")
        ax.set(ylabel="north, km", title=name)
        ax.title.set_fontsize("medium")
    axes[1].set_xlabel("draw")
    return fig


fig = draw_traces(results)
fig.savefig(
    args.output / "two_modes_2.png",
    dpi=150,
    metadata={
        "Description": "Traces of four chains. Those of NUTS stay on one side of the "
        "road; those of the annealed population change sides again and again."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")

# %%
# In an analysis of your own, without the exact posterior,
# ``kaem.infer.check_missed_modes`` compares a run of NUTS with one of the population.
