"""Samples to fit: their weights, their support, and the cells of those rounded."""

import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._checks import check_key
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.references import is_concrete, support_bounds

__all__ = [
    "Numbers",
    "as_float64",
    "as_penalty",
    "as_samples",
    "as_shares",
    "as_widths",
    "cell_ends",
    "coarse",
    "hint_of_chains",
    "joint_samples",
    "spread",
    "support_ends",
    "warn_of_width",
]

Numbers: TypeAlias = ArrayLike | Sequence[Any]
"""Numbers as a user may pass them: an array, or nested lists."""

# Share of tied samples below which they count as exact.
_FEWEST_TIES = 0.05
# Standard deviations that a cell may be wide before samples say little of the shape.
_WIDEST = 1.5
# Share of the grid per feature below which rounding is left alone.
_FINEST = 0.25
# Tied values that are searched for a spacing, and parts of a gap that it may be.
_MOST_VALUES = 64
_PARTS = np.arange(1, 13)
# Multiples of a spacing that may have heaps.
_MULTIPLES = np.array([m for m in range(2, 5001) if 210**12 % m == 0])
# Standard deviations that these may be apart: others are modes.
_WIDEST_HEAP = 1.25
# Weights of a count's neighbours that interpolate it, from so many on either side.
_INTERPOLATION = {
    1: np.array([0.5, 0.0, 0.5]),
    2: np.array([-1.0, 4.0, 0.0, 4.0, -1.0]) / 6,
}
# Distance from a multiple, as a share of the spacing, for numbers in float64.
_TOLERANCE = 1e-7


# --- numbers, weights and support ----------------------------------------------------


def as_float64(name: str, value: Any) -> np.ndarray:
    """Convert real numbers, without masked entries, to a NumPy array."""
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name} must have no masked entries, got {np.ma.count_masked(value)}: "
            "leave them out, or give those samples any value and the weight 0."
        )
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be a rectangular array of numbers.") from None
    if array.dtype == object and all(isinstance(x, Real) for x in array.flat):
        array = array.astype(float)
    if array.dtype.kind not in "iuf" and array.dtype != jnp.bfloat16:
        missing = "; drop missing values" if array.dtype == object else ""
        raise TypeError(
            f"{name} must be real numbers, got dtype {array.dtype}{missing}."
        )
    return array.astype(float)


def as_samples(samples: Any) -> np.ndarray:
    """Check samples and convert them to float64."""
    data = as_float64("samples", samples)
    if data.ndim == 0:
        raise ValueError(
            "samples must have shape (n,) or (n, *batch_shape), got a single number of "
            "shape ()."
        )
    if data.size == 0:
        raise ValueError(
            f"samples must have at least one entry, got shape {data.shape}."
        )
    bad = ~np.isfinite(data)
    if bad.any():
        raise ValueError(
            f"samples must be finite, got {bad.sum()} of {data.size} entries that are "
            f"not, the first of them {data[bad][0]}."
        )
    return data


