"""What a user's editor checks, and beartype as it runs: all accept each line."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_kaem as kaem

# Not where pytest imports it to look for doctests.
if __name__ == "__main__":
    values = np.random.default_rng(0).normal(size=500)
    prior: kaem.KAEMPrior = kaem.fit_density(values, kaem.BSpline(-4.0, 4.0, 12))
    draws: jax.Array = prior.sample(jax.random.key(0), (3,))
    log_prob: jax.Array = prior.log_prob(draws)
    quantile: jax.Array = prior.icdf(jnp.array([0.1, 0.9]))
    positive: kaem.KAEMPrior = kaem.fit_density(np.exp(values), support="positive")
    joint = kaem.fit_mixture(np.stack([values, values[::-1]], 1), 2)

    def model(y: np.ndarray | None = None) -> None:
        """A model with a learned prior."""
        mu = numpyro.sample("mu", prior)
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    mcmc = MCMC(NUTS(model), num_warmup=10, num_samples=10, progress_bar=False)
    mcmc.run(jax.random.key(1), values[:5])
    result = kaem.infer.ImportanceSampling(model, num_samples=100).run(
        jax.random.key(2), values[:5]
    )
    evidence: float = float(result.log_evidence.value)

    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), values[:50])
    fit = kaem.fit_marginal(units, kaem.BSpline(-4.0, 4.0, 8), dist.Normal(0.0, 2.0))
    posterior = kaem.unit_posterior(fit.prior, units)
    means: jax.Array = posterior.mean

    chain: kaem.AutoregressiveKAEMPrior = kaem.fit_autoregressive(
        np.stack([values, values + values[::-1]], 1), num_steps=30
    )
    decoder = kaem.KANDecoder(jax.random.key(3), 2, (4,))
    latents = kaem.KAEMPrior(
        kaem.Energy.init(jax.random.key(4), kaem.RBF(-2.0, 2.0, 6), (2,))
    )
    generative = kaem.KAEM(latents, decoder, kaem.NormalLikelihood(0.5))
    trained: kaem.FitResult = kaem.fit(
        generative,
        values[:40].reshape(10, 4),
        kaem.objectives.ImportanceMLE(8),
        numpyro.optim.Adam(1e-3),
        2,
        batch_size=5,
        progress_bar=False,
    )
    generated: jax.Array = trained.model.sample(jax.random.key(5), 3)
