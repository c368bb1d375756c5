"""IDX files, written here by struct."""

import gzip
import struct

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numpyro_kaem.datasets import read_idx

TYPES = {
    "uint8": (0x08, "B", [0, 1, 127, 128, 200, 255]),
    "int8": (0x09, "b", [0, 1, -1, 127, -128, 5]),
    "int16": (0x0B, "h", [0, 1, -2, 300, -32768, 32767]),
    "int32": (0x0C, "i", [0, 1, -2, 70_000, -(2**31), 2**31 - 1]),
    "float32": (0x0D, "f", [0.0, 0.5, -1.25, 1e30, -3.0, 7.0]),
    "float64": (0x0E, "d", [0.0, 0.1, -1.25, 1e300, -3.0, 7.0]),
}


def idx(code, letter, shape, values):
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)
    return header + struct.pack(f">{len(values)}{letter}", *values)


IMAGES = idx(0x08, "B", (2, 2, 3), [0, 51, 102, 255, 5, 6, 7, 8, 9, 10, 11, 12])


@pytest.fixture
def write(tmp_path):
    def write(content, name="file-idx3-ubyte"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_reads(write):
    for name, (code, letter, values) in TYPES.items():
        for shape in [(6,), (2, 3), (3, 1, 2)]:
            path = write(idx(code, letter, shape, values))
            array = read_idx(path, scale=False)
            assert array.dtype == np.dtype(name)
            assert array.dtype.isnative
            assert array.flags.writeable
            assert_array_equal(array, np.array(values, name).reshape(shape))
    # Images are scaled, and labels and numbers are not.
    images = read_idx(write(IMAGES))
    assert images.dtype == np.float32
    assert images.shape == (2, 2, 3)
    assert_array_equal(images[0], np.float32([[0, 0.2, 0.4], [1, 5 / 255, 6 / 255]]))
    assert_array_equal(read_idx(write(IMAGES), scale=False)[0, 0], [0, 51, 102])
    assert read_idx(write(idx(0x08, "B", (0, 2, 3), []))).shape == (0, 2, 3)
    labels = read_idx(write(idx(0x08, "B", (3,), [9, 0, 4])))
    assert labels.dtype == np.uint8
    assert_array_equal(labels, [9, 0, 4])
    numbers = read_idx(write(idx(0x0C, "i", (1, 1, 2), [300, -1])))
    assert_array_equal(numbers, [[[300, -1]]])
    # Compressed, whatever the name.
    for name in ("images.gz", "images"):
        path = write(gzip.compress(IMAGES), name)
        assert_array_equal(read_idx(path), images)
        assert_array_equal(read_idx(str(path)), images)


def test_errors(write, tmp_path):
    # Every truncation is found.
    for stop in range(len(IMAGES)):
        with pytest.raises(ValueError, match=r"is truncated|is not an IDX file"):
            read_idx(write(IMAGES[:stop]))
    packed = gzip.compress(IMAGES)
    for stop in range(2, len(packed)):
        with pytest.raises(ValueError, match=r"idx3-ubyte (is truncated|has damaged)"):
            read_idx(write(packed[:stop]))
    for content, message in [
        (b"", "file-idx3-ubyte is not an IDX file: .* got nothing"),
        (b"\x89PNG\r\n", "is not an IDX file: .* got 89 50 4e 47"),
        (b"\0\0\x0a\1" + bytes(8), "one of 08, 09, 0b, 0c, 0d, 0e, .* got 00 00 0a 01"),
        (b"\0\0\x08\3" + bytes(5), "expected 16 bytes of header for 3 axes, found 9"),
        (
            IMAGES[:-4],
            r"truncated: expected 28 bytes for shape \(2, 2, 3\) .* found 24",
        ),
        (IMAGES + b"\0", "is too long: expected 28 bytes .* found 29"),
        (
            b"\0\0\x0e\3" + 12 * b"\xff",
            r"truncated: expected \d{30} bytes .* float64, found 16",
        ),
        (gzip.compress(IMAGES)[:-9], "is truncated: its gzip data end after"),
        (gzip.compress(IMAGES)[:-8] + bytes(8), "has damaged gzip data: CRC check"),
        (b"\x1f\x8b\x08\0" + bytes(6) + b"\xff" * 9, "has damaged gzip data: "),
        (gzip.compress(b"\1" + IMAGES), "is not an IDX file"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_idx(write(content))
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .* IDX file"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a folder; expected an IDX file"):
        read_idx(tmp_path)
