"""What proposals and models of importance sampling must be, checked from traces."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoGuide

from numpyro_kaem.infer.target import latent_sites, prior_is_exact

__all__ = ["check_fitted", "check_guide", "check_params", "check_prior"]


def check_params(role: str, trace: dict[str, dict], params: dict[str, Any]) -> None:
    """Check that all parameters have a value.

    Parameters
    ----------
    role
        ``"model"`` or ``"guide"``, for the message.
    trace
        Its trace.
    params
        Values by name.

    Raises
    ------
    ValueError
        If one has none: its initial value would be used without notice.
    """
    missing = [
        name
        for name, site in trace.items()
        if site["type"] == "param" and name not in params
    ]
    if missing:
        raise ValueError(
            f"params must hold all parameters of the {role}, and misses "
            f"{', '.join(map(repr, missing))}: pass params=svi_result.params."
        )


def check_prior(trace: dict[str, dict], guided: dict[str, Any]) -> None:
    """Check that latent sites that no guide draws can be drawn from their prior.

    Parameters
    ----------
    trace
        Trace of the model.
    guided
        Latent sites that a guide draws.

    Raises
    ------
    ValueError
        If one cannot.
    """
    left = {n: site for n, site in latent_sites(trace).items() if n not in guided}
    if not prior_is_exact(left):
        raise ValueError(
            "model must have latent sites whose prior can be drawn from, none "
            "improper (ImproperUniform), scaled (handlers.scale), masked or without a "
            "normaliser (DeepEnergyPrior), or a "
            f"guide that draws them; got {sorted(left)}."
        )


def check_fitted(guide: Callable) -> None:
    """Check that an automatic guide has seen its model.

    Raises
    ------
    ValueError
        If not.
    """
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise ValueError(
            "guide must have been fitted: run SVI with it, and pass its params."
        )


def check_guide(
    guide_trace: dict[str, dict], trace: dict[str, dict], guided: dict[str, Any]
) -> None:
    """Check that a guide draws latent sites of the model, from a known density.

    Parameters
    ----------
    guide_trace, trace
        Traces of the guide and of the model.
    guided
        Latent sites that the guide draws.

    Raises
    ------
    ValueError
        If a site is not the model's or has another shape, or has no density.
    """
    latent, drawn = latent_sites(trace), latent_sites(guide_trace)
    for name, value in guided.items():
        if name not in latent:
            raise ValueError(
                f"guide must draw latent sites of the model, which are "
                f"{sorted(latent)}, got {name!r}."
            )
        expected = jnp.shape(latent[name]["value"])
        if jnp.shape(value) != expected:
            raise ValueError(
                f"guide must draw {name!r} in the shape {expected} that the model "
                f"gives it, got {jnp.shape(value)}."
            )
    if not prior_is_exact(guide_trace):
        raise ValueError(
            "guide must draw from the density that it states, without handlers.scale, "
            f"handlers.mask or ImproperUniform; its sites are {sorted(drawn)}."
        )
    # A guide with sites of its own may map them to the model's, as Delta sites.
    if drawn.keys() == guided.keys():
        for name, site in drawn.items():
            if isinstance(site["fn"], dist.Delta):
                raise ValueError(
                    f"guide must have a density at its sites, got a Delta at {name!r}: "
                    "use AutoNormal, for instance."
                )
