"""Numbers of automobile policies by their claims in one year.

Thyrion (1960), "Contribution à l'étude du bonus pour non sinistre en assurance
automobile", *ASTIN Bulletin* 1(3), as given by Simar (1976), "Maximum likelihood
estimation of a compound Poisson process", *Annals of Statistics* 4(6).
"""

import numpy as np
from scipy import optimize, stats

CLAIMS = np.arange(8)
POLICIES = np.array([7840, 1317, 239, 42, 14, 4, 4, 1])
"""Number of policies with each number of claims, shape ``(8,)``."""

# What no prior can exceed: the maximum over all distributions of the rate (Simar 1976).
NONPARAMETRIC_MAXIMUM = -5340.704


def fit_gamma() -> tuple[float, float, float]:
    """Shape, scale and log likelihood of the gamma prior of maximum likelihood."""

    def loss(logs: np.ndarray) -> float:
        shape, scale = np.exp(logs)
        return -POLICIES @ stats.nbinom.logpmf(CLAIMS, shape, 1 / (1 + scale))

    best = optimize.minimize(
        loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9}
    )
    return *np.exp(best.x), -best.fun


def check_claims(policies: np.ndarray = POLICIES) -> None:
    """Compare the data with published statistics.

    There are 9461 policies; the gamma prior of maximum likelihood has shape .7015 and
    scale .3056 (Efron and Hastie 2016, *Computer Age Statistical Inference*,
    Cambridge University Press, table 6.1).

    Raises
    ------
    ValueError
        If a statistic differs from the published one, which the message names.
    """
    shape, scale, _ = fit_gamma()
    published = {
        "number of policies": (9461, policies.sum()),
        "shape": (0.7015, round(shape, 4)),
        "scale": (0.3056, round(scale, 4)),
    }
    for name, (expected, found) in published.items():
        if found != expected:
            raise ValueError(f"{name} is {found}, published as {expected}.")
