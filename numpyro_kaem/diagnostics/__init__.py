"""Results for ArviZ, and calibration."""

from numpyro_kaem.diagnostics.calibration import (
    CalibrationResult,
    posterior_predictive_p_values,
    simulation_based_calibration,
)
from numpyro_kaem.diagnostics.conversion import to_arviz

__all__ = [
    "CalibrationResult",
    "posterior_predictive_p_values",
    "simulation_based_calibration",
    "to_arviz",
]
