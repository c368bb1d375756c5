"""Handwritten digits
==================

A decoder maps eight latents to an image of 8 × 8 pixels. It is trained by maximum
likelihood, with Langevin chains that follow the posterior of each image. Then priors
are fitted to those posteriors, compared, interpreted, and used to complete half an
image.

Run it with ``python examples/digits.py``; it takes a few minutes on two cores, and
less than one with ``--quick``. ``benchmarks/digits_priors.py`` compares more priors,
some of them fitted while the decoder is trained.
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

parser = argparse.ArgumentParser(description="Handwritten digits")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few training steps")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)
num_draws = 500 if args.quick else 2000


def save(fig: plt.Figure, name: str, description: str) -> None:
    """Write a figure with a description for those who cannot see it."""
    path = args.output / f"digits_{name}.png"
    fig.savefig(path, dpi=150, metadata={"Description": description})
    plt.close(fig)


# %%
# Train with a Normal prior
# -------------------------
# ``kaem.KAEM`` combines prior, decoder and likelihood in one NumPyro model, and
# ``kaem.fit`` trains it. ``LangevinMLE`` keeps a chain per image, so that training
# leaves a draw from the posterior of each.

NUM_LATENTS, NUM_COMPONENTS = 8, 60
NUM_HELD_OUT = 397
# Beyond these bounds the energies are constant.
BASIS, REFERENCE = kaem.BSpline(-5.0, 5.0, num_basis=16), dist.Normal(0.0, 1.0)


def train(images: np.ndarray, num_steps: int, seed: int) -> tuple[kaem.KAEM, jax.Array]:
    """Train with a Normal prior.

    Returns
    -------
    tuple
        The model; a draw from the posterior of each image, ``(num_images, 8)``.
    """
    key_decoder, key_fit = jax.random.split(jax.random.key(seed))
    decoder = kaem.KANDecoder(
        key_decoder,
        NUM_LATENTS,
        (8, 8),
        hidden=(64,),
        basis=(kaem.RBF(-3.0, 3.0, 8), kaem.RBF(-3.0, 3.0, 4)),
    )
    likelihood = kaem.NormalLikelihood(0.2, learn_scale=True, min_scale=0.1)
    prior = REFERENCE.expand([NUM_LATENTS]).to_event(1)
    result = kaem.fit(
        kaem.KAEM(prior, decoder, likelihood),
        images,
        kaem.objectives.LangevinMLE(num_steps=5),
        optax.adam(optax.cosine_decay_schedule(8e-3, num_steps)),
        num_steps,
        rng_key=key_fit,
        batch_size=100,
    )
    return result.model, result.memory["position"][:, 0]


data = kaem.datasets.load_digits(test_size=NUM_HELD_OUT)
start = time.perf_counter()
trained, latents = train(data.images, 200 if args.quick else 4000, args.seed)
models = {"normal": trained}
print(f"trained in {time.perf_counter() - start:.0f} seconds")

# %%
# Fit priors to the posteriors
# ----------------------------
# Independent densities, a mixture of products of densities, and an autoregressive
# prior. The last two keep the dependence between latents.


def fit_prior(name: str, latents: jax.Array, seed: int) -> dist.Distribution:
    """Prior of one of the forms, from draws of the posteriors."""
    key = jax.random.key(seed)
    if name == "independent":
        flat = kaem.Energy(BASIS, jnp.zeros((NUM_LATENTS, BASIS.num_features)))
        prior = kaem.KAEMPrior(flat, REFERENCE).to_event(1)
        return kaem.refit_prior(prior, latents, penalty=1.0)
    if name == "mixture":
        return kaem.fit_mixture(
            latents,
            NUM_COMPONENTS,
            BASIS,
            REFERENCE,
            penalty=1.0,
            pseudo_count=0.3,
            rng_key=key,
        )
    return kaem.fit_autoregressive(
        latents,
        BASIS,
        REFERENCE,
        rng_key=key,
        width=128,
        num_steps=3000,
        learning_rate=5e-3,
    )


def with_prior(model: kaem.KAEM, prior: dist.Distribution) -> kaem.KAEM:
    """Model with another prior, and the same decoder."""
    return kaem.KAEM(prior, model.decoder, model.likelihood)


# %%
# Draws with each prior are compared with real images by the Fréchet distance, precision
# and recall. Decoded posterior draws show what a perfect prior would give.


def compare(name: str, draws: np.ndarray, seconds: float) -> None:
    """Print how close draws are to the images."""
    quality = kaem.sample_quality(draws, data.images)
    distance, precision, recall = quality[:3]
    print(f"{name:22s} {distance:9.3f} {precision:10.2f} {recall:7.2f} {seconds:8.0f}")


print("\nprior                   Fréchet  precision  recall  seconds")
compare("held-out images", data.test_images, 0.0)
compare("posteriors of images", np.asarray(trained.decode(latents)), 0.0)
rows = {"real": data.images[:12]}
learned = ["mixture"] if args.quick else ["independent", "mixture", "autoregressive"]
for name in ["normal", *learned]:
    start = time.perf_counter()
    if name != "normal":
        prior = fit_prior(name, latents, args.seed)
        models[name] = with_prior(trained, prior)
    seconds = time.perf_counter() - start
    z = models[name].latents(jax.random.key(args.seed + 3), num_draws)
    draws = np.asarray(models[name].decode(z))
    compare(name, draws, seconds)
    rows[name] = draws[:12]

# %%
# Draws with each prior, below real images:


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


save(
    draw_images(rows),
    "draws",
    "Rows of twelve images of digits: real ones, draws with the Normal prior, and "
    "draws with learned priors, more of which are readable digits.",
)

# %%
# Interpret the prior
# -------------------
# The marginal density of each latent under the mixture, and its reference:


def draw_prior(prior: dist.MixtureSameFamily) -> plt.Figure:
    """Marginal density of each latent under the mixture."""
    z = jnp.linspace(-4.0, 4.0, 401)[:, None, None]
    densities = jnp.exp(prior.component_distribution.base_dist.log_prob(z))
    marginal = jnp.einsum("k,nkl->nl", prior.mixing_distribution.probs, densities)
    fig, axes = plt.subplots(2, 4, figsize=(9.0, 3.8), layout="constrained")
    for latent, ax in enumerate(axes.flat):
        normal = jnp.exp(REFERENCE.log_prob(z[:, 0, 0]))
        ax.plot(z[:, 0, 0], normal, color="0.5", linestyle="--", label="reference")
        ax.plot(z[:, 0, 0], marginal[:, latent], color="#0072B2", label="learned")
        ax.set_xlabel(f"latent {latent + 1}")
    for ax in axes[:, 0]:
        ax.set_ylabel("density")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside upper right", ncols=2, frameon=False)
    return fig


save(
    draw_prior(models["mixture"].prior),
    "prior",
    "The marginal density of each of eight latents under the learned mixture, and the "
    "Normal reference.",
)

# %%
# Draws from single components of the mixture, the largest components first:


def draw_components(model: kaem.KAEM, seed: int) -> plt.Figure:
    """Draws from each of the largest components of a mixture."""
    prior = model.prior
    draws = prior.component_distribution.sample(jax.random.key(seed), (12,))
    weights = prior.mixing_distribution.probs
    largest = np.argsort(-np.asarray(weights))[:8]
    rows = {
        f"{number}: {weights[k]:.1%}": np.asarray(model.decode(draws[:, k]))
        for number, k in enumerate(largest, 1)
    }
    return draw_images(rows)


save(
    draw_components(models["mixture"], args.seed),
    "components",
    "A row of twelve images for each of the eight largest components of the mixture; "
    "the images of a row resemble each other.",
)

# %%
# Held-out likelihood
# -------------------
# ``kaem.infer.held_out_log_likelihood`` anneals from the prior to the posterior of each
# image; its estimate of the likelihood is unbiased.

print("\nestimated log likelihood of a held-out image")
left_out = data.test_images[: 10 if args.quick else 100]
for name in ["normal", *learned]:
    result = kaem.infer.held_out_log_likelihood(
        jax.random.key(args.seed + 4),
        models[name],
        left_out,
        num_temperatures=16 if args.quick else 64,
        num_particles=16 if args.quick else 32,
        progress_bar=False,
    )
    print(f"{name:16s} {result.mean:7.2f} ± {result.standard_error:.2f}")

# %%
# Complete half an image
# ----------------------
# This is posterior inference of the latents given the upper half, without further
# training. The model of the upper half is a NumPyro model with ``model.prior`` and
# ``model.decode``.


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


print()
filled = {}
for number, image in enumerate(data.test_images[: 2 if args.quick else 4]):
    draws = fill_in(models["mixture"], image, args.quick, args.seed + number)
    seen = image.copy()
    seen[4:] = 0.0
    filled[f"image {number + 1}"] = np.stack([image, seen, *draws])
    error = np.sqrt(np.mean((draws[:, 4:] - image[4:]) ** 2))
    print(f"image {number + 1}: lower half filled in to {error:.2f} per pixel")
fig = draw_images(filled)
for ax, title in zip(fig.axes, ("image", "seen", "filled in"), strict=False):
    ax.set_title(title, fontsize="small")
save(
    fig,
    "filled_in",
    "Rows of images: a digit, its upper half, and five images that complete the "
    "upper half in different ways.",
)
print(f"\nFigures: {args.output.resolve()}")
