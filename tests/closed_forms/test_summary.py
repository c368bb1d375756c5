"""The table of densities, against SciPy."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import integrate, optimize, stats

import numpyro_kaem as kaem

BASIS = kaem.Chebyshev(low=-4.0, high=6.0, degree=4)
COEFFICIENTS = np.array([[0.0] * 5, [0.0, 0.5, 0.3, 0.0, -1.5]])
REFERENCE = stats.norm(1.0, 2.0)


def log_density(z):
    """Unnormalised, of the second density."""
    t = (np.clip(z, -4.0, 6.0) - 1.0) / 5.0
    return np.polynomial.chebyshev.chebval(t, COEFFICIENTS[1]) + REFERENCE.logpdf(z)


def test_numbers_and_modes_are_scipys():
    energy = kaem.Energy(BASIS, jnp.asarray(COEFFICIENTS, float))
    summary = kaem.summarize_prior(kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0)))

    def integral(function):
        pieces = [(-15.0, -4.0), (-4.0, 6.0), (6.0, 17.0)]
        return sum(integrate.quad(function, *piece)[0] for piece in pieces)

    normalizer = integral(lambda z: np.exp(log_density(z)))
    density = lambda z: np.exp(log_density(z)) / normalizer  # noqa: E731
    mean = integral(lambda z: z * density(z))
    variance = integral(lambda z: (z - mean) ** 2 * density(z))
    entropy = -integral(lambda z: density(z) * np.log(density(z)))
    divergence = integral(
        lambda z: density(z) * (np.log(density(z)) - REFERENCE.logpdf(z))
    )
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(summary.mean, [1.0, mean], **tolerance)
    sd = [2.0, np.sqrt(variance)]
    np.testing.assert_allclose(summary.standard_deviation, sd, **tolerance)
    entropies = [REFERENCE.entropy(), entropy]
    np.testing.assert_allclose(summary.entropy, entropies, **tolerance)
    np.testing.assert_allclose(summary.divergence, [0.0, divergence], **tolerance)
    assert len(summary.modes[0]) == 1
    np.testing.assert_allclose(summary.modes[0], 1.0, atol=2e-3)
    found = [
        optimize.minimize_scalar(lambda z: -log_density(z), bounds=bounds).x
        for bounds in ((-4.0, 1.0), (1.0, 6.0))
    ]
    np.testing.assert_allclose(summary.modes[1], found, atol=1e-3)
    # They print as a table.
    head, first, second = repr(summary).splitlines()
    assert head.split() == "component mean sd entropy divergence modes".split()
    assert first.split() == ["0", "1", "2", "2.112", "0", "1"]
    assert len(second.split()) == 7


def test_heavy_tails_have_no_moments():
    energy = kaem.Energy(BASIS, jnp.zeros(5))
    summary = kaem.summarize_prior(kaem.KAEMPrior(energy, dist.Cauchy(1.0, 2.0)))
    assert not np.isfinite(summary.mean)
    assert not np.isfinite(summary.standard_deviation)
    np.testing.assert_allclose(
        summary.entropy, stats.cauchy(1.0, 2.0).entropy(), rtol=1e-4
    )
    np.testing.assert_allclose(summary.modes[()], 1.0, atol=2e-3)
    assert repr(summary).splitlines()[1].split()[:2] == ["nan", "nan"]
