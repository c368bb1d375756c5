"""Colours, axes and legends that all figures share."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BAND",
    "COLORS",
    "COMPONENT",
    "HISTOGRAM",
    "LEARNED",
    "OVERLAY",
    "REFERENCE",
    "TRUTH",
    "legend",
    "make_axes",
]

# Okabe and Ito's palette, which readers with any common colour vision tell apart. Each
# kind of curve has its own line style too, so that figures survive black and white.
LEARNED = {"color": "#0072B2", "linewidth": 2.0, "zorder": 3}
REFERENCE = {"color": "#D55E00", "linewidth": 1.5, "linestyle": "--", "zorder": 2.5}
COMPONENT = {"linewidth": 1.2, "linestyle": "-.", "zorder": 2}
COLORS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9")
TRUTH = {"color": "black", "linewidth": 1.2, "linestyle": "--", "zorder": 4}
HISTOGRAM = {"color": "0.85", "edgecolor": "0.65", "linewidth": 0.6, "zorder": 1}
OVERLAY = {
    "histtype": "step",
    "edgecolor": "#009E73",
    "linewidth": 1.4,
    "linestyle": ":",
    "zorder": 2.8,
}
BAND = {"alpha": 0.25, "linewidth": 0.0, "zorder": 1.5}

_MAX_COLUMNS = 4


def make_axes(ax: Any, batch_shape: tuple[int, ...]) -> np.ndarray:
    """One axes for each density, in an array of shape ``batch_shape``.

    Raises
    ------
    ValueError
        If ``ax`` holds more or fewer.
    """
    count = int(np.prod(batch_shape))
    if ax is not None:
        axes = np.array(ax, dtype=object)
        if axes.size != count:
            raise ValueError(
                f"ax must hold {count} axes, one for each density of batch_shape "
                f"{batch_shape}, got {axes.size}."
            )
        return axes.reshape(batch_shape)

    import matplotlib.pyplot as plt

    columns = batch_shape[-1] if len(batch_shape) == 2 else count
    columns = min(columns, _MAX_COLUMNS)
    rows = -(-count // columns)
    size = (6.4, 4.0) if count == 1 else (3.2 * columns, 2.6 * rows)
    _, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    axes = axes.reshape(-1)
    for unused in axes[count:]:
        unused.set_visible(False)
    return axes[:count].reshape(batch_shape)


def legend(panel: "Axes") -> None:
    """Curves first, the histogram last, without a frame."""
    handles, labels = panel.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "data")
    panel.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        frameon=False,
        fontsize="small",
    )
