"""Wavelets on equally spaced centres."""

import math
from collections.abc import Callable
from types import MappingProxyType

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from numpyro_kaem._checks import GridLike
from numpyro_kaem.bases._base import uniform_breaks
from numpyro_kaem.bases._centred import AbstractCentredBasis

__all__ = ["Wavelet"]


def _morlet(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.cos(5.0 * x) * jnp.exp(-0.5 * x**2)


def _mexican_hat(x: Float[Array, "..."]) -> Float[Array, "..."]:
    height = 2.0 / (math.sqrt(3.0) * math.pi**0.25)
    return height * (1.0 - x**2) * jnp.exp(-0.5 * x**2)


def _derivative_of_gaussian(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return -x * jnp.exp(-0.5 * x**2)


def _shannon(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.sinc(0.5 * x) * jnp.cos(1.5 * math.pi * x)


_PROFILES: MappingProxyType[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "morlet": _morlet,
        "mexican_hat": _mexican_hat,
        "dog": _derivative_of_gaussian,
        "shannon": _shannon,
    }
)

_OSCILLATING = ("morlet", "shannon")


class Wavelet(AbstractCentredBasis):
    r"""Shifted and scaled copies of a mother wavelet on equally spaced centres.

    .. math::

        \phi_j(s) = \psi(x_j), \qquad
        x_j = \frac{s - c_j}{b\,d}, \qquad s = \frac{z - l}{h - l},

    with centres :math:`c_j = j d`, :math:`d = 1 / (G - 1)`, :math:`j = 0, \dots, G-1`,
    and the mother wavelet

    .. math::

        \psi(x) = \begin{cases}
            \cos(5x)\, e^{-x^2/2} & \text{"morlet"} \\
            \frac{2}{\sqrt{3}\,\pi^{1/4}} (1 - x^2)\, e^{-x^2/2}
                & \text{"mexican\_hat"} \\
            -x\, e^{-x^2/2} & \text{"dog", the derivative of a Gaussian} \\
            \frac{\sin(\pi x/2)}{\pi x/2} \cos(3 \pi x / 2) & \text{"shannon"}.
        \end{cases}

    Parameters
    ----------
    low, high
        Ends :math:`l < h` of the grid, in units of ``z``; static. Numbers, or lists or
        arrays with one grid a column; they broadcast to ``grid_shape``.
    num_basis
        Number :math:`G` of centres, the first on ``low`` and the last on ``high``. A
        single centre lies in the middle, and :math:`d = 1`.
    kind
        Name of the mother wavelet: ``"morlet"``, ``"mexican_hat"``, ``"dog"`` or
        ``"shannon"``; static.
    bandwidth
        Width :math:`b > 0` of the wavelet, in units of the spacing of the centres; a
        scalar, which can be trained.

    Raises
    ------
    TypeError
        If an end of the grid or ``bandwidth`` is not a real number, ``num_basis`` not
        an integer, or ``kind`` not a string.
    ValueError
        If an end is not finite, ``low`` not less than ``high``, their shapes do not
        broadcast, ``num_basis`` is not positive, ``kind`` is unknown, or ``bandwidth``
        is not a positive and finite scalar; its sign is not checked under ``jit``.

    Notes
    -----
    Outside the grid the features continue as constants. The Shannon wavelet decays only
    as :math:`1 / x`, so each of its features reaches over the whole grid.
    ``panel_breaks`` do not follow ``bandwidth``: well below 1 it needs panels that are
    split further.

    References
    ----------
    Bozorgasl and Chen (2024), "Wav-KAN: Wavelet Kolmogorov-Arnold Networks",
    arXiv:2405.12832. Mallat (2009), *A Wavelet Tour of Signal Processing*, 3rd edition,
    sections 4.3 and 7.2.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.bases import Wavelet
    >>> basis = Wavelet(low=-1.0, high=3.0, num_basis=3, kind="mexican_hat")
    >>> print(np.round(np.asarray(basis(np.array([1.0, 1.5]))), 4))
    [[ 0.      0.8673  0.    ]
     [-0.2234  0.7881  0.2864]]
    """

    kind: str = eqx.field(static=True)
    """Name of the mother wavelet."""

    def __init__(
        self,
        low: GridLike,
        high: GridLike,
        num_basis: int,
        kind: str = "morlet",
        *,
        bandwidth: ArrayLike = 1.0,
    ) -> None:
        super().__init__(low, high, num_basis, bandwidth=bandwidth)
        expected = ", ".join(repr(name) for name in _PROFILES)
        if not isinstance(kind, str):
            raise TypeError(f"kind must be one of {expected}, got {kind!r}.")
        if kind not in _PROFILES:
            raise ValueError(f"kind must be one of {expected}, got {kind!r}.")
        self.kind = kind

    @property
    def panel_breaks(self) -> tuple[float, ...]:
        """Quarters of the intervals between the centres where the wavelet oscillates.

        Those are quarters of the shortest wavelength of a Morlet or a Shannon wavelet
        of bandwidth 1. Of the others halves, and always at least four panels.
        """
        parts = 4 if self.kind in _OSCILLATING else 2
        return uniform_breaks(parts * (self.num_basis - 1))

    def profile(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Mother wavelet at ``x``, elementwise."""
        return _PROFILES[self.kind](x)
