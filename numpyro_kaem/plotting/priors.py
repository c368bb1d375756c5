"""Figures of priors and of bands around them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_number, check_function
from numpyro_kaem.distributions import KAEMMixture, KAEMPrior, PriorWithAtoms
from numpyro_kaem.empirical_bayes import Band
from numpyro_kaem.plotting.style import (
    ATOM,
    BAND,
    COLORS,
    COMPONENT,
    HISTOGRAM,
    LEARNED,
    OVERLAY,
    REFERENCE,
    TRUTH,
    legend,
    make_axes,
)
from numpyro_kaem.references import log_density

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_band", "plot_prior"]

_MAX_COLUMNS = 4
# At which each curve is evaluated.
_NUM_POINTS = 512
# Probability beyond each end of the plotted range, unless the grid or the data extend
# farther.
_TAIL = 0.001


def plot_prior(
    prior: dist.Distribution,
    *,
    data: ArrayLike | None = None,
    posterior: ArrayLike | None = None,
    band: KAEMPrior | Callable[[np.ndarray], Band] | None = None,
    level: float = 0.9,
    reference: bool = True,
    components: bool = True,
    ax: Any = None,
    bins: Any = "auto",
    label: str = "learned density",
    xlabel: str = "z",
    ylabel: str = "density",
) -> "Axes | np.ndarray":
    """Draw a learned density, its reference and data.

    The range covers the grid of the energy, the data, and all but 0.1 % of the
    probability on either side, within the support.

    Parameters
    ----------
    prior
        One density or a batch, each in its own axes: a :class:`KAEMPrior`, a
        :class:`KAEMMixture`, or a ``MixtureSameFamily`` of products of KAEM priors,
        whose marginals are drawn; also with ``to_event``. Or one
        :class:`PriorWithAtoms`: the density times its probability, and stems for the
        probabilities of the atoms, on an axis at the right.
    data
        Sample to show as a histogram behind the curve, shape ``(n, *batch_shape)``.
    posterior
        Draws to compare with the prior, such as those of all units' posteriors, as the
        outline of a histogram, shape ``(n, *batch_shape)``.
    band
        Pointwise intervals: posterior draws of the density, as one prior of batch shape
        ``(num_draws, *batch_shape)``, or, for a single density, a function of latent
        values such as ``density_band`` of a :class:`MarginalFit`.
    level
        Probability of each interval, in (0, 1); a function has its own.
    reference
        Whether to draw the reference density, dashed; for a mixture, the mixture of its
        components' references.
    components
        Whether to draw the components of a mixture, each times its weight.
    ax
        One axes per density to draw in; ``None`` makes a new figure.
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
        If ``prior`` has none of these forms, or a number is of the wrong type.
    ValueError
        If the batch is empty; if ``ax`` does not hold one per density; if ``data``,
        ``posterior`` or ``band`` have another shape, or the first two are empty or not
        finite; or if ``level`` is out of its range.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-2.0, 4.0, 8), scale=1.0)
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0))
    >>> data = prior.sample(jax.random.key(1), (500,))
    >>> ax = kaem.plot_prior(prior, data=data, xlabel="velocity")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['learned density', 'reference', 'data']
    >>> plt.close(ax.figure)
    """
    drawn = _as_drawn(prior)
    shape = drawn.batch_shape
    count = int(np.prod(shape))
    if count == 0:
        raise ValueError(f"prior must hold a density to plot, got batch_shape {shape}.")
    level = _as_level(level)
    samples = {
        name: _as_sample(name, value, shape)
        for name, value in (("data", data), ("posterior", posterior))
        if value is not None
    }
    z = _points(drawn, list(samples.values()))
    learned, of_reference, parts = jax.tree.map(
        np.asarray, _evaluate(drawn.prior, drawn.log_weights, z, drawn.axis)
    )
    if drawn.with_atoms is not None:
        weight = float(drawn.with_atoms.prior_weight)
        learned, of_reference = weight * learned, weight * of_reference
    interval = None if band is None else _interval(band, z, shape, level)
    of_draws = isinstance(band, KAEMPrior)
    interval_label = f"{100 * level:.3g}% interval" if of_draws else "interval"

    columns = min(shape[-1] if len(shape) == 2 else count, _MAX_COLUMNS)
    size = (6.4, 4.0) if count == 1 else (3.2 * columns, 2.6 * -(-count // columns))
    axes = make_axes(ax, shape, size, columns)
    for number, index in enumerate(np.ndindex(shape)):
        panel: Any = axes[index]
        column = (slice(None), *index)
        for name, style in (("data", HISTOGRAM), ("posterior", OVERLAY)):
            if name in samples:
                sample = samples[name][column]
                panel.hist(sample, bins=bins, density=True, label=name, **style)
        if interval is not None:
            panel.fill_between(
                z[column],
                *(end[column] for end in interval),
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
        panel.set(xlabel=xlabel, ylabel=ylabel)
        panel.set_ylim(bottom=0.0)
        if drawn.with_atoms is not None:
            _draw_atoms(panel, drawn.with_atoms)
        if shape:
            panel.set_title(f"density {', '.join(map(str, index))}", fontsize="medium")
        if number == 0:
            legend(panel)
    return axes if shape else axes[()]


def _draw_atoms(panel: Any, prior: PriorWithAtoms) -> None:
    """Stems, with an axis of their own and an entry in the legend of the panel."""
    right = panel.twinx()
    atoms, weights = np.asarray(prior.atoms), np.asarray(prior.weights)
    right.vlines(atoms, 0.0, weights, color=LEARNED["color"], linewidth=1.5)
    right.plot(atoms, weights, **ATOM)
    right.set(ylabel="probability of an atom", ylim=(0.0, 1.0))
    panel.plot([], [], label="atoms", **ATOM)


class _Drawn(NamedTuple):
    """KAEM priors, or mixtures over one batch axis of theirs with ``log_weights``."""

    prior: KAEMPrior
    mixture: KAEMMixture | None = None
    log_weights: jax.Array | None = None
    axis: int = -1
    with_atoms: PriorWithAtoms | None = None

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the densities to draw."""
        shape = list(self.prior.batch_shape)
        if self.mixture is not None:
            return self.mixture.batch_shape
        if self.log_weights is not None:
            del shape[self.axis]
        return tuple(shape)


