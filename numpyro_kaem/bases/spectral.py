"""Bases of functions over the whole grid: Fourier and Chebyshev."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from numpyro_kaem._checks import GridLike, as_count
from numpyro_kaem.bases._base import (
    AbstractBasis,
    as_float,
    uniform_breaks,
    with_ndim,
)

__all__ = ["Chebyshev", "Fourier"]


class Chebyshev(AbstractBasis):
    r"""Chebyshev polynomials of the first kind.

    .. math::

        \phi_n(s) = T_n(2s - 1), \quad n = 0, \dots, N, \qquad
        T_{n+1}(t) = 2t\,T_n(t) - T_{n-1}(t), \qquad s = \frac{z - l}{h - l},

    with :math:`T_0 = 1` and :math:`T_1 = t`.

    Parameters
    ----------
    low, high
        Ends :math:`l < h` of the grid, in units of ``z``, as of
        :class:`~numpyro_kaem.bases.AbstractBasis`; static.
    degree
        Highest degree :math:`N \ge 0`; there are :math:`N + 1` features, the first of
        which is the constant 1.

    Raises
    ------
    TypeError
        If an end of the grid is not a real number, or ``degree`` not an integer.
    ValueError
        If the ends are no grid, or ``degree`` is negative.

    Notes
    -----
    Computed by the recurrence, and sums by Clenshaw's, so that all derivatives are
    finite at the ends, where those of :math:`\cos(n \arccos t)` are not. Slopes reach
    :math:`N^2` at the ends, which amplifies the rounding of ``z`` there by as much.

    References
    ----------
    Sidharth et al. (2024), "Chebyshev Polynomial-Based Kolmogorov-Arnold Networks: An
    Efficient Architecture for Nonlinear Function Approximation", arXiv:2405.07200.
    Clenshaw (1955), "A note on the summation of Chebyshev series", *Mathematical Tables
    and Other Aids to Computation* 9(51).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.bases import Chebyshev
    >>> basis = Chebyshev(low=1.0, high=5.0, degree=3)
    >>> print(basis(jnp.array([2.0, 5.0])))
    [[ 1.  -0.5 -0.5  1. ]
     [ 1.   1.   1.   1. ]]
    """

    degree: int = eqx.field(static=True)
    """Highest degree."""

    def __init__(self, low: GridLike, high: GridLike, degree: int) -> None:
        super().__init__(low, high)
        self.degree = as_count("degree", degree, minimum=0)

    @property
    def num_features(self) -> int:
        """Number of features, ``degree + 1``."""
        return self.degree + 1

    @property
    def panel_breaks(self) -> tuple[float, ...]:
        r"""Sixths of the shortest local wavelength, but at least four panels.

        With :math:`s = (1 - \cos\theta) / 2` the feature of degree :math:`n` is
        :math:`\pm\cos(n\theta)`, so the breaks are uniform in :math:`\theta`.
        """
        num_panels = max(4, 3 * self.degree)
        # sin(theta / 2)^2 is (1 - cos(theta)) / 2 without cancellation near 0.
        return tuple(
            math.sin(0.5 * math.pi * i / num_panels) ** 2 for i in range(num_panels + 1)
        )

    def unit_features(
        self, s: Real[ArrayLike, " *shape"]
    ) -> Float[Array, " *shape features"]:
        """Features at ``s`` in [0, 1], shape ``s.shape + (degree + 1,)``."""
        t = 2.0 * as_float(s) - 1.0
        features = [jnp.ones_like(t), t]
        for _ in range(self.degree - 1):
            features.append(2.0 * t * features[-1] - features[-2])
        return jnp.stack(features[: self.degree + 1], axis=-1)

    def unit_combine(
        self, s: Real[ArrayLike, "..."], coefficients: Real[ArrayLike, "... features"]
    ) -> Float[Array, "..."]:
        """Sum of features times coefficients, by Clenshaw's recurrence."""
        s, coefficients = self._align(s, coefficients)
        first, *others = jnp.unstack(coefficients, axis=-1)
        t = 2.0 * s - 1.0
        current = following = jnp.zeros_like(t)
        for coefficient in reversed(others):
            current, following = coefficient + 2.0 * t * current - following, current
        return first + t * current - following


