"""Energies as NumPyro modules: parameters that are learned or sampled."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_real
from numpyro_kaem.bases import BSpline
from numpyro_kaem.energy import Energy

__all__ = ["parameter_priors", "random_walk_energy"]


def parameter_priors(
    module: eqx.Module, priors: Mapping[str, dist.Distribution]
) -> dict[str, dist.Distribution]:
    """Check the priors of a module's parameters, and return them.

    ``numpyro.contrib.module.random_eqx_module`` silently ignores a prior whose name it
    does not find, and the parameter stays fixed.

    Parameters
    ----------
    module
        An energy, or any Equinox module.
    priors
        Distributions by the name of the parameter, such as ``"coefficients"``,
        ``"base_weight"`` or ``"basis.bandwidth"`` of an energy, which broadcast to the
        shape of the parameter. Parameters without one stay fixed, or are optimised by
        ``SVI``.

    Raises
    ------
    TypeError
        If ``module`` is not an Equinox module, or a prior is not a distribution.
    ValueError
        If a name is none of the module's, or a shape does not match.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.contrib.module import random_eqx_module
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.BSpline(-1.0, 3.0, 6), jnp.zeros(6))
    >>> priors = kaem.parameter_priors(energy, {"coefficients": dist.Normal(0.0, 1.0)})
    >>> def model():
    ...     learned = random_eqx_module("energy", energy, priors)
    ...     return numpyro.sample("z", kaem.KAEMPrior(learned))
    >>> with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
    ...     _ = model()
    >>> trace["energy/coefficients"]["value"].shape
    (6,)
    """
    if not isinstance(module, eqx.Module):
        raise TypeError(
            "module must be an Equinox module such as an Energy, got "
            f"{type(module).__name__}; pass the energy of a prior, not the prior."
        )
    arrays = eqx.filter(module, eqx.is_inexact_array)
    paths, _ = jax.tree_util.tree_flatten_with_path(arrays)
    shapes = {jax.tree_util.keystr(path)[1:]: leaf.shape for path, leaf in paths}
    for name, prior in priors.items():
        if name not in shapes:
            raise ValueError(
                f"priors has the name {name!r}, which matches no parameter of "
                f"{type(module).__name__}; its parameters are {', '.join(shapes)}."
            )
        if not isinstance(prior, dist.Distribution):
            raise TypeError(
                f"priors[{name!r}] must be a NumPyro distribution, got "
                f"{type(prior).__name__}."
            )
        shape = shapes[name]
        try:
            fits = prior.expand(shape[: len(shape) - prior.event_dim]).shape() == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"priors[{name!r}] must broadcast to the parameter's shape {shape}, "
                f"got {prior.shape()}."
            )
    return dict(priors)


def random_walk_energy(name: str, basis: BSpline, scale: ArrayLike) -> Energy:
    r"""Sample a smooth energy inside a NumPyro model: a Bayesian P-spline.

    The coefficients are a first-order random walk that starts at zero,

    .. math::

        c_1 = 0, \qquad c_{g+1} = c_g + \tau\,\varepsilon_g, \qquad
        \varepsilon_g \sim \text{Normal}(0, 1).

    A constant added to all of them would not change the density, so the start is fixed.
    As the scale :math:`\tau` goes to zero, the energy becomes flat, and a
    :class:`KAEMPrior` with it becomes its reference.

    Parameters
    ----------
    name
        Prefix of the names of both sites.
    basis
        B-splines; their features are ordered, and sum to one.
    scale
        Standard deviation :math:`\tau \ge 0` of a step, shape ``batch_shape``; often
        itself sampled, such as from ``HalfNormal(1.0)``. In a plate there is one walk
        per element, and the shape must broadcast with the plate's.

    Returns
    -------
    Energy
        With coefficients of shape ``(*batch_shape, basis.num_features)``.

    Raises
    ------
    TypeError
        If ``basis`` is not a B-spline, or ``scale`` not made of numbers.
    ValueError
        If a concrete ``scale`` is negative or not finite.

    Notes
    -----
    Sites: ``{name}_steps``, the standardised steps :math:`\varepsilon`, which NUTS
    samples (a non-centred parameterisation), and the deterministic
    ``{name}_coefficients``. The steps are correlated in the posterior: with the units
    integrated out by :func:`unit_log_marginal_likelihood`,
    ``NUTS(model, dense_mass=True)`` makes trajectories about five times shorter. Where
    the units' latents are sampled, make only the block of the walk dense, as in
    ``dense_mass=[("scale", "energy_steps")]``.

    References
    ----------
    Eilers and Marx (1996), "Flexible smoothing with B-splines and penalties",
    *Statistical Science* 11(2).
    Lang and Brezger (2004), "Bayesian P-splines", *Journal of Computational and
    Graphical Statistics* 13(1).

    Examples
    --------
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> def model():
    ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    ...     basis = kaem.BSpline(-4.0, 6.0, 12)
    ...     energy = kaem.random_walk_energy("energy", basis, scale)
    ...     return numpyro.sample("z", kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0)))
    >>> with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
    ...     z = model()
    >>> {site: trace[site]["value"].shape for site in trace if "energy" in site}
    {'energy_steps': (11,), 'energy_coefficients': (12,)}
    """
    if not isinstance(basis, BSpline):
        raise TypeError(
            "basis must be a numpyro_kaem.BSpline, whose features are ordered and sum "
            f"to one, got {type(basis).__name__}; give the coefficients of another "
            "basis a prior of your own with numpyro.sample or parameter_priors."
        )
    given, scale = scale, as_real("scale", scale)
    if not isinstance(given, jax.core.Tracer) and not np.all(
        np.isfinite(given) & (np.asarray(given) >= 0)
    ):
        raise ValueError(f"scale must be finite and >= 0, got {given!r}.")
    scale = scale.astype(jnp.result_type(float))
    shape = (*scale.shape, basis.num_features - 1)
    steps = numpyro.sample(
        f"{name}_steps", dist.Normal(0.0, 1.0).expand(shape).to_event(1)
    )
    walk = jnp.cumsum(scale[..., None] * steps, axis=-1)
    start = jnp.zeros_like(walk[..., :1])
    coefficients = numpyro.deterministic(
        f"{name}_coefficients", jnp.concatenate([start, walk], axis=-1)
    )
    return Energy(basis, coefficients)
