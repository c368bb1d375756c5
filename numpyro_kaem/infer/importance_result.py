"""The result of importance sampling: weighted draws, and what they are worth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem._checks import as_count
from numpyro_kaem.infer.weights import (
    GOOD_PARETO_K,
    MAX_PARETO_K,
    Estimate,
    SmoothedWeights,
    normalize,
    pareto_smooth,
    resample_below,
    resample_indices,
)

__all__ = ["ImportanceResult", "ResampledDraws"]


class ResampledDraws(NamedTuple):
    """Draws after :meth:`ImportanceResult.resample_below`."""

    samples: dict[str, jax.Array]
    """Latent values, one per particle (and unit)."""
    log_weights: jax.Array
    """Their normalised log weights, equal where resampled."""
    resampled: jax.Array
    """Whether they were resampled, shape () or ``(num_units,)``."""


_INSTEAD = (
    "Instead, sample with numpyro.infer.NUTS or numpyro_kaem.infer.MALA, or, where "
    "the posterior may have several modes, with numpyro_kaem.infer.AnnealedLangevin; "
    "or give a guide closer to the posterior."
)


@dataclass(frozen=True, repr=False)
class ImportanceResult:
    """Weighted draws; made by :meth:`ImportanceSampling.run`.

    What is estimated is a number for one weight per particle, and an array of shape
    ``(num_units,)`` for one weight per unit. Printing it shows all, with a verdict.

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro_kaem.infer import ImportanceSampling
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> result = ImportanceSampling(model).run(jax.random.key(0), 1.5)
    >>> result.log_weights.shape, result.reliable, result.ess > 1000
    ((4096,), True, True)
    >>> draws = result.resample(jax.random.key(1), 1000)["z"]
    >>> bool(abs(draws.mean() - 0.75) < 0.1)
    True
    """

    samples: dict[str, jax.Array]
    """Proposed values of the latent sites, each of shape ``(num_samples, *site)``. With
    proposals that units share, their axis in the site has size one."""
    log_weights: jax.Array | np.ndarray
    """Log of joint density over proposal density, shape ``(num_samples,)`` or
    ``(num_samples, num_units)``."""
    unit_plate: str | None
    """Plate of independent units, or None for one weight per particle."""
    _unit_axes: dict[str, int]

    @property
    def num_samples(self) -> int:
        """Number of particles."""
        return self.log_weights.shape[0]

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.asarray(self.log_weights, np.float64)

    @cached_property
    def _smoothed(self) -> SmoothedWeights:
        return pareto_smooth(self._weights)

    @cached_property
    def log_normalized_weights(self) -> np.ndarray:
        """Log weights that sum to one over particles, float64."""
        return normalize(self._weights)

    @property
    def smoothed_log_weights(self) -> np.ndarray:
        """Pareto-smoothed log weights that sum to one over particles, float64."""
        return self._smoothed.log_weights

    @property
    def pareto_k(self) -> float | np.ndarray:
        r"""Shape :math:`\hat k` of the weights' tail, as of :func:`pareto_smooth`."""
        return _number(self._smoothed.pareto_k)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why weights were not smoothed, one per unit; empty where they were."""
        return self._smoothed.notes

    @cached_property
    def ess(self) -> float | np.ndarray:
        r"""Effective sample size :math:`1 / \sum_s w_s^2` of normalised raw weights."""
        squares = np.exp(2 * self.log_normalized_weights).sum(axis=0)
        return _number(1 / np.where(squares > 0, squares, np.inf))

    @cached_property
    def log_evidence(self) -> Estimate:
        r"""Log evidence of the data, or of each unit's, and its standard error.

        The mean weight is unbiased; its log is lower on average. The error is by the
        delta method, not to be trusted where :math:`\hat k` is above 0.7, and inf
        where no particle carries weight.
        """
        top = self._weights.max(axis=0)
        carried = np.isfinite(top)
        shift = np.where(carried, top, 0.0)
        weights = np.exp(self._weights - shift)
        mean = weights.mean(axis=0)
        error = np.full(np.shape(top), np.inf)
        if self.num_samples > 1:
            spread = weights.std(axis=0, ddof=1) / np.sqrt(self.num_samples)
            error = np.where(carried, spread / np.where(carried, mean, 1.0), np.inf)
        with np.errstate(divide="ignore"):
            value = shift + np.log(mean)
        return Estimate(_number(value), _number(error))

    # --- what it is worth ------------------------------------------------------------

    @property
    def carries_weight(self) -> bool | np.ndarray:
        """Whether any particle carries weight."""
        return _number(np.any(np.isfinite(self._weights), axis=0))

    @property
    def reliable(self) -> bool | np.ndarray:
        r"""Whether :math:`\hat k` was estimated and is at most 0.7."""
        return _number(np.asarray(self._smoothed.pareto_k <= MAX_PARETO_K))

    @property
    def verdict(self) -> str:
        """Whether the weights can be used, and what to do if not, in plain language.

        It is about what the proposals reached: a mode without particles has no weights.
        """
        if self.unit_plate is not None:
            return self._verdict_of_units()
        k, note = self.pareto_k, self.notes[0]
        if not self.carries_weight:
            return (
                f"No particle carries weight: all {self.num_samples} log weights are "
                "-inf. The proposals miss the posterior, or the data have density zero "
                f"under the model. {_INSTEAD}"
            )
        if np.isnan(k):
            return f"Not known whether the weights are reliable: {note}."
        if not self.reliable:
            why = f" ({note})" if note else ""
            return (
                f"Not reliable: Pareto k = {k:.2f} is above {MAX_PARETO_K}{why}, so a "
                f"few of the {self.num_samples} particles decide. {_INSTEAD}"
            )
        if k == -np.inf:
            return f"Reliable: {note or 'the weights have no tail'}."
        grade = "Reliable" if k <= GOOD_PARETO_K else "Usable"
        return (
            f"{grade}: Pareto k = {k:.2f} is at most "
            f"{GOOD_PARETO_K if k <= GOOD_PARETO_K else MAX_PARETO_K}; the weights are "
            f"worth {self.ess:.1f} of {self.num_samples} independent draws."
        )

    def _verdict_of_units(self) -> str:
        k, num_units = self._smoothed.pareto_k, self.log_weights.shape[1]
        empty = ~np.asarray(self.carries_weight)
        unknown = np.isnan(k) & ~empty
        bad = np.asarray(~self.reliable) & ~unknown & ~empty
        parts = []
        if np.any(empty):
            parts.append(
                f"No particle carries weight in {empty.sum()} of {num_units} units "
                f"(first: unit {int(np.argmax(empty))})."
            )
        if np.any(bad):
            worst = int(np.argmax(np.where(bad, k, -np.inf)))
            parts.append(
                f"Not reliable in {bad.sum()} of {num_units} units: Pareto k is above "
                f"{MAX_PARETO_K} (largest: {k[worst]:.2f} in unit {worst})."
            )
        if np.any(unknown):
            note = self.notes[int(np.argmax(unknown))]
            parts.append(
                f"Not known whether the weights are reliable in {unknown.sum()} of "
                f"{num_units} units: {note}."
            )
        if np.any(empty | bad):
            parts.append(_INSTEAD)
        if not parts:
            grade = "Reliable" if k.max() <= GOOD_PARETO_K else "Usable"
            parts.append(
                f"{grade} in all {num_units} units: the largest Pareto k is "
                f"{k.max():.2f}; the weights are worth at least "
                f"{np.min(self.ess):.1f} of {self.num_samples} independent draws."
            )
        return " ".join(parts)

    def __repr__(self) -> str:
        weighted = (
            "" if self.unit_plate is None else f", unit_plate={self.unit_plate!r}"
        )
        return (
            f"ImportanceResult(num_samples={self.num_samples}{weighted}, "
            f"pareto_k={_worst(np.max, self._smoothed.pareto_k)}, "
            f"ess={_worst(np.min, self.ess)}, "
            f"log_evidence={np.sum(self.log_evidence.value):.3f})"
        )

    def __str__(self) -> str:
        value, error = self.log_evidence
        # Units are independent, so that their log evidences add up; with proposals
        # that they share their errors are not, and only the largest is given.
        per_unit = self.unit_plate is not None
        label = "log evidence of all units" if per_unit else "log evidence"
        spread = "largest error of a unit" if per_unit else "standard error"
        sites = ", ".join(
            f"{name} {tuple(value.shape[1:])}" for name, value in self.samples.items()
        )
        units = f", {self.log_weights.shape[1]} units" if per_unit else ""
        return "\n".join(
            [
                f"Importance sampling: {self.num_samples} particles{units}",
                f"  latent sites           {sites}",
                f"  {label:<22} {np.sum(value):.3f} "
                f"({spread} {_worst(np.max, error, 3)})",
                f"  effective sample size  {_worst(np.min, self.ess)}",
                f"  Pareto k               {_worst(np.max, self._smoothed.pareto_k)}",
                f"  {self.verdict}",
            ]
        )

    # --- draws -----------------------------------------------------------------------

    def resample(
        self,
        rng_key: jax.Array,
        num_samples: int | None = None,
        *,
        method: str = "systematic",
        smoothed: bool = True,
    ) -> dict[str, jax.Array]:
        """Equally weighted draws of the posterior, in random order.

        Parameters
        ----------
        rng_key
            Random key.
        num_samples
            How many; by default as many as there are particles.
        method
            ``"multinomial"``, ``"residual"``, ``"stratified"`` or ``"systematic"``.
        smoothed
            Whether to draw by the Pareto-smoothed weights; by the raw ones if not.

        Returns
        -------
        dict
            Values of the latent sites, each of shape ``(num_samples, *site)``, units
            drawn independently. :class:`numpyro.infer.Predictive` makes the model's
            other sites from them.

        Raises
        ------
        TypeError, ValueError
            If no particle carries weight, or an argument is not as above.
        """
        return self._take(self._indices(rng_key, num_samples, method, smoothed))

    def _indices(
        self,
        rng_key: jax.Array,
        num_samples: int | None,
        method: str = "systematic",
        smoothed: bool = True,
    ) -> jax.Array:
        """Particles of the draws of :meth:`resample`, ``(num_samples, *num_units)``."""
        num_samples = as_count(
            "num_samples", self.num_samples if num_samples is None else num_samples
        )
        choose_key, order_key = jax.random.split(rng_key)
        indices = resample_indices(
            choose_key, self._carried(smoothed), num_samples, method=method
        )
        # In order of the particles, row after row would pair units that share them.
        return jax.random.permutation(order_key, indices, axis=0, independent=True)

    def resample_below(
        self,
        rng_key: jax.Array,
        threshold: float = 0.5,
        *,
        method: str = "systematic",
        smoothed: bool = True,
    ) -> ResampledDraws:
        """Resample only where the effective sample size has become small.

        Parameters
        ----------
        rng_key, method, smoothed
            As for :meth:`resample`.
        threshold
            Fraction of the number of particles below which the effective sample size,
            that of each unit by itself, calls for resampling.

        Returns
        -------
        ResampledDraws
            As many draws as particles, and their weights.

        Raises
        ------
        TypeError, ValueError
            As :meth:`resample`, or if the threshold is not within [0, 1].
        """
        result = resample_below(
            rng_key, self._carried(smoothed), threshold, method=method
        )
        return ResampledDraws(
            self._take(result.indices), result.log_weights, result.resampled
        )

    def _carried(self, smoothed: bool) -> jax.Array:
        if not np.all(self.carries_weight):
            empty = ~np.atleast_1d(self.carries_weight)
            where = "" if self.unit_plate is None else f" in unit {np.argmax(empty)}"
            raise ValueError(
                f"no particle carries weight{where}, so there is nothing to resample: "
                "all its log weights are -inf."
            )
        weights = self.smoothed_log_weights if smoothed else self.log_normalized_weights
        return jnp.asarray(weights, self.log_weights.dtype)

    def _take(self, indices: jax.Array) -> dict[str, jax.Array]:
        if self.unit_plate is None:
            return {name: value[indices] for name, value in self.samples.items()}
        draws = {}
        for name, value in self.samples.items():
            axis = value.ndim + self._unit_axes[name]
            # Units last but for particles first, to index both together.
            moved = jnp.moveaxis(value, axis, 1)
            columns = jnp.arange(indices.shape[1]) % moved.shape[1]
            draws[name] = jnp.moveaxis(moved[indices, columns], 1, axis)
        return draws


def _number(value: Any) -> Any:
    """Python number in place of an array of shape ()."""
    return value.item() if np.ndim(value) == 0 else value


def _worst(extreme: Callable, value: float | np.ndarray, digits: int = 2) -> str:
    """Write the worst of one or several numbers."""
    return f"{extreme(value):.{digits}f}"
