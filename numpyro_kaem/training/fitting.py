"""Training of a model with latent values."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.example_libraries.optimizers import Optimizer
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.infer.elbo import ELBO
from tqdm import tqdm

from numpyro_kaem._checks import as_count, as_flag, check_function, check_key
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.models.kaem import KAEM, as_data
from numpyro_kaem.models.learning import learn_prior
from numpyro_kaem.models.likelihoods import NormalLikelihood
from numpyro_kaem.objectives.amortised import AmortisedELBO
from numpyro_kaem.objectives.base import MaximumLikelihood
from numpyro_kaem.training.checkpoint import (
    Checkpoint,
    differences,
    fingerprint,
    read_newest,
)
from numpyro_kaem.training.refit import (
    GridUpdate,
    PriorRefit,
    grids_of,
    refinement_of,
    with_grids,
    with_refinement,
)
from numpyro_kaem.training.trainer import Batches, Trainer

__all__ = ["FitProgress", "FitResult", "fit"]

# Whole numbers up to this may be counts, for which Normal noise is a choice.
_FEW = 100


@dataclass(frozen=True, repr=False)
class FitProgress:
    """What a callback of :func:`fit` is given.

    Examples
    --------
    A callback that stops after the third epoch:

    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> def model(x, subsample_size=None):
    ...     loc = numpyro.param("loc", 0.0)
    ...     with numpyro.plate("data", len(x), subsample_size=subsample_size) as index:
    ...         z = numpyro.sample("z", dist.Normal(loc, 1.0))
    ...         numpyro.sample("x", dist.Normal(z, 0.5), obs=x[index])
    >>> x = jnp.linspace(0.0, 3.0, 40)
    >>> objective = kaem.objectives.ImportanceMLE(num_particles=20)
    >>> options = {"batch_size": 20, "progress_bar": False}
    >>> options["callback"] = lambda progress: progress.step >= 6
    >>> kaem.fit(model, x, objective, numpyro.optim.Adam(0.1), 100, **options)
    FitResult(6 steps, 0 skipped, last loss ..., stopped by callback)
    """

    step: int
    """Number of steps done."""
    losses: np.ndarray
    """Loss of every step so far, shape ``(step,)``."""
    num_skipped: int
    """Number of steps that were skipped because something was not finite."""
    params: dict[str, Any]
    """Values of the parameters by name."""
    memory: dict[str, jax.Array]
    """What the objective keeps, such as ``"ess"`` or ``"acceptance"``."""


@dataclass(frozen=True, repr=False)
class FitResult:
    """A trained model; made by :func:`fit`.

    Examples
    --------
    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> kaem.FitResult(None, {"loc": 0.5}, np.array([3.0, 2.5]), 0, {}, "patience")
    FitResult(2 steps, 0 skipped, last loss 2.5, stopped by patience)
    """

    model: Any
    """The model, with fitted values if it is a :class:`KAEM`."""
    params: dict[str, Any]
    """Values of the parameters by name."""
    losses: np.ndarray
    """Loss of every step, shape ``(num_steps,)``; NaN or infinite where skipped."""
    num_skipped: int
    """Number of steps that were skipped because something was not finite."""
    memory: dict[str, jax.Array]
    """What the objective keeps, such as the chains of each unit."""
    stopped: str
    """Why training ended: ``"num_steps"``, ``"patience"`` or ``"callback"``."""
    encoder: Any = None
    """The trained encoder, if the objective is an ``AmortisedELBO``."""

    def encode(self, x: ArrayLike, rng_key: jax.Array | None = None) -> jax.Array:
        """Latents of data by the encoder, shape ``(num_data, *latent_shape)``.

        Parameters
        ----------
        x
            Data, shape ``(num_data, ...)``, of any number.
        rng_key
            Random key, for one draw of the encoder's distribution of each datum; None
            is its median.

        Raises
        ------
        ValueError
            If the result is not that of a :class:`KAEM` with an encoder, or its latents
            are those of KART; or if ``x`` does not fit the model.
        """
        model = self.model
        if self.encoder is None or not isinstance(model, KAEM) or model.joint:
            kind = f"{type(model).__name__} with"
            kind += "out an encoder" if self.encoder is None else " an encoder"
            raise ValueError(
                "encode needs the result of a numpyro_kaem.KAEM, not of KART, trained "
                f"by AmortisedELBO, got that of a {kind}."
            )
        x = model.check_data(x)
        key = jax.random.key(0) if rng_key is None else rng_key
        check_key(key)
        units = UnitModel(key, model.params, model, (jnp.asarray(x),), {}, "data")
        position, log_scale = jnp.split(self.encoder(jnp.asarray(x)), 2, axis=-1)
        if rng_key is not None:
            noise = jax.random.normal(key, position.shape)
            position = position + jnp.exp(log_scale) * noise
        return units.constrain(position)[0]["z"]

    def reconstruct(self, x: ArrayLike) -> jax.Array:
        """Decode the medians of the encoder, in the shape of the data ``x``.

        Raises
        ------
        ValueError
            As :meth:`encode`.
        """
        return self.model.decode(self.encode(x))

    def __repr__(self) -> str:
        last = f"{self.losses[-1]:.6g}" if self.losses.size else "none"
        return (
            f"FitResult({self.losses.size} steps, {self.num_skipped} skipped, last "
            f"loss {last}, stopped by {self.stopped})"
        )


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
    regularizer: Callable[[dict[str, Any]], jax.Array] | None = None,
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
        Total number of steps, those before a checkpoint included.
    rng_key
        Random key; None is ``jax.random.key(0)``.
    batch_size
        Number of data of a step; None is all. Every epoch has a new order.
    chunk_size
        How many data of a step run through the model at once, a divisor of their
        number; None is all. The gradient is accumulated over such chunks. Memory grows
        with the size of a chunk and the number of particles or chains.
    guide
        Guide for an ``ELBO`` of NumPyro, called as the model is.
    params
        Values to start from, by name; others start as the model and the guide say.
    regularizer
        Function of the parameters by name, added to the loss: such as
        ``lambda params: kan_regularizer(params, l1=1.0)``.
    refit
        When to fit the prior to the chains of the objective, or to draws of its
        encoder, in place of training it by gradient. The model must be a :class:`KAEM`,
        and the objective keep chains or be an ``AmortisedELBO``.
    grid_update
        When to move the grids of the decoder and the prior to the range of the draws
        of the posteriors. The model and the objective are as for ``refit``.
    patience
        Number of epochs without a smaller mean loss after which to stop.
    callback
        Function of a :class:`FitProgress`, called after every epoch; training stops if
        it returns True.
    checkpoint
        Folder and interval of checkpoints. If the folder holds one, training continues
        from it as if it had not been interrupted; it must be of the same data.
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
        If steps were skipped; if a checkpoint is damaged, so that an earlier one is
        used; if training continues with another objective, optimiser or setting; if
        data with a :class:`NormalLikelihood` look like pixels from 0 to 255.

    Notes
    -----
    - A step whose loss or result is not finite is skipped and counted.
    - A job that is killed loses at most ``checkpoint.every`` steps.
    - A checkpoint records what it was trained by: the data (by a hash), the model and
      its first values, the objective, the optimiser, the key, the size of batches, and
      ``guide``, ``params``, ``regularizer``, ``refit``, ``grid_update`` and
      ``unit_plate``. Where one differs, training continues with a warning that names
      it, or is refused if no step is left. Functions are compared by the names and
      constants in their code and by what they enclose. Other data are always refused:
      train on them in another folder, starting from ``params=result.params``.

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
    >>> result
    FitResult(400 steps, 0 skipped, last loss ..., stopped by num_steps)
    >>> bool(abs(result.params["loc"] - x.mean()) < 0.2)
    True
    """
    num_steps = as_count("num_steps", num_steps)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key(rng_key)
    if patience is not None:
        patience = as_count("patience", patience)
    progress_bar = as_flag("progress_bar", progress_bar)
    # What the results depend on, beside data, key and sizes of batches.
    parts = {
        "model": model,
        "objective": objective,
        "optimizer": optimizer,
        "guide": guide,
        "params": params,
        "regularizer": regularizer,
        "refit": refit,
        "grid_update": grid_update,
        "unit_plate": unit_plate,
    }
    _check_parts(**parts, callback=callback, checkpoint=checkpoint)
    data = as_data(model, data)
    _warn_of_bytes(model, data)
    batch_size = _check_batch_size(data, batch_size)
    chunk_size = _check_chunk_size(chunk_size, batch_size or len(data))
    key_init, key_order, key_refit = jax.random.split(rng_key, 3)

    def make_trainer(model: Callable) -> Trainer:
        options = (unit_plate, batch_size, regularizer, chunk_size)
        return Trainer(model, guide, objective, optimizer, *options)

    batches = Batches(key_order, len(data), batch_size)
    run = _Run(
        key_init,
        model,
        make_trainer,
        batches,
        data,
        params,
        has_refit=refit is not None,
    )
    if checkpoint is not None:
        of_now = fingerprint(**parts, data=data, rng_key=rng_key, batch_size=batch_size)
        run.resume(checkpoint, num_steps, of_now)

    stopped = "num_steps"
    with tqdm(
        total=num_steps, initial=len(run.losses), disable=not progress_bar
    ) as bar:
        while (step := len(run.losses)) < num_steps:
            if grid_update is not None and grid_update.is_due(step):
                run.move_grids(grid_update, jax.random.fold_in(key_refit, step))
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


