"""Priors of a generative model compared, on handwritten digits.

Every form has the same decoder from eight latents to 8 x 8 pixels, the same noise, and,
except for the variational autoencoder, the same number of training steps with the same
Langevin moves; the rest of the cost is that of the prior. Draws, 2,000 decoded means,
are compared with the 1,400 training images in the space of their first 20 principal
components: Fréchet distance (FD), and precision and recall by the nearest five. For
scale: held-out images, and decoded draws from the posteriors of the training images,
the best that any prior can do with the decoder trained with the fixed Normal prior.
"afterwards" is a prior that was fitted once, to draws from the posteriors of a trained
model.

Means over seeds with standard errors; CPU seconds of all threads, compilation included.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _report import start

import numpyro_kaem as kaem

NUM_LATENTS, NUM_BASIS, NUM_DRAWS = 8, 16, 2000
# More components gain little while the decoder is trained, and make moves slower.
NUM_COMPONENTS = {"trained": 20, "afterwards": 60}
REFERENCE = dist.Normal(0.0, 1.0)
# Standard deviation of the random energies that KART starts from.
KART_SCALE = 1.5
# Bounds of the latents; energies are constant beyond.
BASIS = kaem.BSpline(-5.0, 5.0, NUM_BASIS)
FORMS = ("normal", "independent", "KART", "mixture", "autoregressive", "VAE", "neural")


class Setting(NamedTuple):
    """Length of training."""

    num_steps: int = 4000
    """Training steps; the autoencoder takes twice as many, as they are cheap.
    """
    num_moves: int = 5
    """Langevin moves per image's chain and step."""
    batch_size: int = 100
    """Images per step."""
    num_fit_steps: int = 3000
    """Steps of the fit of an autoregressive prior."""


def make_prior(form: str, key: jax.Array, when: str = "trained") -> dist.Distribution:
    """Return the initial prior: the reference, except for KART's and the neural one."""
    shape = (NUM_LATENTS,)
    if form == "independent":
        return flat_prior(shape).to_event(1)
    if form == "KART":
        # Not flat: with equal rows all latents would be equal.
        rows = (2 * NUM_LATENTS + 1, NUM_LATENTS)
        energy = kaem.Energy.init(key, BASIS, rows, scale=KART_SCALE)
        return kaem.KAEMPrior(energy, REFERENCE)
    if form == "mixture":
        num_components = NUM_COMPONENTS[when]
        mixing = dist.Categorical(logits=jnp.zeros(num_components))
        component = flat_prior((num_components, *shape)).to_event(1)
        return dist.MixtureSameFamily(mixing, component)
    if form == "autoregressive":
        conditioner = kaem.MaskedConditioner(key, NUM_LATENTS, NUM_BASIS, 128, 2)
        return kaem.AutoregressiveKAEMPrior(BASIS, conditioner, REFERENCE)
    if form == "neural":
        return kaem.DeepEnergyPrior.init(key, NUM_LATENTS, width=64, step_size=0.2)
    return REFERENCE.expand(shape).to_event(1)


def flat_prior(shape: tuple[int, ...]) -> kaem.KAEMPrior:
    """Densities with flat energies."""
    return kaem.KAEMPrior(kaem.Energy(BASIS, jnp.zeros((*shape, NUM_BASIS))), REFERENCE)


def refit_options(form: str, setting: Setting) -> dict:
    """Options of the fit of a prior to draws."""
    if form == "autoregressive":
        return {"num_steps": setting.num_fit_steps, "learning_rate": 5e-3}
    if form == "mixture":
        return {"penalty": 1.0, "pseudo_count": 0.3}
    return {"penalty": 1.0}


class Encoder(eqx.Module):
    """From images to means and log scales of latents."""

    network: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        self.network = eqx.nn.MLP(64, 2 * NUM_LATENTS, 128, 2, jax.nn.gelu, key=key)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encode: (n, 8, 8) -> (n, 2 * num_latents)."""
        return jax.vmap(self.network)(images.reshape(len(images), -1))


def train(
    form: str, images: np.ndarray, setting: Setting, seed: int
) -> tuple[kaem.KAEM, np.ndarray | None]:
    """Train a model.

    Returns
    -------
    tuple
        The model; latents from the posterior of each image, unless they are KART's.
    """
    key_prior, key_decoder, key_encoder, key_fit, key_draw = jax.random.split(
        jax.random.key(seed), 5
    )
    prior = make_prior(form, key_prior)
    num_inputs = prior.shape()[0]
    decoder = kaem.KANDecoder(
        key_decoder,
        num_inputs,
        (8, 8),
        hidden=(64,),
        basis=(kaem.RBF(-3.0, 3.0, 8), kaem.RBF(-3.0, 3.0, 4)),
    )
    likelihood = kaem.NormalLikelihood(0.2, learn_scale=True, min_scale=0.1)
    joint = "kart" if form == "KART" else None
    model = kaem.KAEM(prior, decoder, likelihood, joint=joint)
    num_steps, refit = setting.num_steps, None
    objective = kaem.objectives.LangevinMLE(setting.num_moves)
    if form == "VAE":
        num_steps *= 2
        objective = kaem.objectives.AmortisedELBO(Encoder(key_encoder))
    elif form in ("independent", "mixture", "autoregressive"):
        # A network is expensive to fit: three times.
        part = 5 if form == "autoregressive" else 12
        refit = kaem.PriorRefit(
            start=2 * num_steps // 5,
            every=num_steps // part,
            options=refit_options(form, setting),
        )
    result = kaem.fit(
        model,
        images,
        objective,
        make_optimizer(form, num_steps),
        num_steps,
        rng_key=key_fit,
        batch_size=setting.batch_size,
        refit=refit,
        progress_bar=False,
    )
    if form == "KART":
        return result.model, None
    if form != "VAE":
        return result.model, np.asarray(result.memory["position"][:, 0])
    encoder = eqx.combine(result.params["encoder$params"], objective.encoder)
    loc, log_scale = jnp.split(encoder(jnp.asarray(images)), 2, axis=-1)
    noise = jax.random.normal(key_draw, loc.shape)
    return result.model, np.asarray(loc + jnp.exp(log_scale) * noise)


def make_optimizer(form: str, num_steps: int) -> optax.GradientTransformation:
    """Adam's method; a neural prior diverges at the rate of the decoder."""
    fast, slow = (
        optax.adam(optax.cosine_decay_schedule(rate, num_steps))
        for rate in (8e-3, 5e-4)
    )
    if form != "neural":
        return fast
    return optax.multi_transform(
        {"decoder": fast, "prior": slow},
        lambda params: {
            name: "prior" if name.startswith("prior") else "decoder" for name in params
        },
    )


