"""A folder of images, such as CelebA's."""

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numpyro_kaem._checks import as_count, as_path
from numpyro_kaem.datasets.images import to_unit_interval

__all__ = ["ImageFolder", "read_image_folder"]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow's modes of more than eight bits a colour, which it would cut off, not scale.
_DEEP = ("I", "F")


class ImageFolder(NamedTuple):
    """Images of a folder, all of one size; made by :func:`read_image_folder`.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.datasets import ImageFolder
    >>> folder = ImageFolder(np.zeros((2, 64, 64, 3), "float32"), ("a.png", "b.png"))
    >>> len(folder.names) == len(folder.images)
    True
    """

    images: np.ndarray
    """Colours last, shape ``(num_images, size, size, 3)``: float32 in [0, 1], or uint8
    if not scaled."""
    names: tuple[str, ...]
    """Names of their files, in the same order."""


def read_image_folder(
    path: str | PathLike,
    size: int = 64,
    *,
    crop: int | None = None,
    limit: int | None = None,
    scale: bool = True,
    progress_bar: bool = False,
) -> ImageFolder:
    """Read the images of a folder, such as CelebA's, as squares of one size.

    Of each image the square in the middle is cut out and resized, with smoothing where
    it gets smaller. Grey images get three equal colours, transparency is dropped, and
    photographs are turned upright.

    Parameters
    ----------
    path
        Path of the folder. Files whose name does not end as an image's, and folders
        within, are passed over.
    size
        Number of pixels along a side of the result.
    crop
        Number of pixels along a side of the square to cut out; by default the shorter
        side of each image. For CelebA, 148 or 140 keeps the face.
    limit
        How many images to read at most, the first by name; by default all.
    scale
        Whether to scale images to [0, 1].
    progress_bar
        Whether to show how many images are read.

    Returns
    -------
    ImageFolder
        In order of the names.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    TypeError
        If a number is not an integer.
    ValueError
        If the path is not a folder, if no image is in it, if a file cannot be read as
        an image or is smaller than ``crop``, or if a number is not positive.

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
    size = as_count("size", size)
    crop = None if crop is None else as_count("crop", crop)
    limit = None if limit is None else as_count("limit", limit)
    files = _image_files(as_path("path", path))[:limit]
    images = np.empty((len(files), size, size, 3), np.float32 if scale else np.uint8)
    steps = files
    if progress_bar:
        from tqdm.auto import tqdm

        steps = tqdm(files, desc="Images")
    # Scaled one by one: as bytes and as numbers at once, a large folder may not fit.
    for i, file in enumerate(steps):
        image = _read_square(file, size, crop)
        images[i] = to_unit_interval(image) if scale else image
    return ImageFolder(images, tuple(file.name for file in files))


def _image_files(path: Path) -> list[Path]:
    """Files of a folder that are named as images, in order.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If it is a file, or holds no image.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a folder of images.")
    if not path.is_dir():
        raise ValueError(f"{path} is a file; expected a folder of images.")
    # Hidden files, as some systems leave beside images, are none.
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in _SUFFIXES
        and not file.name.startswith(".")
        and file.is_file()
    )
    if not files:
        raise ValueError(
            f"{path} holds no image: no file name ends in {', '.join(_SUFFIXES)}."
        )
    return files


def _read_square(file: Path, size: int, crop: int | None) -> np.ndarray:
    """Read the square in the middle of an image, shape ``(size, size, 3)``, uint8.

    Raises
    ------
    ValueError
        If it cannot be read or is too small.
    """
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
            f"{file} must have eight bits a colour, got an image of mode {image.mode}."
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
