"""B-splines on uniform knots."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Real

from numpyro_kaem._checks import GridLike, as_count
from numpyro_kaem.bases._base import (
    AbstractBasis,
    as_float,
    uniform_breaks,
    with_ndim,
)

__all__ = ["BSpline"]


class BSpline(AbstractBasis):
    r"""B-splines on uniform knots that extend beyond the grid.

    .. math::

        \phi_j(s) = B_p(m s - j + p), \quad j = 0, \dots, G-1, \qquad
        m = G - p, \qquad s = \frac{z - l}{h - l},

    where :math:`B_p` is the cardinal B-spline of degree :math:`p` on the knots
    :math:`0, 1, \dots, p + 1`,

    .. math::

        B_p(t) = \tfrac{t}{p} B_{p-1}(t) + \tfrac{p + 1 - t}{p} B_{p-1}(t - 1), \qquad
        B_0 = 1_{[0, 1)}.

    Parameters
    ----------
    low, high
        Ends :math:`l < h` of the grid, in units of ``z``, as of
        :class:`~numpyro_kaem.bases.AbstractBasis`; static.
    num_basis
        Number :math:`G > p` of B-splines; the grid is divided into :math:`G - p` equal
        cells.
    degree
        Degree :math:`p \ge 0` of the polynomials.

    Raises
    ------
    TypeError
        If an end of the grid is not a real number, or ``num_basis`` or ``degree`` not
        an integer.
    ValueError
        If the ends are no grid, or ``num_basis`` or ``degree`` is too small.

    Notes
    -----
    Only :math:`p + 1` B-splines are not zero in a cell: ``unit_combine`` gathers their
    coefficients and costs the same for every ``num_basis``. Cells contain their left
    ends, the last one both. Inside the grid the features sum to 1, so a constant added
    to all coefficients adds that constant.

    References
    ----------
    de Boor (1978), *A Practical Guide to Splines*, Springer, chapters IX and X.
    Liu et al. (2024), "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.bases import BSpline
    >>> basis = BSpline(low=1.0, high=5.0, num_basis=4, degree=2)
    >>> print(basis(jnp.array([2.0, 5.0])))
    [[0.125 0.75  0.125 0.   ]
     [0.    0.    0.5   0.5  ]]
    """

    num_basis: int = eqx.field(static=True)
    """Number of B-splines."""
    degree: int = eqx.field(static=True)
    """Degree of the polynomials."""

    def __init__(
        self, low: GridLike, high: GridLike, num_basis: int, degree: int = 3
    ) -> None:
        super().__init__(low, high)
        self.num_basis = as_count("num_basis", num_basis)
        self.degree = as_count("degree", degree, minimum=0)
        if self.num_basis <= self.degree:
            raise ValueError(
                "num_basis must be greater than degree, got "
                f"num_basis={num_basis} and degree={degree}."
            )

    @property
    def num_features(self) -> int:
        """Number of features, ``num_basis``."""
        return self.num_basis

    @property
    def panel_breaks(self) -> tuple[float, ...]:
        """Halves of the cells (quarters of a single one), so all knots are breaks."""
        return uniform_breaks(2 * (self.num_basis - self.degree))

    def unit_features(
        self, s: Real[ArrayLike, " *shape"]
    ) -> Float[Array, " *shape features"]:
        """Features at ``s`` in [0, 1], shape ``s.shape + (num_basis,)``."""
        cell, values = self._local_values(as_float(s))
        index = with_ndim(np.arange(self.num_basis, dtype=np.int32), cell.ndim + 1)
        offset = index - jnp.expand_dims(cell, -1)
        # Compare and select rather than scatter: it fuses with what uses the features.
        features = jnp.zeros(offset.shape, values[0].dtype)
        for k, value in enumerate(values):
            features = jnp.where(offset == k, jnp.expand_dims(value, -1), features)
        return features

    def unit_combine(
        self, s: Real[ArrayLike, "..."], coefficients: Real[ArrayLike, "... features"]
    ) -> Float[Array, "..."]:
        """Sum of features times coefficients: ``degree + 1`` per point are gathered."""
        s, coefficients = self._align(s, coefficients)
        cell, values = self._local_values(s)
        batch_shape = coefficients.shape[:-1]
        # One gather of scalars for each value from a flat array: a gather of slices, or
        # along an axis, takes several times as long on CPU.
        rows = np.arange(math.prod(batch_shape), dtype=np.int32).reshape(batch_shape)
        start = jnp.asarray(rows * self.num_basis) + cell
        flat = jnp.reshape(coefficients, -1)
        total = jnp.asarray(0.0)
        for k, value in enumerate(values):
            # The cell is clipped, so every index is in bounds.
            total += value * flat.at[start + k].get(mode="promise_in_bounds")
        return total

    def _local_values(
        self, s: Float[Array, " *shape"]
    ) -> tuple[Int[Array, " *shape"], list[Float[Array, " *shape"]]]:
        """First non-zero feature, and the values of the ``degree + 1`` non-zero ones.

        With the position ``u`` in the cell, the values of degree ``p`` follow from
        those of degree ``p - 1`` by

            values[k] <- ((u + p - k) values[k - 1] + (k + 1 - u) values[k]) / p,

        in which all terms are non-negative.
        """
        num_cells = self.num_basis - self.degree
        position = s * num_cells
        # Clipped as an integer: s = 1 belongs to the last cell, and NaN stays NaN in u.
        cell = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, num_cells - 1)
        u = position - cell.astype(s.dtype)
        values = [jnp.ones_like(u)]
        for p in range(1, self.degree + 1):
            left = [(u + (p - k)) * values[k - 1] for k in range(1, p + 1)]
            right = [((k + 1) - u) * values[k] for k in range(p)]
            inner = [a + b for a, b in zip(left[:-1], right[1:], strict=True)]
            values = [v / p for v in [right[0], *inner, left[-1]]]
        return cell, values
