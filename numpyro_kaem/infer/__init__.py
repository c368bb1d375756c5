"""Posterior samplers for any NumPyro model with continuous latent values."""

from numpyro_kaem.infer.annealed import AnnealedLangevin
from numpyro_kaem.infer.auto_mala import AutoMALA
from numpyro_kaem.infer.evidence import Evidence, EvidenceEstimate, log_evidence
from numpyro_kaem.infer.mala import MALA
from numpyro_kaem.infer.pcnl import PCNL
from numpyro_kaem.infer.ula import ULA

__all__ = [
    "MALA",
    "PCNL",
    "ULA",
    "AnnealedLangevin",
    "AutoMALA",
    "Evidence",
    "EvidenceEstimate",
    "log_evidence",
]
