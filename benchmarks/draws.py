"""Exact draws, ``jax.random.normal``, SciPy's inverter and NumPyro's mixture.

JAX draws Normal numbers by inversion too, so that is the lower limit;
``jax.random.uniform`` shows what the random bits alone take. The table of a prior is
made beforehand, and its cost, compared with that of SciPy's
``NumericalInversePolynomial`` (UNU.RAN's PINV, the best inverter on a CPU), is a row of
its own. Energies are of the size that training finds: 20 radial functions with
coefficients of standard deviation 1.5.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _report import Report, start
from _timing import Compiled, compiled, median_seconds
from scipy.stats.sampling import NumericalInversePolynomial

import numpyro_kaem as kaem

LOW, HIGH, NUM_BASIS = -1.2, 1.2, 20
# What PINV's own documentation suggests for double precision; ours is about 1e-7.
U_RESOLUTION = 1e-10


def make_prior(
    batch_shape: tuple[int, ...], reference: dist.Distribution | None = None
) -> kaem.KAEMPrior:
    """Priors whose table is made."""
    basis = kaem.RBF(LOW, HIGH, NUM_BASIS)
    energy = kaem.Energy.init(jax.random.key(0), basis, batch_shape, scale=1.5)
    prior = kaem.KAEMPrior(energy, reference, refinement=1)
    prior.icdf(0.5)
    return prior


class SciPyDensity:
    """The unnormalised density of one prior, as SciPy's inverter takes it."""

    def __init__(self, coefficients: np.ndarray) -> None:
        self.coefficients = np.asarray(coefficients, float)
        self.centres = np.linspace(LOW, HIGH, NUM_BASIS)
        self.width = (HIGH - LOW) / (NUM_BASIS - 1)

    def pdf(self, z: float) -> float:
        """Density up to a constant."""
        features = np.exp(-0.5 * ((z - self.centres) / self.width) ** 2)
        return np.exp(features @ self.coefficients)


def make_inverter(coefficients: np.ndarray) -> NumericalInversePolynomial:
    """Set up SciPy's inverter."""
    density = SciPyDensity(coefficients)
    return NumericalInversePolynomial(
        density, domain=(LOW, HIGH), u_resolution=U_RESOLUTION
    )


def draw(prior: dist.Distribution, num_samples: int) -> Compiled:
    """Draws from a prior; the key is the only argument, so its table is a constant."""
    return compiled(lambda key: prior.sample(key, (num_samples,)), jax.random.key(1))


def many_densities(report: Report, repeats: int) -> None:
    """Draws of 820 densities, and many of one."""
    for size, num_samples in ((820, 10_000), (1, 10_000_000)):
        compare_draws(
            report, size, num_samples // (100 if report.quick else 1), repeats
        )


def compare_draws(report: Report, size: int, num_samples: int, repeats: int) -> None:
    """Draws of densities and random numbers, and of one density and PINV."""
    batch_shape = () if size == 1 else (size,)
    shape = (num_samples, *batch_shape)
    work = f"draw {size} x {num_samples:,}"
    key = jax.random.key(1)
    functions: dict[str, Callable] = {
        "jax.random.normal": compiled(lambda k: jax.random.normal(k, shape), key),
        "jax.random.uniform": compiled(lambda k: jax.random.uniform(k, shape), key),
        "Uniform": draw(make_prior(batch_shape), num_samples),
        "Normal": draw(make_prior(batch_shape, dist.Normal(0.1, 0.7)), num_samples),
    }
    if size == 1:
        inverter = make_inverter(np.asarray(make_prior(()).energy.coefficients))
        random = np.random.default_rng(0)
        functions["PINV"] = lambda: inverter.rvs(shape, random_state=random)
    seconds = median_seconds(functions, repeats)

    def compare(name: str, peer: str, peer_name: str, at_most: float | None) -> None:
        ours: Any = functions[name]
        report.compare(
            f"{work}, {name} reference",
            peer_name,
            seconds[name],
            seconds[peer],
            at_most=at_most,
            compile_seconds=ours.compile_seconds,
            scratch_megabytes=ours.scratch_megabytes,
            note=f"{1e9 * seconds[name] / (size * num_samples):.1f} ns a draw",
        )

    normal, uniform = "jax.random.normal", "jax.random.uniform"
    compare("Uniform", normal, normal, 2.5 if size > 1 else None)
    compare("Normal", normal, normal, 4 if size > 1 else None)
    compare("Uniform", uniform, uniform, None)
    if size == 1:
        compare("Uniform", "PINV", "SciPy PINV", 2)


