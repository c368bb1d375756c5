"""What a law makes once of its parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from numpyro_kaem.references import concretely, is_concrete

__all__ = ["made_once", "promoting_ranks"]


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
