"""Log densities, their gradients and those of draws, compared with mixtures and flows.

A KAEM density of 20 functions is compared with NumPyro's mixture of 20 Normals, which
has as many terms; its gradients with its values; the implicit gradient of draws with
the draws. Priors of vectors are compared with flowjax's masked autoregressive flow with
rational quadratic splines, and its coupling flow, with default settings.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from _report import Report, start
from _timing import Compiled, compiled, median_seconds
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow, masked_autoregressive_flow

import numpyro_kaem as kaem

LOW, HIGH, NUM_BASIS, NUM_DENSITIES = -1.2, 1.2, 20, 820


def make_energy(basis: kaem.bases.AbstractBasis, *shape: int) -> kaem.Energy:
    """Energies of the size that training finds."""
    return kaem.Energy.init(jax.random.key(0), basis, shape, scale=1.5)


def log_densities(report: Report, repeats: int) -> None:
    """Value and gradient at points, with fixed and with traced parameters."""
    num_points = 100 if report.quick else 2000
    shape = (num_points, NUM_DENSITIES)
    z = jax.random.uniform(jax.random.key(1), shape, minval=LOW, maxval=HIGH)
    keys = jax.random.split(jax.random.key(2), 3)
    components = (NUM_DENSITIES, 20)
    normals = dist.Normal(
        jax.random.uniform(keys[0], components, minval=LOW, maxval=HIGH),
        0.1 * jnp.exp(0.3 * jax.random.normal(keys[1], components)),
    )
    logits = jax.random.normal(keys[2], components)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), normals)
    bases = {
        "RBF": kaem.RBF(LOW, HIGH, NUM_BASIS),
        "B-spline": kaem.BSpline(LOW, HIGH, NUM_BASIS),
    }
    energies = {
        name: make_energy(basis, NUM_DENSITIES) for name, basis in bases.items()
    }
    priors = {
        name: kaem.KAEMPrior(energy, refinement=1) for name, energy in energies.items()
    }
    for prior in priors.values():
        prior.log_normalizer  # noqa: B018 (made once, as for a fixed prior)

    def total(prior: dist.Distribution, z: jax.Array) -> jax.Array:
        return prior.log_prob(z).sum()

    functions: dict[Any, Compiled] = {
        "mixture": compiled(mixture.log_prob, z),
        "mixture, gradient": compiled(jax.grad(partial(total, mixture)), z),
    }
    for name, prior in priors.items():

        def of_energy(energy: kaem.Energy, z: jax.Array) -> jax.Array:
            return total(kaem.KAEMPrior(energy, refinement=1), z)

        functions[name] = compiled(prior.log_prob, z)
        functions[name, "z"] = compiled(jax.grad(partial(total, prior)), z)
        energy = energies[name]
        functions[name, "traced"] = compiled(of_energy, energy, z)
        functions[name, "all"] = compiled(jax.grad(of_energy, (0, 1)), energy, z)
    seconds = median_seconds(functions, repeats)
    work = f"log_prob {NUM_DENSITIES} x {num_points:,}"
    rows = (
        ("", None, "mixture", "mixture of 20 Normals", 1),
        (", gradient in z", "z", None, "its value", 3),
        (", gradient in z", "z", "mixture, gradient", "gradient of the mixture", None),
        (
            ", gradient in all",
            "all",
            "traced",
            "its value, normalizing constant too",
            3,
        ),
    )
    for name in priors:
        for label, kind, beside, peer, at_most in rows:
            ours = (name, kind) if kind else name
            theirs = (name, beside) if beside == "traced" else beside or name
            report.compare(
                f"{work}, {name}{label}",
                peer,
                seconds[ours],
                seconds[theirs],
                at_most=at_most,
                compile_seconds=functions[ours].compile_seconds,
                scratch_megabytes=functions[ours].scratch_megabytes,
            )


def implicit_gradients(report: Report, repeats: int) -> None:
    """Time derivatives of draws with respect to all coefficients."""
    num_samples = 100 if report.quick else 2000
    energy = make_energy(kaem.RBF(LOW, HIGH, NUM_BASIS), NUM_DENSITIES)
    key = jax.random.key(1)

    def sample(energy: kaem.Energy, key: jax.Array) -> jax.Array:
        return kaem.KAEMPrior(energy, refinement=1).sample(key, (num_samples,))

    def forward(energy: kaem.Energy, key: jax.Array) -> tuple:
        return jax.jvp(lambda e: sample(e, key), (energy,), (energy,))

    def reverse(energy: kaem.Energy, key: jax.Array) -> tuple:
        return jax.value_and_grad(lambda e: jnp.sum(sample(e, key) ** 2))(energy)

    functions = {
        "sample": compiled(sample, energy, key),
        "forward": compiled(forward, energy, key),
        "reverse": compiled(reverse, energy, key),
    }
    seconds = median_seconds(functions, repeats)
    for name, at_most in (("forward", 2.5), ("reverse", 5)):
        report.compare(
            f"draw {NUM_DENSITIES} x {num_samples:,} and {name} gradient",
            "the draws, table made too",
            seconds[name],
            seconds["sample"],
            at_most=at_most,
            compile_seconds=functions[name].compile_seconds,
            scratch_megabytes=functions[name].scratch_megabytes,
        )


def compile_times(report: Report) -> None:
    """Time to compile draws, log density and gradients together."""
    key, times = jax.random.key(1), {}
    for size in (8, 820):

        def everything(energy: kaem.Energy, key: jax.Array) -> tuple:
            def loss(energy: kaem.Energy) -> tuple[jax.Array, jax.Array]:
                prior = kaem.KAEMPrior(energy, refinement=1)
                z = prior.sample(key, (100,))
                return jnp.sum(prior.log_prob(z)), z

            return jax.value_and_grad(loss, has_aux=True)(energy)

        energy = make_energy(kaem.RBF(LOW, HIGH, NUM_BASIS), size)
        jax.clear_caches()
        times[size] = compiled(everything, energy, key).compile_seconds
    print(f"to compile sample, log_prob and gradients: {times[820]:.1f} s (<= 5)")
    report.compare(
        "compile sample, log_prob, gradients: 820",
        "the same for 8",
        times[820],
        times[8],
        note="to take at most 5 s",
    )


def flows(report: Report, repeats: int) -> None:
    """Draws and log densities of priors of 20 latents."""
    dim, num_samples = 20, 200 if report.quick else 2000
    key, base = jax.random.key(1), Normal(jnp.zeros(dim))
    spline = RationalQuadraticSpline(knots=8, interval=4)
    basis, reference = kaem.BSpline(-4.0, 4.0, 20), dist.Normal(0.0, 1.0)
    mixing = dist.Categorical(logits=jnp.zeros(20))
    products = kaem.KAEMPrior(make_energy(basis, 20, dim), reference, refinement=1)
    conditioner = kaem.MaskedConditioner(key, dim, basis.num_features)
    priors = {
        "autoregressive flow": masked_autoregressive_flow(
            key, base_dist=base, transformer=spline
        ),
        "coupling flow": coupling_flow(key, base_dist=base, transformer=spline),
        "independent": kaem.KAEMPrior(
            make_energy(basis, dim), reference, refinement=1
        ).to_event(1),
        "mixture of 20": dist.MixtureSameFamily(mixing, products.to_event(1)),
        "autoregressive": kaem.AutoregressiveKAEMPrior(basis, conditioner, reference),
    }
    z = jax.random.normal(key, (num_samples, dim))
    draws = {
        n: compiled(lambda k, p=p: p.sample(k, (num_samples,)), key)
        for n, p in priors.items()
    }
    values = {n: compiled(lambda z, p=p: p.log_prob(z), z) for n, p in priors.items()}
    for work, functions in (("draw", draws), ("log_prob", values)):
        seconds = median_seconds(functions, repeats)
        for flow in list(priors)[:2]:
            for name in list(priors)[2:]:
                report.compare(
                    f"{work} {num_samples:,} x {dim} latents, {name}",
                    f"flowjax, {flow}",
                    seconds[name],
                    seconds[flow],
                    at_most=1,
                    compile_seconds=functions[name].compile_seconds,
                    scratch_megabytes=functions[name].scratch_megabytes,
                )


def main() -> None:
    """Print and write the table."""
    report = start("densities", __doc__)
    report.heading()
    repeats = 3 if report.quick else 9
    log_densities(report, repeats)
    implicit_gradients(report, repeats)
    flows(report, repeats)
    compile_times(report)
    report.save()


if __name__ == "__main__":
    main()
