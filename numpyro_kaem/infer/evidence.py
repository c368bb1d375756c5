"""The evidence, from the log likelihoods of an annealed population."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

from numpyro_kaem.infer.annealed import AnnealedLangevin
from numpyro_kaem.infer.tempered import TemperedSMCResult, student_scale
from numpyro_kaem.infer.weights import MAX_PARETO_K, Estimate, pareto_smooth

__all__ = ["Evidence", "log_evidence"]

# Below this a series has no autocorrelation to speak of.
_FEWEST_DRAWS = 8


@dataclass(frozen=True, repr=False)
class Evidence:
    """Log evidence of a model, by two estimators; made by :func:`log_evidence`."""

    thermodynamic: Estimate
    """Thermodynamic integral by the corrected trapezoid."""
    steppingstone: Estimate
    """Sum of the log ratios of neighbouring temperatures' normalizing constants."""
    discretisation_error: float
    """Size of the error that finitely many temperatures leave in the integral."""
    temperatures: np.ndarray
    """Ladder of each chain, shape ``(num_chains, num_temperatures)``."""
    mean_log_likelihood: np.ndarray
    """The integrand, shape ``(num_chains, num_temperatures)``."""

    def __repr__(self) -> str:
        rows = [
            f"{name}={estimate.value:.3f} ± {estimate.standard_error:.3f}"
            for name, estimate in (
                ("thermodynamic", self.thermodynamic),
                ("steppingstone", self.steppingstone),
            )
        ]
        return f"Evidence({', '.join(rows)})"


class _Series(NamedTuple):
    """An estimate from one chain, and what each draw adds to its error, of mean zero.

    ``discretisation`` is a signed estimate of the discretisation error.
    """

    value: float
    influence: np.ndarray
    discretisation: float


