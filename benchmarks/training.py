"""A training step by each objective, and that of a variational autoencoder.

All train one decoder, of the size of 8 × 8 digits, with one batch size. They run it a
different number of times per step, so each is compared with an autoencoder that takes
as many draws from its encoder as they run the decoder: its decoder, its optimiser and
its batch are the same, its prior is Normal, and its loss is NumPyro's ``Trace_ELBO``.
Runs are counted per datum: one with its gradient is 1, and one without is 1/3.
Objectives run with a Normal prior too, which separates the cost of the sampler from
that of a learned prior.

Medians of steps in turn, after one to warm up; compilation is timed separately.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from _report import start
from _timing import Compiled, compiled, median_seconds
from numpyro.infer import SVI, Trace_ELBO

import numpyro_kaem as kaem
from numpyro_kaem.objectives import (
    AmortisedELBO,
    ImportanceMLE,
    LangevinMLE,
    ThermodynamicMLE,
)

NUM_DATA, BATCH, NUM_LATENTS = 1400, 200, 8
PRIORS = ("normal", "independent", "mixture")


class Encoder(eqx.Module):
    """Perceptron from images to means and log scales."""

    network: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        self.network = eqx.nn.MLP(64, 2 * NUM_LATENTS, 64, 1, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Encode: (num_images, 8, 8) -> (num_images, 2 * NUM_LATENTS)."""
        return jax.vmap(self.network)(x.reshape(-1, 64))


def make_model(name: str) -> kaem.KAEM:
    """Model of digits with one of the priors."""
    basis, reference = kaem.BSpline(-6.0, 6.0, 24), dist.Normal(0.0, 1.0)
    key_prior, key_decoder = jax.random.split(jax.random.key(0))
    if name == "normal":
        prior = reference.expand([NUM_LATENTS]).to_event(1)
    elif name == "independent":
        energy = kaem.Energy.init(key_prior, basis, (NUM_LATENTS,))
        prior = kaem.KAEMPrior(energy, reference).to_event(1)
    else:
        energy = kaem.Energy.init(key_prior, basis, (10, NUM_LATENTS))
        prior = dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.zeros(10)),
            kaem.KAEMPrior(energy, reference).to_event(1),
        )
    decoder = kaem.KANDecoder(key_decoder, NUM_LATENTS, (8, 8), hidden=(64,))
    return kaem.KAEM(prior, decoder, kaem.NormalLikelihood(0.2, learn_scale=True))


def objectives(quick: bool) -> dict[str, tuple[Any, float]]:
    """Objectives, and how often each runs the decoder per datum of the batch."""
    particles = 4 if quick else 12
    steps = particles - 2
    rungs, sweeps, moves = (2, 1, 2) if quick else (4, 2, 4)
    encoder = Encoder(jax.random.key(1))
    population = ThermodynamicMLE(
        rungs, num_sweeps=sweeps, num_local_steps=moves, power=2.0
    )
    return {
        "AmortisedELBO": (AmortisedELBO(encoder, num_particles=particles), particles),
        "ImportanceMLE, own proposals": (
            ImportanceMLE(particles, share_proposals=False),
            particles,
        ),
        "ImportanceMLE, shared": (ImportanceMLE(particles * BATCH), particles),
        # At the start, after each step, and for the gradient of the objective.
        "LangevinMLE, persistent": (LangevinMLE(steps), steps + 2),
        "LangevinMLE, short runs": (LangevinMLE(steps, persistent=False), steps + 2),
        # As above at all temperatures but the first, and likelihoods for swaps at all.
        "ThermodynamicMLE": (
            population,
            sweeps * ((rungs - 1) * (moves + 1) + rungs / 3 + 1),
        ),
    }


def make_step(model: kaem.KAEM, guide: Callable, loss, images: jax.Array) -> Compiled:
    """Compiled training step."""
    svi = SVI(model, guide, optax.adam(1e-3), loss=loss)
    state = jax.jit(lambda key: svi.init(key, images, subsample_size=BATCH))(
        jax.random.key(2)
    )

    def update(state, images):
        return svi.update(state, images, subsample_size=BATCH)

    return compiled(update, state, images)


def main() -> None:
    """Print and write the table."""
    report = start("training", __doc__)
    report.heading()
    quick = report.quick
    repeats = 7 if quick else 25
    images = jax.random.uniform(jax.random.key(3), (NUM_DATA, 8, 8))
    models = {name: make_model(name) for name in (PRIORS[:2] if quick else PRIORS)}
    encoder = AmortisedELBO(Encoder(jax.random.key(1)))
    print(f"{NUM_DATA} images of 8 x 8, batches of {BATCH}, {NUM_LATENTS} latents")
    steps: dict[Any, Compiled] = {}
    table = objectives(quick)
    normal = models["normal"]
    for num_draws in sorted({round(count) for _, count in table.values()}):
        steps[num_draws] = make_step(
            normal, encoder.guide(normal), Trace_ELBO(num_particles=num_draws), images
        )
    for name, (objective, _) in table.items():
        for prior, model in models.items():
            steps[name, prior] = make_step(
                model, objective.guide(model), objective, images
            )
    seconds = median_seconds(steps, repeats)
    for name, (_, count) in table.items():
        for prior in models:
            beside = round(count)
            report.compare(
                f"{name}, {prior}, for a run of the decoder",
                f"autoencoder of {beside} draws",
                seconds[name, prior] / count,
                seconds[beside] / beside,
                compile_seconds=steps[name, prior].compile_seconds,
                scratch_megabytes=steps[name, prior].scratch_megabytes,
                note=f"{count:.1f} runs, {1e3 * seconds[name, prior]:.1f} ms a step",
            )
    report.save()


if __name__ == "__main__":
    main()
