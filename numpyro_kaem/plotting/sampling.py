"""Figures of samplers, of training and of calibration."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpyro.infer import MCMC

from numpyro_kaem.infer import ImportanceResult, log_evidence
from numpyro_kaem.infer.importance_result import GOOD_PARETO_K, MAX_PARETO_K
from numpyro_kaem.plotting.style import COLORS, LEARNED, TRUTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count
from numpyro_kaem.diagnostics import CalibrationResult
from numpyro_kaem.training import FitResult

__all__ = [
    "plot_calibration",
    "plot_history",
    "plot_ladder",
    "plot_weights",
    "simultaneous_envelope",
]


def plot_ladder(mcmc: MCMC, *, ax: Any = None) -> np.ndarray:
    r"""Draw how an annealed population travelled and what the evidence is made of.

    Left, the mean log likelihood against :math:`t`; the area under it is the log
    evidence by thermodynamic integration. Its first rung, the prior, is left out where
    that mean is not estimated. The title has the steppingstone estimate. In the middle,
    the share of swaps that are accepted between neighbouring rungs: equal ones mean a
    well spread ladder. Right, the round trips between prior and posterior since the
    warm-up; their curve needs ``extra_fields=("round_trips",)`` in the run.

    Parameters
    ----------
    mcmc
        Finished run of :class:`~numpyro_kaem.infer.AnnealedLangevin`. What is not among
        its ``extra_fields`` is taken from its last state.
    ax
        Three axes to draw in; ``None`` makes a new figure.

    Returns
    -------
    ndarray
        The three axes, for likelihood, swaps and round trips.

    Raises
    ------
    TypeError
        If ``mcmc`` is not a run of an annealed population.
    ValueError
        If it is not finished, or ``ax`` does not hold three axes.

    References
    ----------
    Syed, Bouchard-Côté, Deligiannidis and Doucet (2022), "Non-reversible parallel
    tempering: a scalable highly parallel MCMC scheme", *Journal of the Royal
    Statistical Society B* 84(2), on equal rejection and round trips.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> from numpyro.infer import MCMC
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
    >>> kernel = kaem.infer.AnnealedLangevin(model, num_temperatures=4)
    >>> mcmc = MCMC(kernel, num_warmup=100, num_samples=200, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), 1.0)
    >>> axes = kaem.plot_ladder(mcmc)
    >>> [ax.get_xlabel() for ax in axes]
    ['temperature t', 'temperature t', 'iteration']
    >>> plt.close(axes[0].figure)
    """
    evidence = log_evidence(mcmc)
    state = mcmc.last_state
    fields = mcmc.get_extra_fields(group_by_chain=True)
    num_chains = mcmc.num_chains
    temperatures = np.asarray(state.temperatures).reshape(num_chains, -1)
    acceptance = np.asarray(state.mean_swap_acceptance).reshape(num_chains, -1)
    trips = fields.get("round_trips", state.round_trips)
    trips = np.asarray(trips).reshape(num_chains, -1)

    axes = _three_axes(ax)
    first = int(np.isnan(evidence.thermodynamic.value))
    for chain in range(num_chains):
        color = (LEARNED["color"], *COLORS)[chain % (len(COLORS) + 1)]
        t = evidence.temperatures[chain, first:]
        mean = evidence.mean_log_likelihood[chain, first:]
        axes[0].plot(t, mean, color=color, marker="o", markersize=3, linewidth=1.2)
        # The area is counted from zero, as the integral is.
        axes[0].fill_between(t, 0.0, mean, color=color, alpha=0.2, linewidth=0.0)
        middle = (temperatures[chain, 1:] + temperatures[chain, :-1]) / 2
        axes[1].plot(
            middle,
            acceptance[chain],
            color=color,
            marker="o",
            markersize=3,
            linewidth=0,
        )
        steps = np.arange(1, trips.shape[1] + 1)
        if trips.shape[1] == 1:
            # Only the count at the end is known.
            steps = np.full(1, mcmc.num_samples)
            axes[2].plot(steps, trips[chain], color=color, marker="o", linewidth=0)
        else:
            axes[2].plot(
                steps, trips[chain], color=color, linewidth=1.4, label=f"chain {chain}"
            )
    estimate = evidence.steppingstone
    axes[0].set_title(
        f"log evidence {estimate.value:.2f} ± {estimate.standard_error:.2f}",
        fontsize="medium",
    )
    axes[0].set(xlabel="temperature t", ylabel="mean log likelihood")
    axes[1].set(xlabel="temperature t", ylabel="swap acceptance", ylim=(0.0, 1.0))
    axes[2].set(xlabel="iteration", ylabel="round trips")
    axes[2].set_ylim(bottom=0.0)
    return axes


def _three_axes(ax: Any) -> np.ndarray:
    if ax is not None:
        axes = np.array(ax, dtype=object).reshape(-1)
        if axes.size != 3:
            raise ValueError(f"ax must hold 3 axes, got {axes.size}.")
        return axes
    import matplotlib.pyplot as plt

    return plt.subplots(1, 3, figsize=(9.6, 2.9), layout="constrained")[1]


def plot_weights(result: ImportanceResult, *, ax: Any = None) -> "Axes":
    r"""Draw what the weights of importance sampling are worth.

    With one weight for each particle, the share of the total weight that the largest
    weights carry: a diagonal means that all particles count alike, a corner that a few
    decide. With weights for each unit, the Pareto :math:`\hat k` of every unit, beside
    the values up to which weights are good (0.5) and usable (0.7).

    Parameters
    ----------
    result
        Weighted draws.
    ax
        Axes to draw in; ``None`` makes a new figure.

    Returns
    -------
    Axes
        The axes drawn in.

    Raises
    ------
    TypeError
        If ``result`` is not an :class:`~numpyro_kaem.infer.ImportanceResult`.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance
    sampling", *Journal of Machine Learning Research* 25(72).

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> sampler = kaem.infer.ImportanceSampling(model, num_samples=1000)
    >>> ax = kaem.plot_weights(sampler.run(jax.random.key(0), 1.0))
    >>> ax.get_ylabel()
    'share of the weight'
    >>> plt.close(ax.figure)
    """
    if not isinstance(result, ImportanceResult):
        raise TypeError(
            f"result must be an ImportanceResult, got {type(result).__name__}."
        )
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(4.8, 3.6), layout="constrained")[1]
    if result.unit_plate is None:
        raw = np.sort(np.exp(result.log_normalized_weights))[::-1]
        smoothed = np.sort(np.exp(result.smoothed_log_weights))[::-1]
        particles = np.arange(1, len(raw) + 1) / len(raw)
        ax.plot(particles, np.cumsum(smoothed), label="smoothed", **LEARNED)
        ax.plot(particles, np.cumsum(raw), label="raw", color=COLORS[0], linestyle="-.")
        ax.plot([0.0, 1.0], [0.0, 1.0], label="equal weights", **TRUTH)
        ax.set(xlabel="share of the particles", ylabel="share of the weight")
        ax.set(xlim=(0.0, 1.0), ylim=(0.0, 1.02))
        ax.set_title(
            f"Pareto k {result.pareto_k:.2f}, effective sample size {result.ess:.0f}",
            fontsize="medium",
        )
    else:
        k = np.asarray(result.pareto_k)
        ax.plot(np.arange(len(k)), k, "o", markersize=3, color=LEARNED["color"])
        for value, name, style in (
            (GOOD_PARETO_K, "good up to here", ":"),
            (MAX_PARETO_K, "usable up to here", "--"),
        ):
            ax.axhline(value, color="0.3", linestyle=style, linewidth=1.2, label=name)
        ax.set(xlabel=f"unit of {result.unit_plate!r}", ylabel="Pareto k")
        ax.locator_params(axis="x", integer=True)
        share = np.mean(k > MAX_PARETO_K)
        ax.set_title(f"{share:.0%} of the units not reliable", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    return ax


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


_NUM_SIMULATIONS = 2000


def plot_calibration(
    result: CalibrationResult, *, level: float = 0.95, ax: Any = None
) -> "Axes":
    """Draw the ranks of true values against those of a calibrated posterior.

    For every component the empirical distribution function of the ranks less that of
    uniform ones, and the envelope in which the whole of a curve lies with probability
    ``level`` if the posterior is calibrated. A curve like an S says that posteriors are
    too narrow or too wide, an arc that they are biased.

    Parameters
    ----------
    result
        Result of :func:`simulation_based_calibration`.
    level
        Probability that a curve stays within the envelope, in (0, 1).
    ax
        Axes to draw in; ``None`` makes a new figure.

    Returns
    -------
    Axes
        The axes drawn in.

    Raises
    ------
    TypeError
        If ``result`` is not a :class:`CalibrationResult`.
    ValueError
        If ``level`` is not in (0, 1).

    References
    ----------
    Säilynoja, Bürkner and Vehtari (2022), "Graphical test for discrete uniformity and
    its applications in goodness-of-fit evaluation and multiple sample comparison",
    *Statistics and Computing* 32.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> ranks = np.random.default_rng(0).integers(0, 100, (200, 1))
    >>> ax = kaem.plot_calibration(kaem.CalibrationResult({"mean": ranks}, 99))
    >>> ax.get_xlabel()
    'rank as a share of the draws'
    >>> plt.close(ax.figure)
    """
    if not isinstance(result, CalibrationResult):
        raise TypeError(
            f"result must be a CalibrationResult, got {type(result).__name__}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}.")
    points = np.arange(1, result.num_draws + 1) / (result.num_draws + 1)
    lower, upper = simultaneous_envelope(result.num_simulations, points, level)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")[1]
    ax.fill_between(
        points,
        lower - points,
        upper - points,
        step="mid",
        color="0.85",
        linewidth=0.0,
        label=f"{100 * level:.3g}% envelope",
    )
    ax.axhline(0.0, color="0.4", linewidth=0.8)
    colors = (LEARNED["color"], *COLORS)
    styles = ("-", "--", "-.", ":")
    number = 0
    for name, ranks in result.ranks.items():
        columns = ranks.reshape(len(ranks), -1)
        for column in range(columns.shape[1]):
            # Ranks below a share of all that are possible.
            below = columns[:, column, None] < points * (result.num_draws + 1) - 0.5
            own = name if columns.shape[1] == 1 else f"{name}[{column}]"
            ax.plot(
                points,
                below.mean(0) - points,
                color=colors[number % len(colors)],
                linestyle=styles[number // len(colors) % len(styles)],
                linewidth=1.3,
                label=own if number < 8 else None,
            )
            number += 1
    ax.set(xlabel="rank as a share of the draws", ylabel="difference from uniform")
    ax.set_xlim(0.0, 1.0)
    ax.legend(fontsize="small", framealpha=0.9)
    return ax


def simultaneous_envelope(
    num_simulations: int, points: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of an empirical distribution function that hold at all points at once.

    Each is binomial; their own level is chosen such that the share ``level`` of
    simulated curves stays within all of them.

    Parameters
    ----------
    num_simulations
        Number of values of each curve.
    points
        Where it is looked at, increasing in (0, 1), shape ``(num_points,)``.
    level
        Probability that all intervals hold.

    Returns
    -------
    tuple
        Lower and upper ends, each of shape ``(num_points,)``.
    """
    from scipy.stats import binom

    generator = np.random.default_rng(0)
    ends = np.append(points, 1.0)
    shares = np.diff(ends, prepend=0.0)
    counts = generator.multinomial(num_simulations, shares, size=_NUM_SIMULATIONS)
    curves = np.cumsum(counts, axis=1)[:, :-1]
    # Smallest tail probability of each curve: how far it strays anywhere.
    lower = binom.cdf(curves, num_simulations, points)
    upper = binom.sf(curves - 1, num_simulations, points)
    strays = np.minimum(lower, upper).min(axis=1)
    tail = np.quantile(strays, 1 - level)
    low = binom.ppf(tail, num_simulations, points)
    high = binom.isf(tail, num_simulations, points)
    return low / num_simulations, high / num_simulations
