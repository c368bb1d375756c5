"""What :func:`symbolic` found."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem.symbolic.text import as_table, number

__all__ = ["NO_SHORT_FORM", "Candidate", "SymbolicResult", "SymbolicResults"]

NO_SHORT_FORM = "no short form"


class Candidate(NamedTuple):
    """A law that was compared with a density; in ``candidates`` of a result.

    Examples
    --------
    >>> from numpyro_kaem.symbolic import Candidate
    >>> short = Candidate("Normal", 2, divergence=0.001, criterion=10.6)
    >>> long = Candidate("StudentT", 3, divergence=0.0009, criterion=14.0)
    >>> min([short, long], key=lambda candidate: candidate.criterion).name
    'Normal'
    """

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
    """Closed form of one density.

    Without a short form, ``distribution`` is ``None``, and ``divergence``,
    ``cdf_error`` and ``criterion`` are those of the nearest candidate.

    Examples
    --------
    A flat energy leaves the reference as it is:

    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.BSpline(-1.0, 5.0, 8), jnp.zeros(8))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(2.0, 1.5))
    >>> result = kaem.symbolic(prior, max_terms=0)
    >>> result.name, result.is_short, len(result.candidates) > 5
    ('Normal', True, True)
    >>> print(f"{result.log_prob(2.0):.3f}")
    -1.324
    """

    name: str
    """Family, ``"energy of 2 terms"`` and so on, or ``"no short form"``."""
    text: str
    """Expression as text, with the numbers that ``distribution`` has."""
    latex: str
    """The same in LaTeX, without dollar signs."""
    distribution: dist.Distribution | None
    """The law; a short energy is a :class:`KAEMPrior`, with the prior's reference."""
    divergence: float
    """Kullback-Leibler divergence of ``distribution`` from the density, in nats."""
    cdf_error: float
    """Largest distance of their distribution functions."""
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
            f"{self.text}; divergence {number(self.divergence, 2)}, "
            f"cdf error {number(self.cdf_error, 2)}"
        )


class SymbolicResults:
    """Closed forms of a batch of densities, one for each; prints as a table.

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
        rows = [("component", "divergence", "cdf error", "law")]
        for index in np.ndindex(self.shape):
            result = self._results[index]
            rows.append(
                (
                    ", ".join(map(str, index)),
                    number(result.divergence, 2),
                    number(result.cdf_error, 2),
                    result.text,
                )
            )
        return as_table(rows)
