"""Nodes of integrals over a reference, and what the device asks for."""

import os
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from numpyro_kaem._quadrature import gauss_kronrod, gauss_legendre, nodes_per_panel
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.energy import Energy, PlacedEnergy
from numpyro_kaem.numerics.panels import Panels, integrand, make_panels
from numpyro_kaem.references import ReferenceParameters, with_rank

__all__ = [
    "Cells",
    "Nodes",
    "avoid_wrong_sums",
    "make_cell_nodes",
    "make_nodes",
    "on_accelerator",
]

_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
_KEEP = "NUMPYRO_KAEM_KEEP_XLA_FLAGS"
# Releases of jaxlib whose sums on processors are wrong at times without the flag: from
# the first of these on, up to the second, the first that is right again. There is none
# yet. tests/numerics/test_device.py asks for one when the installed release passes
# without.
_WRONG_FROM: tuple[int, ...] = (0, 10, 2)
_RIGHT_FROM: tuple[int, ...] | None = None


def on_accelerator() -> bool:
    """Whether the default device is not a processor.

    An accelerator waits for the launch of every turn of a loop: its loops are unrolled,
    and more is computed side by side. Results are the same, to rounding.
    """
    return jax.default_backend() != "cpu"


def needs_flag(version: str) -> bool:
    """Whether sums are wrong at times under this release of jaxlib without the flag."""
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:4])
    return release >= _WRONG_FROM and (_RIGHT_FROM is None or release < _RIGHT_FROM)


