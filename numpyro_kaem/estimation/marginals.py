"""What the fits of joint densities share: checked samples, and their marginal fits."""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.estimation._arguments import (
    as_chains,
    as_samples,
    as_shares,
    support_ends,
)
from numpyro_kaem.estimation.density import fit_density
from numpyro_kaem.estimation.rounding import as_widths, spread
from numpyro_kaem.references import is_concrete

__all__ = [
    "Samples",
    "as_positive",
    "check_joint",
    "fit_marginals",
    "generator_of",
    "spread_at_random",
]


class Samples(NamedTuple):
    """Checked samples of a joint density."""

    data: np.ndarray
    """In float64, shape ``(n, dim)``."""
    shares: np.ndarray
    """Weights that sum to 1, shape ``(n,)``."""
    num_effective: float
    """Number of samples that the weights are worth."""


def check_joint(name: str, samples: Any, weights: Any, *others: Any) -> Samples:
    """Check the samples of a joint density.

    Parameters
    ----------
    name
        Name of the function that the user called.
    samples
        Shape ``(n, dim)``.
    weights
        Shape ``(n,)``, or ``None``.
    *others
        More arguments that may not be traced.

    Returns
    -------
    Samples

    Raises
    ------
    TypeError
        If an argument is traced, or is not real numbers.
    ValueError
        If samples or weights have another shape, are not finite, or if weights are
        negative or all zero.

    Warns
    -----
    UserWarning
        If there are few samples of many dimensions.
    """
    if not is_concrete((samples, weights, *others)):
        raise TypeError(
            f"{name} needs concrete arguments, got a traced one: the grid is static. "
            "Call it outside jit, vmap and grad."
        )
    data = as_samples(samples)
    if data.ndim != 2:
        raise ValueError(
            f"samples must have shape (n, dim), got {data.shape}; for one dimension "
            "pass samples[:, None], or use fit_density, and for chains of draws "
            "samples.reshape(-1, dim)."
        )
    chains = as_chains(data.shape, "dimensions")
    if chains:
        warnings.warn(chains.strip(), UserWarning, stacklevel=3)
    if weights is not None and np.shape(weights) != data.shape[:1]:
        raise ValueError(
            f"weights must have shape ({len(data)},), one for each sample, got "
            f"{np.shape(weights)}."
        )
    shares, num_effective = as_shares(weights, data)
    return Samples(data, shares[:, 0], float(num_effective.flat[0]))


def spread_at_random(
    data: np.ndarray,
    shares: np.ndarray,
    support: Any,
    reference: Any,
    rounding: Any,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Spread rounded samples over the intervals that they stand for.

    The caller tells what was found, by :func:`coarse`, once there is a basis.

    Parameters
    ----------
    data, shares
        Samples, shape ``(n, dim)``, and their weights, ``(n,)``.
    support, reference, rounding
        As of :func:`fit_density`.
    rng
        Random numbers, one order for each dimension: they stay as dependent as rounded.

    Returns
    -------
    tuple
        Samples, and the widths of their intervals.
    """
    widths = as_widths(rounding, data, shares[:, None])
    ends = support_ends(support, reference, data.shape[1:])
    return spread(data, widths, ends, rng), widths


def fit_marginals(samples: Samples, *args: Any, **options: Any) -> KAEMPrior:
    """Fit a density to each column, shape ``(dim,)``.

    Parameters
    ----------
    samples
        Exact samples and weights.
    *args, **options
        Further arguments of :func:`fit_density`.

    Returns
    -------
    KAEMPrior
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only the marginals are kept")
        return fit_density(
            samples.data, *args, weights=samples.shares, rounding="none", **options
        )


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


def as_positive(name: str, value: Any, or_zero: bool = False) -> float:
    """Check a positive number, or zero where that is allowed.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not positive, or zero, and finite.
    """
    if isinstance(value, bool) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not (np.isfinite(value) and (value > 0 or (or_zero and value == 0))):
        kind = "0 or positive" if or_zero else "positive"
        raise ValueError(f"{name} must be {kind} and finite, got {value!r}.")
    return float(value)
