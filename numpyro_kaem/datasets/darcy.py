"""Flow through a random medium, simulated."""

from typing import NamedTuple

import numpy as np

from numpyro_kaem._checks import as_count, as_generator, as_positive

__all__ = ["DarcyFlow", "darcy_flow", "gaussian_random_field", "solve_darcy"]


def gaussian_random_field(
    rng: np.random.Generator | int,
    num_fields: int,
    size: int = 32,
    *,
    length_scale: float = 0.25,
    variance: float = 1.0,
    smoothness: float = 1.0,
) -> np.ndarray:
    r"""Draw Matérn-like Gaussian random fields, ``(num_fields, size, size)``.

    .. math::

        a \sim \text{Normal}\!\left(0, \; c \, (-\Delta + \tau^2 I)^{-(\nu + 1)}\right),
        \qquad \tau = \sqrt{2 \nu} \, / \, \ell,

    on the unit square, where the Laplacian has zero normal derivative on the boundary.
    Its eigenfunctions are products of cosines, so a draw is one cosine transform of
    independent normal numbers.

    Parameters
    ----------
    rng
        NumPy generator, or a seed.
    num_fields
        Number of fields. The first few do not depend on it.
    size
        Number of cells along a side. Values are those at cell centres.
    length_scale
        Correlation length :math:`\ell`; the square has side one.
    variance
        Variance averaged over the square; it sets the constant :math:`c`.
    smoothness
        Smoothness :math:`\nu` of the Matérn covariance.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If one is not positive, or ``size`` is less than 2.

    Notes
    -----
    Away from the boundary the covariance is Matérn, truncated to the grid's
    frequencies. Within about a length scale of a side the variance rises to twice that
    of the centre, and to four times in a corner, because the boundary mirrors the
    field.

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

    # In units of tau, so that the constant has weight one. At large length scales the
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


class DarcyFlow(NamedTuple):
    """Pressure fields and their permeability; made by :func:`darcy_flow`."""

    pressure: np.ndarray
    """Pressures at cell centres, float32, shape ``(num_fields, size, size)``."""
    log_permeability: np.ndarray
    """Log permeability there, of the same shape."""


def darcy_flow(
    rng: np.random.Generator | int,
    num_fields: int,
    size: int = 32,
    *,
    length_scale: float = 0.25,
    variance: float = 1.0,
    progress_bar: bool = False,
) -> DarcyFlow:
    r"""Draw pressure fields of Darcy flow through a random medium.

    .. math:: -\nabla \cdot (e^{a} \, \nabla p) = 1

    on the unit square, with :math:`p = 0` on the boundary. The log permeability
    :math:`a` is a Gaussian random field.

    Parameters
    ----------
    rng
        NumPy generator, or a seed.
    num_fields
        Number of fields. The first few do not depend on it.
    size
        Number of cells along a side.
    length_scale, variance
        Distribution of the log permeability, as of :func:`gaussian_random_field`.
    progress_bar
        Whether to show progress.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If one is not positive, ``size`` is less than 2, or the permeability varies too
        much to solve.

    Notes
    -----
    Pressures are positive, about 0.07 in the centre for permeability one.
    A field takes about half a millisecond at 32×32, and five at 64×64.

    References
    ----------
    Li et al. (2021), "Fourier neural operator for parametric partial differential
    equations", *International Conference on Learning Representations*, section 5.2,
    who take ``length_scale=2**0.5 / 3``, and threshold the field.

    Examples
    --------
    >>> from numpyro_kaem.datasets import darcy_flow
    >>> flow = darcy_flow(0, num_fields=3, size=16)
    >>> flow.pressure.shape, bool((flow.pressure > 0).all())
    ((3, 16, 16), True)
    """
    log_permeability = gaussian_random_field(
        rng, num_fields, size, length_scale=length_scale, variance=variance
    )
    pressure = solve_darcy(log_permeability, progress_bar=progress_bar)
    return DarcyFlow(pressure.astype(np.float32), log_permeability.astype(np.float32))


def solve_darcy(
    log_permeability: np.ndarray,
    source: float | np.ndarray = 1.0,
    *,
    progress_bar: bool = False,
) -> np.ndarray:
    r"""Pressure of Darcy flow on the unit square, of ``log_permeability``'s shape.

    .. math:: -\nabla \cdot (e^{a} \, \nabla p) = s,\quad p = 0 \text{ at the boundary}

    Finite volumes: the flow out of a cell through its four faces equals its source.
    The permeability of a face is the harmonic mean of its two cells. The error falls as
    the square of the cells' side where :math:`a` is smooth.

    Parameters
    ----------
    log_permeability
        Values of :math:`a` at cell centres, shape ``(*batch, size, size)``.
    source
        Values of :math:`s` there, of a shape that broadcasts to ``log_permeability``.
    progress_bar
        Whether to show progress.

    Raises
    ------
    ValueError
        If an argument is not finite or of another shape, there is no field, or the
        permeability varies within a field by more than float64 can solve, a factor of
        about :math:`10^{12}`.

    References
    ----------
    Eymard, Gallouët and Herbin (2000), "Finite volume methods", *Handbook of Numerical
    Analysis* 7, chapter III.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.datasets import solve_darcy
    >>> float(solve_darcy(np.zeros((32, 32)))[16, 16])
    0.0736
    """
    from tqdm.auto import tqdm

    log_permeability = np.asarray(log_permeability, np.float64)
    shape = log_permeability.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2 or 0 in shape:
        raise ValueError(
            "log_permeability must have shape (*batch, size, size) with size >= 2 and "
            f"at least one field, got {shape}."
        )
    source = np.asarray(source, np.float64)
    try:
        source = np.broadcast_to(source, shape)
    except ValueError:
        raise ValueError(
            f"source must broadcast to the shape {shape} of log_permeability, got "
            f"shape {source.shape}."
        ) from None
    for name, value in (("log_permeability", log_permeability), ("source", source)):
        if not np.all(np.isfinite(value)):
            raise ValueError(f"{name} must be finite, got NaN or inf.")
    fields = log_permeability.reshape(-1, *shape[-2:])
    sources = source.reshape(fields.shape)
    _check_range(fields)
    pressure = np.empty_like(fields)
    for i in tqdm(range(len(fields)), desc="Darcy flow", disable=not progress_bar):
        pressure[i] = _solve_one(fields[i], sources[i])
    return pressure.reshape(shape)


def _check_range(fields: np.ndarray) -> None:
    """Check that float64 can solve for fields of shape ``(num_fields, size, size)``."""
    low, high = fields.min(axis=(1, 2)), fields.max(axis=(1, 2))
    # Little leaks out of an island of high permeability: rounding changes that by up to
    # a hundredth at this bound, by a tenth of that against algebra in higher precision.
    allowed = np.log(0.01 / (fields.shape[-1] * np.finfo(np.float64).eps))
    worst = np.argmax(high - low)
    if high[worst] - low[worst] > allowed:
        raise ValueError(
            "log_permeability varies too much to solve in float64: it spans "
            f"{high[worst] - low[worst]:.1f} in field {worst}, and at this size at "
            f"most {allowed:.1f} is allowed; give a smaller variance."
        )
    if low.min() < -600 or high.max() > 600:
        raise ValueError(
            "log_permeability must be from -600 to 600, got "
            f"{low.min():g} to {high.max():g}."
        )


def _solve_one(log_permeability: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Solve for one field, shape ``(size, size)``."""
    from scipy.linalg import solveh_banded

    size = len(log_permeability)
    # The solution is proportional to 1 / permeability: scaled to be at most one.
    top = log_permeability.max()
    resistance = np.exp(top - log_permeability)
    across = 2 / (resistance[1:] + resistance[:-1])
    along = 2 / (resistance[:, 1:] + resistance[:, :-1])
    # A face on the boundary is half a cell away.
    edge = 2 / resistance
    diagonal = np.zeros_like(resistance)
    diagonal[1:] += across
    diagonal[:-1] += across
    diagonal[:, 1:] += along
    diagonal[:, :-1] += along
    for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        diagonal[side] += edge[side]
    # Cells are numbered row by row, so that neighbours are 1 or `size` numbers apart:
    # a banded Cholesky factor takes a third of the time of a sparse one, or less.
    bands = np.zeros((size + 1, size * size))
    bands[0] = diagonal.ravel()
    bands[1] = -np.pad(along, ((0, 0), (0, 1))).ravel()
    bands[size, :-size] = -across.ravel()
    solution = solveh_banded(
        bands, source.ravel() / size**2, lower=True, overwrite_ab=True
    )
    return solution.reshape(size, size) * np.exp(-top)
