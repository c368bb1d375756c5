"""One step of training, compiled; which data are in it; and cyclical schedules."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO

from numpyro_kaem._checks import as_count, as_number
from numpyro_kaem.infer.units import UnitModel
from numpyro_kaem.objectives.base import MaximumLikelihood

__all__ = ["Batches", "Trainer", "TrainingState", "cyclical_schedule"]

# What objectives keep that changes once in a step, not in every chunk: the place in a
# schedule, and a ladder.
_OF_STEP = ("step", "temperatures")


def cyclical_schedule(
    period: int,
    low: float = 0.0,
    high: float = 1.0,
    power: float = 1.0,
    *,
    ramp: float = 0.5,
) -> Callable[[ArrayLike], jax.Array]:
    r"""Schedule that rises from one value to another in every cycle.

    With the position :math:`\tau = (t \bmod T) / T` of step :math:`t` in its cycle,

    .. math:: v(t) = l + (h - l) \min(\tau / R, 1)^p.

    As the weight of the prior's divergence in a variational loss it keeps latents from
    being ignored: they come into use again at each return to the lower value.

    Parameters
    ----------
    period
        Number :math:`T` of steps of a cycle.
    low, high
        Values :math:`l` at the start of a cycle and :math:`h` after the rise; either
        may be the larger.
    power
        Exponent :math:`p > 0`; 1 is a straight line.
    ramp
        Share :math:`R` of a cycle in which the value changes, in (0, 1].

    Returns
    -------
    Callable
        Function of the number of the step, an integer or an array of them, traced or
        not; it returns an array of the same shape. Steps count from 0, as in optax.

    Raises
    ------
    TypeError
        If ``period`` is not an integer, or another argument not a number.
    ValueError
        If ``period`` is not positive, ``low`` or ``high`` not finite, ``power`` not
        positive and finite, or ``ramp`` not in (0, 1].

    References
    ----------
    Fu, Li, Liu, Gao, Celikyilmaz and Carin (2019), "Cyclical annealing schedule: a
    simple approach to mitigating KL vanishing", *NAACL-HLT*.

    Examples
    --------
    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> schedule = kaem.cyclical_schedule(8, low=0.0, high=2.0)
    >>> print(schedule(np.arange(10)))
    [0.  0.5 1.  1.5 2.  2.  2.  2.  0.  0.5]
    """
    period = as_count("period", period)
    low = as_number("low", low, "finite", lambda x: True)
    high = as_number("high", high, "finite", lambda x: True)
    power = as_number("power", power, "a finite number > 0", lambda x: x > 0)
    ramp = as_number("ramp", ramp, "in (0, 1]", lambda x: 0 < x <= 1)

    def schedule(step: ArrayLike) -> jax.Array:
        # The remainder of integers, because float32 cannot count beyond 2**24.
        position = jnp.mod(jnp.asarray(step), period) / (period * ramp)
        rise = jnp.minimum(position, 1.0) ** power
        return low * (1 - rise) + high * rise

    return schedule


class Batches:
    """Indices of the units in the batch of each step, shuffled in every epoch.

    The units left over at the end of an epoch are left out, others in each epoch.
    """

    def __init__(
        self, rng_key: jax.Array, num_data: int, batch_size: int | None
    ) -> None:
        # A key of the old kind is its own data.
        is_new = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
        words = jax.random.key_data(rng_key) if is_new else rng_key
        self._seed = np.asarray(words).tolist()
        self.num_data, self.batch_size = num_data, batch_size or num_data
        self._epoch, self._order = -1, np.arange(num_data)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return self.num_data // self.batch_size

    def __getitem__(self, step: int) -> np.ndarray:
        """Return the indices of the batch of a step, shape ``(batch_size,)``."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self.batch_size < self.num_data and epoch != self._epoch:
            # By the number of the epoch alone, so that a resumed run has the same.
            rng = np.random.default_rng([*self._seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.num_data)
        start = place * self.batch_size
        return self._order[start : start + self.batch_size]


class TrainingState(NamedTuple):
    """All that a step of training changes.

    ``svi`` is NumPyro's ``SVIState`` of optimiser, mutable state and random key,
    ``fixed`` holds parameters by name that are not trained by gradient, and
    ``num_skipped`` counts steps whose loss or result was not finite.
    """

    svi: Any
    fixed: dict[str, Any]
    num_skipped: jax.Array


class Trainer:
    """Compiled steps of a model, an objective and an optimiser.

    Model and guide are called as ``model(data)`` and, with a ``subsample_size``, as
    ``model(data, subsample_size=...)``. A guide of None is the objective's own, or an
    empty one. The ``chunk_size`` divides that of the batch.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable | None,
        objective: ELBO,
        optimizer: Any,
        unit_plate: str,
        subsample_size: int | None,
        regularizer: Callable | None,
        chunk_size: int | None = None,
    ) -> None:
        self._chunk_size = chunk_size
        subsample_size = subsample_size if chunk_size is None else chunk_size
        options = {}
        if subsample_size is not None:
            options = {"subsample_size": subsample_size}

        def of_batch(function: Callable) -> Callable:
            def run(data: Any, index: jax.Array, fixed: dict[str, Any]) -> Any:
                given = {**fixed, unit_plate: index} if options else fixed
                with handlers.block(hide_fn=lambda site: site.get("name") in fixed):
                    with handlers.substitute(data=given):
                        return function(data, **options)

            return run

        self.model = of_batch(model)
        if guide is not None:
            guide = of_batch(guide)
        elif isinstance(objective, MaximumLikelihood):
            guide = of_batch(objective.guide(model))
        else:

            def guide(*args: Any) -> None:
                pass

        loss = objective
        if chunk_size is not None:
            loss = _ByChunks(loss, chunk_size)
        if regularizer is not None:
            loss = _Regularized(loss, regularizer)
        self._svi = SVI(self.model, guide, optimizer, loss=loss)
        self._whole, self._unit_plate = model, unit_plate
        self._objective = objective
        self.step = jax.jit(self._step)
        self.latents = jax.jit(self._latents)
        self.encoded = jax.jit(self._encoded)

    def init(
        self,
        rng_key: jax.Array,
        data: Any,
        index: np.ndarray,
        fixed: dict[str, Any],
        params: dict[str, Any] | None,
        *,
        abstract: bool = False,
    ) -> TrainingState:
        """State before the first step, or only its shapes."""

        def start(rng_key: jax.Array, data: Any, index: jax.Array, params: Any) -> Any:
            return self._svi.init(rng_key, data, index, fixed, init_params=params)

        # Compiled as a whole: one operation at a time, it is several times slower.
        start = partial(jax.eval_shape, start) if abstract else jax.jit(start)
        svi = start(rng_key, data, jnp.asarray(index[: self._chunk_size]), params)
        return TrainingState(svi, fixed, jnp.array(0))

    def _step(
        self, state: TrainingState, data: Any, index: jax.Array
    ) -> tuple[TrainingState, jax.Array]:
        """State after a step on the units of an index, and its loss."""
        new, loss = self._svi.update(state.svi, data, index, state.fixed)
        changed = (new.optim_state, new.mutable_state)
        finite = jnp.isfinite(loss) & _all_finite(changed)
        # With the new key: the same numbers would fail again.
        optim_state, mutable_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            changed,
            (state.svi.optim_state, state.svi.mutable_state),
        )
        svi = new._replace(optim_state=optim_state, mutable_state=mutable_state)
        num_skipped = state.num_skipped + ~finite
        return TrainingState(svi, state.fixed, num_skipped), loss

    def _latents(
        self, params: dict[str, Any], position: jax.Array, data: Any
    ) -> dict[str, jax.Array]:
        """Values of the latent sites of all chains, which become the last axis."""
        whole = UnitModel(
            jax.random.key(0), params, self._whole, (data,), {}, self._unit_plate
        )
        return jax.vmap(lambda p: whole.constrain(p)[0], 1, -1)(position)

    def encoder(self, params: dict[str, Any]) -> Any:
        """Return the encoder with values of its parameters, or None."""
        if "encoder$params" not in params or not hasattr(self._objective, "draw"):
            return None
        return self._objective.learned_encoder(params)

    def _encoded(
        self, rng_key: jax.Array, params: dict[str, Any], data: Any
    ) -> dict[str, jax.Array]:
        """Values of the latent sites of some data, drawn by the encoder."""
        units = UnitModel(rng_key, params, self._whole, (data,), {}, self._unit_plate)
        return units.constrain(self._objective.draw(rng_key, units, params))[0]

    def params(self, state: TrainingState) -> dict[str, Any]:
        """Values of all parameters by name."""
        return {**self._svi.get_params(state.svi), **state.fixed}

    def with_values(
        self, state: TrainingState, values: dict[str, Any]
    ) -> TrainingState:
        """State with other values of some parameters, by name; the rest stays."""
        fixed = {name: values.get(name, value) for name, value in state.fixed.items()}
        trained = {name: v for name, v in values.items() if name not in fixed}
        # Which leaves of the optimiser's state are the values of parameters.
        leaves, structure = jax.tree.flatten(state.svi.optim_state)
        numbered = jax.tree.unflatten(structure, range(len(leaves)))
        places = self._svi.optim.get_params(numbered)
        for name, value in self._svi.constrain_fn(trained, invert=True).items():
            of_name = jax.tree.leaves(places[name])
            for place, leaf in zip(of_name, jax.tree.leaves(value), strict=True):
                leaves[place] = leaf
        svi = state.svi._replace(optim_state=jax.tree.unflatten(structure, leaves))
        return state._replace(svi=svi, fixed=fixed)


def _all_finite(tree: Any) -> jax.Array:
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


class _ByChunks(ELBO):
    """Objective of a batch whose gradient is accumulated over chunks of it.

    The gradient of a chunk is taken before the next is run, so that memory is that of
    one chunk. The loss of the objective counts a subsample for all units.
    """

    def __init__(self, objective: ELBO, chunk_size: int) -> None:
        super().__init__()
        self.objective, self.chunk_size = objective, chunk_size

    def loss(self, *args: Any, **kwargs: Any) -> jax.Array:
        return self.loss_with_mutable_state(*args, **kwargs)["loss"]

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        data: Any,
        index: jax.Array,
        fixed: dict[str, Any],
    ) -> dict[str, Any]:
        """Mean loss of the chunks, and what the objective keeps after the last."""
        name = MaximumLikelihood.memory_name
        params = {key: value for key, value in param_map.items() if key != name}
        memory = param_map.get(name)

        def loss_of(
            params: dict[str, Any], memory: Any, key: jax.Array, index: jax.Array
        ) -> tuple[jax.Array, Any]:
            arguments = (model, guide, data, index, fixed)
            if memory is None:
                return self.objective.loss(key, params, *arguments), None
            done = self.objective.loss_with_mutable_state(
                key, {**params, name: memory}, *arguments
            )
            return done["loss"], done["mutable_state"][name]

        of_step = {k: v for k, v in (memory or {}).items() if k in _OF_STEP}

        def add(carry: tuple, this: tuple) -> tuple[tuple, None]:
            loss, gradient, kept, _ = carry
            (value, new), slope = jax.value_and_grad(loss_of, has_aux=True)(
                fixed_params, kept, *this
            )
            gradient = jax.tree.map(jnp.add, gradient, slope)
            kept = new if new is None else {**new, **of_step}
            return (loss + value, gradient, kept, new), None

        fixed_params = jax.lax.stop_gradient(params)
        chunks = index.reshape(-1, self.chunk_size)
        keys = jax.random.split(rng_key, len(chunks))
        zeros = jax.tree.map(jnp.zeros_like, fixed_params)
        start = (jnp.zeros(()), zeros, memory, memory)
        (loss, gradient, _, memory), _ = jax.lax.scan(add, start, (keys, chunks))
        # The value of the loss, with a derivative that is known already.
        slope = sum(
            jnp.vdot(known, value - jax.lax.stop_gradient(value))
            for known, value in zip(
                jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True
            )
        )
        kept = None if memory is None else {name: memory}
        return {"loss": (loss + slope) / len(chunks), "mutable_state": kept}


class _Regularized(ELBO):
    """Objective with a function of the parameters added to its loss."""

    def __init__(self, objective: ELBO, regularizer: Callable) -> None:
        super().__init__()
        self.objective, self.regularizer = objective, regularizer

    def loss(self, rng_key: jax.Array, param_map: dict, *args: Any, **kw: Any) -> Any:
        loss = self.objective.loss(rng_key, param_map, *args, **kw)
        return loss + self.regularizer(param_map)

    def loss_with_mutable_state(
        self, rng_key: jax.Array, param_map: dict, *args: Any, **kw: Any
    ) -> Any:
        done = self.objective.loss_with_mutable_state(rng_key, param_map, *args, **kw)
        return {**done, "loss": done["loss"] + self.regularizer(param_map)}
