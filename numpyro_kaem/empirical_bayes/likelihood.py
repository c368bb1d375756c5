"""Log likelihoods of units as functions of their latent value."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem.references import is_concrete

__all__ = ["LogLikelihood", "check_units", "evaluate", "unit_log_likelihood"]

LogLikelihood = Callable[[jax.Array], jax.Array]
"""Maps latent values ``(num_nodes,)`` to ``(num_units, num_nodes)``."""


def unit_log_likelihood(
    observation: Callable[[jax.Array], dist.Distribution], data: ArrayLike
) -> LogLikelihood:
    """Log likelihood of many units from the law of their observations.

    Parameters
    ----------
    observation
        Law of all units' observations given their latent values, written as in a model:
        it takes an array of latent values, one a unit in the last axis, and returns a
        NumPyro distribution with as many in the last axis of its batch shape. Several
        observations of a unit belong in its event shape (``to_event``).
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
        If ``observation`` does not return a distribution.
    ValueError
        If shapes do not fit: nothing is broadcast over units but what all share.

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
    observed = jnp.asarray(data)
    if observed.ndim == 0:
        raise ValueError(
            "data must have shape (num_units, *event_shape), got a single number."
        )
    if not isinstance(data, jax.core.Tracer):
        _check_observed(np.asarray(data))
    num_units = observed.shape[0]
    _check_law(observation, observed)

    def log_likelihood(z: jax.Array) -> jax.Array:
        # Latent values along the first axis broadcast against units in the last one.
        values = observation(z[:, None]).log_prob(observed)
        return jnp.broadcast_to(values, (z.shape[0], num_units)).T

    return log_likelihood


def _check_observed(data: np.ndarray) -> None:
    if data.dtype.kind == "f" and not np.all(np.isfinite(data)):
        unit = int(np.argwhere(~np.isfinite(data))[0][0])
        raise ValueError(f"data must be finite, got {data[unit]} for unit {unit}.")


def _check_law(observation: Callable, observed: jax.Array) -> None:
    """Refuse laws that broadcast units against each other.

    Raises
    ------
    TypeError
        If it is not a law.
    ValueError
        If its shapes do not fit.
    """
    num_units = observed.shape[0]
    # A number of nodes that no axis of the data has by accident.
    num_nodes = num_units + 1 + max(observed.shape)
    found: dict[str, Any] = {}

    def trace(z: jax.Array) -> jax.Array:
        try:
            law = observation(z)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "observation must take latent values of shape (n, 1), against units in "
                f"the last axis, and raised {type(error).__name__}: {error} Give what "
                f"differs between units the shape ({num_units},)."
            ) from error
        if not isinstance(law, dist.Distribution):
            raise TypeError(
                "observation must return a NumPyro distribution, got "
                f"{type(law).__name__}."
            )
        found["batch"], found["event"] = law.batch_shape, law.event_shape
        return z

    jax.eval_shape(trace, jax.ShapeDtypeStruct((num_nodes, 1), jnp.result_type(float)))
    batch, event = found["batch"], found["event"]
    if observed.shape[1:] != event:
        raise ValueError(
            f"data must have shape (num_units, *event_shape) with the event shape "
            f"{event} of the law, got {observed.shape}; declare several observations "
            "of a unit with to_event, and give single ones the shape (num_units,)."
        )
    if batch not in ((num_nodes, 1), (num_nodes, num_units)):
        shown = tuple("n" if size == num_nodes else size for size in batch)
        raise ValueError(
            "observation must return a law with one batch axis for the units: for "
            f"latent values of shape (n, 1) the batch shape (n, 1) or (n, {num_units})"
            f", got {shown}; give what differs between units the shape "
            f"({num_units},)."
        )


def check_units(log_likelihood: LogLikelihood, dtype: Any) -> int:
    """Count the units of a log likelihood.

    Raises
    ------
    TypeError
        If it is not a function.
    ValueError
        If it does not map ``(num_nodes,)`` to ``(num_units, num_nodes)``.
    """
    if not callable(log_likelihood):
        raise TypeError(
            "log_likelihood must be a function of latent values, got "
            f"{type(log_likelihood).__name__}; numpyro_kaem.unit_log_likelihood makes "
            "one from a law and its data."
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


def evaluate(log_likelihood: LogLikelihood, nodes: jax.Array) -> jax.Array:
    """Log likelihoods at nodes, shape ``(num_units, num_nodes)``.

    Raises
    ------
    ValueError
        If one is not a number or plus infinity, or if a unit has none that is finite.
    """
    values = jnp.asarray(log_likelihood(nodes), nodes.dtype)
    if is_concrete(values):
        worst = np.asarray(jnp.max(values, axis=1))
        _check_values(worst, values, nodes)
    return values


def _check_values(worst: np.ndarray, values: jax.Array, nodes: jax.Array) -> None:
    if np.all(np.isfinite(worst)):
        return
    unit = int(np.argwhere(~np.isfinite(worst))[0][0])
    row = np.asarray(values[unit])
    if np.isneginf(worst[unit]):
        raise ValueError(
            f"unit {unit} has likelihood zero at every one of {len(row)} latent values "
            f"from {float(nodes.min()):.6g} to {float(nodes.max()):.6g}: no prior on "
            "this support explains it."
        )
    node = int(np.argwhere(np.isnan(row) | np.isposinf(row))[0][0])
    raise ValueError(
        "log_likelihood must be a number below plus infinity, got "
        f"{row[node]} for unit {unit} at the latent value {float(nodes[node]):.6g}."
    )
