"""One call for the posterior: the cheapest sampler whose diagnostics hold."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, Predictive, init_to_sample, init_to_uniform

from numpyro_kaem._checks import as_count, check_function, check_key
from numpyro_kaem.infer.annealed import AnnealedLangevin
from numpyro_kaem.infer.evidence import why_replicas_stay
from numpyro_kaem.infer.importance import ImportanceSampling
from numpyro_kaem.infer.importance_result import ImportanceResult
from numpyro_kaem.infer.missed_modes import MissedModes, check_missed_modes
from numpyro_kaem.infer.target import check_model, prior_is_exact
from numpyro_kaem.infer.tempered import TemperedSMC, TemperedSMCResult, why_runs_differ
from numpyro_kaem.infer.weights import MAX_PARETO_K

__all__ = ["PosteriorSample", "sample_posterior"]

# What is asked of chains since Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021).
_MAX_R_HAT = 1.01
_MIN_ESS = 400
_NUM_CHAINS = 4
_MOST_PARTICLES = 262_144


@dataclass(frozen=True, repr=False)
class PosteriorSample:
    """Draws of a posterior, and how they were made; by :func:`sample_posterior`."""

    samples: dict[str, jax.Array]
    """Draws of latent and deterministic sites, each ``(num_samples, *site)``."""
    sampler: str
    """``"importance"``, the name of the kernel, ``"TemperedSMC"`` or
    ``"AnnealedLangevin"``."""
    reliable: bool
    """Whether the diagnostics of that sampler hold."""
    report: tuple[str, ...]
    """What was tried, what came of it and what was done then, in words."""
    importance: ImportanceResult | None = None
    """Importance sampling, where it was tried."""
    mcmc: MCMC | None = None
    """The run that ``samples`` come from, if it is one of MCMC."""
    missed_modes: MissedModes | None = None
    """Comparison of the kernel's run with the tempered one, where it was asked for and
    the kernel's own diagnostics hold."""
    tempered: TemperedSMCResult | None = None
    """Tempered sequential Monte Carlo, where it was tried."""

    def __repr__(self) -> str:
        return "\n".join(self.report)


