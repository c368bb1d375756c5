"""Checks and conversions of the arguments of a fit to samples."""

import warnings
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem._quadrature import nodes_per_panel
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation.exponential_family import Fit
from numpyro_kaem.numerics.nodes import Cells, Nodes
from numpyro_kaem.references import (
    ReferenceParameters,
    check_reference,
    log_density,
    support_bounds,
)

__all__ = [
    "as_chains",
    "as_penalty",
    "as_real",
    "as_samples",
    "as_shares",
    "check_agreement",
    "check_converged",
    "check_grid",
    "check_inside",
    "check_spread",
    "reference_parameters",
    "support_ends",
]


def as_real(name: str, value: Any) -> np.ndarray:
    """Convert to float64.

    Raises
    ------
    TypeError
        If it is not real numbers.
    ValueError
        If it is ragged, or has masked entries.
    """
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
    """Check samples and convert them to float64.

    Raises
    ------
    TypeError
        If they are not real numbers.
    ValueError
        If they are missing, or not finite.
    """
    data = as_real("samples", samples)
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
    """Weights that sum to 1 over samples, and effective sizes of the columns.

    Raises
    ------
    TypeError
        If weights are not real numbers.
    ValueError
        If they are negative, not finite, all zero or of a wrong shape.
    """
    batch_shape = data.shape[1:]
    if weights is None:
        shares = np.full((len(data), *(1,) * len(batch_shape)), 1 / len(data))
        return shares, np.full(batch_shape, float(len(data)))
    w = as_real("weights", weights)
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


def as_chains(shape: tuple[int, ...], width: str) -> str:
    """Say that samples may be chains of draws, where rows are few and columns many.

    Parameters
    ----------
    shape
        Of the samples.
    width
        What the second axis stands for.
    """
    if len(shape) != 2 or shape[0] > 16 or shape[1] < 10 * shape[0]:
        return ""
    return (
        f" Samples of shape {shape} are {shape[0]} samples of {shape[1]} {width}; if "
        "they are chains of draws, pass samples.reshape(-1), and if columns are the "
        "samples, samples.T."
    )


def as_penalty(penalty: Any, batch_shape: tuple[int, ...]) -> np.ndarray | None:
    """Penalty of each column, if one is given.

    Raises
    ------
    TypeError
        If it is not real numbers.
    ValueError
        If it is negative, not finite or of a wrong shape.
    """
    if penalty is None:
        return None
    value = as_real("penalty", penalty)
    if not np.all(np.isfinite(value) & (value >= 0)):
        raise ValueError(
            "penalty must be a finite number >= 0, or None to choose it, got "
            f"{penalty!r}."
        )
    try:
        return np.broadcast_to(value, batch_shape).reshape(-1)
    except ValueError:
        raise ValueError(
            "penalty must broadcast to the columns of samples, of shape "
            f"{batch_shape}, got {value.shape}."
        ) from None


def support_ends(
    support: Any, reference: dist.Distribution | None, batch_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, str]:
    """Find the ends of the support, and what kind it is.

    Raises
    ------
    TypeError
        If an end is not a real number, or the reference not a distribution.
    ValueError
        If the support is not known, or given with a reference.
    """
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
    low, high = (as_real("support", end) for end in support)
    kind = "above" if np.all(high == np.inf) else "interval"
    ends = low if kind == "above" else high - low
    if not (np.all(np.isfinite(ends)) and np.all(low < high)):
        raise ValueError(
            "support must be a pair of numbers with low < high, of which only high may "
            f"be inf, and for all columns, got ({low}, {high}); negate samples that "
            "have an upper bound only."
        )
    try:
        low, high = (np.broadcast_to(end, batch_shape) for end in (low, high))
    except ValueError:
        raise ValueError(
            "the ends of support must broadcast to the columns of samples, of shape "
            f"{batch_shape}, got {low.shape} and {high.shape}."
        ) from None
    return low, high, kind


