"""A prior from many units by maximum marginal likelihood."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.empirical_bayes.family import (
    Maximum,
    Problem,
    free_names,
    log_reference,
    maximise,
    posterior_masses,
    unconstrain,
)
from numpyro_kaem.empirical_bayes.likelihood import (
    LogLikelihood,
    check_units,
    choose_grid,
)
from numpyro_kaem.empirical_bayes.quadrature import (
    UnitQuadrature,
    node_positions,
    unit_log_marginal_likelihood,
    unit_quadrature,
)
from numpyro_kaem.empirical_bayes.results import MarginalFit, Model
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation.samples import as_float64
from numpyro_kaem.estimation.exponential_family import RIDGE, Design, make_design
from numpyro_kaem.references import ReferenceParameters, check_reference, is_concrete

__all__ = [
    "as_counts",
    "as_weight",
    "check_basis",
    "fit_marginal",
    "warn_of_problems",
    "warn_off_grid",
]

# Nats by which the likelihood of a unit falls short on the grid of its maximum beyond:
# that of an interval of 95 %, and of four standard errors.
_SHORT, _FAR_SHORT = 1.92, 8.0


def check_basis(
    basis: Any, reference: Any, dtype: Any
) -> tuple[Energy, ReferenceParameters | None]:
    """Flat energy on a basis, and the parameters of the reference.

    Raises
    ------
    TypeError
        If they are not a basis and a univariate continuous distribution.
    ValueError
        If they have a batch shape, or do not meet.
    """
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


def as_counts(counts: Any, num_units: int) -> np.ndarray:
    """How often each unit counts.

    Raises
    ------
    TypeError
        If they are not real numbers.
    ValueError
        If they are of a wrong shape, negative, not finite, or all zero.
    """
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


def as_weight(penalty: Any) -> float | None:
    """Weight of the roughness, if one is given.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not positive and finite.
    """
    if penalty is None:
        return None
    value = as_float64("penalty", penalty)
    if value.shape != () or not (np.isfinite(value) and value > 0):
        raise ValueError(
            "penalty must be one finite number > 0, or None to choose it, got "
            f"{penalty!r}; without a penalty the maximum is a sum of point masses."
        )
    return float(value)


def warn_of_problems(best: Maximum) -> None:
    """Warn where the maximum was not reached."""
    if not bool(best.converged):
        warnings.warn(
            f"the fit did not converge in {int(best.num_steps)} steps: another one "
            f"promises {float(best.decrement):.2g} nats. Use a larger penalty, fewer "
            "features, or float64.",
            UserWarning,
            stacklevel=3,
        )


def warn_off_grid(
    energy: Energy,
    has_reference: bool,
    log_likelihood: LogLikelihood,
    nodes: np.ndarray,
    values: np.ndarray,
    outside: np.ndarray,
) -> None:
    """Warn of units off the grid, of whose prior nothing is learned there.

    Parameters
    ----------
    energy, has_reference
        The prior.
    log_likelihood, nodes, values
        Log likelihood of the units, and its values at nodes.
    outside
        Share of each unit's posterior that lies off the grid.
    """
    low, high = float(energy.basis.low), float(energy.basis.high)
    on_grid = (nodes >= low) & (nodes <= high)
    beyond = values[:, ~on_grid].max(axis=1, initial=-np.inf)
    if not has_reference:
        # The prior ends with the grid, and so do the nodes.
        steps = (high - low) * 2.0 ** np.arange(-5.0, 3.0, 0.5)
        more = jnp.asarray([*(low - steps), *(high + steps)], nodes.dtype)
        more = np.asarray(jax.jit(log_likelihood)(more))
        beyond = np.where(np.isfinite(more), more, -np.inf).max(axis=1)
    best = np.maximum(values[:, on_grid].max(axis=1), np.finfo(values.dtype).min)
    off = beyond - best > _SHORT
    if has_reference:
        off = (off & (outside > 0.5)) | (beyond - best > _FAR_SHORT)
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


def fit_marginal(
    log_likelihood: LogLikelihood,
    basis: AbstractBasis | None = None,
    reference: dist.Distribution | None = None,
    *,
    counts: ArrayLike | None = None,
    penalty: float | None = None,
    fit_reference: bool = False,
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
        ``(num_units, num_nodes)``. :func:`unit_log_likelihood` makes one from the law
        of the observations.
    basis
        Features :math:`\phi`, with one grid that covers the latent values. ``None``
        chooses 24 B-splines on the range of the latent values with the units' noise
        taken out, see Notes, in the support of ``reference``.
    reference
        Reference law :math:`\pi_0` of batch shape (), which sets the tails beyond the
        grid; ``None`` is the uniform law on the grid of ``basis``, or without a
        ``basis`` the Normal law with the mean and standard deviation of those values.
    counts
        How often each unit occurs, :math:`n_i`, shape ``(num_units,)``; non-negative,
        not all zero. ``None`` counts each once.
    penalty
        Weight :math:`\lambda > 0` of the roughness. ``None`` takes a sixth of the one
        with the largest marginal likelihood, see Notes.
    fit_reference
        Whether to fit all parameters of ``reference`` too, from the ones it has.
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
        If an argument is traced or of a wrong type, or with ``fit_reference`` the
        support of the reference depends on its parameters.
    ValueError
        If shapes do not fit, counts are negative, or the penalty is not positive; if a
        log likelihood is not a number or a unit has likelihood zero at every latent
        value, naming the unit.

    Warns
    -----
    UserWarning
        If Newton's method does not converge, a likelihood is too narrow for the
        quadrature, or units' data place them off the grid.

    Notes
    -----
    - **Not convex.** The marginal likelihood may have several maxima. Newton's method
      starts from the flat energy and follows the maximum as the penalty falls; then, at
      the chosen penalty, it starts from there, from a rougher prior, from the prior
      that the units' own maximum likelihood values would have, and from random ones.
      Directions of negative curvature are followed uphill, so that every step ascends.
    - **Penalty.** The last two terms are the log of a Normal prior on the energy. The
      Laplace approximation of the marginal likelihood of :math:`\lambda` is maximised
      on a geometric grid, then over the parabola through the best three; a sixth of
      that is used. In simulated deconvolutions of three laws with 1000 and 5000 units
      the bands at the maximum itself, of nominally 90 %, covered 64 to 87 %, and those
      at a fourth 83 to 94 %, while the integrated squared error changed little.
    - **Covariance.** The inverse of the penalised observed information; constants,
      which do not change the prior, have no variance.
    - **The grid** that is chosen without a ``basis`` reaches from the .001 to the .999
      quantile of a nonparametric estimate (masses on 400 points, 200 steps of
      expectation maximisation), and two of its standard deviations beyond. Noisy units
      far out do not widen it. Latent values that have bounds need a reference with
      that support, such as a Gamma or a Beta law.
    - **Panels** are split where a unit's likelihood is narrow, see
      :func:`unit_log_marginal_likelihood`.
    - **Cost.** A step costs a few products of the matrix of units by nodes.
      Equal units may be given once, with counts.

    References
    ----------
    Laird (1978), "Nonparametric maximum likelihood estimation of a mixing
    distribution", *Journal of the American Statistical Association* 73(364).
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
    """
    if not is_concrete((basis, reference, counts, penalty)):
        raise TypeError(
            "fit_marginal needs concrete arguments, got a traced one: the grid is "
            "static. Call it outside jit, vmap and grad."
        )
    if (
        isinstance(num_starts, bool)
        or not isinstance(num_starts, int)
        or num_starts < 3
    ):
        raise ValueError(f"num_starts must be an integer >= 3, got {num_starts!r}.")
    dtype = jnp.zeros(()).dtype
    num_units = check_units(log_likelihood, dtype)
    weights = as_counts(counts, num_units)
    if basis is None:
        basis, reference = choose_grid(log_likelihood, weights, reference, dtype)
    flat, parameters = check_basis(basis, reference, dtype)
    model = _Setting(
        flat,
        make_design(basis, dtype),
        jnp.asarray(weights, dtype),
        free_names(parameters, fit_reference),
    )
    weight = as_weight(penalty)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    energy, start, found = flat, None, None
    for _ in range(_MAX_ROUNDS):
        units = unit_quadrature(energy, parameters, 1, log_likelihood)
        problem = _problem(model, parameters, units)
        if found is None:
            found = _search(model, problem, parameters, weight, num_starts, rng_key)
        else:
            # The panels have followed the prior: the same maximum, once more.
            found = found._replace(
                best=_maximise(model, problem, found.log_penalty, start, 0.0)
            )
        start = found.best.parameters
        fitted = Model(flat, model.design, parameters, model.names)
        prior = fitted.prior(start)
        energy = prior.energy
        marginals = unit_log_marginal_likelihood(prior, log_likelihood)
        total = float(jnp.dot(model.counts, marginals, precision="highest"))
        if abs(total - _unpenalised(model, found)) <= _resolution(total, dtype):
            break
    warn_of_problems(found.best)
    nodes = np.asarray(node_positions(units.panels))
    warn_off_grid(
        flat,
        parameters is not None,
        log_likelihood,
        nodes,
        np.asarray(units.log_likelihood),
        np.asarray(_share_outside(flat, problem, start, nodes)),
    )
    return MarginalFit(
        prior=prior,
        log_marginal_likelihood=total,
        penalty=float(np.exp(found.log_penalty)),
        covariance=fitted.covariance(found.best.covariance),
        degrees_of_freedom=float(found.best.degrees_of_freedom),
        log_evidence=float(found.best.log_evidence),
        converged=bool(found.best.converged),
        num_steps=found.num_steps,
        log_posteriors=found.log_posteriors,
        log_likelihood=log_likelihood,
        counts=np.asarray(model.counts),
        _model=fitted,
        _maximum=found.best,
        _ridge=_ridge(model, found.log_penalty),
        _problem=problem,
        _panels=units.panels,
    )


