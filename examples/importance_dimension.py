<<<<<<< HEAD
"""How importance sampling from the prior fails as the latent dimension grows.

Each latent value has a standard Normal prior and is measured once with a Normal error,
so that the evidence and the effective sample size are known in closed form. The
proposals are always as many; only the number of latent values grows. The weights of the
likelihood are bounded, so their variance is finite in every dimension, and yet soon one
particle in thousands carries all the weight. The estimates then look precise and are
wrong, and the Pareto k of the weights tells so without the truth at hand.

Run it with ``python examples/importance_dimension.py``; it takes about a minute, less
with ``--quick``.
=======
"""Importance sampling from the prior, as the latent dimension grows.

Each of ``dim`` latent values has a standard Normal prior and is measured once with the
noise 0.5. Posterior and evidence have closed forms, so that what importance sampling
says can be held against the truth.

1. Propose from the prior, in 1 to 30 dimensions, with always the same number of
   particles. Watch the Pareto k, the effective sample size and the error.
2. Propose from a guide fitted to the posterior: what was wrong were the proposals.

Run it with ``python examples/importance_dimension.py``; it takes half a minute on two
cores.
>>>>>>> importance
"""

import argparse
from pathlib import Path
<<<<<<< HEAD
from typing import NamedTuple

import jax
import jax.numpy as jnp
=======

import jax
>>>>>>> importance
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
<<<<<<< HEAD
from scipy import stats
from tqdm import tqdm

from numpyro_kaem.infer import ImportanceSampling

BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"

NOISE = 0.5
"""Standard deviation of a measurement; that of a latent value is 1."""

NUM_SAMPLES = 4096
LIMIT = 0.7
"""Pareto k above which averages under the weights are not reliable."""


def model(x: jax.Array) -> None:
    """As many latent values as measurements."""
    with numpyro.plate("dimension", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


def true_log_evidence(x: np.ndarray) -> float:
    """Log density of the measurements, the latent values integrated out."""
    return stats.norm.logpdf(x, 0.0, np.hypot(1.0, NOISE)).sum()


def true_ess(x: np.ndarray) -> float:
    """Effective sample size that many particles tend to, scaled to their number.

    It is the squared mean over the mean square of the weights.
    """
    log_mean = stats.norm.logpdf(x, 0.0, np.hypot(1.0, NOISE)).sum()
    log_mean_square = (
        stats.norm.logpdf(x, 0.0, np.sqrt(1.0 + NOISE**2 / 2))
        - np.log(2 * NOISE * np.sqrt(np.pi))
    ).sum()
    return NUM_SAMPLES * np.exp(2 * log_mean - log_mean_square)


class Row(NamedTuple):
    """What one data set gave."""

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
                result.pareto_k,
                result.ess,
                true_ess(x),
                value - true_log_evidence(x),
                standard_error,
            )
        )
    return rows, result.verdict


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
        title=f"What {NUM_SAMPLES} particles are worth",
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
        "sets; the band holds eight in ten",
        fontsize="medium",
    )
=======
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam
from scipy import stats

from numpyro_kaem.infer import ImportanceSampling

# Colours of Okabe and Ito, as in kaem.plot_prior.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"

NOISE = 0.5
DIMENSIONS = (1, 2, 3, 5, 8, 12, 20, 30)
MAX_PARETO_K = 0.7


def model(x: jax.Array) -> None:
    """Measure each of several Normal values once."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([x.size]).to_event(1))
    numpyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)


def simulate(dim: int, seed: int) -> np.ndarray:
    """Measured values, of which those in fewer dimensions are the first."""
    return np.random.default_rng(seed).normal(0.0, np.sqrt(1 + NOISE**2), size=dim)


def log_evidence(x: np.ndarray) -> float:
    """Log evidence in closed form."""
    return stats.norm.logpdf(x, 0.0, np.sqrt(1 + NOISE**2)).sum()


def fit_guide(x: np.ndarray, num_steps: int, seed: int) -> tuple[AutoNormal, dict]:
    """Guide and its parameters, fitted with a progress bar."""
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam(0.02), Trace_ELBO(num_particles=4))
    return guide, svi.run(jax.random.key(seed), num_steps, x).params


