"""A table of the densities of a prior: which of them say something."""

from dataclasses import dataclass

import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.symbolic.nodes import Component, components, marginals_of
from numpyro_kaem.symbolic.text import as_table, number

__all__ = ["PriorSummary", "summarize_prior"]

# A mode rises above its surroundings by this share of the highest density.
_PROMINENCE = 0.01
# Least distance of nodes that a polynomial goes through, in units of the scale of
# the density: far enough that rounding does not matter in float32.
_REACH = 0.02


@dataclass(frozen=True, repr=False)
class PriorSummary:
    """Numbers of each density; made by :func:`summarize_prior`. Prints as a table.

    Arrays have the shape ``batch_shape``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.BSpline(-1.0, 5.0, 8), jnp.zeros((2, 8)))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(2.0, jnp.array([1.0, 1.5])))
    >>> summary = kaem.summarize_prior(prior)
    >>> print(summary.mean.round(2), summary.standard_deviation.round(2))
    [2. 2.] [1.  1.5]
    """

    mean: np.ndarray
    """Means; not finite where there is none."""
    standard_deviation: np.ndarray
    """Standard deviations; not finite where there is none."""
    modes: np.ndarray
    """Modes in increasing order, a tuple for each density."""
    entropy: np.ndarray
    """Differential entropies, in nats."""
    divergence: np.ndarray
    """Kullback-Leibler divergences of the reference from the densities, in nats. Near
    zero, a density is still its reference: nothing was learned of it."""

    def __repr__(self) -> str:
        rows = [("component", "mean", "sd", "entropy", "divergence", "modes")]
        for index in np.ndindex(self.mean.shape):
            width = self.standard_deviation[index]
            modes = ", ".join(_place(mode, width) for mode in self.modes[index])
            rows.append(
                (
                    ", ".join(map(str, index)),
                    _place(self.mean[index], width),
                    number(width, 3),
                    number(round(self.entropy[index], 3)),
                    number(round(self.divergence[index], 4)),
                    modes or "none",
                )
            )
        return as_table(rows)


def _place(value: float, width: float) -> str:
    """Text of a position, to a hundredth of the width or so."""
    if not (np.isfinite(value) and np.isfinite(width)):
        return number(value, 3)
    return number(round(value, 2 - int(np.floor(np.log10(width)))), 15)


def summarize_prior(prior: dist.Distribution) -> PriorSummary:
    """Tabulate the one-dimensional densities of a prior.

    Parameters
    ----------
    prior
        A :class:`KAEMPrior`, :class:`KAEMMixture` or a ``MixtureSameFamily`` of
        :class:`KAEMPrior`, also with ``to_event``, expanded or masked. For mixtures the
        densities are those of the components.

    Returns
    -------
    PriorSummary
        Mean, standard deviation, modes, entropy and divergence from the reference of
        each.

    Raises
    ------
    TypeError
        If ``prior`` has no one-dimensional densities, or is traced.
    ValueError
        If the batch is empty.

    Notes
    -----
    All are integrals at the nodes of the prior's own quadrature, tails included. A mode
    is a maximum of the density at the nodes that rises above its surroundings by 1 % of
    the highest density, refined by a polynomial; at a finite end of the support it is
    that end. A density that changes by less than 1 % has none.

    Examples
    --------
    Two densities, of which the first one is its reference:

    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> basis = kaem.Chebyshev(low=-3.0, high=3.0, degree=4)
    >>> energy = kaem.Energy(basis, jnp.array([[0.0] * 5, [0.0] * 4 + [-1.0]]))
    >>> kaem.summarize_prior(kaem.KAEMPrior(energy, dist.Normal(0.0, 1.5)))
    component  mean  sd    entropy  divergence  modes
    0          0     1.5   1.824    0           0
    1          0     1.72  1.736    0.2424      -1.84, 1.84
    """
    marginals = marginals_of(prior, "summarize_prior")
    shape = marginals.batch_shape
    log_normalizer = np.asarray(marginals.log_normalizer, float)
    modes = np.empty(shape, object)
    entropy, divergence = np.empty(shape), np.empty(shape)
    for index, component in zip(np.ndindex(shape), components(marginals), strict=True):
        used = component.used()
        entropy[index] = -used.masses @ used.log_density
        gain = used.masses @ used.energy - log_normalizer[index]
        divergence[index] = max(float(gain), 0.0)
        modes[index] = _modes(used)
    return PriorSummary(
        mean=np.asarray(marginals.mean, float),
        standard_deviation=np.sqrt(np.asarray(marginals.variance, float)),
        modes=modes,
        entropy=entropy,
        divergence=divergence,
    )


def _modes(component: Component) -> tuple[float, ...]:
    """Modes of one density, in increasing order."""
    from scipy.signal import find_peaks

    nodes, first = np.unique(component.nodes, return_index=True)
    log_density = component.log_density[first]
    unit = component.unit
    density = np.exp(log_density - log_density.max())
    bounded = np.isfinite(unit.low) and np.isfinite(unit.high)
    if bounded and density.min() > 1 - _PROMINENCE:
        return ()
    peaks, _ = find_peaks(np.pad(density, 1), prominence=_PROMINENCE)
    found = []
    for peak in peaks - 1:
        if peak == 0 and np.isfinite(unit.low):
            found.append(unit.low)
        elif peak == len(nodes) - 1 and np.isfinite(unit.high):
            found.append(unit.high)
        else:
            found.append(_refine(nodes, log_density, peak, _REACH * unit.scale))
    return tuple(float(mode) for mode in found)


def _refine(
    nodes: np.ndarray, log_density: np.ndarray, peak: int, reach: float
) -> float:
    """Maximum of the polynomial through a node and two on either side of it."""
    chosen = [peak]
    for _ in range(2):
        left = np.searchsorted(nodes, nodes[chosen[0]] - reach, side="right") - 1
        right = np.searchsorted(nodes, nodes[chosen[-1]] + reach)
        if left < 0 or right == len(nodes):
            break
        chosen = [left, *chosen, right]
    if len(chosen) == 1:
        return float(nodes[peak])
    centre, scale = nodes[peak], np.ptp(nodes[chosen])
    x = (nodes[chosen] - centre) / scale
    slope = np.polynomial.Polynomial.fit(
        x, log_density[chosen], len(chosen) - 1, domain=[-1, 1]
    ).deriv()
    middle = len(chosen) // 2
    roots = [
        root.real
        for root in slope.roots()
        if abs(root.imag) < 1e-9
        and x[middle - 1] <= root.real <= x[middle + 1]
        and slope.deriv()(root.real) < 0
    ]
    # At a kink there may be none: the node is the best that is known.
    return float(centre + scale * roots[0]) if roots else float(centre)
