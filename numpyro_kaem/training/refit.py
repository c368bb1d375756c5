"""Changes of the model between steps of training: refits of the prior, new grids."""

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro import handlers

from numpyro_kaem._checks import as_count, as_flag, as_number, check_key
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.bases._base import on_grid
from numpyro_kaem.decoders import KANDecoder
from numpyro_kaem.distributions import AutoregressiveKAEMPrior, KAEMPrior
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation.autoregressive import fit_autoregressive
from numpyro_kaem.estimation.density import fit_density
from numpyro_kaem.estimation.mixture import fit_mixture
from numpyro_kaem.models.kaem import KAEM

__all__ = [
    "GridUpdate",
    "PriorRefit",
    "grids_of",
    "refinement_of",
    "refit_prior",
    "with_grids",
    "with_refinement",
]

_MIXTURE_STEPS = 20
# Error of a normalizing constant above which panels are halved, and how often, at most.
_LARGEST_ERROR = 1e-4
_FINEST = 8
# Inputs that vary less than this share of a grid leave it where it is.
_LEAST_WIDTH = 1e-3


@dataclass(frozen=True)
class _StepSchedule:
    """Equally spaced steps of training, from ``start`` to ``stop``."""

    start: int
    """First step."""
    every: int
    """Number of steps from one to the next."""
    stop: int | None = None
    """Step after which there is none."""

    def __post_init__(self) -> None:
        as_count("start", self.start)
        as_count("every", self.every)
        if self.stop is not None:
            as_count("stop", self.stop)

    def is_due(self, step: int) -> bool:
        """Whether it is done before this step."""
        if step < self.start or (self.stop is not None and step > self.stop):
            return False
        return (step - self.start) % self.every == 0


