"""Schedules: functions from the number of a step to a value.

Wherever a schedule is taken, so is any of optax (``optax.linear_schedule``,
``optax.warmup_cosine_decay_schedule``, ``optax.join_schedules``, ...). Here is only
what optax does not have.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_number

__all__ = ["cyclical_schedule"]


def cyclical_schedule(
    period: int,
    low: float = 0.0,
    high: float = 1.0,
    power: float = 1.0,
    *,
    ramp: float = 0.5,
) -> Callable[[ArrayLike], jax.Array]:
    r"""Schedule that rises from one value to another again and again.

    With the position :math:`\tau = (t \bmod T) / T` of step :math:`t` in its cycle,

    .. math:: v(t) = l + (h - l) \min(\tau / R, 1)^p.

    The first part of a cycle rises, the rest stays at the upper value. As the weight of
    the prior's divergence in a variational loss it keeps latents from being ignored: at
    each return to the lower value they are put to use anew.

    Parameters
    ----------
    period
        Number :math:`T` of steps of a cycle.
    low, high
        Values :math:`l` at the start of a cycle and :math:`h` after the rise; either
        may be the larger.
    power
        Exponent :math:`p > 0`; 1 is a straight line.
    ramp
        Share :math:`R` of a cycle in which the value changes, in (0, 1].

    Returns
    -------
    Callable
        Function of the number of the step, an integer or an array of them, traced or
        not; it returns an array of the same shape. Steps count from 0, as in optax.

    Raises
    ------
    TypeError
        If ``period`` is not an integer.
    ValueError
        If ``period`` is not positive, ``low`` or ``high`` not finite, ``power`` not
        positive and finite, or ``ramp`` not in (0, 1].

    References
    ----------
    Fu, Li, Liu, Gao, Celikyilmaz and Carin (2019), "Cyclical annealing schedule: a
    simple approach to mitigating KL vanishing", *NAACL-HLT*.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.training.schedules import cyclical_schedule
    >>> schedule = cyclical_schedule(8, low=0.0, high=2.0)
    >>> print(schedule(np.arange(10)))
    [0.  0.5 1.  1.5 2.  2.  2.  2.  0.  0.5]
    """
    period = as_count("period", period)
    for name, value in (("low", low), ("high", high)):
        as_number(name, value, "finite", lambda x: True)
    power = as_number("power", power, "a finite number > 0", lambda x: x > 0)
    ramp = as_number("ramp", ramp, "in (0, 1]", lambda x: 0 < x <= 1)
    low, high = float(low), float(high)

    def schedule(step: ArrayLike) -> jax.Array:
        # The remainder of integers, because float32 cannot count beyond 2**24.
        position = jnp.mod(jnp.asarray(step), period) / (period * ramp)
        rise = jnp.minimum(position, 1.0) ** power
        return low * (1 - rise) + high * rise

    return schedule
