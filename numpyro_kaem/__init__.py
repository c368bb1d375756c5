"""Kolmogorov-Arnold energy models for NumPyro."""

from numpyro_kaem._version import __version__
from numpyro_kaem.autoguide import AutoKAEM
from numpyro_kaem.bases import RBF, RSWAF, BSpline, Chebyshev, Fourier, Wavelet
from numpyro_kaem.distributions import InverseCDFTransform, KAEMMixture, KAEMPrior
from numpyro_kaem.empirical_bayes import (
    MarginalFit,
    UnitPosterior,
    fit_marginal,
    log_marginal_likelihood,
    unit_log_likelihood,
    unit_posterior,
)
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation import fit_density
from numpyro_kaem.modules import parameter_priors, random_walk_energy
from numpyro_kaem.plotting import plot_band, plot_prior

__all__ = [
    "RBF",
    "RSWAF",
    "AutoKAEM",
    "BSpline",
    "Chebyshev",
    "Energy",
    "Fourier",
    "InverseCDFTransform",
    "KAEMMixture",
    "KAEMPrior",
    "MarginalFit",
    "UnitPosterior",
    "Wavelet",
    "__version__",
    "fit_density",
    "fit_marginal",
    "log_marginal_likelihood",
    "parameter_priors",
    "plot_band",
    "plot_prior",
    "random_walk_energy",
    "unit_log_likelihood",
    "unit_posterior",
]
