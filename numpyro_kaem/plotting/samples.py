"""Figures of images and fields."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_image", "plot_samples"]


def plot_samples(
    samples: ArrayLike,
    *,
    real: ArrayLike | None = None,
    num_columns: int = 8,
    num_rows: int = 4,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    colorbar: bool = False,
    titles: tuple[str, str] = ("real", "generated"),
    ax: Any = None,
) -> "Axes | np.ndarray":
    """Draw images or fields in a grid, real ones beside generated ones.

    Parameters
    ----------
    samples
        Generated ones, shape ``(num_samples, height, width)``, or with three colours
        from 0 to 1 in a last axis. The first ones are drawn.
    real
        Data to compare with, shape ``(num_data, height, width)``, drawn on the left.
    num_columns, num_rows
        Size of each grid.
    cmap
        Colour map of matplotlib; by default grey, or ``"viridis"`` with a colour bar.
    limits
        Values at both ends of the colour map; by default those of all that is drawn, so
        that both grids have one scale.
    colorbar
        Whether to draw the scale, as for fields with units.
    titles
        Above the real and the generated ones.
    ax
        Axes to draw in: one, or two with ``real``. ``None`` makes a new figure.

    Returns
    -------
    Axes or ndarray
        The axes, or the two of them with ``real``.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If the arrays are empty, not images of one size, or not finite; a number is not
        positive; or ``ax`` holds another number of axes.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpyro_kaem as kaem
    >>> images = jax.random.uniform(jax.random.key(0), (20, 8, 8))
    >>> ax = kaem.plot_samples(images, num_columns=4, num_rows=2)
    >>> ax.images[0].get_array().shape
    (17, 35)
    >>> plt.close(ax.figure)
    """
    num_columns = as_count("num_columns", num_columns)
    num_rows = as_count("num_rows", num_rows)
    grids = [_as_images("samples", samples)]
    if real is not None:
        grids.insert(0, _as_images("real", real))
        if grids[0].shape[1:] != grids[1].shape[1:]:
            raise ValueError(
                f"real must hold images of the shape of samples, {grids[1].shape[1:]}, "
                f"got {grids[0].shape[1:]}."
            )
    grids = [grid[: num_columns * num_rows] for grid in grids]
    if limits is None:
        limits = min(g.min() for g in grids), max(g.max() for g in grids)
    elif np.shape(limits) != (2,):
        raise ValueError(f"limits must be two numbers, got {limits!r}.")
    if cmap is None:
        cmap = "viridis" if colorbar else "gray_r"

    axes = _grid_axes(ax, len(grids), num_columns, num_rows)
    for panel, grid in zip(axes, grids, strict=True):
        image = draw_image(panel, _tile(grid, num_columns), cmap, limits)
    if len(grids) == 2:
        for panel, title in zip(axes, titles, strict=True):
            panel.set_title(title, fontsize="medium")
    if colorbar and image.get_array().ndim == 2:
        axes[0].figure.colorbar(image, ax=list(axes), shrink=0.8)
    return axes if len(grids) == 2 else axes[0]


def draw_image(
    panel: "Axes", image: np.ndarray, cmap: str, limits: tuple[float, float]
) -> Any:
    """Draw one image without ticks."""
    if image.ndim == 3:
        drawn = panel.imshow(np.clip(image, 0.0, 1.0), interpolation="nearest")
    else:
        drawn = panel.imshow(
            image, cmap=cmap, vmin=limits[0], vmax=limits[1], interpolation="nearest"
        )
    panel.set_xticks([])
    panel.set_yticks([])
    return drawn


def _as_images(name: str, images: ArrayLike) -> np.ndarray:
    """Finite images, ``(n, height, width)`` or ``(n, height, width, 3)``.

    Raises
    ------
    ValueError
        If they are none.
    """
    images = np.asarray(images)
    is_grey, is_colour = images.ndim == 3, images.ndim == 4 and images.shape[-1] == 3
    if not (is_grey or is_colour) or images.size == 0:
        raise ValueError(
            f"{name} must hold images of shape (n, height, width) or "
            f"(n, height, width, 3), got {images.shape}."
        )
    if not np.all(np.isfinite(images)):
        raise ValueError(f"{name} must be finite, some values are not.")
    return images


def _tile(images: np.ndarray, num_columns: int) -> np.ndarray:
    """One picture of all images, row after row, one empty pixel between them."""
    count, height, width = images.shape[:3]
    num_columns = min(num_columns, count)
    num_rows = -(-count // num_columns)
    shape = (num_rows * (height + 1) - 1, num_columns * (width + 1) - 1)
    empty = np.nan if images.ndim == 3 else 1.0
    picture = np.full((*shape, *images.shape[3:]), empty, dtype=float)
    for number, image in enumerate(images):
        row, column = divmod(number, num_columns)
        top, left = row * (height + 1), column * (width + 1)
        picture[top : top + height, left : left + width] = image
    return picture


def _grid_axes(ax: Any, count: int, num_columns: int, num_rows: int) -> np.ndarray:
    """Axes of the grids.

    Raises
    ------
    ValueError
        If ``ax`` holds more or fewer.
    """
    if ax is not None:
        axes = np.array(ax, dtype=object).reshape(-1)
        if axes.size != count:
            raise ValueError(f"ax must hold {count} axes, got {axes.size}.")
        return axes
    import matplotlib.pyplot as plt

    size = (0.6 * num_columns * count + 0.4, 0.6 * num_rows + 0.4)
    _, axes = plt.subplots(1, count, figsize=size, squeeze=False, layout="constrained")
    return axes[0]
