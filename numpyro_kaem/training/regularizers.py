"""Regularizers of the coefficients of Kolmogorov-Arnold networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_real

__all__ = ["kan_regularizer"]


def kan_regularizer(
    tree: Any,
    *,
    l1: ArrayLike = 0.0,
    entropy: ArrayLike = 0.0,
    differences: ArrayLike = 0.0,
    order: int = 1,
) -> jax.Array:
    r"""Weighted sum of regularizers over all layers of a model.

    .. math::

        \sum_l \Bigl( \mu_1 \sum_e |c_e| - \mu_2 \sum_e s_e \log s_e
        + \mu_3 \sum_e \sum_g (\Delta^k c_{e,g})^2 \Bigr),
        \qquad |c_e| = \frac{1}{G} \sum_g |c_{e,g}|,
        \qquad s_e = |c_e| \Big/ \sum_{e'} |c_{e'}|,

    with the edges :math:`e` of layer :math:`l`, over all arrays of the pytree with the
    name ``coefficients``, of shape ``(..., num_features)``: those of an
    :class:`~numpyro_kaem.Energy`, of a :class:`~numpyro_kaem.KAEMPrior`, of any other
    module with such a field, or of a dictionary with such a key. In a tuple of arrays
    each counts as a layer.

    Parameters
    ----------
    tree
        A pytree: a module, or parameters such as ``svi_result.params``.
    l1, entropy, differences
        Weights :math:`\mu_1, \mu_2, \mu_3 \ge 0`, scalars. They may be traced, such as
        the value of a schedule; a concrete zero leaves its term out. The first favours
        few edges, the second the same whatever their scale. The third, where features
        are ordered, such as B-splines and radial functions, favours smooth edges.
    order
        Order :math:`k` of the differences: with 1 constants are smoothest, with 2
        straight lines.

    Returns
    -------
    Array
        Scalar, to be added to a loss; in a NumPyro model,
        ``numpyro.factor("regularizer", -kan_regularizer(...))``.

    Raises
    ------
    TypeError
        If coefficients or weights are not real numbers, or ``order`` is not an integer.
    ValueError
        If no array has the name ``coefficients``, one has no features, if a weight is
        not a scalar, or is negative or not finite, or if ``order`` is not positive, or
        too large for a layer.

    Notes
    -----
    - Liu et al. take the mean absolute value of an edge over the data; here it is that
      of its coefficients, which needs no data.
    - The derivative of the entropy in :math:`|c_e|` grows like :math:`-\log s_e` as an
      edge's share falls to zero. At exactly zero all gradients are zero, so that edges
      stay there.

    References
    ----------
    Liu et al. (2024), "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756, equations
    (2.17) to (2.20).
    Eilers and Marx (1996), "Flexible smoothing with B-splines and penalties",
    *Statistical Science* 11(2), section 3.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> coefficients = jnp.array([[1.0, -3.0, 2.0], [0.0, 0.0, 0.0]])
    >>> prior = kaem.KAEMPrior(kaem.Energy(kaem.RBF(-1.0, 3.0, 3), coefficients))
    >>> print(f"{kaem.kan_regularizer(prior, l1=0.5, differences=0.1):.1f}")
    5.1
    """
    weights: dict[str, Any]
    weights = {"l1": l1, "entropy": entropy, "differences": differences}
    order = as_count("order", order)
    layers = _layers(tree)
    dtype = jnp.result_type(float, *layers)
    total = jnp.zeros((), dtype)
    for name, weight in weights.items():
        as_real(name, weight)
        if np.shape(weight) != ():
            raise ValueError(f"{name} must be a scalar, got shape {np.shape(weight)}.")
        is_traced = isinstance(weight, jax.core.Tracer)
        if not is_traced and not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {weight!r}.")
        if is_traced or weight != 0:
            for layer in layers:
                total = total + weight * _TERMS[name](layer, order)
    return total.astype(dtype)


# --- one layer, (..., num_features) --------------------------------------------------


def l1(coefficients: ArrayLike) -> jax.Array:
    """Sum over edges of the mean absolute coefficient."""
    return jnp.sum(_norms(coefficients))


def entropy(coefficients: ArrayLike) -> jax.Array:
    """Entropy of the edges' shares of the norm; zero when all coefficients are."""
    norms = _norms(coefficients)
    total = jnp.sum(norms)
    # Twice: the derivative of the branch not taken must be finite, too.
    shares = norms / jnp.where(total > 0, total, 1)
    positive = shares > 0
    logs = jnp.log(jnp.where(positive, shares, 1))
    return -jnp.sum(jnp.where(positive, shares * logs, 0))


def coefficient_differences(coefficients: ArrayLike, order: int = 1) -> jax.Array:
    """Sum of squared differences of neighbouring coefficients, over all edges."""
    coefficients = _as_coefficients(coefficients)
    if order >= coefficients.shape[-1]:
        raise ValueError(
            "order must be less than the number of features, got order "
            f"{order} for coefficients of shape {coefficients.shape}."
        )
    return jnp.sum(jnp.square(jnp.diff(coefficients, n=order, axis=-1)))


# By name, because the arguments of kan_regularizer hide the functions.
_TERMS = {
    "l1": lambda coefficients, _: l1(coefficients),
    "entropy": lambda coefficients, _: entropy(coefficients),
    "differences": coefficient_differences,
}


def _as_coefficients(coefficients: ArrayLike) -> jax.Array:
    """Array of a floating-point format with an axis of features."""
    array = as_real("coefficients", coefficients)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(
            "coefficients must have shape (..., num_features) with at least one "
            f"feature, got shape {array.shape}."
        )
    return array


def _norms(coefficients: ArrayLike) -> jax.Array:
    coefficients = _as_coefficients(coefficients)
    # The absolute value, but with a derivative of 0 at 0, where that of jnp.abs is 1.
    signs = jax.lax.stop_gradient(jnp.sign(coefficients))
    return jnp.mean(signs * coefficients, axis=-1)


def _layers(tree: Any) -> list[jax.Array]:
    """All arrays of a pytree with the name ``coefficients``."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    layers = [leaf for path, leaf in paths if _name(path) == "coefficients"]
    if not layers:
        found = ", ".join(jax.tree_util.keystr(path) for path, _ in paths[:5])
        more = ", ..." if len(paths) > 5 else ""
        raise ValueError(
            "tree must hold an array with the name 'coefficients', got "
            f"{f'the names {found}{more}' if paths else 'a pytree without leaves'}."
        )
    return layers


def _name(path: tuple) -> Any:
    """Last field or key of a path; positions in a tuple are passed over."""
    for entry in reversed(path):
        if isinstance(entry, jax.tree_util.GetAttrKey):
            return entry.name
        if isinstance(entry, jax.tree_util.DictKey):
            return entry.key
    return None
