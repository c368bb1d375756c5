"""Draws in chunks, one after another and side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import numpyro_kaem as kaem
from numpyro_kaem.numerics import inverse
from numpyro_kaem.numerics.cells import find_interval


def test_an_accelerator_draws_the_same(key, monkeypatch):
    """Chunks side by side, and a search without a loop, for one key."""
    monkeypatch.setattr(inverse, "_CHUNK", 64)
    monkeypatch.setattr(inverse, "_CHUNKS_AT_ONCE", 5)
    energy = kaem.Energy.init(key, kaem.BSpline(-2.0, 2.0, 8), (3,))
    prior = kaem.KAEMPrior(energy, dist.Normal(0.1, 0.7))

    def draw():
        return np.asarray(jax.jit(lambda key: prior.sample(key, (1000,)))(key))

    def num_loops():
        def search(w):
            return find_interval(np.arange(9.0)[None], w, np.zeros(5, int), 8)

        return jax.jit(search).lower(np.zeros(5)).as_text().count("stablehlo.while")

    on_cpu = draw()
    assert num_loops() == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # What was traced for a CPU is forgotten.
    jax.clear_caches()
    on_accelerator = draw()
    assert num_loops() == 0
    np.testing.assert_allclose(on_accelerator, on_cpu, rtol=1e-5, atol=1e-6)
    # All chunks differ.
    assert np.unique(on_accelerator).size > 0.99 * on_accelerator.size


def test_gradients_of_draws_keep_little_more_than_the_draws(key):
    """What they need is computed again, chunk by chunk."""
    basis = kaem.BSpline(-2.0, 2.0, 8)
    energy = kaem.Energy.init(key, basis, (100,))

    def loss(energy, num_samples):
        return jnp.sum(kaem.KAEMPrior(energy).sample(key, (num_samples,)) ** 2)

    def megabytes(num_samples):
        gradient = jax.jit(lambda energy: jax.grad(loss)(energy, num_samples))
        analysis = gradient.lower(energy).compile().memory_analysis()
        return analysis.temp_size_in_bytes / 1e6

    size = 100 * 40_000 * energy.coefficients.dtype.itemsize / 1e6
    assert megabytes(60_000) - megabytes(20_000) < 4 * size
