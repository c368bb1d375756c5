"""Figures, with matplotlib."""

from numpyro_kaem.plotting.latents import (
    interpolate_latents,
    plot_interpolation,
    plot_samples,
    plot_traversal,
)
from numpyro_kaem.plotting.priors import plot_band, plot_prior
from numpyro_kaem.plotting.sampling import (
    plot_calibration,
    plot_history,
    plot_ladder,
    plot_weights,
)
from numpyro_kaem.plotting.units import plot_false_signs, plot_ranks

__all__ = [
    "interpolate_latents",
    "plot_band",
    "plot_calibration",
    "plot_false_signs",
    "plot_history",
    "plot_interpolation",
    "plot_ladder",
    "plot_prior",
    "plot_ranks",
    "plot_samples",
    "plot_traversal",
    "plot_weights",
]
