"""Given values for what a function registers as parameters."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from numpyro import handlers

from numpyro_kaem.distributions import KAEMPrior

__all__ = ["with_values"]

T = TypeVar("T")


def with_values(
    register: Callable[[], T], params: Mapping[str, Any], prefixes: list[str]
) -> T:
    """Call a function that registers parameters, with given values for them.

    Parameters
    ----------
    register
        Function with ``param`` sites only, such as a call of
        :func:`~numpyro_kaem.learning.learn_prior`.
    params
        Constrained values by the name of their site.
    prefixes
        Names of parts. A name in ``params`` that starts with one, and ``.`` or ``$``,
        must be a site.

    Returns
    -------
    Any
        What ``register`` returns; no handler around sees its sites.

    Raises
    ------
    ValueError
        If no value is given, a name with a prefix is no site, or a value has another
        structure or shape than the site.

    Warns
    -----
    UserWarning
        If an energy of the result is too steep for the panels of its quadrature.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> from numpyro_kaem.parameter_values import with_values
    >>> def register():
    ...     return 2 * numpyro.param("noise.scale", jnp.array(1.0))
    >>> print(with_values(register, {"noise.scale": jnp.array(4.0)}, ["noise"]))
    8.0
    """
    with handlers.block(), handlers.trace() as trace:
        register()
    sites = {name: site["value"] for name, site in trace.items()}
    given = {name: value for name, value in params.items() if name in sites}
    starts = tuple(prefix + mark for prefix in prefixes for mark in ".$")
    unknown = [name for name in params if name not in sites and name.startswith(starts)]
    if unknown or (sites and not given):
        raise ValueError(
            "params must have values for the parameters that are learned, "
            f"{', '.join(map(repr, sites)) or 'none'}; got "
            f"{', '.join(map(repr, unknown or params)) or 'none'}."
        )
    for name, value in given.items():
        _check_alike(name, value, sites[name])
    with handlers.block(), handlers.substitute(data=given):
        result = register()
    _warn_if_steep(result)
    return result


def _check_alike(name: str, value: Any, site: Any) -> None:
    """Check a value against the initial one.

    Raises
    ------
    ValueError
        If the structure or a shape differs.
    """
    shapes = [
        [np.shape(leaf) for leaf in jax.tree_util.tree_leaves(tree)]
        for tree in (site, value)
    ]
    structures = [jax.tree_util.tree_structure(tree) for tree in (site, value)]
    if shapes[0] != shapes[1] or structures[0] != structures[1]:
        raise ValueError(
            f"params[{name!r}] must have arrays of shapes {shapes[0]}, as where it "
            f"was learned, got {shapes[1]}"
            + ("." if shapes[0] != shapes[1] else " in another structure.")
        )


def _warn_if_steep(tree: Any) -> None:
    priors = jax.tree_util.tree_leaves(
        tree, is_leaf=lambda node: isinstance(node, KAEMPrior)
    )
    for prior in priors:
        if isinstance(prior, KAEMPrior) and prior._is_concrete:
            # Its panels stay those under which it was learned.
            prior._check_resolution(choose=False)
