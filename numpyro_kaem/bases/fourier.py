"""Cosines and sines."""

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

__all__ = ["Fourier"]


class Fourier(AbstractBasis):
    r"""Cosines and sines whose longest period is twice the grid.

    .. math::

        \phi(s) = \bigl(\cos(\pi s), \dots, \cos(\pi K s),
                        \sin(\pi s), \dots, \sin(\pi K s)\bigr), \qquad
        s = \frac{z - l}{h - l}.

    Parameters
    ----------
    low, high
        Ends :math:`l < h` of the grid, in units of ``z``; static. Numbers, or lists or
        arrays with one grid a column; they broadcast to ``grid_shape``.
    num_frequencies
        Number :math:`K` of frequencies; there are :math:`2K` features, all cosines
        first.

    Raises
    ------
    TypeError
        If an end of the grid is not a real number, or ``num_frequencies`` not an
        integer.
    ValueError
        If an end is not finite, ``low`` not less than ``high``, their shapes do not
        broadcast, or ``num_frequencies`` is not positive.

    Notes
    -----
    The period is twice the grid, so that the two ends are free: a sum of features need
    not have the same value, nor the same slope, at ``low`` and at ``high``. Within half
    a period cosines and sines are not orthogonal, and nearly linearly dependent for
    many frequencies. Outside the grid the features continue as constants.

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
        """Number of features, two a frequency."""
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
        """Sum of features times coefficients, shape broadcast(s.shape, batch shape).

        See :meth:`AbstractBasis.unit_combine`. By one cosine and one sine a point.
        """
        s, coefficients = self._align(s, coefficients)
        columns = jnp.unstack(coefficients, axis=-1)
        first_cosine, first_sine = jnp.cos(math.pi * s), jnp.sin(math.pi * s)
        cosine, sine = jnp.ones_like(s), jnp.zeros_like(s)
        total = 0.0
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
