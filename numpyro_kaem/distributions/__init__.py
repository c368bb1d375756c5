"""Learned densities as NumPyro distributions."""

from numpyro_kaem.distributions import divergence as divergence
from numpyro_kaem.distributions.atoms import PriorWithAtoms
from numpyro_kaem.distributions.autoregressive import AutoregressiveKAEMPrior
from numpyro_kaem.distributions.deep import DeepEnergyPrior
from numpyro_kaem.distributions.mixture import KAEMMixture
from numpyro_kaem.distributions.prior import KAEMPrior
from numpyro_kaem.distributions.skew_normal import SkewNormal
from numpyro_kaem.distributions.token_sequence import TokenSequence
from numpyro_kaem.distributions.transform import InverseCDFTransform
from numpyro_kaem.distributions.truncation import TruncatedKAEM, truncated

__all__ = [
    "AutoregressiveKAEMPrior",
    "DeepEnergyPrior",
    "InverseCDFTransform",
    "KAEMMixture",
    "KAEMPrior",
    "PriorWithAtoms",
    "SkewNormal",
    "TokenSequence",
    "TruncatedKAEM",
    "truncated",
]