# --- checks of arguments --------------------------------------------------------------


def _check_parts(
    model: Any,
    objective: Any,
    optimizer: Any,
    *,
    guide: Any,
    params: Any,
    regularizer: Any,
    refit: Any,
    grid_update: Any,
    callback: Any,
    checkpoint: Any,
    unit_plate: Any,
) -> None:
    """Check the types of the parts, and that they fit together."""
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
        ("regularizer", regularizer, "a function of the parameters by name, or None"),
        ("callback", callback, "a function of a numpyro_kaem.FitProgress, or None"),
    ):
        if given is not None:
            check_function(name, given, expected)
    if not isinstance(params, Mapping | None):
        raise TypeError(
            f"params must be values by name, or None, got {params!r} of type "
            f"{type(params).__name__}."
        )
    for name, given, kind, example in (
        ("refit", refit, PriorRefit, "500, 500"),
        ("grid_update", grid_update, GridUpdate, "100, 100"),
        ("checkpoint", checkpoint, Checkpoint, "'folder'"),
    ):
        if not isinstance(given, kind | None):
            raise TypeError(
                f"{name} must be such as numpyro_kaem.{kind.__name__}({example}), or "
                f"None, got {given!r} of type {type(given).__name__}."
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
            f"guide must be None with {type(objective).__name__}, which makes its own."
        )
    if not ours and guide is None:
        raise ValueError(
            f"guide must be given with {type(objective).__name__}, such as "
            "numpyro.infer.autoguide.AutoNormal(model)."
        )
    needs_chains = {"refit": refit, "grid_update": grid_update}
    for name in [name for name, given in needs_chains.items() if given is not None]:
        if not isinstance(model, KAEM):
            raise TypeError(
                f"{name} needs a numpyro_kaem.KAEM as the model, got "
                f"{type(model).__name__}."
            )
        has_draws = isinstance(objective, AmortisedELBO)
        if not has_draws and not getattr(objective, "persistent", False):
            raise ValueError(
                f"{name} needs an objective that keeps chains, LangevinMLE or "
                "ThermodynamicMLE with persistent=True, or has an encoder, "
                f"AmortisedELBO, got {type(objective).__name__}."
            )
    if refit is not None and model.joint is not None:
        raise ValueError(
            "refit needs a prior that is the distribution of the latents, got one with "
            f"joint={model.joint!r}: train it by gradient."
        )
    if grid_update is not None and not grids_of(model):
        raise ValueError(
            "grid_update needs a KANDecoder, or a prior of energies with a reference, "
            f"got a model without: its decoder is {type(model.decoder).__name__}, its "
            f"prior {type(model.prior).__name__}."
        )


