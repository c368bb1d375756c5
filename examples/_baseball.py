"""Batting averages of eighteen players in 1970, a classic example of shrinkage.

Efron and Morris (1975), "Data analysis using Stein's estimator and its
generalizations", *Journal of the American Statistical Association* 70(350), table 1:
hits in the first 45 times at bat, and the batting average over the rest of the season.
The Williams of the table has .256 over the rest of the season; copies with .330 hold
another player of that name.
"""

import numpy as np

PLAYERS = (
    "Clemente, F. Robinson, F. Howard, Johnstone, Berry, Spencer, Kessinger, "
    "L. Alvarado, Santo, Swoboda, Unser, Williams, Scott, Petrocelli, E. Rodriguez, "
    "Campaneris, Munson, Alvis"
).split(", ")
"""Names of the players."""

AT_BATS = 45
"""Times at bat of every player."""

HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
"""Hits, shape ``(18,)``."""

REST_OF_SEASON = np.array(
    """
    .346 .298 .276 .222 .273 .270 .263 .210 .269 .230 .264 .256 .303 .264 .226 .286
    .316 .200
    """.split(),
    dtype=float,
)
"""Batting averages over the rest of the season, shape ``(18,)``."""


def shrink(values: np.ndarray, variance: float) -> np.ndarray:
    """Shrink towards the mean of all, after James and Stein.

    Parameters
    ----------
    values
        Observations, shape ``(n,)``.
    variance
        Variance of each about its own mean.

    Returns
    -------
    ndarray
        Shape ``(n,)``.
    """
    mean = values.mean()
    spread = np.sum((values - mean) ** 2)
    return mean + max(0.0, 1 - (len(values) - 3) * variance / spread) * (values - mean)


def check_baseball(rest_of_season: np.ndarray = REST_OF_SEASON) -> None:
    """Compare the data with published statistics.

    On the scale ``sqrt(45) * arcsin(2 * average - 1)``, on which the variance is one,
    Efron and Morris (1975) report total squared errors of 17.56 for the first averages
    and 5.01 for the James-Stein estimates, from averages rounded to three digits.

    Parameters
    ----------
    rest_of_season
        Batting averages over the rest of the season, shape ``(18,)``.

    Raises
    ------
    ValueError
        If a statistic differs from the published one, which the message names.
    """

    def scale(averages: np.ndarray) -> np.ndarray:
        return np.sqrt(AT_BATS) * np.arcsin(2 * averages - 1)

    scaled, truth = scale(HITS / AT_BATS), scale(rest_of_season)
    shrunk = shrink(scaled, 1.0)
    published = {
        "number of players": (18, len(PLAYERS)),
        "error of the averages": (17.56, np.sum((scaled - truth) ** 2)),
        "error of James-Stein": (5.01, np.sum((shrunk - truth) ** 2)),
    }
    for name, (expected, found) in published.items():
        if not abs(found - expected) <= 0.004 * expected:
            raise ValueError(f"{name} is {found:.4g}, published as {expected}.")
