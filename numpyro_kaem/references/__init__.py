"""References: their parameters, what is known of them, and precise tails."""

from numpyro_kaem.references.parameters import (
    ReferenceParameters,
    arguments_of,
    check_reference,
    concretely,
    is_concrete,
)
from numpyro_kaem.references.tails import (
    PowerTail,
    far_breaks,
    log_density,
    log_tail_mass,
    power_quantile,
    power_tail,
    scaled_tail_mass,
    tail_mass,
    tail_nodes,
    tail_quantile,
)
from numpyro_kaem.references.traits import (
    TRAITS,
    Traits,
    density_breaks,
    finest_scale,
    has_quantile,
    has_regular_ends,
    kinks,
    support_bounds,
    with_rank,
)

__all__ = [
    "TRAITS",
    "PowerTail",
    "ReferenceParameters",
    "Traits",
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
    "log_tail_mass",
    "power_quantile",
    "power_tail",
    "scaled_tail_mass",
    "support_bounds",
    "tail_mass",
    "tail_nodes",
    "tail_quantile",
    "with_rank",
]
