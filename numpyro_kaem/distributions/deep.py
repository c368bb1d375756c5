"""A joint density by a network: not normalised, and drawn by a short Markov chain."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import validate_sample

from numpyro_kaem._checks import (
    as_count,
    as_positive,
    as_real,
    as_sample_shape,
    as_vectors,
    check_function,
    check_key,
)
from numpyro_kaem.references import is_concrete

__all__ = ["DeepEnergyPrior"]


class DeepEnergyPrior(dist.Distribution):
    r"""Normal density tilted by a network over all latents; **not normalised**.

    .. math:: p(z) = \frac{e^{f(z)}\,\mathrm{Normal}(z;\,0,\,s^2 I)}{Z}, \qquad
              z \in \mathbb{R}^D.

    The normalizing constant :math:`Z` is not known. ``log_prob`` **omits it**, and
    ``sample`` is **approximate**: a short run of the Langevin algorithm. For an exact
    joint density use :class:`AutoregressiveKAEMPrior`, or a mixture of products.

    Parameters
    ----------
    network
        The energy :math:`f`: an Equinox module, or a function, from one latent vector,
        shape ``(dim,)``, to a number, shape ``()`` or ``(1,)``.
    dim
        Number :math:`D` of latents.
    scale
        Standard deviation :math:`s > 0` of the Normal, shape ``()`` or ``(dim,)``.
    num_steps, step_size
        Number of Langevin steps of a draw, and their size :math:`\varepsilon > 0` in
        units of the scale.
    validate_args
        Check the values given to ``log_prob``, as NumPyro does.

    Raises
    ------
    TypeError
        If ``network`` cannot be called, or a count is not an integer.
    ValueError
        If the network or ``scale`` has another shape, or a count, ``scale`` or
        ``step_size`` is not positive and finite.

    Notes
    -----
    - **Log densities lack a constant** that depends on the parameters: they do not
      compare models, an evidence from importance weights is off by :math:`\log Z`, and
      their gradient alone does not learn the network. Subtract :meth:`contrast`.
    - **Draws**, from :math:`z_0 \sim \mathrm{Normal}(0, s^2 I)`,

      .. math:: z_{k+1} = z_k + \tfrac{1}{2} (\varepsilon s)^2 \nabla \log p(z_k)
                + \varepsilon s\,\xi_k, \qquad \xi_k \sim \mathrm{Normal}(0, I),

      have a bias that decreases with a smaller ``step_size``, and with a larger
      ``num_steps`` times its square. They have no derivatives.
    - **Training** is stable at small learning rates only (with Adam, 1e-4 to 5e-4): at
      larger ones the energies grow until Langevin steps jump over their modes, and
      draws and energies diverge together.
    - The posterior of the latents under given parameters does not need :math:`Z`: MCMC
      remains exact.

    References
    ----------
    Pang, Han, Nijkamp, Zhu and Wu (2020), "Learning latent space energy-based prior
    model", *Advances in Neural Information Processing Systems* 33, equations (1), (5)
    and (6), with their step size and number of steps.

    Examples
    --------
    >>> import jax
    >>> import numpyro_kaem as kaem
    >>> prior = kaem.DeepEnergyPrior.init(jax.random.key(0), dim=3)
    >>> z = prior.sample(jax.random.key(1), (5,))
    >>> z.shape, prior.log_prob(z).shape, prior.contrast(jax.random.key(2), 9).shape
    ((5, 3), (5,), ())
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.real_vector
    reparametrized_params: list[str] = []
    pytree_data_fields = ("network", "scale")
    pytree_aux_fields = ("dim", "num_steps", "step_size")

    def __init__(
        self,
        network: Any,
        dim: int,
        *,
        scale: ArrayLike = 1.0,
        num_steps: int = 60,
        step_size: float = 0.4,
        validate_args: bool | None = None,
    ) -> None:
        what = "an Equinox module or a function of one latent vector"
        check_function("network", network, what)
        self.dim = as_count("dim", dim)
        self.num_steps = as_count("num_steps", num_steps)
        self.step_size = as_positive("step_size", step_size)
        as_real("scale", scale)
        latents = jax.ShapeDtypeStruct((self.dim,), jnp.result_type(float))
        shape = jax.eval_shape(network, latents).shape
        if shape not in ((), (1,)):
            raise ValueError(
                f"network must map shape ({self.dim},) to a number, of shape () or "
                f"(1,), got {shape}."
            )
        if jnp.shape(scale) not in ((), (self.dim,)):
            raise ValueError(
                f"scale must have shape () or ({self.dim},), got {jnp.shape(scale)}."
            )
        if is_concrete(scale):
            values = np.asarray(scale, float)
            if not np.all(np.isfinite(values) & (values > 0)):
                raise ValueError(f"scale must be positive and finite, got {scale}.")
        self.network = network
        self.scale = jnp.asarray(scale, jnp.result_type(float, scale))
        super().__init__((), (self.dim,), validate_args=validate_args)

    @classmethod
    def init(
        cls,
        key: jax.Array,
        dim: int,
        *,
        width: int = 200,
        depth: int = 2,
        **kwargs: Any,
    ) -> "DeepEnergyPrior":
        """Prior with a random multilayer perceptron to start training from.

        Parameters
        ----------
        key, dim
            Random key, and number of latents.
        width, depth
            Size and number of the hidden layers.
        **kwargs
            Further arguments of :class:`DeepEnergyPrior`.

        Examples
        --------
        >>> import jax
        >>> import numpyro_kaem as kaem
        >>> kaem.DeepEnergyPrior.init(jax.random.key(0), dim=8, num_steps=40)
        DeepEnergyPrior(MLP, dim=8, num_steps=40, step_size=0.4)
        """
        check_key(key, "key")
        dim, width = as_count("dim", dim), as_count("width", width)
        depth = as_count("depth", depth, minimum=0)
        network = eqx.nn.MLP(
            dim, "scalar", width, depth, activation=jax.nn.gelu, key=key
        )
        return cls(network, dim, **kwargs)

    def replace(self, network: Any, scale: jax.Array) -> "DeepEnergyPrior":
        """Return the same prior with another network and scale, without checks."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.network, other.scale = network, scale
        return other

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """Arrays of the network and the scale; the rest is static."""
        # Activations are functions, which jit takes as static values only. Not by
        # eqx.is_array: trees of other leaves must have the same structure.
        arrays, static = eqx.partition(self.network, lambda x: not _is_static(x))
        leaves, treedef = jax.tree_util.tree_flatten(static)
        sizes = (self.dim, self.num_steps, self.step_size, self._validate_args)
        return (arrays, self.scale), (tuple(leaves), treedef, *sizes)

    @classmethod
    def tree_unflatten(cls, aux_data: tuple, params: tuple) -> "DeepEnergyPrior":
        """Inverse of :meth:`tree_flatten`, without checks."""
        prior = cls.__new__(cls)
        leaves, treedef, *sizes = aux_data
        static = jax.tree_util.tree_unflatten(treedef, leaves)
        arrays, prior.scale = params
        prior.network = eqx.combine(arrays, static)
        prior.dim, prior.num_steps, prior.step_size, prior._validate_args = sizes
        prior._batch_shape, prior._event_shape = (), (prior.dim,)
        return prior

    def __repr__(self) -> str:
        return (
            f"DeepEnergyPrior({type(self.network).__name__}, dim={self.dim}, "
            f"num_steps={self.num_steps}, step_size={self.step_size})"
        )

    # --- the density -----------------------------------------------------------------

    def energy(self, value: ArrayLike) -> jax.Array:
        """Energy of latent vectors: (..., dim) -> (...,)."""
        value = as_vectors("value", value, self.dim)
        rows = jax.vmap(self.network)(value.reshape(-1, self.dim))
        return rows.reshape(value.shape[:-1])

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> jax.Array:
        """Log density **without its normalizing constant**: (..., dim) -> (...,)."""
        return self._log_density(as_vectors("value", value, self.dim))

    def _log_density(self, value: jax.Array) -> jax.Array:
        return self.energy(value) + self._log_reference(value)

    def _log_reference(self, value: jax.Array) -> jax.Array:
        return dist.Normal(0.0, self.scale).log_prob(value).sum(-1)

    def sample(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Draw **approximately**, shape ``sample_shape + (dim,)``; no derivatives."""
        key = check_key(key, "key")
        sample_shape = as_sample_shape(sample_shape)
        fixed = jax.lax.stop_gradient(self)
        shape = (*sample_shape, self.dim)
        start_key, noise_key = jax.random.split(key)
        gradient = jax.grad(lambda z: jnp.sum(fixed._log_density(z)))
        step = self.step_size * fixed.scale
        dtype = step.dtype

        def move(z: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            noise = jax.random.normal(key, shape, dtype)
            return z + 0.5 * step**2 * gradient(z) + step * noise, None

        start = fixed.scale * jax.random.normal(start_key, shape, dtype)
        keys = jax.random.split(noise_key, self.num_steps)
        return jax.lax.scan(move, start, keys)[0]

    def contrast(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        r"""Mean energy of draws, which a loss subtracts to learn the density.

        With draws :math:`\tilde z_i`, which have no derivatives, it is

        .. math:: \frac{1}{S} \sum_i f(\tilde z_i), \qquad \text{as} \qquad
            \nabla \log Z = \mathrm{E}_{p(z)}\bigl[\nabla \log \tilde p(z)\bigr].

        Its gradient in the network and in the scale estimates that of :math:`\log Z`,
        so that ``log_prob`` minus the contrast has the gradient of the normalised log
        density. Its value is not :math:`\log Z`.

        Parameters
        ----------
        rng_key, num_samples
            Random key, and number :math:`S` of draws.

        References
        ----------
        Pang et al. (2020), equations (8) and (9).
        """
        z = self.sample(rng_key, (as_count("num_samples", num_samples),))
        reference = self._log_reference(z)
        # The scale has its part in the gradient, and none in the value: the Normal is
        # normalised.
        reference -= jax.lax.stop_gradient(reference)
        return jnp.mean(self.energy(z) + reference)


def _is_static(leaf: Any) -> bool:
    """Whether a leaf of a network is a function, or a plain number or name."""
    return callable(leaf) or isinstance(leaf, (bool, int, float, complex, str))


promote_batch_shape.register(DeepEnergyPrior, lambda prior: prior)