def _warn_of_bytes(model: Any, data: jax.Array) -> None:
    """Warn of pixels from 0 to 255, from which Normal noise of a start is far off."""
    if not isinstance(getattr(model, "likelihood", None), NormalLikelihood):
        return
    low, high = float(jnp.min(data)), float(jnp.max(data))
    if low >= 0 and _FEW < high <= 255 and bool(jnp.all(data == jnp.round(data))):
        _warn(
            f"data are whole numbers from {low:.0f} to {high:.0f}, as pixels in bytes "
            "are, and the decoder and its noise start in units of about one: training "
            "starts far off, and may not arrive. Divide the data by 255, or by their "
            "standard deviation."
        )


def _is_optimizer(optimizer: Any) -> bool:
    """Whether an object is what NumPyro's SVI takes; not a class of optimisers."""
    if isinstance(optimizer, Optimizer):
        return True
    methods = [getattr(optimizer, name, None) for name in ("init", "update")]
    return all(map(callable, methods)) and not isinstance(optimizer, type)


def _check_batch_size(data: jax.Array, batch_size: int | None) -> int | None:
    """Check the number of data of a batch; None if it is all."""
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


def _check_chunk_size(chunk_size: int | None, batch_size: int) -> int | None:
    """Check the number of data of a chunk; None if it is all of a batch."""
    if chunk_size is None:
        return None
    chunk_size = as_count("chunk_size", chunk_size)
    if batch_size % chunk_size != 0:
        raise ValueError(
            f"chunk_size must divide the number of data of a step, {batch_size}, got "
            f"{chunk_size}; take batches of a multiple of it."
        )
    return chunk_size if chunk_size < batch_size else None