def _share_outside(
    flat: Energy, problem: Problem, parameters: jax.Array, nodes: np.ndarray
) -> jax.Array:
    """Share of each unit's posterior off the grid; the last two nodes are the tails."""
    outside = (nodes < flat.basis.low) | (nodes > flat.basis.high)
    outside[-2:] = True
    mass = posterior_masses(problem, parameters)
    return jnp.matmul(mass, jnp.asarray(outside, mass.dtype), precision="highest")


class _Setting(NamedTuple):
    """What does not change during a fit."""

    flat: Energy
    design: Design
    counts: jax.Array
    names: tuple[str, ...]


class _Found(NamedTuple):
    """The best of all maxima."""

    best: Maximum
    log_penalty: float
    log_posteriors: np.ndarray
    num_steps: int


def _problem(
    model: _Setting, parameters: ReferenceParameters | None, units: UnitQuadrature
) -> Problem:
    return Problem(
        _features(model.flat.basis, model.design, node_positions(units.panels)),
        units.log_likelihood,
        model.counts,
        log_reference(model.flat.on_unit_grid, parameters, model.names, units.panels),
    )


@jax.jit
def _features(basis: AbstractBasis, design: Design, nodes: jax.Array) -> jax.Array:
    centred = basis(nodes) - jnp.asarray(design.centre, nodes.dtype)
    transform = jnp.asarray(design.transform, nodes.dtype)
    return jnp.matmul(centred, transform, precision="highest")


