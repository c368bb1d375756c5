"""Figures of samplers, of training and of calibration."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from numpyro.infer import MCMC

from numpyro_kaem.diagnostics import CalibrationResult
from numpyro_kaem.infer import ImportanceResult, TemperedSMCResult, log_evidence
from numpyro_kaem.infer.weights import GOOD_PARETO_K, MAX_PARETO_K
from numpyro_kaem.plotting.style import COLORS, LEARNED, TRUTH, make_axes
from numpyro_kaem.training import FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_calibration", "plot_history", "plot_ladder", "plot_weights"]

_COLOR_CYCLE = (LEARNED["color"], *COLORS)
_NUM_SIMULATED_CURVES = 2000
# Of the envelope of calibrated ranks.
_LEVEL = 0.95


def plot_ladder(mcmc: MCMC | TemperedSMCResult, *, ax: Any = None) -> np.ndarray:
    r"""Draw how an annealed population moved and what the evidence is made of.

    Left, the mean log likelihood against the inverse temperature :math:`t`; the area
    under it is the log evidence by thermodynamic integration. The prior, :math:`t = 0`,
    is left out where that mean is not estimated. The title has the steppingstone
    estimate. Middle, the acceptance rates of swaps between neighbouring temperatures:
    equal rates mean a well-spaced ladder; and, thin on an axis of its own, the local
    communication barrier, rejections per unit of :math:`t`, which is high where the
    distribution changes fast. Right, the round trips between prior and posterior since
    warmup; their curve needs ``extra_fields=("round_trips",)``.

    Of :class:`~numpyro_kaem.infer.TemperedSMC`, the middle has the acceptance rates of
    its moves, and the right the log evidence of each island, with that of all and its
    standard error.

    Parameters
    ----------
    mcmc
        Finished run of :class:`~numpyro_kaem.infer.AnnealedLangevin`. What is not among
        its ``extra_fields`` is taken from its last state. Or a result of
        :class:`~numpyro_kaem.infer.TemperedSMC`.
    ax
        Three axes to draw in, and returned; ``None`` makes new ones.

    Raises
    ------
    TypeError
        If ``mcmc`` is neither a run of an annealed population nor such a result.
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
    axes = make_axes(ax, (3,), (9.6, 2.9))
    first = int(np.isnan(evidence.thermodynamic.value))
    ladders, means = evidence.temperatures, evidence.mean_log_likelihood
    if isinstance(mcmc, TemperedSMCResult):
        ladders, means = ladders[:1], means.mean(0, keepdims=True)
    for chain, (t, mean) in enumerate(zip(ladders, means, strict=True)):
        color = _COLOR_CYCLE[chain % len(_COLOR_CYCLE)]
        line = {"color": color, "marker": "o", "markersize": 3, "linewidth": 1.2}
        axes[0].plot(t[first:], mean[first:], **line)
        # The area is counted from zero, as the integral is.
        axes[0].fill_between(
            t[first:], 0.0, mean[first:], color=color, alpha=0.2, linewidth=0.0
        )
    estimate = evidence.steppingstone
    axes[0].set_title(
        f"log evidence {estimate.value:.2f} ± {estimate.standard_error:.2f}",
        fontsize="medium",
    )
    axes[0].set(xlabel="temperature t", ylabel="mean log likelihood")
    axes[1].set(xlabel="temperature t", ylim=(0.0, 1.0))
    if isinstance(mcmc, TemperedSMCResult):
        _plot_islands(mcmc, axes[1:])
    else:
        _plot_exchange(mcmc, axes[1:])
    return axes


def _plot_islands(result: TemperedSMCResult, axes: np.ndarray) -> None:
    """Draw the acceptance of moves, and what each island says of the evidence."""
    dots = {"color": _COLOR_CYCLE[0], "marker": "o", "markersize": 3, "linewidth": 0}
    axes[0].plot(result.temperatures[1:], result.accept_prob, **dots)
    axes[0].set(ylabel="acceptance of moves")
    value, error = result.log_evidence
    axes[1].axhspan(value - error, value + error, color=_COLOR_CYCLE[0], alpha=0.2)
    axes[1].axhline(value, color=_COLOR_CYCLE[0], linewidth=1.2)
    axes[1].plot(result.island_log_evidence, **dots)
    axes[1].set(xlabel="island", ylabel="log evidence")


def _plot_exchange(mcmc: MCMC, axes: np.ndarray) -> None:
    """Draw the acceptance of swaps, and the round trips of the replicas."""
    state, num_chains = mcmc.last_state, mcmc.num_chains
    fields = mcmc.get_extra_fields(group_by_chain=True)
    trips = fields.get("round_trips", state.round_trips)
    temperatures, acceptance, trips = (
        np.asarray(value).reshape(num_chains, -1)
        for value in (state.temperatures, state.mean_swap_acceptance, trips)
    )
    barrier = axes[0].twinx()
    for chain in range(num_chains):
        color = _COLOR_CYCLE[chain % len(_COLOR_CYCLE)]
        dots = {"color": color, "marker": "o", "markersize": 3, "linewidth": 0}
        middle = (temperatures[chain, 1:] + temperatures[chain, :-1]) / 2
        axes[0].plot(middle, acceptance[chain], **dots)
        local = (1 - acceptance[chain]) / np.diff(temperatures[chain])
        barrier.plot(middle, local, color=color, linewidth=0.7)
        if trips.shape[1] == 1:
            # Only the count at the end is known.
            axes[1].plot([mcmc.num_samples], trips[chain], **{**dots, "markersize": 6})
        else:
            steps = np.arange(1, trips.shape[1] + 1)
            axes[1].plot(
                steps, trips[chain], color=color, linewidth=1.4, label=f"chain {chain}"
            )
    axes[0].set(ylabel="swap acceptance")
    barrier.set(ylabel="local barrier", yscale="log")
    axes[1].set(xlabel="iteration", ylabel="round trips")
    axes[1].set_ylim(bottom=0.0)


