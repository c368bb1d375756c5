"""Time and memory of exact draws beside ``jax.random.normal`` of the same shape.

JAX draws Normal numbers by inversion too, so that is the floor. Medians; the table of a
prior is made beforehand, and its cost is printed apart. Memory is what the compiled
function allocates beyond its result, as its compiler reports it.
"""

import argparse
import statistics
import time

import jax
import numpyro.distributions as dist

import numpyro_kaem as kaem


def median_seconds(function, *args, repeats: int) -> float:
    """Median wall time of a compiled function, after one call to warm it up."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_prior(num_components: int, reference=None) -> kaem.KAEMPrior:
    """Priors with energies of the size that training finds: standard deviation 1.5."""
    basis = kaem.RBF(-1.2, 1.2, num_basis=20)
    energy = kaem.Energy.init(jax.random.key(0), basis, (num_components,), scale=1.5)
    return kaem.KAEMPrior(energy, reference, refinement=1)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the draws")
    quick = parser.parse_args().quick
    repeats = 3 if quick else 9
    print(f"jax {jax.__version__} on {jax.devices()[0].platform}")
    print(f"{'draws':42s} {'ns/draw':>8s} {'/normal':>8s} {'scratch MB':>11s}")
    shapes = [(820, 100 if quick else 10_000), (1, 100_000 if quick else 10_000_000)]
    for num_components, num_samples in shapes:
        size = num_components * num_samples
        shape = (num_samples, num_components)
        rows = [
            (
                "jax.random.normal",
                jax.jit(lambda key, shape=shape: jax.random.normal(key, shape)),
                (),
            )
        ]
        references = {"uniform": None, "normal": dist.Normal(0.1, 0.7)}
        for name, reference in references.items():
            prior = make_prior(num_components, reference)
            prior.log_normalizer  # noqa: B018 (makes the table)
            rows.append(
                (
                    f"KAEMPrior, {name} reference",
                    # The key is the only argument: the table is a constant.
                    jax.jit(lambda key, p=prior, n=num_samples: p.sample(key, (n,))),
                    (),
                )
            )
        floor = None
        for name, function, args in rows:
            key = jax.random.key(1)
            seconds = median_seconds(function, key, *args, repeats=repeats)
            floor = floor or seconds
            compiled = function.lower(key, *args).compile()
            scratch = compiled.memory_analysis().temp_size_in_bytes / 1e6
            label = f"{num_components} x {num_samples:,} {name}"
            print(
                f"{label:42s} {1e9 * seconds / size:8.1f} {seconds / floor:8.2f} "
                f"{scratch:11.1f}"
            )
    energy = make_prior(820).energy
    set_up = jax.jit(lambda e: kaem.KAEMPrior(e, refinement=1)._table)
    seconds = median_seconds(set_up, energy, repeats=repeats)
    print(f"table of 820 densities: {1e3 * seconds:.1f} ms")


if __name__ == "__main__":
    main()
