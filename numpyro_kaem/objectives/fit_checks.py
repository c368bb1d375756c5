"""Checks of what a training is given."""

from collections.abc import Callable
from typing import Any

import jax
from numpyro.infer.elbo import ELBO

from numpyro_kaem.bases._checks import as_count
from numpyro_kaem.models import KAEM
from numpyro_kaem.objectives.base import MaximumLikelihood
from numpyro_kaem.objectives.grid_update import GridUpdate, grids_of
from numpyro_kaem.objectives.refit import PriorRefit

__all__ = ["check_batch_size", "check_chunk_size", "check_parts"]


def check_parts(
    model: Any,
    objective: Any,
    guide: Callable | None,
    refit: PriorRefit | None,
    grid_update: GridUpdate | None,
) -> None:
    """Check that the parts go together.

    Parameters
    ----------
    model, objective, guide, refit, grid_update
        As :func:`~numpyro_kaem.fit` is given them.

    Raises
    ------
    TypeError
        As :func:`~numpyro_kaem.fit`.
    ValueError
        As :func:`~numpyro_kaem.fit`.
    """
    if not callable(model):
        raise TypeError(
            f"model must be a NumPyro model, a callable, got {type(model).__name__}."
        )
    if not isinstance(objective, ELBO):
        raise TypeError(
            "objective must be such as numpyro_kaem.infer.LangevinMLE() or an ELBO of "
            f"NumPyro, got {type(objective).__name__}."
        )
    ours = isinstance(objective, MaximumLikelihood)
    if ours and guide is not None:
        raise ValueError(
            f"guide must be left out with {type(objective).__name__}, which makes its "
            "own."
        )
    if not ours and guide is None:
        raise ValueError(
            f"guide must be given with {type(objective).__name__}, such as "
            "numpyro.infer.autoguide.AutoNormal(model)."
        )
    for name, given in (("refit", refit), ("grid_update", grid_update)):
        if given is None:
            continue
        if not isinstance(model, KAEM):
            raise TypeError(
                f"{name} needs a numpyro_kaem.KAEM as the model, got "
                f"{type(model).__name__}."
            )
        if not getattr(objective, "persistent", False):
            raise ValueError(
                f"{name} needs an objective that keeps chains, LangevinMLE or "
                f"ThermodynamicMLE with persistent=True, got {type(objective).__name__}"
                "."
            )
    if refit is not None and model.joint is not None:
        raise ValueError(
            "refit needs a prior that is the law of the latents, got one with "
            f"joint={model.joint!r}: train it by gradient."
        )
    if grid_update is not None and not grids_of(model):
        raise ValueError(
            "grid_update needs a KANDecoder, or a prior of energies with a reference, "
            f"got a model without: its decoder is {type(model.decoder).__name__}, its "
            f"prior {type(model.prior).__name__}."
        )


def check_batch_size(data: jax.Array, batch_size: int | None) -> int | None:
    """Return the number of data of a batch; None for all.

    Parameters
    ----------
    data
        All data, shape ``(num_data, ...)``.
    batch_size
        As :func:`~numpyro_kaem.fit` is given it.

    Raises
    ------
    ValueError
        If there are no data, or fewer than a batch.
    """
    if data.ndim == 0 or len(data) == 0:
        raise ValueError(
            f"data must have shape (num_data, ...) and not be empty, got {data.shape}."
        )
    if batch_size is None:
        return None
    batch_size = as_count("batch_size", batch_size)
    if batch_size > len(data):
        raise ValueError(
            f"batch_size must be at most the number of data, {len(data)}, got "
            f"{batch_size}."
        )
    return batch_size if batch_size < len(data) else None


def check_chunk_size(chunk_size: int | None, batch_size: int) -> int | None:
    """Return the number of data of a chunk; None for all of a batch.

    Parameters
    ----------
    chunk_size
        As :func:`~numpyro_kaem.fit` is given it.
    batch_size
        Number of data of a batch.

    Raises
    ------
    ValueError
        If it does not divide the number of data of a batch.
    """
    if chunk_size is None:
        return None
    chunk_size = as_count("chunk_size", chunk_size)
    if batch_size % chunk_size != 0:
        raise ValueError(
            f"chunk_size must divide the number of data of a step, {batch_size}, got "
            f"{chunk_size}; take batches of a multiple of it."
        )
    return chunk_size if chunk_size < batch_size else None
