"""Short pieces of English
=======================

A small transformer writes sixteen characters, each given the previous ones and eight
latents. Such decoders are flexible enough to ignore the latents, which is known as
posterior collapse. So the decoder here sees only the last few characters, and longer
range structure, such as the kind of words, is left to the latents.

Run it with ``python examples/text.py``; it takes about five minutes on two cores, and
half a minute with ``--quick``.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax

import numpyro_kaem as kaem

COLOURS = {"no latents": "0.4", "Normal": "#E69F00", "learned": "#0072B2"}
COLOURS["Normal, all seen"] = "#009E73"

parser = argparse.ArgumentParser(description="Short pieces of English")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few training steps")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)
num_steps = 200 if args.quick else 2000
quick, seed = args.quick, args.seed

# %%
# The data
# --------
# Windows of sixteen characters from prose that comes with Python.

LENGTH, CONTEXT, NUM_LATENTS, NUM_BASIS = 16, 2, 8, 16
NUM_CHARACTERS = len(kaem.datasets.ALPHABET)


def as_bits(num_texts: int) -> float:
    """Bits per character that one nat over ``num_texts`` texts makes."""
    return 1.0 / (num_texts * LENGTH * np.log(2.0))


text = kaem.datasets.load_text(LENGTH)
tokens = np.random.default_rng(seed).permutation(text.tokens)
held_out, tokens = tokens[: 30 if quick else 100], tokens[500:]
bits = as_bits(1)

# %%
# A decoder of sequences
# ----------------------
# ``kaem.SequenceDecoder`` maps latents to the distribution of a text. A decoder without
# latents serves for comparison.

REFERENCE = dist.Normal(0.0, 1.0)


class WithoutLatents(eqx.Module):
    """A decoder that ignores the latents."""

    decoder: kaem.SequenceDecoder

    def __call__(self, z: jax.Array) -> dist.Distribution:
        """Distribution of texts, the same for all latents."""
        return self.decoder(jnp.zeros_like(z))


def make_model(seed: int, context: int | None, latents: bool = True) -> kaem.KAEM:
    """Model with Normal latents, or with latents that are ignored."""
    decoder = kaem.SequenceDecoder(
        jax.random.key(seed),
        NUM_LATENTS,
        NUM_CHARACTERS,
        LENGTH,
        width=32,
        num_heads=2,
        context=context,
    )
    prior = REFERENCE.expand([NUM_LATENTS]).to_event(1)
    return kaem.KAEM(prior, decoder if latents else WithoutLatents(decoder))


# %%
# An encoder
# ----------


class Encoder(eqx.Module):
    """Means and log scales of the latents given texts."""

    perceptron: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        size = LENGTH * NUM_CHARACTERS
        self.perceptron = eqx.nn.MLP(size, 2 * NUM_LATENTS, 128, 1, key=key)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(num_texts, length) -> (num_texts, 2 * num_latents)."""
        letters = jax.nn.one_hot(tokens, NUM_CHARACTERS).reshape(len(tokens), -1)
        mean, log_scale = jnp.split(jax.vmap(self.perceptron)(letters), 2, axis=-1)
        # The means of a batch have a fixed spread, so that the latents cannot collapse
        # at once (Zhu et al. 2020, "A batch normalized inference network keeps the KL
        # vanishing away").
        mean = 0.7 * (mean - mean.mean(0)) / mean.std(0)
        return jnp.concatenate([mean, log_scale - 0.5], axis=-1)


def draw_latents(
    encoder: Encoder, tokens: np.ndarray, seed: int
) -> tuple[jax.Array, jax.Array]:
    """Draws from the encoder's distribution, and its log density at them."""
    mean, log_scale = jnp.split(encoder(jnp.asarray(tokens)), 2, axis=-1)
    encoded = dist.Normal(mean, jnp.exp(log_scale)).to_event(1)
    z = encoded.sample(jax.random.key(seed))
    return z, encoded.log_prob(z)


# %%
# Training
# --------
# The weight of the Kullback-Leibler divergence rises from a small value to one
# (``kaem.cyclical_schedule``).


class Trained(NamedTuple):
    """A model after training."""

    model: kaem.KAEM
    encoder: Any
    losses: np.ndarray
    """Bound of every step, in bits per character."""


