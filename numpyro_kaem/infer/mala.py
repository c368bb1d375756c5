"""Metropolis-adjusted Langevin algorithm."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from numpyro_kaem.infer.kernel import LangevinKernel
from numpyro_kaem.infer.langevin import (
    LangevinInfo,
    LangevinState,
    LogDensity,
    Preconditioner,
    accept_or_stay,
    propose,
)

__all__ = ["MALA", "TARGET_ACCEPT_PROB", "step"]

# The acceptance at which many independent dimensions move fastest (Roberts and
# Rosenthal 1998, "Optimal scaling of discrete approximations to Langevin diffusions").
TARGET_ACCEPT_PROB = 0.574


def step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, LangevinInfo]:
    r"""One step of the Metropolis-adjusted Langevin algorithm.

    The proposal is

    .. math:: z' = z + \tfrac{\varepsilon^2}{2} S^2 \nabla \log p(z)
              + \varepsilon S \xi, \qquad \xi \sim \mathcal N(0, I),

    with the diagonal scale :math:`S` of the preconditioner.

    Parameters
    ----------
    rng_key
        Random key.
    log_density
        Log density, up to a constant: from ``(*chains, dim)`` to ``(*chains,)``.
    state
        Where the chain is, or the chains are.
    step_size
        Step size :math:`\varepsilon` > 0, in units of the scale; a scalar, or one for
        each chain.
    preconditioner
        The scale.

    Returns
    -------
    tuple
        The next state, and what the step reports.
    """
    key_noise, key_accept = jax.random.split(rng_key)
    new, log_ratio = propose(
        key_noise, log_density, state, 0.5 * step_size**2, step_size, preconditioner
    )
    state, acceptance = accept_or_stay(key_accept, log_ratio, new, state)
    return state, LangevinInfo(acceptance, jnp.asarray(step_size))


class MALA(LangevinKernel):
    """Metropolis-adjusted Langevin algorithm, for any model with continuous latents.

    One gradient an iteration: for posteriors whose gradient is dear and whose shape is
    near a Normal's. Where scales differ along the posterior (a funnel), use
    :class:`AutoMALA`; where modes are apart, :class:`AnnealedLangevin`.

    Parameters
    ----------
    model
        A NumPyro model, a callable.
    step_size
        Step size to start from, in units of the posterior's standard deviations.
    adapt_step_size
        Whether the warm-up tunes the step size to ``target_accept_prob``.
    adapt_scale
        Whether the warm-up learns the standard deviations of the unconstrained latent
        values, with which the steps are scaled; without, they are ones.
    target_accept_prob
        Acceptance at which the warm-up aims, within (0, 1).
    init_strategy
        NumPyro's strategy for the point to start from.

    Raises
    ------
    TypeError
        If ``model`` is not callable.
    ValueError
        If a number is out of its range; when run, if the model has a discrete latent
        site, none at all or a subsampled plate, or if its density is not finite at the
        start.

    Notes
    -----
    - **Collect**, as ``extra_fields``: ``accept_prob``, ``step_size``,
      ``potential_energy``.
    - **Chains**: ``sequential``, ``parallel`` and ``vectorized``.
    - **Resume** from ``mcmc.last_state``: the draws are those of an unbroken run. A
      state belongs to its data: for other data, run again without one.

    References
    ----------
    Roberts and Tweedie (1996), "Exponential convergence of Langevin distributions and
    their discrete approximations", *Bernoulli* 2(4).

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_kaem.infer import MALA
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal())
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> mcmc = MCMC(MALA(model), num_warmup=500, num_samples=4000, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), 2.0)
    >>> bool(abs(mcmc.get_samples()["z"].mean() - 1.0) < 0.1)
    True
    """

    default_target_accept_prob: ClassVar[float | None] = TARGET_ACCEPT_PROB
    step = staticmethod(step)
