r"""Univariate bases: features of a latent variable on a static grid.

Every basis first maps its grid to the unit interval,
:math:`s = \mathrm{clip}((z - l) / (h - l), 0, 1)`, and then returns the features
:math:`\phi_1(s), \dots, \phi_G(s)`. Outside the grid the features therefore continue
as constants. The ends of the grid, the counts and the degrees are static; the only
array of a basis, if it has one, is its ``bandwidth``.
"""

from numpyro_kaem.bases._base import AbstractBasis, on_unit_grid
from numpyro_kaem.bases.bspline import BSpline
from numpyro_kaem.bases.centred import RBF, RSWAF, Wavelet
from numpyro_kaem.bases.spectral import Chebyshev, Fourier

__all__ = [
    "RBF",
    "RSWAF",
    "AbstractBasis",
    "BSpline",
    "Chebyshev",
    "Fourier",
    "Wavelet",
    "on_unit_grid",
]
