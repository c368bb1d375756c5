"""Sample quality against closed forms and plain loops."""

import itertools
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.linalg import sqrtm

from numpyro_kaem.diagnostics import sample_quality


def rows_with_moments(mean, covariance, n, seed):
    """Rows whose sample mean and sample covariance are exactly the given ones."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(mean)))
    rows -= rows.mean(0)
    q, _ = np.linalg.qr(rows)
    return mean + np.sqrt(n - 1) * q @ np.linalg.cholesky(covariance).T


def random_covariance(dim, seed):
    factor = np.random.default_rng(seed).normal(size=(dim, dim + 2))
    return factor @ factor.T / dim


def test_frechet_distance_of_gaussians():
    means = np.array([1.0, -2.0, 0.5]), np.array([0.0, 3.0, 1.0])
    covariances = random_covariance(3, 1), random_covariance(3, 2)
    samples = rows_with_moments(means[0], covariances[0], 40, 3)
    reference = rows_with_moments(means[1], covariances[1], 60, 4)
    root = sqrtm(covariances[0] @ covariances[1]).real
    spread = np.trace(covariances[0] + covariances[1] - 2 * root)
    expected = np.sum((means[0] - means[1]) ** 2) + spread
    actual = sample_quality(samples, reference).frechet_distance
    assert_allclose(actual, expected, rtol=1e-10)
    assert_allclose(sample_quality(reference, samples)[0], expected, rtol=1e-10)
    # Of diagonal covariances, one of them all but singular.
    scales = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.5, 1e-9])
    sets = [
        rows_with_moments(np.full(3, loc), np.diag(scale**2), 50, seed)
        for seed, (loc, scale) in enumerate(zip((1.0, -1.0), scales, strict=True))
    ]
    expected = 3 * 2.0**2 + np.sum((scales[0] - scales[1]) ** 2)
    assert_allclose(sample_quality(*sets).frechet_distance, expected, rtol=1e-7)
    # Only the first components of the reference count.
    scales = np.array([3.0, 2.0, 1.0, 0.5])
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    reference = rows_with_moments(np.ones(4), np.diag(scales**2), 50, 1)
    samples = rows_with_moments(np.zeros(4), np.diag(4 * scales**2), 50, 2)
    expected = 2 + np.sum(scales[:2] ** 2)
    actual = sample_quality(samples @ rotation, reference @ rotation, num_components=2)
    assert_allclose(actual.frechet_distance, expected, rtol=1e-10)
    everything = sample_quality(samples, reference, num_components=None)
    assert_allclose(everything[0], 4 + np.sum(scales**2), rtol=1e-10)


def test_equal_sets_and_other_formats():
    """Pixels are flattened, and integers converted."""
    for shape in [(30, 4), (30, 1), (25, 6, 7), (8, 50)]:
        images = np.random.default_rng(0).normal(2.0, 3.0, shape)
        quality = sample_quality(images[::-1], images)
        assert_allclose(quality.frechet_distance, 0, atol=1e-10)
        assert quality.frechet_distance >= 0
        assert (quality.precision, quality.recall) == (1.0, 1.0)
    same = sample_quality(np.full((9, 3), 2.0), np.full((7, 3), 2.0))
    assert same[:3] == (0.0, 1.0, 1.0)
    rng = np.random.default_rng(0)
    samples, reference = rng.integers(0, 255, (2, 30, 4, 3)).astype(np.uint8)
    images = sample_quality(samples, reference)
    rows = sample_quality(
        samples.reshape(30, 12) * 1.0, reference.reshape(30, 12) * 1.0
    )
    assert images[:3] == rows[:3]
    assert all(isinstance(value, float) for value in images)


@pytest.mark.parametrize("shape", [(130, 160), (160, 130), (9, 30), (30, 9)], ids=str)
def test_components_are_those_of_a_singular_value_decomposition(shape):
    """Of few rows and of few columns, by Lanczos' method and without."""
    rng = np.random.default_rng(0)
    scales = np.linspace(3.0, 0.1, shape[1]) ** 2
    sets = rng.normal(size=(2, *shape)) * scales + 5.0
    center = sets[1].mean(0)
    axes = np.linalg.svd(sets[1] - center)[2].T
    for count in (3, None):
        rank = min(shape[1], shape[0] - 1) if count is None else count
        inside = (sets - center) @ axes[:, :rank]
        expected = sample_quality(*inside, num_components=None)
        actual = sample_quality(*sets, num_components=count)
        assert_allclose(actual, expected, rtol=1e-7, atol=1e-9)
    # A reference of less rank has no components of rounding errors.
    flat = np.ones((130, 160)) * np.arange(130.0)[:, None]
    assert sample_quality(flat + rng.normal(size=(130, 160)), flat).precision > 0.9


