"""Time of a population's step compared with that of one MALA chain.

A step of the population is one local move at each of 16 rungs, the evaluation of their
likelihoods, and the swaps. It should take less than 16 times a step of one chain: that
is the gain of vectorising. Medians of runs of the compiled sampler within one process;
the time to compile is printed separately. "5 moves" are five local moves per swap, the
default; the time is per move.
"""

import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from _report import start
from numpyro.infer import MCMC

from numpyro_kaem.infer import MALA, AnnealedLangevin

NUM_TEMPERATURES = 16


def regression(covariates: jax.Array, response: jax.Array) -> None:
    """Logistic regression."""
    prior = dist.Normal(0.0, 1.0).expand([covariates.shape[1]]).to_event(1)
    weights = numpyro.sample("weights", prior)
    logits = covariates @ weights
    numpyro.sample("response", dist.Bernoulli(logits=logits), obs=response)


def seconds(kernel, num_steps: int, repeats: int, *data: jax.Array) -> tuple:
    """Time to compile, and the median time of a step after warm-up."""
    mcmc = MCMC(kernel, num_warmup=200, num_samples=1, progress_bar=False)
    mcmc.warmup(jax.random.key(0), *data)

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(
            0, num_steps, lambda _, state: kernel.sample(state, data, {}), state
        )

    start = time.perf_counter()
    compiled = run.lower(mcmc.last_state).compile()
    compiling = time.perf_counter() - start
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(mcmc.last_state))
        times.append(time.perf_counter() - start)
    return compiling, statistics.median(times[1:]) / num_steps


def main() -> None:
    """Print and write the table."""
    report = start("annealed", __doc__)
    report.heading()
    quick = report.quick
    warnings.simplefilter("ignore")
    repeats = 3 if quick else 7
    for size, dim in [(100, 5)] if quick else [(100, 5), (1000, 20), (10_000, 20)]:
        num_steps = 200_000 // size
        key_covariates, key_response = jax.random.split(jax.random.key(1))
        covariates = jax.random.normal(key_covariates, (size, dim))
        logits = covariates @ jnp.linspace(-1.0, 1.0, dim)
        response = dist.Bernoulli(logits=logits).sample(key_response)
        chain = None
        kernels = {"MALA, one chain": (MALA(regression), 1)}
        for moves in (1, 5):
            kernel = AnnealedLangevin(
                regression, num_temperatures=NUM_TEMPERATURES, num_local_steps=moves
            )
            label = f"population of {NUM_TEMPERATURES}, {moves} moves"
            kernels[label] = (kernel, moves)
        for name, (kernel, moves) in kernels.items():
            compiling, step = seconds(kernel, num_steps, repeats, covariates, response)
            step /= moves
            chain = chain or step
            if name != "MALA, one chain":
                report.compare(
                    f"a step, {size} x {dim}, {name}",
                    "MALA, one chain",
                    step,
                    chain,
                    at_most=NUM_TEMPERATURES,
                    compile_seconds=compiling,
                )
    report.save()


if __name__ == "__main__":
    main()
