"""Figures of learned densities."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem.distributions import KAEMMixture, KAEMPrior
from numpyro_kaem.empirical_bayes import Band
from numpyro_kaem.references import log_density

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_band", "plot_prior"]

# Okabe and Ito's palette, which readers with any common colour vision tell apart. Each
# kind of curve has its own line style too, so that figures survive black and white.
_LEARNED = {"color": "#0072B2", "linewidth": 2.0, "zorder": 3}
_REFERENCE = {"color": "#D55E00", "linewidth": 1.5, "linestyle": "--", "zorder": 2.5}
_COMPONENT = {"linewidth": 1.2, "linestyle": "-.", "zorder": 2}
_COMPONENT_COLORS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_TRUTH = {"color": "black", "linewidth": 1.2, "linestyle": "--", "zorder": 4}
_HISTOGRAM = {"color": "0.85", "edgecolor": "0.65", "linewidth": 0.6, "zorder": 1}

# Masses outside the plotted range, where neither the grid nor the data are wider.
_TAIL = 0.001
_MAX_COLUMNS = 4


def plot_prior(
    prior: KAEMPrior | KAEMMixture,
    *,
    data: ArrayLike | None = None,
    reference: bool = True,
    components: bool = True,
    ax: Any = None,
    num_points: int = 512,
    bins: Any = "auto",
    label: str = "learned density",
    xlabel: str = "z",
    ylabel: str = "density",
) -> "Axes | np.ndarray":
    """Draw a learned density, its reference and data.

    Parameters
    ----------
    prior
        The density, or a batch of them, each of which gets its own axes.
    data
        Sample to show as a histogram behind the curve, shape ``(n, *batch_shape)``.
    reference
        Whether to draw the density of the reference, dashed. That of a mixture is the
        mixture of its components' references.
    components
        Whether to draw the components of a mixture, each times its weight.
    ax
        Axes to draw in: one, or an array or list with one for each density of a batch.
        ``None`` makes a new figure.
    num_points
        Number of points at which each curve is evaluated, at least 2.
    bins
        Bins of the histogram, as for :func:`numpy.histogram_bin_edges`.
    label
        Legend entry of the learned density.
    xlabel, ylabel
        Labels of the axes.

    Returns
    -------
    Axes or ndarray
        The axes for ``batch_shape`` ``()``, otherwise an array of axes of shape
        ``batch_shape``.

    Raises
    ------
    TypeError
        If ``prior`` is neither a :class:`KAEMPrior` nor a :class:`KAEMMixture`.
    ValueError
        If the batch is empty, if ``ax`` does not hold one axes for each density, if
        ``data`` is empty, not finite or of another shape, or if ``num_points`` is less
        than 2.

    Notes
    -----
    The range covers the grid of the energy, the data, and all but 0.1 % of the mass on
    either side, within the support. The colours are those of Okabe and Ito (2008),
    which do not depend on the reader's colour vision; line styles differ as well.

    References
    ----------
    Okabe and Ito (2008), "Color Universal Design",
    https://jfly.uni-koeln.de/color/.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-2.0, 4.0, 8), scale=1.0)
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0))
    >>> fig, ax = plt.subplots()
    >>> data = prior.sample(jax.random.key(1), (500,))
    >>> ax = kaem.plot_prior(prior, data=data, ax=ax, xlabel="velocity")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['learned density', 'reference', 'data']
    >>> plt.close(fig)
    """
    if not isinstance(prior, KAEMPrior | KAEMMixture):
        raise TypeError(
            f"prior must be a KAEMPrior or a KAEMMixture, got {type(prior).__name__}; "
            "of an expanded or to_event distribution, plot its base_dist."
        )
    batch_shape = prior.batch_shape
    if 0 in batch_shape:
        raise ValueError(
            f"prior must hold a density to plot, got batch_shape {batch_shape}."
        )
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, got {num_points!r}.")
    if data is not None:
        data = _check_data(data, batch_shape)

    z = _points(prior, data, num_points)
    learned, of_reference, parts = jax.tree.map(np.asarray, _densities(prior, z))

    axes = _make_axes(ax, batch_shape)
    for index in np.ndindex(batch_shape):
        panel, column = axes[index], (slice(None), *index)
        if data is not None:
            panel.hist(
                data[column], bins=bins, density=True, label="data", **_HISTOGRAM
            )
        panel.plot(z[column], learned[column], label=label, **_LEARNED)
        if reference:
            panel.plot(z[column], of_reference[column], label="reference", **_REFERENCE)
        for i in range(parts.shape[-1] if components else 0):
            panel.plot(
                z[column],
                parts[(*column, i)],
                color=_COMPONENT_COLORS[i % len(_COMPONENT_COLORS)],
                label="weighted components" if i == 0 else None,
                **_COMPONENT,
            )
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel)
        panel.set_ylim(bottom=0.0)
        if batch_shape:
            panel.set_title(f"density {', '.join(map(str, index))}", fontsize="medium")
        if index == (0,) * len(batch_shape):
            _legend(panel)
    return axes if batch_shape else axes[()]


def _check_data(data: ArrayLike, batch_shape: tuple[int, ...]) -> np.ndarray:
    """Sample of shape ``(n, *batch_shape)``, of finite numbers.

    Raises
    ------
    ValueError
        If it is empty, not finite or of another shape.
    """
    data = np.asarray(data)
    if data.ndim == 0 or data.shape[1:] != batch_shape or data.shape[0] == 0:
        expected = ", ".join(["n", *map(str, batch_shape)])
        raise ValueError(
            f"data must have shape ({expected}{'' if batch_shape else ','}) with n > 0 "
            f"for batch_shape {batch_shape}, got {data.shape}."
        )
    if not np.all(np.isfinite(data)):
        raise ValueError(
            f"data must be finite, got {np.sum(~np.isfinite(data))} values that are "
            "not; leave them out."
        )
    return data


def _points(
    prior: KAEMPrior | KAEMMixture, data: np.ndarray | None, num_points: int
) -> np.ndarray:
    """Evenly spaced points in each density's range, ``(num_points, *batch_shape)``."""
    mixture = isinstance(prior, KAEMMixture)
    energy = prior.prior.energy if mixture else prior.energy
    shape = prior.batch_shape
    tails = np.reshape([0.0, _TAIL, 1.0 - _TAIL, 1.0], (-1,) + (1,) * len(shape))
    end, low, high, other_end = np.asarray(prior.icdf(tails.astype(energy.dtype)))
    left, right = np.asarray(energy.basis.low), np.asarray(energy.basis.high)
    if mixture and left.ndim > 0:
        left, right = left.min(-1), right.max(-1)
    low, high = np.minimum(low, left), np.maximum(high, right)
    if data is not None:
        low, high = np.minimum(low, data.min(0)), np.maximum(high, data.max(0))
    low, high = np.maximum(low, end), np.minimum(high, other_end)
    # Midpoints, as a density may be infinite at the very end of its support.
    share = (np.arange(num_points) + 0.5) / num_points
    share = share.reshape((-1,) + (1,) * len(shape))
    return (low + share * (high - low)).astype(energy.dtype)


