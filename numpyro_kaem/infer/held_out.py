"""The log likelihood of every datum of a model with latent values, by annealing."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from numpyro_kaem._checks import as_count, check_function, check_key
from numpyro_kaem.infer.importance_result import ImportanceResult
from numpyro_kaem.infer.ladder import equal_rejection_ladder, power_ladder
from numpyro_kaem.infer.langevin import Chains, advance
from numpyro_kaem.infer.target import compile_with_model
from numpyro_kaem.infer.units import UnitModel, as_params, check_params
from numpyro_kaem.infer.weights import resample_below
from numpyro_kaem.models.kaem import as_data

__all__ = ["HeldOutLogLikelihood", "held_out_log_likelihood"]

# The first pilot finds the ladder, the second the step sizes on it.
_NUM_PILOTS = 2
# Effective share of the particles below which they are resampled.
_RESAMPLE_BELOW = 0.5
# Effective share of the particles below which an error is not to be trusted.
_LEAST_ESS = 0.05


@dataclass(frozen=True, repr=False)
class HeldOutLogLikelihood:
    """Log likelihood of each datum; made by :func:`held_out_log_likelihood`.

    Examples
    --------
    >>> import numpy as np
    >>> from numpyro_kaem.infer import HeldOutLogLikelihood
    >>> values, errors = np.array([-3.0, -5.0]), np.array([0.3, 0.4])
    >>> HeldOutLogLikelihood(values, errors, np.array([20.0, 9.0]), num_particles=64)
    HeldOutLogLikelihood(2 data, mean=-4.000 ± 0.250, least ess=9.0 of 64)
    """

    values: np.ndarray
    """Estimates of ``log p(x_n)``, shape ``(num_data,)``."""
    standard_errors: np.ndarray
    """Their Monte Carlo standard errors, shape ``(num_data,)``."""
    ess: np.ndarray
    """Effective number of draws of the prior that are left, shape ``(num_data,)``."""
    num_particles: int
    """Number of particles that each was estimated from."""

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float:
        """Monte Carlo standard error of the mean over these data.

        How the mean varies with the data is not counted: that is
        ``values.std(ddof=1) / sqrt(num_data)``.
        """
        return float(np.sqrt(np.sum(self.standard_errors**2)) / len(self.values))

    def __repr__(self) -> str:
        return (
            f"HeldOutLogLikelihood({len(self.values)} data, mean={self.mean:.3f} ± "
            f"{self.standard_error:.3f}, least ess={self.ess.min():.1f} of "
            f"{self.num_particles})"
        )


def held_out_log_likelihood(
    rng_key: jax.Array,
    model: Callable,
    data: ArrayLike,
    *,
    num_temperatures: int = 128,
    num_particles: int = 64,
    num_steps: int = 2,
    chunk_size: int = 100,
    params: dict[str, Any] | None = None,
    progress_bar: bool = True,
    unit_plate: str = "data",
) -> HeldOutLogLikelihood:
    r"""Log likelihood of every datum under a model with latent values.

    For held-out data this measures a trained model. Annealed importance sampling with
    resampling: each particle starts at a draw of the prior and moves by Langevin steps
    (MALA) along a ladder :math:`0 = t_0 < \dots < t_N = 1` of power posteriors
    :math:`p_k(z) \propto \pi(z)\,p(x \mid z)^{t_k}`. With :math:`z_k` its position at
    :math:`t_k`, and :math:`w_k` the normalised weights before it,

    .. math::

        \hat p(x) = \prod_{k=0}^{N-1} \sum_s w_k^{(s)}
        p(x \mid z_k^{(s)})^{t_{k+1} - t_k},
        \qquad \mathrm{E}[\hat p(x)] = p(x).

    Parameters
    ----------
    rng_key
        Random key.
    model
        A :class:`~numpyro_kaem.KAEM` with any normalised prior, or any NumPyro model
        that is called as ``model(data)`` and, with chunks, as
        ``model(data, subsample_size=chunk_size)``, with a plate of the data.
    data
        Shape ``(num_data, ...)``.
    num_temperatures
        Number of temperatures :math:`N + 1`, at least 2. With more of them weights
        differ less.
    num_particles
        Number of particles per datum, at least 2.
    num_steps
        Langevin steps of each particle at each temperature.
    chunk_size
        How many data are annealed at once. Memory grows with
        ``chunk_size * num_particles``.
    params
        Values of the parameters by name, such as ``params`` of a result of
        :func:`~numpyro_kaem.fit`. None is the model's own ``params``, if it has any,
        as a :class:`~numpyro_kaem.KAEM` has.
    progress_bar
        Whether to show progress over the chunks.
    unit_plate
        Name of the plate of the data.

    Returns
    -------
    HeldOutLogLikelihood
        ``.values``, ``.standard_errors`` and ``.ess`` by datum; ``.mean`` with its
        ``.standard_error``.

    Raises
    ------
    TypeError
        If ``model`` cannot be called, the key is none, or a number is not an integer.
    ValueError
        If a number is too small, the data are empty or do not fit the model, a
        parameter has no value, or a latent site lies outside the plate, is discrete, or
        has a prior that is improper or without a normalizing constant
        (``DeepEnergyPrior``), with which there is no likelihood.

    Warns
    -----
    UserWarning
        If the effective sample size of a datum is below a twentieth of its particles.

    Notes
    -----
    - **Bias**: none in :math:`\hat p(x)`, with any number of temperatures and steps.
      Its logarithm is low by about half its squared standard error.
    - **Ladder and step sizes** are found for each datum by pilot particles, which are
      then dropped, so that the estimate stays unbiased.
    - **Resampling** is systematic, where the effective sample size is below half of the
      particles.
    - **Standard errors** use the share of weight that descends from each draw of the
      prior (Chan and Lai 2013). Where few of these are left (``.ess``) the standard
      error is not to be trusted, and the value is too small.
    - **Cost**: ``3 * num_data * num_particles * num_temperatures * (num_steps + 2)``
      densities, compiled once for all chunks.
    - :func:`numpyro_kaem.unit_log_marginal_likelihood` integrates units of one latent
      value by quadrature instead.

    References
    ----------
    Neal (2001), "Annealed importance sampling", *Statistics and Computing* 11(2).
    Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers", *Journal of
    the Royal Statistical Society B* 68(3).
    Chan and Lai (2013), "A general theory of particle filters in hidden Markov models
    and some applications", *Annals of Statistics* 41(6).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> prior = dist.Normal(jnp.zeros(2), 1.0)
    >>> weight = jnp.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    >>> model = kaem.KAEM(prior, lambda z: z @ weight, kaem.NormalLikelihood(0.5))
    >>> x = jnp.array([[0.3, 0.2, -0.5], [1.0, 1.0, 1.0]])
    >>> result = kaem.infer.held_out_log_likelihood(
    ...     jax.random.key(0), model, x, progress_bar=False
    ... )
    >>> covariance = weight.T @ weight + 0.25 * jnp.eye(3)
    >>> exact = dist.MultivariateNormal(jnp.zeros(3), covariance).log_prob(x)
    >>> bool(jnp.all(abs(result.values - exact) < 4 * result.standard_errors))
    True
    """
    check_function("model", model, "a NumPyro model, a callable")
    check_key(rng_key)
    ladder = power_ladder(as_count("num_temperatures", num_temperatures, 2))
    num_particles = as_count("num_particles", num_particles, 2)
    num_steps = as_count("num_steps", num_steps)
    chunk_size = as_count("chunk_size", chunk_size)
    data = as_data(model, data)
    if data.ndim == 0 or len(data) == 0:
        raise ValueError(
            f"data must have shape (num_data, ...) and not be empty, got {data.shape}."
        )
    params = as_params(params, model)
    in_chunks = chunk_size < len(data)
    sizes = _Sizes(num_particles, num_steps, chunk_size if in_chunks else None)

    log_weights = []
    starts = range(0, len(data), chunk_size)
    for start in tqdm(starts, disable=not progress_bar, unit="chunk"):
        index = np.arange(start, start + chunk_size if in_chunks else len(data))
        # The last chunk is filled up, so that one compiled function serves all.
        chunk = jnp.asarray(np.minimum(index, len(data) - 1))
        key = jax.random.fold_in(rng_key, start)
        found = _of_chunk(key, model, data, chunk, params, ladder, sizes, unit_plate)
        log_weights.append(np.asarray(found)[index < len(data)])
    weighted = ImportanceResult({}, np.concatenate(log_weights).T, unit_plate, {})
    value, error, ess = map(np.asarray, (*weighted.log_evidence, weighted.ess))
    result = HeldOutLogLikelihood(value, error, ess, num_particles)
    few = int(np.sum(result.ess < _LEAST_ESS * num_particles))
    if few:
        warnings.warn(
            f"{few} of {len(result.values)} data have an effective sample size below "
            f"{_LEAST_ESS:.0%} of the particles, so that log likelihoods may be too "
            "small. Take more temperatures, or more particles.",
            stacklevel=2,
        )
    return result


# --- the annealing -------------------------------------------------------------------


class _Sizes(NamedTuple):
    """Numbers that are static; ``chunk_size`` is None if all data are annealed."""

    num_particles: int
    num_steps: int
    chunk_size: int | None


class _Schedule(NamedTuple):
    """Ladder ``(num_temperatures, num_units)``; log step sizes at all but its ends."""

    temperatures: jax.Array
    log_step_size: jax.Array


class _Particles(NamedTuple):
    """Weighted particles, arrays of shape ``(num_units, num_particles, ...)``.

    ``log_weights`` are normalised; ``log_total`` is the log mean weight so far, shape
    ``(num_units,)``; ``ancestor`` the draw of the prior that each descends from.
    """

    position: jax.Array
    log_weights: jax.Array
    log_total: jax.Array
    ancestor: jax.Array


@compile_with_model
def _of_chunk(
    rng_key: jax.Array,
    model: Callable,
    data: jax.Array,
    index: jax.Array,
    params: dict[str, Any],
    ladder: jax.Array,
    sizes: _Sizes,
    unit_plate: str,
) -> jax.Array:
    """Log weights of some of the data by draw of the prior, ``(num_units, ...)``."""
    options, given = {}, params
    if sizes.chunk_size is not None:
        options = {"subsample_size": sizes.chunk_size}
        given = {**params, unit_plate: index}
    key_model, _, key_run = jax.random.split(rng_key, 3)
    units = UnitModel(key_model, given, model, (data,), options, unit_plate)
    if units.unnormalised:
        raise ValueError(
            "model must have priors with a normalizing constant, without which there "
            "is no likelihood, got none (DeepEnergyPrior) at "
            f"{', '.join(map(repr, units.unnormalised))}."
        )
    check_params("model", units.param_names, params)
    ladder = jnp.asarray(ladder, float)
    temperatures = jnp.repeat(ladder[:, None], units.num_units, axis=1)
    log_step_size = jnp.zeros((len(ladder) - 2, units.num_units), ladder.dtype)

    def run(schedule: _Schedule, this: tuple) -> tuple[_Schedule, jax.Array]:
        key, moves_ladder, adapts = this
        log_weights, spread, log_step_size = _anneal(
            key, units, schedule, sizes, adapts
        )
        # The rejection of a swap is in proportion to the distance of the temperatures
        # in standard deviations of the log likelihood, as is the spread of a weight.
        distance = jnp.diff(schedule.temperatures, axis=0) * spread
        ladder = jax.vmap(equal_rejection_ladder, 1, 1)(schedule.temperatures, distance)
        ladder = jnp.where(moves_ladder, ladder, schedule.temperatures)
        return _Schedule(ladder, log_step_size), log_weights

    passes = jnp.arange(_NUM_PILOTS + 1)
    keys = jax.random.split(key_run, _NUM_PILOTS + 1)
    # One compiled run serves the pilots and the estimate.
    _, log_weights = jax.lax.scan(
        run,
        _Schedule(temperatures, log_step_size),
        (keys, passes < _NUM_PILOTS - 1, passes < _NUM_PILOTS),
    )
    return log_weights[-1]


def _anneal(
    rng_key: jax.Array,
    unit_model: UnitModel,
    schedule: _Schedule,
    sizes: _Sizes,
    adapts: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Anneal particles from the priors to the posteriors.

    Returns log weights by ancestor ``(num_units, num_particles)``, the standard
    deviation of the log likelihood at all temperatures but the last, and log step
    sizes. If ``adapts``, these follow the acceptance, and the weights are biased.
    """
    num_particles = sizes.num_particles
    shape = (unit_model.num_units, num_particles)
    densities = jax.vmap(unit_model.log_densities, 1, 1)

    def weigh(particles: _Particles, width: jax.Array) -> tuple[_Particles, jax.Array]:
        found = densities(particles.position)[1]
        found = jnp.where(jnp.isnan(found), -jnp.inf, found)
        weights = particles.log_weights + width[:, None] * found
        total = jax.nn.logsumexp(weights, axis=1, keepdims=True)
        some = jnp.isfinite(total)
        weights = jnp.where(some, weights - total, -jnp.inf)
        return particles._replace(
            log_weights=weights, log_total=particles.log_total + total[:, 0]
        ), _spread(found)

    def resample(key: jax.Array, particles: _Particles) -> _Particles:
        drawn = resample_below(
            key, particles.log_weights.T, _RESAMPLE_BELOW, method="systematic"
        )
        index = drawn.indices.T
        return particles._replace(
            position=jnp.take_along_axis(particles.position, index[..., None], axis=1),
            log_weights=drawn.log_weights.T,
            ancestor=jnp.take_along_axis(particles.ancestor, index, axis=1),
        )

    def visit(carry: tuple, step: tuple) -> tuple[tuple, tuple]:
        particles, last_size = carry
        key, width, temperature, log_size = step
        key_resample, key_move = jax.random.split(key)
        particles, spread = weigh(particles, width)
        particles = resample(key_resample, particles)

        def tempered(position: jax.Array) -> jax.Array:
            log_prior, log_likelihood = densities(position)
            return log_prior + temperature[:, None] * log_likelihood

        log_size = jnp.where(adapts, last_size, log_size)
        start = jnp.broadcast_to(log_size[:, None], shape)
        chains = Chains(particles.position, start, jnp.zeros(shape, int))
        chains, _ = advance(key_move, tempered, chains, sizes.num_steps, adapts=adapts)
        log_size = jnp.where(adapts, chains.log_step_size.mean(1), log_size)
        particles = particles._replace(position=chains.position)
        return (particles, log_size), (spread, log_size)

    key_prior, key_moves = jax.random.split(rng_key)
    position = unit_model.prior_positions(key_prior, shape)
    equal = jnp.full(shape, -np.log(num_particles), position.dtype)
    ancestor = jnp.broadcast_to(jnp.arange(num_particles), shape)
    particles = _Particles(position, equal, jnp.zeros(shape[0], equal.dtype), ancestor)
    widths = jnp.diff(schedule.temperatures, axis=0)
    steps = (
        jax.random.split(key_moves, len(widths) - 1),
        widths[:-1],
        schedule.temperatures[1:-1],
        schedule.log_step_size,
    )
    first_size = jnp.zeros(shape[0], equal.dtype)
    (particles, _), (spread, log_step_size) = jax.lax.scan(
        visit, (particles, first_size), steps
    )
    particles, last = weigh(particles, widths[-1])
    shares = jax.vmap(lambda a, w: jnp.zeros_like(w).at[a].add(w))(
        particles.ancestor, jnp.exp(particles.log_weights)
    )
    log_weights = particles.log_total[:, None] + jnp.log(num_particles * shares)
    return log_weights, jnp.concatenate([spread, last[None]]), log_step_size


def _spread(log_likelihood: jax.Array) -> jax.Array:
    """Take the standard deviation over the particles of positive likelihood."""
    some = jnp.isfinite(log_likelihood)
    values = jnp.where(some, log_likelihood, 0.0)
    count = jnp.maximum(jnp.sum(some, -1, keepdims=True), 1)
    mean = jnp.sum(values, -1, keepdims=True) / count
    squares = jnp.where(some, (values - mean) ** 2, 0.0)
    return jnp.sqrt(jnp.sum(squares, -1) / count[:, 0])