def thermodynamic_integral(
    temperatures: np.ndarray, log_likelihood: np.ndarray
) -> _Series:
    r"""Corrected trapezoid of one chain, from ``(num_draws, num_temperatures)``.

    With :math:`m_k` and :math:`v_k` the mean and the variance of the log likelihood at
    :math:`t_k`, and :math:`\Delta_k = t_{k+1} - t_k`,

    .. math::

        \sum_k \frac{\Delta_k}{2} (m_k + m_{k+1})
        - \frac{\Delta_k^2}{12} (v_{k+1} - v_k):

    the variance is the derivative of the mean in :math:`t`, so this is Hermite's rule,
    of fourth order. On every second temperature its error is about 16 times as large,
    from which the discretisation error is estimated.
    """
    centred = log_likelihood - log_likelihood.mean(0)
    mean, variance = log_likelihood.mean(0), (centred**2).mean(0)

    def rule(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        width = temperatures[j] - temperatures[i]
        trapezoid = width / 2 * (mean[i] + mean[j])
        return trapezoid - width**2 / 12 * (variance[j] - variance[i])

    left = np.arange(len(temperatures) - 1)
    steps = rule(left, left + 1)
    # Linearised in the means and variances: the weight of each in the sum.
    width = np.diff(temperatures)
    of_mean = np.pad(width / 2, (0, 1)) + np.pad(width / 2, (1, 0))
    of_variance = np.pad(width**2 / 12, (0, 1)) - np.pad(width**2 / 12, (1, 0))
    influence = centred @ of_mean + (centred**2 - variance) @ of_variance

    if len(temperatures) == 2:
        # Nothing to coarsen: the size of the correction bounds it.
        discretisation = width[0] ** 2 / 12 * (variance[1] - variance[0])
    else:
        # All pairs of neighbouring steps joined into one, each step counted once.
        pairs = [rule(i, i + 2) - steps[i] - steps[i + 1] for i in left[:-1]]
        discretisation = np.mean(pairs) * len(steps) / 2 / 15
    return _Series(steps.sum(), influence, float(discretisation))


def steppingstone(temperatures: np.ndarray, log_likelihood: np.ndarray) -> _Series:
    r"""Steppingstone estimate of one chain, from ``(num_draws, num_temperatures)``.

    .. math:: \sum_k \log \frac{1}{S} \sum_s e^{(t_{k+1} - t_k) \ell_{s,k}}

    with :math:`\ell_{s,k}` the log likelihood of draw :math:`s` at :math:`t_k`, which
    may be minus infinity. The product of the means has no discretisation error.
    """
    log_weights = np.diff(temperatures) * log_likelihood[:, :-1]
    largest = log_weights.max(0)
    weights = np.exp(log_weights - np.where(np.isfinite(largest), largest, 0.0))
    mean = weights.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.sum(largest + np.log(mean))
        influence = np.sum(weights / mean - 1, -1)
    return _Series(float(value), influence, 0.0)


def combine(chains: list[_Series]) -> tuple[Estimate, float]:
    """Mean of the chains' estimates, and their discretisation error.

    The spread of the chains adds to the standard error.
    """
    values = np.array([chain.value for chain in chains])
    value = float(values.mean())
    discretisation = float(abs(np.mean([chain.discretisation for chain in chains])))
    if not np.all(np.isfinite(values)):
        return Estimate(value, np.nan), discretisation
    series = values[:, None] + np.stack([chain.influence for chain in chains])
    variance = series.var(ddof=1)
    scale = np.finfo(np.float64).eps * max(1.0, np.abs(values).max())
    if variance <= scale**2:
        # A constant likelihood: the draws know it exactly.
        error = 0.0
    else:
        error = float(np.sqrt(variance / effective_sample_size(series)))
    return Estimate(value, error), discretisation


def log_evidence(mcmc: MCMC | TemperedSMCResult) -> Evidence:
    r"""Log evidence :math:`\log p(x)` of the model that a population was run on.

    Two estimators use the log likelihoods :math:`\ell` at all temperatures: the
    thermodynamic integral :math:`\int_0^1 \mathrm{E}_t[\ell]\,dt` and the steppingstone
    sum :math:`\sum_k \log \mathrm{E}_{t_k}[e^{(t_{k+1} - t_k) \ell}]`. They share the
    draws but not their weaknesses: few temperatures bias the first, few draws with most
    of the weight make the second too small. A warning tells when they disagree.

    Parameters
    ----------
    mcmc
        A NumPyro ``MCMC`` of an :class:`~numpyro_kaem.infer.AnnealedLangevin` kernel
        that has been run, with any number of chains; no extra fields are needed. Or a
        result of :class:`~numpyro_kaem.infer.TemperedSMC`, whose own ``log_evidence``
        the steppingstone sum is; each island counts as a chain.

    Returns
    -------
    Evidence
        ``.thermodynamic`` and ``.steppingstone``, each with ``.value`` and
        ``.standard_error``, and the ``.discretisation_error`` of the first.

    Raises
    ------
    TypeError
        If ``mcmc`` is neither an ``MCMC`` of an ``AnnealedLangevin`` nor a result of
        ``TemperedSMC``.
    ValueError
        If it has not been run, if it drew fewer than 8 times, or if the prior is
        improper or unnormalised, so that there is no evidence.

    Warns
    -----
    UserWarning
        If the two estimates differ by more than three standard errors and the
        discretisation error; or if the thermodynamic integral is not estimated, and is
        NaN, because the mean log likelihood of draws of the prior is not: some have
        likelihood zero, or the tail is too heavy (Pareto k above 0.7).

    Notes
    -----
    The standard errors are those of the estimators linearised in the draws, a series
    over iterations that includes the correlations between temperatures; its effective
    sample size counts the autocorrelation and the differences between chains. A
    population that misses a mode at every temperature is not noticed.

    Under the prior, at ``t = 0``, the mean log likelihood need not exist: with a scale
    whose prior has mass near zero, as HalfNormal has, it is minus infinity. The ratio
    of normalizing constants that the steppingstone takes from there always exists.

    References
    ----------
    Friel, Hurn and Wyse (2014), "Improving power posterior estimation of statistical
    evidence", *Statistics and Computing* 24(5), equation (10).
    Xie, Lewis, Fan, Kuo and Chen (2011), "Improving marginal likelihood estimation for
    Bayesian phylogenetic model selection", *Systematic Biology* 60(2).

    Examples
    --------
    The evidence of ``y = 1.5`` is the density of Normal(0, 2) in variance:

    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_kaem.infer import AnnealedLangevin, log_evidence
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> kernel = AnnealedLangevin(model, num_temperatures=6)
    >>> mcmc = MCMC(kernel, num_warmup=300, num_samples=1000, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), 1.5)
    >>> evidence = log_evidence(mcmc)
    >>> evidence.temperatures.shape, evidence.mean_log_likelihood.shape
    ((1, 6), (1, 6))
    >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(1.5)
    >>> print(f"{truth:.2f}")
    -1.83
    >>> error = evidence.thermodynamic.value - truth
    >>> bool(abs(error) < 4 * evidence.thermodynamic.standard_error)
    True
    """
    of_particles = isinstance(mcmc, TemperedSMCResult)
    if of_particles:
        count = len(mcmc.island_log_evidence)
        shape = (len(mcmc.temperatures), count, -1)
        log_likelihood = mcmc.log_likelihood.astype(np.float64).reshape(shape)
        log_likelihood = log_likelihood.transpose(1, 2, 0)
        temperatures = np.tile(mcmc.temperatures, (count, 1))
    else:
        temperatures, log_likelihood = _read(mcmc)
    both = list(zip(temperatures, log_likelihood, strict=True))
    ratios = [steppingstone(*chain) for chain in both]
    with np.errstate(invalid="ignore"):
        integrals = [thermodynamic_integral(*chain) for chain in both]
        integral, error = combine(integrals)
    if of_particles:
        by_steps = mcmc.log_evidence
        # Particles are no series in time: the differences between islands tell the
        # error. What a ladder does not hold is the share of the prior it starts from.
        starts = mcmc.island_log_evidence - [part.value for part in ratios]
        values = starts + [part.value for part in integrals]
        spread = values.std(ddof=1) / np.sqrt(count) * student_scale(count)
        integral = Estimate(float(values.mean()), float(spread))
    else:
        by_steps, _ = combine(ratios)
    reason = _why_no_mean(log_likelihood)
    if reason:
        integral, error = Estimate(np.nan, np.nan), np.nan
        warnings.warn(
            f"{reason}, and the thermodynamic integral is not estimated; the "
            "steppingstone is.",
            stacklevel=2,
        )
    else:
        _compare(integral, error, by_steps, np.abs(log_likelihood[..., -1]).max())
    return Evidence(integral, by_steps, error, temperatures, log_likelihood.mean(1))


def _read(mcmc: MCMC) -> tuple[np.ndarray, np.ndarray]:
    """Ladders and log likelihoods, with leading axes for chains and draws."""
    if not isinstance(mcmc, MCMC):
        raise TypeError(
            "mcmc must be a numpyro.infer.MCMC that ran an AnnealedLangevin kernel, or "
            f"a result of TemperedSMC, got {type(mcmc).__name__}."
        )
    if not isinstance(mcmc.sampler, AnnealedLangevin):
        raise TypeError(
            "mcmc must have run an AnnealedLangevin kernel, whose temperatures the "
            f"evidence is made of, got {type(mcmc.sampler).__name__}."
        )
    if mcmc.last_state is None:
        raise ValueError("mcmc must have been run: call mcmc.run(rng_key, ...) first.")
    mcmc.sampler.check_evidence()
    fields = mcmc.get_extra_fields(group_by_chain=True)
    log_likelihood = np.asarray(fields["replica_log_likelihood"], dtype=np.float64)
    if log_likelihood.shape[1] < _FEWEST_DRAWS:
        raise ValueError(
            f"mcmc must hold at least {_FEWEST_DRAWS} draws of each chain, got "
            f"{log_likelihood.shape[1]}."
        )
    temperatures = np.asarray(mcmc.last_state.temperatures, dtype=np.float64)
    return np.atleast_2d(temperatures), log_likelihood


def _why_no_mean(log_likelihood: np.ndarray) -> str:
    """Why some mean log likelihood is not estimated; empty if all are."""
    if not np.all(np.isfinite(log_likelihood)):
        return (
            "Some draws have likelihood zero, so the mean log likelihood at their "
            "temperature is minus infinity"
        )
    # Only the prior's can be infinite: elsewhere exp(-t * log_likelihood) has a mean.
    of_prior = log_likelihood[..., 0].reshape(-1)
    with np.errstate(divide="ignore"):
        pareto_k = pareto_smooth(np.log(of_prior.max() - of_prior)).pareto_k
    if pareto_k > MAX_PARETO_K:
        return (
            "The log likelihood of draws of the prior has too heavy a tail to know its "
            f"mean (Pareto k = {pareto_k:.2f} > {MAX_PARETO_K}), as where a scale may "
            "be near zero"
        )
    return ""


def _compare(
    integral: Estimate, discretisation: float, by_steps: Estimate, size: float
) -> None:
    """Warn if the two differ by more than their errors explain."""
    noise = 3 * np.hypot(integral.standard_error, by_steps.standard_error)
    # A log likelihood far from 0 is itself rounded, in float32 most likely.
    rounding = 16 * np.finfo(np.float32).eps * size
    difference = integral.value - by_steps.value
    if not abs(difference) <= noise + discretisation + rounding:
        warnings.warn(
            "The two estimates of the log evidence disagree: thermodynamic "
            f"{integral.value:.3f} ± {integral.standard_error:.3f} (discretisation "
            f"{discretisation:.3f}), steppingstone "
            f"{by_steps.value:.3f} ± {by_steps.standard_error:.3f}. Take more "
            "temperatures, or a longer warm-up for the ladder, and more draws.",
            stacklevel=3,
        )
