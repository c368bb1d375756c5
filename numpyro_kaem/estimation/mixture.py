"""Joint densities from samples: mixtures of products."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem._checks import as_count, as_positive
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation.density import choose_parts
from numpyro_kaem.estimation.mixture_em import (
    MixtureFit,
    Problem,
    expect,
    fit_product_mixture,
    from_labels,
    k_means,
    make_problem,
)
from numpyro_kaem.estimation.samples import (
    Numbers,
    as_penalty,
    coarse,
    joint_samples,
)

__all__ = ["fit_mixture"]

# A component with fewer samples than this describes none.
_FEWEST = 0.5


def fit_mixture(
    samples: Numbers,
    num_components: int | Sequence[int],
    basis: AbstractBasis | None = None,
    reference: dist.Distribution | None = None,
    *,
    support: str | tuple[Numbers, Numbers] | None = None,
    penalty: Numbers | None = None,
    pseudo_count: float = 1.0,
    weights: Numbers | None = None,
    start: dist.MixtureSameFamily | None = None,
    refinement: int | None = None,
    rng_key: jax.Array | None = None,
    num_starts: int = 1,
    num_folds: int = 5,
    max_steps: int = 500,
    tolerance: float = 2e-5,
    rounding: Numbers | str | None = None,
) -> dist.MixtureSameFamily:
    r"""Fit a joint density to samples: a mixture of products of one-dimensional ones.

    .. math::

        p(z) = \sum_{k=1}^K \alpha_k \prod_{d=1}^D \pi_{k,d}(z_d), \qquad
        \pi_{k,d}(z) \propto e^{f_{k,d}(z)}\,\pi_{0,d}(z).

    Dimensions are independent within a component, and dependent in the mixture. It is
    fitted by expectation and maximisation: every maximisation is the exact penalised
    fit of :func:`fit_density` for each component and dimension, with the
    responsibilities of the component as weights.

    Parameters
    ----------
    samples
        Samples, shape ``(n, dim)``; finite and concrete.
    num_components
        Number :math:`K` of components, at most the number of samples. Of several
        candidates that with the largest held-out log likelihood in cross-validation is
        taken.
    basis
        Features, with one grid for all dimensions or one for each; all components share
        it. ``None`` takes that of :func:`fit_density` for all samples.
    reference
        Reference distributions :math:`\pi_{0,d}`, of a batch shape that broadcasts to
        ``(dim,)``; they set the tails. ``None`` follows ``support``.
    support
        As for :func:`fit_density`: ``"real"``, ``"positive"``, or ``(low, high)`` with
        numbers or arrays of shape ``(dim,)``.
    penalty
        Weight of the roughness of every energy, broadcasting to ``(dim,)``. ``None``
        chooses one for each component and dimension, see Notes.
    pseudo_count
        Number :math:`\nu \ge 0` of samples of all components together that each
        component is given in every dimension beside its own, so that one with few
        samples does not become much narrower than they tell: the penalty does not
        prevent it.
    weights
        Importance weights, shape ``(n,)``, as for :func:`fit_density`.
    start
        Mixture to start from in place of clusters, such as the fit to samples that have
        changed a little since. Its number of components and its basis are those of the
        fit; components keep their order, and none is left out: each has a proportion of
        at least half a sample.
    refinement
        Of the components, as for :class:`KAEMPrior`.
    rng_key
        Random key of the first division into clusters and of the folds; ``None`` is
        ``jax.random.key(0)``.
    num_starts
        Number of divisions to start from; the best penalised likelihood is taken.
    num_folds
        Number of folds that compare several candidates.
    max_steps
        Largest number of iterations of a start.
    tolerance
        Gain of the penalised log likelihood per sample below which iterations stop.
    rounding
        Spacing of rounded samples, broadcasting to ``(dim,)``, as for
        :func:`fit_density`. Here they are spread over their intervals at random.

    Returns
    -------
    MixtureSameFamily
        Concrete, with ``event_shape`` ``(dim,)``. Its ``component_distribution`` is a
        :class:`KAEMPrior` of batch shape ``(num_components, dim)`` with
        ``to_event(1)``, whose ``base_dist`` can be plotted.

    Raises
    ------
    TypeError
        If an argument is traced or of a wrong type.
    ValueError
        If samples are not ``(n, dim)``, there are fewer than components or folds, a
        number is out of its range, the start has another basis or number of components,
        or as :func:`fit_density` raises.

    Warns
    -----
    UserWarning
        If there are few samples of many dimensions; if rounding is found; if iterations
        reach ``max_steps``; if components are left without samples, and so out of the
        mixture.

    Notes
    -----
    - **Start.** Clusters about means (k-means++) of the samples in units of their
      standard deviations.
    - **Penalty.** It is chosen by the evidence, as :func:`fit_density` does, in
      iterations 1, 4, 9 and 16, and held between them and afterwards. So from there the
      penalised likelihood does not decrease, to rounding; only then may it stop.
    - **Pseudo-count.** A Normal density is a quadratic energy, which has no roughness,
      however narrow it is. Fitted to :math:`m` samples, its variance falls short by a
      factor of :math:`1 - 1/m` on average, which adds up where a mixture is fitted
      again and again to draws of the last fit, as in :class:`PriorRefit`. With
      :math:`\nu` samples of all the variance stays above :math:`\nu / (1 + \nu)` of
      that of all samples. It is the conjugate prior of these densities (Fraley and
      Raftery 2007).
    - **Number of components.** Curved shapes in two dimensions take 10 to 30, from
      5,000 samples. One too many costs little, because its energies are smooth where it
      has few samples. Components have no order, and are not clusters of the population.
    - **Cost.** One iteration is a pass over the samples, of ``n * dim * num_features *
      num_components`` multiplications, and Newton's method for all columns at once, the
      cost of which does not depend on ``n``. Code is compiled once per shape.

    References
    ----------
    Dempster, Laird and Rubin (1977), "Maximum likelihood from incomplete data via the
    EM algorithm", *Journal of the Royal Statistical Society B* 39(1).
    Levine, Hunter and Chauveau (2011), "Maximum smoothed likelihood for multivariate
    mixtures", *Biometrika* 98(2).
    Fraley and Raftery (2007), "Bayesian regularization for normal mixture estimation
    and model-based clustering", *Journal of Classification* 24(2).
    Benaglia, Chauveau and Hunter (2009), "An EM-like algorithm for semi- and
    nonparametric estimation in multivariate mixtures", *Journal of Computational and
    Graphical Statistics* 18(2).

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> rng = np.random.default_rng(0)
    >>> first = rng.normal(size=500)
    >>> samples = np.stack([first, first + 0.3 * rng.normal(size=500)], axis=-1)
    >>> mixture = kaem.fit_mixture(samples, num_components=6)
    >>> draws = mixture.sample(jax.random.key(0), (4000,))
    >>> bool(np.corrcoef(draws.T)[0, 1] > 0.8)
    True
    """
    data, shares, num_effective, widths, rng = joint_samples(
        "fit_mixture",
        rng_key,
        samples,
        weights,
        reference,
        support,
        rounding,
        penalty,
        basis,
        start,
    )
    candidates = _as_candidates(num_components, int(np.sum(shares > 0)))
    num_folds = as_count("num_folds", num_folds, 2)
    if len(candidates) > 1 and num_folds > np.sum(shares > 0):
        raise ValueError(
            "num_folds must be at most the number of samples of positive weight, "
            f"{np.sum(shares > 0)}, got {num_folds}."
        )
    num_starts = as_count("num_starts", num_starts)
    max_steps = as_count("max_steps", max_steps)
    tolerance = as_positive("tolerance", tolerance)
    penalty = as_penalty(penalty, data.shape[1:])
    pseudo_count = as_positive("pseudo_count", pseudo_count, or_zero=True)
    if start is not None and basis is None:
        basis = _energy_of(start).basis
    basis, reference, parameters = choose_parts(
        data, shares[:, None], basis, reference, support
    )
    coarse(widths, basis, rounding)
    problem = make_problem(basis, parameters, data, shares, num_effective)
    fit_from = partial(
        fit_product_mixture,
        penalty=penalty,
        pseudo_count=pseudo_count,
        max_steps=max_steps,
        tolerance=tolerance,
    )

    def fit_clusters(problem: Problem, count: int) -> MixtureFit:
        """Best of several fits, started from different clusters."""
        weights = np.asarray(problem.shares, float)
        mean = weights @ data
        scale = np.sqrt(weights @ np.square(data - mean))
        points = (data - mean) / np.where(scale > 0, scale, 1)
        fits = []
        for _ in range(num_starts):
            labels = k_means(rng, points, weights, count)
            fits.append(fit_from(problem, from_labels(problem, labels, count)))
        return max(fits, key=lambda fit: fit.objective[-1])

    if start is not None:
        first = _as_start(start, basis, candidates)
        fit = fit_from(problem, expect(problem, *first)[1:])
    else:
        if len(candidates) > 1:
            folds = np.argsort(rng.permutation(len(data))) % num_folds
            scores = [_score(problem, k, folds, fit_clusters) for k in candidates]
            candidates = [candidates[int(np.argmax(scores))]]
        fit = fit_clusters(problem, candidates[0])
    if not fit.converged:
        warnings.warn(
            f"the fit stopped after max_steps={max_steps} iterations, the last of "
            f"which gained {fit.gain:.1e} per sample; use a larger max_steps.",
            UserWarning,
            stacklevel=2,
        )
    counts = np.exp(np.asarray(fit.log_weights, float)) * num_effective
    kept = (counts >= _FEWEST) | (start is not None)
    if not kept.all():
        warnings.warn(
            f"{np.sum(~kept)} of {len(kept)} components were left without samples, and "
            f"the mixture has {np.sum(kept)}; use a smaller num_components.",
            UserWarning,
            stacklevel=2,
        )
    logits = np.log(np.maximum(counts[kept], _FEWEST))
    logits = jax.nn.log_softmax(jnp.asarray(logits, fit.log_weights.dtype))
    energy = Energy(basis, fit.coefficients[kept])
    component = KAEMPrior(energy, reference, refinement=refinement).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), component)


def _score(
    problem: Problem,
    num_components: int,
    folds: np.ndarray,
    fit_clusters: Callable[[Problem, int], MixtureFit],
) -> float:
    """Mean log likelihood of the folds, each held out of a fit."""
    total = 0.0
    for fold in range(folds.max() + 1):
        # Samples are left out by their weights: all folds share compiled code.
        inside = jnp.asarray(folds != fold, problem.shares.dtype)
        kept, left = problem.shares * inside, problem.shares * (1 - inside)
        share = float(jnp.sum(kept))
        if not 0 < share < 1:
            continue
        training = problem._replace(
            shares=kept / share, num_effective=problem.num_effective * share
        )
        fit = fit_clusters(training, num_components)
        rest = problem._replace(shares=left)
        total += float(expect(rest, fit.log_weights, fit.coefficients)[0])
    return total


def _energy_of(mixture: Any) -> Energy:
    """Energies of the components of a mixture of products."""
    component = getattr(mixture, "component_distribution", None)
    while isinstance(component, dist.Independent):
        component = component.base_dist
    if not (
        isinstance(mixture, dist.MixtureSameFamily) and isinstance(component, KAEMPrior)
    ):
        raise TypeError(
            "start must be a MixtureSameFamily of KAEMPrior, such as fit_mixture gives,"
            f" got {type(mixture).__name__}."
        )
    return component.energy


def _as_start(
    start: dist.MixtureSameFamily, basis: AbstractBasis, candidates: list[int]
) -> tuple[jax.Array, jax.Array]:
    """Log proportions and coefficients of a mixture to start from."""
    energy = _energy_of(start)
    log_weights = jnp.log(start.mixing_distribution.probs)
    if candidates != [len(log_weights)]:
        raise ValueError(
            f"num_components must be that of start, {len(log_weights)}, got "
            f"{candidates}."
        )
    plain = energy.base_weight is None or not np.any(energy.base_weight)
    if not (plain and eqx.tree_equal(energy.basis, basis)):
        raise ValueError(
            "start must have the basis of the fit and no base activation, got "
            f"{energy.basis} in place of {basis}."
        )
    return log_weights, energy.coefficients


def _as_candidates(num_components: Any, num_samples: int) -> list[int]:
    """Check the numbers of components, one or several."""
    single = not isinstance(num_components, Sequence | np.ndarray)
    candidates = [num_components] if single else list(num_components)
    if not candidates or isinstance(num_components, str):
        raise ValueError(
            "num_components must be a positive integer or several of them, got "
            f"{num_components!r}."
        )
    candidates = [as_count("num_components", k) for k in candidates]
    if max(candidates) > num_samples:
        raise ValueError(
            "num_components must be at most the number of samples of positive weight, "
            f"{num_samples}, got {max(candidates)}."
        )
    return candidates
