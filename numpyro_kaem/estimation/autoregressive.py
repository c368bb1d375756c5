"""Autoregressive priors from samples."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.optim as optim

from numpyro_kaem._checks import as_count, as_positive
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.distributions import AutoregressiveKAEMPrior
from numpyro_kaem.distributions.autoregressive import MaskedConditioner
from numpyro_kaem.estimation.density import fit_density
from numpyro_kaem.estimation.exponential_family import (
    Family,
    log_normalizers,
    make_design,
)
from numpyro_kaem.estimation.samples import (
    Numbers,
    as_penalty,
    coarse,
    joint_samples,
)
from numpyro_kaem.numerics.nodes import make_nodes
from numpyro_kaem.references import ReferenceParameters

__all__ = ["fit_autoregressive"]

# Share of the samples held out, and the fewest samples in all.
_HELD_OUT = 0.1
_FEWEST = 10
# Steps between two looks at the samples held out, and samples at a time for a look.
_STEPS_PER_LOOK = 50
_CHUNK = 1024


def fit_autoregressive(
    samples: Numbers,
    basis: AbstractBasis | None = None,
    reference: dist.Distribution | None = None,
    *,
    support: str | tuple[Numbers, Numbers] | None = None,
    penalty: Numbers = 1e-6,
    weights: Numbers | None = None,
    rng_key: jax.Array | None = None,
    width: int = 64,
    depth: int = 2,
    num_steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    rounding: Numbers | str | None = None,
) -> AutoregressiveKAEMPrior:
    r"""Fit a joint density to samples: one conditional density per dimension.

    The coefficients of the energy of each dimension are a network of the dimensions
    before, see :class:`AutoregressiveKAEMPrior`. It starts at the independent densities
    of :func:`fit_density` and climbs the mean over the samples of

    .. math::

        \sum_{i=1}^D \Bigl[\log p(z_i \mid z_{<i})
        - \frac{\lambda}{2n} \int_0^1 f_i'''(s \mid z_{<i})^2 \,\mathrm{d}s
        - \frac{\varepsilon}{2n} \int_0^1 \bigl(f_i(s \mid z_{<i}) - \bar f_i\bigr)^2
          \,\mathrm{d}s\Bigr],

    with :math:`s` the position in the grid and :math:`\varepsilon = 10^{-3}`, by Adam's
    method on batches. One sample in ten is held out; the network with the best
    likelihood on these is kept.

    Parameters
    ----------
    samples
        Samples, shape ``(n, dim)``; finite and concrete, at least 10.
    basis
        Features, with one grid for all dimensions or one for each. ``None`` takes that
        of :func:`fit_density`.
    reference
        Reference distributions, of a batch shape that broadcasts to ``(dim,)``; they
        set the tails. ``None`` follows ``support``.
    support
        As for :func:`fit_density`: ``"real"``, ``"positive"``, or ``(low, high)`` with
        numbers or arrays of shape ``(dim,)``.
    penalty
        Weight :math:`\lambda \ge 0` of the roughness of the conditional energies,
        broadcasting to ``(dim,)``.
    weights
        Importance weights, shape ``(n,)``, as for :func:`fit_density`.
    rng_key
        Random key of the network, of the samples held out and of the batches; ``None``
        is ``jax.random.key(0)``.
    width, depth
        Units of a hidden layer, and hidden layers, of the :class:`MaskedConditioner`.
    num_steps
        Number of steps.
    batch_size
        Samples per step, drawn with replacement in proportion to their weights.
    learning_rate
        Rate of the first step, which falls to zero by a cosine.
    rounding
        Spacing of rounded samples, broadcasting to ``(dim,)``, as for
        :func:`fit_density`. Here they are spread over their intervals at random.

    Returns
    -------
    AutoregressiveKAEMPrior
        Concrete, with ``event_shape`` ``(dim,)``.

    Raises
    ------
    TypeError
        If an argument is traced or of a wrong type.
    ValueError
        If samples are not ``(n, dim)`` or fewer than 10, a number is out of its range,
        or as :func:`fit_density` raises.

    Warns
    -----
    UserWarning
        If there are few samples of many dimensions; if rounding is found; if no network
        is better on the samples held out than independent densities, which are then
        returned.

    Notes
    -----
    - **The order of the dimensions matters**, see :class:`AutoregressiveKAEMPrior`: try
      another by permuting the columns of ``samples``.
    - Training is in coordinates in which energies are orthonormal, scaled so that rough
      ones take smaller steps. A larger penalty smooths the conditional densities of few
      samples.
    - **Cost.** A step is a product of ``batch_size * dim`` coefficients by the nodes of
      the quadrature. Code is compiled once per shape.

    References
    ----------
    Germain, Gregor, Murray and Larochelle (2015), "MADE: masked autoencoder for
    distribution estimation", *International Conference on Machine Learning*.
    Kingma and Ba (2015), "Adam: a method for stochastic optimization", *International
    Conference on Learning Representations*.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> rng = np.random.default_rng(0)
    >>> first = rng.normal(size=500)
    >>> samples = np.stack([first, first + 0.3 * rng.normal(size=500)], axis=-1)
    >>> prior = kaem.fit_autoregressive(samples, num_steps=300)
    >>> draws = prior.sample(jax.random.key(0), (4000,))
    >>> bool(np.corrcoef(draws.T)[0, 1] > 0.9)
    True
    """
    data, shares, num_effective, widths, rng = joint_samples(
        "fit_autoregressive",
        rng_key,
        samples,
        weights,
        reference,
        support,
        rounding,
        penalty,
        basis,
    )
    dim = data.shape[1]
    used = np.flatnonzero(shares)
    if len(used) < _FEWEST:
        raise ValueError(
            f"samples must be at least {_FEWEST} of positive weight, because some are "
            f"held out, got {len(used)}."
        )
    penalties = as_penalty(penalty, (dim,))
    if penalties is None:
        raise TypeError("penalty must be a number >= 0, got None.")
    width, depth = as_count("width", width), as_count("depth", depth)
    num_steps = as_count("num_steps", num_steps)
    batch_size = as_count("batch_size", batch_size)
    learning_rate = as_positive("learning_rate", learning_rate)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    left_out = np.zeros(len(data), bool)
    left_out[rng.permutation(used)[: max(1, int(_HELD_OUT * len(used)))]] = True
    # Samples held out have no part in the grid and the start either.
    kept = np.where(left_out, 0, shares)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only the marginals are kept")
        marginal = fit_density(
            data, basis, reference, support=support, weights=kept, rounding="none"
        )
    basis, parameters = marginal.energy.basis, marginal._parameters
    coarse(widths, basis, rounding)
    conditioner = MaskedConditioner(rng_key, dim, basis.num_features, width, depth)
    num_kept = num_effective * float(kept.sum())
    conditioner, scores = _train(
        _make_setting(basis, parameters, dim, penalties, num_kept),
        conditioner,
        np.asarray(marginal.energy.coefficients, float),
        np.broadcast_to(basis.to_unit(data), data.shape),
        shares,
        left_out,
        rng,
        num_steps,
        batch_size,
        learning_rate,
    )
    if np.argmax(scores) == 0:
        warnings.warn(
            "no network was better on the samples held out than independent densities, "
            "which are returned: the dimensions may be independent, or the samples too "
            f"few ({len(used)}). Else use more than num_steps={num_steps}, or a "
            f"learning_rate smaller than {learning_rate:g}.",
            UserWarning,
            stacklevel=2,
        )
    reference = None if parameters is None else marginal.reference
    return AutoregressiveKAEMPrior(basis, conditioner, reference)


# --- the training --------------------------------------------------------------------


class _Setting(NamedTuple):
    """What does not change between steps.

    ``ridge`` is the penalty of squared coordinates per sample, and ``scale`` the
    coordinates of unit outputs of the network, both ``(dim, num_features)``.
    """

    family: Family
    ridge: jax.Array
    scale: jax.Array


def _make_setting(
    basis: AbstractBasis,
    parameters: ReferenceParameters | None,
    dim: int,
    penalty: np.ndarray,
    num_effective: float,
) -> _Setting:
    dtype = jnp.zeros(()).dtype
    design = make_design(basis, dtype)
    ridge = design.ridge(penalty[:, None])
    ridge = np.where(design.used, ridge / num_effective, 1.0)
    # Adam's steps have one size: rough energies shall take smaller ones.
    scale = jnp.asarray(1 / np.sqrt(1 + penalty[:, None] * design.roughness), dtype)
    family = Family.of(basis, make_nodes(basis, parameters, (dim,), dtype))
    return _Setting(family, jnp.asarray(ridge, dtype), scale)


def _train(
    setting: _Setting,
    conditioner: MaskedConditioner,
    coefficients: np.ndarray,
    position: np.ndarray,
    shares: np.ndarray,
    left_out: np.ndarray,
    rng: np.random.Generator,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[MaskedConditioner, np.ndarray]:
    """Train a network, whose last layer is zero, from given coefficients.

    The network that is best by the samples left out, with coefficients as its outputs;
    and their mean log likelihood, relative to the reference, at the start and at each
    look.
    """
    dtype = jnp.zeros(()).dtype
    inverse = np.linalg.pinv(np.asarray(setting.family.design.transform, float))
    start = jnp.asarray(coefficients @ inverse.T, dtype) / setting.scale
    conditioner = eqx.tree_at(lambda c: c.biases[-1], conditioner, start)
    weights = np.where(left_out, 0, shares)
    inside = np.flatnonzero(weights)
    chances = weights[inside] / weights[inside].sum()
    samples = jnp.asarray(position, dtype)
    outside = jnp.asarray(position[left_out], dtype)
    outside_shares = jnp.asarray(shares[left_out] / shares[left_out].sum(), dtype)

    schedule = (learning_rate, num_steps)
    state = _optimizer(*schedule).init(conditioner)
    score = partial(_mean_log_prob, setting, outside, outside_shares)
    best, looks = conditioner, [float(score(conditioner))]
    for _ in range(-(-num_steps // _STEPS_PER_LOOK)):
        shape = (_STEPS_PER_LOOK, batch_size)
        batches = inside[rng.choice(len(inside), shape, p=chances)]
        state = _steps(setting, state, samples, jnp.asarray(batches), schedule)
        conditioner = _optimizer(*schedule).get_params(state)
        looks.append(float(score(conditioner)))
        if looks[-1] >= max(looks):
            best = conditioner
    return _in_coefficients(setting, best), np.asarray(looks)


def _optimizer(learning_rate: float, num_steps: int) -> Any:
    """Adam's method, whose rate falls to zero by a cosine."""

    def rate(step: jax.Array) -> jax.Array:
        done = jnp.minimum(step / num_steps, 1)
        return 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * done))

    return optim.Adam(rate)


@partial(jax.jit, static_argnames="schedule")
def _steps(
    setting: _Setting,
    state: Any,
    samples: jax.Array,
    batches: jax.Array,
    schedule: tuple[float, int],
) -> Any:
    """One step for every row of indices."""
    optimizer = _optimizer(*schedule)

    def step(state: Any, batch: jax.Array) -> tuple[Any, None]:
        gradient = jax.grad(_loss)(optimizer.get_params(state), setting, samples[batch])
        return optimizer.update(gradient, state), None

    return jax.lax.scan(step, state, batches)[0]


def _loss(
    conditioner: MaskedConditioner, setting: _Setting, position: jax.Array
) -> jax.Array:
    values, coordinates = _log_prob(conditioner, setting, position)
    penalty = 0.5 * jnp.sum(setting.ridge * coordinates**2, axis=(-2, -1))
    return jnp.mean(penalty - values)


def _log_prob(
    conditioner: MaskedConditioner, setting: _Setting, position: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log density relative to the reference, ``(n,)``, and coordinates of energies."""
    nodes = setting.family.nodes
    coordinates = setting.scale * conditioner(2 * position - 1)
    energy = jnp.sum(coordinates * _features(setting, position), axis=-1)
    at_nodes = _features(setting, nodes.position)
    log_normalizer = log_normalizers(at_nodes, nodes.log_mass, coordinates)
    return jnp.sum(energy - log_normalizer, axis=-1), coordinates


def _features(setting: _Setting, position: jax.Array) -> jax.Array:
    basis, design, _ = setting.family
    return design.of_features(basis.unit_features(position))


@jax.jit
def _mean_log_prob(
    setting: _Setting,
    position: jax.Array,
    shares: jax.Array,
    conditioner: MaskedConditioner,
) -> jax.Array:
    values = jax.lax.map(
        lambda s: _log_prob(conditioner, setting, s[None])[0][0],
        position,
        batch_size=_CHUNK,
    )
    return jnp.dot(shares, values, precision="highest")


def _in_coefficients(
    setting: _Setting, conditioner: MaskedConditioner
) -> MaskedConditioner:
    """Network with coefficients as its outputs in place of coordinates."""
    last = lambda c: (c.weights[-1], c.biases[-1])  # noqa: E731
    transform = setting.family.design.transform.T
    changed = [
        jnp.matmul(part * setting.scale, transform, precision="highest")
        for part in last(conditioner)
    ]
    return eqx.tree_at(last, conditioner, tuple(changed))
