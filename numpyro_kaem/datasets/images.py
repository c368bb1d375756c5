"""Images: digits, MNIST, SVHN, CIFAR-10 and folders."""

import math
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numpyro_kaem._checks import as_count, as_path, existing_file

__all__ = [
    "Digits",
    "ImageFolder",
    "LabelledImages",
    "load_digits",
    "read_cifar10",
    "read_idx",
    "read_image_folder",
    "read_svhn",
]

_IDX = "an IDX file"
# Third byte of the file; numbers are stored with the highest byte first.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_SVHN = "a MATLAB file of SVHN's cropped digits"
# A label and three planes of 32×32 pixels: red, green, blue.
_CIFAR10_RECORD = 1 + 3 * 32 * 32
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow's modes of more than eight bits per colour, which it would cut off, not scale.
_DEEP = ("I", "F")


class Digits(NamedTuple):
    """Handwritten digits for training and for testing; made by :func:`load_digits`."""

    images: np.ndarray
    """Training images, float32 in [0, 1], shape ``(num_images, 8, 8)``."""
    labels: np.ndarray
    """Their digits, int32, shape ``(num_images,)``."""
    test_images: np.ndarray
    """Test images, shape ``(test_size, 8, 8)``."""
    test_labels: np.ndarray
    """Their digits, shape ``(test_size,)``."""


