"""Bases of one shape about many centres: Gaussian, reflectional and wavelet."""

import math
from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from numpyro_kaem._checks import GridLike, as_bandwidth, as_count, as_name
from numpyro_kaem.bases._base import (
    AbstractBasis,
    as_float,
    uniform_breaks,
    with_ndim,
)

__all__ = ["RBF", "RSWAF", "AbstractCentredBasis", "Wavelet"]

# From this number of sums on they are computed centre by centre: each is done for many
# points at once, by vector instructions, and no array of features is kept for
# derivatives. For fewer the turns of the loop would take longer than the sums.
_MANY_SUMS = 1 << 14


class AbstractCentredBasis(AbstractBasis):
    """One profile, shifted to the centres and scaled by the bandwidth.

    A subclass supplies ``profile``, an elementwise function of the distance to the
    centre in units of the bandwidth times the spacing of the centres.
    """

    num_basis: int = eqx.field(static=True)
    """Number of centres."""
    # The default is for type checkers, which take the fields for the arguments.
    bandwidth: Float[Array, ""] = eqx.field(kw_only=True, default=1.0)
    """Width of the profile, in units of the spacing of the centres."""

    def __init__(
        self,
        low: GridLike,
        high: GridLike,
        num_basis: int,
        *,
        bandwidth: ArrayLike = 1.0,
    ) -> None:
        super().__init__(low, high)
        self.num_basis = as_count("num_basis", num_basis)
        self.bandwidth = as_bandwidth(bandwidth)

    @property
    def num_features(self) -> int:
        """Number of features, one per centre."""
        return self.num_basis

    @property
    def panel_breaks(self) -> tuple[float, ...]:
        """Halves of the intervals between the centres, but at least four panels."""
        return uniform_breaks(2 * (self.num_basis - 1))

    @abstractmethod
    def profile(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Profile at a scaled distance, elementwise."""

    def unit_features(self, s: Real[ArrayLike, "..."]) -> Float[Array, "... features"]:
        """Features at ``s`` in [0, 1], shape ``s.shape + (num_basis,)``."""
        s = as_float(s)
        position, centres = self._in_spacings(s)
        centres = with_ndim(centres, s.ndim + 1)
        distance = jnp.expand_dims(position, -1) - centres
        # Built as a scalar, but a transformation of the tree may have given the leaf a
        # batch, which then broadcasts against s.
        bandwidth = jnp.expand_dims(jnp.asarray(self.bandwidth, s.dtype), -1)
        ndim = max(distance.ndim, bandwidth.ndim)
        return self.profile(with_ndim(distance, ndim) / with_ndim(bandwidth, ndim))

    def unit_combine(
        self, s: Real[ArrayLike, "..."], coefficients: Real[ArrayLike, "... features"]
    ) -> Float[Array, "..."]:
        """Sum of features times coefficients; of many sums, centre by centre."""
        s, coefficients = self._align(s, coefficients)
        bandwidth = jnp.asarray(self.bandwidth, s.dtype)
        ndim = max(s.ndim, bandwidth.ndim)
        s, bandwidth = with_ndim(s, ndim), with_ndim(bandwidth, ndim)
        coefficients = with_ndim(coefficients, ndim + 1)
        shape = jnp.broadcast_shapes(s.shape, bandwidth.shape, coefficients.shape[:-1])
        if math.prod(shape) < _MANY_SUMS:
            return super().unit_combine(s, coefficients)
        position, centres = self._in_spacings(s)

        # In reverse mode computed again, rather than kept.
        @jax.checkpoint
        def add(total: Array, term: tuple[Array, Array]) -> tuple[Array, None]:
            centre, coefficient = term
            profile = self.profile((position - centre) / bandwidth)
            return total + coefficient * profile, None

        terms = centres, jnp.moveaxis(coefficients, -1, 0)
        zero = jnp.zeros(shape, jnp.result_type(s, coefficients))
        # An accelerator waits for the launch of every turn of a loop.
        unroll = jax.default_backend() != "cpu"
        return jax.lax.scan(add, zero, terms, unroll=unroll)[0]

    def _in_spacings(self, s: Float[Array, "..."]) -> tuple[Array, Array]:
        """``s`` and the centres, in units of the spacing of the centres.

        The centres are integers there, which no format rounds.
        """
        if self.num_basis == 1:
            return s, jnp.full(1, 0.5, s.dtype)
        # Counted in integers: see `avoid_wrong_sums` for sums over floats 0, 1, ....
        return s * (self.num_basis - 1), jnp.arange(self.num_basis).astype(s.dtype)


class RBF(AbstractCentredBasis):
    r"""Gaussian radial basis functions on equally spaced centres.

    .. math::

        \phi_j(s) = \exp\bigl(-x_j^2 / 2\bigr), \qquad
        x_j = \frac{s - c_j}{b\,d}, \qquad s = \frac{z - l}{h - l},

    with centres :math:`c_j = j d`, :math:`d = 1 / (G - 1)`, :math:`j = 0, \dots, G-1`.

    Parameters
    ----------
    low, high
        Ends :math:`l < h` of the grid, in units of ``z``, as of
        :class:`~numpyro_kaem.bases.AbstractBasis`; static.
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
        If the ends are no grid, ``num_basis`` is not positive, or ``bandwidth`` is not
        a positive and finite scalar; its sign is not checked under ``jit``.

    Notes
    -----
    ``panel_breaks`` do not follow ``bandwidth``: well below 1 it needs panels that are
    split further. Above about 2 the features are nearly linearly dependent.

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


class RSWAF(AbstractCentredBasis):
    r"""Reflectional switch activation functions on equally spaced centres.

    .. math::

        \phi_j(s) = 1 - \tanh(x_j)^2, \qquad x_j = \frac{s - c_j}{b\,d},

    with the centres :math:`c_j`, their spacing :math:`d` and the position :math:`s` of
    :class:`RBF`.

    Parameters
    ----------
    low, high, num_basis
        As of :class:`RBF`.
    bandwidth
        Width :math:`b > 0` of the profile, in units of the spacing of the centres; a
        scalar, which can be trained.

    Raises
    ------
    TypeError, ValueError
        As :class:`RBF`.

    Notes
    -----
    Computed as :math:`4 \sigma(2x) \sigma(-2x)`, with :math:`\sigma` the logistic
    function: the tails and all derivatives keep their relative accuracy, where
    ``1 - tanh(x)**2`` is rounded to 0 from ``x = 9`` in float32.

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


def _gaussian(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.exp(-0.5 * x**2)


_PROFILES: dict[str, Callable[[Array], Array]] = {
    "morlet": lambda x: jnp.cos(5.0 * x) * _gaussian(x),
    "mexican_hat": lambda x: (
        2.0 / (math.sqrt(3.0) * math.pi**0.25) * (1.0 - x**2) * _gaussian(x)
    ),
    "dog": lambda x: -x * _gaussian(x),
    "shannon": lambda x: jnp.sinc(0.5 * x) * jnp.cos(1.5 * math.pi * x),
}
_OSCILLATING = ("morlet", "shannon")


class Wavelet(AbstractCentredBasis):
    r"""Shifted and scaled copies of a mother wavelet on equally spaced centres.

    .. math::

        \phi_j(s) = \psi(x_j), \qquad x_j = \frac{s - c_j}{b\,d},

    with the centres :math:`c_j`, their spacing :math:`d` and the position :math:`s` of
    :class:`RBF`, and the mother wavelet

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
    low, high, num_basis
        As of :class:`RBF`, whose errors it raises too.
    kind
        Name of the mother wavelet: ``"morlet"``, ``"mexican_hat"``, ``"dog"`` or
        ``"shannon"``; static.
    bandwidth
        Width :math:`b > 0` of the wavelet, in units of the spacing of the centres; a
        scalar, which can be trained.

    Raises
    ------
    TypeError
        If ``kind`` is not a string.
    ValueError
        If ``kind`` is unknown.

    Notes
    -----
    The Shannon wavelet decays only as :math:`1 / x`, so each of its features reaches
    over the whole grid.

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
        self.kind = as_name("kind", kind, _PROFILES)

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
