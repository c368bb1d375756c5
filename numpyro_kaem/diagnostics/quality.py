"""Distances, precision and recall of samples of a generative model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numpyro_kaem._checks import as_count, as_numpy, check_function

__all__ = ["SampleQuality", "sample_quality"]

_ROWS_AT_ONCE = 1024
# Up to this size all eigenvectors of a matrix are as quickly found as the first few.
_SMALL = 100


class SampleQuality(NamedTuple):
    """Result of :func:`sample_quality`."""

    frechet_distance: float
    """Squared Fréchet distance between Gaussians with the means and covariances of both
    sets, in squared units of the data; 0 is best. It depends on these moments only:
    samples unlike any datum can have a small one."""
    precision: float
    """Fraction of the samples within the region of the reference, in [0, 1]; low where
    samples are unlike any datum."""
    recall: float
    """Fraction of the reference within the region of the samples, in [0, 1]; low where
    kinds of data are missing from the samples."""
    extrapolated_frechet_distance: float
    """Fréchet distance of sets of infinite size, to first order; NaN where half of a
    set has no more rows than there are components. It may be negative."""
    kernel_distance: float
    """Squared distance of the means in the feature space of a cubic kernel, without
    bias and without unit; about 0 is best, and it may be negative."""


def sample_quality(
    samples: Any,
    reference: Any,
    *,
    features: Callable[[np.ndarray], Any] | None = None,
    num_components: int | None = 20,
    num_neighbours: int = 5,
) -> SampleQuality:
    r"""Compare samples of a model with data that it was not trained on.

    All is computed in the space of the first principal components of the reference,
    which are not rescaled. With the means :math:`m` and covariances :math:`C` there,
    the Fréchet distance is

    .. math::

        |m_s - m_r|^2 + \operatorname{tr} \bigl( C_s + C_r
        - 2 (C_s^{1/2} C_r C_s^{1/2})^{1/2} \bigr).

    Even sets of one distribution have a positive one, in proportion to the reciprocals
    of their sizes to first order. With :math:`F(n)` the distance and :math:`F(n/2)`
    its mean over random halves of both sets, the extrapolated distance is
    :math:`2 F(n) - F(n/2)`. The kernel distance is the unbiased estimate of

    .. math::

        E\,k(s, s') + E\,k(r, r') - 2\,E\,k(s, r), \qquad
        k(x, y) = \Bigl( 1 + \frac{(x - m_r)^{\mathsf T} (y - m_r)}
        {\operatorname{tr} C_r} \Bigr)^3.

    The region of a set is the union of balls around its points, each of which reaches
    to the point's :math:`k`-th nearest neighbour in its own set. Precision is the
    fraction of the samples in the region of the reference, recall the fraction of the
    reference in the region of the samples.

    Parameters
    ----------
    samples
        Samples, shape ``(num_samples, *shape)``, such as images.
    reference
        Data to compare with, shape ``(num_reference, *shape)``.
    features
        Function from an array ``(n, *shape)`` of some of the data to an array
        ``(n, ...)`` of what to compare in their place, such as the last hidden layer of
        a classifier.
    num_components
        Largest number of principal components, of the features where there are any;
        ``None`` for all of them.
    num_neighbours
        Number :math:`k`, less than the size of either set.

    Raises
    ------
    TypeError
        If samples, reference or features are not real numbers, ``features`` is not a
        function, or a count is not an integer.
    ValueError
        If the sets differ in ``shape``, have no more rows than ``num_neighbours``, hold
        a number that is not finite, or if a count is not positive; if features have not
        a row for each datum.

    Notes
    -----
    - Fréchet distance, precision and recall depend on the sizes of the sets: compare
      models at equal sizes, and report the values of held-out data of the same size.
      The extrapolated and the kernel distance may be compared between sizes.
    - The components are those in which the reference varies most. With few data
      relative to the number of pixels they follow its noise, and even perfect samples
      vary less there: precision is then too high, recall too low. Take fewer
      components. Differences outside of the components have no effect.
    - Computed in float64 by NumPy and SciPy. The cost grows with the product of the
      sizes of the sets; the memory does not.
    - The published measures take all features of a network trained on photographs, and
      the distances are then known as FID and KID; the kernel of the latter is not
      centred or scaled. These are for data of any kind, and are not comparable with
      those.

    References
    ----------
    Bińkowski, Sutherland, Arbel and Gretton (2018), "Demystifying MMD GANs", *ICLR*,
    equation (4) and section 4.
    Chong and Forsyth (2020), "Effectively unbiased FID and Inception score and where to
    find them", *CVPR*, section 3.
    Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter (2017), "GANs trained by a two
    time-scale update rule converge to a local Nash equilibrium", *NeurIPS*, equation
    (6).
    Kynkäänniemi, Karras, Laine, Lehtinen and Aila (2019), "Improved precision and
    recall metric for assessing generative models", *NeurIPS*, equations (1) and (2).

    Examples
    --------
    Samples that miss one of two groups, each 1 wide and 6 apart:

    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> rng = np.random.default_rng(0)
    >>> groups = np.repeat([-3.0, 3.0], 200)[:, None]
    >>> reference = groups + rng.normal(size=(400, 2))
    >>> samples = 3.0 + rng.normal(size=(400, 2))
    >>> quality = kaem.sample_quality(samples, reference)
    >>> quality.precision > 0.9, quality.recall < 0.6
    (True, True)
    """
    num_neighbours = as_count("num_neighbours", num_neighbours)
    if num_components is not None:
        num_components = as_count("num_components", num_components)
    if features is not None:
        check_function("features", features, "a function of an array of data, or None")
    samples = _as_rows("samples", samples, num_neighbours, features)
    reference = _as_rows("reference", reference, num_neighbours, features)
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            "samples and reference must have rows of one shape, got shapes "
            f"{samples.shape} and {reference.shape}."
        )
    samples = samples.reshape(len(samples), -1)
    reference = reference.reshape(len(reference), -1)
    center = reference.mean(0)
    samples -= center
    reference -= center
    axes = _principal_axes(reference, num_components)
    if axes is not None:
        samples, reference = samples @ axes, reference @ axes
    distance = _frechet_distance(samples, reference)
    return SampleQuality(
        frechet_distance=max(distance, 0.0),
        precision=_share_inside(samples, reference, num_neighbours),
        recall=_share_inside(reference, samples, num_neighbours),
        extrapolated_frechet_distance=2 * distance - _of_halves(samples, reference),
        kernel_distance=_kernel_distance(samples, reference),
    )


def _as_rows(
    name: str, value: Any, num_neighbours: int, features: Callable | None
) -> np.ndarray:
    """Copy as float64, or the features, checked."""
    array = as_numpy(name, value)
    if features is not None and array.ndim > 0 and len(array) > 0:
        count = len(array)
        array = np.concatenate([np.asarray(features(b)) for b in _blocks(array)])
        if len(array) != count:
            raise ValueError(
                f"features must have a row for each of the {count} {name}, got "
                f"{len(array)} rows."
            )
        name = f"features of {name}"
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}.")
    if array.ndim < 2 or array[:1].size == 0 or len(array) <= num_neighbours:
        raise ValueError(
            f"{name} must have shape (n, *shape) with n > num_neighbours = "
            f"{num_neighbours}, got shape {array.shape}."
        )
    array = array.astype(float)
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(
            f"{name} must be finite, got {bad.sum()} of {array.size} entries that are "
            "not."
        )
    return array


def _principal_axes(rows: np.ndarray, num_components: int | None) -> np.ndarray | None:
    """Orthonormal axes of centred rows, as columns; None where all are kept."""
    # Here, because it is slow to import.
    from scipy.sparse.linalg import eigsh

    count, dim = rows.shape
    num_components = min(num_components or dim, count, dim)
    if num_components == dim:
        # What is computed of the components does not change with their rotation.
        return None
    by_rows = count < dim
    square = rows @ rows.T if by_rows else rows.T @ rows
    if len(square) <= max(_SMALL, 4 * num_components) or not square.any():
        values, vectors = np.linalg.eigh(square)
    else:
        start = np.random.default_rng(0).normal(size=len(square))
        values, vectors = eigsh(square, num_components, v0=start)
    # The largest first, and none of what is rounding.
    order = np.argsort(values)[::-1][:num_components]
    is_rounding = values[order] < len(square) * np.finfo(float).eps * values[order[0]]
    vectors = vectors[:, order[: max(1, np.sum(~is_rounding))]]
    return np.linalg.qr(rows.T @ vectors)[0] if by_rows else vectors


def _frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians of two sets of rows."""
    means: list[np.ndarray] = []
    factors: list[np.ndarray] = []
    for rows in (x, y):
        means.append(rows.mean(0))
        # A square root of the covariance, without forming the covariance.
        centered = (rows - means[-1]) / np.sqrt(len(rows) - 1)
        factors.append(np.asarray(np.linalg.qr(centered, mode="r")))
    # The squared singular values are the eigenvalues of the symmetrised product of the
    # covariances. This way none is the root of a rounding error.
    overlap = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    spread = sum(np.square(factor).sum() for factor in factors)
    distance = np.square(means[0] - means[1]).sum() + spread - 2 * overlap
    return float(distance)


