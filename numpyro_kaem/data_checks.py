"""Checks of data against the law that a model gives them."""

from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem.references import is_concrete

__all__ = ["check_shape", "check_values"]


def check_shape(x: ArrayLike, event_shape: tuple[int, ...]) -> ArrayLike:
    """Check the shape of data, traced or not, and return them as an array.

    Parameters
    ----------
    x
        Data, shape ``(num_data, *event_shape)``.
    event_shape
        Shape of one datum.

    Raises
    ------
    TypeError
        If the data are not numbers.
    ValueError
        If they have another shape, or there are none.
    """
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"x must be an array of numbers, got dtype {x.dtype}.")
    shape = x.shape
    if shape[1:] != event_shape or len(shape) == 0:
        expected = ", ".join(["num_data", *map(str, event_shape)])
        expected += "" if event_shape else ","
        hint = ""
        if shape == event_shape and shape != ():
            hint = " For a single datum pass x[None]."
        raise ValueError(
            f"x must have shape ({expected}), each datum of the shape that the decoder "
            f"gives, got {shape}.{hint}"
        )
    if x.size == 0:
        raise ValueError(f"x must have at least one datum, got shape {shape}.")
    return x


def check_values(x: ArrayLike, law: dist.Distribution) -> None:
    """Check concrete data: finite, and in the support of their law.

    Parameters
    ----------
    x
        Data of the right shape.
    law
        Their law. Where its support depends on parameters, only finiteness is checked.

    Raises
    ------
    TypeError
        If the classes of a categorical law are not integers.
    ValueError
        If a value is not finite, or not in the support.
    """
    x = np.asarray(x)
    if x.dtype.kind == "f" and not np.all(np.isfinite(x)):
        where = _first(~np.isfinite(x))
        raise ValueError(
            f"x must be finite, got {x[where]} at index {where}; leave such data out, "
            "or mask them in a model of your own."
        )
    base = law
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    is_class = isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs)
    if is_class and x.dtype.kind not in "iu":
        raise TypeError(
            f"x must be integers, the classes of {type(base).__name__}, got dtype "
            f"{x.dtype}."
        )
    support: Any = base.support
    if base.event_dim > 0 or not is_concrete(support):
        return
    inside = np.asarray(support(x))
    if not np.all(inside):
        where = _first(~inside)
        raise ValueError(
            f"x must lie in the support of {type(base).__name__}, {support}, got "
            f"{x[where]} at index {where}."
        )


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])