def run_seed(
    forms: tuple[str, ...],
    setting: Setting,
    seed: int,
    images: np.ndarray,
    report: Callable[[dict], None],
) -> None:
    """Train every form with one seed, and report each result."""
    key = jax.random.key(1000 + seed)

    def measure(name: str, model: kaem.KAEM, z: jax.Array, start: tuple) -> None:
        draws = np.asarray(model.decode(z))
        seconds, processor = (a - b for a, b in zip(clocks(), start, strict=True))
        quality = kaem.sample_quality(draws, images)._asdict()
        times = {"seconds": seconds, "processor_seconds": processor}
        report({"prior": name, "seed": seed, **quality, **times})

    for form in forms:
        start = clocks()
        model, posterior = train(form, images, setting, seed)
        measure(form, model, model.latents(key, NUM_DRAWS), start)
        if form not in ("normal", "VAE") or posterior is None:
            continue
        spent = [now - then for now, then in zip(clocks(), start, strict=True)]
        if form == "normal":
            index = jax.random.choice(key, len(posterior), (NUM_DRAWS,))
            measure("posteriors of the data", model, posterior[index], start)
        for after in ("mixture", "autoregressive") if form == "normal" else ["mixture"]:
            wall, processor = clocks()
            start = wall - spent[0], processor - spent[1]
            prior = kaem.refit_prior(
                make_prior(after, key, "afterwards"),
                posterior,
                rng_key=key,
                **refit_options(after, setting),
            )
            name = f"{form}, {after} afterwards"
            measure(name, model, prior.sample(key, (NUM_DRAWS,)), start)


def clocks() -> tuple[float, float]:
    """Wall time and CPU time."""
    return time.perf_counter(), time.process_time()


def table(rows: list[dict]) -> str:
    """Means and standard errors of every prior."""
    lines = [
        f"{'prior':36s} {'FD':>15s} {'precision':>12s} {'recall':>12s} "
        f"{'cpu s':>6s} {'seeds':>5s}"
    ]
    for name in dict.fromkeys(row["prior"] for row in rows):
        own = [row for row in rows if row["prior"] == name]
        text = f"{name:36s}"
        for key, digits in (("frechet_distance", 3), ("precision", 2), ("recall", 2)):
            values = np.array([row[key] for row in own])
            cell = f"{values.mean():.{digits}f}"
            if len(values) > 1:
                error = values.std(ddof=1) / np.sqrt(len(values))
                cell += f" ± {error:.{digits}f}"
            text += f" {cell:>{15 if digits == 3 else 12}s}"
        seconds = np.mean([row["processor_seconds"] for row in own])
        lines.append(f"{text} {seconds:6.0f} {len(own):5d}")
    return "\n".join(lines)


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 to 4")
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=None)
    report = start("digits_priors", __doc__, parser)
    warnings.filterwarnings("ignore", message="no network was better")
    setting = Setting(30, 2, 100, 50) if report.quick else Setting()
    forms = report.options.forms or (("normal",) if report.quick else FORMS)
    seeds = report.options.seeds or ([0] if report.quick else range(5))
    data = kaem.datasets.load_digits(test_size=397)
    held_out = kaem.sample_quality(data.test_images, data.images)._asdict()
    report.record(prior="held-out images", **held_out)
    print(
        "held-out images: FD {:.3f}, precision {:.2f}, recall {:.2f}".format(
            *held_out.values()
        )
    )

    def keep(row: dict) -> None:
        # Written after each, since all take hours.
        report.record(**row)
        report.save()

    for seed in seeds:
        run_seed(tuple(forms), setting, seed, data.images, keep)
    print(table(report.rows[1:]))


if __name__ == "__main__":
    main()
