"""The compiler itself: sums are right whatever was compiled before."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import numpyro_kaem as kaem


def test_sums_are_right_after_a_density_was_compiled(key):
    """On CPUs jaxlib 0.11.1 to 0.12.0.1 fails: what is summed is plain JAX."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(50, 7)).astype("float32")
    s = np.tile(np.linspace(0.0, 1.0, 50, dtype="float32")[:, None], 50)

    def weighted(weights, s):
        return jnp.sum((6 * s[..., None] - jnp.arange(7.0)) * weights, axis=-1)

    expected = ((6 * s[..., None] - np.arange(7.0)) * weights).sum(-1)
    energy = kaem.Energy.init(key, kaem.RSWAF(0.25, 4.0, 6), (50,), scale=10.0)
    kaem.KAEMPrior(energy, dist.Gamma(2.5, 1.5))
    found = jax.jit(weighted)(jnp.asarray(weights), jnp.asarray(s))
    np.testing.assert_allclose(found, expected, atol=1e-4)