def _of_halves(x: np.ndarray, y: np.ndarray) -> float:
    """Mean Fréchet distance of halves of both sets."""
    if min(len(x), len(y)) // 2 <= x.shape[1]:
        return np.nan
    rng = np.random.default_rng(0)
    x, y = rng.permutation(x), rng.permutation(y)
    return (_frechet_distance(x[::2], y[::2]) + _frechet_distance(x[1::2], y[1::2])) / 2


def _kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy; ``y`` is centred."""
    scale = np.square(y).sum() / (len(y) - 1) or 1.0

    def total(one: np.ndarray, other: np.ndarray) -> float:
        blocks = (1 + block @ other.T / scale for block in _blocks(one))
        return sum(float(np.vdot(block * block, block)) for block in blocks)

    def within(rows: np.ndarray) -> float:
        own = np.sum((1 + np.square(rows).sum(1) / scale) ** 3)
        return (total(rows, rows) - own) / (len(rows) * (len(rows) - 1))

    return float(within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y)))


def _share_inside(points: np.ndarray, rows: np.ndarray, num_neighbours: int) -> float:
    """Share of points that lie in the union of the balls around rows."""
    # Here, because it is slow to import.
    from scipy.spatial.distance import cdist

    # Each row is its own nearest neighbour, at position 0.
    radii = np.concatenate(
        [
            np.partition(cdist(block, rows), num_neighbours, axis=1)[:, num_neighbours]
            for block in _blocks(rows)
        ]
    )
    inside = [(cdist(block, rows) <= radii).any(1) for block in _blocks(points)]
    return float(np.mean(np.concatenate(inside)))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[i : i + _ROWS_AT_ONCE] for i in range(0, len(rows), _ROWS_AT_ONCE)]