def _ridge(model: _Setting, log_penalty: float) -> jax.Array:
    """Weights of the squared coordinates; none for parameters of the reference."""
    roughness = np.exp(log_penalty) * model.design.roughness + RIDGE
    ridge = np.where(model.design.used, roughness, 1.0)
    return jnp.asarray(
        np.concatenate([ridge, np.zeros(len(model.names))]), model.counts.dtype
    )


def _maximise(
    model: _Setting,
    problem: Problem,
    log_penalty: float,
    start: jax.Array,
    tolerance: float,
) -> Maximum:
    return maximise(problem, _ridge(model, log_penalty), start, tolerance)


def _search(
    model: _Setting,
    problem: Problem,
    parameters: ReferenceParameters | None,
    weight: float | None,
    num_starts: int,
    rng_key: jax.Array,
) -> _Found:
    """Best maximum over all starts, at the penalty that is given or chosen."""
    dtype = model.counts.dtype
    flat = jnp.concatenate(
        [
            jnp.zeros(problem.features.shape[1], dtype),
            unconstrain(parameters, model.names),
        ]
    )
    log_penalty = None if weight is None else float(np.log(weight))
    path = _path(model, problem, flat, log_penalty)
    if log_penalty is None:
        log_penalty = _best_penalty(path)
    nearest = int(np.argmin([abs(log - log_penalty) for log, _ in path]))
    rougher = min(nearest + 1, len(path) - 1)
    starts = [path[nearest][1].parameters, path[rougher][1].parameters]
    starts.append(_sharpest(model, problem, log_penalty, flat))
    for key in jax.random.split(rng_key, num_starts)[3:]:
        deviation = 1 / jnp.sqrt(_ridge(model, log_penalty))
        noise = jax.random.normal(key, flat.shape, dtype)
        starts.append(flat + jnp.where(deviation < 3, deviation, 0) * noise)
    maxima = [_maximise(model, problem, log_penalty, start, 0.0) for start in starts]
    values = np.array([float(maximum.value) for maximum in maxima])
    best = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    steps = sum(int(m.num_steps) for m in (*maxima, *(m for _, m in path)))
    return _Found(maxima[best], log_penalty, values, steps)


