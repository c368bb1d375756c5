"""Figures, with matplotlib."""

from numpyro_kaem.plotting.bands import plot_band
from numpyro_kaem.plotting.calibration import plot_calibration
from numpyro_kaem.plotting.latents import (
    interpolate_latents,
    plot_interpolation,
    plot_traversal,
)
from numpyro_kaem.plotting.priors import plot_prior
from numpyro_kaem.plotting.samples import plot_samples
from numpyro_kaem.plotting.sampling import plot_ladder, plot_weights
from numpyro_kaem.plotting.training import plot_history

__all__ = [
    "interpolate_latents",
    "plot_band",
    "plot_calibration",
    "plot_history",
    "plot_interpolation",
    "plot_ladder",
    "plot_prior",
    "plot_samples",
    "plot_traversal",
    "plot_weights",
]
