"""Results for ArviZ, and calibration."""

from numpyro_kaem.diagnostics.calibration import (
    CalibrationResult,
    posterior_predictive_p_values,
    simulation_based_calibration,
)
from numpyro_kaem.diagnostics.conversion import to_arviz
from numpyro_kaem.diagnostics.quality import SampleQuality, sample_quality

__all__ = [
    "CalibrationResult",
    "SampleQuality",
    "posterior_predictive_p_values",
    "sample_quality",
    "simulation_based_calibration",
    "to_arviz",
]
