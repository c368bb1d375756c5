"""Handwritten digits that come with scikit-learn."""

from typing import NamedTuple

import numpy as np

from numpyro_kaem._checks import as_count

__all__ = ["Digits", "load_digits"]


class Digits(NamedTuple):
    """Handwritten digits, to train on and set aside; made by :func:`load_digits`.

    Examples
    --------
    >>> from numpyro_kaem.datasets import load_digits
    >>> digits = load_digits(test_size=100)
    >>> digits.images.shape, digits.test_labels.shape
    ((1697, 8, 8), (100,))
    """

    images: np.ndarray
    """Images to train on, float32 in [0, 1], shape ``(num_images, 8, 8)``."""
    labels: np.ndarray
    """Their digits, int32, shape ``(num_images,)``."""
    test_images: np.ndarray
    """Images set aside, shape ``(test_size, 8, 8)``."""
    test_labels: np.ndarray
    """Their digits, shape ``(test_size,)``."""


def load_digits(test_size: int = 0, *, seed: int = 0) -> Digits:
    """Load 1,797 handwritten digits of 8×8 pixels, in [0, 1].

    Parameters
    ----------
    test_size
        How many to set aside, 0 or from 10 to 1787: each digit has its share.
    seed
        Chooses them. The same seed gives the same split.

    Returns
    -------
    Digits
        In their own order if none are set aside, else in random order.

    Raises
    ------
    ImportError
        If scikit-learn, of which they are a part, is not installed.
    TypeError
        If a number is not an integer.
    ValueError
        If one is negative, or ``test_size`` is not as above.

    References
    ----------
    Alpaydin and Kaynak (1998), "Optical recognition of handwritten digits", *UCI
    Machine Learning Repository*.

    Examples
    --------
    >>> from numpyro_kaem.datasets import load_digits
    >>> digits = load_digits(test_size=297)
    >>> digits.images.shape, digits.test_images.shape
    ((1500, 8, 8), (297, 8, 8))
    """
    test_size, seed = as_count("test_size", test_size, 0), as_count("seed", seed, 0)
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "load_digits needs scikit-learn, which holds the images: pip install "
            "'numpyro-kaem[examples]'."
        ) from error
    data = datasets.load_digits()
    # Sixteen is the brightest: each pixel counts the dots of a cell of 4×4.
    images = (data.images / 16).astype(np.float32)
    labels = data.target.astype(np.int32)
    if test_size == 0:
        return Digits(images, labels, images[:0], labels[:0])
    largest = len(images) - 10
    if not 10 <= test_size <= largest:
        raise ValueError(
            f"test_size must be 0, or from 10 to {largest} so that each digit is on "
            f"both sides, got {test_size}."
        )
    train, test = train_test_split(
        np.arange(len(images)), test_size=test_size, random_state=seed, stratify=labels
    )
    return Digits(images[train], labels[train], images[test], labels[test])
