"""Images with labels, and their scale."""

from typing import NamedTuple

import numpy as np

__all__ = ["LabelledImages", "to_unit_interval"]


class LabelledImages(NamedTuple):
    """Images of known classes; made by :func:`read_svhn` and :func:`read_cifar10`.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.datasets import LabelledImages
    >>> data = LabelledImages(np.zeros((3, 32, 32, 3), "float32"), np.array([0, 7, 7]))
    >>> data.images[data.labels == 7].shape
    (2, 32, 32, 3)
    """

    images: np.ndarray
    """Colours last, shape ``(num_images, height, width, 3)``: float32 in [0, 1], or
    uint8 if not scaled."""
    labels: np.ndarray
    """Classes counted from zero, int32, shape ``(num_images,)``."""


def to_unit_interval(images: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [0, 1], of the same shape; 255 becomes exactly one."""
    return np.divide(images, np.float32(255), dtype=np.float32)
