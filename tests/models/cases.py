"""Small models that the tests of the ready model share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers

import numpyro_kaem as kaem
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.models.likelihoods import NormalLikelihood


class Decoder(eqx.Module):
    """Multilayer perceptron for any batch shape, with a reshaped output."""

    network: eqx.nn.MLP
    shape: tuple = eqx.field(static=True)

    def __init__(self, num_latents, shape):
        size = int(np.prod(shape))
        self.network = eqx.nn.MLP(num_latents, size, 4, 1, key=jax.random.key(9))
        self.shape = tuple(shape)

    def __call__(self, z):
        rows = jax.vmap(self.network)(z.reshape(-1, z.shape[-1]))
        return rows.reshape(*z.shape[:-1], *self.shape)


class Linear(eqx.Module):
    """Datum ``weight * z + offset`` of one latent, without its axis."""

    weight: jax.Array

    def __call__(self, z):
        return self.weight * z[..., 0] + 0.3


def simple(*shape, reference=None, num_basis=6):
    rng = np.random.default_rng(0)
    coefficients = jnp.asarray(rng.normal(size=(*shape, num_basis)))
    basis = kaem.BSpline(-1.0, 2.0, num_basis=num_basis)
    return kaem.KAEMPrior(kaem.Energy(basis, coefficients), reference)


def linear_model():
    prior = simple(1, reference=dist.Normal(0.5, 1.0))
    return KAEM(prior, Linear(jnp.array(1.5)), NormalLikelihood(0.4))


X = np.array([0.2, 1.1, 2.4])


def trace_of(model, *args, **kwargs):
    seeded = handlers.seed(model, jax.random.key(0))
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def shapes_of(model, *args, **kwargs):
    """Trace of a run that is not compiled: its values have shapes only."""
    traces = []
    jax.eval_shape(lambda: traces.append(trace_of(model, *args, **kwargs)))
    return traces[0]
