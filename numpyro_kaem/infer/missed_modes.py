"""Whether one run of MCMC has missed what another found."""

from typing import NamedTuple

import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from scipy.special import kolmogorov

from numpyro_kaem.infer.tempered import TemperedSMCResult

__all__ = ["MissedModes", "check_missed_modes"]

_MAX_PROBABILITY = 1e-3
_MIN_MASS = 0.02
_MAX_DIRECTIONS = 5


class MissedModes(NamedTuple):
    """Comparison of two runs, in words when printed; by :func:`check_missed_modes`."""

    found: bool
    """Whether they sampled different distributions."""
    mass: float
    """Largest difference between the distribution functions of any direction, from 0 to
    1: at least this share of the posterior is misplaced by one of the runs."""
    where: str
    """The direction in which it is: a component of a site, or a principal component of
    all."""
    probability: float
    """Probability of a difference as large between two runs of the same
    distribution, for the most different of all directions."""

    def __str__(self) -> str:
        size = (
            f"the distribution functions of {self.where} differ by up to "
            f"{self.mass:.2f} (p = {self.probability:.1g})"
        )
        if self.found:
            return (
                f"The runs sampled different distributions: {size}. At least "
                f"{self.mass:.0%} of the posterior is misplaced by one of them; the "
                "run that comes from the prior is the one that can cross between modes."
            )
        return f"No sign of a missed mode: {size}."


def check_missed_modes(mcmc: MCMC, annealed: MCMC | TemperedSMCResult) -> MissedModes:
    r"""Compare a run that may have missed a mode with one that could not easily.

    Chains that all missed the same mode agree with each other, so that
    :math:`\hat R` is near 1. Here the draws of both runs are compared, component by
    component and along their common principal components, by the Kolmogorov-Smirnov
    statistic with the effective sample sizes in place of the numbers of draws, which
    are not independent.

    Parameters
    ----------
    mcmc
        Finished run of NUTS, or of any other kernel.
    annealed
        Finished run of :class:`AnnealedLangevin` on the same model and data, or a
        result of :class:`TemperedSMC`.

    Returns
    -------
    MissedModes
        Whether and where they differ; ``print`` says it in words.

    Raises
    ------
    TypeError
        If one of them is not of these classes.
    ValueError
        If a run is not finished, or they have no sites in common.

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC, NUTS, init_to_value
    >>> from numpyro_kaem.infer import AnnealedLangevin, check_missed_modes
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    ...     numpyro.sample("y", dist.Normal(z**2, 0.1), obs=y)
    >>> def run(kernel):
    ...     mcmc = MCMC(kernel, num_warmup=500, num_samples=1000, progress_bar=False)
    ...     mcmc.run(jax.random.key(0), 4.0)
    ...     return mcmc
    >>> start = init_to_value(values={"z": 2.0})
    >>> nuts = run(NUTS(model, init_strategy=start))
    >>> print(check_missed_modes(nuts, run(AnnealedLangevin(model, 10))).found)
    True
    """
    runs = {"mcmc": mcmc, "annealed": annealed}
    draws = [_components(run, name) for name, run in runs.items()]
    names = [name for name in draws[0] if name in draws[1]]
    if not names:
        raise ValueError(
            f"mcmc and annealed must share sites, got {sorted(draws[0])} and "
            f"{sorted(draws[1])}."
        )
    first, second = (np.stack([d[name] for name in names], axis=-1) for d in draws)
    first, second, names = _with_directions(first, second, names)
    sizes, weights = [_sizes(first)], [np.full(first[..., 0].size, 1.0)]
    if isinstance(annealed, TemperedSMCResult):
        sizes.append(annealed.effective_sizes(second.reshape(-1, len(names))))
        weights.append(np.exp(annealed.log_weights))
    else:
        sizes.append(_sizes(second))
        weights.append(np.full(second[..., 0].size, 1.0))
    distances = np.array(
        [_distance(first[..., j], second[..., j], weights) for j in range(len(names))]
    )
    size = 1 / (1 / sizes[0] + 1 / sizes[1])
    # Each of the directions could have been the most different one.
    probability = np.minimum(kolmogorov(distances * np.sqrt(size)) * len(names), 1)
    worst = int(np.lexsort((-distances, probability))[0])
    found = bool(probability[worst] < _MAX_PROBABILITY and distances[worst] > _MIN_MASS)
    return MissedModes(
        found, float(distances[worst]), names[worst], float(probability[worst])
    )


def _components(run: MCMC | TemperedSMCResult, name: str) -> dict[str, np.ndarray]:
    """Scalar components of all sites, each ``(num_chains, num_draws)``."""
    if isinstance(run, TemperedSMCResult) and name == "annealed":
        count = len(run.island_log_evidence)
        samples = {
            site: draws.reshape(count, -1, *draws.shape[1:])
            for site, draws in run.samples.items()
        }
    elif not isinstance(run, MCMC):
        also = " or a result of TemperedSMC" if name == "annealed" else ""
        raise TypeError(
            f"{name} must be a numpyro.infer.MCMC{also}, got {type(run).__name__}."
        )
    elif run.last_state is None:
        raise ValueError(f"{name} must be a finished run, got one without draws.")
    else:
        samples = run.get_samples(group_by_chain=True)
    components: dict[str, np.ndarray] = {}
    for site, draws in samples.items():
        values = np.asarray(draws, np.float64)
        shape = values.shape[2:]
        for index in np.ndindex(shape):
            label = f"{site}[{', '.join(map(str, index))}]" if shape else site
            components[label] = values[(..., *index)]
    return components


def _with_directions(
    first: np.ndarray, second: np.ndarray, names: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Add principal components: modes may differ along no single axis."""
    if len(names) == 1:
        return first, second, names
    # Both runs weigh the same, whatever their numbers of draws.
    flat = [run.reshape(-1, len(names)) for run in (first, second)]
    mean = sum(f.mean(0) for f in flat) / 2
    variance = sum(((f - mean) ** 2).mean(0) for f in flat) / 2
    scale = np.sqrt(np.where(variance > 0, variance, 1))
    flat = [(f - mean) / scale for f in flat]
    covariance = sum(f.T @ f / len(f) for f in flat) / 2
    directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :_MAX_DIRECTIONS]
    first, second = (
        np.concatenate([run, (run - mean) / scale @ directions], axis=-1)
        for run in (first, second)
    )
    more = [f"principal component {j}" for j in range(directions.shape[1])]
    return first, second, names + more


def _sizes(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of each direction, at most the number of draws."""
    num_chains, num_draws, num_directions = draws.shape
    sizes = np.empty(num_directions)
    for j in range(num_directions):
        values = draws[..., j]
        # A chain that stands still has one value only.
        constant = np.ptp(values, axis=1).min() == 0
        sizes[j] = num_chains if constant else effective_sample_size(values)
    return np.clip(sizes, 1, num_chains * num_draws)


def _distance(
    first: np.ndarray, second: np.ndarray, weights: list[np.ndarray]
) -> float:
    """Largest difference of two empirical distribution functions."""
    points = np.concatenate([first, second], axis=None)
    shares = []
    for values, weight in zip((first, second), weights, strict=True):
        order = np.argsort(values, axis=None)
        below = np.concatenate([[0.0], np.cumsum(weight[order])])
        place = np.searchsorted(values.reshape(-1)[order], points, side="right")
        shares.append(below[place] / below[-1])
    return float(np.max(np.abs(shares[0] - shares[1])))
