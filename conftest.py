"""Settings of every test run, made before JAX starts its backend.

Tests compile more than they compute, so JAX leaves most optimisations of the compiler
out. Modules marked ``numerics`` or ``optimised`` are compiled as users compile, in
float32, the precision of most users.
"""

import gc
import os
import zlib
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# For the processes that tests start too: what they compute is compared bit for bit.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

# Compiled code is kept from run to run, in one folder: workers inherit the name. A file
# that another is just writing is not read, but compiled again.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache/jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import matplotlib
import numpyro
import pytest
from jax._src import compiler

QUICK = "jax_disable_most_optimizations"

# The emitter that compiles slowest is left out as well, and each module is compiled in
# one piece, for which JAX has no settings. Later compilers have no other emitter.
if jax.__version_info__ < (0, 11):
    compile_options = compiler.get_compile_options

    def quick_compile_options(*args, env_options_overrides=None, **kwargs):
        overrides = dict(env_options_overrides or {})
        if jax.config.values[QUICK]:
            overrides["xla_cpu_use_fusion_emitters"] = False
            overrides["xla_cpu_parallel_codegen_split_count"] = 1
        return compile_options(*args, env_options_overrides=overrides, **kwargs)

    compiler.get_compile_options = quick_compile_options

# Tracing makes many objects, few of them in cycles: look through them seldom, and never
# through those that were there before.
gc.freeze()
gc.set_threshold(100_000, 20, 10)

# Two devices, so that `chain_method="parallel"` and sharding are tested on any machine.
numpyro.set_host_device_count(2)
matplotlib.use("Agg")


def part(text):
    """Read ``3/8``, the third of eight parts."""
    index, count = map(int, text.split("/"))
    if not 1 <= index <= count:
        raise ValueError(f"the part must be from 1 to {count}, got {index}")
    return index, count


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long tests too")
    parser.addoption(
        "--long-part",
        type=part,
        metavar="K/N",
        help="run one of N parts of the long tests too, as 3/8",
    )


def pytest_collection_modifyitems(config, items):
    """Leave out long tests, but for the part of them that was asked for.

    Examples in docstrings are as long: five minutes in all. They run where a file or a
    folder of the package is named.
    """
    # Those that are compiled alike share what is compiled.
    items.sort(key=as_users)
    if config.getoption("--long"):
        return
    index, count = config.getoption("--long-part") or (1, 0)
    all_files = config.args_source is pytest.Config.ArgsSource.TESTPATHS

    def is_chosen(item):
        is_long = item.get_closest_marker("long") or (
            all_files
            and isinstance(item, pytest.DoctestItem)
            and item.path.suffix == ".py"
        )
        number = zlib.crc32(item.nodeid.encode())
        return not is_long or (count > 0 and number % count == index - 1)

    config.hook.pytest_deselected(items=[i for i in items if not is_chosen(i)])
    items[:] = filter(is_chosen, items)


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


def as_users(item):
    """Whether a test is compiled as users compile, in float32."""
    marks = {mark.name for mark in item.iter_markers()}
    return bool(marks & {"numerics", "optimised"}) and not jax.config.jax_enable_x64


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compile a test as its mark says, and its fixtures too."""
    quick = not as_users(item)
    if jax.config.values[QUICK] != quick:
        jax.clear_caches()
        jax.config.update(QUICK, quick)


def pytest_runtest_teardown(item, nextitem):
    """Forget compiled code after a file, once there is much.

    Every compiled function holds some areas of memory, and a process that has no more
    of them left dies. What is forgotten is traced and compiled again.
    """
    same_file = nextitem is not None and nextitem.path == item.path
    if not same_file and num_memory_maps() > MAX_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key():
    """The same random key for every test."""
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Whether this run computes in float64 (``JAX_ENABLE_X64=1``)."""
    return bool(jax.config.jax_enable_x64)
