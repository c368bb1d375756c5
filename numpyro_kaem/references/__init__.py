"""Reference laws: parameters by name, breaks of the density, and precise tails."""

from numpyro_kaem.references.checks import check_reference
from numpyro_kaem.references.parameters import (
    ReferenceParameters,
    arguments_of,
    concretely,
    is_concrete,
)
from numpyro_kaem.references.quantiles import tail_quantile
from numpyro_kaem.references.shape import (
    density_breaks,
    far_breaks,
    finest_scale,
    has_quantile,
    has_regular_ends,
    kinks,
    log_density,
    support_bounds,
    with_rank,
)
from numpyro_kaem.references.tails import tail_mass, tail_nodes

__all__ = [
    "ReferenceParameters",
    "arguments_of",
    "check_reference",
    "concretely",
    "density_breaks",
    "far_breaks",
    "finest_scale",
    "has_quantile",
    "has_regular_ends",
    "is_concrete",
    "kinks",
    "log_density",
    "support_bounds",
    "tail_mass",
    "tail_nodes",
    "tail_quantile",
    "with_rank",
]
