"""Mixtures of Normal laws near a density, by expectation and maximisation."""

from itertools import combinations

import numpy as np

__all__ = ["best_normal_mixture"]

_CUTS = (0.1, 0.25, 0.4, 0.6, 0.75, 0.9)
_WIDTHS = 3.0
_NUM_STEPS = 60
# Of the weights, and of the scales in units of the density's.
_FLOOR = 1e-2


def best_normal_mixture(
    z: np.ndarray, masses: np.ndarray, num_components: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Climb the likelihood from several starts, and take the best.

    A start divides the density at some of its quantiles, or puts narrow and wide
    components in one place.

    Parameters
    ----------
    z
        Nodes in units in which the density is about 0 and 1 wide, shape
        ``(num_nodes,)``.
    masses
        Their masses, which sum to 1.
    num_components
        Number of components.

    Returns
    -------
    tuple
        Weights, means and scales, each ``(num_components,)``.

    References
    ----------
    Dempster, Laird and Rubin (1977), "Maximum likelihood from incomplete data via the
    EM algorithm", *Journal of the Royal Statistical Society B* 39(1).
    """
    keep = masses > 1e-12
    z, masses = z[keep], masses[keep]
    order = np.argsort(z)
    level = np.empty(len(z))
    level[order] = np.cumsum(masses[order])
    # Shape (start, component, node).
    shares = [
        np.digitize(level, cuts) == np.arange(num_components)[:, None]
        for cuts in combinations(_CUTS, num_components - 1)
    ]
    shares.append(_scale_mixture(z, num_components))
    shares = np.stack([np.asarray(share, float) for share in shares])
    for _ in range(_NUM_STEPS):
        weights, means, scales = _maximise(shares * masses, z)
        logs = -0.5 * ((z - means[..., None]) / scales[..., None]) ** 2
        logs += np.log(weights / scales)[..., None]
        top = logs.max(1, keepdims=True)
        parts = np.exp(logs - top)
        total = parts.sum(1, keepdims=True)
        shares = parts / total
        value = np.sum(masses * (np.log(total) + top)[:, 0], axis=-1)
    best = int(np.argmax(value))
    return weights[best], means[best], scales[best]


def _scale_mixture(z: np.ndarray, num_components: int) -> np.ndarray:
    """Responsibilities of components in one place, each wider than the last."""
    widths = 0.5 * _WIDTHS ** np.arange(num_components)[:, None]
    parts = np.exp(-0.5 * (z / widths) ** 2) / widths + 1e-30
    return parts / parts.sum(0)


def _maximise(
    masses: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weights = np.maximum(masses.sum(-1), _FLOOR)
    means = (masses @ z) / weights
    squares = np.sum(masses * (z - means[..., None]) ** 2, axis=-1) / weights
    return weights, means, np.sqrt(np.maximum(squares, _FLOOR**2))
