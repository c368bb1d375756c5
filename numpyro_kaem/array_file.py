"""One file of named arrays and a header: written as a whole, and without pickle."""

import contextlib
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import equinox as eqx
import jax
import numpy as np
import numpyro

from numpyro_kaem._version import __version__

__all__ = [
    "FORMAT_VERSION",
    "TEMPORARY_SUFFIX",
    "ArrayFile",
    "DamagedFileError",
    "read_arrays",
    "write_arrays",
]

FORMAT_VERSION = 1
"""Version of the layout of the file; readers refuse a newer one."""
TEMPORARY_SUFFIX = ".tmp"
"""Ending of a file that is being written."""

_HEADER = "header"
# The checksum of all bytes before it is the comment of the archive, at its very end.
_CHECKSUM_SIZE = 64
_CHUNK = 1 << 20


class DamagedFileError(ValueError):
    """A file that is not complete, or not as it was written."""


class ArrayFile(NamedTuple):
    """Contents of a file."""

    header: dict[str, Any]
    """Format, versions of the libraries, and what the writer put there."""
    arrays: dict[str, np.ndarray]
    """Arrays by name."""


def write_arrays(
    path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays and a header to a file that appears only when it is complete.

    The file is an ``.npz`` archive: each array under its name, and the header in JSON.
    It is written under another name, flushed to the disk and renamed. The SHA-256 of
    all its bytes is its last line.

    Parameters
    ----------
    path
        Where to write; an existing file is replaced.
    header
        Anything that JSON can hold, by name; the format and versions are added.
    arrays
        Arrays by name, of data types that NumPy has itself.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from numpyro_kaem.array_file import read_arrays, write_arrays
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "two.npz")
    ...     write_arrays(path, {"seed": 7}, {"loc": np.array([0.5, -1.0])})
    ...     file = read_arrays(path)
    >>> file.header["seed"], file.arrays
    (7, {'loc': array([ 0.5, -1. ])})
    """
    versions = {
        "numpyro_kaem": __version__,
        "numpyro": numpyro.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "equinox": eqx.__version__,
    }
    text = json.dumps({"format": FORMAT_VERSION, "versions": versions, **header})
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in {_HEADER: np.array(text), **arrays}.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
                archive.comment = bytes(_CHECKSUM_SIZE)
            checksum = _checksum(file)
            file.seek(-_CHECKSUM_SIZE, os.SEEK_END)
            file.write(checksum)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        # The number of the error gives the same subclass, such as PermissionError.
        reason = f"cannot write the file, {error.strerror or error}"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        # Still there only if something failed.
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_arrays(path: Path) -> ArrayFile:
    """Read a file and check that every byte of it is as it was written.

    Nothing in the file is executed, and no array is made that is larger than the file.

    Parameters
    ----------
    path
        A file of :func:`write_arrays`.

    Returns
    -------
    ArrayFile
        Its header and arrays.

    Raises
    ------
    DamagedFileError
        If it is truncated or changed, or was not written by :func:`write_arrays`.
    ValueError
        If its format is newer than this version of the package.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            entries = _entries(archive, os.fstat(file.fileno()).st_size)
            text = None
            if _HEADER in entries:
                text = str(_read_entry(archive, entries.pop(_HEADER)))
        # What zipfile and NumPy raise depends on which byte is wrong.
        except Exception as error:
            raise DamagedFileError(f"it cannot be read ({error})") from error
        if text is None:
            raise DamagedFileError("it has no header")
        header = _read_header(path, text)
        if _checksum(file) != archive.comment:
            raise DamagedFileError("its checksum does not match")
        try:
            arrays = {name: _read_entry(archive, e) for name, e in entries.items()}
        except Exception as error:
            raise DamagedFileError(f"it cannot be read ({error})") from error
    return ArrayFile(header, arrays)


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by name.

    Raises
    ------
    ValueError
        If names occur twice, or an entry is larger than the file.
    """
    entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise ValueError("two arrays have one name")
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
        raise ValueError("its arrays are compressed")
    if sum(e.file_size for e in entries.values()) > size:
        raise ValueError("its arrays are larger than the file")
    return entries


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Array of an entry.

    Raises
    ------
    ValueError
        If it is not an array of numbers or text, or has another size than it says.
    """
    # As a whole, so that the checksum of the entry comes before its contents.
    contents = archive.read(entry)
    stream = io.BytesIO(contents)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array has another format than NumPy's 1.0")
    # Before NumPy makes room for it.
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    if math.prod(shape) * dtype.itemsize != len(contents) - stream.tell():
        raise ValueError("an array has another size than it says")
    return np.load(io.BytesIO(contents), allow_pickle=False)


def _read_header(path: Path, text: str) -> dict[str, Any]:
    """Header from its text.

    Raises
    ------
    DamagedFileError
        If it is not a header.
    ValueError
        If its format is newer.
    """
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
        version = header["format"]
        if type(version) is not int or version < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError("its header cannot be read") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"the file {path} has format {version}, and this version of numpyro_kaem "
            f"({__version__}) reads formats up to {FORMAT_VERSION}; it was written by "
            f"the versions {header.get('versions')}."
        )
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary, in which no name may occur twice.

    Raises
    ------
    ValueError
        If one does.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two entries have one name")
    return found


def _checksum(file: BinaryIO) -> bytes:
    """SHA-256 of all bytes but those of the checksum, as text."""
    left = file.seek(0, os.SEEK_END) - _CHECKSUM_SIZE
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest().encode()


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a loss of power, where the system allows it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
