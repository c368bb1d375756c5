"""Training of a model with latent values."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.infer.elbo import ELBO
from numpyro.util import is_prng_key
from tqdm import tqdm

from numpyro_kaem.bases._checks import as_count
from numpyro_kaem.learning import learn_prior
from numpyro_kaem.objectives.base import MaximumLikelihood
from numpyro_kaem.objectives.checkpoints import Checkpoint
from numpyro_kaem.objectives.fit_checks import check_batch_size, check_parts
from numpyro_kaem.objectives.refit import PriorRefit
from numpyro_kaem.objectives.training import Batches, Trainer, TrainingState

__all__ = ["FitProgress", "FitResult", "fit"]


@dataclass(frozen=True, repr=False)
class FitProgress:
    """What a callback of :func:`fit` is given."""

    step: int
    """Number of steps done."""
    losses: np.ndarray
    """Loss of every step so far, shape ``(step,)``."""
    num_skipped: int
    """Number of steps that were not taken because something was not finite."""
    params: dict[str, Any]
    """Values of the parameters by name."""
    memory: dict[str, jax.Array]
    """What the objective keeps, such as ``"ess"`` or ``"acceptance"``."""


@dataclass(frozen=True, repr=False)
class FitResult:
    """A trained model; made by :func:`fit`."""

    model: Any
    """The model, with fitted values if it is a :class:`KAEM`."""
    params: dict[str, Any]
    """Values of the parameters by name."""
    losses: np.ndarray
    """Loss of every step, shape ``(num_steps,)``; NaN or infinite where skipped."""
    num_skipped: int
    """Number of steps that were not taken because something was not finite."""
    memory: dict[str, jax.Array]
    """What the objective keeps, such as the chains of each unit."""
    stopped: str
    """Why training ended: ``"num_steps"``, ``"patience"`` or ``"callback"``."""

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
    guide: Callable | None = None,
    params: dict[str, Any] | None = None,
    penalty: Callable[[dict[str, Any]], jax.Array] | None = None,
    refit: PriorRefit | None = None,
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
        :class:`~numpyro_kaem.infer.ImportanceMLE`,
        :class:`~numpyro_kaem.infer.LangevinMLE`,
        :class:`~numpyro_kaem.infer.ThermodynamicMLE`,
        :class:`~numpyro_kaem.infer.AmortisedELBO`, or an ``ELBO`` of NumPyro with a
        ``guide``.
    optimizer
        Of optax, with any schedule of its learning rate, or of NumPyro.
    num_steps
        Number of steps, those of a checkpoint from which training goes on included.
    rng_key
        Random key; None is ``jax.random.key(0)``.
    batch_size
        Number of data of a step; None is all. Every epoch has a new order.
    guide
        Guide for an ``ELBO`` of NumPyro, called as the model is.
    params
        Values to start from, by name.
    penalty
        Function of the parameters by name, added to the loss: such as
        ``lambda params: kan_penalty(params, l1=1.0)``.
    refit
        When to fit the prior to the chains of the objective, in place of training it by
        gradient. The model is then a :class:`KAEM`, and the objective keeps chains.
    patience
        Number of epochs without a smaller mean loss after which to stop.
    callback
        Called with a :class:`FitProgress` after every epoch; training stops if it
        returns True.
    checkpoint
        Folder and interval of checkpoints. If it holds one, training goes on from it,
        with the draws of an unbroken run.
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
        guide is missing or not wanted, or a checkpoint is of another model.

    Warns
    -----
    UserWarning
        If steps were skipped; if a checkpoint is damaged, and one before it is used.

    Notes
    -----
    - A step whose loss or result is not finite is not taken, and counted.
    - A job that is killed loses at most ``checkpoint.every`` steps.

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
    >>> objective = kaem.infer.ImportanceMLE(num_particles=50)
    >>> optimizer = numpyro.optim.Adam(0.02)
    >>> result = kaem.fit(
    ...     model, x, objective, optimizer, 400, batch_size=50, progress_bar=False
    ... )
    >>> bool(abs(result.params["loc"] - x.mean()) < 0.2)
    True
    """
    num_steps = as_count("num_steps", num_steps)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    if not is_prng_key(rng_key):
        raise TypeError(
            "rng_key must be one random key such as jax.random.key(0), got "
            f"{type(rng_key).__name__}."
        )
    if patience is not None:
        patience = as_count("patience", patience)
    check_parts(model, objective, guide, refit)
    if hasattr(model, "check_data"):
        data = model.check_data(data)
    data = jnp.asarray(data)
    batch_size = check_batch_size(data, batch_size)

    key_init, key_order, key_refit = jax.random.split(rng_key, 3)
    batches = Batches(key_order, len(data), batch_size)
    trainer = Trainer(
        model, guide, objective, optimizer, unit_plate, batch_size, penalty
    )
    fixed = {} if refit is None else _prior_values(model, model.prior)
    state = trainer.init(key_init, data, batches[0], fixed, params)
    run = _Run(trainer, batches, state)
    if checkpoint is not None:
        run.resume(checkpoint)

    stopped = "num_steps"
    with tqdm(
        total=num_steps, initial=len(run.losses), disable=not progress_bar
    ) as bar:
        while (step := len(run.losses)) < num_steps:
            if refit is not None and refit.is_due(step):
                key = jax.random.fold_in(key_refit, step)
                prior = _refitted(model, data, run, objective, refit, key)
                run.state = run.state._replace(fixed=_prior_values(model, prior))
                if jax.tree.structure(prior) != jax.tree.structure(model.prior):
                    # Of the same arrays, on finer panels.
                    model = eqx.tree_at(lambda model: model.prior, model, prior)
                    trainer.replace_model(model)
            run.advance(data)
            bar.update()
            step += 1
            if checkpoint is not None and (
                step % checkpoint.every == 0 or step == num_steps
            ):
                run.save(checkpoint)
            if step % batches.steps_per_epoch != 0 and step != num_steps:
                continue
            if progress_bar:
                bar.set_postfix_str(run.describe())
            if callback is not None and callback(run.progress()):
                stopped = "callback"
                break
            if patience is not None and run.is_stuck(patience):
                stopped = "patience"
                break
    return run.result(model, stopped)


