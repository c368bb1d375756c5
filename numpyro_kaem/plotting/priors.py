"""Figures of priors and their bands."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._checks import check_function
from numpyro_kaem.distributions import KAEMMixture, KAEMPrior
from numpyro_kaem.empirical_bayes import Band
from numpyro_kaem.plotting.style import (
    BAND,
    COLORS,
    COMPONENT,
    HISTOGRAM,
    LEARNED,
    OVERLAY,
    REFERENCE,
    legend,
    make_axes,
)
from numpyro_kaem.references import log_density

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from typing import TYPE_CHECKING

from numpyro_kaem.plotting.style import TRUTH

__all__ = ["band_of_draws", "plot_band", "plot_prior"]

# Masses outside the plotted range, where neither the grid nor the data are wider.
_TAIL = 0.001


def plot_prior(
    prior: dist.Distribution,
    *,
    data: ArrayLike | None = None,
    posterior: ArrayLike | None = None,
    band: KAEMPrior | Callable[[np.ndarray], Band] | None = None,
    level: float = 0.9,
    names: Sequence[str] | None = None,
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
        The density, or a batch of them, each of which gets its own axes: a
        :class:`KAEMPrior`, a :class:`KAEMMixture`, or a ``MixtureSameFamily`` of
        products of KAEM priors, of which the marginal of each latent is drawn; also
        with ``to_event``.
    data
        Sample to show as a histogram behind the curve, shape ``(n, *batch_shape)``.
    posterior
        Draws to compare with the prior, such as those of the posteriors of all units,
        as the outline of a histogram, shape ``(n, *batch_shape)``.
    band
        Uncertainty of the density, as pointwise intervals: posterior draws of it, as
        one prior of batch shape ``(num_draws, *batch_shape)``, or, of one density, a
        function of latent values such as ``density_band`` of a :class:`MarginalFit`.
    level
        Share of the draws in each interval, in (0, 1). A function has its own.
    names
        Titles of the densities of a batch, in order.
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
        If ``prior`` is of none of these forms.
    ValueError
        If the batch is empty; if ``ax`` or ``names`` do not hold one for each density;
        if ``data`` or ``posterior`` are empty, not finite or of another shape, or the
        band is; if ``num_points`` is less than 2, or ``level`` not in (0, 1).

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
    law = _as_law(prior)
    batch_shape = law.batch_shape
    if 0 in batch_shape:
        raise ValueError(
            f"prior must hold a density to plot, got batch_shape {batch_shape}."
        )
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, got {num_points!r}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}.")
    count = int(np.prod(batch_shape))
    if names is not None and len(names) != count:
        raise ValueError(
            f"names must hold {count}, one for each density of batch_shape "
            f"{batch_shape}, got {len(names)}."
        )
    samples = {
        name: _check_sample(name, value, batch_shape)
        for name, value in (("data", data), ("posterior", posterior))
        if value is not None
    }
    z = _points(law, list(samples.values()), num_points)
    learned, of_reference, parts = jax.tree.map(np.asarray, _densities(law, z))
    interval = None if band is None else _interval(band, z, batch_shape, level)

    of_draws = isinstance(band, KAEMPrior)
    interval_label = f"{100 * level:.3g}% interval" if of_draws else "interval"
    axes = make_axes(ax, batch_shape)
    for number, index in enumerate(np.ndindex(batch_shape)):
        panel, column = axes[index], (slice(None), *index)
        if data is not None:
            panel.hist(
                samples["data"][column],
                bins=bins,
                density=True,
                label="data",
                **HISTOGRAM,
            )
        if posterior is not None:
            panel.hist(
                samples["posterior"][column],
                bins=bins,
                density=True,
                label="posterior",
                **OVERLAY,
            )
        if interval is not None:
            lower, upper = (end[column] for end in interval)
            panel.fill_between(
                z[column],
                lower,
                upper,
                color=LEARNED["color"],
                label=interval_label,
                **BAND,
            )
        panel.plot(z[column], learned[column], label=label, **LEARNED)
        if reference:
            panel.plot(z[column], of_reference[column], label="reference", **REFERENCE)
        for i in range(parts.shape[-1] if components else 0):
            panel.plot(
                z[column],
                parts[(*column, i)],
                color=COLORS[i % len(COLORS)],
                label="weighted components" if i == 0 else None,
                **COMPONENT,
            )
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel)
        panel.set_ylim(bottom=0.0)
        if names is not None:
            panel.set_title(names[number], fontsize="medium")
        elif batch_shape:
            panel.set_title(f"density {', '.join(map(str, index))}", fontsize="medium")
        if number == 0:
            legend(panel)
    return axes if batch_shape else axes[()]


class _Law(NamedTuple):
    """Densities, and the components that they are mixtures of."""

    prior: KAEMPrior
    """Densities, or all components."""
    mixture: KAEMMixture | None = None
    """The mixture, if it is one on the line."""
    log_weights: jax.Array | None = None
    """Log weights of components, or None where each density stands alone."""
    axis: int = -1
    """Batch axis of the components."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the densities to draw."""
        shape = list(self.prior.batch_shape)
        if self.mixture is not None:
            return self.mixture.batch_shape
        if self.log_weights is not None:
            del shape[self.axis]
        return tuple(shape)


