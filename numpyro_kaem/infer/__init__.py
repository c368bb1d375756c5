"""Posterior samplers for any NumPyro model with continuous latent values."""

from numpyro_kaem.infer.annealed import AnnealedLangevin
from numpyro_kaem.infer.auto_mala import AutoMALA
from numpyro_kaem.infer.choosing import PosteriorSample, sample_posterior
from numpyro_kaem.infer.evidence import Evidence, EvidenceEstimate, log_evidence
from numpyro_kaem.infer.importance import ImportanceSampling
from numpyro_kaem.infer.importance_result import (
    ImportanceResult,
    LogEvidence,
    ResampledDraws,
)
from numpyro_kaem.infer.mala import MALA
from numpyro_kaem.infer.missed_modes import MissedModes, check_missed_modes
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
    "MissedModes",
    "PosteriorSample",
    "Resampled",
    "ResampledDraws",
    "SmoothedWeights",
    "check_missed_modes",
    "log_evidence",
    "pareto_smooth",
    "resample_below",
    "resample_indices",
    "sample_posterior",
]