def _as_drawn(prior: Any) -> _Drawn:
    base = _unwrap(prior)
    if isinstance(base, KAEMPrior):
        return _Drawn(base)
    if isinstance(base, PriorWithAtoms) and base.batch_shape == ():
        return _Drawn(base.prior, with_atoms=base)
    if isinstance(base, KAEMMixture):
        return _Drawn(base.prior, base, base.log_weights)
    if isinstance(base, dist.MixtureSameFamily):
        component = _unwrap(base.component_distribution)
        if isinstance(component, KAEMPrior) and len(component.batch_shape) < 3:
            log_weights = jax.nn.log_softmax(base.mixing_distribution.logits)
            return _Drawn(component, None, log_weights, -len(component.batch_shape))
    raise TypeError(
        "prior must be a KAEMPrior, a KAEMMixture, a MixtureSameFamily of products of "
        f"KAEM priors, or one PriorWithAtoms, got {type(base).__name__}."
    )


def _unwrap(prior: Any) -> Any:
    while isinstance(prior, dist.Independent):
        prior = prior.base_dist
    return prior


def _as_level(level: float) -> float:
    return as_number("level", level, "between 0 and 1", lambda value: 0 < value < 1)


def _as_sample(name: str, data: ArrayLike, batch_shape: tuple[int, ...]) -> np.ndarray:
    """Sample of finite numbers, shape ``(n, *batch_shape)``."""
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


def _points(drawn: _Drawn, samples: list[np.ndarray]) -> np.ndarray:
    """Evenly spaced points in each density's range, ``(_NUM_POINTS, *batch_shape)``."""
    energy = drawn.prior.energy
    whole = drawn.prior if drawn.mixture is None else drawn.mixture
    tails = np.reshape(
        [0.0, _TAIL, 1.0 - _TAIL, 1.0], (-1,) + (1,) * len(whole.batch_shape)
    )
    ends = np.asarray(whole.icdf(tails.astype(energy.dtype)))
    left, right = np.asarray(energy.basis.low), np.asarray(energy.basis.high)
    if drawn.mixture is None and drawn.log_weights is not None:
        # The tails of a mixture lie within the outermost tails of its components.
        left, right = (np.broadcast_to(a, whole.batch_shape) for a in (left, right))
        left, right = left.min(drawn.axis), right.max(drawn.axis)
        lowest, highest = ends.min(drawn.axis), ends.max(drawn.axis)
        bottom, low, high, top = lowest[0], lowest[1], highest[2], highest[3]
    else:
        bottom, low, high, top = ends
        if drawn.mixture is not None and left.ndim > 0:
            left, right = left.min(-1), right.max(-1)
    low, high = np.minimum(low, left), np.maximum(high, right)
    for sample in samples:
        low, high = np.minimum(low, sample.min(0)), np.maximum(high, sample.max(0))
    low, high = np.maximum(low, bottom), np.minimum(high, top)
    # Midpoints, as a density may be infinite at the very end of its support.
    fraction = (np.arange(_NUM_POINTS) + 0.5) / _NUM_POINTS
    fraction = fraction.reshape((-1,) + (1,) * len(drawn.batch_shape))
    return (low + fraction * (high - low)).astype(energy.dtype)