def _as_law(prior: Any) -> _Law:
    """Densities of any form that is drawn.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    law = _unwrap(prior)
    if isinstance(law, KAEMPrior):
        return _Law(law)
    if isinstance(law, KAEMMixture):
        return _Law(law.prior, law, law.log_weights)
    if isinstance(law, dist.MixtureSameFamily):
        component = _unwrap(law.component_distribution)
        if isinstance(component, KAEMPrior) and len(component.batch_shape) < 3:
            logits = jax.nn.log_softmax(law.mixing_distribution.logits)
            return _Law(component, None, logits, -len(component.batch_shape))
    raise TypeError(
        "prior must be a KAEMPrior, a KAEMMixture or a MixtureSameFamily of products "
        f"of KAEM priors, got {type(law).__name__}."
    )


def _unwrap(law: Any) -> Any:
    while isinstance(law, dist.Independent):
        law = law.base_dist
    return law


def _check_sample(
    name: str, data: ArrayLike, batch_shape: tuple[int, ...]
) -> np.ndarray:
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
            f"{name} must have shape ({expected}{'' if batch_shape else ','}) with "
            f"n > 0 for batch_shape {batch_shape}, got {data.shape}."
        )
    if not np.all(np.isfinite(data)):
        raise ValueError(
            f"{name} must be finite, got {np.sum(~np.isfinite(data))} values that are "
            "not; leave them out."
        )
    return data


def _points(law: _Law, samples: list[np.ndarray], num_points: int) -> np.ndarray:
    """Evenly spaced points in each density's range, ``(num_points, *batch_shape)``."""
    energy, shape = law.prior.energy, law.batch_shape
    whole = law.prior if law.mixture is None else law.mixture
    rank = len(whole.batch_shape)
    tails = np.reshape([0.0, _TAIL, 1.0 - _TAIL, 1.0], (-1,) + (1,) * rank)
    ends = np.asarray(whole.icdf(tails.astype(energy.dtype)))
    left, right = np.asarray(energy.basis.low), np.asarray(energy.basis.high)
    if law.mixture is None and law.log_weights is not None:
        # Beyond the tails of all components is no more mass of the mixture.
        left, right = (np.broadcast_to(a, whole.batch_shape) for a in (left, right))
        left, right = left.min(law.axis), right.max(law.axis)
        lowest, highest = ends.min(law.axis), ends.max(law.axis)
        end, low, high, other_end = lowest[0], lowest[1], highest[2], highest[3]
    else:
        end, low, high, other_end = ends
        if law.mixture is not None and left.ndim > 0:
            left, right = left.min(-1), right.max(-1)
    low, high = np.minimum(low, left), np.maximum(high, right)
    for sample in samples:
        low, high = np.minimum(low, sample.min(0)), np.maximum(high, sample.max(0))
    low, high = np.maximum(low, end), np.minimum(high, other_end)
    # Midpoints, as a density may be infinite at the very end of its support.
    share = (np.arange(num_points) + 0.5) / num_points
    share = share.reshape((-1,) + (1,) * len(shape))
    return (low + share * (high - low)).astype(energy.dtype)


@partial(jax.jit, static_argnames="axis")
def _evaluate(
    prior: KAEMPrior, log_weights: jax.Array | None, z: jax.Array, axis: int
) -> tuple[jax.Array, ...]:
    if log_weights is None:
        density = jnp.exp(prior.log_prob(z))
        reference = jnp.exp(log_density(prior.reference, z))
        return density, jnp.broadcast_to(reference, z.shape), z[..., None][..., :0]
    weights = jnp.exp(log_weights)
    z = jnp.expand_dims(z, z.ndim + 1 + axis)
    parts = jnp.moveaxis(jnp.exp(prior.log_prob(z)), axis, -1)
    references = jnp.exp(log_density(prior.reference, z))
    shape = jnp.broadcast_shapes(z.shape, prior.batch_shape)
    references = jnp.broadcast_to(references, shape)
    references = jnp.moveaxis(references, axis, -1)
    parts = weights * parts
    return parts.sum(-1), jnp.sum(weights * references, axis=-1), parts


def _densities(law: _Law, z: np.ndarray) -> tuple[jax.Array, ...]:
    """Densities of the prior and its reference, and the weighted components' at ``z``.

    The last has a trailing axis of components, which is empty without a mixture.
    """
    return _evaluate(law.prior, law.log_weights, z, law.axis)


def _interval(
    band: Any, z: np.ndarray, batch_shape: tuple[int, ...], level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends over ``z``.

    Raises
    ------
    TypeError
        If the band is neither draws nor a function.
    ValueError
        If its shape does not fit.
    """
    if isinstance(band, KAEMPrior):
        if band.batch_shape[1:] != batch_shape or len(band.batch_shape) == 0:
            expected = ", ".join(["num_draws", *map(str, batch_shape)])
            raise ValueError(
                f"band must have batch shape ({expected}), got {band.batch_shape}."
            )
        found = band_of_draws(band, z, level)
        return found.lower, found.upper
    what = "a KAEMPrior with a batch of draws, or a function such as"
    check_function("band", band, f"{what} MarginalFit.density_band")
    found = band(z)
    ends = np.asarray(found.lower), np.asarray(found.upper)
    if ends[0].shape != z.shape:
        raise ValueError(
            f"band must return an interval for each of {z.shape} values, got "
            f"{ends[0].shape}."
        )
    return ends


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
