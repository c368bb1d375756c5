"""Unadjusted Langevin algorithm."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from numpyro.infer import init_to_uniform

from numpyro_kaem.infer import mala
from numpyro_kaem.infer.kernel import LangevinKernel
from numpyro_kaem.infer.langevin import (
    LangevinInfo,
    LangevinState,
    LogDensity,
    Preconditioner,
    acceptance_of,
    choose,
    is_finite,
    propose,
)

__all__ = ["ULA", "step"]


def step(
    rng_key: jax.Array,
    log_density: LogDensity,
    state: LangevinState,
    step_size: jax.Array,
    preconditioner: Preconditioner,
) -> tuple[LangevinState, LangevinInfo]:
    """One step of the unadjusted Langevin algorithm: MALA's, always accepted.

    Parameters and results are those of :func:`numpyro_kaem.infer.mala.step`; the
    acceptance that is reported is what a correction would have. Only a step to a point
    without a finite density is not taken.
    """
    new, log_ratio = propose(
        rng_key, log_density, state, 0.5 * step_size**2, step_size, preconditioner
    )
    info = LangevinInfo(acceptance_of(log_ratio, new), jnp.asarray(step_size))
    return choose(is_finite(new), new, state), info


class ULA(LangevinKernel):
    r"""Unadjusted Langevin algorithm: biased, and never stuck.

    It leaves a law invariant that is near the posterior and wider, by an amount that
    does not fall with the number of draws. On a Normal posterior with standard
    deviation :math:`\sigma`, with scale :math:`s` and step size :math:`\varepsilon`,
    the mean is right and the variance is

    .. math:: \frac{\sigma^2}{1 - (\varepsilon s / 2 \sigma)^2},

    one hundredth too large for the default :math:`\varepsilon = 0.2` where
    :math:`s = \sigma`, and infinite from :math:`\varepsilon s = 2 \sigma` on. Prefer
    :class:`MALA`, which corrects this at the same cost; this one is for comparison with
    published work.

    Parameters
    ----------
    model
        A NumPyro model, a callable.
    step_size
        Step size, in units of the posterior's standard deviations; it is not adapted.
    adapt_scale
        Whether the warm-up learns the standard deviations of the unconstrained latent
        values, with which the steps are scaled; without, they are ones.
    init_strategy
        NumPyro's strategy for the point to start from.

    Raises
    ------
    TypeError, ValueError
        As :class:`MALA`.

    Notes
    -----
    - **Warm-up** is made with MALA's steps, corrected: before the scale is known, any
      step size may be too long.
    - **Bias**: the ``accept_prob`` among the ``extra_fields``, and in the text beside
      the progress bar, is what MALA would accept of these steps; the nearer to 1, the
      smaller the bias.
    - **Chains**, what to **collect**, how to **resume**: as :class:`MALA`.

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
    >>> from numpyro_kaem.infer import ULA
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal())
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> mcmc = MCMC(ULA(model), num_warmup=500, num_samples=2000, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), 2.0, extra_fields=("accept_prob",))
    >>> bool(mcmc.get_extra_fields()["accept_prob"].mean() > 0.95)
    True
    """

    default_target_accept_prob: ClassVar[float | None] = mala.TARGET_ACCEPT_PROB
    step = staticmethod(step)
    warmup_step = staticmethod(mala.step)

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float = 0.2,
        adapt_scale: bool = True,
        init_strategy: Callable = init_to_uniform,
    ) -> None:
        super().__init__(
            model,
            step_size=step_size,
            adapt_scale=adapt_scale,
            init_strategy=init_strategy,
        )
