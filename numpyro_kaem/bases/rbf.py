"""Gaussian radial basis functions."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_kaem.bases._centred import AbstractCentredBasis

__all__ = ["RBF"]


class RBF(AbstractCentredBasis):
    r"""Gaussian radial basis functions on equally spaced centres.

    .. math::

        \phi_j(s) = \exp\bigl(-x_j^2 / 2\bigr), \qquad
        x_j = \frac{s - c_j}{b\,d}, \qquad s = \frac{z - l}{h - l},

    with centres :math:`c_j = j d`, :math:`d = 1 / (G - 1)`, :math:`j = 0, \dots, G-1`.

    Parameters
    ----------
    low, high
        Ends :math:`l < h` of the grid, in units of ``z``; static. Numbers, or lists or
        arrays with one grid a column; they broadcast to ``grid_shape``.
    num_basis
        Number :math:`G` of centres, the first on ``low`` and the last on ``high``. A
        single centre lies in the middle, and :math:`d = 1`.
    bandwidth
        Standard deviation :math:`b > 0` of the Gaussian, in units of the spacing of the
        centres; a scalar, which can be trained.

    Raises
    ------
    TypeError
        If an end of the grid or ``bandwidth`` is not a real number, or ``num_basis``
        not an integer.
    ValueError
        If an end is not finite, ``low`` not less than ``high``, their shapes do not
        broadcast, ``num_basis`` is not positive, or ``bandwidth`` is not a positive and
        finite scalar; its sign is not checked under ``jit``.

    Notes
    -----
    Outside the grid the features continue as constants. ``panel_breaks`` do not follow
    ``bandwidth``: well below 1 it needs panels that are split further. Above about 2
    the features are nearly linearly dependent.

    References
    ----------
    Li (2024), "Kolmogorov-Arnold Networks are Radial Basis Function Networks",
    arXiv:2405.06721; their bandwidth is :math:`\sqrt{2}\,b`.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.bases import RBF
    >>> basis = RBF(low=-1.0, high=3.0, num_basis=3)
    >>> print(np.round(np.asarray(basis(np.array([1.0, 3.0]))), 4))
    [[0.6065 1.     0.6065]
     [0.1353 0.6065 1.    ]]
    """

    def profile(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Gaussian of unit height at ``x``, elementwise."""
        return jnp.exp(-0.5 * x**2)
