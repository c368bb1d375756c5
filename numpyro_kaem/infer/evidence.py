"""The evidence, from the log likelihoods of an annealed population."""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

from numpyro_kaem.infer.annealed import AnnealedLangevin
from numpyro_kaem.infer.tempered import TemperedSMCResult, student_scale
from numpyro_kaem.infer.weights import MAX_PARETO_K, Estimate, pareto_smooth

__all__ = ["Evidence", "log_evidence", "why_replicas_stay"]

# Below this a series has no autocorrelation to speak of.
_FEWEST_DRAWS = 8
# Round trips of all replicas with which something is known of the modes, and the least
# share of what swaps alone would allow.
_FEWEST_TRIPS, _LEAST_SHARE = 10, 0.1
_FEWEST_SWAPS = 0.1
# Of chains, in their own errors.
_MAX_SPREAD = 3.0


@dataclass(frozen=True, repr=False)
class Evidence:
    """Log evidence of a model, by three estimators; made by :func:`log_evidence`."""

    thermodynamic: Estimate
    """Thermodynamic integral by the corrected trapezoid."""
    steppingstone: Estimate
    """Sum of the log ratios of neighbouring temperatures' normalizing constants, each
    estimated from the draws at the lower one."""
    backward_steppingstone: Estimate
    """The same sum from the draws at the upper ones; NaN where the integral is, as the
    upper ones know too little of where the likelihood is nearly zero."""
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
                ("backward", self.backward_steppingstone),
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

    def rule(i: Any, j: Any) -> Any:
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
    may be minus infinity. The product of the means has no discretisation error. For
    temperatures that decrease, from 1 to 0, it is minus the log evidence.
    """
    log_weights = np.diff(temperatures) * log_likelihood[:, :-1]
    largest = log_weights.max(0)
    weights = np.exp(log_weights - np.where(np.isfinite(largest), largest, 0.0))
    mean = weights.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.sum(largest + np.log(mean))
        influence = np.sum(weights / mean - 1, -1)
    return _Series(float(value), influence, 0.0)


def combine(chains: list[_Series], sign: float = 1.0) -> tuple[Estimate, float]:
    """Mean of the chains' estimates times ``sign``, and their discretisation error.

    The standard error is the largest of three: that of all draws with their
    autocorrelation and the differences between chains, that of means over batches, and,
    of four chains or more, that between chains.
    """
    values = np.array([chain.value for chain in chains])
    value = sign * float(values.mean())
    discretisation = float(abs(np.mean([chain.discretisation for chain in chains])))
    if not np.all(np.isfinite(values)):
        return Estimate(value, np.nan), discretisation
    series = values[:, None] + np.stack([chain.influence for chain in chains])
    variance = series.var(ddof=1)
    scale = np.finfo(np.float64).eps * max(1.0, np.abs(values).max())
    if variance <= scale**2:
        # A constant likelihood: the draws know it exactly.
        return Estimate(value, 0.0), discretisation
    count, num_draws = series.shape
    errors = [np.sqrt(variance / effective_sample_size(series))]
    size = int(num_draws**0.5)
    batches = series[:, -(num_draws // size) * size :].reshape(-1, size).mean(1)
    errors.append(batches.std(ddof=1) / np.sqrt(len(batches)))
    if count >= 4:
        errors.append(values.std(ddof=1) / np.sqrt(count) * student_scale(count))
    return Estimate(value, float(max(errors))), discretisation


def log_evidence(mcmc: MCMC | TemperedSMCResult) -> Evidence:
    r"""Log evidence :math:`\log p(x)` of the model that a population was run on.

    Three estimators use the log likelihoods :math:`\ell` at all temperatures: the
    thermodynamic integral :math:`\int_0^1 \mathrm{E}_t[\ell]\,dt`, the steppingstone
    sum :math:`\sum_k \log \mathrm{E}_{t_k}[e^{(t_{k+1} - t_k) \ell}]`, and the same
    backward, :math:`-\sum_k \log \mathrm{E}_{t_{k+1}}[e^{-(t_{k+1} - t_k) \ell}]`. They
    share the draws but not their weaknesses: few temperatures bias the first, few draws
    with most of the weight make the second too small and the third too large. A warning
    tells when they disagree.

    Parameters
    ----------
    mcmc
        A NumPyro ``MCMC`` of an :class:`~numpyro_kaem.infer.AnnealedLangevin` kernel
        that has been run, with any number of chains, eight at best: the error is known
        from their differences; no extra fields are needed. Or a
        result of :class:`~numpyro_kaem.infer.TemperedSMC`, whose own ``log_evidence``
        the steppingstone sum is; each island counts as a chain.

    Returns
    -------
    Evidence
        ``.thermodynamic``, ``.steppingstone`` and ``.backward_steppingstone``, each
        with ``.value`` and ``.standard_error``, and the ``.discretisation_error`` of
        the first.

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
        If two estimates differ by more than three standard errors and the
        discretisation error; if the replicas hardly travel between prior and posterior:
        fewer than 10 round trips in all, or a tenth of what the swaps would make of
        draws that are independent; if chains differ by three times their own errors; or
        if the thermodynamic integral and the backward steppingstone are not estimated,
        and are NaN, because the mean log likelihood of draws of the prior is not: some
        have likelihood zero, or the tail is too heavy (Pareto k above 0.7).

    Notes
    -----
    The standard errors are those of the estimators linearised in the draws, a series
    over iterations that includes the correlations between temperatures: the largest of
    those by autocorrelation, between batches of iterations and between chains. A
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
    Syed, Bouchard-Côté, Deligiannidis and Doucet (2022), "Non-reversible parallel
    tempering: a scalable highly parallel MCMC scheme", *Journal of the Royal
    Statistical Society B* 84(2), on the rate of round trips.

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
    with np.errstate(invalid="ignore", over="ignore"):
        integrals = [thermodynamic_integral(*chain) for chain in both]
        backward = [steppingstone(t[::-1], draws[:, ::-1]) for t, draws in both]
    integral, discretisation = combine(integrals)
    if of_particles:
        by_steps = mcmc.log_evidence
        # What a ladder does not hold is the share of the prior it starts from.
        starts = mcmc.island_log_evidence - [part.value for part in ratios]
        integral = _between(starts + [part.value for part in integrals])
        by_back_steps = _between(starts - [part.value for part in backward])
    else:
        by_steps, _ = combine(ratios)
        by_back_steps, _ = combine(backward, -1.0)
        for reason in (why_replicas_stay(mcmc), _why_chains_differ(ratios)):
            if reason:
                warnings.warn(f"{reason} The log evidence may be wrong.", stacklevel=2)
    reason = _why_no_mean(log_likelihood)
    if reason:
        # From above, nothing or too little is seen of such draws of the prior.
        integral = by_back_steps = Estimate(np.nan, np.nan)
        discretisation = np.nan
        warnings.warn(
            f"{reason}, and the thermodynamic integral is not estimated, nor the "
            "backward steppingstone; the steppingstone is.",
            stacklevel=2,
        )
    size = np.abs(log_likelihood[..., -1]).max()
    _compare(by_steps, by_back_steps, integral, discretisation, size, len(both))
    means = log_likelihood.mean(1)
    return Evidence(
        integral, by_steps, by_back_steps, discretisation, temperatures, means
    )


