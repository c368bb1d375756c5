"""Samples that were rounded: how that is found, and the cells that they stand for."""

import warnings
from typing import Any

import numpy as np

from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.estimation._arguments import as_real

__all__ = ["as_widths", "cell_ends", "coarse", "spread", "warn_of_width"]

# Share of tied samples below which they count as exact.
_FEWEST_TIES = 0.05
# Standard deviations that a cell may be wide before samples say little of the shape.
_WIDEST = 1.5
# Share of the grid a feature below which rounding is left alone.
_FINEST = 0.25
# Tied values that are searched for a spacing, and parts of a gap that it may be.
_MOST_VALUES = 64
_PARTS = np.arange(1, 13)
# Distance from a multiple, as a share of the spacing, for numbers in float64.
_TOLERANCE = 1e-7


def as_widths(rounding: Any, data: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Find the width of the cell that each sample stands for.

    Parameters
    ----------
    rounding
        Spacing to which samples were rounded, broadcasting to ``batch_shape``;
        ``"none"`` where they are exact, and ``None`` to find out.
    data
        Samples, shape ``(n, *batch_shape)``.
    shares
        Weights that broadcast to it.

    Returns
    -------
    ndarray
        Widths that broadcast to ``data``, 0 for exact samples.

    Raises
    ------
    TypeError
        If a spacing is not a real number.
    ValueError
        If it is negative or not finite, or does not broadcast.
    """
    batch_shape = data.shape[1:]
    if isinstance(rounding, str):
        if rounding != "none":
            raise ValueError(
                f'rounding must be a spacing, None or "none", got {rounding!r}.'
            )
        return np.zeros(())
    if rounding is not None:
        width = as_real("rounding", rounding)
        if not np.all(np.isfinite(width) & (width >= 0)):
            raise ValueError(
                "rounding must be finite and not negative, the spacing of the rounded "
                f"values, got {rounding!r}."
            )
        try:
            return np.broadcast_to(width, batch_shape)[None]
        except ValueError:
            raise ValueError(
                "rounding must broadcast to the columns of samples, of shape "
                f"{batch_shape}, got {width.shape}."
            ) from None
    columns = data.reshape(len(data), -1)
    used = np.broadcast_to(shares > 0, data.shape).reshape(columns.shape)
    ordered = np.sort(columns, axis=0)
    tied = np.count_nonzero(ordered[1:] == ordered[:-1], axis=0)
    widths = np.zeros(())
    # A group of two tied samples counts once: half of the share is enough.
    for column in np.flatnonzero(tied >= 0.5 * _FEWEST_TIES * len(data)):
        inside = used[:, column]
        of_column = _widths_of(columns[inside, column])
        if np.any(of_column):
            widths = widths if widths.ndim else np.zeros(columns.shape)
            widths[inside, column] = of_column
    return widths.reshape(data.shape) if widths.ndim else widths


def coarse(
    widths: np.ndarray, basis: AbstractBasis, rounding: Any, stacklevel: int = 3
) -> np.ndarray:
    """Leave out intervals finer than features tell, over which samples can be spread.

    Parameters
    ----------
    widths
        Those of the cells of samples, from :func:`as_widths`.
    basis
        Features.
    rounding
        As of :func:`as_widths`: if it is ``None`` what remains is told.
    stacklevel
        Of the warning.

    Returns
    -------
    ndarray
        Widths, some of them 0.

    Warns
    -----
    UserWarning
        If rounding was found.
    """
    size = (np.asarray(basis.high) - np.asarray(basis.low)) / basis.num_features
    widths = np.where(widths >= _FINEST * size, widths, 0)
    if rounding is None and np.any(widths > 0):
        columns = widths.reshape(len(widths), -1)
        rounded = np.flatnonzero(np.any(columns > 0, axis=0))
        column = columns[:, rounded[0]]
        spacing, share = np.median(column[column > 0]), np.mean(column > 0)
        place = np.unravel_index(rounded[0], widths.shape[1:])
        of = f" of column {tuple(map(int, place))}" if place else ""
        others = len(rounded) - 1
        more = f", and those of {others} more columns" if others else ""
        warnings.warn(
            f"{share:.0%} of the samples{of} are at values of one spacing, "
            f"{spacing:.6g}, with many ties{more}: they are taken as rounded, each for "
            f"an interval of that width. Pass rounding={spacing:.6g} to say so, or "
            'rounding="none" if they are exact.',
            UserWarning,
            stacklevel=stacklevel + 1,
        )
    return widths


def warn_of_width(even: np.ndarray, widths: np.ndarray, stacklevel: int = 3) -> None:
    """Warn of cells so wide that samples say little of the shape within them.

    ``even`` are the samples spread over their cells.
    """
    if not np.any(widths):
        return
    # Rounding and spreading have each added the variance of a uniform law.
    variance = np.var(even, axis=0)
    variance = np.maximum(variance - np.mean(widths**2, axis=0) / 6, 0.01 * variance)
    deviation = np.sqrt(np.maximum(variance, np.finfo(float).tiny))
    widest = np.max(widths / deviation, initial=0.0)
    if widest > _WIDEST:
        warnings.warn(
            f"samples are rounded to a spacing of {widest:.2g} standard deviations: "
            "what lies between their values, and the standard deviation by some per "
            "cent, come from the reference and the smoothness of the energy. Use finer "
            "samples, or a reference of the shape that they are known to have.",
            UserWarning,
            stacklevel=stacklevel,
        )


def _widths_of(samples: np.ndarray) -> np.ndarray:
    """Widths of the cells of one column; 0 where there is none."""
    values, place, counts = np.unique(samples, return_inverse=True, return_counts=True)
    none = np.zeros(len(samples))
    tied = counts > 1
    share = counts[tied].sum() / len(samples)
    # Any two values have a spacing: two among exact ones are heaps of their own.
    if share < _FEWEST_TIES or tied.sum() < (2 if share > 0.95 else 3):
        return none
    # The ends may be values that were cut off between the multiples.
    inner = tied & (values > values[0]) & (values < values[-1])
    inner = inner if inner.sum() > 2 else tied
    most = np.sort(np.argsort(np.where(inner, -counts, 0))[:_MOST_VALUES])
    most = most[inner[most]]
    origin = values[most[np.argmax(counts[most])]]
    single = np.float32(values) == values
    precision = np.finfo(np.float32 if single.all() else float).eps
    error = 4 * precision * np.abs(values).max()

    def on_lattice(x: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        ratio = (x - origin) / spacing
        allowed = np.maximum(_TOLERANCE, error / spacing)
        return (np.abs(ratio - np.round(ratio)) <= allowed) & (allowed < 0.02)

    distance = values[most] - origin
    spacings = np.unique(np.diff(values[most])[:, None] / _PARTS)
    # A gap of numbers in float32 is not exact enough for many of it.
    steps = distance / spacings[:, None]
    steps = np.where(np.abs(steps - np.round(steps)) < 0.1, np.round(steps), 0)
    squares = np.maximum(np.sum(steps**2, axis=1), 1)
    refined = steps @ distance / squares
    spacings = np.unique(np.concatenate([spacings, refined[refined > 0]]))
    fits = on_lattice(values[most], spacings[:, None])
    weight = counts[most] / counts[most].sum()
    covered = fits @ weight
    best = covered.max()
    chosen = np.argmax(np.where(covered >= best - 2e-3, spacings, 0))
    spacing = spacings[chosen]
    # Spacings that fit by chance, if the values were any.
    chance = 2 * max(_TOLERANCE, error / spacing)
    chance = len(spacings) * chance ** (fits[chosen].sum() - 2)
    if best < 0.9 or (tied.sum() > 2 and chance > 1e-3):
        return none
    # Single values tell whether the spacing is a part of that.
    alone = values[~tied]
    if len(alone) > 0:
        finer = on_lattice(alone, spacing / _PARTS[:, None]).mean(axis=1)
        if finer.max() > 0.9:
            spacing = spacing / _PARTS[np.argmax(finer > 0.9)]
    on = on_lattice(values, spacing)
    widths = np.where(on, spacing, 0)
    # Ties between the lattice and an end, where values were cut off.
    right = np.clip(np.searchsorted(values[on], values), 1, on.sum() - 1)
    gap = np.abs(values - values[on][[right - 1, right]]).min(axis=0) - spacing / 2
    cut_off = tied & ~on & (gap > 1e-3 * spacing)
    widths[cut_off] = 2 * np.minimum(gap[cut_off], spacing / 2)
    widths = widths[place]
    return widths if np.mean(widths > 0) >= _FEWEST_TIES else none


def cell_ends(
    data: np.ndarray, widths: np.ndarray, ends: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ends of the cells of samples in the support; equal for exact ones."""
    low = np.maximum(data - widths / 2, ends[0])
    high = np.minimum(data + widths / 2, ends[1])
    cell = (widths > 0) & (low < high)
    return np.where(cell, low, data), np.where(cell, high, data)


def spread(
    data: np.ndarray,
    widths: np.ndarray,
    ends: tuple,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Spread tied samples evenly over their cells, in order or in random order."""
    if not np.any(widths):
        return data
    low, high = cell_ends(data, widths, ends)
    result = np.empty((len(data), data[0].size))
    parts = (part.reshape(result.shape) for part in (data, low, high))
    for column, (x, below, above) in enumerate(zip(*(p.T for p in parts), strict=True)):
        # An order of its own for each column: places in cells are independent.
        first = np.arange(len(x)) if rng is None else rng.permutation(len(x))
        order = first[np.argsort(x[first], kind="stable")]
        _, starts, counts = np.unique(x[order], return_index=True, return_counts=True)
        rank = np.arange(len(x)) - np.repeat(starts, counts)
        part = np.empty(len(x))
        part[order] = (rank + 0.5) / np.repeat(counts, counts)
        result[:, column] = below + part * (above - below)
    return result.reshape(data.shape)
