"""IDX files, the format of MNIST."""

import math
from os import PathLike

import numpy as np

from numpyro_kaem.datasets._checks import existing_file
from numpyro_kaem.datasets.images import to_unit_interval

__all__ = ["read_idx"]

# Third byte of the file; numbers are stored with the highest byte first.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_EXPECTED = "an IDX file"


def read_idx(path: str | PathLike, *, scale: bool = True) -> np.ndarray:
    """Read an IDX file, such as those of MNIST, compressed by gzip or not.

    Parameters
    ----------
    path
        Path of the file. It is found to be compressed by what it holds, not by its
        name.
    scale
        Whether to scale images to [0, 1]. Images are unsigned bytes of three axes or
        more. All else, such as labels, is left as stored.

    Returns
    -------
    numpy.ndarray
        The array that the file holds: float32 in [0, 1] for images that are scaled,
        else of the stored type, in the byte order of this machine.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is a folder, not an IDX file, damaged, or shorter or longer than it says
        that it is.

    References
    ----------
    LeCun, Cortes and Burges (1998), "The MNIST database of handwritten digits", with
    the format at the end.

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
    path = existing_file(path, _EXPECTED)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = _decompressed(content, path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        codes = ", ".join(f"{code:02x}" for code in _DTYPES)
        raise ValueError(
            f"{path} is not {_EXPECTED}: its first four bytes must be 00 00, one of "
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
        return to_unit_interval(array)
    return array.astype(dtype.newbyteorder("="))


def _decompressed(content: bytes, path: PathLike) -> bytes:
    """Contents of a gzip file.

    Raises
    ------
    ValueError
        If it is truncated or damaged.
    """
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