@dataclass(frozen=True)
class PriorRefit(_StepSchedule):
    """When :func:`~numpyro_kaem.fit` refits the prior to draws of the posteriors.

    They are the states of the objective's chains, or a draw of its encoder per datum.

    Until ``start`` the prior stays as given: with flat energies, its reference. Its
    parameters are never trained by gradient. A mixture starts from clusters at the
    first refit, and later from the last fit. Where an energy needs finer panels than
    before, the step of training is compiled again.

    Parameters
    ----------
    start
        Step of the first refit.
    every
        Number of steps from one to the next.
    stop
        Step after which there is none; None is the end of training.
    options
        For the function that fits, see :func:`refit_prior`. A mixture takes 20
        iterations, unless ``max_steps`` says otherwise.

    Raises
    ------
    TypeError
        If a number is not an integer, or ``options`` is not a dictionary.
    ValueError
        If a number is not positive.

    References
    ----------
    Dempster, Laird and Rubin (1977), "Maximum likelihood from incomplete data via the
    EM algorithm", *Journal of the Royal Statistical Society B* 39(1): a refit is a step
    of maximisation, with the draws in place of the expectation.

    Examples
    --------
    >>> import numpyro_kaem as kaem
    >>> refit = kaem.PriorRefit(start=200, every=50, options={"penalty": 0.1})
    >>> [step for step in range(400) if refit.is_due(step)]
    [200, 250, 300, 350]
    """

    options: dict[str, Any] = field(default_factory=dict)
    """For :func:`refit_prior`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.options, dict):
            raise TypeError(
                "options must be arguments by name for the function that fits, got "
                f"{self.options!r}."
            )

    def fit(
        self,
        prior: dist.Distribution,
        draws: np.ndarray,
        rng_key: jax.Array,
        warm_start: bool = False,
    ) -> dist.Distribution:
        """Refit a prior: :func:`refit_prior` with the options."""
        options = dict(self.options)
        if isinstance(prior, dist.MixtureSameFamily):
            options.setdefault("max_steps", _MIXTURE_STEPS)
        with warnings.catch_warnings():
            # The next refit continues.
            warnings.filterwarnings("ignore", message="the fit stopped after max_steps")
            return refit_prior(
                prior, draws, rng_key=rng_key, warm_start=warm_start, **options
            )


def refit_prior(
    prior: dist.Distribution,
    draws: ArrayLike,
    *,
    rng_key: jax.Array | None = None,
    warm_start: bool = False,
    **options: Any,
) -> dist.Distribution:
    """Fit a prior of the same form, bases and references to draws of the latents.

    With draws of each datum's posterior this is the exact maximisation step of the
    prior. For a decoder that was trained with another prior, such as that of a
    variational autoencoder, it makes generated data like the training data.

    Parameters
    ----------
    prior
        A :class:`KAEMPrior` of batch shape ``(dim,)``, a ``MixtureSameFamily`` of such,
        or an :class:`AutoregressiveKAEMPrior`; also with ``to_event``.
    draws
        Latent values, shape ``(num_draws, dim)``.
    rng_key
        Random key of the start of a mixture and of an autoregressive fit; None is
        ``jax.random.key(0)``.
    warm_start
        Whether a mixture starts from ``prior``, and not from clusters of the draws.
    options
        For :func:`fit_density`, :func:`fit_mixture` or :func:`fit_autoregressive`.
        Draws are exact, so that ``rounding`` is ``"none"`` unless it is given.

    Returns
    -------
    Distribution
        Of the same class and shapes. Its panels are those of ``prior``, divided further
        where its energies need it. Components that :func:`fit_mixture` leaves out are
        replaced by copies of the largest, which share its weight.

    Raises
    ------
    TypeError
        If ``prior`` is of none of these forms.
    ValueError
        If the draws have another shape, or as the function that fits.

    References
    ----------
    Ghosh, Sajjadi, Vergari, Black and Schölkopf (2020), "From variational to
    deterministic autoencoders", arXiv:1903.12436, on fitting a density to the latents
    of a trained autoencoder.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(kaem.BSpline(-3.0, 4.0, 12), jnp.zeros((2, 12)))
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    >>> draws = 0.5 + 0.7 * jax.random.normal(jax.random.key(0), (5000, 2))
    >>> refitted = kaem.refit_prior(prior, draws)
    >>> print(refitted.mean.round(1))
    [0.5 0.5]
    """
    base, num_events = prior, 0
    while isinstance(base, dist.Independent):
        num_events += base.reinterpreted_batch_ndims
        base = base.base_dist
    forms = KAEMPrior | dist.MixtureSameFamily | AutoregressiveKAEMPrior
    if not isinstance(base, forms):
        raise TypeError(
            "prior must be a KAEMPrior, a MixtureSameFamily of it or an "
            f"AutoregressiveKAEMPrior, got {type(base).__name__}."
        )
    draws = np.asanyarray(draws)
    shape = prior.shape()
    if draws.ndim != 2 or draws.shape[1:] != shape:
        expected = f"(num_draws, {', '.join(map(str, shape))})"
        raise ValueError(
            f"draws must have shape {expected}, those of the prior, got {draws.shape}."
        )
    warm_start = as_flag("warm_start", warm_start)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key(rng_key)
    options = {"rounding": "none"} | options
    if isinstance(base, KAEMPrior):
        fitted = _fit_independent(base, draws, options)
    elif isinstance(base, dist.MixtureSameFamily):
        if warm_start:
            options["start"] = base
        fitted = _fit_mixture(base, draws, rng_key, options)
    else:
        fitted = _fit_autoregressive(base, draws, rng_key, options)
    return fitted.to_event(num_events) if num_events else fitted


def _fit_independent(
    prior: KAEMPrior, draws: np.ndarray, options: dict[str, Any]
) -> KAEMPrior:
    with warnings.catch_warnings():
        # That of the user's choice of independent latents.
        warnings.filterwarnings("ignore", message="only the marginals are kept")
        fitted = fit_density(draws, prior.energy.basis, _reference(prior), **options)
    return _with_coefficients(prior, fitted.energy.coefficients)


def _fit_mixture(
    mixture: dist.MixtureSameFamily,
    draws: np.ndarray,
    rng_key: jax.Array,
    options: dict[str, Any],
) -> dist.MixtureSameFamily:
    component = mixture.component_distribution
    prior = component
    while isinstance(prior, dist.Independent):
        prior = prior.base_dist
    if not isinstance(prior, KAEMPrior):
        raise TypeError(
            f"prior must be a mixture of KAEMPrior, got one of {type(prior).__name__}."
        )
    mixing = mixture.mixing_distribution
    num_components = mixing.probs.shape[-1]
    with warnings.catch_warnings():
        # The panels are refined, and empty components replaced, below.
        warnings.filterwarnings("ignore", message="the normalizing constant has an")
        warnings.filterwarnings("ignore", message=".* components were left without")
        fitted = fit_mixture(
            draws,
            num_components,
            prior.energy.basis,
            _reference(prior),
            refinement=prior.refinement,
            rng_key=rng_key,
            **options,
        )
    sources, logits = _all_components(fitted.mixing_distribution.logits, num_components)
    components = fitted.component_distribution.base_dist
    new = _with_coefficients(prior, components.energy.coefficients[sources])
    # Of the same class, so that its parameter keeps its name.
    if isinstance(mixing, dist.CategoricalProbs):
        mixing = dist.CategoricalProbs(jax.nn.softmax(logits))
    else:
        mixing = dist.CategoricalLogits(logits)
    return dist.MixtureSameFamily(mixing, new.to_event(component.event_dim))


def _all_components(
    logits: jax.Array, num_components: int
) -> tuple[np.ndarray, jax.Array]:
    """Which fitted component each one copies, and their logits."""
    missing = num_components - len(logits)
    largest = np.argsort(-np.asarray(logits))[np.arange(missing) % len(logits)]
    sources = np.concatenate([np.arange(len(logits)), largest])
    copies = jnp.asarray(np.bincount(sources), logits.dtype)
    return sources, logits[sources] - jnp.log(copies)[sources]


def _fit_autoregressive(
    prior: AutoregressiveKAEMPrior,
    draws: np.ndarray,
    rng_key: jax.Array,
    options: dict[str, Any],
) -> AutoregressiveKAEMPrior:
    (basis, conditioner, parameters), aux = prior.tree_flatten()
    fitted = fit_autoregressive(
        draws,
        basis,
        None if parameters is None else prior.reference,
        rng_key=rng_key,
        width=conditioner.weights[0].shape[1],
        depth=len(conditioner.weights) - 1,
        **options,
    )
    return AutoregressiveKAEMPrior.tree_unflatten(
        aux, (basis, fitted.conditioner, parameters)
    )


def _reference(prior: KAEMPrior) -> dist.Distribution | None:
    return None if prior.tree_flatten()[0][1] is None else prior.reference


def _with_coefficients(prior: KAEMPrior, coefficients: jax.Array) -> KAEMPrior:
    """Prior with other coefficients, on panels as fine as they need; nothing cached."""
    (energy, parameters), (refinement, validate_args) = prior.tree_flatten()
    shape, dtype = energy.coefficients.shape, energy.coefficients.dtype
    coefficients = jnp.broadcast_to(coefficients, shape).astype(dtype)
    base = energy.base_weight
    base = None if base is None else jnp.zeros_like(base)
    energy = Energy(energy.basis, coefficients, base, energy.base_activation)
    while True:
        aux = (refinement, validate_args)
        new = KAEMPrior.tree_unflatten(aux, (energy, parameters))
        # Finer panels don't lower what rounding of the energies costs.
        floor = np.maximum(_LARGEST_ERROR, new._resolution.rounding)
        if refinement >= _FINEST or np.all(new._resolution.panels <= floor):
            return KAEMPrior.tree_unflatten(aux, (energy, parameters))
        # Doubled, so that there are few kinds to compile.
        refinement = min(2 * refinement, _FINEST)


@dataclass(frozen=True)
class GridUpdate(_StepSchedule):
    r"""When :func:`~numpyro_kaem.fit` moves the grids of a model, and where to.

    A grid is moved to the range of its inputs for the current draws of the posteriors:
    those of the layers of a :class:`~numpyro_kaem.KANDecoder`, per input where inputs
    have grids of their own, and of the energies of the prior. Functions are transferred
    by least squares, as in :meth:`~numpyro_kaem.Energy.refit`. Outside the old grid
    they are constant.

    Parameters
    ----------
    start
        Step of the first update.
    every
        Number of steps from one to the next.
    stop
        Step after which there is none; None is the end of training.
    margin
        Share of the range that is added at either end, at least 0.
    tail
        Share of the inputs left out at either end, in [0, 0.5).

    Raises
    ------
    TypeError
        If a count is not an integer, or a share not a number.
    ValueError
        If a number is out of its range.

    Notes
    -----
    - Grids are static: the step of training is compiled again after each update.
    - The optimiser keeps its state, the averages of the gradients of the coefficients
      included, although the basis functions have moved with the grid.
    - The energies of a prior without a reference keep their grid, which is the support
      of the latents; so do those of an :class:`~numpyro_kaem.AutoregressiveKAEMPrior`.
    - The number of basis functions stays. For more of them, continue with
      :meth:`KANDecoder.refit <numpyro_kaem.KANDecoder.refit>`.

    References
    ----------
    Liu et al. (2024), "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756, section
    2.2 and appendix.

    Examples
    --------
    >>> import numpyro_kaem as kaem
    >>> update = kaem.GridUpdate(start=100, every=200, stop=600)
    >>> [step for step in range(1000) if update.is_due(step)]
    [100, 300, 500]
    """

    margin: float = 0.1
    """Share of the range that is added at either end."""
    tail: float = 0.0
    """Share of the inputs left out at either end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        as_number("margin", self.margin, "a finite number >= 0", lambda x: x >= 0)
        as_number("tail", self.tail, "in [0, 0.5)", lambda x: 0 <= x < 0.5)

    def move(self, model: KAEM, latents: dict[str, jax.Array]) -> KAEM:
        """Nearly the same model, on grids moved to draws of its latents by name."""
        z = _decoded_latents(model, latents)
        # Base latents do not follow the prior, and its grid is no range of theirs.
        prior = model.prior
        if model.joint is None:
            prior = _map_energies(
                lambda energy: energy.refit(self._moved(energy.basis, z)), prior
            )
        decoder = model.decoder
        if isinstance(decoder, KANDecoder):
            sums = z if z.ndim == 2 else z.sum(-1)
            # Layer by layer: the functions before it decide what arrives at a layer.
            for index, layer in enumerate(decoder.layers):
                inputs = decoder.layer_inputs(sums)[index]
                layer = layer.refit(self._moved(layer.basis, inputs))
                layers = (*decoder.layers[:index], layer, *decoder.layers[index + 1 :])
                decoder = eqx.tree_at(operator.attrgetter("layers"), decoder, layers)
        return replace(model, prior=prior, decoder=decoder)

    def _moved(self, basis: AbstractBasis, values: ArrayLike) -> AbstractBasis:
        """Move a grid to the range of values of shape ``(num_draws, ...)``."""
        values = np.asarray(values, np.float64)
        if basis.grid_shape == ():
            values = values.reshape(-1)
        elif basis.grid_shape != values.shape[1:]:
            return basis
        low, high = np.quantile(values, [self.tail, 1 - self.tail], axis=0)
        margin = self.margin * (high - low)
        old_low, old_high = np.asarray(basis.low), np.asarray(basis.high)
        moves = high - low > _LEAST_WIDTH * (old_high - old_low)
        return on_grid(
            basis,
            np.where(moves, low - margin, old_low),
            np.where(moves, high + margin, old_high),
        )


