"""A prior without normaliser, trained end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import numpyro_kaem as kaem
from numpyro_kaem.infer import LangevinMLE


def energy_distance(a, b):
    """Squared energy distance of two samples, shape ``(n, dim)`` each; 0 if alike."""

    def mean_distance(a, b):
        return np.mean(np.linalg.norm(a[:, None] - b[None], axis=-1))

    return 2 * mean_distance(a, b) - mean_distance(a, a) - mean_distance(b, b)


def test_draws_come_to_the_data():
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.2, 1.2], size=400)
    # Two clusters that are apart, of both latents together.
    z = signs[:, None] * [1.0, -0.6] + 0.25 * rng.normal(size=(400, 2))
    x = z + 0.1 * rng.normal(size=z.shape)
    prior = kaem.DeepEnergyPrior.init(jax.random.key(0), dim=2, width=32, num_steps=40)
    model = kaem.KAEM(prior, lambda z: z, kaem.NormalLikelihood(0.1))
    result = kaem.fit(
        model, x[:200], LangevinMLE(3), optax.adam(3e-3), 500, progress_bar=False
    )
    assert result.num_skipped == 0
    before, after = (
        np.asarray(m.sample(jax.random.key(1), 400)) for m in (model, result.model)
    )
    held_out = x[200:]
    assert energy_distance(after, held_out) < 0.2 * energy_distance(before, held_out)
    # The dependence too, which no independent prior has.
    assert np.corrcoef(after.T)[0, 1] < -0.7
    # The contrast holds the energy where there are no data.
    far = jnp.array([[4.0, 4.0], [-4.0, 3.0]])
    learned = result.model.prior
    assert np.all(learned.log_prob(far) < learned.log_prob(jnp.asarray(z)).min())