def plot_weights(result: ImportanceResult, *, ax: Any = None) -> "Axes":
    r"""Draw how evenly importance sampling spreads its weights.

    With one weight per particle, the fraction of the total weight that the largest
    weights carry: a diagonal means that all particles count alike, a corner that a few
    dominate. With weights per unit, the Pareto :math:`\hat k` of every unit, beside
    the values up to which weights are good (0.5) and usable (0.7).

    Parameters
    ----------
    result
        Weighted draws.
    ax
        Axes to draw in, and returned; ``None`` makes new ones.

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
    ax = make_axes(ax, (), (4.8, 3.6))[()]
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
        unreliable = np.mean(k > MAX_PARETO_K)
        ax.set_title(f"{unreliable:.0%} of the units not reliable", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_history(result: FitResult | ArrayLike, *, ax: Any = None) -> "Axes":
    """Draw the loss of every step of training, and its running median.

    Parameters
    ----------
    result
        Result of :func:`fit`, or losses of shape ``(num_steps,)``. The median is that
        of a fiftieth of them. Steps whose loss was not finite are marked at the foot of
        the axes.
    ax
        Axes to draw in, and returned; ``None`` makes new ones.

    Raises
    ------
    ValueError
        If there is no finite loss, or they have another shape.

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
    finite = np.isfinite(losses)
    if losses.ndim != 1 or not np.any(finite):
        raise ValueError(
            "result must hold losses of shape (num_steps,), some of them finite, got "
            f"shape {losses.shape}."
        )
    window = max(len(losses) // 50, 1)
    clean = np.where(finite, losses, np.nan)
    parts = np.lib.stride_tricks.sliding_window_view(clean, window)
    full = np.isfinite(parts).any(axis=1)
    median = np.full(len(parts), np.nan)
    median[full] = np.nanmedian(parts[full], axis=1)

    ax = make_axes(ax, (), (5.6, 3.4))[()]
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


def plot_calibration(result: CalibrationResult, *, ax: Any = None) -> "Axes":
    """Draw the ranks of true values against those of a calibrated posterior.

    Per component, the empirical distribution function of the ranks minus the uniform
    one, and the envelope in which the whole curve lies with probability 95 % if the
    posterior is calibrated. An S-shaped curve says that posteriors are too narrow
    or too wide, an arc that they are biased.

    Parameters
    ----------
    result
        Result of :func:`simulation_based_calibration`.
    ax
        Axes to draw in, and returned; ``None`` makes new ones.

    Raises
    ------
    TypeError
        If ``result`` is not a :class:`CalibrationResult`.

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
    points = np.arange(1, result.num_samples + 1) / (result.num_samples + 1)
    lower, upper = _envelope(result.num_simulations, points, _LEVEL)
    ax = make_axes(ax, (), (5.6, 3.6))[()]
    ax.fill_between(
        points,
        lower - points,
        upper - points,
        step="mid",
        color="0.85",
        linewidth=0.0,
        label=f"{_LEVEL:.0%} envelope",
    )
    ax.axhline(0.0, color="0.4", linewidth=0.8)
    styles = ("-", "--", "-.", ":")
    number = 0
    for name, ranks in result.ranks.items():
        columns = ranks.reshape(len(ranks), -1)
        for column in range(columns.shape[1]):
            below = columns[:, column, None] < points * (result.num_samples + 1) - 0.5
            own = name if columns.shape[1] == 1 else f"{name}[{column}]"
            ax.plot(
                points,
                below.mean(0) - points,
                color=_COLOR_CYCLE[number % len(_COLOR_CYCLE)],
                linestyle=styles[number // len(_COLOR_CYCLE) % len(styles)],
                linewidth=1.3,
                label=own if number < 8 else None,
            )
            number += 1
    ax.set(xlabel="rank as a share of the draws", ylabel="difference from uniform")
    ax.set_xlim(0.0, 1.0)
    ax.legend(fontsize="small", framealpha=0.9)
    return ax


def _envelope(
    num_simulations: int, points: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Simultaneous intervals of an empirical distribution function at ``points``.

    Each is binomial; their own level is chosen such that the fraction ``level`` of
    simulated curves stays within all of them.
    """
    from scipy.stats import binom

    generator = np.random.default_rng(0)
    probabilities = np.diff(np.append(points, 1.0), prepend=0.0)
    counts = generator.multinomial(
        num_simulations, probabilities, size=_NUM_SIMULATED_CURVES
    )
    curves = np.cumsum(counts, axis=1)[:, :-1]
    # Smallest tail probability of each curve: how far it strays anywhere.
    lower = binom.cdf(curves, num_simulations, points)
    upper = binom.sf(curves - 1, num_simulations, points)
    strays = np.minimum(lower, upper).min(axis=1)
    tail = np.quantile(strays, 1 - level)
    low = binom.ppf(tail, num_simulations, points)
    high = binom.isf(tail, num_simulations, points)
    return low / num_simulations, high / num_simulations
