"""Results: closed forms and summaries of densities, as text and tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, SupportsFloat

import jax
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from scipy.signal import find_peaks

from numpyro_kaem.closed_forms.energies import Features
from numpyro_kaem.closed_forms.families import (
    Component,
    Extent,
    Family,
    components,
    marginals_of,
)
from numpyro_kaem.references import ReferenceParameters

__all__ = [
    "Candidate",
    "PriorSummary",
    "SymbolicResult",
    "SymbolicResults",
    "describe_energy",
    "describe_family",
    "summarize_prior",
]

# A mode rises above its surroundings by this share of the highest density.
_PROMINENCE = 0.01
# Least distance of nodes that a polynomial goes through, in units of the scale of
# the density: far enough that rounding does not matter in float32.
_REACH = 0.02


class Candidate(NamedTuple):
    """A form that was compared with a density; in ``candidates`` of a result."""

    name: str
    """Family, such as ``"Gamma"``, or the terms of an energy."""
    num_parameters: int
    """Number of parameters that were fitted."""
    divergence: float
    """Smallest divergence of the family from the density in nats, before rounding."""
    criterion: float
    """Description length in nats; smaller is better."""


@dataclass(frozen=True, repr=False)
class SymbolicResult:
    """Closed form of one density; made by :func:`symbolic`.

    Without a short form, ``distribution`` is ``None``, and ``divergence``,
    ``cdf_error`` and ``criterion`` are those of the nearest candidate.
    """

    name: str
    """Family, ``"energy of 2 terms"`` and so on, or ``"no short form"``."""
    text: str
    """Expression as text, with the numbers that ``distribution`` has."""
    latex: str
    """The same in LaTeX, without dollar signs."""
    distribution: dist.Distribution | None
    """A short energy is a :class:`KAEMPrior`, with the prior's reference."""
    divergence: float
    """Kullback-Leibler divergence of ``distribution`` from the density, in nats."""
    cdf_error: float
    """Largest absolute difference of their distribution functions."""
    criterion: float
    """Description length in nats, see :func:`symbolic`."""
    candidates: tuple[Candidate, ...]
    """All that was compared, shortest description first."""

    @property
    def is_short(self) -> bool:
        """Whether there is a short form."""
        return self.distribution is not None

    def log_prob(self, value: ArrayLike) -> jax.Array:
        """Log density of the closed form, shape ``value.shape``.

        Raises
        ------
        ValueError
            If there is no short form.
        """
        if self.distribution is None:
            raise ValueError(
                "there is no short form to evaluate; use the prior itself, or a larger "
                "tolerance."
            )
        return self.distribution.log_prob(value)

    def __repr__(self) -> str:
        return (
            f"{self.text}; divergence {_number(self.divergence, 2)}, "
            f"cdf error {_number(self.cdf_error, 2)}"
        )


class SymbolicResults:
    """Closed forms of a batch of densities; prints as a table.

    Parameters
    ----------
    results
        Array of :class:`SymbolicResult`, shape ``batch_shape``. An index gives one of
        them, or the closed forms of a part of the batch.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.BSpline(-1.0, 5.0, 8), jnp.zeros((2, 8)))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(2.0, jnp.array([1.0, 1.5])))
    >>> results = kaem.symbolic(prior, max_terms=0)
    >>> results.shape, [result.text for result in results]
    ((2,), ['Normal(loc=2, scale=1)', 'Normal(loc=2, scale=1.5)'])
    """

    def __init__(self, results: np.ndarray) -> None:
        self._results = results

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch shape."""
        return self._results.shape

    def __getitem__(self, index: int | tuple) -> "SymbolicResult | SymbolicResults":
        """One result, or those of a part of the batch."""
        found = self._results[index]
        return SymbolicResults(found) if isinstance(found, np.ndarray) else found

    def __len__(self) -> int:
        """Length of the first axis."""
        return len(self._results)

    def __iter__(self) -> Iterator["SymbolicResult | SymbolicResults"]:
        """Along the first axis."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        rows = [("component", "divergence", "cdf error", "closed form")]
        for index, result in np.ndenumerate(self._results):
            errors = _number(result.divergence, 2), _number(result.cdf_error, 2)
            rows.append((", ".join(map(str, index)), *errors, result.text))
        return _table(rows)


@dataclass(frozen=True, repr=False)
class PriorSummary:
    """Moments, modes and entropies of densities; prints as a table.

    Made by :func:`summarize_prior`. Arrays have the shape ``batch_shape``.
    """

    mean: np.ndarray
    """Means; not finite where there is none."""
    standard_deviation: np.ndarray
    """Standard deviations; not finite where there is none."""
    modes: np.ndarray
    """Modes in increasing order, one tuple per density."""
    entropy: np.ndarray
    """Differential entropies, in nats."""
    divergence: np.ndarray
    """Kullback-Leibler divergences of the reference from the densities, in nats; near
    zero where a density is still its reference."""

    def __repr__(self) -> str:
        rows = [("component", "mean", "sd", "entropy", "divergence", "modes")]
        for index in np.ndindex(self.mean.shape):
            width = float(self.standard_deviation[index])
            modes = ", ".join(_position(mode, width) for mode in self.modes[index])
            numbers = (
                _position(float(self.mean[index]), width),
                _number(width, 3),
                _number(np.round(self.entropy[index], 3)),
                _number(np.round(self.divergence[index], 4)),
            )
            rows.append((", ".join(map(str, index)), *numbers, modes or "none"))
        return _table(rows)


