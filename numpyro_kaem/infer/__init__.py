"""Posterior samplers for any NumPyro model with continuous latent values."""

from numpyro_kaem.infer.annealed import AnnealedLangevin
from numpyro_kaem.infer.evidence import Evidence, EvidenceEstimate, log_evidence

__all__ = ["AnnealedLangevin", "Evidence", "EvidenceEstimate", "log_evidence"]
