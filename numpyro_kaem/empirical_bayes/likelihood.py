"""Likelihoods of units, as functions of their latent values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from numpyro_kaem._checks import check_function
from numpyro_kaem.estimation.samples import Numbers
from numpyro_kaem.references import is_concrete

__all__ = [
    "NEGLIGIBLE",
    "LogLikelihood",
    "check_units",
    "evaluate",
    "evaluate_at",
    "unit_log_likelihood",
]

# The share of a unit's mass that is left out, by whether in float64.
NEGLIGIBLE = {False: 1e-7, True: 1e-13}

LogLikelihood = Callable[[jax.Array], jax.Array]
"""Maps latent values ``(num_nodes,)`` to ``(num_units, num_nodes)``."""


def unit_log_likelihood(
    observation: Callable[[jax.Array], dist.Distribution], data: Numbers
) -> LogLikelihood:
    """Log likelihood of many units from the distribution of their observations.

    Parameters
    ----------
    observation
        Distribution of all units' observations given their latent values, written as in
        a model: it takes an array of latent values, one per unit in the last axis, and
        returns a NumPyro distribution with as many in the last axis of its batch shape.
        Several observations of a unit belong in its event shape (``to_event``).
    data
        Observations, shape ``(num_units, *event_shape)``.

    Returns
    -------
    callable
        Maps latent values ``(num_nodes,)`` to log likelihoods
        ``(num_units, num_nodes)``, for :func:`fit_marginal` and
        :func:`unit_posterior`.

    Raises
    ------
    TypeError
        If ``observation`` is not a function, or does not return a distribution.
    ValueError
        If the distribution refuses its parameters, such as a standard error of zero, or
        shapes do not fit: units are not broadcast against each other.

    Examples
    --------
    Seven of nine, and none of five:

    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> trials = jnp.array([9, 5])
    >>> log_likelihood = kaem.unit_log_likelihood(
    ...     lambda z: dist.Binomial(trials, probs=z), jnp.array([7, 0])
    ... )
    >>> log_likelihood(jnp.linspace(0.1, 0.9, 4)).shape
    (2, 4)

    Three measurements of each of two units:

    >>> log_likelihood = kaem.unit_log_likelihood(
    ...     lambda z: dist.Normal(z[..., None], 1.0).expand([*z.shape, 3]).to_event(1),
    ...     jnp.array([[0.1, 0.4, 0.3], [1.2, 0.9, 1.4]]),
    ... )
    >>> log_likelihood(jnp.linspace(-1.0, 2.0, 4)).shape
    (2, 4)
    """
    check_function(
        "observation",
        observation,
        "a function of the latent values that returns the distribution of the data, "
        "such as lambda z: dist.Normal(z, 1.0)",
    )
    observed = jnp.asarray(data)
    if observed.ndim == 0:
        raise ValueError(
            "data must have shape (num_units, *event_shape), got a single number."
        )
    if not isinstance(data, jax.core.Tracer):
        values = np.asarray(data)
        if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
            unit = int(np.argwhere(~np.isfinite(values))[0][0])
            raise ValueError(
                f"data must be finite, got {values[unit]} for unit {unit}."
            )
    num_units = observed.shape[0]
    _check_observation(observation, observed)

    def log_likelihood(z: jax.Array) -> jax.Array:
        # Latent values along the first axis broadcast against units in the last one.
        values = observation(z[:, None]).log_prob(observed)
        return jnp.broadcast_to(values, (z.shape[0], num_units)).T

    return log_likelihood


def _check_observation(observation: Callable, observed: jax.Array) -> None:
    """Refuse distributions that broadcast units against each other."""
    num_units = observed.shape[0]
    # A number of nodes that no axis of the data has by accident.
    num_nodes = num_units + 1 + max(observed.shape)
    found: dict[str, Any] = {}

    def trace(z: jax.Array) -> jax.Array:
        try:
            distribution = observation(z)
        except (TypeError, ValueError) as error:
            if "parameter" in str(error):
                raise ValueError(
                    "observation must return a distribution that is valid, and raised: "
                    f"{error} A standard error must be positive: where it is zero the "
                    "latent value is known; give the error of rounding instead."
                ) from error
            raise ValueError(
                "observation must take latent values of shape (n, 1), against units in "
                f"the last axis, and raised {type(error).__name__}: {error} Give what "
                f"differs between units the shape ({num_units},)."
            ) from error
        if not isinstance(distribution, dist.Distribution):
            raise TypeError(
                "observation must return a NumPyro distribution, got "
                f"{type(distribution).__name__}."
            )
        found["batch"] = distribution.batch_shape
        found["event"] = distribution.event_shape
        return z

    jax.eval_shape(trace, jax.ShapeDtypeStruct((num_nodes, 1), jnp.result_type(float)))
    batch, event = found["batch"], found["event"]
    if observed.shape[1:] != event:
        raise ValueError(
            f"data must have shape (num_units, *event_shape) with the event shape "
            f"{event} of the distribution, got {observed.shape}; declare several "
            "observations of a unit with to_event, and give single ones the shape "
            "(num_units,)."
        )
    if batch not in ((num_nodes, 1), (num_nodes, num_units)):
        shown = tuple("n" if size == num_nodes else size for size in batch)
        raise ValueError(
            "observation must return a distribution with one batch axis for the units: "
            "for latent values of shape (n, 1) the batch shape (n, 1) or "
            f"(n, {num_units}), got {shown}; give what differs between units the shape "
            f"({num_units},)."
        )


def check_units(log_likelihood: LogLikelihood, dtype: Any) -> int:
    """Count the units of a log likelihood, after a check of its shapes."""
    check_function(
        "log_likelihood",
        log_likelihood,
        "a function of latent values, such as numpyro_kaem.unit_log_likelihood makes",
    )
    # Two sizes, so that units and nodes are not taken for each other.
    shapes = [
        jax.eval_shape(log_likelihood, jax.ShapeDtypeStruct((size,), dtype)).shape
        for size in (5, 7)
    ]
    num_units = shapes[0][0] if len(shapes[0]) == 2 else 0
    if shapes != [(num_units, 5), (num_units, 7)] or num_units == 0:
        raise ValueError(
            "log_likelihood must map latent values of shape (num_nodes,) to "
            f"(num_units, num_nodes) with at least one unit, got {shapes[0]} for 5 "
            "nodes."
        )
    return num_units


def evaluate(
    log_likelihood: LogLikelihood, nodes: jax.Array, log_mass: jax.Array
) -> jax.Array:
    """Log likelihoods at nodes, shape ``(num_units, num_nodes)``.

    They are minus infinity where they are not a number, such as where the exponential
    of a latent value overflows, if next to nothing of the unit's mass lies there.
    """
    values = _values(log_likelihood, nodes)
    if not is_concrete((values, log_mass)):
        values, _ = _without_bad(nodes, values, log_mass)
        return values
    # On the host: a maximum may lose what is not a number.
    host = np.asarray(values)
    bad = np.isnan(host) | np.isposinf(host)
    if bad.any():
        values, negligible = _without_bad(nodes, values, log_mass)
        bad &= ~np.asarray(negligible)[:, None]
        if bad.any():
            _refuse(host, bad, nodes, log_mass)
    return values


def evaluate_at(log_likelihood: LogLikelihood, atoms: jax.Array) -> jax.Array:
    """Log likelihoods at atoms, shape ``(num_units, num_atoms)``."""
    values = _values(log_likelihood, atoms)
    if is_concrete(values):
        bad = np.isnan(values) | np.isposinf(values)
        if bad.any():
            unit, atom = np.argwhere(bad)[0]
            raise ValueError(
                "atoms must have a log likelihood that is a number below plus "
                f"infinity, got {values[unit, atom]} for unit {unit} at the atom "
                f"{float(atoms[atom]):.6g}; keep what its distribution takes in its "
                "range, such as by jnp.maximum(z, 1e-30), or leave the atom out."
            )
    return values


def _values(log_likelihood: LogLikelihood, nodes: jax.Array) -> jax.Array:
    if not is_concrete(nodes):
        return jnp.asarray(log_likelihood(nodes), nodes.dtype)
    # In float64 where that may be: those of large counts are small differences of
    # large numbers.
    with jax.enable_x64(True):
        wide = nodes.astype(jnp.float64)
        try:
            values = log_likelihood(wide)
        except ValueError:
            # A distribution that checks its parameters may refuse those far out. Under
            # jit none do.
            values = jax.jit(log_likelihood)(wide)
        return jnp.asarray(values).astype(nodes.dtype)


@jax.jit
def _without_bad(
    nodes: jax.Array, values: jax.Array, log_mass: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Set likelihoods to zero that are not a number; also in which units none matters.

    They are taken to be at most those at the nearest nodes where they are a number.
    """
    bad = jnp.isnan(values) | (values == jnp.inf)
    order = jnp.argsort(nodes)
    sorted_values = jnp.where(bad, -jnp.inf, values)[:, order]
    index = jnp.where(bad[:, order], -1, jnp.arange(len(nodes)))
    below = jax.lax.cummax(index, axis=1)
    index = jnp.where(bad[:, order], len(nodes), jnp.arange(len(nodes)))
    above = jax.lax.cummin(index, axis=1, reverse=True)
    padded = jnp.pad(sorted_values, ((0, 0), (1, 1)), constant_values=-jnp.inf)
    neighbours = [jnp.take_along_axis(padded, i + 1, axis=1) for i in (below, above)]
    bound = jnp.maximum(*neighbours) + log_mass[order]
    lost = logsumexp(jnp.where(bad[:, order], bound, -jnp.inf), axis=1)
    kept = logsumexp(jnp.where(bad, -jnp.inf, values) + log_mass, axis=1)
    negligible = lost <= kept + np.log(NEGLIGIBLE[values.dtype == np.float64])
    zero = bad & negligible[:, None]
    return jnp.where(zero, -jnp.inf, values), negligible


