"""Settings of the whole test run, made before JAX starts its backend."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import matplotlib
import numpyro
import pytest

# Two devices, so that `chain_method="parallel"` and sharding are tested on any machine.
numpyro.set_host_device_count(2)
matplotlib.use("Agg")


@pytest.fixture
def key():
    """The same random key for every test."""
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Whether this run computes in float64 (``JAX_ENABLE_X64=1``)."""
    return bool(jax.config.jax_enable_x64)