def avoid_wrong_sums() -> None:
    """Have JAX's compiler leave out the fusions with which it gives wrong sums on CPUs.

    They are those of YNNPACK: sums over products with a matrix, and with the floats 0,
    1, ..., of which the library's own sums take integers instead. The flag is read when
    the CPU starts, with the first array: where that has happened, a warning is left.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    # Anything else than flags is the name of a file that holds them.
    file = Path(flags) if flags and not flags.startswith("-") else None
    platforms = jax.config.jax_platforms
    if (
        not needs_flag(jaxlib.__version__)
        or _FLAG in (file.read_text() if file and file.is_file() else flags)
        or os.environ.get(_KEEP)
        or (platforms and "cpu" not in platforms.split(","))
    ):
        return
    if file is None:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}".strip()
    has_started = _has_started()
    if has_started and (on_accelerator() or not _has_faulty_fusions()):
        return
    if has_started or file is not None:
        reason = (
            "JAX had started before numpyro_kaem was imported"
            if has_started
            else f"XLA_FLAGS names the file {file}"
        )
        warnings.warn(
            f"{reason}, and the compiler of jaxlib {jaxlib.__version__} gives wrong "
            "sums on CPUs at times. Import numpyro_kaem before the first array is "
            f"made, or set before JAX starts: XLA_FLAGS={_FLAG}",
            RuntimeWarning,
            stacklevel=3,
        )


def _has_started() -> bool:
    """Whether JAX has started its devices; this question does not start them."""
    name = "jax_num_cpu_devices"
    value = jax.config.jax_num_cpu_devices
    try:
        # Refused once they have started.
        jax.config.update(name, value + 1)
        jax.config.update(name, value)
    except RuntimeError:
        return True
    return False


def _has_faulty_fusions() -> bool:
    """Whether a reduction is compiled to one."""
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sum(x * x, -1)).lower(x).compile()
    return "__ynn_fusion" in compiled.as_text()


# The nodes are padded to a multiple of this: a compiled fit serves many data sets.
_PADDING = 256


class Nodes(NamedTuple):
    """Quadrature of the reference law, tails included, columns flattened."""

    position: jax.Array
    """Unit positions, shape ``(num_columns or 1, num_nodes)``."""
    log_mass: jax.Array
    """Log masses, minus infinity where there is none, the same shape."""
    finer_position: jax.Array
    """Unit positions of the Kronrod rule on the same panels, to check the first."""
    finer_log_mass: jax.Array
    """Their log masses."""


class Cells(NamedTuple):
    """Samples of which only intervals are known: each a run of panels of the nodes."""

    first: jax.Array
    """First panel of each cell, shape ``(num_columns, num_cells)``."""
    last: jax.Array
    """One after the last; the same as the first where there is no cell."""
    shares: jax.Array
    """Weights of the samples of a cell; those of all and of others sum to 1."""


def make_nodes(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    batch_shape: tuple[int, ...],
    dtype: Any,
    refinement: int = 1,
) -> Nodes:
    """Quadrature of the reference on the panels of a prior, tails as two more."""
    flat = Energy(basis, jnp.zeros(basis.num_features, dtype))
    panels = make_panels(flat, parameters, refinement)
    return _make_nodes(flat.placed, parameters, panels, batch_shape)


@partial(jax.jit, static_argnames="batch_shape")
def _make_nodes(
    flat: PlacedEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    batch_shape: tuple[int, ...],
) -> Nodes:
    num_nodes = nodes_per_panel(flat.dtype)
    parts = []
    for rule in (gauss_legendre(num_nodes), gauss_kronrod(num_nodes)):
        parts += _with_tails(flat, parameters, panels, rule)
    fills = (0.0, -jnp.inf, 0.0, -jnp.inf)
    return Nodes(
        *(_columns(p, batch_shape, fill) for p, fill in zip(parts, fills, strict=True))
    )


def _with_tails(
    flat: PlacedEnergy,
    parameters: ReferenceParameters | None,
    panels: Panels,
    rule: tuple[np.ndarray, np.ndarray],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """List unit positions and log masses of panels; the first and last are the tails.

    A tail has all its mass at one node.
    """
    dtype = flat.dtype
    values = integrand(flat, parameters, panels, rule)
    if panels.unit_edges is not None:
        # The positions are those of all columns.
        edges = np.asarray(panels.unit_edges)
        inner = edges[:-1, None] + np.diff(edges)[:, None] * (rule[0] + 1) / 2
        positions = [jnp.asarray(inner.reshape(-1), dtype)]
        ends = jnp.asarray(edges[[0, -1]], dtype)
    else:
        inner = flat.to_unit(values.nodes)
        positions = [inner.reshape(-1, *inner.shape[2:])]
        ends = flat.to_unit(panels.edges[jnp.asarray([0, -1])])
    masses = [values.log_mass.reshape(-1, *values.log_mass.shape[2:])]
    shape, count = masses[0].shape[1:], len(rule[0])
    for side, tail in enumerate(values.log_tails):
        end = jnp.broadcast_to(ends[side], (count, *positions[0].shape[1:]))
        mass = jnp.full((count, *shape), -jnp.inf, dtype)
        mass = mass if tail is None else mass.at[0].set(tail)
        positions.insert(side * 2, end)
        masses.insert(side * 2, mass)
    return positions, masses


def make_cell_nodes(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    low: np.ndarray,
    high: np.ndarray,
    shares: np.ndarray,
    ends: tuple,
    refinement: int = 1,
) -> tuple[Nodes, Cells, np.ndarray]:
    """Quadrature on panels that end at the cells of samples, and these.

    Parameters
    ----------
    basis, parameters
        Features, and parameters of the reference.
    low, high
        Ends of the cells, shape ``(n, *batch_shape)``; equal for exact samples.
    shares
        Weights that sum to 1, of a shape that broadcasts to it.
    ends
        Ends of the support.
    refinement
        Number of parts of a panel.

    Returns
    -------
    tuple
        Nodes of which each panel, and each tail, is a run; the cells; and which samples
        have none, shape ``(n, num_columns)``. A cell beyond the grid is exact, because
        the energy is constant there.
    """
    batch_shape, num_columns = low.shape[1:], low[0].size
    dtype = jnp.zeros(()).dtype
    flat = Energy(basis, jnp.zeros(basis.num_features, dtype))
    panels = make_panels(flat, parameters, refinement)

    def columns(array: Any) -> np.ndarray:
        array = np.asarray(array, float)
        array = with_rank(array, len(batch_shape))
        shape = (len(array), *batch_shape)
        return np.broadcast_to(array, shape).reshape(len(array), num_columns)

    edges, below, above = columns(panels.edges), columns(low), columns(high)
    weights = columns(np.broadcast_to(shares, low.shape))
    grid = [columns(np.asarray(end)[None])[0] for end in (basis.low, basis.high)]
    bounds = [columns(np.asarray(end)[None])[0] for end in ends[:2]]
    inside = (below < above) & (below < grid[1]) & (above > grid[0])
    cells, all_edges = [], []
    for i in range(num_columns):
        rows = inside[:, i]
        pairs = np.stack([below[rows, i], above[rows, i]], axis=1)
        pairs, place = np.unique(pairs, axis=0, return_inverse=True)
        counts = np.bincount(place.reshape(-1), weights[rows, i], len(pairs))
        # The last piece before an end of the support may be counted as a tail.
        new = np.unique(pairs[(pairs > bounds[0][i]) & (pairs < bounds[1][i])])
        merged = _merged(edges[:, i], new, 1e-6 * (grid[1][i] - grid[0][i]))
        middle = 0.5 * (merged[1:] + merged[:-1])
        first, last = (np.searchsorted(middle, end) + 1 for end in pairs.T)
        first[pairs[:, 0] <= bounds[0][i]] = 0
        cells.append((first, last, counts, pairs[:, 1] >= bounds[1][i]))
        all_edges.append(merged)
    # Powers of two, so that a compiled fit serves many data sets. Two are tails.
    num_panels = _power_of_two(max(map(len, all_edges)) + 1)
    num_cells = _power_of_two(max(len(cell[0]) for cell in cells))
    merged = np.stack(
        [np.pad(e, (0, num_panels - 1 - len(e)), mode="edge") for e in all_edges], 1
    )
    table = np.zeros((3, num_columns, num_cells))
    for i, (first, last, counts, to_end) in enumerate(cells):
        table[:, i, : len(first)] = first, np.where(to_end, num_panels, last), counts
    first, last = (jnp.asarray(part, jnp.int32) for part in table[:2])
    merged = jnp.asarray(merged.reshape(-1, *batch_shape), dtype)
    panels = Panels(merged, None, panels.has_tails)
    nodes = _make_nodes(flat.placed, parameters, panels, batch_shape)
    return nodes, Cells(first, last, jnp.asarray(table[2], dtype)), ~inside


def _merged(edges: np.ndarray, new: np.ndarray, least: float) -> np.ndarray:
    """Add edges that are not nearly there."""
    new = new[np.diff(new, prepend=-np.inf) > least]
    place = np.clip(np.searchsorted(edges, new), 1, len(edges) - 1)
    near = np.minimum(np.abs(new - edges[place - 1]), np.abs(new - edges[place]))
    return np.unique(np.concatenate([edges, new[near > least]]))


def _power_of_two(count: int) -> int:
    return max(32, 1 << (count - 1).bit_length())


def _columns(
    parts: list[jax.Array], batch_shape: tuple[int, ...], fill: float
) -> jax.Array:
    """Join along the first axis; one row a column, or one row if they are all alike."""
    joined = jnp.concatenate(parts)
    if joined[0].size == 1:
        rows = joined.reshape(1, -1)
    else:
        rank = len(batch_shape) - joined.ndim + 1
        joined = joined.reshape(-1, *(1,) * rank, *joined.shape[1:])
        rows = jnp.broadcast_to(joined, (joined.shape[0], *batch_shape))
        rows = rows.reshape(rows.shape[0], -1).T
    missing = -rows.shape[1] % _PADDING
    return jnp.pad(rows, ((0, 0), (0, missing)), constant_values=fill)
