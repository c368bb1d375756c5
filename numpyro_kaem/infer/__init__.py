"""Posterior samplers for any NumPyro model with continuous latent values."""

from numpyro_kaem.infer.importance import ImportanceSampling
from numpyro_kaem.infer.importance_result import (
    ImportanceResult,
    LogEvidence,
    ResampledDraws,
)
from numpyro_kaem.infer.resampling import Resampled, resample_below, resample_indices
from numpyro_kaem.infer.smoothing import SmoothedWeights, pareto_smooth

__all__ = [
    "ImportanceResult",
    "ImportanceSampling",
    "LogEvidence",
    "Resampled",
    "ResampledDraws",
    "SmoothedWeights",
    "pareto_smooth",
    "resample_below",
    "resample_indices",
]
