"""A prior from many units by maximum marginal likelihood."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, check_key
from numpyro_kaem.bases import AbstractBasis, BSpline
from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.distributions.atoms import as_atoms
from numpyro_kaem.empirical_bayes.family import (
    Maximum,
    Model,
    Problem,
    free_names,
    maximise,
    posterior_masses,
)
from numpyro_kaem.empirical_bayes.likelihood import LogLikelihood, check_units
from numpyro_kaem.empirical_bayes.quadrature import (
    UnitQuadrature,
    node_positions,
    unit_log_marginal_likelihood,
    unit_quadrature,
)
from numpyro_kaem.empirical_bayes.results import MarginalFit
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation.exponential_family import best_penalty, make_design
from numpyro_kaem.estimation.samples import Numbers, as_float64, check_concrete
from numpyro_kaem.references import (
    ReferenceParameters,
    check_reference,
    support_bounds,
)

__all__ = ["fit_marginal"]

# Step of the log penalties, and how many there are at most.
_LOG_STEP = 1.2
_NUM_PENALTIES = 24
# The evidence of rougher priors is not looked at once it has fallen by so many nats
# twice; an error of the maximum of so many does not move its top.
_FALL = 3.0
_TOLERANCE = 0.01
# Share of the penalty of largest evidence that is used, so that the bias of smoothing
# stays small beside the standard error, and bands cover.
_UNDERSMOOTHING = 1 / 6
# Rounds in which the panels follow the fitted prior.
_MAX_ROUNDS = 3
# Features of a chosen basis; nats below its maximum to which a unit's likelihood says
# where its value lies; nodes and steps of the deconvolution.
_NUM_BASIS = 24
_DROP = 2.0
_NUM_NODES = 400
_EM_STEPS = 200
# Share of the spread beyond either end of the grid, before a margin in deviations.
_TAIL, _MARGIN = 1e-3, 2.0
# Nats by which the likelihood of a unit falls short on the grid of its maximum beyond:
# that of an interval of 95 %, and of four standard errors.
_SHORT, _FAR_SHORT = 1.92, 8.0


def fit_marginal(
    log_likelihood: LogLikelihood,
    basis: AbstractBasis | None = None,
    reference: dist.Distribution | None = None,
    *,
    counts: Numbers | None = None,
    penalty: ArrayLike | None = None,
    fit_reference: bool = False,
    atoms: Sequence[float] = (),
    num_starts: int = 3,
    rng_key: jax.Array | None = None,
) -> MarginalFit:
    r"""Learn a prior from many units by penalised maximum marginal likelihood.

    Unit :math:`i` has a latent value :math:`z_i \sim \pi` and data with the likelihood
    :math:`p(x_i \mid z_i)`. The prior is
    :math:`\pi(z) \propto e^{f(z)} \pi_0(z)` with the energy
    :math:`f = \sum_g c_g \phi_g`, and its coefficients are a maximum of

    .. math::

        \sum_i n_i \log \int p(x_i \mid z)\, \pi(z)\, \mathrm{d}z
        - \frac{\lambda}{2} \int_0^1 f'''(s)^2 \,\mathrm{d}s
        - \frac{\varepsilon}{2} \int_0^1 \bigl(f(s) - \bar f\bigr)^2 \,\mathrm{d}s,

    with :math:`s` the position in the grid and :math:`\varepsilon = 10^{-3}`. The
    integrals are quadratures: nothing is sampled.

    Parameters
    ----------
    log_likelihood
        Maps latent values ``(num_nodes,)`` to log likelihoods
        ``(num_units, num_nodes)``. :func:`unit_log_likelihood` makes one from the
        distribution of the observations.
    basis
        Features :math:`\phi`, with one grid that covers the latent values. ``None``
        chooses 24 B-splines on the range of the latent values with the units' noise
        taken out, see Notes, in the support of ``reference``.
    reference
        Reference distribution :math:`\pi_0` of batch shape (), which sets the tails
        beyond the grid; ``None`` is the uniform one on the grid of ``basis``, or
        without a ``basis`` the Normal with the mean and standard deviation of those
        values.
    counts
        How often each unit occurs, :math:`n_i`, shape ``(num_units,)``; non-negative,
        not all zero. ``None`` counts each once.
    penalty
        Weight :math:`\lambda > 0` of the roughness. ``None`` takes a sixth of the one
        with the largest marginal likelihood, see Notes.
    fit_reference
        Whether to fit all parameters of ``reference`` too, from the ones it has.
    atoms
        Latent values :math:`a_k` with probabilities :math:`w_k` of their own, such as
        ``(0.0,)``: the prior is
        :math:`\sum_k w_k \delta(z - a_k) + (1 - \sum_k w_k)\, \pi(z)`, and the weights
        are fitted with the coefficients.
    num_starts
        Number of starts, at least 3; the best maximum is returned. All are listed in
        ``log_posteriors`` of the result.
    rng_key
        Key of the random starts, if there are more than three; ``None`` is
        ``jax.random.key(0)``.

    Returns
    -------
    MarginalFit
        The fitted ``prior``, the maximised ``log_marginal_likelihood`` (without the
        penalty), how the fit converged, the ``covariance`` of the coefficients, and
        bands.

    Raises
    ------
    TypeError
        If an argument is traced or of a wrong type, ``reference`` is discrete, or with
        ``fit_reference`` the support of the reference depends on its parameters.
    ValueError
        If shapes do not fit, counts are negative, or the penalty is not positive; if a
        log likelihood is not a number or a unit has likelihood zero at every latent
        value, naming the unit; if atoms are not finite, are repeated, lie outside the
        support, or a likelihood is not a number there.

    Warns
    -----
    UserWarning
        If Newton's method does not converge, a likelihood is too narrow for the
        quadrature, or units' data place them off the grid.

    Notes
    -----
    - **Not concave.** The marginal likelihood may have several maxima. Newton's method
      starts from the flat energy and follows the maximum as the penalty falls; then, at
      the chosen penalty, it starts from there, from a rougher prior, from the prior
      that the units' own maximum likelihood values would have, and from random ones.
      Directions of negative curvature are followed uphill, so that every step ascends.
    - **Penalty.** The last two terms are the log of a Normal prior on the energy. The
      Laplace approximation of the marginal likelihood of :math:`\lambda` is maximised
      on a geometric grid, then over the parabola through the best three. A sixth of
      that is used, so that bands cover: in simulated deconvolutions those of nominally
      90 % covered 64 to 87 % at the maximum itself.
    - **The grid** that is chosen without a ``basis`` reaches from the .001 to the .999
      quantile of a nonparametric estimate (masses on 400 points, 200 steps of
      expectation maximisation), and two of its standard deviations beyond. Latent
      values that have bounds need a reference with that support, such as a Gamma or a
      Beta distribution.
    - **Panels** are split where a unit's likelihood is narrow, see
      :func:`unit_log_marginal_likelihood`.
    - **Atoms.** Their weights have a uniform prior: each atom and the density count as
      if one unit more were known to come from them. Weights are so never zero, and one
      near ``1 / num_units`` means that the data do not ask for the atom. The likelihood
      is the units' own at the atoms, and all parameters are found by the same steps.
    - **What is identified.** A density that rises to a peak narrower than the units'
      noise is as good as an atom, so the weight is known only for a smooth density: the
      penalty says how smooth. Where the true density peaks at the atom the weight is
      too large; where it dips there by less than the noise shows, too small. This is a
      mild form of the "zero assumption" of Efron (2008), that values near the atom
      are the atom. Standard errors take the penalty as known, and do not cover this:
      fit once more with a ``penalty`` so small that ``degrees_of_freedom`` rises by
      three or more. If the weight moves by much more than its first standard error,
      smoothness decides it and not the data.
    - **Cost.** A step costs a few products of the matrix of units by nodes.
      Equal units may be given once, with counts.

    References
    ----------
    Laird (1978), "Nonparametric maximum likelihood estimation of a mixing
    distribution", *Journal of the American Statistical Association* 73(364).
    Efron (2008), "Microarrays, empirical Bayes and the two-groups model", *Statistical
    Science* 23(1).
    Efron (2016), "Empirical Bayes deconvolution estimates", *Biometrika* 103(1).
    Wood (2011), "Fast stable restricted maximum likelihood and marginal likelihood
    estimation of semiparametric generalized linear models", *Journal of the Royal
    Statistical Society B* 73(1).

    Examples
    --------
    >>> import numpy as np
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> rng = np.random.default_rng(0)
    >>> latent = rng.choice([-2.0, 2.0], size=400) + 0.5 * rng.normal(size=400)
    >>> x = latent + rng.normal(size=400)
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    >>> fit = kaem.fit_marginal(
    ...     units, kaem.BSpline(-6.0, 6.0, 16), dist.Normal(0.0, 3.0)
    ... )
    >>> density = np.exp(fit.prior.log_prob(np.array([-2.0, 0.0, 2.0])))
    >>> bool(density[0] > 3 * density[1] and density[2] > 3 * density[1])
    True

    Half of the values are zero:

    >>> x = np.where(np.arange(400) < 200, 0.0, 3.0 * latent) + rng.normal(size=400)
    >>> units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    >>> fit = kaem.fit_marginal(
    ...     units, kaem.BSpline(-15.0, 15.0, 16), dist.Normal(0.0, 6.0), atoms=(0.0,)
    ... )
    >>> bool(abs(fit.atom_weights[0] - 0.5) < 2 * fit.atom_standard_errors[0] < 0.1)
    True
    """
    check_concrete("fit_marginal", basis, reference, counts, penalty, atoms)
    num_starts = as_count("num_starts", num_starts, 3)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key(rng_key)
    dtype = jnp.zeros(()).dtype
    num_units = check_units(log_likelihood, dtype)
    counts = _as_counts(counts, num_units)
    if basis is None:
        basis, reference = _choose_grid(log_likelihood, counts, reference, dtype)
    flat, parameters = _check_basis(basis, reference, dtype)
    names = free_names(parameters, fit_reference)
    points = jnp.zeros(0, dtype)
    if np.size(atoms):
        points = jnp.asarray(as_atoms(atoms, KAEMPrior(flat, reference)), dtype)
    model = Model(flat, make_design(basis, dtype), parameters, names, points)
    counts = jnp.asarray(counts, dtype)
    log_penalty = _as_log_penalty(penalty)
    energy = flat
    found: Any = None
    for _ in range(_MAX_ROUNDS):
        units = unit_quadrature(
            energy, parameters, 1, log_likelihood, points if len(points) else None
        )
        problem = model.problem(units, counts)
        if found is None:
            found = _search(model, problem, log_penalty, num_starts, rng_key)
            ridge = model.ridge(found.log_penalty)
            best = found.best
        else:
            # The panels have followed the prior: the same maximum, once more.
            best = maximise(problem, ridge, best.parameters, 0.0)
        prior = model.prior(best.parameters)
        energy = (prior.prior if len(points) else prior).energy
        marginals = unit_log_marginal_likelihood(prior, log_likelihood)
        total = float(jnp.dot(counts, marginals, precision="highest"))
        squares = jnp.dot(ridge, best.parameters**2, precision="highest")
        known = 0.0
        if len(points):
            known = float(jnp.log(prior.weights).sum() + jnp.log(prior.prior_weight))
        change = abs(total - float(best.value + 0.5 * squares - known))
        if change <= 1e4 * jnp.finfo(dtype).eps * (1 + abs(total)):
            break
    if not bool(best.converged):
        warnings.warn(
            f"the fit did not converge in {int(best.num_steps)} steps: another one "
            f"promises {float(best.decrement):.2g} nats. Use a larger penalty, fewer "
            "features, or float64.",
            UserWarning,
            stacklevel=2,
        )
    _warn_off_grid(model, log_likelihood, units, problem, best.parameters)
    return MarginalFit(
        prior=prior,
        log_marginal_likelihood=total,
        penalty=float(np.exp(found.log_penalty)),
        covariance=model.covariance(best.covariance),
        degrees_of_freedom=float(best.degrees_of_freedom),
        log_evidence=float(best.log_evidence) + _log_weights_prior(len(points)),
        converged=bool(best.converged),
        num_steps=found.num_steps,
        log_posteriors=found.log_posteriors,
        log_likelihood=log_likelihood,
        counts=np.asarray(counts),
        _model=model,
        _maximum=best,
        _ridge=ridge,
        _problem=problem,
        _panels=units.panels,
    )


def _log_weights_prior(num_atoms: int) -> float:
    """Log density of uniform weights, with the Laplace approximation's constant."""
    return math.lgamma(num_atoms + 1) + 0.5 * num_atoms * math.log(2 * math.pi)


# --- the search ----------------------------------------------------------------------


class _Found(NamedTuple):
    """The best of all maxima."""

    best: Maximum
    log_penalty: float
    log_posteriors: np.ndarray
    num_steps: int


def _search(
    model: Model,
    problem: Problem,
    log_penalty: float | None,
    num_starts: int,
    rng_key: jax.Array,
) -> _Found:
    """Best maximum over all starts, at the penalty that is given or chosen."""
    flat = model.start
    logs, path = _path(model, problem, flat, log_penalty)
    if log_penalty is None:
        evidence = np.array([float(maximum.log_evidence) for maximum in path])
        evidence = np.where(np.isfinite(evidence), evidence, -np.inf)
        with jax.enable_x64(True):
            _, top = best_penalty(jnp.asarray(logs), jnp.asarray(evidence))
        log_penalty = float(top) + float(np.log(_UNDERSMOOTHING))
    nearest = int(np.argmin(np.abs(logs - log_penalty)))
    rougher = min(nearest + 1, len(path) - 1)
    starts = [path[nearest].parameters, path[rougher].parameters]
    ridge = model.ridge(log_penalty)
    # The prior that the units' own maximum likelihood values would have. The reference
    # stays where it was: point masses may drive it to an edge.
    likelihood, count = problem.log_likelihood, problem.features.shape[1]
    peak = jnp.argmax(likelihood, axis=1)[:, None] == jnp.arange(likelihood.shape[1])
    observed = jnp.where(peak, 0.0, -jnp.inf).astype(likelihood.dtype)
    exact = problem._replace(log_likelihood=observed)
    sharpest = maximise(exact, ridge, flat, _TOLERANCE).parameters
    starts.append(jnp.concatenate([sharpest[:count], flat[count:]]))
    for key in jax.random.split(rng_key, num_starts)[3:]:
        deviation = 1 / jnp.sqrt(ridge)
        noise = jax.random.normal(key, flat.shape, flat.dtype)
        starts.append(flat + jnp.where(deviation < 3, deviation, 0) * noise)
    maxima = [maximise(problem, ridge, start, 0.0) for start in starts]
    values = np.array([float(maximum.value) for maximum in maxima])
    best = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    steps = sum(int(maximum.num_steps) for maximum in (*maxima, *path))
    return _Found(maxima[best], log_penalty, values, steps)


def _path(
    model: Model, problem: Problem, start: jax.Array, last: float | None
) -> tuple[np.ndarray, list[Maximum]]:
    """Falling log penalties, and maxima at these, each started from the one before."""
    logs, path, best, falls = [], [], -np.inf, 0
    top = np.log(10 * float(jnp.sum(problem.counts)))
    for step in range(_NUM_PENALTIES):
        logs.append(top - step * _LOG_STEP)
        maximum = maximise(problem, model.ridge(logs[-1]), start, _TOLERANCE)
        path.append(maximum)
        start = maximum.parameters
        if last is not None:
            # One step beyond, for a rougher start.
            if logs[-1] < last:
                break
            continue
        evidence = float(maximum.log_evidence)
        falls = falls + 1 if evidence < best - _FALL else 0
        best = max(best, evidence)
        if falls == 2:
            break
    return np.array(logs), path


# --- arguments -----------------------------------------------------------------------


def _check_basis(
    basis: Any, reference: Any, dtype: Any
) -> tuple[Energy, ReferenceParameters | None]:
    """Flat energy on a basis, and the parameters of the reference."""
    if not isinstance(basis, AbstractBasis):
        raise TypeError(
            "basis must be a basis such as numpyro_kaem.BSpline(low, high, num_basis), "
            f"got {type(basis).__name__}."
        )
    if basis.grid_shape != ():
        raise ValueError(
            "basis must have one grid, because all units share a prior, got a grid of "
            f"shape {basis.grid_shape}."
        )
    flat = Energy(basis, jnp.zeros(basis.num_features, dtype))
    if reference is None:
        return flat, None
    check_reference(reference, flat)
    if isinstance(reference, dist.Distribution) and reference.batch_shape != ():
        raise ValueError(
            "reference must have the batch shape (), because all units share a prior, "
            f"got {reference.batch_shape}."
        )
    return flat, ReferenceParameters.of(reference)


def _as_counts(counts: Any, num_units: int) -> np.ndarray:
    """How often each unit counts."""
    if counts is None:
        return np.ones(num_units)
    value = as_float64("counts", counts)
    if value.shape != (num_units,):
        raise ValueError(
            f"counts must have shape ({num_units},), one for each unit, got "
            f"{value.shape}."
        )
    bad = ~(np.isfinite(value) & (value >= 0))
    if bad.any():
        unit = int(np.argwhere(bad)[0][0])
        raise ValueError(
            f"counts must be finite and not negative, got {value[unit]} for unit "
            f"{unit}."
        )
    if not value.sum() > 0:
        raise ValueError("counts must not all be zero.")
    return value


def _as_log_penalty(penalty: Any) -> float | None:
    """Log weight of the roughness, if one is given."""
    if penalty is None:
        return None
    value = as_float64("penalty", penalty)
    if value.shape != () or not (np.isfinite(value) and value > 0):
        raise ValueError(
            "penalty must be one finite number > 0, or None to choose it, got "
            f"{penalty!r}; without a penalty the maximum is a sum of point masses."
        )
    return float(np.log(value))


# --- the grid ------------------------------------------------------------------------


def _choose_grid(
    log_likelihood: LogLikelihood,
    counts: np.ndarray,
    reference: dist.Distribution | None,
    dtype: Any,
) -> tuple[BSpline, dist.Distribution]:
    """Basis on the range of the latent values, and a Normal reference if none is given.

    The noise of the units is taken out by expectation maximisation of masses on a
    coarse grid (Laird 1978): a noisy unit far off does not widen the grid. Its ends are
    quantiles of these masses and two standard deviations beyond.
    """
    compiled = jax.jit(log_likelihood)
    bounds = (-np.inf, np.inf)
    # Another one is refused with the basis.
    if isinstance(reference, dist.Distribution) and reference.shape() == ():
        least, most = map(np.asarray, support_bounds(reference))
        bounds = float(least), float(most)

    def curves(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nodes = np.unique(z.astype(dtype))
        values = np.asarray(compiled(jnp.asarray(nodes)), float)
        values = np.where(np.isfinite(values), values, -np.inf)
        return nodes.astype(float), values

    powers = 2.0 ** np.arange(-30.0, 60.25, 0.25)
    z = np.concatenate([-powers[::-1], [0.0], powers])
    if np.isfinite(bounds).all():
        z = np.linspace(*bounds, len(z) + 2)[1:-1]
    z = z[(z > bounds[0]) & (z < bounds[1])]
    low, high = _range(*curves(z), counts)
    for _ in range(4):
        margin = 0.05 * (high - low)
        z = np.linspace(low - margin, high + margin, _NUM_NODES)
        nodes, values = curves(np.clip(z, *bounds))
        low, high = _range(nodes, values, counts)
    spread = low, high
    for _ in range(2):
        # Twice, for nodes that are close beside the spread.
        nodes, values = curves(np.linspace(*spread, _NUM_NODES))
        mass = _deconvolve(values, counts)
        mean = mass @ nodes
        deviation = np.sqrt(mass @ (nodes - mean) ** 2)
        below = np.cumsum(mass)
        ends = nodes[np.searchsorted(below, [_TAIL, 1 - _TAIL]).clip(0, len(nodes) - 1)]
        ends = ends + deviation * np.array([-_MARGIN, _MARGIN])
        spread = np.clip(ends, *spread)
    low, high = np.clip(ends, *bounds)
    if reference is None:
        reference = dist.Normal(float(mean), float(deviation))
    return BSpline(float(low), float(high), _NUM_BASIS), reference


def _range(
    nodes: np.ndarray, values: np.ndarray, counts: np.ndarray
) -> tuple[float, float]:
    """Range of the latent values that the units' likelihoods favour."""
    best = values.max(axis=1, keepdims=True)
    favoured = (values > best - _DROP) & np.isfinite(best) & (counts[:, None] > 0)
    first = np.argmax(favoured, axis=1)
    last = len(nodes) - 1 - np.argmax(favoured[:, ::-1], axis=1)
    bounded = favoured.any(axis=1) & (first > 0) & (last < len(nodes) - 1)
    if not bounded.any():
        raise ValueError(
            "basis must be given, because no unit's likelihood has a maximum between "
            "finite latent values from which to choose a grid, such as numpyro_kaem."
            "BSpline(low, high, num_basis)."
        )
    return nodes[first[bounded].min() - 1], nodes[last[bounded].max() + 1]


def _deconvolve(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Masses at the nodes after some steps of expectation maximisation."""
    best = values.max(axis=1, keepdims=True)
    seen = np.isfinite(best[:, 0])
    likelihood = np.exp(values[seen] - best[seen])
    share = counts[seen] / counts[seen].sum()
    mass = np.full(values.shape[1], 1 / values.shape[1])
    for _ in range(_EM_STEPS):
        mass = mass * ((share / (likelihood @ mass)) @ likelihood)
    return mass / mass.sum()


def _warn_off_grid(
    model: Model,
    log_likelihood: LogLikelihood,
    units: UnitQuadrature,
    problem: Problem,
    parameters: jax.Array,
) -> None:
    """Warn of units off the grid, of whose prior nothing is learned there."""
    nodes = np.asarray(node_positions(units.panels))
    values = np.asarray(units.log_likelihood)
    has_reference = model.reference is not None
    low, high = map(float, model.flat.basis.ends(float))
    on_grid = (nodes >= low) & (nodes <= high)
    beyond = values[:, ~on_grid].max(axis=1, initial=-np.inf)
    if not has_reference:
        # The prior ends with the grid, and so do the nodes.
        steps = (high - low) * 2.0 ** np.arange(-5.0, 3.0, 0.5)
        more = jnp.asarray([*(low - steps), *(high + steps)], nodes.dtype)
        found = np.asarray(jax.jit(log_likelihood)(more))
        beyond = np.where(np.isfinite(found), found, -np.inf).max(axis=1)
    best = np.maximum(values[:, on_grid].max(axis=1), np.finfo(values.dtype).min)
    off = beyond - best > _SHORT
    if has_reference:
        # The last two nodes are the tails.
        outside = jnp.asarray(~on_grid).at[-2:].set(True)
        mass = posterior_masses(problem, parameters)[: len(values), : len(nodes)]
        share = jnp.matmul(mass, outside.astype(mass.dtype), precision="highest")
        off = (off & (np.asarray(share) > 0.5)) | (beyond - best > _FAR_SHORT)
    if off.any():
        warnings.warn(
            f"the data of {off.sum()} units, the first of them unit "
            f"{int(np.argmax(off))}, place their latent values off the grid, which is "
            f"({low:.6g}, {high:.6g}): there the prior is "
            f"{'its reference alone' if has_reference else 'zero'}. Check these units, "
            "or widen the grid.",
            UserWarning,
            stacklevel=3,
        )
