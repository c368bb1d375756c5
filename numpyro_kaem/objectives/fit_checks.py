"""Checks of what a training is given."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.example_libraries.optimizers import Optimizer
from numpyro.infer.elbo import ELBO

from numpyro_kaem.bases._checks import as_count, check_function
from numpyro_kaem.models import KAEM
from numpyro_kaem.objectives.base import MaximumLikelihood
from numpyro_kaem.objectives.checkpoints import Checkpoint
from numpyro_kaem.objectives.grid_update import GridUpdate, grids_of
from numpyro_kaem.objectives.refit import PriorRefit

__all__ = ["as_data", "check_batch_size", "check_chunk_size", "check_parts"]


def check_parts(
    model: Any,
    objective: Any,
    optimizer: Any,
    *,
    guide: Any,
    params: Any,
    penalty: Any,
    refit: Any,
    grid_update: Any,
    callback: Any,
    checkpoint: Any,
    unit_plate: Any,
) -> None:
    """Check that the parts are of their kinds and go together.

    Parameters
    ----------
    model, objective, optimizer
        As :func:`~numpyro_kaem.fit` is given them.
    guide, params, penalty, refit, grid_update, callback, checkpoint, unit_plate
        Likewise.

    Raises
    ------
    TypeError
        As :func:`~numpyro_kaem.fit`.
    ValueError
        As :func:`~numpyro_kaem.fit`.
    """
    check_function("model", model, "a numpyro_kaem.KAEM or another NumPyro model")
    if not isinstance(objective, ELBO):
        raise TypeError(
            "objective must be such as numpyro_kaem.infer.LangevinMLE() or an ELBO of "
            f"NumPyro, got {type(objective).__name__}."
        )
    if not _is_optimizer(optimizer):
        raise TypeError(
            "optimizer must be such as optax.adam(1e-3) or numpyro.optim.Adam(1e-3), "
            f"got {optimizer!r} of type {type(optimizer).__name__}."
        )
    for name, given, expected in (
        ("guide", guide, "a guide, a callable, or None"),
        ("penalty", penalty, "a function of the parameters by name, or None"),
        ("callback", callback, "a function of a numpyro_kaem.FitProgress, or None"),
    ):
        if given is not None:
            check_function(name, given, expected)
    for name, given, kind, example in (
        ("params", params, Mapping, "values by name"),
        ("refit", refit, PriorRefit, "such as numpyro_kaem.PriorRefit(500, 500)"),
        (
            "grid_update",
            grid_update,
            GridUpdate,
            "such as numpyro_kaem.GridUpdate(100, 100)",
        ),
        (
            "checkpoint",
            checkpoint,
            Checkpoint,
            "such as numpyro_kaem.Checkpoint('folder')",
        ),
    ):
        if given is not None and not isinstance(given, kind):
            raise TypeError(
                f"{name} must be {example}, or None, got {given!r} of type "
                f"{type(given).__name__}."
            )
    if not isinstance(unit_plate, str):
        raise TypeError(f"unit_plate must be the name of a plate, got {unit_plate!r}.")
    ours = isinstance(objective, MaximumLikelihood)
    if ours and objective.unit_plate != unit_plate:
        raise ValueError(
            f"unit_plate must be that of the objective, {objective.unit_plate!r}, got "
            f"{unit_plate!r}; give both the name of the plate of the data."
        )
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


def _is_optimizer(optimizer: Any) -> bool:
    """Whether an object is what NumPyro's SVI takes; not a class of optimisers."""
    if isinstance(optimizer, Optimizer):
        return True
    methods = [getattr(optimizer, name, None) for name in ("init", "update")]
    return all(map(callable, methods)) and not isinstance(optimizer, type)


def as_data(model: Any, data: Any) -> jax.Array:
    """Return data as an array, checked against a ready model.

    Parameters
    ----------
    model, data
        As :func:`~numpyro_kaem.fit` is given them.

    Raises
    ------
    TypeError
        If the data are not an array of numbers.
    ValueError
        If they do not fit the model.
    """
    if hasattr(model, "check_data"):
        return jnp.asarray(model.check_data(data))
    if not isinstance(data, jax.Array):
        try:
            dtype = np.asarray(data).dtype
        except ValueError:
            dtype = np.dtype(object)
        if dtype.kind not in "fiubc":
            raise TypeError(
                "data must be an array of numbers of shape (num_data, ...), got "
                f"{type(data).__name__} of dtype {dtype}."
            )
    return jnp.asarray(data)


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