def _path(
    model: _Setting, problem: Problem, start: jax.Array, last: float | None
) -> list[tuple[float, Maximum]]:
    """Maxima at falling log penalties, each started from the one before."""
    path, best, falls = [], -np.inf, 0
    top = np.log(10 * float(jnp.sum(model.counts)))
    for step in range(_NUM_PENALTIES):
        log_penalty = top - step * _LOG_STEP
        maximum = _maximise(model, problem, log_penalty, start, _TOLERANCE)
        path.append((log_penalty, maximum))
        start = maximum.parameters
        if last is not None:
            # One step beyond, for a rougher start.
            if log_penalty < last:
                break
            continue
        evidence = float(maximum.log_evidence)
        falls = falls + 1 if evidence < best - _FALL else 0
        best = max(best, evidence)
        if falls == 2:
            break
    return path


def _best_penalty(path: list[tuple[float, Maximum]]) -> float:
    """Below the top of the parabola through the largest evidence and its neighbours."""
    evidence = np.array([float(maximum.log_evidence) for _, maximum in path])
    evidence = np.where(np.isfinite(evidence), evidence, -np.inf)
    best = int(np.argmax(evidence))
    shift = 0.0
    if 0 < best < len(path) - 1 and np.isfinite(evidence[best - 1 : best + 2]).all():
        left, middle, right = evidence[best - 1 : best + 2]
        bend = left - 2 * middle + right
        if bend < 0:
            shift = float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))
    return path[best][0] - shift * _LOG_STEP + float(np.log(_UNDERSMOOTHING))


def _sharpest(
    model: _Setting, problem: Problem, log_penalty: float, flat: jax.Array
) -> jax.Array:
    """Prior that the units' own maximum likelihood values would have."""
    likelihood = problem.log_likelihood
    best = jnp.argmax(likelihood, axis=1)[:, None] == jnp.arange(likelihood.shape[1])
    observed = jnp.where(best, 0.0, -jnp.inf).astype(likelihood.dtype)
    exact = problem._replace(log_likelihood=observed)
    sharpest = _maximise(model, exact, log_penalty, flat, _TOLERANCE).parameters
    # The reference stays where it was: point masses may drive it to an edge.
    count = problem.features.shape[1]
    return jnp.concatenate([sharpest[:count], flat[count:]])


def _unpenalised(model: _Setting, found: _Found) -> float:
    ridge = _ridge(model, found.log_penalty)
    squares = jnp.dot(ridge, found.best.parameters**2, precision="highest")
    return float(found.best.value + 0.5 * squares)


def _resolution(total: float, dtype: Any) -> float:
    """Difference of two quadratures of the same likelihood that is rounding."""
    return float(1e4 * jnp.finfo(dtype).eps * (1 + abs(total)))
