"""Few base latents that drive many densities: Kolmogorov and Arnold's form."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from numpyro_kaem._checks import check_name
from numpyro_kaem.distributions import InverseCDFTransform, KAEMPrior

__all__ = ["kart"]


def kart(name: str, prior: KAEMPrior, *, base: str = "normal") -> jax.Array:
    r"""Sample base latents that drive all densities, inside a NumPyro model.

    Kolmogorov and Arnold's theorem writes a continuous function of :math:`P` variables
    with :math:`2P + 1` rows of one-dimensional functions of these. Here the functions
    are quantile functions of learned densities:

    .. math::

        v_p \sim \mathrm{Normal}(0, 1), \qquad
        z_{q,p} = F_{q,p}^{-1}(\Phi(v_p)), \qquad
        p = 1, \dots, P, \quad q = 1, \dots, 2P + 1.

    Parameters
    ----------
    name
        Name of the deterministic site of ``z``. The latents are the sample site
        ``f"{name}_base"``.
    prior
        The densities, of batch shape ``(2 * P + 1, P)``.
    base
        Law of the latents: ``"normal"``, which samplers explore better, or
        ``"uniform"`` on (0, 1).

    Returns
    -------
    Array
        ``z``, shape ``(*plates, 2 * P + 1, P)``.

    Raises
    ------
    TypeError
        If ``prior`` is not a :class:`KAEMPrior`.
    ValueError
        If its batch shape is not ``(2 * P + 1, P)``, or ``base`` is neither law.

    Notes
    -----
    - There are ``P`` latents, not ``(2 * P + 1) * P``. Each ``z[..., q, p]`` alone
      follows ``prior``'s density ``(q, p)``, but a column is a function of one latent.
      So ``z`` has no density on its own space: the log density of the model is that of
      the base, in which ``prior`` does not appear. Its parameters are learned through
      what ``z`` explains. For independent latents sample ``prior.to_event(2)``.
    - A decoder sees the rows, often as their sums. Where all rows have the same
      densities it is told the same ``2 * P + 1`` times: start training from energies
      that differ, such as :meth:`Energy.init` makes, not from flat ones.
    - Inside plates the base gets their shape, whatever their sizes: the prior's own
      shape is never broadcast against a plate.
    - Uniform latents of 0 and 1 are moved inside by less than the spacing of draws.

    References
    ----------
    Kolmogorov (1957), "On the representation of continuous functions of many variables
    by superposition of continuous functions of one variable and addition", *Doklady
    Akademii Nauk SSSR* 114.
    Raj (2025), "Kolmogorov-Arnold Energy Models", arXiv:2506.14167.

    Examples
    --------
    >>> import jax
    >>> import numpyro
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-1.0, 3.0, 8), (5, 2))
    >>> def model():
    ...     with numpyro.plate("data", 10):
    ...         return kaem.kart("z", kaem.KAEMPrior(energy))
    >>> with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
    ...     z = model()
    >>> z.shape, trace["z_base"]["value"].shape
    ((10, 5, 2), (10, 2))
    """
    check_name("name", name)
    transform = InverseCDFTransform(prior, base=base)
    shape = prior.batch_shape
    if len(shape) != 2 or shape[0] != 2 * shape[1] + 1 or shape[1] == 0:
        raise ValueError(
            "prior must have batch_shape (2 * P + 1, P) for P latents, such as (3, 1) "
            f"or (5, 2), got {shape}; for independent latents sample the prior itself."
        )
    law = dist.Uniform(0.0, 1.0) if base == "uniform" else dist.Normal(0.0, 1.0)
    latent = numpyro.sample(f"{name}_base", law.expand(shape[1:]).to_event(1))
    if base == "uniform":
        # A uniform draw may be 0, whose quantile may be infinite.
        limits = jnp.finfo(latent.dtype)
        latent = jnp.clip(latent, float(limits.eps) ** 4, 1 - limits.epsneg)
    rows = jnp.broadcast_to(latent[..., None, :], (*latent.shape[:-1], *shape))
    return numpyro.deterministic(name, transform(rows))
