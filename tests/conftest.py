"""Settings of the whole test run, made before JAX starts its backend."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Compiled code is forgotten after each file (below), and much of it is needed again. A
# folder for each worker: two that write the same file at once would damage it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(
        Path(__file__).parents[1]
        / ".pytest_cache/jax"
        / os.environ.get("PYTEST_XDIST_WORKER", "main")
    ),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import matplotlib
import numpyro
import pytest

# Two devices, so that `chain_method="parallel"` and sharding are tested on any machine.
numpyro.set_host_device_count(2)
matplotlib.use("Agg")


def pytest_addoption(parser):
    parser.addoption(
        "--long",
        action="store_true",
        help="run also what takes minutes, and all of many alike",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


# A process may have 65530 areas of memory by Linux's default, and one file may add tens
# of thousands. With this many, a process takes about 1.5 gigabytes.
MAX_MEMORY_MAPS = 12_000


def num_memory_maps():
    """How many areas of memory this process has; more than enough where unknown."""
    try:
        with Path("/proc/self/maps").open("rb") as maps:
            return sum(1 for _ in maps)
    except OSError:
        return MAX_MEMORY_MAPS + 1


@pytest.fixture(autouse=True, scope="module")
def compiled_code():
    """Forget compiled code after a file once there is much of it.

    Every compiled function holds some areas of memory, and a process that has no more
    of them left dies. What is forgotten is traced and compiled again.
    """
    yield
    if num_memory_maps() > MAX_MEMORY_MAPS:
        jax.clear_caches()


@pytest.fixture
def key():
    """The same random key for every test."""
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Whether this run computes in float64 (``JAX_ENABLE_X64=1``)."""
    return bool(jax.config.jax_enable_x64)