def load_digits(test_size: int = 0, *, seed: int = 0) -> Digits:
    """Load 1,797 handwritten digits of 8×8 pixels, in [0, 1].

    Parameters
    ----------
    test_size
        Number of test images, 0 or from 10 to 1787. The split is random and stratified
        by digit; without test images the original order is kept.
    seed
        Seed of the split.

    Raises
    ------
    ImportError
        If scikit-learn, which holds them, is not installed.
    TypeError
        If a number is not an integer.
    ValueError
        If a number is out of its range.

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


def read_idx(path: str | PathLike, *, scale: bool = True) -> np.ndarray:
    """Read an IDX file, such as those of MNIST, compressed by gzip or not.

    Parameters
    ----------
    path
        Path of the file. Compression is detected by content, not by name.
    scale
        Whether to scale images, unsigned bytes of three axes or more, to [0, 1]. Other
        arrays, such as labels, are left as stored.

    Returns
    -------
    numpy.ndarray
        float32 in [0, 1] for scaled images, else of the stored type, in native byte
        order.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is a folder, not an IDX file, damaged, or of another length than its
        header states.

    References
    ----------
    LeCun, Cortes and Burges (1998), "The MNIST database of handwritten digits".

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from numpyro_kaem.datasets import read_idx
    >>> header = bytes([0, 0, 8, 1]) + (3).to_bytes(4, "big")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(header + bytes([7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    path = existing_file(path, _IDX)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = _decompressed(content, path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        codes = ", ".join(f"{code:02x}" for code in _DTYPES)
        raise ValueError(
            f"{path} is not {_IDX}: its first four bytes must be 00 00, one of "
            f"{codes}, and the number of axes, got {content[:4].hex(' ') or 'nothing'}."
        )
    dtype, num_axes = np.dtype(_DTYPES[content[2]]), content[3]
    start = 4 + 4 * num_axes
    if len(content) < start:
        raise ValueError(
            f"{path} is truncated: expected {start} bytes of header for {num_axes} "
            f"axes, found {len(content)} bytes."
        )
    shape = tuple(np.frombuffer(content, ">u4", num_axes, 4).tolist())
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        wrong = "is truncated" if len(content) < expected else "is too long"
        raise ValueError(
            f"{path} {wrong}: expected {expected} bytes for shape {shape} of "
            f"{dtype.name}, found {len(content)}."
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    if scale and dtype == np.uint8 and num_axes >= 3:
        return _to_unit_interval(array)
    return array.astype(dtype.newbyteorder("="))


def _decompressed(content: bytes, path: PathLike) -> bytes:
    """Contents of a gzip file."""
    import gzip
    import zlib

    try:
        return gzip.decompress(content)
    except EOFError:
        raise ValueError(
            f"{path} is truncated: its gzip data end after {len(content)} bytes, "
            "before their end marker."
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} has damaged gzip data: {error}.") from error


class LabelledImages(NamedTuple):
    """Images of known classes; made by :func:`read_svhn` and :func:`read_cifar10`."""

    images: np.ndarray
    """float32 in [0, 1], or uint8 if not scaled, shape
    ``(num_images, height, width, 3)``."""
    labels: np.ndarray
    """Classes counted from zero, int32, shape ``(num_images,)``."""


def read_svhn(path: str | PathLike, *, scale: bool = True) -> LabelledImages:
    """Read a file of the street view house numbers (SVHN), cropped digits.

    Images have shape ``(num_images, 32, 32, 3)``; the file's label 10 becomes 0.

    Parameters
    ----------
    path
        Path of ``train_32x32.mat``, ``test_32x32.mat`` or ``extra_32x32.mat``.
    scale
        Whether to scale images to [0, 1].

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
    path = existing_file(path, _SVHN)
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
            f"{path} must hold one label per image, found {np.size(labels)} labels y "
            f"for {images.shape[3]} images X."
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
    return LabelledImages(_to_unit_interval(images) if scale else images, labels)


def _check_length(path: Path) -> None:
    """Check that a MATLAB file is as long as its variables say."""
    found, place = path.stat().st_size, 128
    with path.open("rb") as file:
        little = {b"IM": True, b"MI": False}.get(file.read(place)[126:])
        # Each variable starts with its type, matrix or compressed, and its length. What
        # starts otherwise is not a file of version 5, or damaged, as loadmat will say.
        while little is not None and place < found:
            file.seek(place)
            start = file.read(8)
            kind, length = (
                int.from_bytes(part, "little" if little else "big")
                for part in (start[:4], start[4:])
            )
            if kind not in (14, 15):
                return
            place += 8 + length
            if place > found:
                raise ValueError(
                    f"{path} is truncated: expected at least {place} bytes, found "
                    f"{found}."
                )


def _variables(path: Path) -> dict[str, np.ndarray]:
    """Variables of a MATLAB file by name."""
    from scipy.io import loadmat

    try:
        return loadmat(path)
    except NotImplementedError:
        raise ValueError(
            f"{path} is a MATLAB file of version 7.3, which SVHN does not use; "
            f"expected {_SVHN}, of version 5."
        ) from None
    except Exception as error:
        # What loadmat raises depends on which byte of the file is wrong.
        raise ValueError(
            f"{path} cannot be read as {_SVHN}: it is another file, truncated or "
            f"damaged ({type(error).__name__}: {error})."
        ) from error


def read_cifar10(
    paths: str | PathLike | Sequence[str | PathLike], *, scale: bool = True
) -> LabelledImages:
    """Read files of CIFAR-10, binary version: images ``(num_images, 32, 32, 3)``.

    Parameters
    ----------
    paths
        Path of a file, such as ``test_batch.bin``, or of several, which are joined in
        this order.
    scale
        Whether to scale images to [0, 1].

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
    return LabelledImages(_to_unit_interval(images) if scale else images, labels)


def _records(path: str | PathLike) -> np.ndarray:
    """Read the records of a file, shape ``(num_images, 3073)``."""
    path = existing_file(path, "a binary file of CIFAR-10")
    content = np.fromfile(path, np.uint8)
    count, rest = divmod(content.size, _CIFAR10_RECORD)
    if content.size == 0 or rest:
        raise ValueError(
            f"{path} must consist of records of {_CIFAR10_RECORD} bytes, found "
            f"{content.size} bytes: {count} records and {rest} bytes. It is truncated, "
            "or not the binary version of CIFAR-10."
        )
    records = content.reshape(-1, _CIFAR10_RECORD)
    wrong = records[:, 0] > 9
    if np.any(wrong):
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{path} must hold labels from 0 to 9, found {records[place, 0]} in record "
            f"{place}."
        )
    return records


class ImageFolder(NamedTuple):
    """Images of a folder, all of one size; made by :func:`read_image_folder`."""

    images: np.ndarray
    """float32 in [0, 1], or uint8 if not scaled, shape
    ``(num_images, size, size, 3)``."""
    names: tuple[str, ...]
    """File names, in the same order; with that of the class, as ``cats/1.png``."""
    labels: np.ndarray | None = None
    """int32 positions in ``classes``, shape ``(num_images,)``, or None."""
    classes: tuple[str, ...] = ()
    """Names of the folders of classes, in order."""


def read_image_folder(
    path: str | PathLike,
    size: int = 64,
    *,
    crop: int | None = None,
    limit: int | None = None,
    scale: bool = True,
    progress_bar: bool = False,
) -> ImageFolder:
    """Read the images of a folder, or of a folder of classes, as squares of one size.

    The central square of each image is cropped and resized, antialiased where it
    shrinks. Grey images get three equal colours, transparency is dropped, and
    photographs are turned upright.

    Parameters
    ----------
    path
        Path of a folder of images, such as CelebA's, of which the folders within are
        ignored; or of one without images, but with a folder for each class, whose
        images at any depth are labelled by it. Files without an image's suffix are
        ignored.
    size
        Pixels along a side of the result.
    crop
        Pixels along a side of the cropped square; by default the shorter side of each
        image. For CelebA, 148 or 140 keeps the face.
    limit
        Largest number of images to read, in order of their names, of each class where
        there are classes; by default all.
    scale
        Whether to scale images to [0, 1].
    progress_bar
        Whether to show progress.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    TypeError
        If a number is not an integer.
    ValueError
        If the path is not a folder or holds no image, a file cannot be read as an image
        or is smaller than ``crop``, or a number is not positive.

    References
    ----------
    Liu, Luo, Wang and Tang (2015), "Deep learning face attributes in the wild",
    *International Conference on Computer Vision*.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from matplotlib.image import imsave
    >>> from numpyro_kaem.datasets import read_image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("b.png", "a.png"):
    ...         imsave(Path(folder) / name, np.ones((20, 16, 3)))
    ...     data = read_image_folder(folder, size=8)
    >>> data.images.shape, data.names
    ((2, 8, 8, 3), ('a.png', 'b.png'))
    """
    from tqdm.auto import tqdm

    size = as_count("size", size)
    crop = None if crop is None else as_count("crop", crop)
    limit = None if limit is None else as_count("limit", limit)
    path = as_path("path", path)
    classes = _image_files(path, limit)
    files = [file for found in classes.values() for file in found]
    names = [os.path.relpath(file, path).replace(os.sep, "/") for file in files]
    images = np.empty((len(files), size, size, 3), np.float32 if scale else np.uint8)
    # Scaled one by one: a large folder may not fit in memory in both types.
    for i, file in enumerate(tqdm(files, desc="Images", disable=not progress_bar)):
        image = _read_square(file, size, crop)
        images[i] = _to_unit_interval(image) if scale else image
    if "" in classes:
        return ImageFolder(images, tuple(names))
    sizes = [len(found) for found in classes.values()]
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return ImageFolder(images, tuple(names), labels, tuple(classes))


def _image_files(path: Path, limit: int | None) -> dict[str, list[str]]:
    """Image files in order, by class; ``""`` where there are none."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a folder of images.")
    if not path.is_dir():
        raise ValueError(f"{path} is a file; expected a folder of images.")
    direct = _images_within(path, deep=False)[:limit]
    if direct:
        return {"": direct}
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    found = {
        folder.name: _images_within(folder, deep=True)[:limit]
        for folder in folders
        if not folder.name.startswith(".")
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise ValueError(
            f"{path} holds no image, nor do folders within: no file name ends in "
            f"{', '.join(_SUFFIXES)}."
        )
    return found


def _images_within(path: Path, *, deep: bool) -> list[str]:
    """Files of a folder that are named as images, in order."""
    files: list[str] = []
    for folder, folders, names in os.walk(path):
        # Some systems leave hidden files beside images, and folders.
        folders[:] = [name for name in folders if deep and name[0] != "."]
        files += [
            os.path.join(folder, name)
            for name in names
            if name.lower().endswith(_SUFFIXES) and name[0] != "."
        ]
    return sorted(files)


def _read_square(file: str, size: int, crop: int | None) -> np.ndarray:
    """Read the square in the middle of an image, shape ``(size, size, 3)``, uint8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except Exception as error:
        # What Pillow raises depends on the format and on which byte is wrong.
        raise ValueError(
            f"{file} cannot be read as an image: it is another file, truncated or "
            f"damaged ({type(error).__name__}: {error})."
        ) from error
    if image.mode.startswith(_DEEP):
        raise ValueError(
            f"{file} must have eight bits per colour, got mode {image.mode}."
        )
    if "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    width, height = image.size
    side = min(width, height) if crop is None else crop
    if side > min(width, height):
        raise ValueError(
            f"{file} must be at least crop={crop} pixels wide and high, got "
            f"{width}×{height}."
        )
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _to_unit_interval(images: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [0, 1], of the same shape; 255 becomes exactly one."""
    return np.divide(images, np.float32(255), dtype=np.float32)
