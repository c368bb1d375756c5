"""Figures of uncertain densities."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.empirical_bayes import Band
from numpyro_kaem.plotting.style import LEARNED, TRUTH, make_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["band_of_draws", "plot_band"]


def plot_band(
    z: ArrayLike,
    densities: KAEMPrior | Band,
    *,
    level: float = 0.9,
    truth: dist.Distribution | ArrayLike | None = None,
    ax: Any = None,
    label: str = "posterior median",
    color: Any = "#0072B2",
    linestyle: Any = "-",
    xlabel: str = "z",
    ylabel: str = "density",
) -> "Axes":
    """Draw an uncertain density: a curve between pointwise intervals.

    Parameters
    ----------
    z
        Increasing latent values at which to draw, shape ``(num_points,)``, at least 2.
    densities
        Posterior draws of the density, as one prior of batch shape ``(num_draws,)``
        made from draws of the coefficients; or a finished band over ``z``, such as
        ``density_band(z)`` of the result of :func:`fit_marginal`.
    level
        Share of the draws in each interval, in (0, 1), with equal tails. A finished
        band has its own.
    truth
        A density to compare with, dashed: a distribution, or values of shape
        ``(num_points,)``.
    ax
        Axes to draw in: one; ``None`` makes a new figure.
    label
        Legend entry of the curve; that of the interval adds to it.
    color, linestyle
        Of the curve and its band, so that two bands in one figure can be told apart.
    xlabel, ylabel
        Labels of the axes.

    Returns
    -------
    Axes
        The axes drawn in.

    Raises
    ------
    TypeError
        If ``densities`` is neither a :class:`KAEMPrior` nor a band.
    ValueError
        If ``z`` is not increasing and finite, a shape does not fit, ``level`` is not in
        (0, 1), or ``ax`` holds several axes.

    Notes
    -----
    The intervals are pointwise: each covers the density at one latent value, and the
    whole curve leaves the band more often. The median of densities at each point is
    not itself a density.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.BSpline(-2.0, 4.0, 8)
    >>> draws = kaem.Energy.init(jax.random.key(0), basis, (50,), scale=0.3)
    >>> fig, ax = plt.subplots()
    >>> ax = kaem.plot_band(
    ...     np.linspace(-3.0, 5.0, 100),
    ...     kaem.KAEMPrior(draws, dist.Normal(1.0, 2.0)),
    ...     truth=dist.Normal(1.0, 2.0),
    ...     ax=ax,
    ... )
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['posterior median', 'posterior median, 90% interval', 'truth']
    >>> plt.close(fig)
    """
    z = np.asarray(z)
    increasing = z.ndim == 1 and z.size > 1 and np.all(np.diff(z) > 0)
    if not (increasing and np.all(np.isfinite(z))):
        raise ValueError(
            "z must be finite increasing values of shape (num_points,), at least 2, "
            f"got shape {z.shape}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}.")
    lower, value, upper = _band(z, densities, level)
    if isinstance(truth, dist.Distribution):
        truth = np.exp(truth.log_prob(z))
    if truth is not None and np.shape(truth) != z.shape:
        raise ValueError(
            "truth must be one density, or its values of the shape of z, "
            f"{z.shape}, got {np.shape(truth)}."
        )
    ax = make_axes(ax, ())[()]
    ax.plot(z, value, label=label, **{**LEARNED, "color": color, "ls": linestyle})
    finished = isinstance(densities, Band)
    share = "interval" if finished else f"{100 * level:.3g}% interval"
    style = {"facecolor": color, "edgecolor": color, "alpha": 0.25, "zorder": 1.5}
    ax.fill_between(z, lower, upper, label=f"{label}, {share}", **style)
    if truth is not None:
        ax.plot(z, truth, label="truth", **TRUTH)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_ylim(bottom=0.0)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _band(z: np.ndarray, densities: Any, level: float) -> Band:
    """Lower ends, values and upper ends over ``z``.

    Raises
    ------
    TypeError
        If they are neither draws nor a band.
    ValueError
        If their shape does not fit.
    """
    if isinstance(densities, Band):
        shapes = [np.shape(part) for part in densities]
        if any(shape != z.shape for shape in shapes):
            raise ValueError(
                f"densities must be a band of the shape of z, {z.shape}, got {shapes}."
            )
        return densities
    if not isinstance(densities, KAEMPrior):
        raise TypeError(
            "densities must be a KAEMPrior with a batch of draws, or a band such as "
            f"that of MarginalFit.density_band, got {type(densities).__name__}."
        )
    if len(densities.batch_shape) != 1 or 0 in densities.batch_shape:
        raise ValueError(
            "densities must be draws of one density, of batch shape (num_draws,), got "
            f"{densities.batch_shape}."
        )
    return band_of_draws(densities, z, level)


def band_of_draws(draws: KAEMPrior, z: np.ndarray, level: float) -> Band:
    """Pointwise intervals and medians over draws of a density, the first batch axis."""
    values = np.exp(draws.log_prob(z[:, None].astype(draws.energy.dtype)))
    tail = 0.5 - 0.5 * level
    return Band(*np.quantile(values, [tail, 0.5, 1 - tail], axis=1))