class _Run:
    """Training under way."""

    def __init__(
        self, trainer: Trainer, batches: Batches, state: TrainingState
    ) -> None:
        self.trainer, self.batches, self.state = trainer, batches, state
        self.losses: list[Any] = []

    def advance(self, data: jax.Array) -> None:
        """Take one step."""
        index = jnp.asarray(self.batches[len(self.losses)])
        self.state, loss = self.trainer.step(self.state, data, index)
        # Not fetched yet: the device goes on by itself.
        self.losses.append(loss)

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
        """Text beside the progress bar."""
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
        finite = np.where(np.isfinite(epochs), epochs, np.nan)
        if len(epochs) <= patience:
            return False
        with np.errstate(all="ignore"):
            counts = np.isfinite(finite).sum(1)
            means = np.where(counts > 0, np.nansum(finite, 1) / counts, np.inf)
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

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint."""
        losses = self.fetch().tolist()
        checkpoint.save(len(losses), self.state, {"losses": losses})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = checkpoint.latest(self.state)
        if found is not None:
            _, self.state, metadata = found
            self.losses = list(metadata["losses"])

    def result(self, model: Any, stopped: str) -> FitResult:
        """Fitted values and losses."""
        losses, skipped = self.fetch(), int(self.state.num_skipped)
        params = self.trainer.params(self.state)
        if skipped:
            _warn(
                f"{skipped} of {len(losses)} steps were not taken, because their loss "
                "or what they led to was not finite. Try a smaller learning rate, or "
                "clip gradients (optax.clip_by_global_norm)."
            )
        if hasattr(model, "with_params"):
            model = model.with_params(params)
        return FitResult(model, params, losses, skipped, self.memory, stopped)


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


# --- refits --------------------------------------------------------------------------


def _prior_values(model: Any, prior: Any) -> dict[str, Any]:
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


def _refitted(
    model: Any,
    data: jax.Array,
    run: _Run,
    objective: Any,
    refit: PriorRefit,
    rng_key: jax.Array,
) -> Any:
    """Prior that is fitted to the last state of every unit's chains."""
    position = run.memory["position"]
    if hasattr(objective, "num_temperatures"):
        # The chain of the posterior.
        position = position[:, -1:]
    params = run.trainer.params(run.state)
    draws = np.asarray(run.trainer.latents(params, position, data)["z"])
    draws = np.moveaxis(draws, -1, 0).reshape(-1, *draws.shape[1:-1])
    is_first = len(run.losses) == refit.start
    prior = model.prior if is_first else model.with_params(params).prior
    return refit.fit(prior, draws, rng_key, warm_start=not is_first)
