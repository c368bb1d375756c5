"""Learnable parts of a distribution as parameters of a NumPyro model."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.module import eqx_module
from numpyro.distributions import constraints

from numpyro_kaem._checks import as_flag, check_name
from numpyro_kaem.distributions import (
    AutoregressiveKAEMPrior,
    DeepEnergyPrior,
    InverseCDFTransform,
    KAEMMixture,
    KAEMPrior,
)
from numpyro_kaem.references import ReferenceParameters

__all__ = ["learn_module", "learn_prior", "set_parameters", "with_values"]

T = TypeVar("T")

_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
# Modules by the name of their site, in the order of the leaves, before the reference.
_MODULES = {KAEMPrior: ("energy",), AutoregressiveKAEMPrior: ("basis", "conditioner")}


def learn_prior(
    name: str,
    prior: dist.Distribution,
    *,
    learn_proportions: bool = True,
    learn_reference: bool = False,
) -> dist.Distribution:
    """Register what can be learned of a distribution, inside a NumPyro model.

    It is returned with the values of the sites.

    Parameters
    ----------
    name
        Prefix of the names of the sites.
    prior
        A :class:`KAEMPrior`, :class:`KAEMMixture`, :class:`AutoregressiveKAEMPrior`,
        :class:`DeepEnergyPrior`, a ``MixtureSameFamily`` of one, any of them expanded,
        masked, transformed or with ``to_event``, or a distribution of NumPyro.
    learn_proportions
        Whether the weights of mixtures are learned.
    learn_reference
        Whether the parameters of reference distributions are, or those of a univariate
        distribution of NumPyro itself. They stay within their constraints.

    Raises
    ------
    TypeError
        If ``prior`` is not a distribution, contains learnable parts in a way that is
        not supported, or is multivariate where its own parameters are to be learned.

    Notes
    -----
    - Sites, where there are such parts: ``{name}.energy$params``, all arrays of the
      energy with the bandwidth of its basis; ``{name}.basis$params``,
      ``{name}.conditioner$params``, ``{name}.network$params``; ``{name}.logits``;
      ``{name}.reference.loc``, ``{name}.reference.scale`` and so on.
    - Parameters of a reference whose support depends on them stay fixed, such as the
      ends of a uniform distribution: the support must not move under the latents.
    - To sample an energy, and not to learn it, use ``random_eqx_module`` of NumPyro on
      ``prior.energy`` and build the prior from what it returns.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.RBF(-2.0, 3.0, 6), jnp.zeros((4, 6)))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(0.5, 2.0)).to_event(1)
    >>> def model():
    ...     learned = kaem.learn_prior("prior", prior, learn_reference=True)
    ...     return numpyro.sample("z", learned)
    >>> with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
    ...     z = model()
    >>> [site for site in trace if trace[site]["type"] == "param"]
    ['prior.energy$params', 'prior.reference.loc', 'prior.reference.scale']
    """
    if not isinstance(prior, dist.Distribution):
        raise TypeError(
            f"prior must be a NumPyro distribution, got {type(prior).__name__}."
        )
    check_name("name", name)
    proportions = as_flag("learn_proportions", learn_proportions)
    reference = as_flag("learn_reference", learn_reference)
    return _learn(name, prior, proportions, reference)


def learn_module(name: str, module: T) -> T:
    """Register a module by ``eqx_module``, unless it has no parameters."""
    if not jax.tree_util.tree_leaves(eqx.filter(module, eqx.is_inexact_array)):
        return module
    return eqx_module(name, module)


def set_parameters(
    name: str, prior: dist.Distribution, params: Mapping[str, Any]
) -> dist.Distribution:
    """Distribution with fitted values, outside of a model, of the same class.

    Parameters
    ----------
    name
        The ``name`` that :func:`learn_prior` was given.
    prior
        The ``prior`` that it was given.
    params
        Values by the name of their site, such as ``params`` of a result of
        :meth:`numpyro.infer.SVI.run`. Names without the prefix are left out; parts
        without a value keep theirs.

    Raises
    ------
    ValueError
        If no value is given, a name with the prefix is no site of the distribution, or
        a value has another structure or shape.

    Warns
    -----
    UserWarning
        If a fitted energy is too steep for the panels of its quadrature.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> values = {"prior.reference.scale": jnp.array(3.0)}
    >>> print(kaem.set_parameters("prior", dist.Normal(0.0, 1.0), values).scale)
    3.0
    """
    reference = any(given.startswith(f"{name}.reference.") for given in params)
    return with_values(
        lambda: learn_prior(name, prior, learn_reference=reference), params, [name]
    )


def _learn(
    name: str, prior: dist.Distribution, proportions: bool, reference: bool
) -> dist.Distribution:
    """Register the parts of a distribution, and build it from their values."""

    def learn(part: dist.Distribution) -> dist.Distribution:
        return _learn(name, part, proportions, reference)

    for kind, names in _MODULES.items():
        if isinstance(prior, kind):
            (*modules, parameters), aux = prior.tree_flatten()
            modules = [
                learn_module(f"{name}.{site}", module)
                for site, module in zip(names, modules, strict=True)
            ]
            if reference and parameters is not None:
                parameters = _learn_parameters(f"{name}.reference", parameters)
            return kind.tree_unflatten(aux, (*modules, parameters))
    if isinstance(prior, KAEMMixture):
        (logits, inner), aux = prior.tree_flatten()
        if proportions:
            logits = numpyro.param(f"{name}.logits", logits)
        return KAEMMixture.tree_unflatten(aux, (logits, learn(inner)))
    if isinstance(prior, DeepEnergyPrior):
        scale = prior.scale
        if reference:
            scale = numpyro.param(
                f"{name}.reference.scale", scale, constraint=constraints.positive
            )
        return prior.replace(learn_module(f"{name}.network", prior.network), scale)
    if isinstance(prior, dist.MixtureSameFamily):
        component, mixing = prior.component_distribution, prior.mixing_distribution
        learned = {id(component): learn(component)}
        if proportions:
            learned[id(mixing)] = _learn_proportions(name, mixing)
        return _with_parts(prior, learned)
    if isinstance(prior, _WRAPPERS):
        return _with_parts(prior, {id(prior.base_dist): learn(prior.base_dist)})
    if type(prior) is dist.TransformedDistribution:
        # A quantile function holds a density, and its base distribution is fixed.
        inner = [
            transform.prior
            for transform in prior.transforms
            if isinstance(transform, InverseCDFTransform)
        ] or [prior.base_dist]
        return _with_parts(prior, {id(part): learn(part) for part in inner})

    # A distribution of NumPyro.
    nodes = jax.tree_util.tree_leaves(
        prior, is_leaf=lambda node: isinstance(node, eqx.Module)
    )
    if any(isinstance(node, eqx.Module) for node in nodes):
        raise TypeError(
            f"prior must not hide energies in a {type(prior).__name__}, whose parts "
            "cannot be named; register them in a model of your own by "
            "numpyro.contrib.module.eqx_module."
        )
    if not reference:
        return prior
    if prior.event_shape != () or prior.support.is_discrete:
        raise TypeError(
            "learn_reference=True needs a continuous univariate distribution, got "
            f"{type(prior).__name__} with event_shape {prior.event_shape}; give its "
            "parameters to numpyro.param in a model of your own."
        )
    parameters = ReferenceParameters.of(prior)
    return _learn_parameters(f"{name}.reference", parameters).build()


def _with_parts(
    prior: dist.Distribution, changed: dict[int, dist.Distribution]
) -> dist.Distribution:
    """Distribution with some of the distributions in it changed, by their identity."""
    return jax.tree_util.tree_map(
        lambda node: changed.get(id(node), node),
        prior,
        is_leaf=lambda node: node is not prior and isinstance(node, dist.Distribution),
    )


def _learn_proportions(name: str, mixing: dist.Distribution) -> dist.Distribution:
    key = "logits" if isinstance(mixing, dist.CategoricalLogits) else "probs"
    value = numpyro.param(
        f"{name}.{key}",
        jnp.asarray(getattr(mixing, key)),
        constraint=mixing.arg_constraints[key],
    )
    return jax.tree_util.tree_map(lambda _: value, mixing)


def _learn_parameters(
    name: str, parameters: ReferenceParameters
) -> ReferenceParameters:
    """Register parameters of a distribution, those of inner distributions included."""
    reference = parameters.build()
    is_free = isinstance(reference.support, constraints.ParameterFreeConstraint)
    values = {}
    for key, value in parameters.values.items():
        constraint = reference.arg_constraints.get(key)
        if isinstance(value, ReferenceParameters):
            value = _learn_parameters(f"{name}.{key}", value)
        elif is_free and not (
            constraint is None
            or constraints.is_dependent(constraint)
            or constraint.is_discrete
        ):
            dtype = jnp.result_type(value)
            if isinstance(value, float) or not jnp.issubdtype(dtype, jnp.floating):
                dtype = jnp.result_type(float)
            value = numpyro.param(
                f"{name}.{key}", jnp.asarray(value, dtype), constraint=constraint
            )
        values[key] = value
    return ReferenceParameters(parameters.distribution, values)


def with_values(
    register: Callable[[], T], params: Mapping[str, Any], prefixes: list[str]
) -> T:
    """Call a function that registers parameters, with given values for them."""
    # A name that starts with a prefix, and "." or "$", must be a site. No handler
    # around sees the sites.
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
    nodes = jax.tree_util.tree_leaves(
        result, is_leaf=lambda node: isinstance(node, KAEMPrior)
    )
    for node in nodes:
        if isinstance(node, KAEMPrior) and node._is_concrete:
            # Its panels stay those under which it was learned.
            node._check_resolution(choose=False)
    return result


def _check_alike(name: str, value: Any, site: Any) -> None:
    """Check that a value has the structure and the shapes of the initial one."""
    trees = (site, value)
    structures: list[Any] = [jax.tree_util.tree_structure(tree) for tree in trees]
    shapes = [
        [np.shape(leaf) for leaf in jax.tree_util.tree_leaves(tree)] for tree in trees
    ]
    if shapes[0] != shapes[1] or structures[0] != structures[1]:
        raise ValueError(
            f"params[{name!r}] must have arrays of shapes {shapes[0]}, as where it "
            f"was learned, got {shapes[1]}"
            + ("." if shapes[0] != shapes[1] else " in another structure.")
        )
