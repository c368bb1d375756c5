"""Point masses beside a density, against the same mixture by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from scipy import stats

import numpyro_kaem as kaem
from tests.helpers import assert_close

ATOMS, WEIGHTS = np.array([1.5, 0.0]), np.array([0.2, 0.5])
SLAB = kaem.KAEMPrior(
    kaem.Energy(kaem.BSpline(-3.0, 3.0, 8), jnp.zeros(8)), dist.Normal(0.5, 1.0)
)
NORMAL = stats.norm(0.5, 1.0)


@pytest.fixture(scope="module")
def prior():
    return kaem.PriorWithAtoms(ATOMS, WEIGHTS, SLAB)


@pytest.mark.numerics
def test_is_the_mixture(prior):
    z = np.array([-6.0, -1.0, 0.0, 1.0, 1.5, 2.0, 7.0])
    below = 0.3 * NORMAL.cdf(z) + (WEIGHTS * (ATOMS <= z[:, None])).sum(1)
    above = 0.3 * NORMAL.sf(z) + (WEIGHTS * (ATOMS > z[:, None])).sum(1)
    for found, expected in zip(prior.cdf_pair(z), (below, above), strict=True):
        assert_close(found, expected)
    expected = np.log(0.3) + NORMAL.logpdf(z)
    expected[[2, 4]] = np.log([0.5, 0.2])
    assert_close(prior.log_prob(z), expected)
    mean = WEIGHTS @ ATOMS + 0.3 * 0.5
    assert_close(prior.mean, mean)
    assert_close(prior.variance, WEIGHTS @ ATOMS**2 + 0.3 * 1.25 - mean**2)
    # Quantiles: in the density beside both jumps, and on them to their ends.
    u = np.array([1e-6, 0.05, 0.3 * NORMAL.cdf(0.7) + 0.5, 1 - 1e-3])
    expected = NORMAL.ppf([1e-6 / 0.3, 0.05 / 0.3, NORMAL.cdf(0.7), 1 - 1e-3 / 0.3])
    assert_close(prior.icdf(u), expected, rtol=(1e-4, 1e-10))
    ends = np.array([below[2] - 0.5, below[2], below[4] - 0.2, below[4]])
    inside = ends + 1e-5 * np.array([1, -1, 1, -1])
    assert prior.icdf(inside).tolist() == [0.0, 0.0, 1.5, 1.5]
    assert prior.icdf(np.array([0.0, 1.0])).tolist() == [-np.inf, np.inf]
    draws = np.asarray(prior.sample(jax.random.key(0), (20_000,)))
    shares = [np.mean(draws == 1.5), np.mean(draws == 0.0), np.mean(draws < 0.0)]
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3 * NORMAL.cdf(0)], atol=0.014)


def test_batches_compiled_and_derivatives(prior):
    batch = kaem.PriorWithAtoms(ATOMS, np.stack([WEIGHTS, WEIGHTS[::-1]]), SLAB)
    assert batch.sample(jax.random.key(0), (5,)).shape == (5, 2)
    z = np.array([[-1.0], [0.0], [2.0]])
    for name in ("cdf", "log_prob"):
        values = jax.jit(lambda p, z, name=name: getattr(p, name)(z))(batch, z)
        assert_close(values[:, 0], getattr(prior, name)(z[:, 0]))

    # By differences: quantiles move with the weights, and not on an atom.
    def quantiles(w):
        return kaem.PriorWithAtoms(ATOMS, w, SLAB).icdf(jnp.array([0.05, 0.3]))

    slopes = jax.jacobian(quantiles)(jnp.asarray(WEIGHTS))
    density = 0.3 * NORMAL.pdf(NORMAL.ppf(0.05 / 0.3))
    expected = 0.05 / 0.3 / density
    np.testing.assert_allclose(slopes, [[expected] * 2, [0.0] * 2], rtol=1e-4)


def test_gradient_samplers_refuse_it_and_quantiles_serve(prior):
    kernel = NUTS(lambda: numpyro.sample("z", prior))
    with pytest.raises(RuntimeError, match="discrete sites"):
        MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False).run(
            jax.random.key(0)
        )
    with pytest.raises(TypeError, match="without atoms"):
        prior.as_transformed()
    # What a model with u and icdf(u) integrates, against the posterior.
    z = prior.icdf((np.arange(20_000) + 0.5) / 20_000)
    likelihood = np.exp(dist.Normal(z, 0.5).log_prob(0.4))
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 0.5), np.array([0.4]))
    posterior = kaem.unit_posterior(prior, units)
    share = np.sum(likelihood * (z == 0.0)) / likelihood.sum()
    assert abs(posterior.local_false_discovery_rate()[0] - share) < 1e-4
    assert abs(posterior.mean[0] - likelihood @ z / likelihood.sum()) < 1e-4


@pytest.mark.parametrize(
    ("error", "match", "atoms", "weights", "density"),
    [
        (ValueError, r"atoms must have shape \(num_atoms,\)", 0.0, [0.5], SLAB),
        (ValueError, "atoms must be finite", [np.inf], [0.5], SLAB),
        (ValueError, "atoms must differ", [0.0, -0.0], [0.1, 0.1], SLAB),
        (TypeError, "atoms must be real", ["a"], [0.5], SLAB),
        (ValueError, r"weights must have shape \(..., 1\)", [0.0], [0.5, 0.1], SLAB),
        (ValueError, "weights must not be negative", [0.0], [-0.1], SLAB),
        (ValueError, "sum must be below 1", [0.0, 1.0], [0.5, 0.5], SLAB),
        (TypeError, "prior must be a KAEMPrior", [0.0], [0.5], dist.Normal()),
    ],
)
def test_bad_arguments(error, match, atoms, weights, density):
    with pytest.raises(error, match=match):
        kaem.PriorWithAtoms(atoms, weights, density)
