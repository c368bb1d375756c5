"""One iteration of an annealed population: local moves, and swaps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_kaem.infer.kernel import LangevinState, Preconditioner
from numpyro_kaem.infer.ladder import Travels, even_odd_permutation, swap_probabilities

__all__ = ["Means", "Rungs", "evaluate", "local_moves", "swap"]

Split = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Log prior and log likelihood of a flat position ``(dim,)``."""


class Rungs(NamedTuple):
    """Replicas in the order of their rungs, with all that a swap carries along."""

    position: jax.Array
    """Unconstrained values, shape ``(num_temperatures, dim)``."""
    log_prior: jax.Array
    """Shape ``(num_temperatures,)``."""
    log_likelihood: jax.Array
    """Shape ``(num_temperatures,)``."""
    prior_gradient: jax.Array
    """Shape ``(num_temperatures, dim)``."""
    likelihood_gradient: jax.Array
    """Shape ``(num_temperatures, dim)``."""

    def gradient(self, temperatures: jax.Array) -> jax.Array:
        """Gradient of the log density at each rung, ``(num_temperatures, dim)``."""
        warm = temperatures[:, None] > 0
        return self.prior_gradient + jnp.where(
            warm, temperatures[:, None] * self.likelihood_gradient, 0.0
        )


def evaluate(split: Split, position: jax.Array) -> Rungs:
    """Log prior, log likelihood and their gradients at each rung.

    A likelihood that is not a number counts as zero, as in NumPyro's HMC.
    """

    # Each by itself, so that the prior's gradient does not run back through the
    # likelihood; compiled, the two share what they have in common.
    def log_prior(flat: jax.Array) -> jax.Array:
        return split(flat)[0]

    def log_likelihood(flat: jax.Array) -> jax.Array:
        return split(flat)[1]

    def one(flat: jax.Array) -> Rungs:
        prior, prior_gradient = jax.value_and_grad(log_prior)(flat)
        likelihood, gradient = jax.value_and_grad(log_likelihood)(flat)
        likelihood = jnp.where(jnp.isnan(likelihood), -jnp.inf, likelihood)
        return Rungs(flat, prior, likelihood, prior_gradient, gradient)

    return jax.vmap(one)(position)


def local_moves(
    rng_key: jax.Array,
    split: Split,
    step: Callable,
    num_steps: int,
    rungs: Rungs,
    temperatures: jax.Array,
    step_size: jax.Array,
    preconditioner: Preconditioner,
    draw_prior: Callable[[jax.Array], jax.Array] | None,
) -> tuple[jax.Array, jax.Array]:
    """Move every replica within its rung.

    Parameters
    ----------
    rng_key
        Random key.
    split
        Log prior and log likelihood of a flat position.
    step
        Pure step of a Langevin kernel.
    num_steps
        Number of steps.
    rungs
        The replicas.
    temperatures, step_size, preconditioner
        Of each rung, with a leading axis of ``num_temperatures``.
    draw_prior
        Exact draw of the prior from a key, which replaces the steps at ``t = 0``.

    Returns
    -------
    position
        Shape ``(num_temperatures, dim)``.
    accept_prob
        Mean acceptance of each rung's steps, shape ``(num_temperatures,)``.
    """
    gradient = rungs.gradient(temperatures)
    tempered = jnp.where(temperatures > 0, temperatures * rungs.log_likelihood, 0.0)
    log_density = rungs.log_prior + tempered
    keys = jax.random.split(rng_key, len(temperatures))

    def move(
        key: jax.Array,
        density: Callable,
        state: LangevinState,
        size: jax.Array,
        preconditioner: Preconditioner,
    ) -> tuple[jax.Array, jax.Array]:
        def body(
            state: LangevinState, key: jax.Array
        ) -> tuple[LangevinState, jax.Array]:
            state, info = step(key, density, state, size, preconditioner)
            return state, info.acceptance

        keys = jax.random.split(key, num_steps)
        state, acceptance = jax.lax.scan(body, state, keys)
        return state.position, acceptance.mean()

    def warm(key: jax.Array, temperature: jax.Array, *rest: Any) -> tuple:
        def density(flat: jax.Array) -> jax.Array:
            prior, likelihood = split(flat)
            return prior + temperature * likelihood

        return move(key, density, *rest)

    states = LangevinState(rungs.position, log_density, gradient)
    of_each = (keys, temperatures, states, step_size, preconditioner)
    coldest, others = (jax.tree.map(lambda x, s=s: x[s], of_each) for s in _ENDS)
    position, accept_prob = jax.vmap(warm)(*others)
    if draw_prior is None:
        # Apart, and without the likelihood: zero times minus infinity is no density.
        key, _, *rest = coldest
        first, accept_first = move(key, lambda flat: split(flat)[0], *rest)
    else:
        first, accept_first = draw_prior(coldest[0]), jnp.ones_like(accept_prob[0])
        # Rounding may put a draw on the end of its support, at infinity: stay then,
        # which leaves the prior on the points within as it is.
        first = jnp.where(jnp.all(jnp.isfinite(first)), first, rungs.position[0])
    return (
        jnp.concatenate([first[None], position]),
        jnp.concatenate([accept_first[None], accept_prob]),
    )


# The rung of the prior, and the others.
_ENDS = (0, slice(1, None))


def swap(
    rng_key: jax.Array,
    iteration: jax.Array,
    rungs: Rungs,
    temperatures: jax.Array,
    travels: Travels,
) -> tuple[Rungs, jax.Array, Travels]:
    """Swap neighbours; their probabilities come back too, of all pairs."""
    probabilities = swap_probabilities(temperatures, rungs.log_likelihood)
    permutation = even_odd_permutation(rng_key, iteration, probabilities)
    rungs = jax.tree.map(lambda x: x[permutation], rungs)
    return rungs, probabilities, travels.follow(permutation)


class Means(NamedTuple):
    """Running means over iterations: of a window of the warm-up, or of the draws."""

    count: jax.Array
    """Number of iterations."""
    log_likelihood: jax.Array
    """Shape ``(num_temperatures,)``."""
    swap_acceptance: jax.Array
    """Shape ``(num_temperatures - 1,)``."""
    squared_gradient: jax.Array
    """Of the log density at each rung, shape ``(num_temperatures, dim)``."""

    @classmethod
    def start(cls, position: jax.Array) -> "Means":
        """No iteration yet."""
        zeros = jnp.zeros_like(position)
        return cls(jnp.array(0), zeros[:, 0], zeros[1:, 0], zeros)

    def update(
        self, rungs: Rungs, temperatures: jax.Array, swap_acceptance: jax.Array
    ) -> "Means":
        """Add an iteration."""
        values = (
            rungs.log_likelihood,
            swap_acceptance,
            rungs.gradient(temperatures) ** 2,
        )
        count = self.count + 1
        share = 1 / count
        # In this form minus infinity stays minus infinity.
        means = [
            jnp.where(count == 1, new, (1 - share) * old + share * new)
            for old, new in zip(self[1:], values, strict=True)
        ]
        return Means(count, *means)