def _refuse(
    values: np.ndarray, bad: np.ndarray, nodes: jax.Array, log_mass: jax.Array
) -> None:
    """Refuse a unit whose likelihood is not a number where it matters, or anywhere."""
    unit = int(np.argwhere(bad)[0][0])
    row = values[unit]
    if not np.any(np.isfinite(row)):
        raise ValueError(
            f"unit {unit} has the log likelihood {row[bad[unit]][0]} at every latent "
            "value where it is not zero. Check its data and its distribution: with a "
            "standard error of zero the latent value is known, and no quadrature sees "
            "it; give the error of rounding instead."
        )
    mass = np.exp(np.asarray(log_mass, float) - float(logsumexp(log_mass)))
    # The one nearest to the bulk of the prior.
    node = int(np.argmax(np.where(bad[unit], mass, -1.0)))
    raise ValueError(
        "log_likelihood must be a number below plus infinity where the prior has mass, "
        f"got {row[node]} for unit {unit} at the latent value "
        f"{float(nodes[node]):.6g}; the prior has a mass of "
        f"{mass[bad[unit]].sum():.2g} at such values. Check the unit's data, keep what "
        "its distribution takes in its range, such as by "
        "jnp.exp(jnp.clip(z, -80, 80)), or give a reference, or a grid, that leaves "
        "such values out."
    )
