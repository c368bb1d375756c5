"""Figures of training."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count
from numpyro_kaem.plotting.style import LEARNED
from numpyro_kaem.training import FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_history"]


def plot_history(
    result: FitResult | ArrayLike, *, window: int | None = None, ax: Any = None
) -> "Axes":
    """Draw the loss of every step of training, and its running median.

    Parameters
    ----------
    result
        Result of :func:`fit`, or losses of shape ``(num_steps,)``. Steps whose loss was
        not finite are marked at the foot of the axes.
    window
        Number of steps of the median, by default a fiftieth of all.
    ax
        Axes to draw in; ``None`` makes a new figure.

    Returns
    -------
    Axes
        The axes drawn in.

    Raises
    ------
    TypeError
        If ``window`` is not an integer.
    ValueError
        If there is no finite loss, they have another shape, or ``window`` is not
        positive.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> ax = kaem.plot_history(np.exp(-np.arange(300) / 50))
    >>> [line.get_label() for line in ax.lines]
    ['loss', 'running median of 6']
    >>> plt.close(ax.figure)
    """
    losses = result.losses if isinstance(result, FitResult) else result
    losses = np.asarray(losses, float)
    if losses.ndim != 1 or not np.any(np.isfinite(losses)):
        raise ValueError(
            "result must hold losses of shape (num_steps,), some of them finite, got "
            f"shape {losses.shape}."
        )
    if window is None:
        window = max(len(losses) // 50, 1)
    window = min(as_count("window", window), len(losses))
    finite = np.isfinite(losses)
    clean = np.where(finite, losses, np.nan)
    parts = np.lib.stride_tricks.sliding_window_view(clean, window)
    full = np.isfinite(parts).any(axis=1)
    median = np.full(len(parts), np.nan)
    median[full] = np.nanmedian(parts[full], axis=1)

    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.6, 3.4), layout="constrained")[1]
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, clean, color="0.7", linewidth=0.8, label="loss")
    ax.plot(steps[window - 1 :], median, label=f"running median of {window}", **LEARNED)
    if not np.all(finite):
        ax.plot(
            steps[~finite],
            np.full(np.sum(~finite), 0.02),
            "x",
            color="#D55E00",
            markersize=4,
            label=f"{np.sum(~finite)} steps not taken",
            transform=ax.get_xaxis_transform(),
        )
    ax.set(xlabel="step", ylabel="loss")
    ax.legend(frameon=False, fontsize="small")
    return ax
