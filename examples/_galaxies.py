"""Velocities of 82 galaxies, a classic example of density estimation.

Distances of galaxies follow from the velocities at which they recede, so clusters of
velocities are clusters of galaxies, and the gaps between them are voids.

Postman, Huchra and Geller (1986), "Probes of large-scale structures in the Corona
Borealis region", *Astronomical Journal* 92, 1238-1247, measured 83 velocities. Roeder
(1990), "Density estimation with confidence sets exemplified by superclusters and voids
in the galaxies", *Journal of the American Statistical Association* 85, 617-624, left
out the lowest one, 5.607, and made the other 82 known to statisticians. The copy
``galaxies`` of R's package MASS has 26.690 as its 78th entry, which its manual page
calls a misprint of 26.960; it is corrected here.
"""

import numpy as np

VELOCITIES = np.array(
    """
     9.172  9.350  9.483  9.558  9.775 10.227 10.406 16.084 16.170 18.419
    18.552 18.600 18.927 19.052 19.070 19.330 19.343 19.349 19.440 19.473
    19.529 19.541 19.547 19.663 19.846 19.856 19.863 19.914 19.918 19.973
    19.989 20.166 20.175 20.179 20.196 20.215 20.221 20.415 20.629 20.795
    20.821 20.846 20.875 20.986 21.137 21.492 21.701 21.814 21.921 21.960
    22.185 22.209 22.242 22.249 22.314 22.374 22.495 22.746 22.747 22.888
    22.914 23.206 23.241 23.263 23.484 23.538 23.542 23.666 23.706 23.711
    24.129 24.285 24.289 24.366 24.717 24.990 25.633 26.960 26.995 32.065
    32.789 34.279
    """.split(),
    dtype=float,
)
"""Velocities in 1000 km/s, ascending, shape ``(82,)``."""


def check_velocities(velocities: np.ndarray = VELOCITIES) -> None:
    """Compare the data with published statistics.

    With the misprint put back, R prints for ``summary(galaxies)``, in km/s: 9172,
    19532, 20834, 20828, 23133 and 34279. The largest Normal log likelihood,
    -240.42 for the corrected data (McLachlan and Peel 2000, *Finite Mixture Models*,
    Wiley), is a function of the standard deviation alone; with the misprint it is
    -240.34.

    Parameters
    ----------
    velocities
        Velocities in 1000 km/s.

    Raises
    ------
    ValueError
        If a statistic differs from the published one, which the message names.
    """
    published = {
        "number": (82, len(velocities)),
        "minimum": (9.172, np.min(velocities)),
        "lower quartile": (19.532, np.quantile(velocities, 0.25)),
        "median": (20.834, np.median(velocities)),
        "mean with the misprint": (
            20.828,
            np.mean(np.where(velocities == 26.960, 26.690, velocities)),
        ),
        "upper quartile": (23.133, np.quantile(velocities, 0.75)),
        "maximum": (34.279, np.max(velocities)),
    }
    variance = np.var(velocities)
    log_likelihood = -0.5 * len(velocities) * (np.log(2 * np.pi * variance) + 1)
    # Half of the last digit printed, and rounding error.
    wrong = [
        f"{name} {value} instead of {expected}"
        for name, (expected, value) in published.items()
        if not abs(value - expected) <= 0.5e-3 + 1e-9
    ]
    if not abs(log_likelihood + 240.42) <= 0.5e-2:
        wrong.append(f"log likelihood {log_likelihood} instead of -240.42")
    if wrong:
        raise ValueError(f"the galaxy velocities have {'; '.join(wrong)}.")
