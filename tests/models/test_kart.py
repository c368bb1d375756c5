"""Latents of Kolmogorov and Arnold's representation: shapes, joint density, plates."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Predictive
from scipy import stats

import numpyro_kaem as kaem
from tests.helpers import assert_close


def make(shape=(5, 2), reference=None):
    coefficients = 2 * np.random.default_rng(0).normal(size=(*shape, 6))
    basis = kaem.BSpline(-1.0, 3.0, num_basis=6)
    return kaem.KAEMPrior(kaem.Energy(basis, jnp.asarray(coefficients)), reference)


def traced(model, seed=0):
    with handlers.seed(rng_seed=seed):
        return handlers.trace(model).get_trace()


def test_marginal_distribution_of_each_row(key):
    prior = make()
    cdf = jax.jit(lambda z: prior.cdf(z))
    predictive = Predictive(lambda: kaem.kart("z", prior), num_samples=5000)
    u = np.asarray(cdf(predictive(key)["z"]), float)
    assert u.shape == (5000, 5, 2)
    for row, column in ((0, 0), (4, 1)):
        assert stats.kstest(u[:, row, column], "uniform").pvalue > 1e-4
    # One latent a column; columns are independent.
    assert_close(u[:, 1:], u[:, :1].repeat(4, 1), rtol=0, atol=1e-4)
    assert abs(np.corrcoef(u[:, 0].T)[0, 1]) < 0.06


# Sizes that could be taken for latents or rows.
@pytest.mark.parametrize(("size", "reference"), [(2, dist.Normal(1.0, 2.0)), (5, None)])
def test_plates(size, reference):
    """Every row is a function of the same base."""
    prior = make(reference=reference)

    def model():
        with numpyro.plate("outer", 3, dim=-2), numpyro.plate("data", size, dim=-1):
            return kaem.kart("z", prior)

    sites = traced(model)
    latent, z = sites["z_base"]["value"], sites["z"]["value"]
    assert latent.shape == (3, size, 2)
    assert z.shape == (3, size, 5, 2)
    assert sites["z"]["type"] == "deterministic"
    u = stats.norm.cdf(latent)
    assert_close(prior.cdf(z), np.broadcast_to(u[..., None, :], z.shape), atol=1e-5)
    value, _ = numpyro.infer.util.log_density(model, (), {}, {"z_base": latent})
    assert_close(value, stats.norm.logpdf(latent).sum(), rtol=1e-5)


def test_parameters_are_learned_through_what_z_explains():
    def loss(prior, latent):
        model = handlers.substitute(lambda: kaem.kart("z", prior), {"z_base": latent})
        return jnp.sum(jnp.square(model()))

    gradient = jax.jit(jax.grad(loss))(make(), jnp.array([0.4, -0.6]))
    gradient = gradient.energy.coefficients
    assert gradient.shape == (5, 2, 6)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.any(gradient != 0, axis=-1))


def test_bad_input():
    for shape in ((), (5,), (2, 5), (4, 2), (2, 2), (1, 5, 2)):
        with pytest.raises(ValueError, match=r"\(2 \* P \+ 1, P\)"):
            traced(lambda shape=shape: kaem.kart("z", make(shape)))
    with pytest.raises(TypeError, match="prior must be a KAEMPrior"):
        traced(lambda: kaem.kart("z", dist.Normal(jnp.zeros((5, 2)), 1.0)))
