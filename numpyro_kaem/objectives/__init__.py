"""Training: what to minimise, and how to keep what was reached.

===============================  ====================================================
:class:`Checkpoint`              where and how often the state of training is kept
:func:`kan_penalty`              penalties on the coefficients of all layers
:func:`l1`                       size of the edges of a layer
:func:`entropy`                  evenness of the edges of a layer
:func:`coefficient_differences`  roughness of the edges of a layer
:func:`cyclical_schedule`        a weight that rises again and again
===============================  ====================================================
"""

from numpyro_kaem.objectives.checkpoints import Checkpoint
from numpyro_kaem.objectives.regularizers import (
    coefficient_differences,
    entropy,
    kan_penalty,
    l1,
)
from numpyro_kaem.objectives.schedules import cyclical_schedule

__all__ = [
    "Checkpoint",
    "coefficient_differences",
    "cyclical_schedule",
    "entropy",
    "kan_penalty",
    "l1",
]