def _decoded_latents(model: KAEM, latents: dict[str, jax.Array]) -> jax.Array:
    """Latents that the decoder is given, or the table whose rows it sums."""

    @jax.jit
    def run(latents: dict[str, jax.Array]) -> jax.Array:
        (num_draws,) = {len(value) for value in latents.values()}
        with (
            handlers.block(),
            handlers.seed(rng_seed=0),
            handlers.substitute(data=latents),
            handlers.trace() as trace,
        ):
            model(num_data=num_draws)
        return trace["z"]["value"]

    return run(latents)


def _is_density(node: Any) -> bool:
    return isinstance(node, KAEMPrior)


def _densities(prior: Any) -> list[KAEMPrior]:
    """Univariate densities of which a prior is made, in a fixed order."""
    nodes = jax.tree.leaves(prior, is_leaf=_is_density)
    return [node for node in nodes if _is_density(node)]


def _map_densities(function: Callable[[KAEMPrior], Any], prior: Any) -> Any:
    """Prior with its univariate densities changed."""
    return jax.tree.map(
        lambda node: function(node) if _is_density(node) else node,
        prior,
        is_leaf=_is_density,
    )


def _map_energies(
    change: Callable[[Energy], Energy], prior: dist.Distribution
) -> dist.Distribution:
    """Change the energies of a prior, where a reference gives the support."""

    def move(density: KAEMPrior) -> KAEMPrior:
        (energy, parameters), aux = density.tree_flatten()
        if parameters is not None:
            energy = change(energy)
        return KAEMPrior.tree_unflatten(aux, (energy, parameters))

    return _map_densities(move, prior)


