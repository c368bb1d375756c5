"""Distance, precision and recall of samples of a generative model."""

from typing import Any, NamedTuple

import numpy as np

from numpyro_kaem._checks import as_count

__all__ = ["SampleQuality", "sample_quality"]

_ROWS_AT_ONCE = 1024


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


def sample_quality(
    samples: Any,
    reference: Any,
    *,
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
    num_components
        Largest number of principal components; ``None`` for all of them.
    num_neighbours
        Number :math:`k`, less than the size of either set.

    Raises
    ------
    TypeError
        If samples or reference are not real numbers, or a count is not an integer.
    ValueError
        If the sets differ in ``shape``, have no more rows than ``num_neighbours``, hold
        a number that is not finite, or if a count is not positive.

    Notes
    -----
    - All three depend on the sizes of the sets: compare models at equal sizes, and
      report the values of held-out data of the same size.
    - The components are those in which the reference varies most. With few data
      relative to the number of pixels they follow its noise, and even perfect samples
      vary less there: precision is then too high, recall too low. Take fewer
      components. Differences outside of the components have no effect.
    - Computed in float64 by NumPy and SciPy. The cost grows with the product of the
      sizes of the sets; the memory does not.
    - The published measures take features of a network trained on photographs, and the
      distance is then known as FID. These are for data of any kind, and are not
      comparable with those.

    References
    ----------
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
    samples = _as_rows("samples", samples, num_neighbours)
    reference = _as_rows("reference", reference, num_neighbours)
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            "samples and reference must have rows of one shape, got shapes "
            f"{samples.shape} and {reference.shape}."
        )
    samples = samples.reshape(len(samples), -1)
    reference = reference.reshape(len(reference), -1)
    center = reference.mean(0)
    _, _, axes = np.linalg.svd(reference - center, full_matrices=False)
    axes = axes[:num_components].T
    samples, reference = (samples - center) @ axes, (reference - center) @ axes
    return SampleQuality(
        frechet_distance=_frechet_distance(samples, reference),
        precision=_share_inside(samples, reference, num_neighbours),
        recall=_share_inside(reference, samples, num_neighbours),
    )


def _as_rows(name: str, value: Any, num_neighbours: int) -> np.ndarray:
    """Convert to float64, checked."""
    array = np.asarray(value)
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


def _frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians of two sets of rows."""
    means: list[np.ndarray] = []
    factors: list[np.ndarray] = []
    for rows in (x, y):
        means.append(rows.mean(0))
        # A square root of the covariance, without forming the covariance.
        centered = (rows - means[-1]) / np.sqrt(len(rows) - 1)
        factors.append(np.linalg.qr(centered, mode="r"))
    # The squared singular values are the eigenvalues of the symmetrised product of the
    # covariances. This way none is the root of a rounding error.
    overlap = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    spread = sum(np.square(factor).sum() for factor in factors)
    distance = np.square(means[0] - means[1]).sum() + spread - 2 * overlap
    return max(float(distance), 0.0)


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
