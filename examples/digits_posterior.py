"""Half of a digit: three samplers
===============================

A model with four latents, whose prior is a mixture of products of learned densities, is
trained on handwritten digits. Only the upper half of a held-out digit is observed. It
has several plausible completions, so the posterior of its latents has several modes.
NUTS, importance sampling from the prior and an annealed population are compared: chains
of NUTS stay in the mode where they start, and do not estimate the weights of the modes.

Run it with ``python examples/digits_posterior.py``; it takes about three minutes on two
cores, and half of one with ``--quick``.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
from numpyro.infer import MCMC, NUTS

import numpyro_kaem as kaem

# Colours of Okabe and Ito, as in kaem.plot_prior.
COLORS = {
    "NUTS": "#0072B2",
    "importance sampling": "#E69F00",
    "annealed population": "#009E73",
}
BLACK = "#000000"

parser = argparse.ArgumentParser(description="Half of a digit: three samplers")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few steps and draws")
parser.add_argument("--image", type=int, default=0, help="number of the digit")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)
count = 200 if args.quick else 2000
keys = jax.random.split(jax.random.key(args.seed + 2), 4)

# %%
# Train a model
# -------------
# ``kaem.PriorRefit`` fits the mixture to the posteriors of the latents at intervals
# while the decoder is trained.

NUM_LATENTS, NUM_COMPONENTS, NUM_BASIS = 4, 10, 24


def train(images: np.ndarray, num_steps: int, seed: int) -> kaem.KAEM:
    """Model of digits; its prior is refitted to the posterior of the latents."""
    basis = kaem.BSpline(-6.0, 6.0, NUM_BASIS)
    flat = kaem.Energy(basis, jnp.zeros((NUM_COMPONENTS, NUM_LATENTS, NUM_BASIS)))
    component = kaem.KAEMPrior(flat, dist.Normal(0.0, 1.0), refinement=4).to_event(1)
    mixing = dist.Categorical(logits=jnp.zeros(NUM_COMPONENTS))
    model = kaem.KAEM(
        dist.MixtureSameFamily(mixing, component),
        kaem.KANDecoder(jax.random.key(seed), NUM_LATENTS, (8, 8), hidden=(64,)),
        kaem.NormalLikelihood(0.2, learn_scale=True, min_scale=0.1),
    )
    return kaem.fit(
        model,
        images,
        kaem.objectives.LangevinMLE(num_steps=10),
        optax.adam(optax.cosine_decay_schedule(4e-3, num_steps)),
        num_steps,
        rng_key=jax.random.key(seed + 1),
        batch_size=200,
        refit=kaem.PriorRefit(
            start=num_steps // 3, every=num_steps // 6, options={"penalty": 1.0}
        ),
    ).model


data = kaem.datasets.load_digits(test_size=397)
model = train(data.images, 90 if args.quick else 1500, args.seed)

# %%
# A model of the upper half
# -------------------------
# A NumPyro model of four rows of pixels, with the trained prior and decoder.

NUM_SEEN = 4
"""Observed rows of the image, of eight."""


def upper_half_of(model: kaem.KAEM) -> Callable[[jax.Array], None]:
    """NumPyro model of the observed rows."""

    def upper_half(pixels: jax.Array) -> None:
        z = numpyro.sample("z", model.prior)
        seen = dist.Normal(model.decode(z)[:NUM_SEEN], model.likelihood.scale)
        numpyro.sample("pixels", seen.to_event(2), obs=pixels)

    return upper_half


image = data.test_images[args.image]
pixels = jnp.asarray(image[:NUM_SEEN])
posterior = upper_half_of(model)

# %%
# Three samplers
# --------------
# Each result becomes an ArviZ object by ``kaem.to_arviz``.

NUM_CHAINS = 4


def run_chains(kernel, pixels: jax.Array, count: int, rng_key: jax.Array) -> MCMC:
    """Run chains side by side."""
    mcmc = MCMC(
        kernel,
        num_warmup=count // 2,
        num_samples=count,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, pixels)
    return mcmc


objects, seconds = {}, {}
start = time.perf_counter()
nuts = run_chains(NUTS(posterior), pixels, count, keys[0])
objects["NUTS"] = kaem.to_arviz(nuts, log_likelihood=False)
seconds["NUTS"] = time.perf_counter() - start

start = time.perf_counter()
sampler = kaem.infer.ImportanceSampling(
    posterior, num_samples=10_000 if args.quick else 100_000
)
weighted = sampler.run(keys[1], pixels)
objects["importance sampling"] = kaem.to_arviz(
    weighted, rng_key=keys[2], num_samples=NUM_CHAINS * count
)
seconds["importance sampling"] = time.perf_counter() - start

start = time.perf_counter()
kernel = kaem.infer.AnnealedLangevin(posterior, num_temperatures=10)
annealed = run_chains(kernel, pixels, count, keys[3])
objects["annealed population"] = kaem.to_arviz(annealed, log_likelihood=False)
seconds["annealed population"] = time.perf_counter() - start

# %%
# Their summaries. Importance sampling reports its effective sample size and Pareto k,
# the chains R-hat.


def summary(data) -> pd.DataFrame:
    """Summarise the draws of the latents by ArviZ."""
    table = az.summary(data, var_names=["z"], round_to="none")
    return table[["mean", "sd", "ess_bulk", "r_hat"]].astype(float)


tables = {name: summary(data) for name, data in objects.items()}
results = {
    name: np.asarray(data["posterior"]["z"].values) for name, data in objects.items()
}
# Resampled draws repeat each other: their effective sample size is the weights'.
tables["importance sampling"]["ess_bulk"] = weighted.ess
print(pd.concat(tables, axis=1).round(2).to_string())
for name, value in seconds.items():
    print(f"{name}: {value:.0f} s, compilation included")
print(f"Pareto k of the weights: {weighted.pareto_k:.2f}. {weighted.verdict}")

# %%
# Where the chains have been
# --------------------------
# Each component of the prior covers a region of the latent space. The posterior
# probabilities of the components, chain by chain, show that each chain of NUTS stays in
# one region.


def component_shares(model: kaem.KAEM, draws: np.ndarray) -> np.ndarray:
    """Mean responsibility of each component of the prior for the draws, by chain.

    Shape ``(num_chains, num_components)``.
    """
    log_joint = jax.jit(model.prior.component_log_probs)(jnp.asarray(draws))
    return np.asarray(jax.nn.softmax(log_joint, -1).mean(1))


print(f"\nShare of each of {NUM_COMPONENTS} components of the prior, in per cent")
rows = {}
for name, draws in results.items():
    shares = component_shares(model, draws)
    if name == "NUTS":
        rows.update({f"NUTS, chain {i + 1}": s for i, s in enumerate(shares)})
    else:
        rows[name] = shares.mean(0)
        if len(shares) > 1:
            rows["  of its runs, +-"] = shares.std(0, ddof=1)
shares = pd.DataFrame(rows, index=range(1, NUM_COMPONENTS + 1)).T
print((100 * shares).round(0).astype(int).to_string())
worst = {name: table["r_hat"].max() for name, table in tables.items()}
print(
    f"\nLargest R-hat: {worst['NUTS']:.2f} for NUTS, "
    f"{worst['annealed population']:.2f} for the population, whose replicas made "
    f"{int(np.sum(annealed.last_state.round_trips))} round trips to the prior."
)

# %%
# The latents
# -----------


def draw_marginals(results: dict[str, np.ndarray]) -> plt.Figure:
    """Draw the marginal density of each latent, by each sampler."""
    fig, axes = plt.subplots(1, NUM_LATENTS, figsize=(11.0, 2.9), layout="constrained")
    everything = np.concatenate([d.reshape(-1, NUM_LATENTS) for d in results.values()])
    for latent, ax in enumerate(axes):
        low, high = np.quantile(everything[:, latent], [0.001, 0.999])
        edges = np.linspace(low, high, 60)
        for name, draws in results.items():
            values = draws[..., latent].ravel()
            ax.hist(
                values,
                edges,
                density=True,
                histtype="step",
                color=COLORS[name],
                lw=1.5,
                label=name,
            )
        ax.set(xlabel=f"latent {latent + 1}", yticks=[])
    axes[0].set_ylabel("posterior density")
    lines, labels = axes[0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside upper center", ncols=3, frameon=False)
    return fig


fig = draw_marginals(results)
fig.savefig(
    args.output / "digits_posterior_marginals.png",
    dpi=150,
    metadata={
        "Description": "The posterior density of each of four latents by three "
        "samplers. Importance sampling and the annealed population agree; NUTS gives "
        "other weights to the modes."
    },
)
plt.close(fig)

# %%
# The decoded images
# ------------------
# Pointwise 90 % bands of the decoded images, row by row:

NUM_IMAGES = 500
"""Number of images per method in a figure."""


def draw_bands(images: dict[str, np.ndarray], image: np.ndarray) -> plt.Figure:
    """Draw pointwise 90 % bands of the decoded images, row by row."""
    fig, axes = plt.subplots(
        2, 4, figsize=(11.0, 4.6), sharex=True, sharey=True, layout="constrained"
    )
    columns = np.arange(1, 9)
    for row, ax in enumerate(axes.flat):
        for number, (name, decoded) in enumerate(images.items()):
            lower, middle, upper = np.quantile(
                decoded[:, row], [0.05, 0.5, 0.95], axis=0
            )
            place = columns + 0.22 * (number - 1)
            ax.errorbar(
                place,
                middle,
                [middle - lower, upper - middle],
                fmt=".",
                color=COLORS[name],
                label=name,
            )
        seen = "seen" if row < NUM_SEEN else "hidden"
        ax.plot(columns, image[row], "_", color=BLACK, ms=13, mew=1.5, label="image")
        ax.set_title(f"row {row + 1}, {seen}", fontsize="medium")
    for ax in axes[:, 0]:
        ax.set_ylabel("intensity")
    for ax in axes[-1]:
        ax.set(xlabel="column", xticks=columns)
    lines, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside upper center", ncols=4, frameon=False)
    return fig


decoded: dict[str, np.ndarray] = {}
pictures: dict[str, np.ndarray] = {}
for name, draws in results.items():
    flat = draws.reshape(-1, NUM_LATENTS)
    decoded[name] = np.asarray(model.decode(flat[:: len(flat) // NUM_IMAGES]))
fig = draw_bands(decoded, image)
fig.savefig(
    args.output / "digits_posterior_bands.png",
    dpi=150,
    metadata={
        "Description": "Intensity of the pixels of each of the eight rows, by three "
        "samplers, with the image itself. The bands are narrow in the rows that were "
        "seen and wide in the hidden ones."
    },
)
plt.close(fig)

# %%
# Some decoded draws of each chain:


def draw_images(rows: dict[str, np.ndarray], image: np.ndarray) -> plt.Figure:
    """Draw the image, and some decoded draws of each chain."""
    shown = np.where(np.arange(8)[:, None] < NUM_SEEN, image, 0.0)
    num_columns = 2 + min(len(images) for images in rows.values())
    fig, axes = plt.subplots(
        len(rows), num_columns, figsize=(9.0, 0.72 * len(rows)), layout="constrained"
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(line, [image, shown, *images], strict=False):
            ax.imshow(picture, cmap="gray_r", vmin=0.0, vmax=1.0)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, title in zip(axes[0], ("image", "seen", "draws"), strict=False):
        ax.set_title(title, fontsize="small")
    return fig


pictures = {}
step = count // 10
for number, chain in enumerate(results["NUTS"], start=1):
    pictures[f"NUTS, chain {number}"] = np.asarray(model.decode(chain[::step]))
pictures["importance"] = decoded["importance sampling"][:10]
annealed = results["annealed population"][0, ::step]
pictures["annealed"] = np.asarray(model.decode(annealed))
fig = draw_images(pictures, image)
fig.savefig(
    args.output / "digits_posterior_images.png",
    dpi=150,
    metadata={
        "Description": "The digit, its upper half, and ten decoded draws of each chain "
        "of NUTS, of importance sampling and of the annealed population."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
