"""Supports, and what is computed once from parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints, transforms

from numpyro_kaem.references import concretely, is_concrete, support_bounds

__all__ = ["StaticInterval", "made_once", "promoting_ranks", "static_support"]


def made_once(law: Any, name: str, parameters: Any, make: Callable[[], Any]) -> Any:
    """Value made once for concrete parameters, and in each use for traced ones.

    Parameters
    ----------
    law
        Object that keeps the value.
    name
        Name under which it does.
    parameters
        Arrays that the value depends on.
    make
        Makes the value.

    Returns
    -------
    Any
        The value.
    """
    if name in law.__dict__:
        return law.__dict__[name]
    if not is_concrete(parameters):
        return make()
    with concretely():
        value = make()
    # Nothing of an outer trace may be kept beyond it.
    if is_concrete(value):
        law.__dict__[name] = value
    return value


def promoting_ranks(method: Callable) -> Callable:
    """Let a method broadcast arrays of different rank where the user forbids it.

    Points and batches of densities broadcast by design, as in NumPyro.
    """

    @functools.wraps(method)
    def promoting(*args: Any, **kwargs: Any) -> Any:
        if jax.config.jax_numpy_rank_promotion == "allow":
            return method(*args, **kwargs)
        with jax.numpy_rank_promotion("allow"):
            return method(*args, **kwargs)

    return promoting


class StaticInterval(constraints.ParameterFreeConstraint):
    """Closed interval whose ends are Python numbers, not arrays.

    Without arrays it is hashable and the same in every trace, which NumPyro's mixtures
    ask of the support of their components.

    Parameters
    ----------
    lower_bound, upper_bound
        Ends: floats, or nested tuples of floats with one interval a column. All lower
        or all upper ones may be infinite.

    Examples
    --------
    >>> from numpyro_kaem.distributions._base import StaticInterval
    >>> support = StaticInterval(-1.0, 3.0)
    >>> bool(support(2.0)), bool(support(4.0))
    (True, False)
    """

    event_dim = 0

    def __init__(self, lower_bound: Any, upper_bound: Any) -> None:
        self._ends = (lower_bound, upper_bound)

    @classmethod
    def of(cls, low: ArrayLike, high: ArrayLike) -> "StaticInterval":
        """Interval from concrete numbers or arrays."""
        low, high = np.broadcast_arrays(np.asarray(low, float), np.asarray(high, float))
        return cls(_as_tuples(low.tolist()), _as_tuples(high.tolist()))

    @property
    def bounds(self) -> tuple[Any, Any]:
        """Both ends."""
        return self.lower_bound, self.upper_bound

    @property
    def lower_bound(self) -> Any:
        """Lower ends, a float or an array."""
        return _as_number(self._ends[0])

    @property
    def upper_bound(self) -> Any:
        """Upper ends, a float or an array."""
        return _as_number(self._ends[1])

    @property
    def is_finite(self) -> bool:
        """Whether both ends are finite."""
        return bool(np.all(np.isfinite(self.bounds)))

    def __call__(self, x: ArrayLike) -> ArrayLike:
        """Whether ``x`` lies in the interval, elementwise."""
        # In the precision of x: the ends of a float32 density are float32 numbers.
        dtype = jnp.result_type(x, float)
        low = np.asarray(self.lower_bound, dtype)
        high = np.asarray(self.upper_bound, dtype)
        return (x >= low) & (x <= high)

    def __repr__(self) -> str:
        return f"StaticInterval({self._ends[0]}, {self._ends[1]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticInterval) and self._ends == other._ends

    def __hash__(self) -> int:
        return hash(self._ends)

    def eq(self, other: object, static: bool = False) -> bool:
        """Whether both are the same interval."""
        return self == other

    def feasible_like(self, prototype: ArrayLike) -> ArrayLike:
        """Return a point of the interval, of the shape of ``prototype``."""
        low, high = self.bounds
        if self.is_finite:
            inside = 0.5 * (low + high)
        else:
            inside = low + 1.0 if np.all(np.isfinite(low)) else high - 1.0
        return jnp.broadcast_to(inside, jnp.shape(prototype))

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """No leaves: the ends are static."""
        return (), ((), {"_ends": self._ends})


@transforms.biject_to.register(StaticInterval)
def _biject_to_static_interval(constraint: StaticInterval) -> transforms.Transform:
    low, high = constraint.lower_bound, constraint.upper_bound
    if not constraint.is_finite:
        below = not np.all(np.isfinite(low))
        end, sign = (high, -1.0) if below else (low, 1.0)
        onto = transforms.AffineTransform(end, sign, domain=constraints.positive)
        return transforms.ComposeTransform([transforms.ExpTransform(), onto])
    return transforms.ComposeTransform(
        [
            transforms.SigmoidTransform(),
            transforms.AffineTransform(
                low, high - low, domain=constraints.unit_interval
            ),
        ]
    )


def static_support(reference: dist.Distribution) -> constraints.Constraint:
    """Return the support of a law, with static ends where they are known."""
    support = reference.support
    if isinstance(support, constraints.ParameterFreeConstraint):
        return support
    ends = support_bounds(reference)
    if is_concrete(ends):
        with concretely():
            low, high = (np.asarray(end) for end in ends)
        bounded = np.all(np.isfinite(high)) or np.all(high == np.inf)
        if np.all(np.isfinite(low)) and bounded:
            return StaticInterval.of(low, high)
    return support


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _as_number(end: Any) -> Any:
    return np.asarray(end) if isinstance(end, tuple) else end
