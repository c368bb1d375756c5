"""Grids of images and fields."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import numpyro_kaem as kaem


def images(count, height=3, width=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, height, width))


def test_images_are_drawn_row_after_row():
    samples = images(5)
    ax = kaem.plot_samples(samples, num_columns=2, num_rows=2)
    picture = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert picture.shape == (7, 9)
    np.testing.assert_array_equal(picture[:3, :4], samples[0])
    np.testing.assert_array_equal(picture[:3, 5:], samples[1])
    np.testing.assert_array_equal(picture[4:, 5:], samples[3])
    assert np.all(np.isnan(picture[3]))
    assert np.all(np.isnan(picture[:, 4]))
    # An axis of one channel makes no difference.
    ax = kaem.plot_samples(samples[..., None], num_columns=2, num_rows=2)
    np.testing.assert_array_equal(
        np.ma.filled(ax.images[0].get_array(), np.nan), picture
    )
    # Colours are kept.
    samples = np.random.default_rng(0).uniform(size=(2, 3, 3, 3))
    ax = kaem.plot_samples(samples, num_columns=2)
    np.testing.assert_allclose(ax.images[0].get_array()[:, 4:], samples[1])


def test_real_beside_generated_on_one_scale():
    samples, real = images(3), 5 * images(3, seed=1)
    axes = kaem.plot_samples(samples, real=real, num_columns=3, colorbar=True)
    assert [ax.get_title() for ax in axes] == ["real", "generated"]
    limits = [ax.images[0].get_clim() for ax in axes]
    assert limits[0] == limits[1] == (real.min(), real.max())
    np.testing.assert_array_equal(axes[0].images[0].get_array()[:3, :4], real[0])
    # The colour bar has axes of its own.
    assert len(axes[0].figure.axes) == 3


def test_bad_input_is_refused():
    for samples, options, match in [
        (np.zeros((2, 3)), {}, "samples must hold images"),
        (np.zeros((2, 3, 3, 2)), {}, "samples must hold images"),
        (np.zeros((0, 3, 3)), {}, "samples must hold images"),
        (np.full((1, 2, 2), np.nan), {}, "samples must be finite"),
        (images(2), {"real": images(2, 5)}, "real must hold images of the shape"),
        (images(2), {"num_columns": 0}, "num_columns must be"),
        (
            images(1),
            {"real": images(1), "ax": plt.subplots()[1]},
            "ax must hold 2 axes, got 1",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            kaem.plot_samples(samples, **options)
