"""Closed forms and numbers of learned densities."""

from numpyro_kaem.closed_forms.results import (
    Candidate,
    PriorSummary,
    SymbolicResult,
    SymbolicResults,
    summarize_prior,
)
from numpyro_kaem.closed_forms.search import symbolic

__all__ = [
    "Candidate",
    "PriorSummary",
    "SymbolicResult",
    "SymbolicResults",
    "summarize_prior",
    "symbolic",
]
