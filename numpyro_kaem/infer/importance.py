"""Self-normalised importance sampling of a NumPyro model's posterior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide

from numpyro_kaem._checks import as_count, check_function, check_key, check_name
from numpyro_kaem.infer.importance_result import ImportanceResult
from numpyro_kaem.infer.target import (
    Sites,
    Trace,
    check_model,
    compile_with_model,
    latent_sites,
    observed_sites,
    prior_is_exact,
    sample_sites,
)
from numpyro_kaem.infer.units import (
    ModelRun,
    as_params,
    check_params,
    check_units,
    frame_of,
    log_prob,
    param_names,
    unit_axis,
)

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
        of a result of :meth:`numpyro.infer.SVI.run`. None is the model's own
        ``params``, if it has any, as a :class:`~numpyro_kaem.KAEM` has.
    num_samples
        Number :math:`S` of particles.
    unit_plate
        Name of a plate that makes units independent. Each unit then has its own
        weights, of the shape ``(num_samples, num_units)``. All latent sites must lie
        within the plate; fix those outside with :func:`numpyro.handlers.condition`.
    share_proposals
        Whether all units take the same :math:`S` proposals, so that the model computes
        with :math:`S` latent values, not with :math:`S` per unit. Default: where the
        units have one prior, the model broadcasts a value over the plate, and there is
        no guide.
    chunk_size
        How many particles run through the model at once. Memory for what the model
        computes grows with it; draws and weights of all particles are kept. The draws
        do not depend on it, and the weights only by the rounding of matrix products.

    Raises
    ------
    TypeError
        If ``model`` or ``guide`` cannot be called, a number is not an integer, or the
        key is none.
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
        if unit_plate is not None:
            check_name("unit_plate", unit_plate, "the name of a plate of the model")
        if share_proposals and unit_plate is None:
            raise ValueError("share_proposals=True needs unit_plate.")
        self.model = model
        self.guide = guide
        self.params = as_params(params, model)
        self.num_samples = as_count("num_samples", num_samples)
        self._unit_plate = unit_plate
        self._share_proposals = share_proposals
        self._chunk_size = as_count("chunk_size", chunk_size)
        self._checked: set = set()

    def __repr__(self) -> str:
        guide = "prior" if self.guide is None else "guide"
        plate = self._unit_plate
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
        run = ModelRun(self.model, self.params, args, kwargs, self._unit_plate)
        proposals = Proposals(run, self.guide, self._share_proposals)
        if self._unit_plate is not None:
            self._check_independence(proposals, rng_key)
        samples, log_weights, unit_axes = draw_and_weigh(
            proposals, self.num_samples, self._chunk_size, rng_key
        )
        weights = np.asarray(log_weights)
        wrong = np.isnan(weights) | (weights == np.inf)
        if np.any(wrong):
            place = tuple(int(index) for index in np.argwhere(wrong)[0])
            raise ValueError(
                f"model must give log weights that are finite or -inf, got "
                f"{weights[place]} for {int(wrong.sum())} of {weights.size}, first for "
                f"particle {place[0]}."
            )
        return ImportanceResult(samples, log_weights, self._unit_plate, unit_axes)

    def _check_independence(self, proposals: "Proposals", rng_key: jax.Array) -> None:
        """Check that the plate's units are independent, once for each shape."""
        run = proposals.run
        leaves, structure = jax.tree.flatten((run.args, run.kwargs))
        shapes = tuple(
            (leaf.shape, str(leaf.dtype)) if hasattr(leaf, "shape") else leaf
            for leaf in leaves
        )
        if (structure, shapes) in self._checked:
            return
        # The runs that are compared have products of matrices of different shapes,
        # which the rougher arithmetic of accelerators rounds differently.
        with jax.default_matmul_precision("highest"):
            gap = float(_dependence(proposals, rng_key))
        dtype = jnp.zeros(()).dtype
        # Rounding of the same terms computed in two shapes is far below this.
        if gap > np.sqrt(jnp.finfo(dtype).eps):
            raise ValueError(
                f"the plate {self._unit_plate!r} must make units independent, "
                "but the density of a unit or of a site outside the plate changes with "
                "other units' latent values. Leave unit_plate out for one weight per "
                "particle; if the model only counts on one latent value per unit, set "
                "share_proposals=False."
            )
        self._checked.add((structure, shapes))


# --- proposals and their weights -----------------------------------------------------


