"""How exact a normaliser has to be, and the library's own estimate of that."""

import numpy as np


def relative_error(built):
    difference = np.asarray(built.prior.log_normalizer, float)
    return np.abs(np.expm1(difference - built.oracle.log_normalizer))


def check(error, built, x64):
    if x64:
        bar = 1e-8 if built.reference.singular else 1e-11
    else:
        bar = 5e-6 + built.reference_error
    assert error.max() <= bar


def check_estimate(error, built):
    """The library's own estimate of the error: whether it holds, for each energy.

    At a singular end the mass comes from the reference's own ``cdf``, with its error.
    """
    estimate = np.asarray(built.prior.quadrature_error, float)
    if built.reference.singular:
        error = np.maximum(error - built.reference_error, 0)
    eps = np.finfo(built.dtype).eps
    assert np.all(estimate <= 1e4 * np.maximum(error, eps))
    return estimate >= np.maximum(error, eps)
