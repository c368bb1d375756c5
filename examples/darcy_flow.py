"""Flow through porous ground
==========================

Fluid that seeps through ground of random permeability builds up a pressure field. A
decoder maps eight latents to the logarithm of such a field on 16 × 16 cells. It is
trained as a variational autoencoder with Normal latents, and then further with learned
priors of the latents: mixtures of products of densities, with radial basis functions or
with cosines and sines. Finally a held-out field is reconstructed from a few noisy
sensors, with its uncertainty.

Run it with ``python examples/darcy_flow.py``; it takes about four minutes on two
cores, and half a minute with ``--quick``.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
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

COLOURS = {"held-out": "0.2", "Normal": "#E69F00", "RBF": "#0072B2"}
COLOURS["Fourier"] = "#CC79A7"

parser = argparse.ArgumentParser(description="Flow through porous ground")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few training steps")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)
num_steps = 300 if args.quick else 2500
num_held_out = 500 if args.quick else 1000


def save(fig: plt.Figure, name: str, description: str) -> None:
    """Write a figure with a description for those who cannot see it."""
    path = args.output / f"darcy_flow_{name}.png"
    fig.savefig(path, dpi=150, metadata={"Description": description})
    plt.close(fig)


# %%
# Solve Darcy's equation
# ----------------------
# ``kaem.datasets.darcy_flow`` solves it for random media.

SIZE, NUM_LATENTS, NUM_SCORES, NUM_COMPONENTS = 16, 8, 24, 10


class Fields(NamedTuple):
    """Log pressures, standardised with a common mean and scale."""

    train: np.ndarray
    held_out: np.ndarray
    loc: float
    scale: float

    def pressure(self, x: np.ndarray) -> np.ndarray:
        """Pressures of scaled fields."""
        return np.exp(self.loc + self.scale * np.asarray(x))


def make_fields(num_train: int, num_held_out: int, seed: int) -> Fields:
    """Solve for the pressure in random media; the first fields are for training."""
    flow = kaem.datasets.darcy_flow(
        seed, num_train + num_held_out, SIZE, progress_bar=True
    )
    x = np.log(flow.pressure)
    loc, scale = float(x[:num_train].mean()), float(x[:num_train].std())
    x = (x - loc) / scale
    return Fields(x[:num_train], x[num_train:], loc, scale)


fields = make_fields(1000 if args.quick else 3000, num_held_out, args.seed)

# %%
# Train an autoencoder
# --------------------
# ``kaem.objectives.AmortisedELBO`` takes an encoder, any function from data to means
# and log scales of the latents.

REFERENCE = dist.Normal(0.0, 1.0)


class Encoder(eqx.Module):
    """Means and log scales of the latents given fields."""

    axes: jax.Array
    offset: jax.Array
    perceptron: eqx.nn.MLP

    def __init__(self, key: jax.Array, x: np.ndarray) -> None:
        # Its inputs are principal components, scaled to variance one. The means of the
        # latents start at the first of them: from a random start they would stay far
        # narrower than the reference for many steps.
        x = x.reshape(len(x), -1)
        center = x.mean(axis=0)
        _, sizes, axes = np.linalg.svd(x - center, full_matrices=False)
        axes = axes[:NUM_SCORES].T * np.sqrt(len(x)) / sizes[:NUM_SCORES]
        self.axes, self.offset = jnp.asarray(axes), jnp.asarray(center @ axes)
        self.perceptron = eqx.nn.MLP(NUM_SCORES, 2 * NUM_LATENTS, 64, 1, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(num_fields, 16, 16) -> (num_fields, 2 * num_latents)."""
        # Not trained: steps that suit the perceptron are far too large for these.
        axes, offset = jax.lax.stop_gradient((self.axes, self.offset))
        scores = x.reshape(len(x), -1) @ axes - offset
        mean, log_scale = jnp.split(jax.vmap(self.perceptron)(scores), 2, axis=-1)
        mean = scores[:, :NUM_LATENTS] + 0.1 * mean
        return jnp.concatenate([mean, log_scale - 3.0], axis=-1)


