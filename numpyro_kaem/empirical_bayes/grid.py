"""A grid and a reference for units, from the spread of their latent values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.bases import BSpline
from numpyro_kaem.empirical_bayes.likelihood import LogLikelihood
from numpyro_kaem.references import support_bounds

__all__ = ["choose_grid"]

_NUM_BASIS = 24
# Nats below its maximum to which a unit's likelihood says where its value lies.
_DROP = 2.0
_NUM_NODES = 400
_EM_STEPS = 200
# Share of the spread beyond either end of the grid, before a margin in deviations.
_TAIL, _MARGIN = 1e-3, 2.0


def choose_grid(
    log_likelihood: LogLikelihood,
    counts: np.ndarray,
    reference: dist.Distribution | None,
    dtype: Any,
) -> tuple[BSpline, dist.Distribution]:
    """Basis on the range of the latent values, and a Normal reference if none is given.

    The noise of the units is taken out by expectation maximisation of masses on a
    coarse grid (Laird 1978): a noisy unit far off does not widen the grid. Its ends are
    quantiles of these masses and two standard deviations beyond.

    Raises
    ------
    ValueError
        If no unit's likelihood has a maximum between finite ends.
    """
    law = jax.jit(log_likelihood)
    bounds = (-np.inf, np.inf)
    # Another one is refused with the basis.
    if isinstance(reference, dist.Distribution) and reference.shape() == ():
        bounds = [float(np.asarray(bound)) for bound in support_bounds(reference)]

    def curves(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nodes = np.unique(z.astype(dtype))
        values = np.asarray(law(jnp.asarray(nodes)), float)
        values = np.where(np.isfinite(values), values, -np.inf)
        return nodes.astype(float), values

    powers = 2.0 ** np.arange(-30.0, 60.25, 0.25)
    z = np.concatenate([-powers[::-1], [0.0], powers])
    if np.isfinite(bounds).all():
        z = np.linspace(*bounds, len(z) + 2)[1:-1]
    z = z[(z > bounds[0]) & (z < bounds[1])]
    low, high = _range(*curves(z), counts)
    for _ in range(4):
        margin = 0.05 * (high - low)
        z = np.linspace(low - margin, high + margin, _NUM_NODES)
        nodes, values = curves(np.clip(z, *bounds))
        low, high = _range(nodes, values, counts)
    spread = low, high
    for _ in range(2):
        # Twice, for nodes that are close beside the spread.
        nodes, values = curves(np.linspace(*spread, _NUM_NODES))
        mass = _deconvolve(values, counts)
        mean = mass @ nodes
        deviation = np.sqrt(mass @ (nodes - mean) ** 2)
        below = np.cumsum(mass)
        ends = nodes[np.searchsorted(below, [_TAIL, 1 - _TAIL]).clip(0, len(nodes) - 1)]
        ends = ends + deviation * np.array([-_MARGIN, _MARGIN])
        spread = np.clip(ends, *spread)
    low, high = np.clip(ends, *bounds)
    if reference is None:
        reference = dist.Normal(float(mean), float(deviation))
    return BSpline(float(low), float(high), _NUM_BASIS), reference


def _range(
    nodes: np.ndarray, values: np.ndarray, counts: np.ndarray
) -> tuple[float, float]:
    """Range of the latent values that the units' likelihoods favour.

    Raises
    ------
    ValueError
        If there is no unit with a range.
    """
    best = values.max(axis=1, keepdims=True)
    favoured = (values > best - _DROP) & np.isfinite(best) & (counts[:, None] > 0)
    first = np.argmax(favoured, axis=1)
    last = len(nodes) - 1 - np.argmax(favoured[:, ::-1], axis=1)
    bounded = favoured.any(axis=1) & (first > 0) & (last < len(nodes) - 1)
    if not bounded.any():
        raise ValueError(
            "basis must be given, because no unit's likelihood has a maximum between "
            "finite latent values from which to choose a grid, such as numpyro_kaem."
            "BSpline(low, high, num_basis)."
        )
    return nodes[first[bounded].min() - 1], nodes[last[bounded].max() + 1]


def _deconvolve(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Masses at the nodes after some steps of expectation maximisation."""
    best = values.max(axis=1, keepdims=True)
    seen = np.isfinite(best[:, 0])
    likelihood = np.exp(values[seen] - best[seen])
    share = counts[seen] / counts[seen].sum()
    mass = np.full(values.shape[1], 1 / values.shape[1])
    for _ in range(_EM_STEPS):
        mass = mass * ((share / (likelihood @ mass)) @ likelihood)
    return mass / mass.sum()