def set_up(report: Report, repeats: int) -> None:
    """Tables of 820 densities, and as many set-ups of PINV."""
    energy = make_prior((820,)).energy
    for name, reference in (("Uniform", None), ("Normal", dist.Normal(0.1, 0.7))):
        ours = compiled(
            lambda e, r=reference: kaem.KAEMPrior(e, r, refinement=1)._table, energy
        )
        few = np.asarray(energy.coefficients[: 3 if report.quick else 10])
        functions: dict[str, Callable] = {
            "ours": ours,
            "PINV": lambda few=few: [make_inverter(c) for c in few],
        }
        seconds = median_seconds(functions, repeats)
        report.compare(
            f"set-up of 820 densities, {name} reference",
            "SciPy PINV",
            seconds["ours"],
            seconds["PINV"] * 820 / len(few),
            at_least=1000,
            compile_seconds=ours.compile_seconds,
            scratch_megabytes=ours.scratch_megabytes,
            note=f"PINV timed on {len(few)}",
        )


def mixtures(report: Report, repeats: int) -> None:
    """Mixtures of 20 components in 81 dimensions, the two forms that we draw."""
    num_samples = 200 if report.quick else 20_000
    logits = jax.random.normal(jax.random.key(2), (81, 20))
    key_loc, key_scale = jax.random.split(jax.random.key(3))
    normals = dist.Normal(
        jax.random.normal(key_loc, (81, 20)),
        jnp.exp(0.3 * jax.random.normal(key_scale, (81, 20))),
    )
    prior = make_prior((81, 20))
    joint = make_prior((20, 81)).to_event(1)
    priors = {
        "NumPyro": dist.MixtureSameFamily(dist.Categorical(logits=logits), normals),
        "KAEMMixture": kaem.KAEMMixture(logits, prior),
        "joint": dist.MixtureSameFamily(dist.Categorical(logits=logits[0]), joint),
        "NumPyro joint": dist.MixtureSameFamily(
            dist.Categorical(logits=logits[0]),
            dist.Normal(normals.loc.T, normals.scale.T).to_event(1),
        ),
    }
    functions = {name: draw(prior, num_samples) for name, prior in priors.items()}
    seconds = median_seconds(functions, repeats)
    report.compare(
        f"draw 81 mixtures of 20 x {num_samples:,}",
        "NumPyro mixture of 20 Normals",
        seconds["KAEMMixture"],
        seconds["NumPyro"],
        at_least=20,
        compile_seconds=functions["KAEMMixture"].compile_seconds,
        scratch_megabytes=functions["KAEMMixture"].scratch_megabytes,
        note=f"NumPyro takes {functions['NumPyro'].scratch_megabytes:.0f} MB",
    )
    report.compare(
        f"draw a mixture of 20 products of 81 x {num_samples:,}",
        "the same of Normals",
        seconds["joint"],
        seconds["NumPyro joint"],
        compile_seconds=functions["joint"].compile_seconds,
        scratch_megabytes=functions["joint"].scratch_megabytes,
        note="both NumPyro's MixtureSameFamily, which draws every component",
    )


def main() -> None:
    """Print and write the table."""
    report = start("draws", __doc__)
    report.heading()
    repeats = 3 if report.quick else 9
    many_densities(report, repeats)
    set_up(report, repeats)
    mixtures(report, 3 if report.quick else 7)
    report.save()


if __name__ == "__main__":
    main()
