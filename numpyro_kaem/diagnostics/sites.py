"""What a NumPyro model says about its sites."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer import Predictive, init_to_sample, log_likelihood

__all__ = ["ModelCall", "Sites"]


class Sites(NamedTuple):
    """Sites of a model, by what they are."""

    latent: tuple[str, ...]
    """Names of latent sites."""
    deterministic: tuple[str, ...]
    """Names of deterministic sites."""
    observed: dict[str, jax.Array]
    """Data by name."""
    dims: dict[str, tuple[str, ...]]
    """Names of plates and of event dimensions of sites, in order."""


class ModelCall:
    """A model with its arguments.

    Parameters
    ----------
    model
        A NumPyro model.
    args, kwargs
        Arguments of the model.
    """

    def __init__(
        self, model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)

    def sites(self) -> Sites:
        """Sites of the model."""
        # A site with an improper prior cannot be drawn, but started.
        model = handlers.substitute(
            handlers.seed(self.model, jax.random.key(0)), substitute_fn=init_to_sample
        )
        with handlers.block():
            trace = handlers.trace(model).get_trace(*self.args, **self.kwargs)
        latent, deterministic, observed, dims = [], [], {}, {}
        for name, site in trace.items():
            if site["type"] == "deterministic":
                deterministic.append(name)
            elif site["type"] != "sample":
                continue
            elif site["is_observed"]:
                # A factor has no data.
                if np.size(site["value"]):
                    observed[name] = site["value"]
            else:
                latent.append(name)
            frames = sorted(site["cond_indep_stack"], key=lambda frame: frame.dim)
            named = site.get("infer", {}).get("event_dims", [])
            dims[name] = (*(frame.name for frame in frames), *named)
        return Sites(tuple(latent), tuple(deterministic), observed, dims)

    def deterministics(
        self, draws: Mapping[str, jax.Array], names: tuple[str, ...], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Deterministic sites at draws of shape ``(num_draws, *site)``."""
        missing = [name for name in names if name not in draws]
        if not missing:
            return {}
        run = Predictive(self.model, dict(draws), return_sites=missing)
        return run(key, *self.args, **self.kwargs)

    def log_likelihoods(self, draws: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Log likelihood of each datum, ``(num_draws, *batch_shape)`` by site."""
        return log_likelihood(self.model, dict(draws), *self.args, **self.kwargs)

    def replicate(
        self, draws: Mapping[str, jax.Array], names: tuple[str, ...], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Draw new data at draws of the latent sites, shaped as the data."""
        run = Predictive(
            handlers.uncondition(self.model), dict(draws), return_sites=list(names)
        )
        return run(key, *self.args, **self.kwargs)

    def prior(self, num_samples: int, key: jax.Array) -> dict[str, jax.Array]:
        """Draws of all sites from the prior, the data's from its predictive law."""
        model = handlers.uncondition(self.model)
        run = Predictive(model, num_samples=num_samples)
        return run(key, *self.args, **self.kwargs)