@jax.jit
def _densities(prior: KAEMPrior | KAEMMixture, z: jax.Array) -> tuple[jax.Array, ...]:
    """Densities of the prior and its reference, and the weighted components' at ``z``.

    The last has a trailing axis of components, which is empty without a mixture.
    """
    density = jnp.exp(prior.log_prob(z))
    if not isinstance(prior, KAEMMixture):
        reference = jnp.exp(log_density(prior.reference, z))
        return density, jnp.broadcast_to(reference, z.shape), z[..., None][..., :0]
    weights = jnp.exp(prior.log_weights)
    parts = weights * jnp.exp(prior.prior.log_prob(z[..., None]))
    references = jnp.exp(log_density(prior.prior.reference, z[..., None]))
    return density, jnp.sum(weights * references, axis=-1), parts


def _make_axes(ax: Any, batch_shape: tuple[int, ...]) -> np.ndarray:
    """One axes for each density, in an array of shape ``batch_shape``.

    Raises
    ------
    ValueError
        If ``ax`` holds more or fewer.
    """
    count = int(np.prod(batch_shape))
    if ax is not None:
        axes = np.array(ax, dtype=object)
        if axes.size != count:
            raise ValueError(
                f"ax must hold {count} axes, one for each density of batch_shape "
                f"{batch_shape}, got {axes.size}."
            )
        return axes.reshape(batch_shape)

    import matplotlib.pyplot as plt

    columns = batch_shape[-1] if len(batch_shape) == 2 else count
    columns = min(columns, _MAX_COLUMNS)
    rows = -(-count // columns)
    size = (6.4, 4.0) if count == 1 else (3.2 * columns, 2.6 * rows)
    _, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    axes = axes.reshape(-1)
    for unused in axes[count:]:
        unused.set_visible(False)
    return axes[:count].reshape(batch_shape)


def _legend(panel: "Axes") -> None:
    """Curves first, the histogram last, without a frame."""
    handles, labels = panel.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "data")
    panel.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        frameon=False,
        fontsize="small",
    )


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
    ax = _make_axes(ax, ())[()]
    ax.plot(z, value, label=label, **{**_LEARNED, "color": color, "ls": linestyle})
    finished = isinstance(densities, Band)
    share = "interval" if finished else f"{100 * level:.3g}% interval"
    style = {"facecolor": color, "edgecolor": color, "alpha": 0.25, "zorder": 1.5}
    ax.fill_between(z, lower, upper, label=f"{label}, {share}", **style)
    if truth is not None:
        ax.plot(z, truth, label="truth", **_TRUTH)
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
    values = np.exp(densities.log_prob(z[:, None].astype(densities.energy.dtype)))
    tail = 0.5 - 0.5 * level
    return Band(*np.quantile(values, [tail, 0.5, 1 - tail], axis=1))
