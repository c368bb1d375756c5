"""SVHN files, written here by SciPy."""

import struct

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.io import savemat

from numpyro_kaem.datasets import read_svhn

NUM_IMAGES = 3


@pytest.fixture
def file():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 32, 3, NUM_IMAGES), np.uint8)
    return {"X": images, "y": np.array([[1], [10], [9]], np.uint8)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train_32x32.mat"


def test_reads(path, file):
    for compress in (False, True):
        savemat(path, file, do_compression=compress)
        data = read_svhn(path, scale=False)
        assert data.images.shape == (NUM_IMAGES, 32, 32, 3)
        assert data.images.dtype == np.uint8
        assert data.images.flags.c_contiguous
        for i in range(NUM_IMAGES):
            assert_array_equal(data.images[i], file["X"][:, :, :, i])
        assert_array_equal(data.labels, [1, 0, 9])
        assert data.labels.dtype == np.int32
        scaled = read_svhn(str(path)).images
        assert scaled.dtype == np.float32
        assert_array_equal(scaled, (data.images / 255).astype(np.float32))
    # One image, without its last axis.
    savemat(path, {"X": file["X"][..., 0], "y": 10.0})
    data = read_svhn(path, scale=False)
    assert_array_equal(data.images, file["X"][None, ..., 0])
    assert_array_equal(data.labels, [0])


def assert_refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_svhn(path)


def test_truncated_and_other_files(path, file):
    """By what the header of the file and of its first variable say of the length."""
    savemat(path, file, do_compression=True)
    content = path.read_bytes()
    for stop in [0, 3, 60, 127]:
        message = r"train_32x32\.mat cannot be read as a MA"
        assert_refused(path, content[:stop], message)
    for stop in [136, 200, len(content) // 2]:
        # X comes first; its length is in the file.
        size = 136 + struct.unpack("<I", content[132:136])[0]
        message = rf"expected at least {size} bytes, found {stop}\."
        assert_refused(path, content[:stop], message)
    message = f"expected at least {len(content)} bytes, found {len(content) - 1}"
    assert_refused(path, content[:-1], message)
    # SciPy writes little-endian files only: the header, and the start of a variable.
    header = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"
    content = header + struct.pack(">II", 14, 1000) + bytes(64)
    assert_refused(path, content, "expected at least 1136 bytes, found 200")
    # Damaged, and other files.
    savemat(path, file, do_compression=True)
    content = bytearray(path.read_bytes())
    content[500:520] = bytes(20)
    assert_refused(path, content, "truncated or damaged")
    for other in (b"not a MATLAB file at all" * 20, bytes(4000)):
        assert_refused(path, other, "cannot be read as a MATLAB file of SVHN")
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    assert_refused(path, header + bytes(600), r"version 7\.3")
    folder = path.parent
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .* SVHN"):
        read_svhn(folder / "nowhere")
    with pytest.raises(ValueError, match="is a folder; expected a MATLAB file"):
        read_svhn(folder)


def test_missing_and_wrong_variables(path, file):
    for change, message in [
        ({"X": np.zeros((28, 28, 3, 3), np.uint8)}, r"found shape \(28, 28, 3, 3\)"),
        ({"X": np.zeros((3, 32, 32, 3), np.uint8)}, r"found shape \(3, 32, 32, 3\)"),
        ({"X": "text"}, r"images X of shape"),
        ({"X": np.zeros((32, 32, 3, 3))}, "images X of uint8, found float64"),
        ({"y": [[1], [2]]}, "found 2 labels y for 3 images X"),
        ({"y": [[1], [2], [11]]}, "from 1 to 10, found 11 at image 2"),
        ({"y": [[1], [0], [2]]}, "from 1 to 10, found 0 at image 1"),
        ({"y": [[1.5], [1], [2]]}, r"from 1 to 10, found 1\.5 at image 0"),
    ]:
        savemat(path, {**file, **change})
        assert_refused(path, path.read_bytes(), message)
    for variables, message in [
        ({"images": 1, "other": 2}, "misses X; found images, other"),
        ({}, "misses X; found none"),
        ({"X": file["X"]}, "X and y, and misses y; found X"),
    ]:
        savemat(path, variables)
        assert_refused(path, path.read_bytes(), message)
    # Nothing but the header.
    assert_refused(path, path.read_bytes()[:128], "misses X; found none")