def train(
    model: kaem.KAEM,
    encoder: Encoder | None,
    tokens: np.ndarray,
    num_steps: int,
    seed: int,
    start_weight: float = 0.05,
) -> Trained:
    """Train; the weight of the divergence rises from ``start_weight`` to one."""
    if encoder is None:
        # One draw is enough for latents that are ignored.
        objective = kaem.objectives.ImportanceMLE(num_particles=1)
    else:
        weight = kaem.cyclical_schedule(num_steps, start_weight, 1.0)
        objective = kaem.objectives.AmortisedELBO(encoder, kl_weight=weight)
    result = kaem.fit(
        model,
        tokens,
        objective,
        optax.adam(optax.cosine_decay_schedule(4e-3, num_steps)),
        num_steps,
        rng_key=jax.random.key(seed),
        batch_size=128,
    )
    if encoder is not None:
        encoder = eqx.combine(result.params["encoder$params"], encoder)
    return Trained(result.model, encoder, result.losses * as_bits(len(tokens)))


# %%
# Half way through, the densities of the latents are fitted to draws from the encoder.


def learn_prior(encoder: Encoder, tokens: np.ndarray, seed: int) -> dist.Distribution:
    """Independent densities, fitted to draws from the encoder."""
    energy = kaem.Energy(
        kaem.RBF(-4.0, 4.0, NUM_BASIS), jnp.zeros((NUM_LATENTS, NUM_BASIS))
    )
    flat = kaem.KAEMPrior(energy, REFERENCE).to_event(1)
    z, _ = draw_latents(encoder, tokens, seed)
    return kaem.refit_prior(flat, z)


# %%
# Train and compare
# -----------------
# Without latents, with Normal latents, with a learned prior from half way on, and,
# without ``--quick``, with Normal latents and all previous characters visible. They are
# compared by the bits per held-out character, and by the divergence of the posterior
# from the prior, which is the information in the latents. Where it is zero, they have
# collapsed.


def log_likelihood(model: kaem.KAEM, tokens: np.ndarray, quick: bool) -> tuple:
    """Log likelihood of every text, and Monte Carlo standard error of their mean."""
    if isinstance(model.decoder, WithoutLatents):
        texts = model.conditional(jnp.zeros(NUM_LATENTS))
        return np.asarray(texts.log_prob(tokens)), 0.0
    found = kaem.infer.held_out_log_likelihood(
        jax.random.key(0),
        model,
        tokens,
        num_temperatures=8 if quick else 16,
        num_particles=16,
        num_steps=1,
        progress_bar=not quick,
    )
    return found.values, found.standard_error


print("prior             bits per character  gain in nats per text  divergence")
values: dict[str, np.ndarray] = {}
held: dict[str, dict[int, tuple[float, float]]] = {}


def report(name: str, step: int, trained: Trained) -> None:
    """Print and keep the log likelihood of held-out texts."""
    values[name], error = log_likelihood(trained.model, held_out, quick)
    mean = -values[name].mean() * bits
    held.setdefault(name, {})[step] = mean, error * bits
    line = f"{name:17s} {mean:9.3f} ± {error * bits:5.3f}"
    if "no latents" in values and step > 0:
        gain = values[name] - values["no latents"]
        spread = gain.std(ddof=1) / np.sqrt(len(gain))
        line += f"   {gain.mean():10.2f} ± {spread:4.2f}"
    if trained.encoder is not None and step > 0:
        z, log_density = draw_latents(trained.encoder, held_out, seed)
        divergence = float(jnp.mean(log_density - trained.model.prior.log_prob(z)))
        line += f"  {divergence:10.2f}"
    print(line)


histories = {}
half, encoder = num_steps // 2, Encoder(jax.random.key(seed + 1))
report("Normal", 0, Trained(make_model(seed, CONTEXT), encoder, np.zeros(0)))
no_latents = make_model(seed, CONTEXT, latents=False)
without = train(no_latents, None, tokens, num_steps, seed + 2)
histories["no latents"] = 0, without.losses
report("no latents", num_steps, without)
first = train(make_model(seed, CONTEXT), encoder, tokens, half, seed + 2)
report("Normal", half, first)
# From here with each prior, and full weight of the divergence.
prior = learn_prior(first.encoder, tokens, seed)
priors = {"Normal": first.model.prior, "learned": prior}
trained = {"Normal": first}
for name in ("learned",) if quick else ("Normal", "learned"):
    model = kaem.KAEM(priors[name], first.model.decoder)
    trained[name] = train(model, first.encoder, tokens, half, seed + 3, 1.0)
    report(name, num_steps, trained[name])
    histories[name] = half, trained[name].losses
histories["Normal"] = 0, first.losses
if not quick:
    losses = np.concatenate([first.losses, trained["Normal"].losses])
    histories["Normal"] = 0, losses
learned = trained["learned"]
if not quick:
    name = "Normal, all seen"
    seen = train(make_model(seed, None), encoder, tokens, num_steps, seed + 2)
    histories[name] = 0, seen.losses
    report(name, num_steps, seen)

# %%
# Draws
# -----

print("\nDraws")
draws = learned.model.sample(jax.random.key(seed + 4), 6)
for line in text.decode(np.asarray(draws)):
    print(f"   {line!r}")

