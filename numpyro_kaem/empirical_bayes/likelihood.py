"""Likelihoods of units, and the grid that they ask for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from numpyro_kaem.bases import BSpline
from numpyro_kaem.references import is_concrete, support_bounds

__all__ = [
    "NEGLIGIBLE",
    "LogLikelihood",
    "check_likely",
    "check_units",
    "choose_grid",
    "evaluate",
    "unit_log_likelihood",
]

# The share of a unit's mass that is left out, by whether in float64.
NEGLIGIBLE = {False: 1e-7, True: 1e-13}

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
        If ``observation`` is not a function, or does not return a distribution.
    ValueError
        If the law refuses its parameters, such as a standard error of zero; if shapes
        do not fit: nothing is broadcast over units but what all share.

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
    if isinstance(observation, dist.Distribution) or not callable(observation):
        raise TypeError(
            "observation must be a function of the latent values that returns the law "
            "of the data, such as lambda z: dist.Normal(z, 1.0), got "
            f"{type(observation).__name__}."
        )
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
            if "parameter" in str(error):
                raise ValueError(
                    f"observation must return a law that is valid, and raised: {error}"
                    " A standard error must be positive: where it is zero the latent "
                    "value is known; give the error of rounding instead."
                ) from error
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
    if isinstance(log_likelihood, dist.Distribution) or not callable(log_likelihood):
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


def evaluate(
    log_likelihood: LogLikelihood, nodes: jax.Array, log_mass: jax.Array
) -> jax.Array:
    """Log likelihoods at nodes, shape ``(num_units, num_nodes)``.

    They are minus infinity where the law is not a number, such as where the exponential
    of a latent value overflows, if next to nothing of the unit's mass lies there.

    Raises
    ------
    ValueError
        If one is not a number, or plus infinity, where the unit may have mass.
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
        _check_values(host, bad & ~np.asarray(negligible)[:, None], nodes, log_mass)
    return values


def _values(log_likelihood: LogLikelihood, nodes: jax.Array) -> jax.Array:
    try:
        return jnp.asarray(log_likelihood(nodes), nodes.dtype)
    except ValueError:
        # A law that checks its parameters may refuse those far out. Under jit none do.
        return jnp.asarray(jax.jit(log_likelihood)(nodes), nodes.dtype)


@jax.jit
def _without_bad(
    nodes: jax.Array, values: jax.Array, log_mass: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Likelihoods that are zero where they are not a number but do not matter.

    The likelihood there is taken to be at most that at the nearest nodes where it is a
    number. Also of each unit whether it does not matter.
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


def _check_values(
    values: np.ndarray, bad: np.ndarray, nodes: jax.Array, log_mass: jax.Array
) -> None:
    """Refuse likelihoods that are not a number where they matter.

    Raises
    ------
    ValueError
        If there is one.
    """
    if not bad.any():
        return
    unit = int(np.argwhere(bad)[0][0])
    _check_numbers(values, unit)
    mass = np.exp(np.asarray(log_mass, float) - float(logsumexp(log_mass)))
    # The one nearest to the bulk of the prior.
    node = int(np.argmax(np.where(bad[unit], mass, -1.0)))
    raise ValueError(
        "log_likelihood must be a number below plus infinity where the prior has mass, "
        f"got {values[unit, node]} for unit {unit} at the latent value "
        f"{float(nodes[node]):.6g}; the prior has a mass of {mass[bad[unit]].sum():.2g}"
        " at such values. Check the unit's data, keep what the law takes in its range, "
        "such as by jnp.exp(jnp.clip(z, -80, 80)), or give a reference, or a grid, "
        "that leaves such values out."
    )


def _check_numbers(values: np.ndarray, unit: int) -> None:
    """Refuse a unit whose likelihood is nowhere a number.

    Raises
    ------
    ValueError
        If it is not.
    """
    row = values[unit]
    if np.any(np.isfinite(row)):
        return
    shown = row[np.isnan(row) | np.isposinf(row)][0]
    raise ValueError(
        f"unit {unit} has the log likelihood {shown} at every latent value where it is "
        "not zero. Check its data and its law: with a standard error of zero the latent"
        " value is known, and no quadrature sees it; give the error of rounding instead"
        "."
    )


def check_likely(values: np.ndarray, nodes: jax.Array) -> None:
    """Refuse units that no latent value explains.

    Raises
    ------
    ValueError
        If there is one.
    """
    zero = np.all(np.isneginf(values), axis=1)
    if not zero.any():
        return
    raise ValueError(
        f"unit {int(np.argmax(zero))} has likelihood zero at every one of "
        f"{values.shape[1]} latent values from {float(nodes.min()):.6g} to "
        f"{float(nodes.max()):.6g}: no prior on this support explains it. Check its "
        "data and its law. A unit without information, such as one with an infinite "
        "standard error, is to be left out; one that jumps or is very narrow needs a "
        "wider law."
    )


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
