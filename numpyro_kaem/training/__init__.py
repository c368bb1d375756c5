"""Training of models: fits, checkpoints, refits, and regularizers."""

from numpyro_kaem.training.checkpoint import Checkpoint
from numpyro_kaem.training.fitting import FitProgress, FitResult, fit
from numpyro_kaem.training.refit import GridUpdate, PriorRefit, refit_prior
from numpyro_kaem.training.regularizers import kan_regularizer
from numpyro_kaem.training.trainer import cyclical_schedule

__all__ = [
    "Checkpoint",
    "FitProgress",
    "FitResult",
    "GridUpdate",
    "PriorRefit",
    "cyclical_schedule",
    "fit",
    "kan_regularizer",
    "refit_prior",
]
