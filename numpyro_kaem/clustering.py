"""Clusters of weighted points, to start a mixture from."""

import numpy as np

__all__ = ["k_means"]

_MAX_STEPS = 50


def k_means(
    rng: np.random.Generator, points: np.ndarray, weights: np.ndarray, num_clusters: int
) -> np.ndarray:
    """Divide points into clusters about their means, by Lloyd's algorithm.

    The first centres are points far from each other (k-means++).

    Parameters
    ----------
    rng
        Random numbers for the first centres.
    points
        Shape ``(n, dim)``, in units in which distances matter alike.
    weights
        Weights of the points, not negative and not all zero, shape ``(n,)``.
    num_clusters
        Number of clusters.

    Returns
    -------
    Array
        Index of the cluster of every point, shape ``(n,)``. Clusters may be empty where
        there are fewer distinct points.

    References
    ----------
    Arthur and Vassilvitskii (2007), "k-means++: the advantages of careful seeding",
    *Symposium on Discrete Algorithms*.
    """
    centres = _far_points(rng, points, weights, num_clusters)
    label = _nearest(points, centres)
    for _ in range(_MAX_STEPS):
        sizes = np.bincount(label, weights, num_clusters)
        sums = np.stack(
            [np.bincount(label, weights * x, num_clusters) for x in points.T], axis=-1
        )
        filled = sizes[:, None] > 0
        centres = np.where(filled, sums / np.where(filled, sizes[:, None], 1), centres)
        previous, label = label, _nearest(points, centres)
        if np.array_equal(label, previous):
            break
    return label


def _far_points(
    rng: np.random.Generator, points: np.ndarray, weights: np.ndarray, count: int
) -> np.ndarray:
    """Points drawn with chances in proportion to squared distances from the earlier."""
    chances = weights / weights.sum()
    chosen = [points[rng.choice(len(points), p=chances)]]
    nearest = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.sum(np.square(points - chosen[-1]), axis=-1)
        nearest = np.minimum(nearest, distance)
        mass = weights * nearest
        total = mass.sum()
        p = mass / total if total > 0 else chances
        chosen.append(points[rng.choice(len(points), p=p)])
    return np.stack(chosen)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index of the nearest centre, shape ``(n,)``."""
    # Squared distances less those of the points from 0, which all centres share.
    distance = np.sum(np.square(centres), axis=-1) - 2 * points @ centres.T
    return np.argmin(distance, axis=-1)
