"""Maximum likelihood of models with latent values: objectives, and training."""

# First, whichever of the two is asked for: the objectives are made of its samplers, and
# it shows them beside these.
import numpyro_kaem.infer  # noqa: F401
from numpyro_kaem.objectives.amortised import AmortisedELBO
from numpyro_kaem.objectives.checkpoints import Checkpoint
from numpyro_kaem.objectives.fitting import FitProgress, FitResult, fit
from numpyro_kaem.objectives.grid_update import GridUpdate
from numpyro_kaem.objectives.importance import Degeneracy, ImportanceMLE
from numpyro_kaem.objectives.langevin import LangevinMLE
from numpyro_kaem.objectives.marginal_likelihood import (
    MarginalLogLikelihood,
    log_marginal_likelihood,
)
from numpyro_kaem.objectives.refit import PriorRefit, refit_prior
from numpyro_kaem.objectives.regularizers import (
    coefficient_differences,
    entropy,
    kan_penalty,
    l1,
)
from numpyro_kaem.objectives.schedules import cyclical_schedule
from numpyro_kaem.objectives.thermodynamic import ThermodynamicMLE

__all__ = [
    "AmortisedELBO",
    "Checkpoint",
    "Degeneracy",
    "FitProgress",
    "FitResult",
    "GridUpdate",
    "ImportanceMLE",
    "LangevinMLE",
    "MarginalLogLikelihood",
    "PriorRefit",
    "ThermodynamicMLE",
    "coefficient_differences",
    "cyclical_schedule",
    "entropy",
    "fit",
    "kan_penalty",
    "l1",
    "log_marginal_likelihood",
    "refit_prior",
]
