"""Posterior samplers for any NumPyro model with continuous latent values."""

from numpyro_kaem.infer.annealed import AnnealedLangevin
from numpyro_kaem.infer.auto_mala import AutoMALA
from numpyro_kaem.infer.evidence import Evidence, EvidenceEstimate, log_evidence
from numpyro_kaem.infer.importance import ImportanceSampling
from numpyro_kaem.infer.importance_result import (
    ImportanceResult,
    LogEvidence,
    ResampledDraws,
)
from numpyro_kaem.infer.mala import MALA
from numpyro_kaem.infer.pcnl import PCNL
from numpyro_kaem.infer.resampling import Resampled, resample_below, resample_indices
from numpyro_kaem.infer.smoothing import SmoothedWeights, pareto_smooth
from numpyro_kaem.infer.ula import ULA

__all__ = [
    "MALA",
    "PCNL",
    "ULA",
    "AnnealedLangevin",
    "AutoMALA",
    "Evidence",
    "EvidenceEstimate",
    "ImportanceResult",
    "ImportanceSampling",
    "LogEvidence",
    "Resampled",
    "ResampledDraws",
    "SmoothedWeights",
    "log_evidence",
    "pareto_smooth",
    "resample_below",
    "resample_indices",
]
