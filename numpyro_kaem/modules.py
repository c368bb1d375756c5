"""Energies as NumPyro modules: parameters that are learned or sampled."""

from collections.abc import Mapping

import equinox as eqx
import jax
import numpyro.distributions as dist

__all__ = ["parameter_priors"]


def parameter_priors(
    module: eqx.Module, priors: Mapping[str, dist.Distribution]
) -> dict[str, dist.Distribution]:
    """Check the priors of a module's parameters before they are used.

    ``numpyro.contrib.module.random_eqx_module`` leaves out a prior whose name it does
    not find, without a word, and the parameter stays fixed.

    Parameters
    ----------
    module
        An energy, or any Equinox module.
    priors
        Distributions by the name of the parameter: ``"coefficients"``,
        ``"base_weight"`` or ``"basis.bandwidth"`` of an energy. Each must broadcast to
        the shape of its parameter. Parameters without one stay fixed, or are optimised
        by ``SVI``.

    Returns
    -------
    dict
        The same priors, for ``random_eqx_module(name, module, priors)``.

    Raises
    ------
    TypeError
        If ``module`` is not an Equinox module, such as a distribution in place of its
        energy, or a prior is not a distribution.
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
