"""Eighteen batting averages
=========================

After 45 times at bat each of 18 players has an average. How well will he bat over the
rest of the season? The average of all players predicts better than his own, and an
estimate between the two better still (Efron and Morris 1975). Here the prior of the
batting probability is learned from the 18 players, and each player's posterior mean
under it is compared with his average over the rest of the season.

Run it with ``python examples/baseball.py``; it takes less than a minute.
"""

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from _baseball import AT_BATS, HITS, PLAYERS, REST_OF_SEASON, check_baseball, shrink

import numpyro_kaem as kaem

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#E69F00", "#009E73", "#000000"

parser = argparse.ArgumentParser(description="Eighteen batting averages")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="no effect: it is short")
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)

# %%
# Learn the prior
# ---------------
# A player's hits are binomial given his batting probability.
# ``kaem.unit_log_likelihood`` takes that distribution and the counts of all players,
# and ``kaem.fit_marginal`` maximises their likelihood with the probabilities integrated
# out. Without a reference, the density is a tilted uniform one on the grid of the
# basis, here [0, 1].

check_baseball()
units = kaem.unit_log_likelihood(lambda p: dist.Binomial(AT_BATS, probs=p), HITS)
fit = kaem.fit_marginal(units, kaem.BSpline(0.0, 1.0, num_basis=16))
print(fit)
print(
    f"learned prior: mean {fit.prior.mean:.3f}, standard deviation "
    f"{fit.prior.variance**0.5:.3f}"
)

# %%
# Estimate every player
# ---------------------
# ``kaem.unit_posterior`` gives the posterior of each player under the learned prior:
# means, quantiles, tail probabilities and draws.

posterior = kaem.unit_posterior(fit.prior, units)
averages = HITS / AT_BATS
print(f"\n{'player':<14}{'first':>7}{'mean':>7}{'5 %':>7}{'95 %':>7}{'rest':>7}")
low, high = posterior.quantile(0.05), posterior.quantile(0.95)
columns = np.stack([averages, posterior.mean, low, high, REST_OF_SEASON], axis=-1)
for name, row in zip(PLAYERS, columns, strict=True):
    print(f"{name:<14}" + "".join(f"{value:7.3f}" for value in row))

# %%
# The shrunken estimates are much closer to the rest of the season than the players' own
# averages. The James-Stein estimator shrinks all of them by the same factor towards the
# mean; the learned prior need not be symmetric or Normal.

mean = averages.mean()
estimates = {
    "first 45 at bats (maximum likelihood)": averages,
    "mean of all players": np.full_like(averages, mean),
    "James-Stein": shrink(averages, mean * (1 - mean) / AT_BATS),
    "learned prior, posterior mean": np.asarray(posterior.mean),
}
print("\nTotal squared error from the rest of the season:")
for name, estimate in estimates.items():
    error = np.sum((estimate - REST_OF_SEASON) ** 2)
    print(f"  {name:<40}{error:.4f}")


# %%
# Look at it
# ----------
# On the left the learned density with its band, which is wide with only 18 players. On
# the right the estimates, with posterior intervals.


def draw(
    fit: kaem.MarginalFit, posterior: kaem.UnitPosterior, james_stein: np.ndarray
) -> plt.Figure:
    """Draw the learned prior with its band, and the players' estimates."""
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(9.0, 4.6), layout="constrained", width_ratios=(1, 1.3)
    )
    z = np.linspace(0.1, 0.45, 200)
    kaem.plot_band(
        z,
        fit.density_band(z),
        ax=left,
        label="learned prior",
        xlabel="batting probability",
    )
    left.plot(
        HITS / AT_BATS, np.zeros(len(HITS)), "|", color=BLACK, ms=10, clip_on=False
    )
    left.set_ylim(0, None)
    rows = np.arange(len(HITS))[::-1]
    low, high = posterior.quantile(0.05), posterior.quantile(0.95)
    right.hlines(rows, low, high, color=BLUE, alpha=0.35, lw=4)
    right.plot(posterior.mean, rows, "o", color=BLUE, label="posterior mean and 90 %")
    right.plot(HITS / AT_BATS, rows, "x", color=ORANGE, label="first 45 at bats")
    right.plot(james_stein, rows, "+", color=GREEN, label="James-Stein")
    right.plot(REST_OF_SEASON, rows, "D", color=BLACK, ms=4, label="rest of season")
    right.set(yticks=rows, yticklabels=PLAYERS, xlabel="batting average")
    right.tick_params(axis="y", labelsize="small")
    right.set_xlim(0.15, 0.5)
    right.legend(frameon=False, fontsize="small", loc="center right")
    return fig


fig = draw(fit, posterior, estimates["James-Stein"])
fig.savefig(
    args.output / "baseball.png",
    dpi=150,
    metadata={
        "Description": "Left: the learned density of batting probabilities, with one "
        "mode near 0.26 and a wide band. Right: each player's average, his posterior "
        "mean with an interval, and his average over the rest of the season; the "
        "posterior means lie close together, near the latter."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