def check_inside(data: np.ndarray, ends: tuple, strict: bool) -> None:
    """Check that samples lie in the support.

    Raises
    ------
    ValueError
        If one does not.
    """
    low, high, _ = ends
    bad = ((data <= low) if strict else (data < low)) | (data > high)
    if bad.any():
        end = " (without its lower end)" if strict else ""
        raise ValueError(
            f"samples must lie in the support from {low} to {high}{end}, got "
            f"{bad.sum()} of {data.size} outside, the first of them {data[bad][0]}."
        )


def check_spread(data: np.ndarray, shares: np.ndarray, basis: Any, law: Any) -> None:
    """Check that every column has two distinct samples.

    Raises
    ------
    ValueError
        If one has not.
    """
    used = np.broadcast_to(shares > 0, data.shape)
    least = np.where(used, data, np.inf).min(0)
    equal = least == np.where(used, data, -np.inf).max(0)
    if equal.any():
        column = tuple(int(i) for i in np.argwhere(equal)[0])
        where = f" in column {column}" if column else ""
        missing = [n for n, v in (("basis", basis), ("reference", law)) if v is None]
        raise ValueError(
            "samples must have at least 2 distinct values of positive weight, got only "
            f"{least[column]}{where}; pass {' and '.join(missing)} to fit fewer."
        )


def check_grid(data: np.ndarray, shares: np.ndarray, basis: AbstractBasis) -> None:
    """Check that the grid of every column contains a sample.

    Raises
    ------
    ValueError
        If one does not.
    """
    low, high = np.asarray(basis.low), np.asarray(basis.high)
    inside = ((data >= low) & (data <= high) & (shares > 0)).any(0)
    if not inside.all():
        raise ValueError(
            f"the grid of basis must contain samples, got low={basis.low} and "
            f"high={basis.high} for samples from {data.min()} to {data.max()}."
        )


def reference_parameters(
    reference: dist.Distribution | None,
    basis: AbstractBasis,
    data: np.ndarray,
    dtype: Any,
) -> ReferenceParameters | None:
    """Parameters of a reference that is positive at all samples.

    Raises
    ------
    TypeError
        If it is not a univariate continuous distribution.
    ValueError
        If its shape or its support does not fit.
    """
    if reference is None:
        return None
    flat = Energy(basis, jnp.zeros(basis.num_features, dtype))
    check_reference(reference, flat)
    batch_shape = data.shape[1:]
    if np.broadcast_shapes(reference.batch_shape, batch_shape) != batch_shape:
        raise ValueError(
            "the batch shape of reference must broadcast to the columns of samples, of "
            f"shape {batch_shape}, got {reference.batch_shape}."
        )
    parameters = ReferenceParameters.of(reference)
    log_densities = np.asarray(_log_density(parameters, jnp.asarray(data, dtype)))
    bad = ~(log_densities > -np.inf)
    if bad.any():
        raise ValueError(
            "samples must have positive density under the reference, got "
            f"{bad.sum()} of {data.size} without under {type(reference).__name__}, the "
            f"first of them {data[bad][0]}."
        )
    return parameters


@jax.jit
def _log_density(parameters: ReferenceParameters, z: jax.Array) -> jax.Array:
    return log_density(parameters.build(), z)


def check_converged(fit: Fit) -> None:
    """Warn of fits that did not converge, or that the quadrature does not resolve."""
    for what, bad, remedy in (
        (
            "the fit of {} of {} densities did not converge",
            ~np.asarray(fit.converged),
            "a larger penalty, fewer features, or float64",
        ),
        (
            "the quadrature does not resolve {} of {} fitted densities, which are not "
            "the ones of largest likelihood",
            ~np.asarray(fit.resolved),
            "a larger penalty, or a grid no wider than the samples need",
        ),
    ):
        if bad.any():
            warnings.warn(
                f"{what.format(bad.sum(), len(bad))}; use {remedy}.",
                UserWarning,
                stacklevel=3,
            )


