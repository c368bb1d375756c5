"""Learnable parts of a distribution as parameters of a NumPyro model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

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
    InverseCDFTransform,
    KAEMMixture,
    KAEMPrior,
)
from numpyro_kaem.distributions.deep import DeepEnergyPrior
from numpyro_kaem.references import ReferenceParameters

__all__ = ["learn_module", "learn_prior", "set_parameters", "with_values"]

T = TypeVar("T")

_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
_PROPORTIONS = {dist.CategoricalLogits: "logits", dist.CategoricalProbs: "probs"}


class _What(NamedTuple):
    """What is learned beside the energies."""

    proportions: bool
    reference: bool


def learn_prior(
    name: str,
    prior: dist.Distribution,
    *,
    learn_proportions: bool = True,
    learn_reference: bool = False,
) -> dist.Distribution:
    """Register what can be learned of a distribution, inside a NumPyro model.

    Parameters
    ----------
    name
        Prefix of the names of the sites.
    prior
        A :class:`KAEMPrior`, :class:`KAEMMixture`, :class:`AutoregressiveKAEMPrior`,
        :class:`~numpyro_kaem.distributions.deep.DeepEnergyPrior`, a
        ``MixtureSameFamily`` of one, any of them expanded, masked, transformed or with
        ``to_event``, or a law of NumPyro.
    learn_proportions
        Whether the weights of mixtures are learned.
    learn_reference
        Whether the parameters of reference laws are, or those of a univariate law of
        NumPyro itself. They stay within their constraints.

    Returns
    -------
    Distribution
        The same, with the values of the sites.

    Raises
    ------
    TypeError
        If ``prior`` is not a distribution, hides learnable parts in a way that is not
        known here, or is multivariate where its own parameters shall be learned.

    Notes
    -----
    - Sites, where there are such parts: ``{name}.energy$params``, all arrays of the
      energy with the bandwidth of its basis; ``{name}.basis$params``,
      ``{name}.conditioner$params``, ``{name}.network$params``; ``{name}.logits``;
      ``{name}.reference.loc``, ``{name}.reference.scale`` and so on.
    - Parameters of a reference whose support depends on them stay fixed, such as the
      ends of a uniform law: the support must not move under the latent values.
    - To sample an energy, and not to learn it, use ``random_eqx_module`` of NumPyro on
      ``prior.energy`` and build the prior from what it returns.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> from numpyro_kaem.models.learning import learn_prior
    >>> energy = kaem.Energy(kaem.RBF(-2.0, 3.0, 6), jnp.zeros((4, 6)))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(0.5, 2.0)).to_event(1)
    >>> def model():
    ...     learned = learn_prior("prior", prior, learn_reference=True)
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
    learn_proportions = as_flag("learn_proportions", learn_proportions)
    learn_reference = as_flag("learn_reference", learn_reference)
    return _learn(name, prior, _What(learn_proportions, learn_reference))


def learn_module(name: str, module: T) -> T:
    """Register an Equinox module by ``eqx_module``, unless it has no parameters.

    Parameters
    ----------
    name
        Name of the module; its site is ``{name}$params``.
    module
        Any pytree: a module, or a plain function, which has no parameters.

    Returns
    -------
    module
        The same, with the values of the site.

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> from numpyro_kaem.models.learning import learn_module
    >>> with numpyro.handlers.trace() as trace:
    ...     function = learn_module("decoder", jax.nn.relu)
    >>> len(trace)
    0
    """
    if not jax.tree_util.tree_leaves(eqx.filter(module, eqx.is_inexact_array)):
        return module
    return eqx_module(name, module)


def set_parameters(
    name: str, prior: dist.Distribution, params: Mapping[str, Any]
) -> dist.Distribution:
    """Distribution with fitted values, outside of a model.

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

    Returns
    -------
    Distribution
        Of the same class, with nothing cached.

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
    >>> from numpyro_kaem.models.learning import set_parameters
    >>> law = dist.Normal(0.0, 1.0)
    >>> fitted = set_parameters("prior", law, {"prior.reference.scale": jnp.array(3.0)})
    >>> print(fitted.scale)
    3.0
    """
    reference = any(given.startswith(f"{name}.reference.") for given in params)
    return with_values(
        lambda: learn_prior(name, prior, learn_reference=reference), params, [name]
    )


# --- the parts of a distribution -----------------------------------------------------


