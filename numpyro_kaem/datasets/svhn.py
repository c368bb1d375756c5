"""SVHN, the street view house numbers."""

from os import PathLike
from pathlib import Path

import numpy as np

from numpyro_kaem.datasets._checks import existing_file
from numpyro_kaem.datasets.images import LabelledImages, to_unit_interval

__all__ = ["read_svhn"]

_EXPECTED = "a MATLAB file of SVHN's cropped digits"


def read_svhn(path: str | PathLike, *, scale: bool = True) -> LabelledImages:
    """Read a file of the street view house numbers (SVHN), cropped digits.

    Parameters
    ----------
    path
        Path of ``train_32x32.mat``, ``test_32x32.mat`` or ``extra_32x32.mat``.
    scale
        Whether to scale images to [0, 1].

    Returns
    -------
    LabelledImages
        Images of shape ``(num_images, 32, 32, 3)``, and their digits: the file's
        label 10 stands for 0.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is a folder, not a MATLAB file, damaged, or does not hold images ``X``
        and labels ``y`` as SVHN does.

    References
    ----------
    Netzer et al. (2011), "Reading digits in natural images with unsupervised feature
    learning", *NIPS Workshop on Deep Learning and Unsupervised Feature Learning*.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from scipy.io import savemat
    >>> from numpyro_kaem.datasets import read_svhn
    >>> file = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[10], [3]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "test_32x32.mat"
    ...     savemat(path, file)
    ...     data = read_svhn(path)
    >>> data.images.shape, data.labels
    ((2, 32, 32, 3), array([0, 3], dtype=int32))
    """
    path = existing_file(path, _EXPECTED)
    _check_length(path)
    variables = _variables(path)
    missing = [name for name in ("X", "y") if name not in variables]
    if missing:
        names = sorted(name for name in variables if not name.startswith("__"))
        raise ValueError(
            f"{path} must hold the variables X and y, and misses {missing[0]}; found "
            f"{', '.join(names) or 'none'}."
        )
    images, labels = variables["X"], variables["y"]
    # MATLAB does not store a last axis of one.
    images = images[..., None] if np.ndim(images) == 3 else images
    if np.shape(images)[:3] != (32, 32, 3) or np.ndim(images) != 4:
        raise ValueError(
            f"{path} must hold images X of shape (32, 32, 3, num_images), found shape "
            f"{np.shape(images)}."
        )
    if images.dtype != np.uint8:
        raise ValueError(f"{path} must hold images X of uint8, found {images.dtype}.")
    if np.size(labels) != images.shape[3]:
        raise ValueError(
            f"{path} must hold one label for each image, found {np.size(labels)} "
            f"labels y for {images.shape[3]} images X."
        )
    labels = np.ravel(labels)
    wrong = ~np.isin(labels, np.arange(1, 11))
    if np.any(wrong):
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{path} must hold labels y from 1 to 10, found {labels[place]} at image "
            f"{place}."
        )
    images = np.ascontiguousarray(np.moveaxis(images, 3, 0))
    labels = (labels % 10).astype(np.int32)
    return LabelledImages(to_unit_interval(images) if scale else images, labels)


def _check_length(path: Path) -> None:
    """Check that a MATLAB file is as long as its variables say.

    Raises
    ------
    ValueError
        If it is shorter.
    """
    found, place = path.stat().st_size, 128
    with path.open("rb") as file:
        order = {b"IM": "little", b"MI": "big"}.get(file.read(place)[126:])
        # Each variable starts with its type, matrix or compressed, and its length. What
        # starts otherwise is not a file of version 5, or damaged, as loadmat will say.
        while order and place < found:
            file.seek(place)
            start = file.read(8)
            if int.from_bytes(start[:4], order) not in (14, 15):
                return
            place += 8 + int.from_bytes(start[4:], order)
            if place > found:
                raise ValueError(
                    f"{path} is truncated: expected at least {place} bytes, found "
                    f"{found}."
                )


def _variables(path: Path) -> dict[str, np.ndarray]:
    """Variables of a MATLAB file by name.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    from scipy.io import loadmat

    try:
        return loadmat(path)
    except NotImplementedError:
        raise ValueError(
            f"{path} is a MATLAB file of version 7.3, which SVHN does not use; "
            f"expected {_EXPECTED}, of version 5."
        ) from None
    except Exception as error:
        # What loadmat raises depends on which byte of the file is wrong.
        raise ValueError(
            f"{path} cannot be read as {_EXPECTED}: it is another file, truncated or "
            f"damaged ({type(error).__name__}: {error})."
        ) from error