def draw(rows: dict[str, list], num_samples: int) -> plt.Figure:
    """Three panels over the dimension: tail, effective draws, evidence."""
    fig, axes = plt.subplots(1, 3, figsize=(12.0, 3.8), layout="constrained")
    dims = rows["dim"]
    line = {"color": BLUE, "marker": "o", "linestyle": "-"}
    for ax in axes:
        ax.set_xscale("log")
        ax.set_xticks(dims, [str(dim) for dim in dims])
        ax.minorticks_off()
        ax.set_xlabel("latent dimension")

    axes[0].axhspan(MAX_PARETO_K, 2.0, color=ORANGE, alpha=0.2, linewidth=0)
    axes[0].axhline(MAX_PARETO_K, color="0.3", linestyle="--", linewidth=1)
    axes[0].text(1.0, 0.74, "not reliable above 0.7", va="bottom")
    axes[0].plot(dims, rows["pareto_k"], **line)
    axes[0].set_ylim(min(*rows["pareto_k"], 0.0) - 0.1, max(rows["pareto_k"]) + 0.2)
    axes[0].set_title("Tail of the weights")
    axes[0].set_ylabel("Pareto k")

    axes[1].plot(dims, rows["ess"], label="reported", **line)
    # The mean square of the weights over that of their mean, in closed form.
    exact = num_samples / rows["square_ratio"]
    axes[1].plot(
        dims, np.maximum(exact, 1), color="0.3", linestyle="--", label="exact limit"
    )
    axes[1].set_yscale("log")
    axes[1].set_ylim(0.7, num_samples)
    axes[1].set_title(f"Effective draws of {num_samples}")
    axes[1].set_ylabel("effective sample size")
    axes[1].legend(frameon=False)

    error = np.array(rows["value"]) - np.array(rows["truth"])
    axes[2].axhline(0.0, color="0.3", linestyle="--", linewidth=1, label="truth")
    axes[2].errorbar(
        dims,
        error,
        yerr=2 * np.array(rows["standard_error"]),
        capsize=3,
        label="prior, ±2 reported errors",
        **line,
    )
    axes[2].plot(
        rows["guide_dim"],
        rows["guide_error"],
        color=GREEN,
        marker="s",
        linestyle="none",
        label="fitted guide",
    )
    axes[2].set_title("Log evidence")
    axes[2].set_ylabel("estimate − truth")
    axes[2].legend(frameon=False, loc="lower left")
>>>>>>> importance
    return fig


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("figures"))
<<<<<<< HEAD
    parser.add_argument("--quick", action="store_true", help="few data sets")
    args = parser.parse_args()
    matplotlib.use("Agg")
    args.output.mkdir(parents=True, exist_ok=True)

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

    fig = draw(table)
=======
    parser.add_argument("--quick", action="store_true", help="fewer dimensions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    matplotlib.use("Agg")
    args.output.mkdir(parents=True, exist_ok=True)
    num_samples = 2_000 if args.quick else 20_000
    dimensions = (1, 3, 20) if args.quick else DIMENSIONS

    print(f"Proposals from the prior, {num_samples} particles")
    print("  dim  Pareto k  effective draws  log evidence (error)   truth")
    names = ("dim", "pareto_k", "ess", "value", "standard_error", "truth")
    rows: dict[str, list] = {name: [] for name in names}
    sampler = ImportanceSampling(model, num_samples=num_samples)
    data = simulate(max(dimensions), args.seed)
    for dim in dimensions:
        x = data[:dim]
        result = sampler.run(jax.random.key(args.seed), x)
        row = (dim, result.pareto_k, result.ess, *result.log_evidence, log_evidence(x))
        for name, value in zip(names, row, strict=True):
            rows[name].append(value)
        print("  {:3d}  {:8.2f}  {:15.1f}  {:9.2f} ({:.2f})  {:13.2f}".format(*row))
    # E[w^2] / E[w]^2 for one dimension, and their product.
    narrow = stats.norm.logpdf(data, 0.0, np.sqrt(1 + NOISE**2 / 2))
    narrow -= np.log(2 * NOISE * np.sqrt(np.pi))
    wide = stats.norm.logpdf(data, 0.0, np.sqrt(1 + NOISE**2))
    ratio = np.exp(np.cumsum(narrow - 2 * wide))
    rows["square_ratio"] = ratio[np.array(dimensions) - 1]
    print(f"\nThe verdict in {dimensions[-1]} dimensions:\n  {result.verdict}")

    print("\nProposals from a guide that is fitted to the posterior", flush=True)
    guide, params = fit_guide(data, 300 if args.quick else 2_000, args.seed)
    guided = ImportanceSampling(model, guide, params=params, num_samples=num_samples)
    result = guided.run(jax.random.key(args.seed), data)
    rows["guide_dim"] = [data.size]
    rows["guide_error"] = [result.log_evidence.value - rows["truth"][-1]]
    print(result)
    print(f"  truth                  {rows['truth'][-1]:.3f}")

    fig = draw(rows, num_samples)
>>>>>>> importance
    fig.savefig(args.output / "importance_dimension.png", dpi=150)
    plt.close(fig)
    print(f"\nFigures: {args.output.resolve()}")


if __name__ == "__main__":
    main()