# %%
# Texts on the path between two texts, and the effect of one latent:


def show_between(trained: Trained, tokens: np.ndarray, seed: int) -> None:
    """Print texts on the path between two texts, and the effect of one latent."""
    text = kaem.datasets.decode_characters
    # The encoder standardises over its batch.
    mean = trained.encoder(jnp.asarray(tokens))[:, :NUM_LATENTS]
    share = jnp.linspace(0.0, 1.0, 5)[:, None]
    path = (1 - share) * mean[0] + share * mean[1]

    def write(z: jax.Array) -> jax.Array:
        # With one key, so that changes are due to the latents.
        return trained.model.conditional(z).sample(jax.random.key(seed), (2000,))

    print("\nBetween two texts")
    print(f"   from   {text(tokens[0])!r}")
    for value, draws in zip(share[:, 0], jax.lax.map(write, path), strict=True):
        shown = "  ".join(map(repr, text(np.asarray(draws[:3]))))
        print(f"   {value:4.2f}   {shown}")
    print(f"   to     {text(tokens[1])!r}")

    # The latent with the narrowest posterior is the most informative.
    _, log_scale = jnp.split(trained.encoder(jnp.asarray(tokens)), 2, axis=-1)
    latent = int(jnp.argmin(log_scale.mean(0)))
    ends = jnp.zeros((2, NUM_LATENTS)).at[:, latent].set(jnp.array([-1.5, 1.5]))
    counts = [
        np.bincount(np.ravel(draws), minlength=NUM_CHARACTERS)
        for draws in np.asarray(jax.lax.map(write, ends))
    ]
    rise = (counts[1] - counts[0]) / np.sqrt(counts[0] + counts[1] + 1.0)
    order = np.argsort(rise)
    print(f"\nLatent {latent + 1} makes these characters more frequent")
    for name, places in (("low", order[:5]), ("high", order[::-1][:5])):
        letters = " ".join(repr(kaem.datasets.ALPHABET[i]) for i in places)
        print(f"   when {name:4s} {letters}")


show_between(learned, held_out, seed + 5)

# %%
# The learned densities
# ---------------------


def draw_priors(prior: dist.Distribution) -> plt.Figure:
    """Density of each latent."""
    z = jnp.linspace(-4.0, 4.0, 401)[:, None]
    densities = jnp.exp(prior.base_dist.log_prob(z))
    fig, axes = plt.subplots(
        2, NUM_LATENTS // 2, figsize=(9.0, 4.0), layout="constrained", sharey=True
    )
    for latent, ax in enumerate(axes.flat):
        normal = jnp.exp(REFERENCE.log_prob(z))
        ax.plot(z, normal, color=COLOURS["Normal"], linestyle="--", label="reference")
        ax.plot(z, densities[:, latent], color=COLOURS["learned"], label="learned")
        ax.set_xlabel(f"latent {latent + 1}")
    for ax in axes[:, 0]:
        ax.set_ylabel("density")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside upper right", ncols=2, frameon=False)
    return fig


fig = draw_priors(learned.model.prior)
fig.savefig(
    args.output / "text_prior.png",
    dpi=150,
    metadata={
        "Description": "The learned density of each of eight latents, and the Normal "
        "reference."
    },
)
plt.close(fig)

# %%
# The course of training
# ----------------------


def draw_history(
    histories: dict[str, tuple[int, np.ndarray]],
    held_out: dict[str, dict[int, tuple[float, float]]],
) -> plt.Figure:
    """Bits per character in training, and of held-out texts."""
    fig, ax = plt.subplots(figsize=(7.0, 4.0), layout="constrained")
    for name, (first, losses) in histories.items():
        width = max(len(losses) // 40, 1)
        mean = losses[: len(losses) // width * width].reshape(-1, width).mean(1)
        step = first + width * (np.arange(len(mean)) + 0.5)
        ax.plot(step, mean, color=COLOURS[name], label=f"{name}: training bound")
    for name, points in held_out.items():
        steps = sorted(points)
        values, errors = np.array([points[step] for step in steps]).T
        ax.errorbar(
            steps,
            values,
            errors,
            color=COLOURS[name],
            fmt="o",
            capsize=3,
            label=f"{name}: held out",
        )
    ax.set_xlabel("training step")
    ax.set_ylabel("bits per character")
    ax.set_ylim(top=4.0)
    ax.legend(frameon=False, fontsize="small")
    return fig


fig = draw_history(histories, held)
fig.savefig(
    args.output / "text_training.png",
    dpi=150,
    metadata={
        "Description": "Bits per character against the training step, for each model: "
        "the bound in training as lines, held-out texts as points."
    },
)
plt.close(fig)
print(f"\nFigures: {args.output.resolve()}")
