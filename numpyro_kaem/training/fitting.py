"""Training of a model with latent values."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.example_libraries.optimizers import Optimizer
from jax.typing import ArrayLike
from numpyro.infer.elbo import ELBO
from tqdm import tqdm

from numpyro_kaem._checks import as_count, as_flag, check_function, check_key
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.models.likelihoods import as_data
from numpyro_kaem.objectives.base import MaximumLikelihood
from numpyro_kaem.training.checkpoint import Checkpoint, fingerprint
from numpyro_kaem.training.refit import GridUpdate, PriorRefit, grids_of
from numpyro_kaem.training.run import FitProgress, FitResult, Run
from numpyro_kaem.training.trainer import Batches, Trainer

__all__ = [
    "FitProgress",
    "FitResult",
    "check_batch_size",
    "check_chunk_size",
    "check_parts",
    "fit",
]


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
            "objective must be such as numpyro_kaem.objectives.LangevinMLE() or an "
            f"ELBO of NumPyro, got {type(objective).__name__}."
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


def fit(
    model: Callable,
    data: ArrayLike,
    objective: ELBO,
    optimizer: Any,
    num_steps: int,
    *,
    rng_key: jax.Array | None = None,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    guide: Callable | None = None,
    params: dict[str, Any] | None = None,
    penalty: Callable[[dict[str, Any]], jax.Array] | None = None,
    refit: PriorRefit | None = None,
    grid_update: GridUpdate | None = None,
    patience: int | None = None,
    callback: Callable[[FitProgress], bool | None] | None = None,
    checkpoint: Checkpoint | None = None,
    progress_bar: bool = True,
    unit_plate: str = "data",
) -> FitResult:
    """Train a model by stochastic gradients.

    Parameters
    ----------
    model
        A :class:`KAEM`, or any NumPyro model that is called as ``model(data)`` and,
        with batches, as ``model(data, subsample_size=batch_size)``, with a plate of the
        data.
    data
        All data, shape ``(num_data, ...)``.
    objective
        :class:`~numpyro_kaem.objectives.ImportanceMLE`,
        :class:`~numpyro_kaem.objectives.LangevinMLE`,
        :class:`~numpyro_kaem.objectives.ThermodynamicMLE`,
        :class:`~numpyro_kaem.objectives.AmortisedELBO`, or an ``ELBO`` of NumPyro with
        a ``guide``.
    optimizer
        Of optax, with any schedule of its learning rate, or of NumPyro.
    num_steps
        Number of steps, those of a checkpoint from which training goes on included.
    rng_key
        Random key; None is ``jax.random.key(0)``.
    batch_size
        Number of data of a step; None is all. Every epoch has a new order.
    chunk_size
        How many data of a step run through the model at once, a divisor of their
        number; None is all. Memory grows with it, and with the number of particles or
        chains; gradients are those of the step, but for the draws.
    guide
        Guide for an ``ELBO`` of NumPyro, called as the model is.
    params
        Values to start from, by name; others start as the model and the guide say.
    penalty
        Function of the parameters by name, added to the loss: such as
        ``lambda params: kan_penalty(params, l1=1.0)``.
    refit
        When to fit the prior to the chains of the objective, in place of training it by
        gradient. The model is then a :class:`KAEM`, and the objective keeps chains.
    grid_update
        When to move the grids of the decoder and the prior to where the draws of the
        posteriors are. The model is then a :class:`KAEM`, and the objective keeps
        chains.
    patience
        Number of epochs without a smaller mean loss after which to stop.
    callback
        Called with a :class:`FitProgress` after every epoch; training stops if it
        returns True.
    checkpoint
        Folder and interval of checkpoints. If it holds one, training goes on from it,
        with the draws of an unbroken run; it must be of the same data.
    progress_bar
        Whether to show progress, with the mean loss of the last epoch and what the
        objective reports.
    unit_plate
        Name of the plate of the data.

    Returns
    -------
    FitResult
        Trained model, parameters and losses.

    Raises
    ------
    TypeError
        If a part is not of its kind, or a prior cannot be refitted.
    ValueError
        If a number is out of its range, the data are empty or do not fit the model, the
        guide is missing or not wanted, ``params`` has a name or shape that no parameter
        has, or a checkpoint is of another model, of other data or of more steps, or is
        finished and of another training.

    Warns
    -----
    UserWarning
        If steps were skipped; if a checkpoint is damaged, and one before it is used; if
        training goes on with another objective, optimiser or setting than before.

    Notes
    -----
    - A step whose loss or result is not finite is not taken, and counted.
    - A job that is killed loses at most ``checkpoint.every`` steps.
    - A checkpoint knows what it was trained by: the data (by a hash of their numbers),
      the model and its first values, the objective, the optimiser, the key, the size of
      batches, and ``guide``, ``params``, ``penalty``, ``refit``, ``grid_update`` and
      ``unit_plate``. Where one differs, training goes on with a warning that names it,
      or, if no step is left, is refused. Of functions the names and constants in
      their code and what they enclose are compared. Other data are refused always:
      train on them in another folder, from ``params=result.params`` if you like.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> def model(x, subsample_size=None):
    ...     loc = numpyro.param("loc", 0.0)
    ...     with numpyro.plate("data", len(x), subsample_size=subsample_size) as index:
    ...         z = numpyro.sample("z", dist.Normal(loc, 1.0))
    ...         numpyro.sample("x", dist.Normal(z, 0.5), obs=x[index])
    >>> x = 1.5 + jax.random.normal(jax.random.key(0), (200,))
    >>> objective = kaem.objectives.ImportanceMLE(num_particles=50)
    >>> optimizer = numpyro.optim.Adam(0.02)
    >>> result = kaem.fit(
    ...     model, x, objective, optimizer, 400, batch_size=50, progress_bar=False
    ... )
    >>> bool(abs(result.params["loc"] - x.mean()) < 0.2)
    True
    """
    num_steps = as_count("num_steps", num_steps)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key(rng_key)
    if patience is not None:
        patience = as_count("patience", patience)
    progress_bar = as_flag("progress_bar", progress_bar)
    check_parts(
        model,
        objective,
        optimizer,
        guide=guide,
        params=params,
        penalty=penalty,
        refit=refit,
        grid_update=grid_update,
        callback=callback,
        checkpoint=checkpoint,
        unit_plate=unit_plate,
    )
    data = as_data(model, data)
    batch_size = check_batch_size(data, batch_size)
    chunk_size = check_chunk_size(chunk_size, batch_size or len(data))

    key_init, key_order, key_refit = jax.random.split(rng_key, 3)

    def make_trainer(model: Callable) -> Trainer:
        parts = (model, guide, objective, optimizer)
        return Trainer(*parts, unit_plate, batch_size, penalty, chunk_size)

    run = Run(
        model,
        make_trainer,
        Batches(key_order, len(data), batch_size),
        data,
        key_init,
        params,
        fixes_prior=refit is not None,
    )
    if checkpoint is not None:
        of_now = fingerprint(
            data=data,
            model=model,
            objective=objective,
            optimizer=optimizer,
            rng_key=rng_key,
            batch_size=batch_size,
            guide=guide,
            params=params,
            penalty=penalty,
            refit=refit,
            grid_update=grid_update,
            unit_plate=unit_plate,
        )
        run.resume(checkpoint, num_steps, of_now)

    stopped = "num_steps"
    with tqdm(
        total=num_steps, initial=len(run.losses), disable=not progress_bar
    ) as bar:
        while (step := len(run.losses)) < num_steps:
            if grid_update is not None and grid_update.is_due(step):
                run.move_grids(grid_update)
            if refit is not None and refit.is_due(step):
                run.refit_prior(refit, jax.random.fold_in(key_refit, step))
            run.advance()
            bar.update()
            step += 1
            if checkpoint is not None and (
                step % checkpoint.every == 0 or step == num_steps
            ):
                run.save(checkpoint)
            if step % run.batches.steps_per_epoch != 0 and step != num_steps:
                continue
            if progress_bar:
                bar.set_postfix_str(run.describe())
            if callback is not None and callback(run.progress()):
                stopped = "callback"
                break
            if patience is not None and run.is_stuck(patience):
                stopped = "patience"
                break
    return run.result(stopped)