def train(
    model: kaem.KAEM, encoder: Encoder, x: np.ndarray, num_steps: int, seed: int
) -> tuple[kaem.KAEM, Encoder]:
    """Train model and encoder."""
    result = kaem.fit(
        model,
        x,
        kaem.objectives.AmortisedELBO(encoder),
        optax.adam(optax.cosine_decay_schedule(1e-2, num_steps)),
        num_steps,
        rng_key=jax.random.key(seed),
        batch_size=100,
    )
    return result.model, eqx.combine(result.params["encoder$params"], encoder)


def log_likelihood(model: kaem.KAEM, x: np.ndarray, quick: bool) -> str:
    """Mean held-out log likelihood of a field, with its Monte Carlo error."""
    found = kaem.infer.held_out_log_likelihood(
        jax.random.key(0),
        model,
        x[: 20 if quick else 100],
        num_temperatures=24 if quick else 48,
        num_particles=16,
        progress_bar=not quick,
    )
    return f"{found.mean:.1f} ± {found.standard_error:.1f}"


key_decoder, key_encoder = jax.random.split(jax.random.key(args.seed))
model = kaem.KAEM(
    REFERENCE.expand([NUM_LATENTS]).to_event(1),
    kaem.KANDecoder(key_decoder, NUM_LATENTS, (SIZE, SIZE), hidden=(32,)),
    kaem.NormalLikelihood(0.3, learn_scale=True, min_scale=0.1),
)
held_out = fields.held_out
print("Held-out log likelihood of a field")
print(f"   untrained               {log_likelihood(model, held_out, args.quick)}")
encoder = Encoder(key_encoder, fields.train)
model, encoder = train(model, encoder, fields.train, num_steps, args.seed + 1)
print(f"   trained, Normal prior   {log_likelihood(model, held_out, args.quick)}")

# %%
# Learn priors
# ------------
# A mixture of products of densities is fitted to draws from the encoder, with each
# basis.

BASES = {"RBF": kaem.RBF(-4.0, 4.0, 17), "Fourier": kaem.Fourier(-4.0, 4.0, 8)}


def learn_prior(
    basis: kaem.bases.AbstractBasis, encoder: Encoder, x: np.ndarray, seed: int
) -> dist.Distribution:
    """Mixture of products of densities, fitted to draws from the encoder."""
    mean, log_scale = jnp.split(encoder(jnp.asarray(x)), 2, axis=-1)
    noise = jax.random.normal(jax.random.key(seed), mean.shape)
    shape = (NUM_COMPONENTS, NUM_LATENTS, basis.num_features)
    # Components may become narrow: finer panels for their normalizing constants.
    flat = kaem.KAEMPrior(kaem.Energy(basis, jnp.zeros(shape)), REFERENCE, refinement=4)
    mixing = dist.Categorical(logits=jnp.zeros(NUM_COMPONENTS))
    return kaem.refit_prior(
        dist.MixtureSameFamily(mixing, flat.to_event(1)),
        mean + jnp.exp(log_scale) * noise,
        penalty=1.0,
        max_steps=200,
        tolerance=1e-3,
    )


priors = {"Normal": model.prior}
for name, basis in BASES.items():
    priors[name] = learn_prior(basis, encoder, fields.train, args.seed)

# %%
# Compare their draws
# -------------------
# With held-out fields: by likelihood, by Fréchet distance, precision and recall, and by
# physics. With a source everywhere, no pressure field has an interior minimum. Without
# ``--quick``, the model is first trained further with each prior.


def has_minimum_inside(pressure: np.ndarray) -> np.ndarray:
    """Whether a cell of a field is lower than its four neighbours, ``(n,)``."""
    # The pressure is zero on the boundary.
    p = np.pad(pressure, ((0, 0), (1, 1), (1, 1)))
    middle, rows, columns = p[:, 1:-1, 1:-1], p[:, :, 1:-1], p[:, 1:-1]
    neighbours = (rows[:, :-2], rows[:, 2:], columns[..., :-2], columns[..., 2:])
    return np.any(middle < np.minimum.reduce(neighbours), axis=(1, 2))