def summarize_prior(prior: dist.Distribution) -> PriorSummary:
    """Tabulate moments, modes and entropies of one-dimensional densities of a prior.

    Parameters
    ----------
    prior
        A :class:`KAEMPrior`, :class:`KAEMMixture` or a ``MixtureSameFamily`` of
        :class:`KAEMPrior`, also with ``to_event``, expanded or masked. For mixtures the
        densities are those of the components.

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
    nodes, first = np.unique(component.nodes, return_index=True)
    log_density = component.log_density[first]
    extent = component.extent
    density = np.exp(log_density - log_density.max())
    bounded = np.isfinite(extent.low) and np.isfinite(extent.high)
    if bounded and density.min() > 1 - _PROMINENCE:
        return ()
    peaks, _ = find_peaks(np.pad(density, 1), prominence=_PROMINENCE)
    found = []
    for peak in peaks - 1:
        if peak == 0 and np.isfinite(extent.low):
            found.append(extent.low)
        elif peak == len(nodes) - 1 and np.isfinite(extent.high):
            found.append(extent.high)
        else:
            found.append(_refine(nodes, log_density, peak, _REACH * extent.scale))
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


# --- text ----------------------------------------------------------------------------


def _number(value: SupportsFloat, digits: int = 12) -> str:
    """Shortest text of a number with at most so many significant digits."""
    text = f"{float(value):.{digits}g}"
    return "0" if text == "-0" else text


def _latex_number(value: SupportsFloat) -> str:
    text = _number(value)
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}"


def _position(value: float, width: float) -> str:
    """Text of a position, to a hundredth of the width or so."""
    if not (np.isfinite(value) and np.isfinite(width)):
        return _number(value, 3)
    return _number(round(value, 2 - int(np.floor(np.log10(width)))), 15)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of text in columns, the first of them the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def describe_family(
    family: Family, values: dict[str, np.ndarray], extent: Extent
) -> tuple[str, str]:
    """Text, in NumPyro's names, and LaTeX of a member of a family."""
    if family.num_components > 1:
        parts = list(zip(values["probs"], values["loc"], values["scale"], strict=True))
        text = " + ".join(
            f"{_number(w)} Normal({_number(loc)}, {_number(scale)})"
            for w, loc, scale in parts
        )
        latex = " + ".join(
            rf"{_latex_number(w)}\,\mathrm{{Normal}}"
            rf"({_latex_number(loc)},\ {_latex_number(scale)})"
            for w, loc, scale in parts
        )
        return text, latex
    names = [f"{p.name}={_number(values[p.name])}" for p in family.parameters]
    symbols = [
        f"{p.symbol} = {_latex_number(values[p.name])}" for p in family.parameters
    ]
    if family.support is None:
        low, high = _number(extent.low), _number(extent.high)
        if (low, high) != ("0", "1") or family.name != "Beta":
            names.append(f"low={low}, high={high}")
            interval = rf"[{_latex_number(extent.low)},\ {_latex_number(extent.high)}]"
            symbols.append(interval)
    text = f"{family.name}({', '.join(names)})"
    joined = r",\ ".join(symbols)
    return text, rf"\mathrm{{{family.name}}}({joined})"


def describe_energy(
    features: Features,
    terms: tuple[int, ...],
    coefficients: np.ndarray,
    parameters: ReferenceParameters | None,
) -> tuple[str, str]:
    """Text and LaTeX of a density with a short energy, of the variable ``z``."""
    text, latex = "", ""
    for term, value in zip(terms, coefficients, strict=True):
        sign = "-" if value < 0 else "+"
        lead = f" {sign} " if text else sign.replace("+", "")
        entry = features.basis.terms[term]
        text += f"{lead}{_number(abs(value))} {entry.text}"
        latex += rf"{lead}{_latex_number(abs(value))}\,{entry.latex}"
    low, high = features.basis.ends(float)
    location, scale = features.location, features.scale
    scaled = "z" if location == 0 else f"z {'-' if location > 0 else '+'} "
    scaled += "" if location == 0 else _number(abs(location))
    plain = scaled if location == 0 else f"({scaled})"
    name, values = "Uniform", {"low": _number(low, 4), "high": _number(high, 4)}
    if parameters is not None:
        name, values = parameters.distribution.__name__, _values(parameters)
    named = ", ".join(f"{key}={value}" for key, value in values.items())
    text = (
        f"{name}({named}) * exp({text}), t = {plain} / {_number(scale)}, "
        f"z cut to [{_number(low, 4)}, {_number(high, 4)}] in t"
    )
    symbols = r",\ ".join(
        rf"\mathrm{{{key}}} = {value}".replace("_", r"\_")
        for key, value in values.items()
    )
    latex = (
        rf"\mathrm{{{name}}}(z;\ {symbols})\,\exp({latex}),"
        rf"\quad t = {plain} / {_latex_number(scale)}"
    )
    return text, latex


def _values(parameters: ReferenceParameters, prefix: str = "") -> dict[str, str]:
    """Scalar parameters as text, by name, those of inner distributions included."""
    found: dict[str, str] = {}
    for name, value in parameters.values.items():
        if isinstance(value, ReferenceParameters):
            found |= _values(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | np.ndarray | jax.Array):
            if np.ndim(value) == 0:
                found[prefix + name] = _number(float(value), 4)
    return found
