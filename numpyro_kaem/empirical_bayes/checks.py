"""Checks and conversions of the arguments of a fit to units."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.empirical_bayes.family import Maximum
from numpyro_kaem.empirical_bayes.likelihood import LogLikelihood
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation._arguments import as_real
from numpyro_kaem.references import ReferenceParameters, check_reference

__all__ = ["as_counts", "as_weight", "check_basis", "warn_of_problems", "warn_off_grid"]

# Nats by which the likelihood of a unit falls short on the grid of its maximum beyond:
# that of an interval of 95 %, and of four standard errors.
_SHORT, _FAR_SHORT = 1.92, 8.0


def check_basis(
    basis: Any, reference: Any, dtype: Any
) -> tuple[Energy, ReferenceParameters | None]:
    """Flat energy on a basis, and the parameters of the reference.

    Raises
    ------
    TypeError
        If they are not a basis and a univariate continuous distribution.
    ValueError
        If they have a batch shape, or do not meet.
    """
    if not isinstance(basis, AbstractBasis):
        raise TypeError(
            "basis must be a basis such as numpyro_kaem.BSpline(low, high, num_basis), "
            f"got {type(basis).__name__}."
        )
    if basis.grid_shape != ():
        raise ValueError(
            "basis must have one grid, because all units share a prior, got a grid of "
            f"shape {basis.grid_shape}."
        )
    flat = Energy(basis, jnp.zeros(basis.num_features, dtype))
    if reference is None:
        return flat, None
    check_reference(reference, flat)
    if isinstance(reference, dist.Distribution) and reference.batch_shape != ():
        raise ValueError(
            "reference must have the batch shape (), because all units share a prior, "
            f"got {reference.batch_shape}."
        )
    return flat, ReferenceParameters.of(reference)


def as_counts(counts: Any, num_units: int) -> np.ndarray:
    """How often each unit counts.

    Raises
    ------
    TypeError
        If they are not real numbers.
    ValueError
        If they are of a wrong shape, negative, not finite, or all zero.
    """
    if counts is None:
        return np.ones(num_units)
    value = as_real("counts", counts)
    if value.shape != (num_units,):
        raise ValueError(
            f"counts must have shape ({num_units},), one for each unit, got "
            f"{value.shape}."
        )
    bad = ~(np.isfinite(value) & (value >= 0))
    if bad.any():
        unit = int(np.argwhere(bad)[0][0])
        raise ValueError(
            f"counts must be finite and not negative, got {value[unit]} for unit "
            f"{unit}."
        )
    if not value.sum() > 0:
        raise ValueError("counts must not all be zero.")
    return value


def as_weight(penalty: Any) -> float | None:
    """Weight of the roughness, if one is given.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not positive and finite.
    """
    if penalty is None:
        return None
    value = as_real("penalty", penalty)
    if value.shape != () or not (np.isfinite(value) and value > 0):
        raise ValueError(
            "penalty must be one finite number > 0, or None to choose it, got "
            f"{penalty!r}; without a penalty the maximum is a sum of point masses."
        )
    return float(value)


def warn_of_problems(best: Maximum) -> None:
    """Warn where the maximum was not reached."""
    if not bool(best.converged):
        warnings.warn(
            f"the fit did not converge in {int(best.num_steps)} steps: another one "
            f"promises {float(best.decrement):.2g} nats. Use a larger penalty, fewer "
            "features, or float64.",
            UserWarning,
            stacklevel=3,
        )


def warn_off_grid(
    energy: Energy,
    has_reference: bool,
    log_likelihood: LogLikelihood,
    nodes: np.ndarray,
    values: np.ndarray,
    outside: np.ndarray,
) -> None:
    """Warn of units off the grid, of whose prior nothing is learned there.

    Parameters
    ----------
    energy, has_reference
        The prior.
    log_likelihood, nodes, values
        Log likelihood of the units, and its values at nodes.
    outside
        Share of each unit's posterior that lies off the grid.
    """
    low, high = float(energy.basis.low), float(energy.basis.high)
    on_grid = (nodes >= low) & (nodes <= high)
    beyond = values[:, ~on_grid].max(axis=1, initial=-np.inf)
    if not has_reference:
        # The prior ends with the grid, and so do the nodes.
        steps = (high - low) * 2.0 ** np.arange(-5.0, 3.0, 0.5)
        more = jnp.asarray([*(low - steps), *(high + steps)], nodes.dtype)
        more = np.asarray(jax.jit(log_likelihood)(more))
        beyond = np.where(np.isfinite(more), more, -np.inf).max(axis=1)
    best = np.maximum(values[:, on_grid].max(axis=1), np.finfo(values.dtype).min)
    off = beyond - best > _SHORT
    if has_reference:
        off = (off & (outside > 0.5)) | (beyond - best > _FAR_SHORT)
    if off.any():
        warnings.warn(
            f"the data of {off.sum()} units, the first of them unit "
            f"{int(np.argmax(off))}, place their latent values off the grid, which is "
            f"({low:.6g}, {high:.6g}): there the prior is "
            f"{'its reference alone' if has_reference else 'zero'}. Check these units, "
            "or widen the grid.",
            UserWarning,
            stacklevel=3,
        )