samples = {"held-out": fields.pressure(held_out)}
models = {}
print("prior     log likelihood  Fréchet  precision  recall  interior minimum")
best = kaem.sample_quality(fields.train[:num_held_out], held_out)
row = "{:9s} {:>14s} {:8.2f} {:10.2f} {:7.2f} {:17.3f}"
share = has_minimum_inside(samples["held-out"]).mean()
print(row.format("training", "-", *best[:3], share))
for name, prior in priors.items():
    models[name] = kaem.KAEM(prior, model.decoder, model.likelihood)
    if not args.quick:
        models[name], _ = train(
            models[name], encoder, fields.train, num_steps, args.seed + 2
        )
    z = models[name].latents(jax.random.key(args.seed + 3), num_held_out)
    draws = np.asarray(models[name].decode(z))
    samples[name] = fields.pressure(draws)
    print(
        row.format(
            name,
            log_likelihood(models[name], held_out, args.quick),
            *kaem.sample_quality(draws, held_out)[:3],
            has_minimum_inside(samples[name]).mean(),
        )
    )

# %%
# Fields drawn with each prior:


def draw_fields(rows: dict[str, np.ndarray]) -> plt.Figure:
    """Rows of pressure fields, each with its name, and one colour bar."""
    num_columns = len(next(iter(rows.values())))
    highest = max(np.quantile(fields, 0.99) for fields in rows.values())
    fig, axes = plt.subplots(
        len(rows), num_columns, figsize=(9.0, 1.1 * len(rows)), layout="constrained"
    )
    for line, (name, fields) in zip(axes, rows.items(), strict=True):
        for ax, field in zip(line, fields, strict=True):
            image = ax.imshow(field, vmin=0.0, vmax=highest, cmap="viridis")
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    fig.colorbar(image, ax=axes, label="pressure", extend="max")
    return fig


save(
    draw_fields({name: x[:10] for name, x in samples.items()}),
    "fields",
    "Rows of ten pressure fields: held out, and drawn from the models with a Normal "
    "prior and with two learned ones. All are smooth with one or few peaks.",
)

# %%
# The learned densities of the latents:


def draw_priors(priors: dict[str, dist.Distribution]) -> plt.Figure:
    """Marginal density of each latent with each basis."""
    z = jnp.linspace(-4.0, 4.0, 401)[:, None, None]
    fig, axes = plt.subplots(
        2, NUM_LATENTS // 2, figsize=(9.0, 4.0), layout="constrained", sharey=True
    )
    for latent, ax in enumerate(axes.flat):
        normal = jnp.exp(REFERENCE.log_prob(z[:, 0, 0]))
        ax.plot(z[:, 0, 0], normal, color="0.5", linestyle="--", label="reference")
        ax.set_xlabel(f"latent {latent + 1}")
    for (name, prior), style in zip(priors.items(), ("-", ":"), strict=True):
        densities = jnp.exp(prior.component_distribution.base_dist.log_prob(z))
        marginal = jnp.einsum("k,nkl->nl", prior.mixing_distribution.probs, densities)
        for latent, ax in enumerate(axes.flat):
            ax.plot(
                z[:, 0, 0], marginal[:, latent], style, color=COLOURS[name], label=name
            )
    for ax in axes[:, 0]:
        ax.set_ylabel("density")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside upper right", ncols=3, frameon=False)
    return fig


learned = {name: models[name].prior for name in BASES}
save(
    draw_priors(learned),
    "prior",
    "The marginal density of each of eight latents for either basis, and the Normal "
    "reference.",
)

# %%
# Two properties of the fields: how fast they vary along a row, and the distribution of
# their mean pressure.


