"""The normaliser against SciPy: the bases with the other references.

Most of this is compiling; ``test_normalizer.py`` has each basis and each reference in
the form that users compile.
"""

import numpy as np
import pytest

from tests.bases.cases import CASES as BASES
from tests.distributions.cases import DIAGONAL, REFERENCES, build
from tests.distributions.normalizer_bars import (
    check,
    check_estimate,
    relative_error,
)

pytestmark = pytest.mark.float64

OTHERS = [
    (basis, reference)
    for basis in BASES
    for reference in REFERENCES
    if (basis, reference) not in DIAGONAL
]


# Where float32 misses a bar, and by how much.
MISSES = {
    ("chebyshev", "uniform"): "relative error 5.27e-6, bar 5.05e-6",
    ("shannon", "beta-singular"): "estimate holds for .86 of energies, bar .9",
    ("morlet", "beta-singular"): "estimate holds for .82 of energies, bar .9",
}


@pytest.mark.long
@pytest.mark.parametrize(("basis", "reference"), OTHERS)
def test_normalizer_of_pairs(basis, reference, x64, request):
    if not x64 and (basis, reference) in MISSES:
        reason = MISSES[basis, reference]
        # Not strict: the miss is by rounding, which differs between processors.
        request.applymarker(pytest.mark.xfail(reason=reason, strict=False))
    built = build.__wrapped__(basis, reference)
    error = relative_error(built)
    check(error, built, x64)
    assert np.mean(check_estimate(error, built)) >= 0.9
