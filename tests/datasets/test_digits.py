"""Digits: against scikit-learn's own, and their split."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn import datasets

from numpyro_kaem.datasets import load_digits


def rows(images, labels):
    """Images and labels as a sorted list, to compare without their order."""
    pairs = zip(images, labels, strict=True)
    return sorted((image.tobytes(), int(label)) for image, label in pairs)


def test_all_in_order():
    digits, theirs = load_digits(), datasets.load_digits()
    assert digits.images.shape == (1797, 8, 8)
    assert digits.images.dtype == np.float32
    assert digits.labels.dtype == np.int32
    assert digits.images.min() == 0
    assert digits.images.max() == 1
    assert_array_equal(digits.images * 16, theirs.images)
    assert_array_equal(digits.labels, theirs.target)
    assert digits.test_images.shape == (0, 8, 8)
    assert digits.test_labels.shape == (0,)


def test_split_keeps_every_image_and_the_shares():
    everything, split = load_digits(), load_digits(360)
    assert split.images.shape == (1437, 8, 8)
    assert split.test_images.shape == (360, 8, 8)
    joined = rows(
        np.concatenate([split.images, split.test_images]),
        np.concatenate([split.labels, split.test_labels]),
    )
    assert joined == rows(everything.images, everything.labels)
    shares = np.bincount(everything.labels) * 360 / 1797
    assert np.all(np.abs(np.bincount(split.test_labels) - shares) < 1)
    # The smallest and the largest.
    for test_size in (10, 1787):
        split = load_digits(test_size)
        smaller = min(split.labels, split.test_labels, key=len)
        assert_array_equal(np.sort(smaller), np.arange(10))
    # The split depends on the seed alone.
    first, again, other = (load_digits(100, seed=seed) for seed in (3, 3, 4))
    assert_array_equal(first.test_images, again.test_images)
    assert_array_equal(first.labels, again.labels)
    assert np.any(first.test_images != other.test_images)


def test_errors(monkeypatch):
    for arguments, error, message in [
        (dict(test_size=9), ValueError, "0, or from 10 to 1787 .* got 9"),
        (dict(test_size=1788), ValueError, "0, or from 10 to 1787 .* got 1788"),
        (dict(test_size=-1), ValueError, "test_size must be an integer >= 0"),
        (dict(test_size=0.2), TypeError, "test_size must be an integer >= 0"),
        (dict(seed=-1), ValueError, "seed must be an integer >= 0"),
    ]:
        with pytest.raises(error, match=message):
            load_digits(**arguments)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'numpyro-kaem\[examples\]'"):
        load_digits()
