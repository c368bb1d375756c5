"""Gaussian random fields on the unit square."""

import numpy as np

from numpyro_kaem._checks import as_count
from numpyro_kaem.datasets._checks import as_generator, as_positive

__all__ = ["gaussian_random_field"]


def gaussian_random_field(
    rng: np.random.Generator | int,
    num_fields: int,
    size: int = 32,
    *,
    length_scale: float = 0.25,
    variance: float = 1.0,
    smoothness: float = 1.0,
) -> np.ndarray:
    r"""Draw Gaussian random fields of a Matérn-like covariance on the unit square.

    .. math::

        a \sim \text{Normal}\!\left(0, \; c \, (-\Delta + \tau^2 I)^{-(\nu + 1)}\right),
        \qquad \tau = \sqrt{2 \nu} \, / \, \ell,

    with the Laplacian of zero normal derivative on the boundary. Its eigenfunctions
    are products of cosines, so that a draw is one cosine transform of independent
    normal numbers.

    Parameters
    ----------
    rng
        NumPy generator, or a seed.
    num_fields
        How many to draw. The first few are the same whatever the number.
    size
        Number of cells along a side. Values are those at the middles of the cells.
    length_scale
        Length :math:`\ell` over which values are alike; the square has side one.
    variance
        Variance, on average over the square. The constant :math:`c` follows from it.
    smoothness
        Smoothness :math:`\nu` of the Matérn covariance.

    Returns
    -------
    numpy.ndarray
        float64, shape ``(num_fields, size, size)``; the first axis of a field is x.

    Raises
    ------
    TypeError
        If an argument is not a number of its kind.
    ValueError
        If one is not positive, or ``size`` is less than 2.

    Notes
    -----
    Away from the boundary the covariance is the Matérn covariance. Within about a
    length scale of a side the variance rises to twice that of the middle, and to four
    times in a corner, as the boundary mirrors the field. Frequencies that the grid
    cannot hold are left out.

    References
    ----------
    Lindgren, Rue and Lindström (2011), "An explicit link between Gaussian fields and
    Gaussian Markov random fields", *Journal of the Royal Statistical Society B* 73(4),
    equation (2).

    Examples
    --------
    >>> from numpyro_kaem.datasets import gaussian_random_field
    >>> gaussian_random_field(0, num_fields=5, size=16).shape
    (5, 16, 16)
    """
    rng = as_generator(rng)
    num_fields, size = as_count("num_fields", num_fields), as_count("size", size, 2)
    length_scale = as_positive("length_scale", length_scale)
    variance = as_positive("variance", variance)
    smoothness = as_positive("smoothness", smoothness)
    from scipy.fft import idctn

    # In units of tau, so that the constant has weight one. At great length scales the
    # squares of the others may overflow, which leaves the constant alone.
    frequencies = np.pi * np.arange(size) * length_scale / np.sqrt(2 * smoothness)
    with np.errstate(over="ignore"):
        squares = frequencies[:, None] ** 2 + frequencies**2
    spectrum = (1 + squares) ** -(smoothness + 1)
    # The eigenfunctions have mean square one, so their weights add up to the variance.
    spectrum *= variance / spectrum.sum()
    normal = rng.standard_normal((num_fields, size, size))
    # The orthonormal transform has sum of squares one over the size**2 cells.
    return size * idctn(normal * np.sqrt(spectrum), axes=(1, 2), norm="ortho")
