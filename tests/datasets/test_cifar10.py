"""CIFAR-10 files, written here byte by byte."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numpyro_kaem.datasets import read_cifar10


def value(label, row, column, colour):
    return (7 * label + 3 * row + 11 * column + 101 * colour) % 256


def record(label):
    planes = [
        value(label, row, column, colour)
        for colour in range(3)
        for row in range(32)
        for column in range(32)
    ]
    return bytes([label, *planes])


@pytest.fixture
def write(tmp_path):
    def write(content, name="data_batch_1.bin"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_reads_files_in_the_order_given(write):
    path = write(record(4) + record(9))
    data = read_cifar10(path, scale=False)
    assert data.images.shape == (2, 32, 32, 3)
    assert data.images.dtype == np.uint8
    assert data.images.flags.c_contiguous
    assert data.labels.dtype == np.int32
    assert_array_equal(data.labels, [4, 9])
    for i, label in enumerate((4, 9)):
        for place in [(0, 0, 0), (0, 31, 1), (31, 0, 2), (5, 17, 0), (31, 31, 2)]:
            assert data.images[i][place] == value(label, *place)
    scaled = read_cifar10(str(path)).images
    assert scaled.dtype == np.float32
    assert_array_equal(scaled, (data.images / 255).astype(np.float32))
    first, second = write(record(1) + record(2), "b"), write(record(3), "a")
    assert_array_equal(read_cifar10([first, str(second)]).labels, [1, 2, 3])
    assert_array_equal(read_cifar10((second, first)).labels, [3, 1, 2])


def test_errors(write, tmp_path):
    for content, message in [
        (b"", "data_batch_1.bin must consist of records of 3073 bytes, found 0"),
        (record(1)[:-1], "found 3072 bytes: 0 records and 3072 bytes"),
        (record(1) + record(2)[:9], "found 3082 bytes: 1 records and 9 bytes"),
        (b"\5" + record(1), "found 3074 bytes: 1 records and 1 bytes"),
        (record(1) + record(10), "labels from 0 to 9, found 10 in record 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_cifar10(write(content))
    good, bad = write(record(1), "good"), write(record(1)[:7], "bad")
    with pytest.raises(ValueError, match="bad must consist"):
        read_cifar10([good, bad])
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .* CIFAR-10"):
        read_cifar10(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a folder; expected a binary file"):
        read_cifar10(tmp_path)
    with pytest.raises(ValueError, match="at least one file of CIFAR-10, got none"):
        read_cifar10([])