class Proposals(NamedTuple):
    """What proposals come from; whether units share them, ``None`` being if they can.

    Compiled functions take it as an argument: arrays in it may change.
    """

    run: ModelRun
    guide: Callable | None
    share: bool | None

    def draw_guide(self, rng_key: jax.Array) -> tuple[Trace, Sites]:
        """Trace of the guide, empty without one, and the model's values in it."""
        if self.guide is None:
            return {}, {}
        seeded = handlers.seed(self.guide, rng_key)
        guide = handlers.substitute(seeded, data=self.run.params)
        trace = handlers.trace(guide).get_trace(*self.run.args, **self.run.kwargs)
        values = {
            name: site["value"]
            for name, site in latent_sites(trace).items()
            if not site["infer"].get("is_auxiliary", False)
        }
        return trace, values

    def weigh(self, rng_key: jax.Array, shared: bool) -> tuple[Sites, jax.Array]:
        """Draw one particle: its latent values and its log weight."""
        guide_key, model_key = jax.random.split(rng_key)
        guide_trace, values = self.draw_guide(guide_key)
        trace = self.run.trace(model_key, values, shared)
        # What the guide did not draw came from its own prior, and cancels.
        latent = latent_sites(trace)
        guided = {name: latent[name] for name in values}
        log_weight = self.run.log_density(observed_sites(trace))
        log_weight = log_weight + self.run.log_density(guided)
        log_weight = log_weight - self.run.log_density(sample_sites(guide_trace))
        return {name: site["value"] for name, site in latent.items()}, log_weight

    def plan(self, rng_key: jax.Array) -> tuple[bool, dict[str, int]]:
        """Check model and guide; whether units share draws, and their axis by site."""
        shared, axes = False, {}
        plate = self.run.unit_plate

        def look(rng_key: jax.Array) -> None:
            nonlocal shared, axes
            latent = latent_sites(_check(self, rng_key))
            if plate is None:
                return
            axes = {name: unit_axis(site, plate) for name, site in latent.items()}
            shared = self.share is not False and self._can_share(rng_key)

        # Nothing is computed, nor is what the model may print or send elsewhere.
        jax.eval_shape(look, rng_key)
        if self.share and not shared:
            came = "a guide" if self.guide else "a prior with parameters for each unit"
            raise ValueError(
                "share_proposals=True needs proposals from one prior for all units, "
                f"got {came}."
            )
        return shared, axes

    def _can_share(self, rng_key: jax.Array) -> bool:
        """Whether one draw of each latent site serves all units."""
        if self.guide is not None:
            return False
        plate = self.run.unit_plate
        try:
            latent = latent_sites(self.run.trace(rng_key, shared=True))
        except Exception as error:
            error.add_note(
                "The model ran with one latent value for all units, of size one along "
                f"the plate {plate!r}; share_proposals=False gives each its own."
            )
            raise
        return all(
            jnp.shape(site["value"])[unit_axis(site, plate)] == 1
            for site in latent.values()
        )


@compile_with_model
def draw_and_weigh(
    proposals: Proposals, num_samples: int, chunk_size: int, rng_key: jax.Array
) -> tuple[Sites, jax.Array, dict[str, int]]:
    """Draw samples; their log weights, and the axis of units in each site.

    Only the particles of one chunk are run through the model at a time.
    """
    shared, axes = proposals.plan(rng_key)

    def weigh(key: jax.Array) -> tuple[Sites, jax.Array]:
        return proposals.weigh(key, shared)

    keys = jax.random.split(rng_key, num_samples)
    if chunk_size >= num_samples:
        samples, log_weights = jax.vmap(weigh)(keys)
    else:
        samples, log_weights = jax.lax.map(weigh, keys, batch_size=chunk_size)
    return samples, log_weights, axes


def _check(proposals: Proposals, rng_key: jax.Array) -> Trace:
    """Check a model and its guide; the model's trace."""
    run, guide = proposals.run, proposals.guide
    given = handlers.substitute(run.model, data=run.params)
    trace = check_model(given, rng_key, run.args, run.kwargs)
    check_params("model", param_names(trace), run.params)
    guided: dict[str, Any] = {}
    if guide is not None:
        if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
            raise ValueError(
                "guide must have been fitted: run SVI with it, and pass its params."
            )
        guide_trace, guided = proposals.draw_guide(rng_key)
        check_params("guide", param_names(guide_trace), run.params)
        _check_guide(guide_trace, trace, guided)
        if run.unit_plate is not None:
            drawn = sample_sites(guide_trace)
            check_units(run.unit_plate, drawn, trace, "guide")
    if run.unit_plate is not None:
        check_units(run.unit_plate, latent_sites(trace), trace, "model")
    left = {n: site for n, site in latent_sites(trace).items() if n not in guided}
    if not prior_is_exact(left):
        raise ValueError(
            "model must have latent sites whose prior can be drawn from, none "
            "improper (ImproperUniform), scaled (handlers.scale), masked or without a "
            "normalizing constant (DeepEnergyPrior), or a "
            f"guide that draws them; got {sorted(left)}."
        )
    return trace


