"""Energies inside NumPyro models: learned, sampled, and checked."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module, random_eqx_module
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO

import numpyro_kaem as kaem


@pytest.fixture
def energy():
    return kaem.Energy(kaem.RBF(1.0, 5.0, num_basis=6), jnp.zeros(6), base_weight=0.0)


def truncated_exponential(key, rate, num_samples):
    """Draws from the density proportional to exp(rate * z) on [1, 5]."""
    u = jax.random.uniform(key, (num_samples,))
    return 1.0 + jnp.log1p(u * jnp.expm1(4.0 * rate)) / rate


def test_svi_learns_the_energy(energy, key):
    data = truncated_exponential(key, -0.8, 2000)

    def model(data):
        learned = eqx_module("energy", energy)
        with numpyro.plate("data", data.shape[0]):
            numpyro.sample("z", kaem.KAEMPrior(learned), obs=data)

    svi = SVI(model, lambda data: None, optax.adam(0.1), Trace_ELBO())
    result = svi.run(jax.random.key(1), 300, data, progress_bar=False)
    learned = eqx.combine(
        result.params["energy$params"], eqx.filter(energy, eqx.is_array, inverse=True)
    )
    z = np.linspace(1.2, 4.8, 50)
    log_prob = kaem.KAEMPrior(learned).log_prob(z)
    truth = np.log(-0.8 / np.expm1(-3.2)) - 0.8 * (z - 1.0)
    # A fit of 2,000 draws: the log density is known to about 0.1.
    assert np.max(np.abs(log_prob - truth)) < 0.3
    assert np.mean(np.abs(log_prob - truth)) < 0.1


@pytest.mark.long
def test_nuts_samples_the_coefficients(energy, key):
    data = truncated_exponential(key, -0.8, 400)
    priors = kaem.parameter_priors(
        energy, {"coefficients": dist.GaussianRandomWalk(0.7, 6)}
    )

    def model(data=None):
        sampled = random_eqx_module("energy", energy, priors)
        with numpyro.plate("data", 400):
            numpyro.sample("z", kaem.KAEMPrior(sampled), obs=data)

    mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=200, progress_bar=False)
    mcmc.run(jax.random.key(1), data)
    draws = mcmc.get_samples()["energy/coefficients"]
    assert draws.shape == (200, 6)
    means = jax.vmap(
        lambda c: kaem.KAEMPrior(eqx.tree_at(lambda e: e.coefficients, energy, c)).mean
    )(draws)
    # The sample mean of the data, whatever the smoothing, within its standard error.
    assert abs(float(jnp.mean(means)) - float(jnp.mean(data))) < 0.1
    predictive = Predictive(model, mcmc.get_samples())(jax.random.key(2))
    assert predictive["z"].shape == (200, 400)
    assert bool(jnp.all((predictive["z"] > 1.0) & (predictive["z"] < 5.0)))


def test_bad_priors(energy):
    shape = r"parameter's shape \(6,\), got \(5,\)"
    for name, prior, error, match in (
        ("coefs", dist.Normal(), ValueError, "'coefs', which matches no parameter"),
        ("coefficients", 1.0, TypeError, r"priors\['coefficients'\] must be"),
        ("coefficients", dist.Normal(jnp.zeros(5), 1.0), ValueError, shape),
        ("coefficients", dist.GaussianRandomWalk(1.0, 5), ValueError, shape),
    ):
        with pytest.raises(error, match=match):
            kaem.parameter_priors(energy, {name: prior})
    with pytest.raises(TypeError, match="got KAEMPrior; pass the energy"):
        kaem.parameter_priors(kaem.KAEMPrior(energy), {"coefficients": dist.Normal()})
