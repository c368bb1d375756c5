"""Ways to train
=============

The same model, a decoder of 8 × 8 pixels with independent learned densities as the
prior of its latents, is trained on handwritten digits by all objectives of the library
for the same number of steps: with weighted draws from the prior, with Langevin chains,
with a population between prior and posterior, and with an encoder. The first is simple,
and adequate for two latents; with eight, one draw in thousands carries all the weight,
as the effective sample size and Pareto k show.

Run it with ``python examples/digits_objectives.py``; it takes about ten minutes on two
cores, and one to two with ``--quick``, for two latents only.
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax

import numpyro_kaem as kaem
from numpyro_kaem.infer import held_out_log_likelihood
from numpyro_kaem.objectives import (
    AmortisedELBO,
    ImportanceMLE,
    LangevinMLE,
    ThermodynamicMLE,
)

# Colours of Okabe and Ito, as in kaem.plot_prior.
COLORS = {
    "importance": "#E69F00",
    "Langevin": "#0072B2",
    "thermodynamic": "#009E73",
    "encoder": "#CC79A7",
}

parser = argparse.ArgumentParser(description="Ways to train")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few steps, two latents")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)
num_steps = 60 if args.quick else 1500
num_held_out = 20 if args.quick else 100

# %%
# The model
# ---------
# Its energies start at zero, so that the prior starts as its reference.


def make_model(num_latents: int, seed: int) -> kaem.KAEM:
    """Model whose prior starts as its reference."""
    basis = kaem.BSpline(-5.0, 5.0, 20)
    flat = kaem.Energy(basis, jnp.zeros((num_latents, basis.num_features)))
    prior = kaem.KAEMPrior(flat, dist.Normal(0.0, 1.0)).to_event(1)
    decoder = kaem.KANDecoder(jax.random.key(seed), num_latents, (8, 8), hidden=(64,))
    likelihood = kaem.NormalLikelihood(0.3, learn_scale=True, min_scale=0.1)
    return kaem.KAEM(prior, decoder, likelihood)


# %%
# The objectives
# --------------
# Each is a NumPyro ``ELBO``, and ``kaem.fit`` takes any of them. One needs an encoder,
# which maps an image to means and log scales of the latents.

BATCH = 200
NUM_PARTICLES = 1000


class Encoder(eqx.Module):
    """Perceptron from images to means and log scales of the latents."""

    network: eqx.nn.MLP

    def __init__(self, key: jax.Array, num_latents: int) -> None:
        self.network = eqx.nn.MLP(64, 2 * num_latents, 128, 1, key=key)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encode: (num_images, 8, 8) -> (num_images, 2 * num_latents)."""
        return jax.vmap(self.network)(images.reshape(-1, 64))


def make_objectives(num_latents: int, seed: int) -> dict:
    """All objectives, by name."""
    return {
        "importance": ImportanceMLE(NUM_PARTICLES),
        "Langevin": LangevinMLE(num_steps=10),
        "thermodynamic": ThermodynamicMLE(4, num_sweeps=1, num_local_steps=4),
        "encoder": AmortisedELBO(Encoder(jax.random.key(seed + 1), num_latents)),
    }


def train(
    model: kaem.KAEM, objective, images: np.ndarray, num_steps: int, seed: int
) -> kaem.FitResult:
    """Train by one objective."""
    return kaem.fit(
        model,
        images,
        objective,
        optax.adam(optax.cosine_decay_schedule(4e-3, num_steps)),
        num_steps,
        rng_key=jax.random.key(seed + 2),
        batch_size=BATCH,
    )


# %%
# Train, and compare
# ------------------
# The log likelihood of held-out images compares decoders and priors. It is estimated by
# annealing from the prior, in the same way for all.

