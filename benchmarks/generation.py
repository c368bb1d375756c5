"""Draws from the model, compared with its decoder and with a prior that needs MCMC.

``KAEM.sample`` is one compiled pass: uniform numbers, the inverse of each distribution
function, the decoder, the noise. It is compared with

- the decoder alone, on given latents;
- a neural energy prior whose draws take 60 steps of the Langevin algorithm, with a
  network of two layers of 200 (Pang et al. 2020), and the same decoder;
- the published inversion (``interpolated``): cumulated weights of 100 nodes with linear
  interpolation, whose draws do not follow their density.

The model is trained, so whatever depends on its parameters alone is computed once.
"Longest loop" is that of the compiled program, random bits aside: for exact draws a
bisection among panels, or one step per dimension. Medians of draws in turn, after one
of each to warm up.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _report import Report, start
from _timing import Compiled, compiled, median_seconds

import numpyro_kaem as kaem
from numpyro_kaem._quadrature import gauss_legendre
from numpyro_kaem.distributions import DeepEnergyPrior

NUM_LATENTS, NUM_NODES = 8, 100
# The size used most in the paper: 41 rows of 20 densities.
ROWS, COLUMNS = 41, 20
NEURAL = "neural, 60 steps"
MODELS = ("independent", "mixture", "kart", "autoregressive", NEURAL)


def make_model(name: str) -> kaem.KAEM:
    """Model of digits with one of the priors."""
    basis, reference = kaem.BSpline(-6.0, 6.0, 24), dist.Normal(0.0, 1.0)
    key, key_decoder = jax.random.split(jax.random.key(0))
    joint, num_latents = None, NUM_LATENTS
    if name == "independent":
        energy = kaem.Energy.init(key, basis, (NUM_LATENTS,), scale=1.0)
        prior = kaem.KAEMPrior(energy, reference)
    elif name == "mixture":
        energy = kaem.Energy.init(key, basis, (10, NUM_LATENTS), scale=1.0)
        prior = dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.zeros(10)),
            kaem.KAEMPrior(energy, reference).to_event(1),
        )
    elif name == "kart":
        num_latents, joint = 2 * NUM_LATENTS + 1, "kart"
        energy = kaem.Energy.init(key, basis, (num_latents, NUM_LATENTS), scale=1.0)
        prior = kaem.KAEMPrior(energy, reference)
    elif name == "autoregressive":
        conditioner = kaem.MaskedConditioner(key, NUM_LATENTS, basis.num_features)
        prior = kaem.AutoregressiveKAEMPrior(basis, conditioner, reference)
    else:
        prior = DeepEnergyPrior.init(key, NUM_LATENTS, width=200, depth=2)
    decoder = kaem.KANDecoder(key_decoder, num_latents, (8, 8), hidden=(64,))
    return kaem.KAEM(prior, decoder, kaem.NormalLikelihood(0.2), joint=joint)


def interpolated(energy: kaem.Energy, key: jax.Array, num_samples: int) -> jax.Array:
    """Draw a tilted uniform density the published way, ``(num_samples, *batch)``."""
    x, weights = gauss_legendre(NUM_NODES)
    low, high = np.asarray(energy.basis.low), np.asarray(energy.basis.high)
    nodes = jnp.asarray(low + (high - low) * (x + 1) / 2, energy.dtype)
    shape = energy.batch_shape
    expand = (slice(None), *[None] * len(shape))
    values = energy(nodes[expand])
    mass = jnp.asarray(weights, energy.dtype)[expand] * jnp.exp(values - values.max(0))
    below = jnp.cumsum(mass, 0) / mass.sum(0)
    u = jax.random.uniform(key, (num_samples, *shape), energy.dtype)
    # By comparison with all nodes, which is faster here than bisection.
    upper = jnp.sum(below[:, None] < u, 0).clip(1, NUM_NODES - 1)
    ends = [jnp.take_along_axis(below, index, 0) for index in (upper - 1, upper)]
    share = ((u - ends[0]) / (ends[1] - ends[0])).clip(0.0, 1.0)
    return nodes[upper - 1] + share * (nodes[upper] - nodes[upper - 1])


def longest_loop(program: Any) -> float:
    """Count the steps of a program's longest loop, infinite if they depend on data."""
    longest = 0.0
    for equation in program.eqns:
        if equation.primitive.name == "while":
            return math.inf
        if equation.primitive.name == "scan":
            longest = max(longest, equation.params["length"])
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(inner):
                longest = max(longest, longest_loop(getattr(inner, "jaxpr", inner)))
    return longest


