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


@pytest.mark.parametrize("compress", [False, True])
def test_reads(path, file, compress):
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


def test_one_image_without_its_last_axis(path, file):
    savemat(path, {"X": file["X"][..., 0], "y": 10.0})
    data = read_svhn(path, scale=False)
    assert_array_equal(data.images, file["X"][None, ..., 0])
    assert_array_equal(data.labels, [0])


def test_truncated(path, file):
    savemat(path, file, do_compression=True)
    content = path.read_bytes()
    for stop in [0, 3, 60, 127]:
        path.write_bytes(content[:stop])
        with pytest.raises(
            ValueError, match=r"train_32x32\.mat cannot be read as a MA"
        ):
            read_svhn(path)
    for stop in [136, 200, len(content) // 2]:
        path.write_bytes(content[:stop])
        # X comes first; its length is in the file.
        message = rf"expected at least {136 + struct.unpack('<I', content[132:136])[0]}"
        with pytest.raises(ValueError, match=rf"{message} bytes, found {stop}\."):
            read_svhn(path)
    path.write_bytes(content[:-1])
    message = f"expected at least {len(content)} bytes, found {len(content) - 1}"
    with pytest.raises(ValueError, match=message):
        read_svhn(path)


def test_truncated_in_big_endian_order(path):
    # SciPy writes little-endian files only: the header, and the start of a variable.
    header = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"
    path.write_bytes(header + struct.pack(">II", 14, 1000) + bytes(64))
    with pytest.raises(ValueError, match="expected at least 1136 bytes, found 200"):
        read_svhn(path)


def test_nothing_but_the_header(path, file):
    savemat(path, file)
    path.write_bytes(path.read_bytes()[:128])
    with pytest.raises(ValueError, match="misses X; found none"):
        read_svhn(path)


def test_labels_are_cut_off(path, file):
    savemat(path, {"X": file["X"]})
    with pytest.raises(ValueError, match="X and y, and misses y; found X"):
        read_svhn(path)


def test_damaged(path, file):
    savemat(path, file, do_compression=True)
    content = bytearray(path.read_bytes())
    content[500:520] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_svhn(path)


@pytest.mark.parametrize("content", [b"not a MATLAB file at all" * 20, bytes(4000)])
def test_other_files(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a MATLAB file of SVHN"):
        read_svhn(path)


def test_version_7_3(path):
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    path.write_bytes(header + bytes(600))
    with pytest.raises(ValueError, match=r"version 7\.3"):
        read_svhn(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((28, 28, 3, 3), np.uint8)}, r"found shape \(28, 28, 3, 3\)"),
        ({"X": np.zeros((3, 32, 32, 3), np.uint8)}, r"found shape \(3, 32, 32, 3\)"),
        ({"X": "text"}, r"images X of shape"),
        ({"X": np.zeros((32, 32, 3, 3))}, "images X of uint8, found float64"),
        ({"y": [[1], [2]]}, "found 2 labels y for 3 images X"),
        ({"y": [[1], [2], [11]]}, "from 1 to 10, found 11 at image 2"),
        ({"y": [[1], [0], [2]]}, "from 1 to 10, found 0 at image 1"),
        ({"y": [[1.5], [1], [2]]}, r"from 1 to 10, found 1\.5 at image 0"),
    ],
)
def test_contents(path, file, change, message):
    savemat(path, {**file, **change})
    with pytest.raises(ValueError, match=message):
        read_svhn(path)


def test_no_variables(path):
    savemat(path, {"images": 1, "other": 2})
    with pytest.raises(ValueError, match="misses X; found images, other"):
        read_svhn(path)
    savemat(path, {})
    with pytest.raises(ValueError, match="misses X; found none"):
        read_svhn(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .* SVHN"):
        read_svhn(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a folder; expected a MATLAB file"):
        read_svhn(tmp_path)
