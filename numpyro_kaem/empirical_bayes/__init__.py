"""Priors learned from many units, with the units integrated out by quadrature."""

from numpyro_kaem.empirical_bayes.estimation import fit_marginal
from numpyro_kaem.empirical_bayes.likelihood import unit_log_likelihood
from numpyro_kaem.empirical_bayes.posterior import (
    UnitPosterior,
    average_below,
    unit_posterior,
)
from numpyro_kaem.empirical_bayes.quadrature import unit_log_marginal_likelihood
from numpyro_kaem.empirical_bayes.results import Band, Bootstrap, MarginalFit

__all__ = [
    "Band",
    "Bootstrap",
    "MarginalFit",
    "UnitPosterior",
    "average_below",
    "fit_marginal",
    "unit_log_likelihood",
    "unit_log_marginal_likelihood",
    "unit_posterior",
]
