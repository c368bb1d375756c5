"""What the benchmarks share: fair times, and where they were taken."""

import platform
import statistics
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jaxlib
import numpyro

import numpyro_kaem


def machine() -> str:
    """Versions and device, in a line."""
    device = jax.devices()[0]
    return (
        f"numpyro_kaem {numpyro_kaem.__version__}, numpyro {numpyro.__version__}, jax "
        f"{jax.__version__}, jaxlib {jaxlib.__version__}, Python "
        f"{platform.python_version()}; {device.platform} ({device.device_kind}), "
        f"{platform.machine()}"
    )


def compile_seconds(function: Callable, *args: Any) -> tuple[Callable, float]:
    """Compile a function, and the time that tracing and compiling it took."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    return compiled, time.perf_counter() - start


def median_seconds(
    functions: dict[Hashable, Callable[[], Any]], repeats: int
) -> dict[Hashable, float]:
    """Median wall time of each compiled function, after one call to warm it up.

    They take turns, so that whatever else the machine does falls on all alike.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
