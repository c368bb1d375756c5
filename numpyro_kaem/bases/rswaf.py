"""Reflectional switch activation functions."""

import jax
from jaxtyping import Array, Float

from numpyro_kaem.bases._centred import AbstractCentredBasis

__all__ = ["RSWAF"]


class RSWAF(AbstractCentredBasis):
    r"""Reflectional switch activation functions on equally spaced centres.

    .. math::

        \phi_j(s) = 1 - \tanh(x_j)^2, \qquad
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
        Width :math:`b > 0` of the profile, in units of the spacing of the centres; a
        scalar, which can be trained.

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
    Computed as :math:`4 \sigma(2x) \sigma(-2x)`, with :math:`\sigma` the logistic
    function: the tails and all derivatives keep their relative accuracy, where
    ``1 - tanh(x)**2`` is rounded to 0 from ``x = 9`` in float32. Outside the grid the
    features continue as constants. ``panel_breaks`` do not follow ``bandwidth``: well
    below 1 it needs panels that are split further.

    References
    ----------
    Delis (2024), "FasterKAN", https://github.com/AthanasiosDelis/faster-kan.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.bases import RSWAF
    >>> basis = RSWAF(low=-1.0, high=3.0, num_basis=3)
    >>> print(np.round(np.asarray(basis(np.array([1.0, 3.0]))), 4))
    [[0.42   1.     0.42  ]
     [0.0707 0.42   1.    ]]
    """

    def profile(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Squared hyperbolic secant at ``x``, elementwise."""
        # Not through exp(-2|x|): the second derivative would be lost at x = 0.
        return 4.0 * jax.nn.sigmoid(2.0 * x) * jax.nn.sigmoid(-2.0 * x)
