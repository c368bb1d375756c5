"""Maximum likelihood of models with latent values, as ELBOs of NumPyro."""

from numpyro_kaem.objectives.amortised import AmortisedELBO
from numpyro_kaem.objectives.importance import Degeneracy, ImportanceMLE
from numpyro_kaem.objectives.langevin import LangevinMLE
from numpyro_kaem.objectives.thermodynamic import ThermodynamicMLE

__all__ = [
    "AmortisedELBO",
    "Degeneracy",
    "ImportanceMLE",
    "LangevinMLE",
    "ThermodynamicMLE",
]