data = kaem.datasets.load_digits(test_size=397)
held_out = data.test_images[:num_held_out]
best = kaem.sample_quality(data.test_images, data.images)
print(f"{num_steps} steps, {num_held_out} images held out for the likelihood")
print(
    "latents  objective      seconds  log likelihood (error)  Fréchet distance  "
    "precision  recall"
)
print(
    f"{'':8} {'real images':13} {'-':>8}  {'-':>22} {best.frechet_distance:17.3f} "
    f"{best.precision:10.2f} {best.recall:7.2f}"
)
rows = {"real images": data.images[:12]}
histories: dict[int, dict[str, np.ndarray]] = {}
verdicts: dict[int, str] = {}
for num_latents in (2,) if args.quick else (2, 8):
    model = make_model(num_latents, args.seed)
    histories[num_latents] = {}
    for name, objective in make_objectives(num_latents, args.seed).items():
        start = time.perf_counter()
        result = train(model, objective, data.images, num_steps, args.seed)
        seconds = time.perf_counter() - start
        histories[num_latents][name] = result.losses / len(data.images)
        likelihood = held_out_log_likelihood(
            jax.random.key(args.seed + 3),
            result.model,
            held_out,
            num_temperatures=16 if args.quick else 96,
            num_particles=8 if args.quick else 32,
        )
        fitted = result.model
        z = fitted.latents(jax.random.key(args.seed + 4), 2000)
        draws = np.asarray(fitted.decode(z))
        quality = kaem.sample_quality(draws, data.images)
        print(
            f"{num_latents:7}  {name:13} {seconds:8.0f}  "
            f"{likelihood.mean:15.1f} ({likelihood.standard_error:.1f}) "
            f"{quality.frechet_distance:18.3f} {quality.precision:10.2f} "
            f"{quality.recall:7.2f}",
            flush=True,
        )
        rows[f"{name}, {num_latents} latents"] = draws[:12]
        if name == "importance":
            found = objective.diagnose(
                jax.random.key(args.seed + 5), result.params, model, held_out
            )
            verdicts[num_latents] = found.verdict

# %%
# Importance sampling diagnoses itself:

print()
for num_latents, verdict in verdicts.items():
    print(f"Importance weights with {num_latents} latents: {verdict}")

# %%
# Draws
# -----


def draw_digits(rows: dict[str, np.ndarray]) -> plt.Figure:
    """Draw rows of images, each with its name."""
    num_columns = min(len(images) for images in rows.values())
    fig, axes = plt.subplots(
        len(rows),
        num_columns,
        figsize=(0.65 * num_columns + 2.0, 0.7 * len(rows)),
        layout="constrained",
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=False):
            ax.imshow(image, cmap="gray_r", vmin=0.0, vmax=1.0)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return fig


fig = draw_digits(rows)
fig.savefig(
    args.output / "digits_objectives_draws.png",
    dpi=150,
    metadata={
        "Description": "A row of twelve images for each objective, and one of real "
        "images."
    },
)
plt.close(fig)

# %%
# Losses
# ------
# They are not comparable: for Langevin, minus the log joint density at the chains; for
# the encoder, minus a bound; for the others, minus an estimate of the log likelihood.


def draw_history(histories: dict[int, dict[str, np.ndarray]]) -> plt.Figure:
    """Draw the loss per datum of each objective during training."""
    fig, axes = plt.subplots(
        1,
        len(histories),
        figsize=(5.0 * len(histories), 3.6),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for ax, (num_latents, losses) in zip(axes[0], histories.items(), strict=True):
        for name, values in losses.items():
            # Means over steps: the loss of one step is that of its batch.
            width = max(len(values) // 100, 1)
            means = values[: len(values) // width * width].reshape(-1, width).mean(1)
            steps = width * (np.arange(len(means)) + 0.5)
            ax.plot(steps, means, color=COLORS[name], label=name)
        ax.set(xlabel="step", title=f"{num_latents} latents")
        ax.title.set_fontsize("medium")
    # The first losses are far larger.
    late = [v[len(v) // 20 :] for losses in histories.values() for v in losses.values()]
    everything = np.concatenate(late)
    low, high = np.quantile(everything, [0.0, 0.995])
    axes[0, 0].set_ylim(low - 2.0, high + 2.0)
    axes[0, 0].set_ylabel("loss per image")
    axes[0, 0].legend(frameon=False)
    return fig


fig = draw_history(histories)
fig.savefig(
    args.output / "digits_objectives_history.png",
    dpi=150,
    metadata={"Description": "The loss of each objective against the training step."},
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
