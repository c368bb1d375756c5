"""Handwritten digits from latents whose prior can be read.

A decoder maps eight latents to an image of 8 × 8 pixels. It is trained by maximum
likelihood, with Langevin chains that follow the posterior of each image, and with
several priors of the latents: a fixed Normal law, independent learned densities, and a
mixture of products of them, which keeps their dependence. The learned priors are
refitted to the chains as training goes on.

1. Train with each prior, the same decoder and the same number of steps, and compare
   draws with the images: Fréchet distance, precision and recall.
2. Look at real images beside draws, and at the learned densities.
3. Fill in the lower half of images that were left out. That is posterior inference of
   the latents given the upper half: nothing is trained anew.

Run it with ``python examples/digits.py``; it takes about five minutes on two cores, and
one with ``--quick``.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC

import numpyro_kaem as kaem

NUM_LATENTS, NUM_COMPONENTS, NUM_BASIS = 8, 10, 24
NUM_HELD_OUT = 397
NAMES = ("normal", "independent", "mixture")


def make_model(name: str, seed: int) -> kaem.KAEM:
    """Model with one of the priors; learned ones start as their reference."""
    basis, reference = kaem.BSpline(-6.0, 6.0, NUM_BASIS), dist.Normal(0.0, 1.0)
    if name == "normal":
        prior = reference.expand([NUM_LATENTS]).to_event(1)
    elif name == "independent":
        flat = kaem.Energy(basis, jnp.zeros((NUM_LATENTS, NUM_BASIS)))
        prior = kaem.KAEMPrior(flat, reference).to_event(1)
    else:
        flat = kaem.Energy(basis, jnp.zeros((NUM_COMPONENTS, NUM_LATENTS, NUM_BASIS)))
        # Components may become narrow: finer panels for their normaliser.
        component = kaem.KAEMPrior(flat, reference, refinement=4).to_event(1)
        mixing = dist.Categorical(logits=jnp.zeros(NUM_COMPONENTS))
        prior = dist.MixtureSameFamily(mixing, component)
    key = jax.random.key(seed)
    decoder = kaem.KANDecoder(key, NUM_LATENTS, (8, 8), hidden=(64,))
    likelihood = kaem.NormalLikelihood(0.2, learn_scale=True, min_scale=0.1)
    return kaem.KAEM(prior, decoder, likelihood)


def train(name: str, images: np.ndarray, num_steps: int, seed: int) -> kaem.FitResult:
    """Train with one of the priors."""
    # Chains must follow a refit before the next one. A penalty that is given costs a
    # fraction of one that is chosen each time.
    refit = kaem.PriorRefit(
        start=num_steps // 3, every=num_steps // 6, options={"penalty": 1.0}
    )
    return kaem.fit(
        make_model(name, seed),
        images,
        kaem.infer.LangevinMLE(num_steps=10),
        optax.adam(optax.cosine_decay_schedule(4e-3, num_steps)),
        num_steps,
        rng_key=jax.random.key(seed + 1),
        batch_size=200,
        refit=None if name == "normal" else refit,
    )


def fill_in(model: kaem.KAEM, image: np.ndarray, quick: bool, seed: int) -> np.ndarray:
    """Draws of a whole image given its upper half, shape ``(num_draws, 8, 8)``."""

    def upper_half(pixels: jax.Array) -> None:
        z = numpyro.sample("z", model.prior)
        mean = model.decode(z)
        scale = model.likelihood.scale
        numpyro.sample("x", dist.Normal(mean[:4], scale).to_event(2), obs=pixels)

    kernel = kaem.infer.AnnealedLangevin(upper_half, num_temperatures=8)
    count = 150 if quick else 600
    mcmc = MCMC(kernel, num_warmup=count, num_samples=count, progress_bar=not quick)
    mcmc.run(jax.random.key(seed + 2), jnp.asarray(image[:4]))
    draws = mcmc.get_samples()["z"]
    return np.asarray(model.decode(draws[:: count // 5]))


def draw_images(rows: dict[str, np.ndarray]) -> plt.Figure:
    """Rows of images, each with its name."""
    num_columns = min(len(images) for images in rows.values())
    fig, axes = plt.subplots(
        len(rows),
        num_columns,
        figsize=(0.7 * num_columns + 1.2, 0.75 * len(rows)),
        layout="constrained",
        squeeze=False,
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=False):
            ax.imshow(image, cmap="gray_r", vmin=0.0, vmax=1.0)
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return fig


def draw_prior(model: kaem.KAEM, output: Path) -> None:
    """Marginal density of each latent under the mixture."""
    law = model.prior
    z = jnp.linspace(-6.0, 6.0, 401)[:, None, None]
    densities = jnp.exp(law.component_distribution.base_dist.log_prob(z))
    marginal = jnp.einsum("k,nkl->nl", law.mixing_distribution.probs, densities)
    fig, axes = plt.subplots(2, 4, figsize=(9.0, 3.8), layout="constrained")
    for latent, ax in enumerate(axes.flat):
        normal = jnp.exp(dist.Normal(0.0, 1.0).log_prob(z[:, 0, 0]))
        ax.plot(z[:, 0, 0], normal, color="0.5", linestyle="--", label="reference")
        ax.plot(z[:, 0, 0], marginal[:, latent], color="#0072B2", label="learned")
        ax.set_xlabel(f"latent {latent + 1}")
    for ax in axes[:, 0]:
        ax.set_ylabel("density")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside upper right", ncols=2, frameon=False)
    fig.savefig(output / "digits_prior.png", dpi=150)
    plt.close(fig)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("figures"))
    parser.add_argument("--quick", action="store_true", help="few steps of training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    matplotlib.use("Agg")
    args.output.mkdir(parents=True, exist_ok=True)
    num_steps = 120 if args.quick else 1500
    num_draws = 500 if args.quick else 2000

    data = kaem.datasets.load_digits(test_size=NUM_HELD_OUT)
    rows = {"real": data.images[:12]}
    models = {}
    print("prior         Fréchet distance  precision  recall  seconds")
    best = kaem.sample_quality(data.test_images, data.images)
    print("held-out     {:17.3f} {:10.2f} {:7.2f}        -".format(*best))
    for name in NAMES if not args.quick else NAMES[::2]:
        start = time.perf_counter()
        models[name] = train(name, data.images, num_steps, args.seed).model
        seconds = time.perf_counter() - start
        z = models[name].latents(jax.random.key(args.seed + 3), num_draws)
        draws = np.asarray(models[name].decode(z))
        quality = kaem.sample_quality(draws, data.images)
        print(
            f"{name:12s} {{:17.3f}} {{:10.2f}} {{:7.2f}} {seconds:8.0f}".format(
                *quality
            )
        )
        rows[name] = draws[:12]

    fig = draw_images(rows)
    fig.savefig(args.output / "digits_draws.png", dpi=150)
    plt.close(fig)
    draw_prior(models["mixture"], args.output)

    filled = {}
    for number, image in enumerate(data.test_images[: 2 if args.quick else 4]):
        draws = fill_in(models["mixture"], image, args.quick, args.seed + number)
        seen = image.copy()
        seen[4:] = 0.0
        filled[f"image {number + 1}"] = np.stack([image, seen, *draws])
        error = np.sqrt(np.mean((draws[:, 4:] - image[4:]) ** 2))
        print(f"image {number + 1}: lower half filled in to {error:.2f} a pixel")
    fig = draw_images(filled)
    for ax, title in zip(fig.axes, ("image", "seen", "filled in"), strict=False):
        ax.set_title(title, fontsize="small")
    fig.savefig(args.output / "digits_filled_in.png", dpi=150)
    plt.close(fig)
    print(f"\nFigures: {args.output.resolve()}")


if __name__ == "__main__":
    main()