def check_agreement(
    fit: Fit,
    nodes: Nodes,
    cells: Cells | None,
    position: np.ndarray,
    shares: np.ndarray,
    num_effective: np.ndarray,
    basis: AbstractBasis,
    column_of: Any,
) -> None:
    """Warn of densities that differ from their samples more than chance allows.

    Positions are cut to the grid, so that both have all moments. A sample that is known
    as an interval counts as the density within it.

    Parameters
    ----------
    fit, nodes, cells
        Fitted densities, their quadrature, and the cells of samples.
    position
        Unit positions of the samples, shape ``(n, num_columns)``.
    shares
        Weights of the samples without a cell, shape ``(n, num_columns or 1)``.
    num_effective
        Number of samples that the weights are worth, shape ``(num_columns,)``.
    basis
        Features.
    column_of
        Name of a column by its number, for the message.
    """
    masses = np.asarray(fit.masses, float)
    rows = np.asarray(nodes.position, float)
    breaks = np.asarray(basis.panel_breaks, float)
    messages = []
    for i, mass in enumerate(masses):
        s = rows[i % len(rows)]
        x, w = position[:, i], shares[:, i % shares.shape[1]]
        points, pooled = breaks, None
        if cells is not None:
            points, pooled = _of_cells(
                s, mass, *(np.asarray(part[i]) for part in cells)
            )
        parts = [(s, mass)], [(x, w)] if pooled is None else [(x, w), (s, pooled)]
        (mean, deviation, fourth, below), seen = (_summary(p, points) for p in parts)
        # The standard errors of samples of the density; rounding is far below 0.002.
        error = 4.5 / np.sqrt(num_effective[i])
        allowed = (
            (error + 0.002) * deviation,
            (0.5 * error * np.sqrt(max(fourth - 1, 0.1)) + 0.002) * deviation,
            2.2 / np.sqrt(num_effective[i]) + 0.002,
        )
        gap = np.max(np.abs(below - seen[3]), initial=0)
        found = (abs(mean - seen[0]), abs(deviation - seen[1]), gap)
        if any(f > a for f, a in zip(found, allowed, strict=True)):
            messages.append(
                f"mean {mean:.4g} for {seen[0]:.4g}, standard deviation "
                f"{deviation:.4g} for {seen[1]:.4g}, both in units of the grid, and "
                f"distribution functions up to {gap:.3f} apart{column_of(i)}"
            )
    if messages:
        more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
        warnings.warn(
            "a fitted density differs from its samples by more than chance allows: "
            f"{messages[0]}{more}. Use a smaller penalty, more features, or a grid "
            "that covers the samples; and where samples were rounded, tell the spacing "
            "by rounding.",
            UserWarning,
            stacklevel=3,
        )


def _summary(
    parts: list[tuple[np.ndarray, np.ndarray]], points: np.ndarray
) -> tuple[float, float, float, np.ndarray]:
    """Mean, standard deviation, kurtosis, and masses below points."""
    mean = sum(w @ x for x, w in parts)
    squares = [(np.square(x - mean), w) for x, w in parts]
    square = sum(w @ x for x, w in squares)
    fourth = sum(w @ np.square(x) for x, w in squares)
    counts = sum(
        np.bincount(np.searchsorted(points, x, "right"), w, len(points) + 1)
        for x, w in parts
    )
    # Of a single point it is the least that there is.
    kurtosis = fourth / square**2 if square**2 > 0 else 1.0
    return mean, np.sqrt(square), kurtosis, np.cumsum(counts)[:-1]


def _of_cells(
    position: np.ndarray,
    mass: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    shares: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find ends of panels that no cell contains, and the cells' shares of the nodes."""
    num_nodes = nodes_per_panel(jnp.zeros(()).dtype)
    panels, s = mass.reshape(-1, num_nodes), position.reshape(-1, num_nodes)
    total = np.concatenate([[0], np.cumsum(panels.sum(1))])
    there = last > first
    first, last, shares = first[there], last[there], shares[there]
    weight = shares / np.maximum(total[last] - total[first], np.finfo(float).tiny)
    change = np.zeros((2, len(panels) + 1))
    np.add.at(change, (0, first), weight)
    np.add.at(change, (0, last), -weight)
    # A panel end is inside a cell if that starts before it.
    np.add.at(change, (1, first + 1), 1)
    np.add.at(change, (1, last), -1)
    factor, inside = np.cumsum(change, axis=1)[:, :-1]
    free = inside[1:] < 0.5
    ends = 0.5 * (s[:-1, -1] + s[1:, 0])
    return np.unique(ends[free]), (panels * np.maximum(factor, 0)[:, None]).reshape(-1)
