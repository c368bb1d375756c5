"""One file of named arrays and a header, without code: the format of all saved files.

The file is an ``.npz`` archive: each array under its name, and a header in JSON. Its
last line is the SHA-256 of all bytes before it.
"""

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
from typing import Any, BinaryIO

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from numpyro_kaem._version import __version__

__all__ = [
    "DamagedFileError",
    "StoredArrays",
    "describe_array",
    "is_array",
    "is_key",
    "read_arrays",
    "to_stored",
    "write_arrays",
]

# Readers refuse a newer one.
FORMAT_VERSION = 1
_HEADER = "header"
# The checksum is the comment of the archive, at its very end.
_CHECKSUM_SIZE = 64
_CHUNK = 1 << 20
# A file that is being written: where its process runs, its number, and a random name.
_TEMPORARY = re.compile(r"\.numpyro_kaem-([0-9a-f]{16})-(\d+)-[0-9a-f]{16}\.tmp")
_MAX_SECONDS_OF_WRITING = 24 * 3600


class DamagedFileError(ValueError):
    """A file that is not complete, or not as it was written."""


# --- writing -------------------------------------------------------------------------


def write_arrays(
    path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays and a header to a file that appears only when it is complete."""
    # Under a unique name, flushed to disk and renamed, so that any number of threads,
    # processes and hosts may write and read one path.
    versions = {
        "numpyro_kaem": __version__,
        "numpyro": numpyro.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "equinox": eqx.__version__,
    }
    text = json.dumps({"format": FORMAT_VERSION, "versions": versions, **header})
    # Of a symbolic link the file to which it leads.
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


def _checksum(file: BinaryIO) -> bytes:
    """SHA-256, as text, of all bytes but those of the checksum."""
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
    """Name of where process numbers are unique: a container on a running host.

    Containers may share the name of their host, and hosts a folder.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


# --- reading -------------------------------------------------------------------------


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read header and arrays of a file, if every byte is as it was written."""
    # Nothing in the file is executed, and no array made that is larger than the file.
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
    return header, arrays


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by name, none of which may be compressed or larger than the file."""
    entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise ValueError("two arrays have one name")
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
        raise ValueError("its arrays are compressed")
    if sum(e.file_size for e in entries.values()) > size:
        raise ValueError("its arrays are larger than the file")
    return entries


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Array of an entry: of numbers or text, and of the size that it says."""
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
    """Header from its text, unless its format is newer."""
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
    """Make a dictionary, in which no name may occur twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two entries have one name")
    return found


# --- from arrays of JAX and NumPy to what is stored, and back ------------------------


def is_array(value: Any) -> bool:
    """Whether a value is an array or a scalar of JAX or NumPy."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys of the new kind."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def to_stored(name: str, leaf: Any) -> np.ndarray:
    """Array as it is stored, with a data type that NumPy has itself."""
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f"the leaf {name} must be concrete, got a traced array; write files "
            "outside of jit."
        )
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    # Formats such as bfloat16, as their bits.
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.itemsize}")


def describe_array(name: str, leaf: Any) -> dict[str, Any]:
    """Describe an array of JAX or NumPy, its shape alone, a random key, or a number."""
    container = "jax"
    if isinstance(leaf, np.ndarray | np.generic | bool | int | float | complex):
        container = "array" if isinstance(leaf, np.ndarray) else "scalar"
        leaf = np.asarray(leaf)
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    numeric = is_key(leaf) or getattr(dtype, "kind", "O") not in "OSUMm"
    if shape is None or not numeric:
        raise TypeError(
            f"the leaf {name} must be an array of numbers or a random key, got "
            f"{leaf!r} of type {type(leaf).__name__}; filter modules first, as in "
            "equinox.filter(module, equinox.is_array)."
        )
    description = {"dtype": str(dtype), "shape": list(shape), "container": container}
    if not is_key(leaf):
        return {**description, "weak_type": bool(getattr(leaf, "weak_type", False))}
    if isinstance(leaf, jax.Array):
        description["key"] = str(jax.random.key_impl(leaf))
    return description


class StoredArrays:
    """Arrays of a file by name, each of which can be taken once.

    Real JAX arrays come in ``dtype``; with None in their own, or the widest that is
    enabled.
    """

    def __init__(
        self, descriptions: Any, arrays: Mapping[str, np.ndarray], dtype: Any = None
    ) -> None:
        if not isinstance(descriptions, dict) or descriptions.keys() != arrays.keys():
            raise ValueError("its arrays are not those of its header")
        self._descriptions, self._dtype = descriptions, dtype
        self.left = dict(arrays)
        # Number of arrays that lost digits although no dtype was asked for.
        self.num_rounded = 0

    def take(self, name: Any) -> Any:
        """Array of a name, if it is as described."""
        if type(name) is not str or name not in self.left:
            raise ValueError(f"expected the name of an array, got {name!r}")
        description, array = self._descriptions[name], self.left.pop(name)
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
            return _as_weak(value) if description["weak_type"] is True else value
        if container not in ("array", "scalar"):
            raise ValueError(f"expected an array, got {container!r}")
        return array if container == "array" else array[()]

    def _converted(self, array: np.ndarray) -> np.ndarray:
        """Array in a format that is enabled, rounded to nearest."""
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


def _as_weak(array: jax.Array) -> jax.Array:
    """Give an array the weak type that a Python number has.

    Counters such as ``jnp.array(0)`` have it. With a strong type functions would be
    compiled again, and what a counter is combined with could be promoted.
    """
    zero = jnp.asarray(np.zeros((), array.dtype).item())
    weak = jax.lax.full_like(zero, 0, shape=array.shape).at[...].set(array)
    return weak if weak.dtype == array.dtype else array