def as_shares(weights: Any, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights that sum to 1 over samples, and effective sample sizes of the columns."""
    batch_shape = data.shape[1:]
    if weights is None:
        shares = np.full((len(data), *(1,) * len(batch_shape)), 1 / len(data))
        return shares, np.full(batch_shape, float(len(data)))
    w = as_float64("weights", weights)
    if w.shape not in ((len(data),), data.shape):
        raise ValueError(
            f"weights must have shape ({len(data)},), one for each sample, or that of "
            f"samples, {data.shape}, got {w.shape}."
        )
    bad = ~(np.isfinite(w) & (w >= 0))
    if bad.any():
        raise ValueError(
            f"weights must be finite and not negative, got {bad.sum()} that are not, "
            f"the first of them {w[bad][0]}."
        )
    if np.any(w.max(0) == 0):
        raise ValueError("weights must not all be zero, got a column of zeros.")
    if w.ndim < data.ndim:
        w = w.reshape((len(data),) + (1,) * len(batch_shape))
    # Scaled first, so that no square overflows or vanishes.
    w = w / w.max(0)
    shares = w / w.sum(0)
    return shares, np.broadcast_to(1 / np.square(shares).sum(0), batch_shape)


def as_penalty(penalty: Any, batch_shape: tuple[int, ...]) -> np.ndarray | None:
    """Penalty of each column, if one is given."""
    if penalty is None:
        return None
    value = as_float64("penalty", penalty)
    if not np.all(np.isfinite(value) & (value >= 0)):
        raise ValueError(
            "penalty must be a finite number >= 0, or None to choose it, got "
            f"{penalty!r}."
        )
    return _broadcast("penalty", value, batch_shape).reshape(-1)


def support_ends(
    support: Any, reference: dist.Distribution | None, batch_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, str]:
    """Find the ends of the support and its kind: reference, real, above, interval."""
    if reference is not None:
        if not isinstance(reference, dist.Distribution):
            raise TypeError(
                "reference must be a NumPyro distribution or None, got "
                f"{type(reference).__name__}."
            )
        if support is not None:
            raise ValueError(
                "support and reference exclude each other, because a reference has a "
                f"support of its own; got support={support!r} and a "
                f"{type(reference).__name__}."
            )
        low, high = (np.asarray(end, float) for end in support_bounds(reference))
        return low, high, "reference"
    if support is None or (isinstance(support, str) and support == "real"):
        return np.asarray(-np.inf), np.asarray(np.inf), "real"
    if isinstance(support, str) and support == "positive":
        support = (0.0, np.inf)
    if not isinstance(support, tuple | list) or len(support) != 2:
        raise ValueError(
            "support must be 'real', 'positive', a pair (low, high) or None, got "
            f"{support!r}."
        )
    low, high = (as_float64("support", end) for end in support)
    kind = "above" if np.all(high == np.inf) else "interval"
    ends = low if kind == "above" else high - low
    if not (np.all(np.isfinite(ends)) and np.all(low < high)):
        raise ValueError(
            "support must be a pair of numbers with low < high, of which only high may "
            f"be inf, and for all columns, got ({low}, {high}); negate samples that "
            "have an upper bound only."
        )
    low, high = (_broadcast("ends of support", x, batch_shape) for x in (low, high))
    return low, high, kind


def _broadcast(name: str, value: np.ndarray, batch_shape: tuple[int, ...]) -> Any:
    try:
        return np.broadcast_to(value, batch_shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the columns of samples, of shape {batch_shape}, "
            f"got {value.shape}."
        ) from None


def check_concrete(name: str, *arguments: Any) -> None:
    """Check that no argument of a fit is traced."""
    if not is_concrete(arguments):
        raise TypeError(
            f"{name} needs concrete arguments, got a traced one: the grid is static. "
            "Call it outside jit, vmap and grad."
        )


def hint_of_chains(shape: tuple[int, ...], width: str) -> str:
    """Say that samples may be chains of draws, where rows are few and columns many."""
    if len(shape) != 2 or shape[0] > 16 or shape[1] < 10 * shape[0]:
        return ""
    return (
        f" Samples of shape {shape} are {shape[0]} samples of {shape[1]} {width}; if "
        "they are chains of draws, pass samples.reshape(-1), and if columns are the "
        "samples, samples.T."
    )


# --- joint samples -------------------------------------------------------------------


class Samples(NamedTuple):
    """Checked samples ``(n, dim)`` of a joint density, spread over their cells.

    ``shares`` are weights that sum to 1, ``num_effective`` is their effective sample
    size, ``widths`` are those of the cells, and ``rng`` goes on where the spread ended.
    """

    data: np.ndarray
    shares: np.ndarray
    num_effective: float
    widths: np.ndarray
    rng: np.random.Generator


def joint_samples(
    name: str,
    rng_key: jax.Array | None,
    samples: Any,
    weights: Any,
    reference: Any,
    support: Any,
    rounding: Any,
    *others: Any,
) -> Samples:
    """Check joint samples, and spread rounded ones; :func:`coarse` tells of these."""
    check_concrete(name, samples, weights, reference, support, *others)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key(rng_key)
    data = as_samples(samples)
    if data.ndim != 2:
        raise ValueError(
            f"samples must have shape (n, dim), got {data.shape}; for one dimension "
            "pass samples[:, None], or use fit_density, and for chains of draws "
            "samples.reshape(-1, dim)."
        )
    if hint := hint_of_chains(data.shape, "dimensions"):
        warnings.warn(hint.strip(), UserWarning, stacklevel=3)
    if weights is not None and np.shape(weights) != data.shape[:1]:
        raise ValueError(
            f"weights must have shape ({len(data)},), one for each sample, got "
            f"{np.shape(weights)}."
        )
    shares, num_effective = as_shares(weights, data)
    words = np.asarray(jax.random.key_data(rng_key))
    rng = np.random.default_rng([int(word) for word in words])
    widths = as_widths(rounding, data, shares)
    data = spread(data, widths, support_ends(support, reference, data.shape[1:]), rng)
    return Samples(data, shares[:, 0], float(num_effective.flat[0]), widths, rng)


# --- rounded samples -----------------------------------------------------------------


def as_widths(rounding: Any, data: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Width of each sample's cell, 0 for exact ones, broadcasting to the samples."""
    if isinstance(rounding, str):
        if rounding != "none":
            raise ValueError(
                f'rounding must be a spacing, None or "none", got {rounding!r}.'
            )
        return np.zeros(())
    if rounding is not None:
        width = as_float64("rounding", rounding)
        if not np.all(np.isfinite(width) & (width >= 0)):
            raise ValueError(
                "rounding must be finite and not negative, the spacing of the rounded "
                f"values, got {rounding!r}."
            )
        return _broadcast("rounding", width, data.shape[1:])[None]
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

    def on_lattice(x: np.ndarray, spacing: ArrayLike) -> np.ndarray:
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
    if counts @ (widths > 0) < _FEWEST_TIES * len(samples):
        return none
    widths = widths[place]
    # Samples of one value in random order: they may be sorted by another column.
    order = np.random.default_rng(0).permutation(len(samples))
    order = order[np.argsort(place[order], kind="stable")]
    first = (np.cumsum(counts) - counts)[on]
    steps = np.round((values[on] - origin) / spacing).astype(int)
    limit = _WIDEST_HEAP * samples.std() / spacing
    for multiple, heaps, taken in _heaps(steps, counts[on], limit):
        for start, number in zip(first[heaps], taken, strict=True):
            widths[order[start : start + number]] = multiple * spacing
    return widths


# --- heaps ---------------------------------------------------------------------------


def _heaps(
    steps: np.ndarray, counts: np.ndarray, limit: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Multiples of a spacing to which a part of the samples was rounded.

    Values lie at integer steps. Gives each multiple, the indices of its values, and how
    many samples are rounded to it: those beyond the mean count of the values around.
    Then the same of these samples alone.
    """
    index, whole = np.arange(len(steps)), 1
    while found := _multiple(steps, counts, limit / whole):
        multiple, origin = found
        heaps, around = _windows(steps, counts, multiple, origin)
        at = np.isin(steps, heaps)
        occupied = np.isin(heaps, steps)
        ends = heaps[occupied, None] + multiple * np.array([-0.5, 0.5])
        ends = ends.clip(steps[0] - 0.5, steps[-1] + 0.5)
        others = np.maximum(ends[:, 1] - ends[:, 0] - 1, 0.5)
        beyond = counts[at] - (around[occupied] - counts[at]) / others
        taken, rest = np.zeros(len(beyond), int), 0.0
        # What is left over of one heap counts at the next: the sum stays.
        for i, more in enumerate(beyond):
            taken[i] = np.clip(np.round(more + rest), 0, counts[at][i])
            rest += more - taken[i]
        index, whole, some = index[at], whole * multiple, taken > 0
        yield whole, index, taken
        steps = (steps[at] - origin) // multiple
        index, steps, counts = index[some], steps[some], taken[some]


def _multiple(
    steps: np.ndarray, counts: np.ndarray, limit: float
) -> tuple[int, int] | None:
    """Find a multiple with heaps, and the step of one of them."""
    best, least = None, 6.0
    for multiple in _MULTIPLES[_MULTIPLES <= limit].tolist():
        share = np.bincount(steps % multiple, counts, multiple)
        origin = int(np.argmax(share))
        if (score := _score(steps, counts, multiple, origin)) > least:
            best, least = (multiple, origin), score
    while best is not None:
        multiple, origin = best
        # Other heaps between those found, at a part of their multiple.
        for part in (p for p in (2, 3, 5, 7) if multiple % p == 0 and multiple > p):
            if _score(steps, counts, multiple // part, origin, part) > 4:
                best = multiple // part, origin % (multiple // part)
                break
        else:
            break
    return best


def _score(
    steps: np.ndarray, counts: np.ndarray, multiple: int, origin: int, skip: int = 0
) -> float:
    """Count samples at multiples beyond those interpolated, in standard errors.

    Every ``skip``-th multiple is left out. Those of heaps are everywhere alike, as a
    share of the samples around; tied draws and modes are at some multiples only: these
    count 0, as do heaps of fewer than a hundredth of all.
    """
    heaps, around = _windows(steps, counts, multiple, origin)
    weights = _INTERPOLATION[1 if multiple == 2 else 2]
    reach = len(weights) // 2
    used = (heaps - reach >= steps[0]) & (heaps + reach <= steps[-1])
    if skip:
        used &= (heaps - origin) // multiple % skip != 0
    heaps, around = heaps[used], around[used]
    near = heaps[:, None] + np.arange(-reach, reach + 1)
    place = np.searchsorted(steps, near).clip(0, len(steps) - 1)
    values = np.where(steps[place] == near, counts[place], 0)
    expected = np.maximum(values @ weights, 0)
    beyond = values[:, reach] - expected
    total, count = beyond.sum(), len(heaps)
    if count < 3 or total <= 0.01 * counts.sum():
        return 0.0
    differences = beyond - total / around.sum() * around
    if total * np.sqrt(count - 1) < 8 * np.linalg.norm(differences):
        return 0.0
    return float(total / np.sqrt(1 + expected.sum() * (1 + weights @ weights)))


def _windows(
    steps: np.ndarray, counts: np.ndarray, multiple: int, origin: int
) -> tuple[np.ndarray, np.ndarray]:
    """Multiples nearest to any step, and the counts up to half of one beside each."""
    ratio = (steps - origin) / multiple
    # A step halfway between two counts half for each.
    places = np.stack([np.floor(ratio + 0.5), np.ceil(ratio - 0.5)]).astype(int)
    heaps, place = np.unique(places, return_inverse=True)
    around = np.bincount(place.reshape(-1), np.tile(0.5 * counts, 2), len(heaps))
    return origin + multiple * heaps, around


def coarse(widths: np.ndarray, basis: AbstractBasis, rounding: Any) -> np.ndarray:
    """Set widths to 0 that are finer than features tell, and warn of what was found.

    Samples of such cells can be spread evenly over them.
    """
    size = (np.asarray(basis.high) - np.asarray(basis.low)) / basis.num_features
    widths = np.where(widths >= _FINEST * size, widths, 0)
    if rounding is None and np.any(widths > 0):
        columns = widths.reshape(len(widths), -1)
        rounded = np.flatnonzero(np.any(columns > 0, axis=0))
        column = columns[:, rounded[0]]
        known = column[column > 0]
        # Cut-off values have widths of their own.
        levels, counts = np.unique(known, return_counts=True)
        levels = levels[counts >= 0.005 * len(known)]
        spacing = levels[0] if len(levels) > 1 else np.median(known)
        heaps = ", ".join(
            f"{np.mean(column == level):.0%} to {level:.6g}" for level in levels[1:]
        )
        heaps = f", with heaps of coarser rounding ({heaps})" if heaps else ""
        place = np.unravel_index(rounded[0], widths.shape[1:])
        of = f" of column {tuple(map(int, place))}" if place else ""
        others = len(rounded) - 1
        more = f", and those of {others} more columns" if others else ""
        warnings.warn(
            f"{np.mean(column > 0):.0%} of the samples{of} are at values of one "
            f"spacing, {spacing:.6g}, with many ties{heaps}{more}: they are taken as "
            "rounded, each for an interval of that width. Pass "
            f"rounding={spacing:.6g} to say so{' of all' * bool(heaps)}, or "
            'rounding="none" if they are exact.',
            UserWarning,
            stacklevel=3,
        )
    return widths


def warn_of_width(even: np.ndarray, widths: np.ndarray) -> None:
    """Warn of cells so wide that samples, spread evenly, tell little of the shape."""
    if not np.any(widths):
        return
    # Rounding and spreading have each added the variance of a uniform distribution.
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
            stacklevel=3,
        )


def cell_ends(
    data: np.ndarray, widths: np.ndarray, ends: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ends of the cells in the support; equal for exact samples."""
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
        order = first[np.lexsort((below[first], x[first]))]
        cells = np.stack([x[order], below[order]])
        starts = np.flatnonzero(np.any(np.diff(cells, prepend=np.nan) != 0, axis=0))
        counts = np.diff(starts, append=len(x))
        rank = np.arange(len(x)) - np.repeat(starts, counts)
        part = np.empty(len(x))
        part[order] = (rank + 0.5) / np.repeat(counts, counts)
        result[:, column] = below + part * (above - below)
    return result.reshape(data.shape)