def _learn(name: str, law: dist.Distribution, what: _What) -> dist.Distribution:
    """Register the parts of a distribution, and build it from their values.

    Raises
    ------
    TypeError
        If it is not known how to build it.
    """
    if isinstance(law, KAEMPrior):
        (energy, parameters), aux = law.tree_flatten()
        energy = learn_module(f"{name}.energy", energy)
        parts = (energy, _learn_reference(name, parameters, what))
        return KAEMPrior.tree_unflatten(aux, parts)
    if isinstance(law, KAEMMixture):
        (logits, prior), aux = law.tree_flatten()
        if what.proportions:
            logits = numpyro.param(f"{name}.logits", logits)
        return KAEMMixture.tree_unflatten(aux, (logits, _learn(name, prior, what)))
    if isinstance(law, AutoregressiveKAEMPrior):
        (basis, conditioner, parameters), aux = law.tree_flatten()
        basis = learn_module(f"{name}.basis", basis)
        conditioner = learn_module(f"{name}.conditioner", conditioner)
        parts = (basis, conditioner, _learn_reference(name, parameters, what))
        return AutoregressiveKAEMPrior.tree_unflatten(aux, parts)
    if isinstance(law, DeepEnergyPrior):
        scale = law.scale
        if what.reference:
            scale = numpyro.param(
                f"{name}.reference.scale", scale, constraint=constraints.positive
            )
        return law.replace(learn_module(f"{name}.network", law.network), scale)
    if isinstance(law, dist.MixtureSameFamily):
        mixing, component = law.mixing_distribution, law.component_distribution
        changed = {id(component): _learn(name, component, what)}
        if what.proportions:
            changed[id(mixing)] = _learn_proportions(name, mixing)
        return _with_laws(law, changed)
    if isinstance(law, _WRAPPERS):
        return _with_laws(law, {id(law.base_dist): _learn(name, law.base_dist, what)})
    if type(law) is dist.TransformedDistribution:
        # A quantile function holds a density, and its base law is a fixed one.
        inner = [
            transform.prior
            for transform in law.transforms
            if isinstance(transform, InverseCDFTransform)
        ] or [law.base_dist]
        return _with_laws(law, {id(part): _learn(name, part, what) for part in inner})
    return _learn_law(name, law, what)


def _with_laws(
    law: dist.Distribution, changed: dict[int, dist.Distribution]
) -> dist.Distribution:
    """Distribution with some of the distributions in it changed, by their identity."""
    return jax.tree_util.tree_map(
        lambda node: changed.get(id(node), node),
        law,
        is_leaf=lambda node: node is not law and isinstance(node, dist.Distribution),
    )


def _learn_proportions(name: str, mixing: dist.Distribution) -> dist.Distribution:
    key = _PROPORTIONS[type(mixing)]
    value = numpyro.param(
        f"{name}.{key}",
        jnp.asarray(getattr(mixing, key)),
        constraint=mixing.arg_constraints[key],
    )
    return jax.tree_util.tree_map(lambda _: value, mixing)


def _learn_law(name: str, law: dist.Distribution, what: _What) -> dist.Distribution:
    """Register the parameters of a law of NumPyro.

    Raises
    ------
    TypeError
        If it holds modules, or its parameters shall be learned and it is multivariate.
    """
    nodes = jax.tree_util.tree_leaves(
        law, is_leaf=lambda node: isinstance(node, eqx.Module)
    )
    if any(isinstance(node, eqx.Module) for node in nodes):
        raise TypeError(
            f"prior must not hide energies in a {type(law).__name__}, whose parts "
            "cannot be named; register them in a model of your own by "
            "numpyro.contrib.module.eqx_module."
        )
    if not what.reference:
        return law
    if law.event_shape != () or law.support.is_discrete:
        raise TypeError(
            "learn_reference=True needs a continuous univariate law, got "
            f"{type(law).__name__} with event_shape {law.event_shape}; give its "
            "parameters to numpyro.param in a model of your own."
        )
    return _learn_reference(name, ReferenceParameters.of(law), what).build()


def _learn_reference(
    name: str, parameters: ReferenceParameters | None, what: _What
) -> ReferenceParameters | None:
    if parameters is None or not what.reference:
        return parameters
    return _learn_parameters(f"{name}.reference", parameters)


def _learn_parameters(name: str, parameters: ReferenceParameters) -> Any:
    law = parameters.build()
    is_free = isinstance(law.support, constraints.ParameterFreeConstraint)
    values = {}
    for key, value in parameters.values.items():
        constraint = law.arg_constraints.get(key)
        if isinstance(value, ReferenceParameters):
            value = _learn_parameters(f"{name}.{key}", value)
        elif is_free and constraint is not None and _is_learnable(constraint):
            value = numpyro.param(
                f"{name}.{key}", _as_float(value), constraint=constraint
            )
        values[key] = value
    return ReferenceParameters(parameters.distribution, values)


def _is_learnable(constraint: constraints.Constraint) -> bool:
    return not (constraints.is_dependent(constraint) or constraint.is_discrete)


def _as_float(value: Any) -> jax.Array:
    dtype = jnp.result_type(value)
    is_float = jnp.issubdtype(dtype, jnp.floating) and not isinstance(value, float)
    return jnp.asarray(value, dtype if is_float else jnp.result_type(float))


def with_values(
    register: Callable[[], T], params: Mapping[str, Any], prefixes: list[str]
) -> T:
    """Call a function that registers parameters, with given values for them.

    Parameters
    ----------
    register
        Function with ``param`` sites only, such as a call of
        :func:`~numpyro_kaem.learn_prior`.
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
    >>> from numpyro_kaem.models.learning import with_values
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