def _between(values: np.ndarray) -> Estimate:
    """Mean over islands: particles are no series in time, so these tell the error."""
    count = len(values)
    error = values.std(ddof=1) / np.sqrt(count) * student_scale(count)
    return Estimate(float(values.mean()), float(error))


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


def _why_chains_differ(chains: list[_Series]) -> str:
    """Say that populations differ by more than their own errors, if they do."""
    values = np.array([chain.value for chain in chains])
    errors = np.array([combine([chain])[0].standard_error for chain in chains])
    own = np.sqrt(np.mean(errors**2))
    # Not a number where an estimate is none.
    if len(chains) == 1 or not values.std(ddof=1) > _MAX_SPREAD * own:
        return ""
    return (
        f"Chains give log evidences from {values.min():.2f} to {values.max():.2f}, "
        f"each with an error of {own:.2g} by itself: some have found what others have "
        "not. Raise num_warmup, num_local_steps or num_temperatures."
    )


def why_replicas_stay(mcmc: MCMC) -> str:
    """Give what keeps replicas from travelling and the remedy; empty if they travel."""
    state = mcmc.last_state
    acceptance = np.atleast_2d(np.asarray(state.mean_swap_acceptance, np.float64))
    trips = int(np.sum(state.round_trips))
    rejection = 1 - acceptance
    # Syed et al. (2022), section 3.4: with draws that are independent between swaps.
    odds = np.sum(rejection / np.maximum(acceptance, 1e-12), -1)
    expected = np.sum(np.atleast_1d(state.means.num_iterations) / (2 + 2 * odds))
    if trips >= max(_FEWEST_TRIPS, _LEAST_SHARE * expected):
        return ""
    barrier, least = rejection.sum(-1).mean(), acceptance.mean(0).min()
    count = acceptance.shape[-1] + 1
    told = (
        f"Replicas made {trips} round trips between prior and posterior in all, where "
        f"swaps alone would allow {expected:.0f} (communication barrier {barrier:.1f}, "
        f"least swap acceptance {least:.2g}): what is found at small t hardly reaches "
        "the posterior. "
    )
    if count < 2 * barrier or least < _FEWEST_SWAPS:
        # Where nearly all swaps are rejected, the barrier is larger than it shows.
        more = int(np.ceil(max(2 * barrier, 1.5 * count) / 5) * 5)
        return (
            f"{told}Use num_temperatures={more} or more, not {count}; or TemperedSMC."
        )
    if expected < _FEWEST_TRIPS:
        return f"{told}Raise num_samples, or num_chains; or use TemperedSMC."
    return (
        f"{told}Raise num_local_steps, so that local moves forget where a swap came "
        "from; or use TemperedSMC."
    )


def _compare(
    by_steps: Estimate,
    by_back_steps: Estimate,
    integral: Estimate,
    discretisation: float,
    size: float,
    count: int,
) -> None:
    """Warn if others differ from the steppingstone by more than errors explain."""
    # A log likelihood far from 0 is itself rounded, in float32 most likely.
    rounding = 16 * np.finfo(np.float32).eps * size
    # The logarithm of a mean is biased by half its variance, that of one chain.
    bias_of_log = (
        count / 2 * (by_steps.standard_error**2 + by_back_steps.standard_error**2)
    )
    for name, other, bias in (
        ("thermodynamic", integral, discretisation),
        ("backward steppingstone", by_back_steps, bias_of_log),
    ):
        noise = 3 * np.hypot(other.standard_error, by_steps.standard_error)
        # Not a number where it is not estimated.
        if abs(other.value - by_steps.value) > noise + bias + rounding:
            warnings.warn(
                "Two estimates of the log evidence disagree: "
                f"{name} {other.value:.3f} ± {other.standard_error:.3f} "
                f"(bias up to {bias:.3f}), steppingstone {by_steps.value:.3f} ± "
                f"{by_steps.standard_error:.3f}. Take more temperatures, or a longer "
                "warm-up for the ladder, and more draws; or TemperedSMC.",
                stacklevel=3,
            )
