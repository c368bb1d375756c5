"""Training under way: its state, and what is done to it."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.models.learning import learn_prior
from numpyro_kaem.objectives.base import MaximumLikelihood
from numpyro_kaem.training.checkpoint import Checkpoint, differences
from numpyro_kaem.training.refit import (
    GridUpdate,
    PriorRefit,
    grids_of,
    refinement_of,
    with_grids,
    with_refinement,
)
from numpyro_kaem.training.trainer import Batches, Trainer, TrainingState

__all__ = ["FitProgress", "FitResult", "Run"]


@dataclass(frozen=True, repr=False)
class FitProgress:
    """What a callback of :func:`fit` is given.

    Examples
    --------
    A callback that keeps the mean loss of each epoch, and stops after three:

    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> def model(x, subsample_size=None):
    ...     loc = numpyro.param("loc", 0.0)
    ...     with numpyro.plate("data", len(x), subsample_size=subsample_size) as index:
    ...         z = numpyro.sample("z", dist.Normal(loc, 1.0))
    ...         numpyro.sample("x", dist.Normal(z, 0.5), obs=x[index])
    >>> steps = []
    >>> def callback(progress):
    ...     steps.append(progress.step)
    ...     return len(steps) == 3
    >>> result = kaem.fit(
    ...     model,
    ...     jnp.linspace(0.0, 3.0, 40),
    ...     kaem.objectives.ImportanceMLE(num_particles=20),
    ...     numpyro.optim.Adam(0.1),
    ...     100,
    ...     batch_size=20,
    ...     callback=callback,
    ...     progress_bar=False,
    ... )
    >>> steps, result.stopped
    ([2, 4, 6], 'callback')
    """

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
    """A trained model; made by :func:`fit`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> def model(x):
    ...     loc = numpyro.param("loc", 0.0)
    ...     with numpyro.plate("data", len(x)):
    ...         z = numpyro.sample("z", dist.Normal(loc, 1.0))
    ...         numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
    >>> x = jnp.linspace(0.0, 3.0, 40)
    >>> objective = kaem.objectives.ImportanceMLE(num_particles=20)
    >>> optimizer = numpyro.optim.Adam(0.1)
    >>> kaem.fit(model, x, objective, optimizer, 30, progress_bar=False)
    FitResult(30 steps, 0 skipped, last loss ..., stopped by num_steps)
    """

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


class Run:
    """Training under way.

    Parameters
    ----------
    model
        The model that is trained.
    make_trainer
        From a model to its compiled steps.
    batches
        Which data are in each step.
    data
        All data.
    rng_key
        Random key of the start.
    params
        Values to start from, by name, or None.
    fixes_prior
        Whether the prior is not trained by gradient.
    """

    def __init__(
        self,
        model: Any,
        make_trainer: Callable[[Any], Trainer],
        batches: Batches,
        data: jax.Array,
        rng_key: jax.Array,
        params: dict[str, Any] | None,
        *,
        fixes_prior: bool,
    ) -> None:
        self.model, self.batches, self.data = model, batches, data
        self._make_trainer, self._params = make_trainer, params
        self._rng_key, self._fixes_prior = rng_key, fixes_prior
        self._fingerprint: dict[str, str] = {}
        self.trainer = make_trainer(model)
        if params is not None:
            self._check_params(params)
        self.state = self.trainer.init(*self._start_of(model, params))
        self.losses: list[Any] = []

    def _check_params(self, params: Mapping[str, Any]) -> None:
        """Check values to start from.

        Raises
        ------
        ValueError
            If a name is no parameter's, or a value has other shapes or is not finite.
        """
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
        fixed = _prior_values(model, model.prior) if self._fixes_prior else {}
        if params is not None and hasattr(model, "params"):
            # Given for the grids that training began with.
            params = {**params, **_restructured(model.params, params)}
        return self._rng_key, self.data, self.batches[0], fixed, params

    def advance(self) -> None:
        """Take one step."""
        index = jnp.asarray(self.batches[len(self.losses)])
        self.state, loss = self.trainer.step(self.state, self.data, index)
        # Not fetched yet: the device goes on by itself.
        self.losses.append(loss)

    # --- other grids, and another prior ----------------------------------------------

    def move_grids(self, update: GridUpdate) -> None:
        """Move the grids of the model to its draws of the posteriors."""
        fitted = self.model.with_params(self.trainer.params(self.state))
        moved = update.move(fitted, self._draws())
        self._change_grids(moved)
        values = {
            name: value
            for name, value in moved.params.items()
            if jax.tree.structure(value) != jax.tree.structure(fitted.params[name])
        }
        self.state = self.trainer.with_values(self.state, values)

    def _change_grids(self, model: Any) -> None:
        """Go on with the model on other grids, all numbers of the state as they are."""
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
        draws = np.asarray(self._draws()["z"])
        prior = refit.fit(prior, draws, rng_key, warm_start=not is_first)
        if refinement_of(prior) != refinement_of(self.model.prior):
            # Of the same arrays, on finer panels.
            self._change_grids(_with_prior(self.model, prior))
        self.state = self.state._replace(fixed=_prior_values(self.model, prior))

    def _draws(self) -> dict[str, jax.Array]:
        """Last state of every unit's chains, ``(num_draws, ...)`` by latent site."""
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

    # --- what is known of it ---------------------------------------------------------

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

    # --- checkpoints -----------------------------------------------------------------

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
        """Go on from the newest checkpoint, if there is one.

        Parameters
        ----------
        checkpoint
            Where it is.
        num_steps
            Number of steps, those of the checkpoint included.
        fingerprint
            What training is determined by now, for this and later checkpoints.
        """
        self._fingerprint = fingerprint
        changed: list[str] = []

        def like(metadata: dict[str, Any]) -> TrainingState:
            changed.extend(_changes(checkpoint, metadata, num_steps, fingerprint))
            grids = metadata.get("grids")
            if grids is not None and isinstance(self.model, KAEM):
                moved = with_grids(self.model, grids)
                refinement = metadata.get("refinement")
                if refinement != refinement_of(moved.prior):
                    finer = with_refinement(moved.prior, refinement)
                    moved = _with_prior(moved, finer)
                if moved is not self.model:
                    self._change_grids(moved)
            return self.state

        found = checkpoint.latest(like)
        if found is not None:
            step, self.state, metadata = found
            self.losses = list(metadata["losses"])
            if changed:
                lines = "\n".join(changed)
                _warn(
                    f"training goes on from step {step} of one that was not the same:\n"
                    f"{lines}\nTo train anew, give another folder to Checkpoint."
                )

    def result(self, stopped: str) -> FitResult:
        """Fitted values and losses."""
        losses, skipped = self.fetch(), int(self.state.num_skipped)
        params = self.trainer.params(self.state)
        if skipped:
            _warn(
                f"{skipped} of {len(losses)} steps were not taken, because their loss "
                "or what they led to was not finite. Try a smaller learning rate, or "
                "clip gradients (optax.clip_by_global_norm)."
            )
        model = self.model
        if hasattr(model, "with_params"):
            model = model.with_params(params)
        return FitResult(model, params, losses, skipped, self.memory, stopped)


def _changes(
    checkpoint: Checkpoint,
    metadata: dict[str, Any],
    num_steps: int,
    fingerprint: dict[str, str],
) -> list[str]:
    """One line for each part of a training that is not as in a checkpoint of it.

    Raises
    ------
    ValueError
        If its answer would be that of another training, or its chains of other data.
    """
    step, where = len(metadata["losses"]), checkpoint.directory
    if step > num_steps:
        raise ValueError(
            f"num_steps must be at least {step}, the steps of the checkpoint in "
            f"{where}, got {num_steps}; to train anew, give another folder to "
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
            f"has all {num_steps} steps:\n{lines}\nTo train anew, give another folder "
            "to Checkpoint; to go on as now, ask for more steps."
        )
    return list(changes.values())


def _with_prior(model: KAEM, prior: Any) -> KAEM:
    return eqx.tree_at(lambda model: model.prior, model, prior)


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


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


def _restructured(like: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values in the structures of others with the same arrays."""
    return {
        name: jax.tree.unflatten(
            jax.tree.structure(like[name]), jax.tree.leaves(values[name])
        )
        for name in values
        if name in like
    }
