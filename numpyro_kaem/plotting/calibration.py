"""Figures of simulation-based calibration."""

from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_kaem.diagnostics import CalibrationResult
from numpyro_kaem.plotting.style import COLORS, LEARNED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_calibration", "simultaneous_envelope"]

_NUM_SIMULATIONS = 2000


def plot_calibration(
    result: CalibrationResult, *, level: float = 0.95, ax: Any = None
) -> "Axes":
    """Draw the ranks of true values against those of a calibrated posterior.

    For every component the empirical distribution function of the ranks less that of
    uniform ones, and the envelope in which the whole of a curve lies with probability
    ``level`` if the posterior is calibrated. A curve like an S says that posteriors are
    too narrow or too wide, an arc that they are biased.

    Parameters
    ----------
    result
        Result of :func:`simulation_based_calibration`.
    level
        Probability that a curve stays within the envelope, in (0, 1).
    ax
        Axes to draw in; ``None`` makes a new figure.

    Returns
    -------
    Axes
        The axes drawn in.

    Raises
    ------
    TypeError
        If ``result`` is not a :class:`CalibrationResult`.
    ValueError
        If ``level`` is not in (0, 1).

    References
    ----------
    Säilynoja, Bürkner and Vehtari (2022), "Graphical test for discrete uniformity and
    its applications in goodness-of-fit evaluation and multiple sample comparison",
    *Statistics and Computing* 32.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> ranks = np.random.default_rng(0).integers(0, 100, (200, 1))
    >>> ax = kaem.plot_calibration(kaem.CalibrationResult({"mean": ranks}, 99))
    >>> ax.get_xlabel()
    'rank as a share of the draws'
    >>> plt.close(ax.figure)
    """
    if not isinstance(result, CalibrationResult):
        raise TypeError(
            f"result must be a CalibrationResult, got {type(result).__name__}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}.")
    points = np.arange(1, result.num_draws + 1) / (result.num_draws + 1)
    lower, upper = simultaneous_envelope(result.num_simulations, points, level)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")[1]
    ax.fill_between(
        points,
        lower - points,
        upper - points,
        step="mid",
        color="0.85",
        linewidth=0.0,
        label=f"{100 * level:.3g}% envelope",
    )
    ax.axhline(0.0, color="0.4", linewidth=0.8)
    colors = (LEARNED["color"], *COLORS)
    styles = ("-", "--", "-.", ":")
    number = 0
    for name, ranks in result.ranks.items():
        columns = ranks.reshape(len(ranks), -1)
        for column in range(columns.shape[1]):
            # Ranks below a share of all that are possible.
            below = columns[:, column, None] < points * (result.num_draws + 1) - 0.5
            own = name if columns.shape[1] == 1 else f"{name}[{column}]"
            ax.plot(
                points,
                below.mean(0) - points,
                color=colors[number % len(colors)],
                linestyle=styles[number // len(colors) % len(styles)],
                linewidth=1.3,
                label=own if number < 8 else None,
            )
            number += 1
    ax.set(xlabel="rank as a share of the draws", ylabel="difference from uniform")
    ax.set_xlim(0.0, 1.0)
    ax.legend(fontsize="small", framealpha=0.9)
    return ax


def simultaneous_envelope(
    num_simulations: int, points: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of an empirical distribution function that hold at all points at once.

    Each is binomial; their own level is chosen such that the share ``level`` of
    simulated curves stays within all of them.

    Parameters
    ----------
    num_simulations
        Number of values of each curve.
    points
        Where it is looked at, increasing in (0, 1), shape ``(num_points,)``.
    level
        Probability that all intervals hold.

    Returns
    -------
    tuple
        Lower and upper ends, each of shape ``(num_points,)``.
    """
    from scipy.stats import binom

    generator = np.random.default_rng(0)
    ends = np.append(points, 1.0)
    shares = np.diff(ends, prepend=0.0)
    counts = generator.multinomial(num_simulations, shares, size=_NUM_SIMULATIONS)
    curves = np.cumsum(counts, axis=1)[:, :-1]
    # Smallest tail probability of each curve: how far it strays anywhere.
    lower = binom.cdf(curves, num_simulations, points)
    upper = binom.sf(curves - 1, num_simulations, points)
    strays = np.minimum(lower, upper).min(axis=1)
    tail = np.quantile(strays, 1 - level)
    low = binom.ppf(tail, num_simulations, points)
    high = binom.isf(tail, num_simulations, points)
    return low / num_simulations, high / num_simulations