def sample_posterior(
    rng_key: jax.Array,
    model: Callable,
    *model_args: Any,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_particles: int = 4096,
    kernel: Callable = NUTS,
    check_modes: bool = False,
    progress_bar: bool = True,
    **model_kwargs: Any,
) -> PosteriorSample:
    r"""Sample the posterior of a model with the cheapest adequate sampler.

    1. Importance sampling from the prior. It is kept if the Pareto :math:`\hat k` is at
       most 0.7 and the effective sample size at least 400. More particles are drawn if
       that would do, or if the size is less than half of ``num_samples``.
    2. Otherwise four chains of ``kernel``, started at draws of the prior. They are kept
       if :math:`\hat R` is at most 1.01 and the effective sample size at least 400 for
       every component, and less than one draw in a hundred diverged.
    3. Otherwise, or if ``check_modes`` finds that the chains missed a mode, particles
       of :class:`TemperedSMC`, run a second time with other moves: both must agree on
       the evidence, and the effective sample size between islands be at least 400. Or
       eight populations of :class:`AnnealedLangevin`, whose replicas must travel, if
       the prior cannot be drawn from.

    Parameters
    ----------
    rng_key
        Random key.
    model
        A NumPyro model with continuous latent sites and observed ones.
    *model_args, **model_kwargs
        Arguments of the model.
    num_samples
        Number of draws to return.
    num_warmup
        Warm-up iterations per chain.
    num_particles
        Number of draws of the prior for importance sampling, at first.
    kernel
        Makes the kernel of the second step from ``model`` and ``init_strategy``:
        :class:`numpyro.infer.NUTS`, or :class:`MALA` where gradients are expensive.
    check_modes
        Whether to run the third step in any case where the chains are used, and
        compare: chains that have all missed the same mode agree with each other.
    progress_bar
        Whether to show the progress of MCMC, and to print what is done and why.

    Returns
    -------
    PosteriorSample
        The draws; its ``report`` says what was done and why.

    Raises
    ------
    TypeError
        If ``model`` or ``kernel`` is not callable, the key is none, or a number is not
        an integer.
    ValueError
        If a number is not positive; if the model has discrete latent sites, no latent
        or no observed site, or a subsampled plate.

    Warns
    -----
    UserWarning
        If the diagnostics of the last sampler do not hold either.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization,
    folding, and localization: an improved R-hat for assessing convergence of MCMC",
    *Bayesian Analysis* 16(2), on the limits of 1.01 and 400.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro_kaem.infer import sample_posterior
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    ...     numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> data = jnp.array([0.8, 1.4])
    >>> result = sample_posterior(jax.random.key(0), model, data, progress_bar=False)
    >>> result.sampler, result.reliable, result.samples["mean"].shape
    ('importance', True, (1000,))
    >>> result.report[0]
    'Importance sampling with 4096 draws of the prior: Pareto k ...'
    """
    num_samples = as_count("num_samples", num_samples)
    num_warmup = as_count("num_warmup", num_warmup)
    num_particles = as_count("num_particles", num_particles)
    what = "what makes an MCMCKernel of a model, as numpyro.infer.NUTS does"
    check_function("kernel", kernel, what)
    check_function("model", model, "a NumPyro model, a callable")
    check_key(rng_key)
    keys = jax.random.split(rng_key, 5)
    trace = check_model(model, keys[0], model_args, model_kwargs)
    exact = prior_is_exact(trace)
    report: list[str] = []
    importance = missed = tempered = None

    def note(line: str) -> None:
        report.append(line)
        if progress_bar:
            print(line)

    def taken(mcmc: MCMC, name: str, reliable: bool) -> PosteriorSample:
        """Take the wanted number of draws, evenly spaced over all chains."""
        samples = mcmc.get_samples()
        total = len(next(iter(samples.values())))
        rows = np.linspace(0, total - 1, num_samples).round().astype(int)
        samples = {site: draws[rows] for site, draws in samples.items()}
        return PosteriorSample(
            samples, name, reliable, tuple(report), importance, mcmc, missed, tempered
        )

    if exact:
        wanted = max(_MIN_ESS, num_samples // 2)
        for _ in range(2):
            sampler = ImportanceSampling(model, num_samples=num_particles)
            weighted = sampler.run(keys[0], *model_args, **model_kwargs)
            size, tail = float(weighted.ess), float(weighted.pareto_k)
            summary = (
                f"Importance sampling with {num_particles} draws of the prior: Pareto "
                f"k {tail:.2f}, effective sample size {size:.0f}."
            )
            if not (tail <= MAX_PARETO_K and _MIN_ESS / 8 <= size < wanted):
                break
            # Good weights, and too few of them: they are cheap.
            more = -(-int(num_particles * 1.2 * wanted / size) // 1024) * 1024
            num_particles = min(more, _MOST_PARTICLES)
            note(f"{summary} More are drawn.")
        importance = weighted
        if tail <= MAX_PARETO_K and size >= _MIN_ESS:
            note(f"{summary} Kept.")
            samples = weighted.resample(keys[1], num_samples)
            computed = [k for k in trace if trace[k]["type"] == "deterministic"]
            if computed:
                predict = Predictive(model, samples, return_sites=computed)
                samples |= predict(keys[4], *model_args, **model_kwargs)
            return PosteriorSample(
                samples, "importance", True, tuple(report), importance
            )
        note(
            f"{summary} Not enough: at most {MAX_PARETO_K} and at least {_MIN_ESS} are "
            "needed."
        )
    else:
        note(
            "The prior cannot be drawn from exactly, so that importance sampling has "
            "no proposals."
        )

    def run(key: jax.Array, chosen: Any, num_chains: int, least: int) -> MCMC:
        mcmc = MCMC(
            chosen,
            num_warmup=num_warmup,
            num_samples=max(-(-num_samples // num_chains), least),
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=progress_bar,
        )
        fields = ("diverging",) if isinstance(chosen, NUTS) else ()
        mcmc.run(key, *model_args, extra_fields=fields, **model_kwargs)
        return mcmc

    start = init_to_sample if exact else init_to_uniform
    made = kernel(model, init_strategy=start)
    name = type(made).__name__
    mcmc = run(keys[2], made, _NUM_CHAINS, _MIN_ESS)
    holds, summary = _diagnose(mcmc, name)
    note(summary)
    if holds and not check_modes:
        note(
            "Kept. Chains that all miss the same mode look the same: check_modes=True "
            "compares them with particles from the prior."
        )
        return taken(mcmc, name, True)
    if exact:
        last = "TemperedSMC"
        smc = TemperedSMC(model, check=True, progress_bar=progress_bar)
        with warnings.catch_warnings():
            # The report says it.
            warnings.filterwarnings("ignore", "log_evidence is")
            tempered = smc.run(keys[3], *model_args, **model_kwargs)
        other_holds, summary = _diagnose_particles(tempered)
        problem = why_runs_differ(tempered)
        if not (other_holds or problem):
            note(f"{summary} Four times as many are taken.")
            smc = TemperedSMC(
                model,
                num_particles=4 * smc.num_particles,
                progress_bar=progress_bar,
            )
            tempered = smc.run(keys[3], *model_args, **model_kwargs)
            other_holds, summary = _diagnose_particles(tempered)
        other = tempered
    else:
        last = "AnnealedLangevin"
        population = AnnealedLangevin(model, init_strategy=start)
        # Replicas take many iterations to cross the ladder.
        other = run(keys[3], population, 2 * _NUM_CHAINS, 5 * _MIN_ESS)
        other_holds, summary = _diagnose(other, last)
        problem = why_replicas_stay(other)
    note(summary)
    if problem:
        note(problem)
    if holds:
        missed = check_missed_modes(mcmc, other)
        note(str(missed))
        if not missed.found:
            note(f"The draws of {name} are kept.")
            return taken(mcmc, name, True)
    note(f"The draws of {last} are taken.")
    other_holds = other_holds and not problem
    if not other_holds:
        note(
            "They are not reliable either: reparameterise the model, for instance with "
            "numpyro.infer.reparam.LocScaleReparam, use a longer warm-up, or look for "
            "parameters that the data do not identify."
        )
        warnings.warn("\n".join(report), UserWarning, stacklevel=2)
    if tempered is None:
        return taken(other, last, other_holds)
    samples = tempered.resample(keys[4], num_samples)
    return PosteriorSample(
        samples, last, other_holds, tuple(report), importance, None, missed, tempered
    )


def _diagnose_particles(result: TemperedSMCResult) -> tuple[bool, str]:
    """Whether islands agree, and a line that says so."""
    values = [
        np.asarray(draws, np.float64).reshape(result.num_particles, -1)
        for draws in result.samples.values()
    ]
    size = float(result.effective_sizes(np.concatenate(values, axis=1)).min())
    value, error = result.log_evidence
    summary = (
        f"TemperedSMC with {result.num_particles} particles: log evidence {value:.2f} "
        f"± {error:.2f}, least effective sample size between islands {size:.0f}"
    )
    if size < _MIN_ESS:
        summary += f" (at least {_MIN_ESS} are needed)"
    return size >= _MIN_ESS, summary + "."


def _diagnose(mcmc: MCMC, name: str) -> tuple[bool, str]:
    """Whether the chains agree and are long enough, and a line that says so."""
    worst_r_hat, least_size = 1.0, np.inf
    for draws in mcmc.get_samples(group_by_chain=True).values():
        draws = np.asarray(draws, np.float64)
        draws = draws.reshape(*draws.shape[:2], -1)
        # A deterministic site may be constant: it has no distribution to agree upon.
        draws = draws[..., np.ptp(draws, axis=(0, 1)) > 0]
        if draws.shape[-1] == 0:
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            r_hat = np.nan_to_num(split_gelman_rubin(draws), nan=np.inf)
            size = np.nan_to_num(effective_sample_size(draws), nan=0.0)
        worst_r_hat = max(worst_r_hat, float(np.max(r_hat)))
        least_size = min(least_size, float(np.min(size)))
    divergences = np.mean(mcmc.get_extra_fields().get("diverging", np.zeros(1)))
    holds = worst_r_hat <= _MAX_R_HAT and least_size >= _MIN_ESS and divergences < 0.01
    summary = (
        f"{mcmc.num_chains} chains of {name}: largest R-hat {worst_r_hat:.3f}, least "
        f"effective sample size {least_size:.0f}"
    )
    if divergences > 0:
        summary += f", {divergences:.1%} of the draws diverged"
    if not holds:
        summary += f" (at most {_MAX_R_HAT} and at least {_MIN_ESS} are needed)"
    return bool(holds), summary + "."