def variogram(x: np.ndarray) -> np.ndarray:
    """Half the mean squared difference of cells, by their distance in columns."""
    distances = range(1, SIZE // 2 + 1)
    return np.array([np.mean((x[..., d:] - x[..., :-d]) ** 2) / 2 for d in distances])


def draw_checks(samples: dict[str, np.ndarray]) -> plt.Figure:
    """Variogram, and distribution of the mean pressure, of pressure fields."""
    fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
    styles = ("-", "--", "-.", ":")
    for (name, fields), style in zip(samples.items(), styles, strict=True):
        options = {"color": COLOURS[name], "linestyle": style, "label": name}
        distance = np.arange(1, SIZE // 2 + 1) / SIZE
        axes[0].plot(distance, variogram(np.log(fields)), **options)
        mean = np.sort(fields.mean(axis=(1, 2)))
        axes[1].plot(mean, 1 - np.arange(len(mean)) / len(mean), **options)
    axes[0].set_xlabel("distance along a row; the square has side 1")
    axes[0].set_ylabel("variogram of log pressure")
    axes[1].set_xlabel("mean pressure of a field")
    axes[1].set_ylabel("proportion of fields above")
    axes[1].set_xscale("log")
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False)
    return fig


save(
    draw_checks(samples),
    "checks",
    "Left: the variogram of the log pressure. Right: the proportion of fields whose "
    "mean pressure is above a value. The models are compared with held-out fields.",
)

# %%
# A field from six sensors
# ------------------------
# This is posterior inference of the latents, without further training: the sensors
# measure the decoded field in six cells.

# Rows and columns of the cells with a sensor, and the noise of its log pressure.
SENSORS = np.array([[2, 3], [4, 11], [8, 7], [11, 2], [12, 13], [7, 14]])
SENSOR_NOISE = 0.05


def reconstruct(
    model: kaem.KAEM, x: np.ndarray, noise: float, quick: bool, seed: int
) -> np.ndarray:
    """Draws of a field given noisy sensors in it, shape ``(num_draws, 16, 16)``."""
    rows, columns = SENSORS.T
    key_read, key_run, key_cells = jax.random.split(jax.random.key(seed), 3)
    read = x[rows, columns] + noise * jax.random.normal(key_read, rows.shape)

    def sensors(read: jax.Array) -> None:
        z = numpyro.sample("z", model.prior)
        # The decoder is not exact: its own noise adds to the sensors'.
        scale = jnp.hypot(model.likelihood.scale, noise)
        mean = model.decode(z)[rows, columns]
        numpyro.sample("read", dist.Normal(mean, scale).to_event(1), obs=read)

    kernel = kaem.infer.AnnealedLangevin(sensors, num_temperatures=8)
    count = 200 if quick else 1000
    mcmc = MCMC(kernel, num_warmup=count, num_samples=count, progress_bar=not quick)
    mcmc.run(key_run, read)
    conditional = model.conditional(mcmc.get_samples()["z"])
    return np.asarray(conditional.sample(key_cells))


noise = SENSOR_NOISE / fields.scale
draws = reconstruct(models["RBF"], held_out[0], noise, args.quick, args.seed + 4)
low, high = np.quantile(draws, [0.05, 0.95], axis=0)
inside = np.mean((low < held_out[0]) & (held_out[0] < high))
spread = np.std(fields.train, axis=0)
print(f"\n{len(SENSORS)} sensors: {inside:.0%} of the cells lie in their 90% bands,")
print(f"which are {np.mean((high - low) / (3.29 * spread)):.0%} as wide as without.")

# %%


def draw_reconstruction(truth: np.ndarray, draws: np.ndarray) -> plt.Figure:
    """Pressure of a field, its reconstruction from sensors, and bands along a row."""
    row = SIZE // 2
    fig, axes = plt.subplots(
        1, 3, figsize=(10.0, 3.2), layout="constrained", width_ratios=(1, 1, 1.5)
    )
    median = np.median(draws, axis=0)
    highest = max(truth.max(), median.max())
    for ax, field, title in zip(
        axes, (truth, median), ("truth", "posterior median"), strict=False
    ):
        image = ax.imshow(field, vmin=0.0, vmax=highest, cmap="viridis")
        ax.plot(*SENSORS.T[::-1], "o", color="w", mec="k", label="sensors")
        ax.axhline(row, color="w", linewidth=0.8, linestyle="--")
        ax.set_xlabel("column")
        ax.set_title(title)
    axes[0].set_ylabel("row")
    axes[0].legend(loc="upper left", fontsize="x-small")
    fig.colorbar(image, ax=axes[:2], label="pressure", location="left")
    ax, column = axes[2], np.arange(SIZE)
    for level, alpha in ((0.9, 0.25), (0.5, 0.4)):
        band = np.quantile(draws[:, row], [0.5 - level / 2, 0.5 + level / 2], axis=0)
        ax.fill_between(
            column, *band, color="#0072B2", alpha=alpha, label=f"{level:.0%} band"
        )
    ax.plot(column, truth[row], color="k", label="truth")
    ax.set_xlabel(f"column, in row {row}")
    ax.set_ylabel("pressure")
    ax.legend(frameon=False, fontsize="small")
    return fig


save(
    draw_reconstruction(fields.pressure(held_out[0]), fields.pressure(draws)),
    "sensors",
    "A pressure field, the median of its reconstruction from six sensors, and both "
    "along one row with bands of 50 and 90 per cent.",
)
print(f"\nFigures: {args.output.resolve()}")
