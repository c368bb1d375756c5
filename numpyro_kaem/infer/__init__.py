"""Posterior samplers for any NumPyro model with continuous latent values.

===========================  ========================================================
:class:`ImportanceSampling`  a few latent values, or many units with a few each
:class:`MALA`                nearly Normal posteriors; one gradient per draw
:class:`PCNL`                the same in many dimensions, on a Normal base
:class:`AutoMALA`            scales that differ somewhat from place to place
:class:`TemperedSMC`         well-separated modes, and the evidence
:class:`AnnealedLangevin`    the same by chains, which also move without a prior's draws
:class:`ULA`                 biased; to compare with published work
:func:`log_evidence`         the evidence, from an annealed population
:func:`sample_posterior`     tries the cheapest first, and says what it did and why
:func:`check_missed_modes`   whether a run of NUTS has missed what another found
===========================  ========================================================

The kernels are run by :class:`numpyro.infer.MCMC`, and collect what NumPyro's do.
:func:`held_out_log_likelihood` measures a trained model on held-out data.
"""

from numpyro_kaem.infer.annealed import AnnealedLangevin
from numpyro_kaem.infer.choose_sampler import PosteriorSample, sample_posterior
from numpyro_kaem.infer.evidence import Evidence, log_evidence
from numpyro_kaem.infer.held_out import (
    HeldOutLogLikelihood,
    held_out_log_likelihood,
)
from numpyro_kaem.infer.importance import ImportanceSampling
from numpyro_kaem.infer.importance_result import ImportanceResult, ResampledDraws
from numpyro_kaem.infer.kernels import MALA, PCNL, ULA, AutoMALA
from numpyro_kaem.infer.missed_modes import MissedModes, check_missed_modes
from numpyro_kaem.infer.tempered import TemperedSMC, TemperedSMCResult
from numpyro_kaem.infer.weights import (
    Estimate,
    Resampled,
    SmoothedWeights,
    pareto_smooth,
    resample_below,
    resample_indices,
)

__all__ = [
    "MALA",
    "PCNL",
    "ULA",
    "AnnealedLangevin",
    "AutoMALA",
    "Estimate",
    "Evidence",
    "HeldOutLogLikelihood",
    "ImportanceResult",
    "ImportanceSampling",
    "MissedModes",
    "PosteriorSample",
    "Resampled",
    "ResampledDraws",
    "SmoothedWeights",
    "TemperedSMC",
    "TemperedSMCResult",
    "check_missed_modes",
    "held_out_log_likelihood",
    "log_evidence",
    "pareto_smooth",
    "resample_below",
    "resample_indices",
    "sample_posterior",
]
