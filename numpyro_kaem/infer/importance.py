"""Self-normalised importance sampling of a NumPyro model's posterior."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem._checks import check_function, check_key
from numpyro_kaem.infer.importance_proposals import Options, find_dependence, propose
from numpyro_kaem.infer.importance_result import ImportanceResult
from numpyro_kaem.infer.resampling import check_count
from numpyro_kaem.models.kaem import KAEM

__all__ = ["ImportanceSampling"]


class ImportanceSampling:
    r"""Draws from the prior or a guide, weighted to the posterior.

    .. math:: w_s = \frac{p(x, z_s)}{q(z_s)}, \qquad z_s \sim q, \qquad
        \widehat{p(x)} = \frac{1}{S} \sum_s w_s.

    The mean weight is an unbiased estimate of the evidence :math:`p(x)`. With the prior
    as :math:`q` the weights are likelihoods, and stop being useful within a few latent
    dimensions that the data inform; the Pareto :math:`\hat k` of the result tells.

    Parameters
    ----------
    model
        NumPyro model with continuous latent sites and observed ones.
    guide
        NumPyro guide :math:`q`, called with the model's arguments, whose sites are
        latent sites of the model. Latent sites that it leaves out, and all without a
        guide, are proposed from their own prior.
    params
        Constrained values of all ``param`` sites of model and guide, such as ``params``
        of a result of :meth:`numpyro.infer.SVI.run`. None is the model's own, of a
        :class:`~numpyro_kaem.KAEM`.
    num_samples
        Number :math:`S` of particles.
    unit_plate
        Name of a plate that makes units independent. Each unit then has its own
        weights, of the shape ``(num_samples, num_units)``. All latent sites must lie
        within the plate; fix those outside with :func:`numpyro.handlers.condition`.
    share_proposals
        Whether all units take the same :math:`S` proposals, so that what the model
        makes of the latent values is computed :math:`S` times and not once more for
        each unit. Default: where the units have one prior, the model broadcasts a
        value over the plate, and there is no guide.
    chunk_size
        How many particles run through the model at once. Memory for what the model
        computes grows with it; draws and weights of all particles are kept. The draws
        do not depend on it, and the weights only by the rounding of matrix products.

    Raises
    ------
    TypeError
        If ``model`` or ``guide`` cannot be called, or the key is none.
    ValueError
        If a number is not positive. In :meth:`run`, if the model has discrete latent
        sites, no latent or no observed site, or a subsampled plate; if it has no exact
        draws from its prior and no guide; if the guide has sites that the model has
        not; if ``unit_plate`` is no plate of the model, a latent site lies outside it,
        or units turn out to depend on each other; if a log weight is NaN or inf.

    Notes
    -----
    :meth:`run` compiles the model once for the shapes of arrays among the arguments;
    new data of the same shapes run at once. Other arguments are static. Weights are
    computed in JAX's default precision, and averages over them in float64.

    References
    ----------
    Owen (2013), *Monte Carlo theory, methods and examples*, chapter 9.
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance
    sampling", *Journal of Machine Learning Research* 25(72).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro_kaem.infer import ImportanceSampling
    >>> def model(x):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("data", 3):
    ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> sampler = ImportanceSampling(model, num_samples=4096)
    >>> result = sampler.run(jax.random.key(0), jnp.array([0.2, 1.1, 0.5]))
    >>> print(f"{result.log_evidence.value:.1f}")
    -3.8
    >>> result.resample(jax.random.key(1), 1000)["z"].shape
    (1000,)
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable | None = None,
        *,
        params: dict[str, Any] | None = None,
        num_samples: int = 4096,
        unit_plate: str | None = None,
        share_proposals: bool | None = None,
        chunk_size: int = 1024,
    ):
        what = "a function with NumPyro's primitives"
        check_function("model", model, what)
        if guide is not None:
            check_function("guide", guide, what)
        if unit_plate is not None and not isinstance(unit_plate, str):
            raise TypeError(
                "unit_plate must be the name of a plate of the model, got "
                f"{type(unit_plate).__name__}."
            )
        if share_proposals and unit_plate is None:
            raise ValueError("share_proposals=True needs unit_plate.")
        self.model = model
        self.guide = guide
        if params is None:
            params = model.params if isinstance(model, KAEM) else {}
        if not isinstance(params, Mapping):
            raise TypeError(
                f"params must be values by name, got {type(params).__name__}."
            )
        self.params = dict(params)
        self.num_samples = check_count("num_samples", num_samples)
        self._options = Options(
            unit_plate, share_proposals, check_count("chunk_size", chunk_size)
        )
        self._checked: set = set()

    def __repr__(self) -> str:
        guide = "prior" if self.guide is None else "guide"
        plate = self._options.unit_plate
        units = "" if plate is None else f", unit_plate={plate!r}"
        return (
            f"ImportanceSampling(proposals={guide!r}, "
            f"num_samples={self.num_samples}{units})"
        )

    def run(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> ImportanceResult:
        """Draw the particles and weigh them.

        Parameters
        ----------
        rng_key
            Random key.
        *args, **kwargs
            Arguments of the model and the guide.

        Returns
        -------
        ImportanceResult
            Proposals and weights, and what they are worth. If all log weights are -inf
            it says so, and only :meth:`ImportanceResult.resample` raises.

        Raises
        ------
        TypeError
            If the key is none.
        ValueError
            As the class says.
        """
        check_key(rng_key)
        run = (self.model, self.guide, self.params, self._options)
        if self._options.unit_plate is not None:
            self._check_independence(*run, rng_key, args, kwargs)
        particles = propose(*run, self.num_samples, rng_key, args, kwargs)
        weights = np.asarray(particles.log_weights)
        wrong = np.isnan(weights) | (weights == np.inf)
        if np.any(wrong):
            place = tuple(int(index) for index in np.argwhere(wrong)[0])
            raise ValueError(
                f"model must give log weights that are finite or -inf, got "
                f"{weights[place]} for {int(wrong.sum())} of {weights.size}, first for "
                f"particle {place[0]}."
            )
        return ImportanceResult(
            particles.samples,
            particles.log_weights,
            self._options.unit_plate,
            particles.unit_axes,
        )

    def _check_independence(self, *run: Any) -> None:
        """Check that the plate's units are independent, once for each shape.

        Raises
        ------
        ValueError
            If they are not.
        """
        leaves, structure = jax.tree.flatten(run[-2:])
        shapes = tuple(
            (leaf.shape, str(leaf.dtype)) if hasattr(leaf, "shape") else leaf
            for leaf in leaves
        )
        if (structure, shapes) in self._checked:
            return
        # The runs that are compared have products of matrices of different shapes,
        # which the rougher arithmetic of accelerators rounds differently.
        with jax.default_matmul_precision("highest"):
            gap = float(find_dependence(*run))
        dtype = jnp.zeros(()).dtype
        # Rounding of the same terms computed in two shapes is far below this.
        if gap > np.sqrt(jnp.finfo(dtype).eps):
            raise ValueError(
                f"the plate {self._options.unit_plate!r} must make units independent, "
                "but the density of a unit or of a site outside the plate changes with "
                "other units' latent values. Leave unit_plate out for one weight per "
                "particle; if the model only counts on one latent value for each unit, "
                "set share_proposals=False."
            )
        self._checked.add((structure, shapes))
