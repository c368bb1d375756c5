"""CIFAR-10 in its binary version."""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from numpyro_kaem.datasets._checks import existing_file
from numpyro_kaem.datasets.images import LabelledImages, to_unit_interval

__all__ = ["read_cifar10"]

# A label and three planes of 32×32 pixels: red, green, blue.
_RECORD = 1 + 3 * 32 * 32


def read_cifar10(
    paths: str | PathLike | Sequence[str | PathLike], *, scale: bool = True
) -> LabelledImages:
    """Read files of CIFAR-10, binary version.

    Parameters
    ----------
    paths
        Path of a file, such as ``test_batch.bin``, or several, such as
        ``data_batch_1.bin`` to ``data_batch_5.bin``, which are joined in this order.
    scale
        Whether to scale images to [0, 1].

    Returns
    -------
    LabelledImages
        Images of shape ``(num_images, 32, 32, 3)``, and their classes.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If no path is given, or if a file is a folder, is empty, does not consist of
        records of 3,073 bytes, or has a label above 9.

    References
    ----------
    Krizhevsky (2009), "Learning multiple layers of features from tiny images",
    technical report, University of Toronto.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from numpyro_kaem.datasets import read_cifar10
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "test_batch.bin"
    ...     _ = path.write_bytes(bytes([3] + [255] * 3072))
    ...     data = read_cifar10(path)
    >>> data.images.shape, data.labels
    ((1, 32, 32, 3), array([3], dtype=int32))
    """
    paths = [paths] if isinstance(paths, str | PathLike) else list(paths)
    if not paths:
        raise ValueError("paths must name at least one file of CIFAR-10, got none.")
    records = np.concatenate([_records(path) for path in paths])
    labels = records[:, 0].astype(np.int32)
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(np.moveaxis(images, 1, 3))
    return LabelledImages(to_unit_interval(images) if scale else images, labels)


def _records(path: str | PathLike) -> np.ndarray:
    """Read the records of a file, shape ``(num_images, 3073)``.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        If it is not as CIFAR-10's.
    """
    path = existing_file(path, "a binary file of CIFAR-10")
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % _RECORD:
        raise ValueError(
            f"{path} must consist of records of {_RECORD} bytes, found {content.size} "
            f"bytes: {content.size // _RECORD} records and {content.size % _RECORD} "
            "bytes. It is truncated, or not the binary version of CIFAR-10."
        )
    records = content.reshape(-1, _RECORD)
    wrong = records[:, 0] > 9
    if np.any(wrong):
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{path} must hold labels from 0 to 9, found {records[place, 0]} in record "
            f"{place}."
        )
    return records
