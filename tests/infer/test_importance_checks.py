"""Guides that state no density, draws at the ends of supports, and what is checked."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from numpyro_kaem.infer import ImportanceSampling
from tests.helpers import assert_close
from tests.infer.test_importance import (
    LOCS,
    UNITS,
    X,
    grouped,
    hierarchical,
    improper,
    normal,
    normal_posterior,
    scaled,
)

# --- what is refused -----------------------------------------------------------------


def two_sites(x):
    with handlers.scale(scale=2.0):
        numpyro.sample("w", dist.Normal(0.0, 1.0))
    normal(x)


def learned(x):
    loc = numpyro.param("loc", 0.0)
    z = numpyro.sample("z", dist.Normal(loc, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def unobserved(x):
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def broadcasting(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0).expand([3]), obs=x[:, None])


def factor_of(value):
    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("x", jnp.where(z > 0, value, 0.0))

    return model


NORMAL = dist.Normal(0.0, 1.0)


def guide_of(name="z", distribution=NORMAL, scale=1.0):
    def guide(x):
        with handlers.scale(scale=scale):
            numpyro.sample(name, distribution)

    return guide


def learned_guide(x):
    loc, scale = numpyro.param("loc", 0.0), numpyro.param("scale", 1.0)
    numpyro.sample("z", dist.Normal(loc, scale))


def guide_of_units(x):
    with numpyro.plate("units", len(x)):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def dependent(mean):
    def model(x):
        with numpyro.plate("units", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(mean(z), 1.0), obs=x)

    return model


def summed(x):
    with numpyro.plate("units", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x[0])


NO_DRAWS, NO_DENSITY = "whose prior can be drawn from", "the density that it states"
DEPENDENT = "must make units independent"
GROUPED = {"model": grouped, "unit_plate": "units"}
SHARED = {**GROUPED, "share_proposals": True}


def test_bad_input(key):
    """Models, guides and plates when run, options at once."""
    fitted = AutoDelta(normal)
    handlers.seed(fitted, key)(X)
    two = dist.Normal(np.zeros(2))
    outside = guide_of(distribution=dist.Normal(LOCS).to_event(1))
    centred = dependent(lambda z: z - z.mean())
    at_point = {"guide": fitted, "params": {"z_auto_loc": jnp.array(0.3)}}
    for options, message, *args in (
        ({"unit_plate": "groups"}, "got 'groups'; its plates are 'data'"),
        ({"model": unobserved}, "observed site"),
        ({"model": improper}, NO_DRAWS),
        ({"model": scaled}, NO_DRAWS),
        ({"model": broadcasting}, "which would broadcast"),
        ({"model": factor_of(jnp.nan)}, "finite or -inf, got nan"),
        ({"model": factor_of(jnp.inf)}, "finite or -inf, got inf"),
        ({"model": learned}, "of the model, and misses 'loc'"),
        ({"guide": guide_of("w")}, r"which are \['z'\], got 'w'"),
        (
            {"guide": guide_of(distribution=two)},
            r"shape \(\) that the model .* got \(2,\)",
        ),
        ({"guide": AutoNormal(normal)}, "must have been fitted"),
        ({"guide": learned_guide, "params": {"loc": 0.1}}, "guide, and misses 'scale'"),
        ({"guide": guide_of(scale=2.0)}, NO_DENSITY),
        ({"guide": guide_of(distribution=dist.Normal().mask(False))}, NO_DENSITY),
        ({"guide": guide_of(distribution=dist.Delta(0.3))}, "got a Delta at 'z'"),
        (at_point, "got a Delta at 'z'"),
        ({"model": two_sites, "guide": guide_of()}, r"that draws them; got \['w'\]"),
        (SHARED, "a prior with parameters for each unit", UNITS, LOCS),
        ({**SHARED, "guide": guide_of_units}, "got a guide", UNITS),
        ({**GROUPED, "guide": outside}, "guide must draw within the plate", UNITS),
        ({**GROUPED, "model": hierarchical}, "got outside it: 'loc'", UNITS),
        ({**GROUPED, "model": centred}, DEPENDENT, UNITS[:, 0]),
        ({**GROUPED, "model": summed}, DEPENDENT, UNITS[:, 0]),
    ):
        options = {"model": normal, "num_samples": 10, **options}
        with pytest.raises(ValueError, match=message):
            ImportanceSampling(**options).run(key, *(args or [X]))
    for options, error, message in (
        ({"num_samples": 0}, ValueError, "num_samples must be a positive"),
        ({"num_samples": 10.0}, TypeError, "num_samples must be a positive"),
        ({"chunk_size": -1}, ValueError, "chunk_size must be a positive"),
        ({"share_proposals": True}, ValueError, "share_proposals=True needs"),
        ({"unit_plate": 3}, TypeError, "unit_plate must be the name"),
        ({"guide": 3}, TypeError, "guide must be a function"),
        ({"model": None}, TypeError, "model must be a function"),
    ):
        with pytest.raises(error, match=message):
            ImportanceSampling(**{"model": normal, **options})
    with pytest.raises(TypeError, match="rng_key must be one random key"):
        ImportanceSampling(normal).run(0, X)


def test_params_are_those_of_the_fit_and_never_stale(key):
    """Of a guide, and of a model."""
    guide = AutoNormal(normal)
    handlers.seed(guide, key)(X)
    mean, scale = normal_posterior(X, 3)
    params = {"z_auto_loc": jnp.array(mean), "z_auto_scale": jnp.array(scale)}
    sampler = ImportanceSampling(normal, guide, params=params, num_samples=400)
    np.testing.assert_allclose(sampler.run(key, X).ess, 400, rtol=1e-4)
    sampler.params = {**params, "z_auto_loc": jnp.array(mean + 1.0)}
    assert sampler.run(key, X).ess < 200
    sampler = ImportanceSampling(learned, params={"loc": 40.0}, num_samples=50)
    assert np.all(sampler.run(key, X).samples["z"] > 30)


def test_draws_at_an_end_of_the_support_are_moved_within(key):
    # In float32, about one draw in two rounds to an end.
    def model():
        z = numpyro.sample("z", dist.Beta(0.02, 0.02))
        numpyro.factor("x", jnp.log(z) + jnp.log1p(-z))

    result = ImportanceSampling(model, num_samples=500).run(key)
    z = np.asarray(result.samples["z"])
    assert np.all((z > 0) & (z < 1))
    assert np.all(np.isfinite(result.log_weights))


# --- independence of units -----------------------------------------------------------


def test_independence_is_looked_for_once(key):
    """Later data sets cost no more runs than there are particles."""
    gone = []

    def units(x):
        with numpyro.plate("units", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            jax.debug.callback(lambda z: gone.append(z.shape), z)
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    sampler = ImportanceSampling(units, num_samples=8, unit_plate="units")
    first = sampler.run(key, X)
    jax.effects_barrier()
    gone.clear()
    second = sampler.run(key, X + 1.0)
    jax.effects_barrier()
    assert gone == [(1,)] * 8
    z = np.asarray(first.samples["z"])
    np.testing.assert_array_equal(second.samples["z"], z)
    expected = dist.Normal(z, 1.0).log_prob(X + 1.0)
    assert_close(second.log_weights, np.asarray(expected), rtol=(1e-5, 1e-12))


def test_models_that_do_not_treat_units_alone(key):
    """With another number of them than at first, or with one value for all."""
    paired = dependent(lambda z: z[::-1] if len(z) == 4 else z)
    sampler = ImportanceSampling(paired, num_samples=10, unit_plate="units")
    sampler.run(key, X)
    with pytest.raises(ValueError, match=DEPENDENT):
        sampler.run(key, np.zeros(4))
    of_three = {"model": dependent(lambda z: z.reshape(3)), "unit_plate": "units"}
    with pytest.raises(TypeError) as error:
        ImportanceSampling(**of_three, num_samples=10).run(key, X)
    assert "share_proposals=False" in error.value.__notes__[0]
    sampler = ImportanceSampling(**of_three, num_samples=10, share_proposals=False)
    result = sampler.run(key, X)
    assert result.log_weights.shape == result.samples["z"].shape == (10, 3)
