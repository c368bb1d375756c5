"""Closed forms and numbers of learned densities."""

from numpyro_kaem.symbolic.results import Candidate, SymbolicResult, SymbolicResults
from numpyro_kaem.symbolic.search import symbolic
from numpyro_kaem.symbolic.summary import PriorSummary, summarize_prior

__all__ = [
    "Candidate",
    "PriorSummary",
    "SymbolicResult",
    "SymbolicResults",
    "summarize_prior",
    "symbolic",
]
