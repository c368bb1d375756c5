"""Random fields: their mean, their covariance, and what a length scale means."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import gamma, kv

from numpyro_kaem.datasets import gaussian_random_field
from tests.helpers import assert_within_mcse

OPTIONS = [
    dict(length_scale=0.4, variance=1.7, smoothness=1.0),
    dict(length_scale=0.15, variance=0.3, smoothness=2.5),
]


def covariance(size, length_scale, variance, smoothness):
    """Sum over products of cosines, shape (size, size, size, size)."""
    middles = (np.arange(size) + 0.5) / size
    modes = np.arange(size)
    cosines = np.cos(np.pi * modes[:, None] * middles)
    cosines[1:] *= np.sqrt(2)
    rate = 2 * smoothness / length_scale**2
    laplacian = np.pi**2 * (modes[:, None] ** 2 + modes**2)
    weights = (laplacian + rate) ** (-smoothness - 1)
    weights *= variance / weights.sum()
    return np.einsum("mn,mi,nj,mk,nl->ijkl", weights, *4 * [cosines], optimize=True)


@pytest.mark.parametrize("options", OPTIONS, ids=["rough", "smooth"])
def test_mean_and_covariance(options):
    size = 8
    exact = covariance(size, **options)
    variance = np.einsum("ijij->ij", exact)
    assert_allclose(variance.mean(), options["variance"], rtol=1e-12)
    fields = gaussian_random_field(0, 20_000, size, **options)
    assert_within_mcse(fields, 0.0, num_errors=4.5)
    assert_within_mcse(fields**2, variance, num_errors=4.5)
    # One cell near a corner with all others.
    assert_within_mcse(fields * fields[:, 1:2, 2:3], exact[1, 2], num_errors=4.5)


@pytest.mark.parametrize("smoothness", [1.0, 2.0])
def test_length_scale_is_that_of_the_matern_covariance(smoothness):
    size, length_scale = 64, 0.1
    fields = gaussian_random_field(
        1, 3000, size, length_scale=length_scale, smoothness=smoothness
    )
    lags = np.array([3, 6, 10])
    middle = fields[:, 32, 32]
    found = [np.corrcoef(middle, fields[:, 32, 32 + lag])[0, 1] for lag in lags]
    r = np.sqrt(2 * smoothness) * lags / size / length_scale
    matern = 2 ** (1 - smoothness) / gamma(smoothness) * r**smoothness
    assert_allclose(found, matern * kv(smoothness, r), atol=0.06)


def test_seeds_and_extreme_length_scales():
    many = gaussian_random_field(np.int64(3), 5, 6)
    assert many.shape == (5, 6, 6)
    assert many.dtype == np.float64
    assert_array_equal(gaussian_random_field(3, 2, 6), many[:2])
    rng = np.random.default_rng(3)
    first, second = (gaussian_random_field(rng, 1, 6) for _ in range(2))
    assert_array_equal(first, many[:1])
    assert np.all(first != second)
    white = gaussian_random_field(0, 200, 16, length_scale=1e-200)
    assert_allclose(white.var(), 1.0, rtol=0.05)
    flat = gaussian_random_field(0, 3, 16, length_scale=1e200)
    assert_allclose(flat, flat[:, :1, :1] * np.ones((3, 16, 16)), rtol=1e-12)


def test_errors():
    for arguments, error, message in [
        (dict(rng=None), TypeError, "rng must be a numpy.random.Generator"),
        (dict(rng=True), TypeError, "got True of type bool"),
        (dict(rng=-1), ValueError, "rng must be an integer >= 0, got -1"),
        (dict(num_fields=0), ValueError, "num_fields must be a positive integer"),
        (dict(num_fields=2.0), TypeError, "num_fields must be a positive integer"),
        (dict(size=1), ValueError, "size must be an integer >= 2, got 1"),
        (
            dict(length_scale=0.0),
            ValueError,
            "length_scale must be a finite number > 0",
        ),
        (dict(variance=np.nan), ValueError, "variance must be a finite number > 0"),
        (dict(variance=True), TypeError, "variance must be a finite number > 0"),
        (dict(smoothness=-1.0), ValueError, "smoothness must be a finite number > 0"),
    ]:
        with pytest.raises(error, match=message):
            gaussian_random_field(**{"rng": 0, "num_fields": 2, "size": 4, **arguments})
