"""The two ways in which a test may say "equal": up to rounding, up to sampling error.

Import with ``from tests.helpers import assert_close, assert_within_mcse``. And modules
with random parameters that need no compiled random generators.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size

# Default relative and absolute tolerance by the precision of the computation.
RTOL = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-10}
ATOL = {np.dtype("float32"): 1e-6, np.dtype("float64"): 1e-12}


def working_dtype(x):
    """The coarser of the dtype of ``x`` and the default float dtype of this run.

    A Python float or a float64 NumPy array made from a float32 result is no more
    accurate than float32.
    """
    default = np.dtype("float64" if jax.config.jax_enable_x64 else "float32")
    dtype = np.asarray(x).dtype
    if dtype.kind != "f":
        return default
    return min(default, dtype, key=lambda candidate: candidate.itemsize)


def assert_close(actual, desired, *, rtol=None, atol=None, err_msg=""):
    """Assert equality up to rounding, with the shapes equal and no NaN.

    Parameters
    ----------
    actual
        Result under test; its dtype decides the default tolerances.
    desired
        Reference of the same shape, or a scalar.
    rtol, atol
        Tolerances: one number for both precisions, or a pair (float32, float64).
        The defaults are (1e-5, 1e-10) and (1e-6, 1e-12).
    err_msg
        Printed on failure.
    """
    dtype = working_dtype(actual)

    def tolerance(given, default):
        if given is None:
            return default[dtype]
        float32, float64 = np.broadcast_to(given, 2)
        return float(float64 if dtype == np.float64 else float32)

    actual, desired = np.asarray(actual), np.asarray(desired)
    assert desired.shape in ((), actual.shape), (
        f"expected shape {desired.shape}, got {actual.shape}. {err_msg}"
    )
    np.testing.assert_allclose(
        actual,
        desired,
        rtol=tolerance(rtol, RTOL),
        atol=tolerance(atol, ATOL),
        equal_nan=False,
        err_msg=err_msg,
    )


def assert_within_mcse(
    samples, truth, *, num_errors=4.0, group_by_chain=False, err_msg=""
):
    """Assert that sample means are within Monte Carlo error of the truth.

    The standard error is the samples' standard deviation over the square root of their
    effective number, so the bound tightens with the chain. For another moment than the
    mean pass its draws, such as ``(samples - mean) ** 2``.

    Parameters
    ----------
    samples
        Draws, shape ``(num_samples, ...)``, or with ``group_by_chain`` the shape
        ``(num_chains, num_samples, ...)``, as from ``MCMC.get_samples``.
    truth
        Exact mean of each component; broadcasts to the shape ``(...)``.
    num_errors
        Allowed number of standard errors. Four fail a correct sampler about once in
        16,000 independent components.
    group_by_chain
        Whether the leading axis counts chains.
    err_msg
        Printed on failure.
    """
    samples = np.asarray(samples, dtype=np.float64)
    if not group_by_chain:
        samples = samples[None]
    mean = samples.mean((0, 1))
    num_effective = effective_sample_size(samples)
    error = samples.std((0, 1), ddof=1) / np.sqrt(num_effective)
    deviation = np.abs(mean - np.asarray(truth))
    # Written so that NaN fails: constant draws have no effective sample size.
    assert np.all(deviation <= num_errors * error), (
        f"mean {mean} is not within {num_errors:g} standard errors ({error}) of "
        f"{truth}; effective sample size {num_effective}. {err_msg}"
    )


def random_leaves(make, *, scale=1.0, seed=0):
    """Module with Normal parameters of NumPy, where its own start is not tested.

    Parameters
    ----------
    make
        Function from a random key to the module; it is traced, and never compiled.
    scale
        Standard deviation of the parameters.
    seed
        Seed of NumPy's generator.

    Returns
    -------
    Module
        With arrays of the default float dtype.
    """
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf
        ),
        eqx.filter_eval_shape(make, jax.random.key(0)),
    )


def with_long(params, *kept):
    """Parameters of a test, of which all but some run with the long tests only."""
    assert set(kept) <= set(params)
    return [
        param if param in kept else pytest.param(param, marks=pytest.mark.long)
        for param in params
    ]
