"""A model of one latent value a unit, small enough to integrate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.contrib.module import eqx_module
from scipy import integrate

import numpyro_kaem as kaem

X = jnp.array([[0.5, 0.3], [-0.8, -1.2], [0.9, 1.5]])


class Decoder(eqx.Module):
    weight: jax.Array

    def __call__(self, z):
        return jnp.stack([jnp.tanh(z * self.weight[0]), z * self.weight[1]], axis=-1)


ENERGY = kaem.Energy(
    kaem.RBF(-2.5, 3.0, 6), jnp.array([0.3, -1.0, 1.2, -0.5, 0.8, 0.1]), jnp.array(0.3)
)


def parts():
    energy = eqx_module("energy", ENERGY)
    decoder = eqx_module("decoder", Decoder(jnp.array([1.2, 0.7])))
    loc = numpyro.param("loc", 0.2)
    scale = numpyro.param("scale", 1.3, constraint=dist.constraints.positive)
    noise = numpyro.param("noise", 0.6, constraint=dist.constraints.positive)
    return kaem.KAEMPrior(energy, dist.Normal(loc, scale)), decoder, noise


def model(x, subsample_size=None):
    prior, decoder, noise = parts()
    with numpyro.plate("data", len(x), subsample_size=subsample_size) as index:
        z = numpyro.sample("z", prior)
        distribution = dist.Normal(decoder(z), noise).to_event(1)
        numpyro.sample("x", distribution, obs=x[index])


@jax.jit
def initial_params():
    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        parts()
    params = {n: s["value"] for n, s in trace.items() if s["type"] == "param"}
    return jax.tree.map(jnp.asarray, params)


@jax.jit
def _log_joint(params, z):
    with handlers.seed(rng_seed=0), handlers.substitute(data=params):
        prior, decoder, noise = parts()
    likelihood = dist.Normal(decoder(z)[:, None], noise).to_event(1).log_prob(X)
    return prior.log_prob(z)[:, None] + likelihood


def log_likelihood(params):
    """Of each unit, by SciPy's Simpson rule over the latent value."""
    z = np.linspace(-9.0, 9.5, 8001)
    joint = np.asarray(_log_joint(params, jnp.asarray(z)), np.float64)
    return np.log(integrate.simpson(np.exp(joint), x=z, axis=0))


def finite_difference_gradient(params, step):
    """Gradient of the mean log likelihood, flat, by central differences."""
    flat, unravel = ravel_pytree(params)
    gradient = []
    for i in range(flat.size):
        ends = [
            log_likelihood(unravel(flat.at[i].add(s))).mean() for s in (step, -step)
        ]
        gradient.append((ends[0] - ends[1]) / (2 * step))
    return np.array(gradient)