def _check_guide(guide_trace: Trace, trace: Trace, guided: Sites) -> None:
    """Check that a guide draws latent sites of the model, from a known density."""
    latent, drawn = latent_sites(trace), latent_sites(guide_trace)
    for name, value in guided.items():
        if name not in latent:
            raise ValueError(
                f"guide must draw latent sites of the model, which are "
                f"{sorted(latent)}, got {name!r}."
            )
        expected = jnp.shape(latent[name]["value"])
        if jnp.shape(value) != expected:
            raise ValueError(
                f"guide must draw {name!r} in the shape {expected} that the model "
                f"gives it, got {jnp.shape(value)}."
            )
    if not prior_is_exact(guide_trace):
        raise ValueError(
            "guide must draw from the density that it states, without handlers.scale, "
            f"handlers.mask or ImproperUniform; its sites are {sorted(drawn)}."
        )
    # A guide with sites of its own may map them to the model's, as Delta sites.
    if drawn.keys() == guided.keys():
        for name, site in drawn.items():
            if isinstance(site["fn"], dist.Delta):
                raise ValueError(
                    f"guide must have a density at its sites, got a Delta at {name!r}: "
                    "use AutoNormal, for instance."
                )


# --- are the units independent? ------------------------------------------------------


@compile_with_model
def _dependence(proposals: Proposals, rng_key: jax.Array) -> jax.Array:
    """Largest relative change of a unit's density when the others' values change.

    No more than rounding if they are independent. It compares a few runs of the model
    with all units, which shared proposals otherwise avoid: to be called once per model,
    not with every data set.
    """
    run, plate = proposals.run, proposals.run.unit_plate
    shared, axes = proposals.plan(rng_key)
    first_key, second_key = jax.random.split(rng_key)
    # Whatever else the model draws is the same in all runs.
    model_key = jax.random.split(first_key)[1]

    def terms(values: Sites) -> tuple[jax.Array, jax.Array, jax.Array]:
        trace = run.trace(model_key, values)
        observed = observed_sites(trace)
        outside = [
            jnp.sum(log_prob(name, site))
            for name, site in observed.items()
            if frame_of(site, plate) is None
        ]
        likelihood = run.log_density(observed)
        density = run.log_density(latent_sites(trace)) + likelihood
        return density, likelihood, sum(outside, start=jnp.zeros(()))

    first, second = (proposals.weigh(key, False)[0] for key in (first_key, second_key))
    one = proposals.weigh(first_key, True) if shared else None
    points = {}
    for name, value in first.items():
        shape = [1] * value.ndim
        shape[axes[name]] = value.shape[axes[name]]
        even = jnp.arange(shape[axes[name]]).reshape(shape) % 2 == 0
        mixed = jnp.where(even, value, second[name])
        stack = [value, second[name], mixed]
        if one is not None:
            stack.append(jnp.broadcast_to(one[0][name], value.shape))
        points[name] = jnp.stack(stack)
    density, likelihood, outside = jax.vmap(terms)(points)
    gap = jnp.maximum(
        _relative_gap(density[0, ::2], density[2, ::2]),
        _relative_gap(outside[:1], outside),
    )
    if one is None:
        return gap
    # A model that counts its units itself may not take one proposal for all.
    return jnp.maximum(gap, _relative_gap(likelihood[3], one[1]))


def _relative_gap(first: jax.Array, second: jax.Array) -> jax.Array:
    """Largest difference of two arrays, relative where they are large."""
    equal = (first == second) | (jnp.isnan(first) & jnp.isnan(second))
    gap = jnp.abs(first - second) / (1 + jnp.abs(first))
    gap = jnp.where(jnp.isnan(gap), jnp.inf, gap)
    return jnp.max(jnp.where(equal, 0, gap), initial=0)
