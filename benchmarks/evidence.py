"""Evidence and weights of two modes, and BlackJAX's tempered sequential Monte Carlo.

The posterior is a mixture of two Normals, with weights .8 and .2, and the prior is
Normal(0, 1) in each dimension: weights and evidence are known. Both samplers run
several times with new keys, compiled beforehand. For comparison, the time of a run is
multiplied by its mean squared error over a target: the time of as many independent
runs, averaged, as reach the target. Particles move by the same algorithm, MALA, with as
many steps per temperature as the population takes between swaps. The population's time
includes its warm-up, which adapts the step sizes and the temperature ladder.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _report import Report, start
from blackjax.smc import resampling

from numpyro_kaem.infer import AnnealedLangevin
from numpyro_kaem.infer.annealed import AnnealedState
from numpyro_kaem.infer.evidence import combine, steppingstone

MASS, PLACE, NOISE = 0.8, 1.0, 0.3
NUM_MOVES, NUM_CHAINS = 5, 16
# Target root mean squared errors.
GOALS = {"evidence": 0.05, "mass": 0.02}


def log_likelihood(z: jax.Array) -> jax.Array:
    """Log likelihood of a vector of latents, near a point or its opposite."""
    normal = dist.Normal(0.0, NOISE).expand(z.shape).to_event(1)
    first = jnp.log(MASS) + normal.log_prob(z - PLACE)
    return jnp.logaddexp(first, jnp.log1p(-MASS) + normal.log_prob(z + PLACE))


def exact_log_evidence(dim: int) -> float:
    """Log density of either point under the prior and the noise."""
    marginal = dist.Normal(0.0, (1 + NOISE**2) ** 0.5)
    return dim * float(marginal.log_prob(PLACE))


def population(dim: int, num_samples: int) -> Callable:
    """Replica exchange: from a key to the log evidence and the weight."""

    def model() -> None:
        prior = dist.Normal(0.0, 1.0).expand([dim]).to_event(1)
        numpyro.factor("likelihood", log_likelihood(numpyro.sample("z", prior)))

    num_warmup = num_samples
    kernel = AnnealedLangevin(model, num_temperatures=10, num_local_steps=NUM_MOVES)

    def step(
        state: AnnealedState, _: None
    ) -> tuple[AnnealedState, tuple[jax.Array, jax.Array]]:
        state = kernel.sample(state, (), {})
        return state, (state.z["z"][0] > 0, state.replica_log_likelihood)

    # As in MCMC, but compiled once for all keys.
    @jax.jit
    @jax.vmap
    def chain(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        state = kernel.init(key, num_warmup, None, (), {})
        state, _ = jax.lax.scan(step, state, length=num_warmup)
        state, (mode, rungs) = jax.lax.scan(step, state, length=num_samples)
        return jnp.mean(mode), state.temperatures, rungs

    def run(key: jax.Array) -> tuple[float, float]:
        mass, *rungs = map(np.asarray, chain(jax.random.split(key, NUM_CHAINS)))
        estimates = [steppingstone(*of_chain) for of_chain in zip(*rungs, strict=True)]
        return float(combine(estimates)[0].value), float(mass.mean())

    return run


def particles(dim: int, num_particles: int) -> Callable:
    """Tempered sequential Monte Carlo, likewise."""
    prior = dist.Normal(0.0, 1.0).expand([dim]).to_event(1)
    move = blackjax.mala.build_kernel()
    # The best of five tried: one step size for all temperatures, not adapted.
    step_size = 2 * NOISE**2 * dim ** (-1 / 3)
    algorithm = blackjax.adaptive_tempered_smc(
        prior.log_prob,
        log_likelihood,
        move,
        blackjax.mala.init,
        {"step_size": jnp.array([step_size])},
        resampling.systematic,
        target_ess=0.5,
        num_mcmc_steps=NUM_MOVES,
    )

    @jax.jit
    def compiled(key: jax.Array) -> tuple[Any, jax.Array]:
        key_start, key_run = jax.random.split(key)
        state = algorithm.init(prior.sample(key_start, (num_particles,)))

        def step(carry: tuple) -> tuple:
            state, key, total = carry
            key, key_step = jax.random.split(key)
            state, info = algorithm.step(key_step, state)
            return state, key, total + info.log_likelihood_increment

        state, _, total = jax.lax.while_loop(
            lambda carry: carry[0].tempering_param < 1, step, (state, key_run, 0.0)
        )
        weights = state.weights
        return total, jnp.sum(weights * (state.particles[:, 0] > 0))

    def run(key: jax.Array) -> tuple[float, float]:
        evidence, mass = compiled(key)
        return float(evidence), float(mass)

    return run


def compare(report: Report, dim: int, sizes: dict, num_runs: int) -> None:
    """Both samplers on one target."""
    runs = {
        "population": population(dim, sizes["population"]),
        "particles": particles(dim, sizes["particles"]),
    }
    truth = np.array([exact_log_evidence(dim), MASS])
    compiling, seconds, errors = {}, {}, {}
    for name, run in runs.items():
        begin = time.perf_counter()
        run(jax.random.key(0))
        compiling[name] = time.perf_counter() - begin
        times, found = [], []
        for key in jax.random.split(jax.random.key(1), num_runs):
            begin = time.perf_counter()
            found.append(run(key))
            times.append(time.perf_counter() - begin)
        seconds[name] = float(np.median(times))
        errors[name] = np.mean((np.array(found) - truth) ** 2, axis=0)
    for column, (quantity, goal) in enumerate(GOALS.items()):
        needed = {
            name: seconds[name] * float(errors[name][column]) / goal**2 for name in runs
        }
        rms = {name: float(errors[name][column]) ** 0.5 for name in runs}
        report.compare(
            f"{quantity} to {goal:g}, two modes in {dim} dimensions",
            "BlackJAX's tempered SMC",
            needed["population"],
            needed["particles"],
            compile_seconds=compiling["population"],
            note=(
                f"a run {seconds['population']:.2f} s, error {rms['population']:.3f}; "
                f"theirs {seconds['particles']:.2f} s, {rms['particles']:.3f}"
            ),
        )


def main() -> None:
    """Print and write the table."""
    report = start("evidence", __doc__)
    report.heading()
    warnings.simplefilter("ignore")
    sizes = {"population": 500, "particles": 10_000}
    if report.quick:
        sizes = {name: size // 20 for name, size in sizes.items()}
    for dim in (2,) if report.quick else (2, 10, 30):
        compare(report, dim, sizes, 3 if report.quick else 20)
    report.save()


if __name__ == "__main__":
    main()
