"""Simulation-based calibration of energies with random coefficients under NUTS.

Truths drawn from the prior have uniform ranks among draws from the posteriors of the
data that they generate, whatever is asked of them, if and only if model and sampler are
right: Talts et al. (2018), "Validating Bayesian inference algorithms with
simulation-based calibration", arXiv:1804.06788.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from scipy import stats

import numpyro_kaem as kaem

pytestmark = pytest.mark.optimised

NUM_REPLICATES = 256
# Thinned to nearly independent draws, which the ranks need.
NUM_DRAWS, THINNING, NUM_WARMUP = 49, 4, 200
NUM_BINS = 10
BASIS = kaem.BSpline(0.0, 1.0, num_basis=6)
POINTS = np.array([0.15, 0.5, 0.9])
TRIALS = np.array([3, 5, 8, 8, 9, 10, 11, 12, 12, 13, 15, 16, 18, 20, 21, 21, 22, 24])
LEAST_P_VALUE = 0.001


def random_prior():
    """Success probabilities with a random smooth density on the unit interval."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    energy = kaem.random_walk_energy("energy", BASIS, scale)
    prior = kaem.KAEMPrior(energy)
    numpyro.deterministic("log_density", prior.log_prob(POINTS))
    return prior


def joint_model(x=None):
    """Every unit's probability is sampled."""
    prior = random_prior()
    with numpyro.plate("units", len(TRIALS)):
        z = numpyro.sample("z", prior)
        numpyro.sample("x", dist.Binomial(TRIALS, probs=z), obs=x)


def marginal_model(x):
    """The units are integrated out."""
    units = kaem.unit_log_likelihood(lambda z: dist.Binomial(TRIALS, probs=z), x)
    marginals = kaem.unit_log_marginal_likelihood(random_prior(), units)
    numpyro.factor("units", marginals.sum())


def simulate(key):
    trace = handlers.trace(handlers.seed(joint_model, key)).get_trace()
    return {name: trace[name]["value"] for name in ("scale", "log_density", "z", "x")}


def sample_posterior(model, key, x):
    mcmc = MCMC(
        NUTS(model, dense_mass=model is marginal_model, max_tree_depth=6),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_DRAWS * THINNING,
        thinning=THINNING,
        progress_bar=False,
    )
    mcmc.run(key, x, extra_fields=("diverging",))
    return mcmc.get_samples(), mcmc.get_extra_fields()["diverging"].sum()


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "quantities"),
    [
        (marginal_model, ("scale", "log_density")),
        (joint_model, ("scale", "log_density", "z")),
    ],
)
def test_ranks_are_uniform(model, quantities):
    simulation, inference = jax.random.split(jax.random.key(20))
    truths = jax.jit(jax.vmap(simulate))(jax.random.split(simulation, NUM_REPLICATES))
    # All replicates in one compiled run.
    run = jax.jit(jax.vmap(lambda key, x: sample_posterior(model, key, x)))
    draws, num_divergences = run(
        jax.random.split(inference, NUM_REPLICATES), truths["x"]
    )
    assert int(jnp.sum(num_divergences > 0)) <= NUM_REPLICATES // 50
    p_values = {}
    for name in quantities:
        # Of the units' latent values, those with the least and the most data.
        kept = [0, -1] if name == "z" else slice(None)
        truth = np.asarray(truths[name]).reshape(NUM_REPLICATES, -1)[:, kept]
        sampled = np.asarray(draws[name]).reshape(NUM_REPLICATES, NUM_DRAWS, -1)
        ranks = np.sum(sampled[..., kept] < truth[:, None], axis=1)
        for i, column in enumerate(ranks.T):
            counts = np.bincount(
                column * NUM_BINS // (NUM_DRAWS + 1), minlength=NUM_BINS
            )
            p_values[name, i, "chi-square"] = stats.chisquare(counts).pvalue
            middles = (column + 0.5) / (NUM_DRAWS + 1)
            p_values[name, i, "KS"] = stats.kstest(middles, "uniform").pvalue
    print({name: round(float(value), 4) for name, value in p_values.items()})
    assert min(p_values.values()) > LEAST_P_VALUE, p_values
