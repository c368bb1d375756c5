"""Training of models: fits, checkpoints, refits, and penalties."""

from numpyro_kaem.training.checkpoint import Checkpoint
from numpyro_kaem.training.fitting import fit
from numpyro_kaem.training.refit import GridUpdate, PriorRefit, refit_prior
from numpyro_kaem.training.regularizers import (
    coefficient_differences,
    entropy,
    kan_penalty,
    l1,
)
from numpyro_kaem.training.run import FitProgress, FitResult
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
    "kan_penalty",
    "l1",
    "refit_prior",
]
