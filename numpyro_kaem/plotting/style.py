"""Colours, axes and legends that all figures share."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito (2008), "Color Universal Design", which readers with any
# common colour vision can distinguish. Each kind of curve also has its own line style,
# so that figures survive black and white.
LEARNED = {"color": "#0072B2", "linewidth": 2.0, "zorder": 3}
ATOM = {"color": "#0072B2", "linestyle": "none", "marker": "o", "markersize": 5}
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


def make_axes(
    ax: Any,
    shape: tuple[int, ...],
    size: tuple[float, float],
    num_columns: int | None = None,
) -> np.ndarray:
    """Axes given, or those of a new figure of ``size`` inches, in an array."""
    count = math.prod(shape)
    if ax is not None:
        axes = np.array(ax, dtype=object)
        if axes.size != count:
            raise ValueError(f"ax must hold {count} axes, got {axes.size}.")
        return axes.reshape(shape)

    import matplotlib.pyplot as plt

    columns = num_columns or (shape[-1] if shape else 1)
    _, axes = plt.subplots(
        -(-count // columns), columns, figsize=size, squeeze=False, layout="constrained"
    )
    axes = axes.reshape(-1)
    for unused in axes[count:]:
        unused.set_visible(False)
    return axes[:count].reshape(shape)


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
