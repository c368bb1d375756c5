"""The container of saved arrays: one file without code."""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import secrets
import socket
import stat
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from numpyro_kaem._version import __version__

__all__ = [
    "FORMAT_VERSION",
    "ArrayFile",
    "DamagedFileError",
    "LoadedArrays",
    "as_weak",
    "describe_array",
    "describe_for_file",
    "is_array",
    "is_key",
    "read_arrays",
    "to_stored",
    "write_arrays",
]

FORMAT_VERSION = 1
"""Version of the layout of the file; readers refuse a newer one."""

_HEADER = "header"
# The checksum of all bytes before it is the comment of the archive, at its very end.
_CHECKSUM_SIZE = 64
_CHUNK = 1 << 20
# A file that is being written: where its process runs, its number, and a random name.
_TEMPORARY = re.compile(r"\.numpyro_kaem-([0-9a-f]{16})-(\d+)-[0-9a-f]{16}\.tmp")
_MAX_SECONDS_OF_WRITING = 24 * 3600


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
    It is written under a name of its own, flushed to the disk and renamed, so that any
    number of threads, processes and hosts may write and read one path. The SHA-256 of
    all its bytes is its last line. What writers that were killed have left in the
    folder is removed.

    Parameters
    ----------
    path
        Where to write; an existing file is replaced and keeps its permissions, and of
        a symbolic link the file it leads to.
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
    >>> from numpyro_kaem.files.container import read_arrays, write_arrays
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
    target = Path(os.path.realpath(path))
    writer = f"{_place()}-{os.getpid()}-{secrets.token_hex(8)}"
    temporary = target.with_name(f".numpyro_kaem-{writer}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(target.parent)
        # With the permissions of any new file, which tempfile would not give.
        with temporary.open("x+b") as file:
            with contextlib.suppress(OSError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
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
        os.replace(temporary, target)
        _flush_folder(target.parent)
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


def _remove_left_over(folder: Path) -> None:
    """Remove the temporary files of writers that have ended, and of no others."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            # Another writer may have renamed or removed it since.
            with contextlib.suppress(OSError):
                if match and _has_ended(entry, match[1], int(match[2])):
                    os.unlink(entry.path)


def _has_ended(entry: os.DirEntry[str], place: str, process: int) -> bool:
    """Whether the writer of a temporary file is known not to run any more."""
    if time.time() - entry.stat().st_mtime > _MAX_SECONDS_OF_WRITING:
        return True
    # Elsewhere the number belongs to another process, and on Windows asking for it is
    # to interrupt it.
    if place != _place() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def _place() -> str:
    """Name of where the numbers of processes are unique: a container on a running host.

    Containers may share the name of their host, and hosts a folder.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys of the new kind."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def to_stored(name: str, leaf: Any) -> np.ndarray:
    """Array as it is stored, with a data type that NumPy knows by itself.

    Raises
    ------
    TypeError
        If the leaf is traced.
    """
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f"the leaf {name} must be concrete, got a traced array; write files "
            "outside of jit."
        )
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    # Formats such as bfloat16, as their bits.
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.itemsize}")


def describe_array(name: str, leaf: Any) -> dict[str, Any]:
    """Describe an array by data type and shape, and a key by its implementation.

    Raises
    ------
    TypeError
        If the leaf is not an array.
    """
    if isinstance(leaf, bool | int | float | complex):
        leaf = np.asarray(leaf)
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    numeric = is_key(leaf) or getattr(dtype, "kind", "O") not in "OSUMm"
    if shape is None or not numeric:
        raise TypeError(
            f"the leaf {name} must be an array of numbers or a random key, got "
            f"{leaf!r} of type {type(leaf).__name__}; filter modules first, as in "
            "equinox.filter(module, equinox.is_array)."
        )
    description = {"dtype": str(dtype), "shape": list(shape)}
    if not is_key(leaf):
        description["weak_type"] = bool(getattr(leaf, "weak_type", False))
    elif isinstance(leaf, jax.Array):
        description["key"] = str(jax.random.key_impl(leaf))
    return description