def test_kernel_distance_by_brute_force():
    rng = np.random.default_rng(0)
    samples, reference = rng.normal(0.3, 2.0, (12, 3)), rng.normal(size=(9, 3))
    x, y = samples - reference.mean(0), reference - reference.mean(0)
    variance = np.trace(np.cov(reference.T))

    def kernel(a, b):
        return (1 + np.dot(a, b) / variance) ** 3

    def mean(rows):
        return np.mean([kernel(*pair) for pair in itertools.permutations(rows, 2)])

    across = np.mean([kernel(a, b) for a in x for b in y])
    actual = sample_quality(samples, reference).kernel_distance
    assert_allclose(actual, mean(x) + mean(y) - 2 * across, rtol=1e-10)


def test_two_distances_do_not_depend_on_the_sizes():
    """Between Gaussians that differ, on average over many small sets."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        samples = 0.5 + 1.5 * rng.normal(size=(60, 4))
        found.append(sample_quality(samples, rng.normal(size=(90, 4))))
    mean, error = np.mean(found, 0), np.std(found, 0) / np.sqrt(len(found))
    expected = 4 * (0.5**2 + 0.5**2)
    assert mean[0] > expected + 5 * error[0]
    assert abs(mean[3] - expected) < 4 * error[3]
    same = [sample_quality(*rng.normal(size=(2, 30, 4)))[4] for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))
    # Halves with no more rows than columns say nothing.
    assert np.isnan(sample_quality(*rng.normal(size=(2, 8, 4)))[3])


def test_features(monkeypatch):
    """They are asked for block by block, and stand in the place of the data."""
    module = sys.modules["numpyro_kaem.diagnostics.quality"]
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 16)
    sets = np.random.default_rng(0).normal(size=(2, 40, 3, 2))
    asked = []

    def means(images):
        asked.append(len(images))
        return images.mean(-1)

    assert sample_quality(*sets, features=means) == sample_quality(*sets.mean(-1))
    assert asked == [16, 16, 8] * 2


def brute_force(points, rows, k):
    inside = 0
    for point in points:
        for i, row in enumerate(rows):
            others = [
                np.sqrt(np.sum((row - other) ** 2))
                for j, other in enumerate(rows)
                if j != i
            ]
            if np.sqrt(np.sum((point - row) ** 2)) <= sorted(others)[k - 1]:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(k, monkeypatch):
    # Several blocks, the last of them not full.
    module = sys.modules["numpyro_kaem.diagnostics.quality"]
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 16)
    rng = np.random.default_rng(0)
    reference = rng.normal(1.0, 2.0, (40, 3))
    samples = rng.normal(0.0, 1.5, (35, 3))
    quality = sample_quality(samples, reference, num_neighbours=k)
    assert quality.precision == brute_force(samples, reference, k)
    assert quality.recall == brute_force(reference, samples, k)
    assert 0.1 < quality.precision != quality.recall < 1


def test_arguments():
    good = np.random.default_rng(0).normal(size=(10, 3))
    real, positive = "must be real numbers, got dtype", "must be a positive integer"
    infinite = "reference must be finite, got 30 of 30"
    for arguments, error, message in [
        ({"samples": good * 1j}, TypeError, f"samples {real}"),
        ({"reference": [["a"]]}, TypeError, f"reference {real}"),
        ({"samples": (good, good[:, 0])}, ValueError, "samples must be one array, got"),
        ({"samples": good[:5]}, ValueError, r"samples .* = 5, got shape \(5, 3\)"),
        ({"reference": good[:, 0]}, ValueError, r"reference .* got shape \(10,\)"),
        ({"samples": good[:, :0]}, ValueError, r"samples .* got shape \(10, 0\)"),
        ({"samples": good[:, :2]}, ValueError, r"one shape, got shapes \(10, 2\) and"),
        ({"reference": good * np.inf}, ValueError, infinite),
        ({"features": 3}, TypeError, "features must be a function of an array"),
        ({"features": lambda x: x[:2]}, ValueError, "each of the 10 samples, got 2 ro"),
        ({"features": lambda x: x * 1j}, TypeError, f"features of samples {real}"),
        ({"num_components": 0}, ValueError, f"num_components {positive}"),
        ({"num_components": 2.0}, TypeError, f"num_components {positive}"),
        ({"num_neighbours": 0}, ValueError, f"num_neighbours {positive}"),
        ({"num_neighbours": 1.5}, TypeError, f"num_neighbours {positive}"),
    ]:
        with pytest.raises(error, match=message):
            sample_quality(**{"samples": good, "reference": good} | arguments)
