"""Times of compiled functions, run in turn; compilation is timed separately."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax


@dataclass
class Compiled:
    """A compiled function with its arguments, and the time to compile it."""

    run: Callable[..., Any]
    arguments: tuple
    compile_seconds: float
    scratch_megabytes: float
    """Memory besides arguments and results, as the compiler reports."""

    def __call__(self) -> Any:
        """Run it."""
        return self.run(*self.arguments)


def compiled(function: Callable, *arguments: Any) -> Compiled:
    """Trace and compile a function of arrays."""
    start = time.perf_counter()
    run = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    analysis = run.memory_analysis()
    scratch = 0.0 if analysis is None else analysis.temp_size_in_bytes / 1e6
    return Compiled(run, arguments, seconds, scratch)


def median_seconds(
    functions: Mapping[Any, Callable[[], Any]], repeats: int
) -> dict[Any, float]:
    """Median wall time of each compiled function, after one call to warm it up.

    They alternate, so that other load on the machine affects all alike.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    times: dict[Any, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