def as_weak(array: jax.Array) -> jax.Array:
    """Give an array the weak type that a Python number has.

    Counters such as ``jnp.array(0)`` have it. With a strong type a function would be
    compiled anew, and what a counter is combined with could be promoted.
    """
    zero = jnp.asarray(np.zeros((), array.dtype).item())
    weak = jax.lax.full_like(zero, 0, shape=array.shape).at[...].set(array)
    return weak if weak.dtype == array.dtype else array


def is_array(value: Any) -> bool:
    """Whether a value is an array or a scalar of JAX or NumPy."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def describe_for_file(name: str, array: Any) -> dict[str, Any]:
    """Describe an array as :func:`describe_array` does, and whose it is."""
    if isinstance(array, jax.Array):
        container = "jax"
    else:
        container = "array" if isinstance(array, np.ndarray) else "scalar"
    return {**describe_array(name, array), "container": container}


class LoadedArrays:
    """Arrays of a file, each of which is taken once.

    Parameters
    ----------
    descriptions
        Description of each array by name, as in the header.
    arrays
        Arrays by name, as stored.
    dtype
        Floating-point format of all real JAX arrays; ``None`` keeps their own, or the
        widest that is enabled.

    Raises
    ------
    ValueError
        If some have no description, or descriptions no array.
    """

    def __init__(
        self, descriptions: Any, arrays: Mapping[str, np.ndarray], dtype: Any
    ) -> None:
        if not isinstance(descriptions, dict) or descriptions.keys() != arrays.keys():
            raise ValueError("its arrays are not those of its header")
        self._descriptions, self._left = descriptions, dict(arrays)
        self._dtype = dtype
        self.num_rounded = 0
        """Number of arrays that lost digits without being asked to."""

    def take(self, name: Any) -> Any:
        """Array of a name.

        Raises
        ------
        ValueError
            If there is none, it was taken, or it is not as described.
        """
        if type(name) is not str or name not in self._left:
            raise ValueError(f"expected the name of an array, got {name!r}")
        description, array = self._descriptions[name], self._left.pop(name)
        container, shape = description["container"], tuple(description["shape"])
        if "key" in description:
            value = jax.random.wrap_key_data(
                jnp.asarray(array), impl=description["key"]
            )
            if value.shape != shape or str(value.dtype) != description["dtype"]:
                raise ValueError("a random key is not as described")
            return value
        dtype = jnp.dtype(description["dtype"])
        if dtype.isbuiltin != 1 and array.dtype == np.dtype(f"u{dtype.itemsize}"):
            array = array.view(dtype)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"expected {dtype} of shape {shape}, got {array.dtype} of shape "
                f"{array.shape}"
            )
        if dtype.kind in "OSUMm" or dtype.names is not None:
            raise ValueError(f"expected numbers, got {dtype}")
        if container == "jax":
            value = jnp.asarray(self._converted(array))
            return as_weak(value) if description["weak_type"] is True else value
        if container not in ("array", "scalar"):
            raise ValueError(f"expected an array, got {container!r}")
        return array if container == "array" else array[()]

    def check_all_taken(self) -> None:
        """Check that no array is left.

        Raises
        ------
        ValueError
            If one is.
        """
        if self._left:
            raise ValueError(f"{sorted(self._left)} are not used")

    def _converted(self, array: np.ndarray) -> np.ndarray:
        """Array in a format that is enabled, rounded to nearest.

        Raises
        ------
        ValueError
            If a number is too large for it.
        """
        is_real = jnp.issubdtype(array.dtype, jnp.floating)
        wanted = array.dtype
        if is_real and self._dtype is not None:
            wanted = self._dtype
        wanted = jax.dtypes.canonicalize_dtype(wanted)
        if wanted == array.dtype:
            return array
        with np.errstate(over="ignore"):
            converted = array.astype(wanted)
        if is_real or array.dtype.kind == "c":
            lost = np.isfinite(array) & ~np.isfinite(converted)
        else:
            lost = converted != array
        if np.any(lost):
            raise ValueError(
                f"holds numbers that are too large for {wanted}; call "
                "numpyro.enable_x64() first"
            )
        back = converted.astype(array.dtype)
        if self._dtype is None and not np.array_equal(back, array, equal_nan=True):
            self.num_rounded += 1
        return converted