# --- grids and panels by themselves, for checkpoints ---------------------------------


def refinement_of(prior: Any) -> int | None:
    """How far the panels of a prior are divided, None if it has none."""
    return max((d.refinement for d in _densities(prior)), default=None)


def with_refinement(prior: Any, refinement: int) -> Any:
    """Prior with its panels divided another way, its parameters as they are."""

    def divide(density: KAEMPrior) -> KAEMPrior:
        children, (_, validate_args) = density.tree_flatten()
        return KAEMPrior.tree_unflatten((refinement, validate_args), children)

    return _map_densities(divide, prior)


def grids_of(model: KAEM) -> list[list[Any]]:
    """List the ends of the grids that can move, as JSON holds them to the last bit."""
    found = []
    if model.joint is None:
        densities = _densities(model.prior)
        found = [d.energy.basis for d in densities if _reference(d) is not None]
    if isinstance(model.decoder, KANDecoder):
        found += [layer.basis for layer in model.decoder.layers]
    return [[np.asarray(b.low).tolist(), np.asarray(b.high).tolist()] for b in found]


def with_grids(model: KAEM, grids: list[list[Any]]) -> KAEM:
    """Model on the grids of :func:`grids_of`; the same object if it has them."""
    own = grids_of(model)
    if grids == own:
        return model
    if len(grids) != len(own):
        raise ValueError(
            f"the checkpoint holds {len(grids)} grids, and the model has {len(own)}: "
            "it is of another model."
        )
    ends = iter(grids)
    prior, decoder = model.prior, model.decoder
    if model.joint is None:
        prior = _map_energies(
            lambda energy: energy.refit(on_grid(energy.basis, *next(ends))), prior
        )
    if isinstance(decoder, KANDecoder):
        decoder = decoder.refit(
            [on_grid(layer.basis, *next(ends)) for layer in decoder.layers]
        )
    return replace(model, prior=prior, decoder=decoder)
