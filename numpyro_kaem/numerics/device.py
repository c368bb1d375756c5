"""A flag against wrong sums of JAX's compiler on CPUs."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

__all__ = ["avoid_wrong_sums"]

# Its options have no declared types.
_CONFIG: Any = jax.config
_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
_KEEP = "NUMPYRO_KAEM_KEEP_XLA_FLAGS"
# Releases of jaxlib whose sums on CPUs are wrong at times without the flag: from the
# first of these on, up to the second, the first that is right again. There is none yet;
# tests/numerics/test_device.py asks for one when the installed release passes without.
_WRONG_FROM: tuple[int, ...] = (0, 10, 2)
_RIGHT_FROM: tuple[int, ...] | None = None


def needs_flag(version: str) -> bool:
    """Whether sums are wrong at times under this release of jaxlib without the flag."""
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:4])
    return release >= _WRONG_FROM and (_RIGHT_FROM is None or release < _RIGHT_FROM)


def avoid_wrong_sums() -> None:
    """Have JAX's compiler leave out the fusions with which it gives wrong sums on CPUs.

    They are those of YNNPACK: sums over products with a matrix, and with the floats 0,
    1, ..., of which the library's own sums take integers instead. The flag is read when
    the CPU starts, with the first array: where that has happened, this warns.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    # Anything else than flags is the name of a file that holds them.
    file = Path(flags) if flags and not flags.startswith("-") else None
    platforms = _CONFIG.jax_platforms
    if (
        not needs_flag(jaxlib.__version__)
        or _FLAG in (file.read_text() if file and file.is_file() else flags)
        or os.environ.get(_KEEP)
        or (platforms and "cpu" not in platforms.split(","))
    ):
        return
    if file is None:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}".strip()
    has_started = _has_started()
    if has_started and (jax.default_backend() != "cpu" or not _has_faulty_fusions()):
        return
    if has_started or file is not None:
        reason = (
            "JAX had started before numpyro_kaem was imported"
            if has_started
            else f"XLA_FLAGS names the file {file}"
        )
        warnings.warn(
            f"{reason}, and the compiler of jaxlib {jaxlib.__version__} gives wrong "
            "sums on CPUs at times. Import numpyro_kaem before the first array is "
            f"made, or set before JAX starts: XLA_FLAGS={_FLAG}",
            RuntimeWarning,
            stacklevel=3,
        )


def _has_started() -> bool:
    """Whether JAX has started its devices; this question does not start them."""
    name = "jax_num_cpu_devices"
    value = _CONFIG.jax_num_cpu_devices
    try:
        # Refused once they have started.
        jax.config.update(name, value + 1)
        jax.config.update(name, value)
    except RuntimeError:
        return True
    return False


def _has_faulty_fusions() -> bool:
    """Whether a reduction is compiled to one."""
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sum(x * x, -1)).lower(x).compile()
    return "__ynn_fusion" in (compiled.as_text() or "")
