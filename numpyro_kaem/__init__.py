"""Kolmogorov-Arnold energy models for NumPyro."""

from numpyro_kaem import infer
from numpyro_kaem._version import __version__
from numpyro_kaem.autoguide import AutoKAEM
from numpyro_kaem.autoregressive_estimation import fit_autoregressive
from numpyro_kaem.bases import RBF, RSWAF, BSpline, Chebyshev, Fourier, Wavelet
from numpyro_kaem.conditioner import MaskedConditioner
from numpyro_kaem.distributions import (
    AutoregressiveKAEMPrior,
    InverseCDFTransform,
    KAEMMixture,
    KAEMPrior,
)
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
from numpyro_kaem.kart import kart
from numpyro_kaem.mixture_estimation import fit_mixture
from numpyro_kaem.modules import parameter_priors, random_walk_energy
from numpyro_kaem.plotting import plot_band, plot_prior

__all__ = [
    "RBF",
    "RSWAF",
    "AutoKAEM",
    "AutoregressiveKAEMPrior",
    "BSpline",
    "Chebyshev",
    "Energy",
    "Fourier",
    "InverseCDFTransform",
    "KAEMMixture",
    "KAEMPrior",
    "MarginalFit",
    "MaskedConditioner",
    "UnitPosterior",
    "Wavelet",
    "__version__",
    "fit_autoregressive",
    "fit_density",
    "fit_marginal",
    "fit_mixture",
    "infer",
    "kart",
    "log_marginal_likelihood",
    "parameter_priors",
    "plot_band",
    "plot_prior",
    "random_walk_energy",
    "unit_log_likelihood",
    "unit_posterior",
]
