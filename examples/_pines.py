"""Strength and density of 42 specimens of radiata pine.

Source: Williams (1959), *Regression Analysis*, Wiley; as in the example "Pines" of the
BUGS project and in Carlin and Chib (1995), *Journal of the Royal Statistical Society B*
57(3). A copy distributed with software holds the thirteenth specimen twice, in place of
the ninth; evidences published for that copy differ.
"""

import numpy as np
from scipy import stats

__all__ = [
    "ADJUSTED_DENSITY",
    "DENSITY",
    "STRENGTH",
    "check_pines",
    "exact_log_evidence",
]

STRENGTH = np.array(
    [
        *(3040, 2470, 3610, 3480, 3810, 2330, 1800, 3110, 3160, 2310, 4360, 1880),
        *(3670, 1740, 2250, 2650, 4970, 2620, 2900, 1670, 2540, 3840, 3800, 4600),
        *(1900, 2530, 2920, 4990, 1670, 3310, 3450, 3600, 2850, 1590, 3770, 3850),
        *(2480, 3570, 2620, 1890, 3030, 3030),
    ],
    dtype=float,
)
"""Maximum compressive strength along the grain, pounds per square inch, ``(42,)``."""

DENSITY = np.array(
    [
        *(29.2, 24.7, 32.3, 31.3, 31.5, 24.5, 19.9, 27.3, 27.1, 24.0, 33.8, 21.5),
        *(32.2, 22.5, 27.5, 25.6, 34.5, 26.2, 26.7, 21.1, 24.1, 30.7, 32.7, 32.6),
        *(22.1, 25.3, 30.8, 38.9, 22.1, 29.2, 30.1, 31.4, 26.7, 22.1, 30.3, 32.0),
        *(23.2, 30.3, 29.9, 20.8, 33.2, 28.2),
    ]
)
"""Density, pounds per cubic foot, shape ``(42,)``."""

ADJUSTED_DENSITY = np.array(
    [
        *(25.4, 22.2, 32.2, 31.0, 30.9, 23.9, 19.2, 27.2, 26.3, 23.9, 33.2, 21.0),
        *(29.0, 22.0, 23.8, 25.3, 34.2, 25.7, 26.4, 20.0, 23.9, 30.7, 32.6, 32.5),
        *(20.8, 23.1, 29.8, 38.1, 21.3, 28.5, 29.2, 31.4, 25.9, 21.4, 29.8, 30.6),
        *(22.6, 30.3, 23.8, 18.4, 29.4, 28.2),
    ]
)
"""Density adjusted for the resin, pounds per cubic foot, shape ``(42,)``."""

# Green and O'Hagan (1998), by numerical integration.
PUBLISHED_BAYES_FACTOR = 4862


def exact_log_evidence(density: np.ndarray, strength: np.ndarray = STRENGTH) -> float:
    """Log evidence of the regression on one density, by quadrature over the variance.

    Given the variance of the noise, the strengths are Normal in closed form.

    Parameters
    ----------
    density
        Explanatory variable, shape ``(n,)``; it is centred.
    strength
        Response, shape ``(n,)``.
    """
    design = np.stack([np.ones_like(density), density - density.mean()], 1)
    # In these coordinates the strengths are independent, whatever the noise.
    axes, singular, _ = np.linalg.svd(design * [1000.0, 100.0])
    explained = np.zeros(len(strength))
    explained[:2] = singular**2
    residual = axes.T @ (strength - design @ [3000.0, 185.0])
    log_variance = np.linspace(np.log(1e4), np.log(2e6), 4001)
    variance = np.exp(log_variance)
    total = variance + explained[:, None]
    log_joint = stats.norm.logpdf(residual[:, None], 0.0, np.sqrt(total)).sum(0)
    log_joint += stats.invgamma.logpdf(variance, 3.0, scale=2 * 300.0**2) + log_variance
    largest = log_joint.max()
    return largest + np.log(np.trapezoid(np.exp(log_joint - largest), log_variance))


def check_pines(strength: np.ndarray = STRENGTH) -> None:
    """Compare the data with the published Bayes factor of 4862.

    It favours the adjusted density; with the faulty copy it would be 3210 (Green
    and O'Hagan 1998, "Model choice with MCMC on product spaces without using
    pseudo-priors", technical report 98-13, University of Nottingham; Friel and Pettitt
    2008, *Journal of the Royal Statistical Society B* 70(3)).

    Parameters
    ----------
    strength
        Strengths to check, shape ``(42,)``.

    Raises
    ------
    ValueError
        If the Bayes factor differs.
    """
    difference = exact_log_evidence(ADJUSTED_DENSITY, strength) - exact_log_evidence(
        DENSITY, strength
    )
    found = round(float(np.exp(difference)))
    if found != PUBLISHED_BAYES_FACTOR:
        raise ValueError(
            f"Bayes factor is {found}, published as {PUBLISHED_BAYES_FACTOR}."
        )
