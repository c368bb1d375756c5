"""When importance sampling fails
==============================

Importance sampling from the prior fails as the latent dimension grows. Each latent
value has a standard Normal prior and is measured once with a Normal error, so that the
evidence and the effective sample size are known in closed form. The number of particles
is fixed; only the number of latent values grows. The weights are bounded, so their
variance is finite in every dimension, and yet soon one particle in thousands carries
all the weight. The estimates then look precise and are wrong, and the Pareto k of the
weights detects this without knowing the truth.

Run it with ``python examples/importance_dimension.py``; it takes about a minute, less
with ``--quick``.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from tqdm import tqdm

from numpyro_kaem.infer import ImportanceSampling

BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"

parser = argparse.ArgumentParser(description="When importance sampling fails")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few data sets")
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)

# %%
# A model whose answers are known
# -------------------------------

NOISE = 0.5
"""Standard deviation of a measurement; that of a latent value is 1."""
NUM_SAMPLES = 4096
LIMIT = 0.7
"""Pareto k above which averages under the weights are not reliable."""


def model(x: jax.Array) -> None:
    """One latent value per measurement."""
    with numpyro.plate("dimension", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


def true_log_evidence(x: np.ndarray) -> float:
    """Log density of the measurements, the latent values integrated out."""
    return stats.norm.logpdf(x, 0.0, np.hypot(1.0, NOISE)).sum()


def true_ess(x: np.ndarray) -> float:
    """Limit of the effective sample size for many particles, scaled to their number.

    It is the squared mean over the mean square of the weights.
    """
    log_mean = stats.norm.logpdf(x, 0.0, np.hypot(1.0, NOISE)).sum()
    log_mean_square = (
        stats.norm.logpdf(x, 0.0, np.sqrt(1.0 + NOISE**2 / 2))
        - np.log(2 * NOISE * np.sqrt(np.pi))
    ).sum()
    return NUM_SAMPLES * np.exp(2 * log_mean - log_mean_square)


# %%
# Run it on many data sets
# ------------------------
# A result of ``ImportanceSampling`` holds the Pareto k, the effective sample size, the
# log evidence with its standard error, and a verdict in words.


class Row(NamedTuple):
    """Results of one data set."""

    pareto_k: float
    ess: float
    true_ess: float
    error: float
    """Of the log evidence."""
    standard_error: float
    """Of the log evidence, as reported."""


def study(dimension: int, num_data_sets: int) -> tuple[list[Row], str]:
    """Sample data sets of one dimension; also the last one's verdict."""
    rng = np.random.default_rng(dimension)
    # Compiled once: the data sets have one shape.
    sampler = ImportanceSampling(model, num_samples=NUM_SAMPLES)
    rows = []
    for seed in tqdm(
        range(num_data_sets), desc=f"dimension {dimension}", leave=False, disable=None
    ):
        x = rng.normal(size=dimension) + NOISE * rng.normal(size=dimension)
        result = sampler.run(jax.random.key(seed), jnp.asarray(x))
        value, standard_error = result.log_evidence
        rows.append(
            Row(
                float(result.pareto_k),
                float(result.ess),
                true_ess(x),
                float(value - true_log_evidence(x)),
                float(standard_error),
            )
        )
    return rows, result.verdict


sizes = (1, 4, 16, 64) if args.quick else (1, 2, 4, 8, 16, 32, 64)
num_data_sets = 5 if args.quick else 40
table = {}
print("Medians over data sets:")
print("dimension  Pareto k       ESS  (truth)  |error| of log evidence  (reported)")
for size in sizes:
    table[size], verdict = study(size, num_data_sets)
    rows = np.array(table[size])
    rows[:, 3] = np.abs(rows[:, 3])
    k, ess, limit, error, reported = np.median(rows, axis=0)
    print(
        f"{size:9}{k:10.2f}{ess:10.1f}{limit:9.2g}{error:25.3f}{reported:12.3f}",
        flush=True,
    )
print(f"\nThe last one, of dimension {size}. {verdict}")

# %%
# The error of the log evidence outgrows the reported one, since both come from the same
# few particles. Pareto k, fitted to the tail of the weights, is above 0.7 from about
# the dimension where that begins: then the verdict says what to do instead.
#
# The figure
# ----------


def draw(table: dict[int, list[Row]]) -> plt.Figure:
    """Draw k, the effective sample size and the error against the dimension."""
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.8), layout="constrained")
    sizes = np.array(list(table))
    columns = {
        name: np.array([[getattr(row, name) for row in table[size]] for size in sizes])
        for name in Row._fields
    }

    def sampled(ax, values, label):
        lower, middle, upper = np.quantile(values, (0.1, 0.5, 0.9), axis=1)
        ax.fill_between(sizes, lower, upper, color=BLUE, alpha=0.2, lw=0)
        ax.plot(sizes, middle, color=BLUE, marker="o", label=label)

    def compared(ax, values, label):
        middle = np.median(values, axis=1)
        ax.plot(sizes, middle, color=ORANGE, marker="s", ls=":", label=label)

    left, middle, right = axes
    sampled(left, columns["pareto_k"], "weights of the particles")
    left.axhline(LIMIT, color=BLACK, ls="--", lw=1)
    left.annotate(
        f"not reliable above {LIMIT}",
        (sizes[-1], LIMIT),
        (0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize="small",
    )
    left.set(title="Tail of the weights", ylabel="Pareto k")

    sampled(middle, columns["ess"], "from the weights")
    compared(middle, columns["true_ess"], "in closed form")
    middle.set(
        title=f"Effective size of {NUM_SAMPLES} particles",
        ylabel="effective sample size",
        yscale="log",
        ylim=(1e-4, 2 * NUM_SAMPLES),
    )

    sampled(right, np.abs(columns["error"]), "actual error")
    compared(right, columns["standard_error"], "reported standard error")
    right.set(title="Log evidence", ylabel="error (nats)", yscale="log")

    for ax, place in zip(axes, ("upper left", "lower left", "upper left"), strict=True):
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.set_xlabel("number of latent values")
        ax.legend(frameon=False, fontsize="small", loc=place)
    fig.suptitle(
        f"Importance sampling from the prior: median of {len(table[sizes[0]])} data "
        "sets; the band holds 80 %",
        fontsize="medium",
    )
    return fig


fig = draw(table)
fig.savefig(
    args.output / "importance_dimension.png",
    dpi=150,
    metadata={
        "Description": "Three panels against the number of latent values. Pareto k "
        "rises past 0.7; the effective sample size falls, the true one much further "
        "than the one computed from the weights; the error of the log evidence grows "
        "past the reported standard error."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
