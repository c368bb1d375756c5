"""What the fits of joint densities share: checked samples, and their marginal fits."""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.estimation import fit_density
from numpyro_kaem.estimation_checks import as_samples, as_shares
from numpyro_kaem.references import is_concrete

__all__ = ["Marginals", "fit_marginals", "generator_of"]


class Marginals(NamedTuple):
    """Samples and one density for each of their columns."""

    data: np.ndarray
    """Samples in float64, shape ``(n, dim)``."""
    shares: np.ndarray
    """Weights that sum to 1, shape ``(n,)``."""
    num_effective: float
    """Number of samples that the weights are worth."""
    prior: KAEMPrior
    """The marginal densities, of batch shape ``(dim,)``."""


def fit_marginals(
    name: str,
    samples: Any,
    basis: Any,
    reference: Any,
    support: Any,
    penalty: Any,
    weights: Any,
) -> Marginals:
    """Check the samples of a joint density and fit their columns.

    Parameters
    ----------
    name
        Name of the function that the user called.
    samples, basis, reference, support, penalty, weights
        As :func:`fit_density` takes them, but samples are ``(n, dim)`` and weights
        ``(n,)``.

    Returns
    -------
    Marginals

    Raises
    ------
    TypeError
        If an argument is traced, or as :func:`fit_density` raises.
    ValueError
        If samples or weights have another shape, or as :func:`fit_density` raises.
    """
    if not is_concrete((samples, weights, penalty, reference, basis, support)):
        raise TypeError(
            f"{name} needs concrete arguments, got a traced one: the grid is static. "
            "Call it outside jit, vmap and grad."
        )
    data = as_samples(samples)
    if data.ndim != 2:
        raise ValueError(
            f"samples must have shape (n, dim), got {data.shape}; for one dimension "
            "pass samples[:, None], or use fit_density."
        )
    if weights is not None and np.shape(weights) != data.shape[:1]:
        raise ValueError(
            f"weights must have shape ({len(data)},), one for each sample, got "
            f"{np.shape(weights)}."
        )
    shares, num_effective = as_shares(weights, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only the marginals are kept")
        prior = fit_density(
            data, basis, reference, support=support, penalty=penalty, weights=weights
        )
    return Marginals(data, shares[:, 0], float(num_effective.flat[0]), prior)


def generator_of(rng_key: jax.Array | None) -> np.random.Generator:
    """NumPy's random numbers, seeded by a key; that of seed 0 in place of ``None``.

    Raises
    ------
    TypeError
        If it is not one random key.
    """
    key = jax.random.key(0) if rng_key is None else rng_key
    try:
        data = np.asarray(jax.random.key_data(key))
    except (TypeError, ValueError):
        data = np.zeros(())
    if data.shape != (2,):
        raise TypeError(
            f"rng_key must be one random key such as jax.random.key(0), got {rng_key!r}"
            "."
        )
    return np.random.default_rng([int(word) for word in data])