# --- a run of training ---------------------------------------------------------------


class _Run:
    """The state of a training and what changes it.

    ``make_trainer`` makes the compiled steps of a model; ``params`` are initial values
    by name, or None. With ``has_refit`` the prior is not trained by gradient.
    """

    def __init__(
        self,
        rng_key: jax.Array,
        model: Any,
        make_trainer: Callable[[Any], Trainer],
        batches: Batches,
        data: jax.Array,
        params: dict[str, Any] | None,
        *,
        has_refit: bool,
    ) -> None:
        self.model, self.batches, self.data = model, batches, data
        self._make_trainer, self._params = make_trainer, params
        self._rng_key, self._has_refit = rng_key, has_refit
        self._fingerprint: dict[str, str] = {}
        self.trainer = make_trainer(model)
        if params is not None:
            self._check_params(params)
        self.state = self.trainer.init(*self._start_of(model, params))
        self.losses: list[Any] = []

    def _check_params(self, params: Mapping[str, Any]) -> None:
        """Check names, shapes and values of parameters to start from."""
        start = self._start_of(self.model, params=None)
        like = self.trainer.init(*start, abstract=True)
        known = jax.eval_shape(self.trainer.params, like)
        unknown = [name for name in params if name not in known]
        if unknown:
            raise ValueError(
                f"params must have names of parameters, which are {sorted(known)}, got "
                f"{', '.join(map(repr, unknown))}."
            )
        for name, value in params.items():
            leaves, expected = jax.tree.leaves(value), jax.tree.leaves(known[name])
            shapes, given = ([np.shape(x) for x in t] for t in (expected, leaves))
            if shapes != given:
                raise ValueError(
                    f"params[{name!r}] must have arrays of shapes {shapes}, got "
                    f"{given}."
                )
            if not all(np.all(np.isfinite(leaf)) for leaf in leaves):
                raise ValueError(f"params[{name!r}] must be finite, got {value!r}.")

    def _start_of(self, model: Any, params: dict[str, Any] | None) -> tuple:
        """Return what the trainer of a model is started with."""
        fixed = _prior_values(model, model.prior) if self._has_refit else {}
        if params is not None and isinstance(model, KAEM):
            # They belong to the grids with which training began.
            like = {**params, **model.params}
            params = {
                name: jax.tree.unflatten(
                    jax.tree.structure(like[name]), jax.tree.leaves(value)
                )
                for name, value in params.items()
            }
        return self._rng_key, self.data, self.batches[0], fixed, params

    def advance(self) -> None:
        """Take one step."""
        index = jnp.asarray(self.batches[len(self.losses)])
        self.state, loss = self.trainer.step(self.state, self.data, index)
        # Not fetched yet, so that the device does not wait.
        self.losses.append(loss)

    # --- changes of the model

    def move_grids(self, update: GridUpdate, rng_key: jax.Array) -> None:
        """Move the grids of the model to its draws of the posteriors."""
        fitted = self.model.with_params(self.trainer.params(self.state))
        moved = update.move(fitted, self._draws(rng_key))
        self._change_model(moved)
        before: dict[str, Any] = {
            name: jax.tree.structure(value) for name, value in fitted.params.items()
        }
        values = {
            name: value
            for name, value in moved.params.items()
            if jax.tree.structure(value) != before[name]
        }
        self.state = self.trainer.with_values(self.state, values)

    def _change_model(self, model: Any) -> None:
        """Continue with the model on other grids and the numbers of the state."""
        self.model, self.trainer = model, self._make_trainer(model)
        like = self.trainer.init(*self._start_of(model, self._params), abstract=True)
        leaves = jax.tree.leaves(self.state)
        self.state = jax.tree.unflatten(jax.tree.structure(like), leaves)

    def refit_prior(self, refit: PriorRefit, rng_key: jax.Array) -> None:
        """Fit the prior to the draws of the posteriors."""
        is_first = len(self.losses) == refit.start
        prior = self.model.prior
        if not is_first:
            prior = self.model.with_params(self.trainer.params(self.state)).prior
        key_draws, key_fit = jax.random.split(rng_key)
        draws = np.asarray(self._draws(key_draws)["z"])
        prior = refit.fit(prior, draws, key_fit, warm_start=not is_first)
        if refinement_of(prior) != refinement_of(self.model.prior):
            # Of the same arrays, on finer panels.
            self._change_model(replace(self.model, prior=prior))
        self.state = self.state._replace(fixed=_prior_values(self.model, prior))

    def _draws(self, rng_key: jax.Array) -> dict[str, jax.Array]:
        """Draws of every unit's posterior, ``(num_draws, ...)`` by latent site.

        They are the last states of the chains, or one draw of the encoder.
        """
        if "position" not in self.memory:
            return self._encoded_draws(rng_key)
        position = self.memory["position"]
        if "temperatures" in self.memory:
            # The chain of the posterior.
            position = position[:, -1:]
        params = self.trainer.params(self.state)
        draws = self.trainer.latents(params, position, self.data)
        return {
            name: jnp.moveaxis(value, -1, 0).reshape(-1, *value.shape[1:-1])
            for name, value in draws.items()
        }

    def _encoded_draws(self, rng_key: jax.Array) -> dict[str, jax.Array]:
        """One draw of the encoder of every datum, batch by batch."""
        params, size = self.trainer.params(self.state), self.batches.batch_size
        starts = range(0, len(self.data), size)
        parts = [
            self.trainer.encoded(key, params, self.data[start : start + size])
            for key, start in zip(
                jax.random.split(rng_key, len(starts)), starts, strict=True
            )
        ]
        return jax.tree.map(lambda *draws: jnp.concatenate(draws), *parts)

    # --- progress and results

    def fetch(self) -> np.ndarray:
        """Loss of every step."""
        self.losses = [float(loss) for loss in jax.device_get(self.losses)]
        return np.array(self.losses)

    @property
    def memory(self) -> dict[str, jax.Array]:
        """What the objective keeps."""
        kept = self.state.svi.mutable_state or {}
        return kept.get(MaximumLikelihood.memory_name, {})

    def describe(self) -> str:
        """Text next to the progress bar."""
        losses = self.fetch()[-self.batches.steps_per_epoch :]
        finite = losses[np.isfinite(losses)]
        words = [f"loss {finite.mean():.5g}" if finite.size else "loss not finite"]
        for name in ("ess", "acceptance"):
            if name in self.memory:
                words.append(f"{name} {float(self.memory[name]):.2f}")
        skipped = int(self.state.num_skipped)
        return ", ".join([*words, *([f"{skipped} skipped"] if skipped else [])])

    def is_stuck(self, patience: int) -> bool:
        """Whether the last epochs have no smaller mean loss than those before."""
        size = self.batches.steps_per_epoch
        losses = self.fetch()
        epochs = losses[: len(losses) // size * size].reshape(-1, size)
        if len(epochs) <= patience:
            return False
        finite = np.isfinite(epochs)
        counts = finite.sum(1)
        sums = np.where(finite, epochs, 0.0).sum(1)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
        return bool(means[-patience:].min() >= means[:-patience].min())

    def progress(self) -> FitProgress:
        """For a callback."""
        return FitProgress(
            len(self.losses),
            self.fetch(),
            int(self.state.num_skipped),
            self.trainer.params(self.state),
            self.memory,
        )

    def result(self, stopped: str) -> FitResult:
        """Fitted values and losses."""
        losses, skipped = self.fetch(), int(self.state.num_skipped)
        params = self.trainer.params(self.state)
        if skipped:
            _warn(
                f"{skipped} of {len(losses)} steps were skipped, because their loss "
                "or result was not finite. Try a smaller learning rate, or "
                "clip gradients (optax.clip_by_global_norm)."
            )
        model = self.model
        if isinstance(model, KAEM):
            model = model.with_params(params)
        encoder = self.trainer.encoder(params)
        return FitResult(model, params, losses, skipped, self.memory, stopped, encoder)

    # --- checkpoints

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint."""
        metadata: dict[str, Any] = {"losses": self.fetch().tolist()}
        metadata["fingerprint"] = self._fingerprint
        if isinstance(self.model, KAEM):
            metadata["grids"] = grids_of(self.model)
            metadata["refinement"] = refinement_of(self.model.prior)
        checkpoint.save(len(self.losses), self.state, metadata)

    def resume(
        self, checkpoint: Checkpoint, num_steps: int, fingerprint: dict[str, str]
    ) -> None:
        """Continue from the newest checkpoint, if there is one."""
        self._fingerprint = fingerprint
        saved = read_newest(checkpoint)
        if saved is None:
            return
        metadata = saved.header["metadata"]
        step = len(metadata["losses"])
        changes = _changes(checkpoint, metadata, num_steps, fingerprint)
        if isinstance(self.model, KAEM) and metadata.get("grids") is not None:
            model = with_grids(self.model, metadata["grids"])
            refinement = metadata.get("refinement")
            if refinement != refinement_of(model.prior):
                finer = with_refinement(model.prior, refinement)
                model = replace(model, prior=finer)
            if model is not self.model:
                self._change_model(model)
        self.state = saved.restore(self.state)
        self.losses = list(metadata["losses"])
        if changes:
            lines = "\n".join(changes)
            _warn(
                f"training continues from step {step} of one that was not the same:\n"
                f"{lines}\nTo start again, give another folder to Checkpoint."
            )


def _changes(
    checkpoint: Checkpoint,
    metadata: dict[str, Any],
    num_steps: int,
    fingerprint: dict[str, str],
) -> list[str]:
    """One line for each part of a training that is not as in a checkpoint of it."""
    step, where = len(metadata["losses"]), checkpoint.directory
    if step > num_steps:
        raise ValueError(
            f"num_steps must be at least {step}, the steps of the checkpoint in "
            f"{where}, got {num_steps}; to start again, give another folder to "
            "Checkpoint."
        )
    # Earlier versions wrote none.
    changes = differences(metadata.get("fingerprint") or fingerprint, fingerprint)
    lines = "\n".join(changes.values())
    if "data" in changes:
        raise ValueError(
            f"the checkpoint in {where} is of other data:\n{lines}\nTrain on them in "
            "another folder, with params=result.params to start from what was learned."
        )
    if changes and step == num_steps:
        raise ValueError(
            f"the checkpoint in {where} is of a training that was not the same, and "
            f"has all {num_steps} steps:\n{lines}\nTo start again, give another folder "
            "to Checkpoint; to continue with what is given now, ask for more steps."
        )
    return list(changes.values())


def _prior_values(model: KAEM, prior: Any) -> dict[str, Any]:
    """Values of the parameters of a prior, by name."""
    with handlers.block(), handlers.trace() as trace:
        learn_prior(
            "prior",
            prior,
            learn_proportions=model.learn_proportions,
            learn_reference=model.learn_reference,
        )
    values = {n: s["value"] for n, s in trace.items() if s["type"] == "param"}
    # Weakly typed values would compile the first step twice.
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), values
    )


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)
