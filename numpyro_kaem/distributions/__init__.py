"""Learned one-dimensional densities as NumPyro distributions."""

from numpyro_kaem.distributions.mixture import KAEMMixture
from numpyro_kaem.distributions.prior import KAEMPrior
from numpyro_kaem.distributions.transform import InverseCDFTransform

__all__ = ["InverseCDFTransform", "KAEMMixture", "KAEMPrior"]
