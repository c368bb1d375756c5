"""The skew normal distribution, against SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from numpyro_kaem.distributions import SkewNormal
from tests.helpers import assert_close

LOC, SCALE, SKEWNESS = np.array([[1.0], [-2.0]]), 2.0, np.array([-6.0, 0.0, 1.5])


def test_density_masses_and_draws_are_scipys(key):
    """And draws have derivatives."""
    distribution, other = (
        SkewNormal(LOC, SCALE, SKEWNESS),
        stats.skewnorm(SKEWNESS, LOC, SCALE),
    )
    z = np.linspace(-9.0, 9.0, 37)[:, None, None]
    assert distribution.batch_shape == (2, 3)
    assert_close(distribution.log_prob(z), other.logpdf(z), rtol=(1e-4, 1e-10))
    assert_close(distribution.cdf(z), other.cdf(z), rtol=0, atol=(1e-6, 1e-12))
    assert_close(distribution.mean, other.mean())
    assert_close(distribution.variance, other.var())
    with pytest.raises(ValueError, match="scale"):
        SkewNormal(0.0, jnp.array(-1.0), 1.0, validate_args=True)
    draws = SkewNormal(1.0, 2.0, -6.0).sample(key, (2000,))
    other = stats.skewnorm(-6.0, 1.0, 2.0)
    assert stats.kstest(np.asarray(draws, float), other.cdf).pvalue > 1e-3

    def draw(skewness):
        return SkewNormal(1.0, 2.0, skewness).sample(key)

    step = 1e-2
    slope = (draw(0.5 + step) - draw(0.5 - step)) / (2 * step)
    assert SkewNormal().has_rsample
    assert_close(jax.grad(draw)(0.5), slope, rtol=1e-2, atol=1e-3)
