"""Cost against size, one size varied at a time, and the slope on logarithmic axes.

A slope of 1 means proportional cost, 0 constant cost. It is that of a line through the
larger half of the sizes, where the fixed cost of a call matters little.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _report import Report, start
from _timing import Compiled, compiled, median_seconds
from numpyro.infer import MCMC
from numpyro.infer.mcmc import MCMCKernel

import numpyro_kaem as kaem
from numpyro_kaem.infer import (
    MALA,
    PCNL,
    ULA,
    AnnealedLangevin,
    AutoMALA,
    ImportanceSampling,
)

LOW, HIGH = -1.2, 1.2
# Run in a new process for one number of devices: a sharded batch of draws.
DEVICES = """
import jax, numpy as np, sys
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpyro_kaem as kaem
sys.path.insert(0, {folder!r})
from _timing import compiled, median_seconds
energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-1.2, 1.2, 20), (64,), scale=1.5)
prior = kaem.KAEMPrior(energy, refinement=1)
prior.icdf(0.5)
mesh = Mesh(np.array(jax.devices()), ("draws",))
keys = jax.random.split(jax.random.key(1), 8)
keys = jax.device_put(keys, NamedSharding(mesh, PartitionSpec("draws")))
run = compiled(jax.vmap(lambda key: prior.sample(key, ({size},))), keys)
print(median_seconds({{0: run}}, 5)[0])
"""


def make_energy(num_components: int = 1, num_basis: int = 20) -> kaem.Energy:
    """Energies of the size that training finds."""
    basis = kaem.RBF(LOW, HIGH, num_basis)
    shape = () if num_components == 1 else (num_components,)
    return kaem.Energy.init(jax.random.key(0), basis, shape, scale=1.5)


def draw(
    num_samples: int, num_components: int = 1, num_basis: int = 20, refinement: int = 1
) -> Compiled:
    """Draws with the table given."""
    energy = make_energy(num_components, num_basis)
    prior = kaem.KAEMPrior(energy, refinement=refinement)
    prior.icdf(0.5)
    return compiled(lambda key: prior.sample(key, (num_samples,)), jax.random.key(1))


def tabulate(num_components: int, num_basis: int = 20, refinement: int = 1) -> Compiled:
    """Tables with normalizing constants."""
    return compiled(
        lambda e: kaem.KAEMPrior(e, refinement=refinement)._table,
        make_energy(num_components, num_basis),
    )


def log_prob(num_basis: int, kind: type) -> Compiled:
    """Log densities of a hundred thousand points."""
    basis = kind(LOW, HIGH, num_basis)
    energy = kaem.Energy.init(jax.random.key(0), basis, scale=1.5)
    prior = kaem.KAEMPrior(energy, refinement=1)
    z = jax.random.uniform(jax.random.key(1), (100_000,), minval=LOW, maxval=HIGH)
    prior.log_normalizer  # noqa: B018 (made once)
    return compiled(prior.log_prob, z)


def regression(covariates: jax.Array, response: jax.Array) -> None:
    """Logistic regression."""
    prior = dist.Normal(0.0, 1.0).expand([covariates.shape[1]]).to_event(1)
    weights = numpyro.sample("weights", prior)
    logits = covariates @ weights
    numpyro.sample("response", dist.Bernoulli(logits=logits), obs=response)


def make_data(dim: int) -> tuple[jax.Array, jax.Array]:
    """Covariates and responses."""
    keys = jax.random.split(jax.random.key(2))
    covariates = jax.random.normal(keys[0], (200, dim))
    logits = covariates @ jnp.linspace(-1.0, 1.0, dim)
    return covariates, dist.Bernoulli(logits=logits).sample(keys[1])


def population(num_temperatures: int, dim: int = 5) -> Compiled:
    """Ten steps of replica exchange."""
    kind = partial(AnnealedLangevin, num_temperatures=num_temperatures)
    return ten_steps(kind, dim)


def ten_steps(kind: Callable[..., MCMCKernel], dim: int) -> Compiled:
    """Ten steps of a kernel after a short warm-up."""
    data = make_data(dim)
    kernel = kind(regression)
    mcmc = MCMC(kernel, num_warmup=20, num_samples=1, progress_bar=False)
    mcmc.warmup(jax.random.key(0), *data)

    def steps(state):
        return jax.lax.fori_loop(
            0, 10, lambda _, state: kernel.sample(state, data, {}), state
        ).z

    return compiled(steps, mcmc.last_state)


def particles(num_samples: int) -> Callable:
    """Run importance sampling from the prior, diagnostics included."""
    data = make_data(2)
    sampler = ImportanceSampling(regression, num_samples=num_samples)
    return lambda: sampler.run(jax.random.key(0), *data).log_weights


def sweep(
    report: Report,
    work: str,
    unit: str,
    sizes: Iterable[int],
    make: Callable[[int], Callable],
    repeats: int,
) -> None:
    """Time each size, print a row and record the slope."""
    sizes = list(sizes)
    functions = {size: make(size) for size in sizes}
    seconds = median_seconds(functions, repeats)
    upper = sizes[len(sizes) // 2 :] if len(sizes) > 3 else sizes
    slope = np.polyfit(np.log(upper), np.log([seconds[s] for s in upper]), 1)[0]
    scratch = [getattr(functions[s], "scratch_megabytes", None) for s in sizes]
    report.record(
        work=work,
        unit=unit,
        sizes=sizes,
        seconds=[seconds[size] for size in sizes],
        scratch_megabytes=scratch,
        slope=slope,
    )
    times = "  ".join(f"{size:,}: {1e3 * seconds[size]:.2f}" for size in sizes)
    memory = [m for m in scratch if m is not None]
    most = f"; at most {max(memory):.0f} MB" if memory else ""
    print(f"{work}, ms by {unit}: {times}; slope {slope:.2f}{most}", flush=True)


def devices(report: Report, size: int, repeats: int) -> None:
    """Draws sharded over host devices, each number of devices in its own process."""
    del repeats
    counts, seconds = (1, 2), []
    folder = os.path.dirname(os.path.abspath(__file__))
    for count in counts:
        flags = f"--xla_force_host_platform_device_count={count}"
        done = subprocess.run(
            [sys.executable, "-c", DEVICES.format(size=size, folder=folder)],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            check=True,
            capture_output=True,
            text=True,
        )
        seconds.append(float(done.stdout))
    slope = np.polyfit(np.log(counts), np.log(seconds), 1)[0]
    work = f"draw 64 densities x {8 * size:,}"
    report.record(
        work=work, unit="devices", sizes=list(counts), seconds=seconds, slope=slope
    )
    times = "  ".join(
        f"{count}: {1e3 * s:.2f}" for count, s in zip(counts, seconds, strict=True)
    )
    print(
        f"{work}, ms by devices: {times}; slope {slope:.2f} (one device uses all cores)"
    )


def main() -> None:
    """Print and write every sweep."""
    warnings.simplefilter("ignore")
    report = start("scaling", __doc__)
    quick = report.quick
    repeats = 3 if quick else 7
    sweep(
        report,
        "draw one density",
        "draws",
        [10**k for k in range(3, 5 if quick else 9)],
        draw,
        repeats,
    )
    components = [1, 10, 100] if quick else [1, 10, 100, 1000, 10_000]
    sweep(
        report,
        "draw 100 from each density",
        "components",
        components,
        lambda size: draw(100, size),
        repeats,
    )
    sweep(report, "set-up", "components", components, tabulate, repeats)
    sizes = [5, 20] if quick else [5, 10, 20, 40, 80, 160]
    for kind in (kaem.RBF, kaem.BSpline):
        sweep(
            report,
            f"log_prob of 100,000 points, {kind.__name__}",
            "basis functions",
            sizes,
            partial(log_prob, kind=kind),
            repeats,
        )
    sweep(
        report,
        "set-up of 100 densities",
        "basis functions",
        sizes,
        lambda size: tabulate(100, size),
        repeats,
    )
    sweep(
        report,
        "draw 100,000 from one density",
        "parts of each panel",
        [1, 2] if quick else [1, 2, 4, 8],
        lambda size: draw(100_000, refinement=size),
        repeats,
    )
    sweep(
        report,
        "importance sampling, 200 observations",
        "particles",
        [1000, 4000] if quick else [1000, 16_000, 256_000],
        particles,
        repeats,
    )
    sweep(
        report,
        "10 steps of replica exchange",
        "temperatures",
        [4, 8] if quick else [4, 16, 64],
        population,
        repeats,
    )
    sweep(
        report,
        "10 steps of replica exchange at 8 temperatures",
        "dimensions",
        [5, 10] if quick else [5, 20, 80, 320],
        lambda dim: population(8, dim),
        repeats,
    )
    for kernel in (ULA, MALA, AutoMALA, PCNL):
        sweep(
            report,
            f"10 steps of {kernel.__name__}",
            "dimensions",
            [5, 10] if quick else [5, 20, 80, 320],
            partial(ten_steps, kernel),
            repeats,
        )
    devices(report, 1000 if quick else 20_000, repeats)
    report.save()


if __name__ == "__main__":
    main()
