"""Guides that state no density, draws at the ends of supports, and what is checked."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from numpyro_kaem.infer import ImportanceSampling, target
from tests.helpers import assert_close

X = jnp.array([0.4, 1.9, -0.3])


def model(x):
    z = numpyro.sample("z", dist.Normal(0.5, 1.3))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(z, 0.8), obs=x)


def two_sites(x):
    with handlers.scale(scale=2.0):
        numpyro.sample("w", dist.Normal(0.0, 1.0))
    model(x)


def learned(x):
    loc = numpyro.param("loc", 0.0)
    z = numpyro.sample("z", dist.Normal(loc, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


# --- guides --------------------------------------------------------------------------


def learned_guide(x):
    loc, scale = numpyro.param("loc", 0.0), numpyro.param("scale", 1.0)
    numpyro.sample("z", dist.Normal(loc, scale))


def scaled_guide(x):
    with handlers.scale(scale=2.0):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def masked_guide(x):
    numpyro.sample("z", dist.Normal(0.0, 1.0).mask(False))


def point_guide(x):
    numpyro.sample("z", dist.Delta(0.3))


def partial_guide(x):
    numpyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "params", "message"),
    [
        (model, learned_guide, {"loc": 0.1}, "of the guide, and misses 'scale'"),
        (learned, None, None, "of the model, and misses 'loc'"),
        (model, scaled_guide, None, "the density that it states"),
        (model, masked_guide, None, "the density that it states"),
        (model, point_guide, None, "got a Delta at 'z'"),
        (two_sites, partial_guide, None, r"guide that draws them; got \['w'\]"),
    ],
)
def test_refused(key, model, guide, params, message):
    sampler = ImportanceSampling(model, guide, params=params, num_samples=10)
    with pytest.raises(ValueError, match=message):
        sampler.run(key, X)


def test_guide_at_points_is_refused(key):
    guide = AutoDelta(model)
    handlers.seed(guide, key)(X)
    params = {"z_auto_loc": jnp.array(0.3)}
    with pytest.raises(ValueError, match="got a Delta at 'z'"):
        ImportanceSampling(model, guide, params=params).run(key, X)


def test_params_are_those_of_the_fit_and_never_stale(key):
    guide = AutoNormal(model)
    handlers.seed(guide, key)(X)
    # The posterior in closed form.
    precision = 3 / 0.8**2 + 1 / 1.3**2
    mean = (float(X.sum()) / 0.8**2 + 0.5 / 1.3**2) / precision
    params = {
        "z_auto_loc": jnp.array(mean),
        "z_auto_scale": jnp.array(precision**-0.5),
    }
    sampler = ImportanceSampling(model, guide, params=params, num_samples=400)
    np.testing.assert_allclose(sampler.run(key, X).ess, 400, rtol=1e-4)
    sampler.params = {**params, "z_auto_loc": jnp.array(mean + 1.0)}
    assert sampler.run(key, X).ess < 200


def test_parameters_of_the_model(key):
    sampler = ImportanceSampling(learned, params={"loc": 40.0}, num_samples=50)
    assert np.all(sampler.run(key, X).samples["z"] > 30)


# --- draws at the ends of supports ---------------------------------------------------


def test_draws_at_an_end_of_the_support_are_moved_within(key):
    # In float32, about one draw in two rounds to an end.
    def model():
        z = numpyro.sample("z", dist.Beta(0.02, 0.02))
        numpyro.factor("x", jnp.log(z) + jnp.log1p(-z))

    result = ImportanceSampling(model, num_samples=500).run(key)
    z = np.asarray(result.samples["z"])
    assert np.all((z > 0) & (z < 1))
    assert np.all(np.isfinite(result.log_weights))


@pytest.mark.parametrize("end", [0.0, -0.0])
def test_zero_is_moved_to_a_number_that_is_not_flushed(end):
    # XLA takes numbers below the smallest normal one for zero.
    for support, sign in (
        (dist.constraints.positive, 1),
        (dist.constraints.interval(-1.0, 0.0), -1),
    ):
        value = jax.jit(lambda x, s=support: jnp.log(jnp.abs(target.inside(s, x))))
        assert np.isfinite(value(jnp.array(end)))
        assert np.sign(target.inside(support, jnp.array(end))) == sign


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


def test_dependence_is_found_with_another_number_of_units(key):
    def paired(x):
        with numpyro.plate("units", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z[::-1] if len(x) == 4 else z
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    sampler = ImportanceSampling(paired, num_samples=10, unit_plate="units")
    sampler.run(key, X)
    with pytest.raises(ValueError, match="must make units independent"):
        sampler.run(key, jnp.zeros(4))
