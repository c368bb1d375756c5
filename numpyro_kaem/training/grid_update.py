"""Grids that follow what arrives at them in training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers

from numpyro_kaem._checks import as_number
from numpyro_kaem.bases import AbstractBasis
from numpyro_kaem.bases._base import on_grid
from numpyro_kaem.decoders import KANDecoder
from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.energy import Energy
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.training.refit import Occasions

__all__ = ["GridUpdate", "grids_of", "with_grids"]

# Inputs that vary less than this share of a grid leave it where it is.
_LEAST_WIDTH = 1e-3


@dataclass(frozen=True)
class GridUpdate(Occasions):
    r"""When :func:`~numpyro_kaem.fit` moves the grids of a model, and where to.

    A grid is moved to the range of what arrives at it for the current draws of the
    posteriors: the layers of a :class:`~numpyro_kaem.KANDecoder`, each input where it
    has a grid of its own, and the energies of the prior. Functions are carried over by
    least squares, as :meth:`~numpyro_kaem.Energy.refit` does. Outside of the old grid
    they continue as constants.

    Parameters
    ----------
    start
        Step of the first update.
    every
        Number of steps from one to the next.
    stop
        Step after which there is none; None goes on to the end.
    margin
        Share of the range by which the grid is longer at either end, at least 0.
    tail
        Share of the inputs that may lie beyond either end of the range, in [0, 0.5).

    Raises
    ------
    TypeError
        If a count is not an integer.
    ValueError
        If a number is out of its range.

    Notes
    -----
    - Grids are static: the step of training is compiled anew after each update.
    - The optimiser keeps its state, the averages of the gradients of the coefficients
      included: they belong to basis functions that have moved with the grid.
    - The energies of a prior without a reference keep their grid, which is the support
      of the latents; so do those of an :class:`~numpyro_kaem.AutoregressiveKAEMPrior`.
    - The number of basis functions stays. For more of them, train on with
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
    """Share of the range by which the grid is longer at either end."""
    tail: float = 0.0
    """Share of the inputs that may lie beyond either end of the range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        as_number("margin", self.margin, "a finite number >= 0", lambda x: x >= 0)
        as_number("tail", self.tail, "in [0, 0.5)", lambda x: 0 <= x < 0.5)

    def move(self, model: KAEM, latents: dict[str, jax.Array]) -> KAEM:
        """Move the grids of a model.

        Parameters
        ----------
        model
            The model.
        latents
            Draws of its latent site, by name, shape ``(num_draws, ...)``.

        Returns
        -------
        KAEM
            Nearly the same functions, on other grids.
        """
        z = _decoded_latents(model, latents)
        # Of base latents the prior is no law, and its grid no range of theirs.
        prior = model.prior
        if model.joint is None:
            prior = _map_energies(
                prior, lambda energy: energy.refit(self._moved(energy.basis, z))
            )
        decoder = model.decoder
        if isinstance(decoder, KANDecoder):
            sums = z if z.ndim == 2 else z.sum(-1)
            # Layer by layer: the functions before it decide what arrives at a layer.
            for index, layer in enumerate(decoder.layers):
                inputs = decoder.layer_inputs(sums)[index]
                layer = layer.refit(self._moved(layer.basis, inputs))
                decoder = eqx.tree_at(
                    lambda decoder, index=index: decoder.layers[index], decoder, layer
                )
        return _with_parts(model, prior, decoder)

    def _moved(self, basis: AbstractBasis, values: jax.Array) -> AbstractBasis:
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


def _with_parts(model: KAEM, prior: dist.Distribution, decoder: Any) -> KAEM:
    return KAEM(
        prior,
        decoder,
        model.likelihood,
        joint=model.joint,
        learn_proportions=model.learn_proportions,
        learn_reference=model.learn_reference,
    )


def _map_energies(
    prior: dist.Distribution, change: Callable[[Energy], Energy]
) -> dist.Distribution:
    """Change the energies of a prior, where a reference gives the support."""

    def move(node: Any) -> Any:
        if not isinstance(node, KAEMPrior):
            return node
        (energy, parameters), aux = node.tree_flatten()
        if parameters is not None:
            energy = change(energy)
        return KAEMPrior.tree_unflatten(aux, (energy, parameters))

    return jax.tree.map(move, prior, is_leaf=lambda node: isinstance(node, KAEMPrior))


# --- grids by themselves, for checkpoints --------------------------------------------


def _bases_of(model: KAEM) -> list[AbstractBasis]:
    """List the bases whose grids can move, in a fixed order."""
    found: list[AbstractBasis] = []

    def note(energy: Energy) -> Energy:
        found.append(energy.basis)
        return energy

    if model.joint is None:
        _map_energies(model.prior, note)
    if isinstance(model.decoder, KANDecoder):
        found.extend(layer.basis for layer in model.decoder.layers)
    return found


def grids_of(model: KAEM) -> list[list[Any]]:
    """List the ends of the grids that can move, as JSON holds them to the last bit."""
    return [
        [np.asarray(basis.low).tolist(), np.asarray(basis.high).tolist()]
        for basis in _bases_of(model)
    ]


def with_grids(model: KAEM, grids: list[list[Any]]) -> KAEM:
    """Model on given grids, its functions carried over.

    Parameters
    ----------
    model
        The model.
    grids
        Those of :func:`grids_of`, of a model with the same parts.

    Returns
    -------
    KAEM
        The model; the same object if its grids are these.

    Raises
    ------
    ValueError
        If the number of grids is another.
    """
    if grids == grids_of(model):
        return model
    if len(grids) != len(_bases_of(model)):
        raise ValueError(
            f"the checkpoint holds {len(grids)} grids, and the model has "
            f"{len(_bases_of(model))}: it is of another model."
        )
    ends = iter(grids)
    prior, decoder = model.prior, model.decoder
    if model.joint is None:
        prior = _map_energies(
            prior, lambda energy: energy.refit(on_grid(energy.basis, *next(ends)))
        )
    if isinstance(decoder, KANDecoder):
        decoder = decoder.refit(
            [on_grid(layer.basis, *next(ends)) for layer in decoder.layers]
        )
    return _with_parts(model, prior, decoder)