def _is_program(leaf: Any) -> bool:
    return hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")


def compare_models(report: Report, sizes: list[int], repeats: int) -> None:
    """Draws of the model, its decoder alone, and draws of the neural prior."""
    print(f"Draws of {NUM_LATENTS} latents (kart: of 17 rows), decoded to 8 x 8")
    for size in sizes:
        functions: dict[Any, Compiled] = {}
        counts: dict[str, float] = {}
        for name in MODELS:
            model = make_model(name)
            key, z = jax.random.key(1), model.latents(jax.random.key(2), size)

            def sample(key: jax.Array, model=model, size=size) -> jax.Array:
                return model.sample(key, size)

            def draw(key: jax.Array, model=model, size=size) -> jax.Array:
                return model.latents(key, size)

            counts[name] = longest_loop(jax.make_jaxpr(sample)(key).jaxpr)
            functions[name] = compiled(sample, key)
            functions[name, "latents"] = compiled(draw, key)
            functions[name, "decoder"] = compiled(
                lambda z, model=model: model.decode(z), z
            )
        seconds = median_seconds(functions, repeats)
        for name in MODELS:
            share = seconds[name, "latents"] / seconds[name]
            report.compare(
                f"generate {size:,}, {name}",
                "its decoder",
                seconds[name],
                seconds[name, "decoder"],
                compile_seconds=functions[name].compile_seconds,
                scratch_megabytes=functions[name].scratch_megabytes,
                note=f"latents {100 * share:.0f} %, longest loop {counts[name]:.0f}",
            )
        for name in MODELS[:-1]:
            report.compare(
                f"generate {size:,}, {name}",
                "60 Langevin steps and decoder",
                seconds[name],
                seconds[NEURAL],
                at_most=0.5,
            )
            report.compare(
                f"draw {size:,} latent vectors, {name}",
                "60 Langevin steps",
                seconds[name, "latents"],
                seconds[NEURAL, "latents"],
                at_least=50,
            )


def compare_inversion(report: Report, sizes: list[int], repeats: int) -> None:
    """Exact and interpolated draws, with the table made in the same pass."""
    print(f"Inverse transform of {ROWS} x {COLUMNS} densities of 20 features each")
    basis = kaem.RBF(-1.2, 1.2, 20)
    energy = kaem.Energy.init(jax.random.key(3), basis, (ROWS, COLUMNS), scale=1.0)
    prior = kaem.KAEMPrior(energy)
    key = jax.random.key(4)
    prior.log_normalizer  # noqa: B018 (makes the table)
    for size in sizes:

        def exact(energy: kaem.Energy, key: jax.Array, size=size) -> jax.Array:
            return kaem.KAEMPrior(energy).sample(key, (size,))

        def tabulated(energy: kaem.Energy, key: jax.Array, size=size) -> jax.Array:
            return prior.sample(key, (size,))

        def published(energy: kaem.Energy, key: jax.Array, size=size) -> jax.Array:
            return interpolated(energy, key, size)

        ways = {
            "interpolated": published,
            "table made too": exact,
            "table at hand": tabulated,
        }
        functions = {name: compiled(way, energy, key) for name, way in ways.items()}
        seconds = median_seconds(functions, repeats)
        for name in list(ways)[1:]:
            report.compare(
                f"draw {size:,} x {ROWS} x {COLUMNS}, {name}",
                "interpolated, as published",
                seconds[name],
                seconds["interpolated"],
                compile_seconds=functions[name].compile_seconds,
                scratch_megabytes=functions[name].scratch_megabytes,
            )


def main() -> None:
    """Print and write two tables."""
    report = start("generation", __doc__)
    report.heading()
    repeats = 7 if report.quick else 15
    compare_models(report, [100] if report.quick else [1, 100, 1000, 10_000], repeats)
    compare_inversion(report, [100] if report.quick else [1, 100, 1000], repeats)
    report.save()


if __name__ == "__main__":
    main()
