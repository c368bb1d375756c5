"""Closed forms of learned densities."""

from numpyro_kaem.symbolic.results import Candidate, SymbolicResult, SymbolicResults
from numpyro_kaem.symbolic.search import symbolic

__all__ = ["Candidate", "SymbolicResult", "SymbolicResults", "symbolic"]
