"""Folders of images, written here by Pillow."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from numpyro_kaem.datasets import read_image_folder


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(array, path, **options):
    Image.fromarray(array).save(path, **options)


def test_order_and_values(tmp_path, capsys):
    arrays = {
        name: pixels(6, 6, i) for i, name in enumerate(["b.png", "a.bmp", "c.PNG"])
    }
    for name, array in arrays.items():
        save(array, tmp_path / name)
    # What is no image is passed over.
    (tmp_path / "list.txt").write_text("image.png")
    (tmp_path / ".image.png").write_bytes(b"left by a system")
    (tmp_path / "folder.png").mkdir()
    data = read_image_folder(tmp_path, 6, scale=False)
    assert data.names == ("a.bmp", "b.png", "c.PNG")
    assert data.images.dtype == np.uint8
    for name, image in zip(data.names, data.images, strict=True):
        assert_array_equal(image, arrays[name])
    scaled = read_image_folder(str(tmp_path), 6)
    assert scaled.images.dtype == np.float32
    assert_array_equal(scaled.images, (data.images / 255).astype(np.float32))
    first = read_image_folder(tmp_path, 6, limit=2)
    assert first.names == data.names[:2]
    assert_array_equal(first.images, scaled.images[:2])
    assert len(read_image_folder(tmp_path, 6, limit=9).names) == 3
    read_image_folder(tmp_path, 6, limit=1, progress_bar=True)
    assert "1/1" in capsys.readouterr().err


def test_folders_of_classes(tmp_path):
    arrays = {}
    for name in ["b/2.png", "a/x/1.png", "b/10.png", "a/0.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        arrays[name] = pixels(4, 4, len(arrays))
        save(arrays[name], tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    save(pixels(4, 4), tmp_path / ".hidden" / "1.png")
    data = read_image_folder(tmp_path, 4, scale=False)
    assert data.names == ("a/0.png", "a/x/1.png", "b/10.png", "b/2.png")
    assert data.classes == ("a", "b")
    assert_array_equal(data.labels, [0, 0, 1, 1])
    assert_array_equal(data.images, [arrays[name] for name in data.names])
    # As many of each class.
    assert_array_equal(read_image_folder(tmp_path, 4, limit=1).labels, [0, 1])
    # A folder of images has no classes, whatever is in folders within.
    save(pixels(4, 4), tmp_path / "0.png")
    data = read_image_folder(tmp_path, 4)
    assert (data.names, data.labels, data.classes) == (("0.png",), None, ())


def test_cuts_out_the_middle_and_resizes_with_smoothing(tmp_path):
    for i, (shape, crop, part) in enumerate(
        [
            ((10, 6), None, np.s_[2:8, :]),
            ((6, 10), None, np.s_[:, 2:8]),
            ((11, 10), 6, np.s_[2:8, 2:8]),
        ]
    ):
        array, folder = pixels(*shape), tmp_path / str(i)
        folder.mkdir()
        save(array, folder / "image.png")
        data = read_image_folder(folder, 6, crop=crop, scale=False)
        assert_array_equal(data.images[0], array[part])
    # A fine chequerboard becomes grey: without smoothing it would stay black or white.
    board = 255 * (np.indices((64, 64)).sum(axis=0) % 2).astype(np.uint8)
    save(np.repeat(board[..., None], 3, axis=2), tmp_path / "board.png")
    small = read_image_folder(tmp_path, 8).images[0]
    assert np.all(np.abs(small - 0.5) < 0.03)
    # A slope stays one.
    slope = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, axis=0)
    save(np.repeat(slope, 3, axis=2), tmp_path / "slope.png")
    small = read_image_folder(tmp_path, 16, scale=False).images[1]
    expected = np.arange(0, 256, 4).reshape(16, 4).mean(axis=1)
    assert np.all(np.abs(small[5, 1:-1, 0] - expected[1:-1]) <= 1)
    assert read_image_folder(tmp_path, 100).images.shape == (2, 100, 100, 3)


def test_all_kinds_become_three_colours(tmp_path):
    for mode in ("L", "1", "P", "RGBA", "LA", "CMYK"):
        suffix = "tif" if mode == "CMYK" else "png"
        image = Image.fromarray(pixels(8, 8)).convert(mode)
        image.save(tmp_path / f"image.{suffix}")
        # The last one, if there is also a PNG.
        found = read_image_folder(tmp_path, 8, scale=False).images[-1]
        assert_array_equal(found, np.asarray(image.convert("RGB")))
    # Transparency is dropped.
    image = Image.fromarray(pixels(8, 8)).quantize(16)
    image.save(tmp_path / "image.png", transparency=bytes(range(16)))
    found = read_image_folder(tmp_path, 8, scale=False).images[0]
    assert_array_equal(found, np.asarray(image.convert("RGB")))
    # Photographs are turned upright.
    array, exif = pixels(4, 4), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(array).save(tmp_path / "image.png", exif=exif)
    found = read_image_folder(tmp_path, 4, scale=False).images[0]
    assert_array_equal(found, np.rot90(array, -1))
    slope = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[:, None], 32, axis=1)
    save(np.stack([slope, slope.T, 0 * slope], axis=2), tmp_path / "a.jpg", quality=95)
    image = read_image_folder(tmp_path, 32, scale=False).images[0].astype(int)
    assert np.abs(image[..., 0] - slope).mean() < 4
    assert np.abs(image[..., 1] - slope.T).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp"])
def test_truncated_images_are_named(tmp_path, suffix):
    save(pixels(32, 32), tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    for stop in (0, 5, 20, len(content) // 2):
        (tmp_path / f"b.{suffix}").write_bytes(content[:stop])
        with pytest.raises(
            ValueError, match=rf"b\.{suffix} cannot be read as an image"
        ):
            read_image_folder(tmp_path, 4)


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .* a folder"):
        read_image_folder(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"holds no image, .* no file name ends in \.bmp"
    ):
        read_image_folder(tmp_path)
    path = tmp_path / "image.png"
    save(pixels(9, 6), path)
    with pytest.raises(ValueError, match="is a file; expected a folder of images"):
        read_image_folder(path)
    for arguments, error, message in [
        (dict(size=0), ValueError, "size must be a positive integer, got 0"),
        (dict(size=(8, 8)), TypeError, "size must be a positive integer"),
        (dict(crop=0), ValueError, "crop must be a positive integer, got 0"),
        (dict(limit=0), ValueError, "limit must be a positive integer, got 0"),
        (dict(crop=7), ValueError, r"image\.png must be at least crop=7 .* got 6×9"),
    ]:
        with pytest.raises(error, match=message):
            read_image_folder(tmp_path, **arguments)
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"image\.png cannot be read as an image"):
        read_image_folder(tmp_path)
    save(pixels(32, 32), path)
    content = bytearray(path.read_bytes())
    content[200:230] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"image\.png cannot be read .* damaged"):
        read_image_folder(tmp_path)
    save(np.full((8, 8), 40_000, np.uint16), path)
    with pytest.raises(ValueError, match=r"image\.png must have eight bits per colour"):
        read_image_folder(tmp_path)
