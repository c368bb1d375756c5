"""How many files of the package does a call enter? A newcomer reads so many.

Usage::

    python tests/files_entered.py
"""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC

import numpyro_kaem as kaem

ROOT = Path(kaem.__file__).parent


def files_entered(call: Callable[[], object]) -> set[str]:
    """Files of the package whose functions run, as paths below its root."""
    seen = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_name != "<module>":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    paths = (Path(name) for name in seen)
    return {str(p.relative_to(ROOT)) for p in paths if p.is_relative_to(ROOT)}


def main() -> None:
    """Print the number of files for each call, and which."""
    energy = kaem.Energy(kaem.BSpline(-3.0, 3.0, 8), jnp.arange(8.0) / 4)
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    key, values = jax.random.key(0), np.random.default_rng(0).normal(size=500)

    def model(y):
        z = numpyro.sample("z", prior)
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)

    annealed = kaem.infer.AnnealedLangevin(model, num_temperatures=4)
    mcmc = MCMC(annealed, num_warmup=5, num_samples=5, progress_bar=False)
    basis = kaem.BSpline(-3.0, 3.0, 6)
    latents = kaem.KAEMPrior(kaem.Energy.init(key, basis, (2,)), dist.Normal(0.0, 1.0))
    decoder = kaem.KANDecoder(key, 2, (3,))
    generative = kaem.KAEM(latents, decoder, kaem.NormalLikelihood(0.3))
    calls = {
        "log_prob": lambda: prior.log_prob(jnp.array([0.3])),
        "sample": lambda: prior.sample(key, (10,)),
        "fit_density": lambda: kaem.fit_density(values),
        "AnnealedLangevin": lambda: mcmc.run(key, 0.7),
        "fit": lambda: kaem.fit(
            generative,
            values[:30].reshape(10, 3),
            kaem.objectives.ImportanceMLE(4),
            optax.adam(1e-3),
            2,
            progress_bar=False,
        ),
    }
    # Imported beforehand: what only defines its classes is not entered.
    _ = kaem.fit, kaem.fit_density, kaem.objectives
    for name, call in calls.items():
        entered = files_entered(call)
        print(f"{name}: {len(entered)}\n    {', '.join(sorted(entered))}")


if __name__ == "__main__":
    main()