@partial(jax.jit, static_argnames="axis")
def _evaluate(
    prior: KAEMPrior, log_weights: jax.Array | None, z: jax.Array, axis: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Densities, references, and weighted components along a last axis, at ``z``."""
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


def _interval(
    band: Any, z: np.ndarray, batch_shape: tuple[int, ...], level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends over ``z``."""
    if isinstance(band, KAEMPrior):
        if band.batch_shape[1:] != batch_shape or len(band.batch_shape) == 0:
            expected = ", ".join(["num_draws", *map(str, batch_shape)])
            raise ValueError(
                f"band must have batch shape ({expected}), got {band.batch_shape}."
            )
        found = _band_of_draws(band, z, level)
        return np.asarray(found.lower), np.asarray(found.upper)
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
    """Draw an uncertain density: a curve between pointwise, equal-tailed intervals.

    The whole curve leaves the band more often than the density at one latent value. The
    pointwise median is not itself a density.

    Parameters
    ----------
    z
        Increasing latent values at which to draw, shape ``(num_points,)``, at least 2.
    densities
        Posterior draws of the density, as one prior of batch shape ``(num_draws,)``; or
        a finished band over ``z``, such as ``density_band(z)`` of the result of
        :func:`fit_marginal`.
    level
        Probability of each interval, in (0, 1); a finished band has its own.
    truth
        A density to compare with, dashed: a distribution, or values of shape
        ``(num_points,)``.
    ax
        Axes to draw in, and returned; ``None`` makes new ones.
    label
        Legend entry of the curve; that of the interval adds to it.
    color, linestyle
        Of the curve and its band, to tell two bands in one figure apart.
    xlabel, ylabel
        Labels of the axes.

    Raises
    ------
    TypeError
        If ``densities`` is neither a :class:`KAEMPrior` nor a band.
    ValueError
        If ``z`` is not increasing and finite, a shape does not fit, ``level`` is not in
        (0, 1), or ``ax`` holds several axes.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> basis, truth = kaem.BSpline(-2.0, 4.0, 8), dist.Normal(1.0, 2.0)
    >>> draws = kaem.Energy.init(jax.random.key(0), basis, (50,), scale=0.3)
    >>> z = np.linspace(-3.0, 5.0, 100)
    >>> ax = kaem.plot_band(z, kaem.KAEMPrior(draws, truth), truth=truth)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['posterior median', 'posterior median, 90% interval', 'truth']
    >>> plt.close(ax.figure)
    """
    z = np.asarray(z)
    increasing = z.ndim == 1 and z.size > 1 and np.all(np.diff(z) > 0)
    if not (increasing and np.all(np.isfinite(z))):
        raise ValueError(
            "z must be finite increasing values of shape (num_points,), at least 2, "
            f"got shape {z.shape}."
        )
    level = _as_level(level)
    share = f"{100 * level:.3g}% interval"
    if isinstance(densities, Band):
        share = "interval"
        shapes = [np.shape(part) for part in densities]
        if any(shape != z.shape for shape in shapes):
            raise ValueError(
                f"densities must be a band of the shape of z, {z.shape}, got {shapes}."
            )
        band = densities
    elif not isinstance(densities, KAEMPrior):
        raise TypeError(
            "densities must be a KAEMPrior with a batch of draws, or a band such as "
            f"that of MarginalFit.density_band, got {type(densities).__name__}."
        )
    elif len(densities.batch_shape) != 1 or 0 in densities.batch_shape:
        raise ValueError(
            "densities must be draws of one density, of batch shape (num_draws,), got "
            f"{densities.batch_shape}."
        )
    else:
        band = _band_of_draws(densities, z, level)
    if isinstance(truth, dist.Distribution):
        truth = np.exp(truth.log_prob(z))
    if truth is not None and np.shape(truth) != z.shape:
        raise ValueError(
            "truth must be one density, or its values of the shape of z, "
            f"{z.shape}, got {np.shape(truth)}."
        )
    ax = make_axes(ax, (), (6.4, 4.0))[()]
    ax.plot(z, band.value, label=label, **{**LEARNED, "color": color, "ls": linestyle})
    style = {"facecolor": color, "edgecolor": color, "alpha": 0.25, "zorder": 1.5}
    ax.fill_between(z, band.lower, band.upper, label=f"{label}, {share}", **style)
    if truth is not None:
        ax.plot(z, truth, label="truth", **TRUTH)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_ylim(bottom=0.0)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _band_of_draws(draws: KAEMPrior, z: np.ndarray, level: float) -> Band:
    """Pointwise intervals and medians over draws of a density, the first batch axis."""
    values = np.exp(draws.log_prob(z[:, None].astype(draws.energy.dtype)))
    tail = 0.5 - 0.5 * level
    return Band(*np.quantile(values, [tail, 0.5, 1 - tail], axis=1))