class Fourier(AbstractBasis):
    r"""Cosines and sines whose longest period is twice the grid.

    .. math::

        \phi(s) = \bigl(\cos(\pi s), \dots, \cos(\pi K s),
                        \sin(\pi s), \dots, \sin(\pi K s)\bigr), \qquad
        s = \frac{z - l}{h - l}.

    Parameters
    ----------
    low, high
        Ends :math:`l < h` of the grid, in units of ``z``, as of
        :class:`~numpyro_kaem.bases.AbstractBasis`; static.
    num_frequencies
        Number :math:`K` of frequencies; there are :math:`2K` features, all cosines
        first.

    Raises
    ------
    TypeError
        If an end of the grid is not a real number, or ``num_frequencies`` not an
        integer.
    ValueError
        If the ends are no grid, or ``num_frequencies`` is not positive.

    Notes
    -----
    The period is twice the grid, so that the two ends are free: a sum of features need
    not have the same value, nor the same slope, at ``low`` and at ``high``. Within half
    a period cosines and sines are not orthogonal, and nearly linearly dependent for
    many frequencies.

    References
    ----------
    Xu et al. (2024), "FourierKAN-GCF: Fourier Kolmogorov-Arnold Network -- An Effective
    and Efficient Feature Transformation for Graph Collaborative Filtering",
    arXiv:2406.01034; their period is :math:`2\pi`.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.bases import Fourier
    >>> basis = Fourier(low=1.0, high=5.0, num_frequencies=2)
    >>> print(np.round(np.asarray(basis(np.array([1.0, 2.0]))), 4) + 0.0)
    [[1.     1.     0.     0.    ]
     [0.7071 0.     0.7071 1.    ]]
    """

    num_frequencies: int = eqx.field(static=True)
    """Number of frequencies."""

    def __init__(self, low: GridLike, high: GridLike, num_frequencies: int) -> None:
        super().__init__(low, high)
        self.num_frequencies = as_count("num_frequencies", num_frequencies)

    @property
    def num_features(self) -> int:
        """Number of features, two per frequency."""
        return 2 * self.num_frequencies

    @property
    def panel_breaks(self) -> tuple[float, ...]:
        """Sixths of the shortest wavelength, but at least four panels."""
        return uniform_breaks(3 * self.num_frequencies)

    def unit_features(
        self, s: Real[ArrayLike, " *shape"]
    ) -> Float[Array, " *shape features"]:
        """Features at ``s`` in [0, 1], shape ``s.shape + (2 * num_frequencies,)``."""
        s = as_float(s)
        frequencies = jnp.arange(1, self.num_frequencies + 1).astype(s.dtype)
        position = jnp.expand_dims(s, -1)
        angles = math.pi * (position * with_ndim(frequencies, s.ndim + 1))
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)

    def unit_combine(
        self, s: Real[ArrayLike, "..."], coefficients: Real[ArrayLike, "... features"]
    ) -> Float[Array, "..."]:
        """Sum of features times coefficients, by one cosine and one sine per point."""
        s, coefficients = self._align(s, coefficients)
        columns = jnp.unstack(coefficients, axis=-1)
        first_cosine, first_sine = jnp.cos(math.pi * s), jnp.sin(math.pi * s)
        cosine, sine = jnp.ones_like(s), jnp.zeros_like(s)
        total = jnp.asarray(0.0)
        # By the angle addition formulas, whose error grows only linearly (Clenshaw's
        # recurrence loses digits at the ends); XLA does not fuse a sum over cosines.
        for a, b in zip(
            columns[: self.num_frequencies],
            columns[self.num_frequencies :],
            strict=True,
        ):
            cosine, sine = (
                cosine * first_cosine - sine * first_sine,
                sine * first_cosine + cosine * first_sine,
            )
            total += a * cosine + b * sine
        return total
