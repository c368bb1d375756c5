"""Figures of many units' posteriors, for decisions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_kaem._checks import as_count, as_number
from numpyro_kaem.empirical_bayes import UnitPosterior
from numpyro_kaem.plotting.style import LEARNED, REFERENCE, make_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_false_signs", "plot_ranks"]


def plot_false_signs(
    posterior: UnitPosterior,
    *,
    rate: float = 0.05,
    threshold: float = 0.0,
    ax: Any = None,
) -> "Axes":
    """Draw how the rate of false signs grows with the number of signs claimed.

    The units are in the order of their local rates; the s-value is the average of the
    local rates so far. The line marks the largest set within ``rate``.

    Parameters
    ----------
    posterior
        Posterior of all units, by :func:`unit_posterior`.
    rate
        Largest share of false signs, in (0, 1).
    threshold
        As for :meth:`UnitPosterior.local_false_sign_rate`.
    ax
        Axes to draw in, and returned; ``None`` makes new ones.

    Raises
    ------
    TypeError
        If ``posterior`` is not one, or ``rate`` not a number.
    ValueError
        If ``rate`` is not in (0, 1), or ``ax`` holds several axes.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> flat = kaem.Energy(kaem.BSpline(-6.0, 6.0, 8), np.zeros(8))
    >>> slab = kaem.KAEMPrior(flat, dist.Normal(0.0, 3.0))
    >>> prior = kaem.PriorWithAtoms([0.0], [0.5], slab)
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), np.arange(5.0))
    >>> ax = kaem.plot_false_signs(kaem.unit_posterior(prior, units), rate=0.1)
    >>> ax.get_legend().get_texts()[2].get_text()
    '2 units at 0.1'
    >>> plt.close(ax.figure)
    """
    _check(posterior)
    rate = as_number("rate", rate, "between 0 and 1", lambda value: 0 < value < 1)
    local = np.sort(np.asarray(posterior.local_false_sign_rate(threshold)))
    averages = np.sort(np.asarray(posterior.s_values(threshold)))
    found = int(np.sum(averages <= rate))
    ax = make_axes(ax, (), (6.4, 4.0))[()]
    count = np.arange(1, len(local) + 1)
    ax.plot(count, local, label="local false sign rate", **REFERENCE)
    ax.plot(count, averages, label="s-value", **LEARNED)
    label = f"{found} unit{'' if found == 1 else 's'} at {rate:g}"
    ax.axvline(found, color="0.3", linewidth=1.0, linestyle=":", label=label)
    ax.set(xlabel="number of signs claimed", ylabel="rate", xlim=(0, len(local)))
    ax.set_ylim(bottom=0.0)
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_ranks(
    posterior: UnitPosterior,
    *,
    num_top: int = 20,
    level: float = 0.9,
    names: Any = None,
    ax: Any = None,
) -> "Axes":
    """Draw the units with the largest values, in the order of their expected ranks.

    Parameters
    ----------
    posterior
        Posterior of all units, by :func:`unit_posterior`.
    num_top
        How many units to draw, or all if there are fewer.
    level
        Posterior probability of the intervals around the means, in (0, 1).
    names
        Name of every unit; ``None`` is its number.
    ax
        Axes to draw in, and returned; ``None`` makes new ones.

    Raises
    ------
    TypeError
        If ``posterior`` is not one, or a number of the wrong type.
    ValueError
        If a number is out of its range, ``names`` has another length than there are
        units, or ``ax`` holds several axes.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> flat = kaem.Energy(kaem.BSpline(-6.0, 6.0, 8), np.zeros(8))
    >>> prior = kaem.KAEMPrior(flat, dist.Normal(0.0, 3.0))
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), np.arange(5.0))
    >>> ax = kaem.plot_ranks(kaem.unit_posterior(prior, units), num_top=3)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['4 (1.4)', '3 (2.1)', '2 (3.0)']
    >>> plt.close(ax.figure)
    """
    _check(posterior)
    level = as_number("level", level, "between 0 and 1", lambda value: 0 < value < 1)
    num_top = min(as_count("num_top", num_top), posterior.num_units)
    names = list(range(posterior.num_units)) if names is None else list(names)
    if len(names) != posterior.num_units:
        raise ValueError(
            f"names must have one entry for each of {posterior.num_units} units, got "
            f"{len(names)}."
        )
    ranks = np.asarray(posterior.expected_ranks())
    top = np.argsort(ranks, kind="stable")[:num_top]
    tails = np.array([0.5 - 0.5 * level, 0.5 + 0.5 * level])
    low, high = np.asarray(posterior.quantile(tails))[:, top]
    ax = make_axes(ax, (), (6.4, 1.0 + 0.22 * num_top))[()]
    place = np.arange(num_top)
    interval = f"{100 * level:.3g}% interval"
    ax.hlines(place, low, high, color=LEARNED["color"], alpha=0.5, label=interval)
    mean = np.asarray(posterior.mean)[top]
    ax.plot(mean, place, "o", color=LEARNED["color"], markersize=4, label="mean")
    ax.set_yticks(place, [f"{names[i]} ({ranks[i]:.1f})" for i in top])
    ax.set(xlabel="latent value", ylabel="unit (expected rank)")
    ax.invert_yaxis()
    ax.legend(frameon=False, fontsize="small")
    return ax


def _check(posterior: Any) -> None:
    if not isinstance(posterior, UnitPosterior):
        raise TypeError(
            "posterior must be the result of unit_posterior, got "
            f"{type(posterior).__name__}."
        )
