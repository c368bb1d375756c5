"""Training of models: fits, checkpoints, refits, and regularizers."""

from numpyro_kaem.training.checkpoint import Checkpoint
from numpyro_kaem.training.fitting import FitProgress, FitResult, fit
from numpyro_kaem.training.refit import GridUpdate, PriorRefit, refit_prior
from numpyro_kaem.training.regularizers import (
    coefficient_differences,
    entropy,
    kan_regularizer,
    l1,
)
from numpyro_kaem.training.trainer import cyclical_schedule

__all__ = [
    "Checkpoint",
    "FitProgress",
    "FitResult",
    "GridUpdate",
    "PriorRefit",
    "coefficient_differences",
    "cyclical_schedule",
    "entropy",
    "fit",
    "kan_regularizer",
    "l1",
    "refit_prior",
]
