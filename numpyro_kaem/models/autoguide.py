"""A guide for variational inference whose marginals are learned densities."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
)
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.initialization import init_to_median

from numpyro_kaem._checks import as_number, check_function, check_name
from numpyro_kaem.bases import AbstractBasis, BSpline
from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.energy import Energy

__all__ = ["AutoKAEM"]


class AutoKAEM(AutoContinuous):
    r"""Mean-field guide whose marginals are tilted Normal densities of any shape.

    On the unconstrained space of all latent values, the guide is

    .. math::

        q(z) = \prod_d \frac{1}{\sigma_d}\, \pi_d\Bigl(\frac{z_d - m_d}{\sigma_d}\Bigr),
        \qquad
        \pi_d(s) \propto e^{f_d(s)}\, \text{Normal}(s; 0, 1),

    with a location, a scale and an energy :math:`f_d` per latent dimension. Draws
    invert the distribution function, and are differentiable in all parameters. With
    flat energies this is :class:`~numpyro.infer.autoguide.AutoDiagonalNormal`; with one
    latent value it comes as close to the posterior as its basis resolves, whether that
    is skewed or multimodal.

    Parameters
    ----------
    model
        A NumPyro model whose latent values are continuous.
    basis
        Features of every energy, with one grid, in units of the scale about the
        location; ``None`` is ``BSpline(-3.0, 3.0, 16)``.
    prefix
        Prefix of the names of the guide's parameters.
    init_loc_fn
        Strategy that sets the locations before the first step.
    init_scale
        Scales before the first step, > 0. The grid should cover the posterior then: a
        guide that starts within one mode may not find another.

    Raises
    ------
    TypeError
        If ``basis`` is not a basis.
    ValueError
        If the basis has a batch of grids, or ``init_scale`` is not positive and finite.

    Notes
    -----
    - Parameters: ``{prefix}_loc`` and ``{prefix}_scale`` of shape ``(latent_dim,)``,
      ``{prefix}_coefficients`` of shape ``(latent_dim, num_features)``.
    - Dependence between latent values is ignored, as in every mean-field guide.
    - It is a guide for ``SVI``, and a transport map for
      :class:`~numpyro.infer.reparam.NeuTraReparam`.

    References
    ----------
    Kucukelbir et al. (2017), "Automatic differentiation variational inference",
    *Journal of Machine Learning Research* 18(14).
    Figurnov, Mohamed and Mnih (2018), "Implicit reparameterization gradients",
    arXiv:1805.08498.

    Examples
    --------
    The sign of ``z`` is not known from its square:

    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> from numpyro.infer import SVI, Trace_ELBO
    >>> from numpyro.optim import Adam
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.5, 1.5))
    ...     numpyro.sample("y", dist.Normal(z**2, 1.0), obs=y)
    >>> guide = kaem.AutoKAEM(model)
    >>> svi = SVI(model, guide, Adam(0.05), Trace_ELBO(num_particles=16))
    >>> result = svi.run(jax.random.key(0), 300, 2.0, progress_bar=False)
    >>> posterior = guide.get_posterior(result.params)
    >>> low, middle, high = posterior.log_prob(jax.numpy.array([[-1.3], [0.0], [1.5]]))
    >>> bool(low > middle + 1.0 and high > middle + 1.0)
    True
    """

    scale_constraint = constraints.softplus_positive

    def __init__(
        self,
        model: Callable,
        basis: AbstractBasis | None = None,
        *,
        prefix: str = "auto",
        init_loc_fn: Callable = init_to_median,
        init_scale: float = 1.0,
    ) -> None:
        check_function("model", model, "a NumPyro model, a callable")
        check_function("init_loc_fn", init_loc_fn, "such as init_to_median")
        check_name("prefix", prefix, "the start of names of sites")
        if basis is None:
            basis = BSpline(-3.0, 3.0, 16)
        if not isinstance(basis, AbstractBasis):
            raise TypeError(
                "basis must be a basis such as numpyro_kaem.BSpline(-3.0, 3.0, 16), "
                f"got {type(basis).__name__}."
            )
        if basis.grid_shape != ():
            raise ValueError(
                "basis must have one grid, in units of the guide's scales, got a grid "
                f"of shape {basis.grid_shape}."
            )
        init_scale = as_number(
            "init_scale", init_scale, "a finite number > 0", lambda x: x > 0
        )
        self.basis = basis
        self._init_scale = init_scale
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)

    def _get_posterior(self) -> dist.Distribution:
        shape = (self.latent_dim, self.basis.num_features)
        loc = numpyro.param(f"{self.prefix}_loc", self._init_latent)
        scale = numpyro.param(
            f"{self.prefix}_scale",
            jnp.full(self.latent_dim, self._init_scale),
            constraint=self.scale_constraint,
        )
        coefficients = numpyro.param(f"{self.prefix}_coefficients", jnp.zeros(shape))
        return self._marginals(loc, scale, coefficients).to_event(1)

    def _standard(self, coefficients: jax.Array) -> KAEMPrior:
        return KAEMPrior(Energy(self.basis, coefficients), dist.Normal(0.0, 1.0))

    def _marginals(
        self, loc: jax.Array, scale: jax.Array, coefficients: jax.Array
    ) -> dist.TransformedDistribution:
        """Marginals, of batch shape ``(latent_dim,)``."""
        return dist.TransformedDistribution(
            self._standard(coefficients), AffineTransform(loc, scale)
        )

    def _values(self, params: dict[str, Any]) -> list[jax.Array]:
        """Locations, scales and coefficients."""
        names = ("loc", "scale", "coefficients")
        return [params[f"{self.prefix}_{name}"] for name in names]

    def get_posterior(self, params: dict[str, Any]) -> dist.Distribution:
        """Guide on the unconstrained space, of event shape ``(latent_dim,)``."""
        return self._marginals(*self._values(params)).to_event(1)

    def get_base_dist(self) -> dist.Distribution:
        """Return the Normal distribution that :meth:`get_transform` starts from."""
        return dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1)

    def get_transform(self, params: dict[str, Any]) -> IndependentTransform:
        """Map of standard Normal values to unconstrained latent values."""
        loc, scale, coefficients = self._values(params)
        standard = self._standard(coefficients).as_transformed("normal")
        transforms = [*standard.transforms, AffineTransform(loc, scale)]
        return IndependentTransform(ComposeTransform(transforms), 1)

    def median(self, params: dict[str, Any]) -> dict[str, jax.Array]:
        """Medians of the marginals, mapped to the support of each site."""
        return self.quantiles(params, 0.5)

    def quantiles(
        self, params: dict[str, Any], quantiles: ArrayLike | Sequence[float]
    ) -> dict[str, jax.Array]:
        """Quantiles of the marginals by site, shape ``(*quantiles.shape, *site)``."""
        marginals = self._marginals(*self._values(params))
        values = marginals.icdf(jnp.asarray(quantiles)[..., None])
        return self._unpack_and_constrain(values, params)
