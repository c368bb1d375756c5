"""Values and gradients of the objectives against a likelihood that is integrated."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI
from numpyro.optim import Adam

from numpyro_kaem.objectives import (
    AmortisedELBO,
    ImportanceMLE,
    LangevinMLE,
    ThermodynamicMLE,
)
from tests.helpers import with_long
from tests.objectives.closed_model import (
    X,
    finite_difference_gradient,
    initial_params,
    log_likelihood,
    model,
)

NUM_BATCHES = 20


@pytest.fixture(scope="module")
def params():
    return initial_params()


@pytest.fixture(scope="module")
def exact(params):
    """Mean log likelihood of a unit, and its gradient by finite differences."""
    # Simpson's rule over float32 values carries 1e-7 or so.
    step = 1e-2 if jnp.zeros(()).dtype == jnp.float32 else 1e-4
    return log_likelihood(params).mean(), finite_difference_gradient(params, step)


def repeated(objective, params, num_steps, *, burn_in=0, subsample_size=None):
    """Mean log likelihood and gradient estimated over and over, parameters fixed."""
    guide = objective.guide(model)
    if isinstance(objective, ImportanceMLE):
        # It starts from nothing, and so nothing is compiled for it.
        start = {objective.memory_name: {"ess": jnp.zeros(())}}
    else:
        svi = SVI(model, guide, Adam(0.1), loss=objective)
        start = jax.jit(svi.init)(jax.random.key(1), X).mutable_state

    def loss(params, memory, key):
        result = objective.loss_with_mutable_state(
            key, {**params, **memory}, model, guide, X, subsample_size=subsample_size
        )
        return -result["loss"] / len(X), result["mutable_state"]

    def body(memory, key):
        (value, memory), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, memory, key
        )
        return memory, (value, ravel_pytree(gradient)[0])

    keys = jax.random.split(jax.random.key(2), num_steps)
    memory, kept = jax.jit(lambda m: jax.lax.scan(body, m, keys))(start)
    value, gradient = (np.asarray(x, np.float64)[burn_in:] for x in kept)
    return value, gradient, memory


def mean_and_error(series):
    """Mean and its standard error, by means of batches: the series is correlated."""
    length = len(series) // NUM_BATCHES * NUM_BATCHES
    batches = series[:length].reshape(NUM_BATCHES, -1, *series.shape[1:]).mean(1)
    return series.mean(0), batches.std(0, ddof=1) / np.sqrt(NUM_BATCHES)


def assert_gradient(gradient, exact, rounding=2e-4):
    """Every parameter's, within what twenty batch means say at p = 1e-4 or so."""
    mean, error = mean_and_error(gradient)
    np.testing.assert_array_less(np.abs(mean - exact), 5 * error + rounding)


# --- against the likelihood ----------------------------------------------------------

ANEW = {"persistent": False, "step_size": 1.0}
# Objective; numbers of steps and of units of a batch; allowed rounding and bias.
ROWS = {
    "a subsample": (ImportanceMLE(600), 600, 2, 1e-2),
    "chunks": (ImportanceMLE(600, chunk_size=100), 100, None, 1e-2),
    "own proposals": (ImportanceMLE(600, share_proposals=False), 100, None, 1e-2),
    "resampled": (
        ImportanceMLE(600, resampling="systematic", ess_threshold=1.0),
        *(100, None, 1e-2),
    ),
    "persistent chains": (LangevinMLE(5, num_chains=4), 6000, None, 2e-4),
    "chains of a subsample": (LangevinMLE(10, num_chains=4), 800, 2, 1e-2),
    "short runs": (LangevinMLE(60, num_chains=4, **ANEW), 400, None, 2e-2),
    "populations that start anew": (
        ThermodynamicMLE(
            4, num_sweeps=30, num_local_steps=2, power=lambda step: 2.0, **ANEW
        ),
        *(150, None, 5e-2),
    ),
}


@pytest.mark.float64
@pytest.mark.parametrize("name", with_long(ROWS, "a subsample"))
def test_objectives_climb_the_likelihood(params, exact, name):
    objective, num_steps, subsample_size, rounding = ROWS[name]
    burn_in = num_steps // 4 if "chains" in name else 0
    value, gradient, memory = repeated(
        objective, params, num_steps, burn_in=burn_in, subsample_size=subsample_size
    )
    # The bias of importance sampling falls as one over the number of particles.
    assert_gradient(gradient, exact[1], rounding)
    memory = memory["objective$memory"]
    if isinstance(objective, ImportanceMLE):
        mean, error = mean_and_error(value)
        assert abs(mean - exact[0]) < 5 * error + 1e-2
        assert 1 < float(memory["ess"]) < 600
    elif name == "persistent chains":
        assert memory["position"].shape == (3, 4, 1)
        assert 0.4 < float(memory["acceptance"]) < 0.9


# --- importance sampling -------------------------------------------------------------


@pytest.mark.long
def test_importance_bias_falls_as_the_number_of_particles_grows(params, exact):
    _, expected = exact
    means, errors = [], []
    for num_particles, num_steps in ((16, 12_000), (64, 6000), (256, 2000)):
        objective = ImportanceMLE(num_particles)
        _, gradient, _ = repeated(objective, params, num_steps)
        mean, error = mean_and_error(gradient)
        means.append(mean)
        errors.append(error)
    bias = np.array(means) - expected
    # Where the bias of sixteen particles stands out, it falls as their number.
    large = np.abs(bias[0]) > 20 * errors[0]
    assert large.sum() >= 3
    for level, factor in ((1, 4), (2, 16)):
        share = bias[level, large] * factor / bias[0, large]
        allowed = 0.35 + 4 * factor * errors[level][large] / np.abs(bias[0, large])
        np.testing.assert_array_less(np.abs(share - 1), allowed)
    # Richardson's extrapolation to infinitely many.
    limit = (4 * means[2] - means[1]) / 3
    error = np.hypot(4 * errors[2], errors[1]) / 3
    np.testing.assert_array_less(np.abs(limit - expected), 4 * error + 2e-4)


def normal_model(x, noise=0.5, broken=False):
    """Cheap to compile, and with a likelihood that may be no number for the first."""
    loc = numpyro.param("loc", 0.0)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        z = jnp.where(broken & (jnp.arange(len(x)) == 0), jnp.nan, z)
        numpyro.sample("x", dist.Normal(z, noise, validate_args=False), obs=x)


def test_resampling_is_left_out_above_its_threshold():
    """A threshold that is never reached leaves the weights as they are."""

    @jax.jit
    def gradients(loc):
        def loss(loc, objective):
            key, given = jax.random.key(2), {"loc": loc}
            return objective.loss(key, given, normal_model, None, X[:, 0])

        rarely = ImportanceMLE(60, resampling="systematic", ess_threshold=1e-3)
        objectives = (ImportanceMLE(60), rarely)
        return [jax.value_and_grad(loss)(loc, one) for one in objectives]

    plain, rare = gradients(0.3)
    np.testing.assert_allclose(rare, plain, rtol=1e-4, atol=1e-5)


def test_a_likelihood_that_is_not_a_number_is_told():
    """The loss says so, and a unit without weights has no effective draws."""
    objective = ImportanceMLE(20)
    name = objective.memory_name
    given = {name: {"ess": jnp.zeros(())}}
    done = objective.loss_with_mutable_state(
        jax.random.key(0), given, normal_model, None, X[:, 0], noise=100.0, broken=True
    )
    assert np.isnan(done["loss"])
    # All draws are worth the same to the two others.
    np.testing.assert_allclose(done["mutable_state"][name]["ess"], 40 / 3, rtol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("chunk_size", [None, 7], ids=["own", "with a rest"])
def test_importance_in_chunks_is_as_at_once(params, monkeypatch, chunk_size):
    whole = repeated(ImportanceMLE(60, chunk_size=60), params, 2)[:2]
    # Room for a third of the particles.
    monkeypatch.setattr("numpyro_kaem.objectives.importance._CHUNK", 20 * X.size)
    chunks = repeated(ImportanceMLE(60, chunk_size=chunk_size), params, 2)[:2]
    for part, expected in zip(chunks, whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-5)


# --- chains --------------------------------------------------------------------------


@pytest.mark.long
def test_uncorrected_chains_are_biased_and_nearly_right(params, exact):
    objective = LangevinMLE(5, num_chains=4, local_move="ula", step_size=0.2)
    _, gradient, memory = repeated(objective, params, 6000, burn_in=1500)
    mean, _ = mean_and_error(gradient)
    assert np.abs(mean - exact[1]).max() < 0.1
    sizes = np.asarray(memory["objective$memory"]["log_step_size"])
    np.testing.assert_allclose(sizes, np.log(0.2), rtol=1e-6)


@pytest.mark.long
def test_populations(params, exact):
    objective = ThermodynamicMLE(6, num_sweeps=10)
    value, gradient, memory = repeated(objective, params, 1200, burn_in=400)
    assert_gradient(gradient, exact[1])
    mean, error = mean_and_error(value)
    # Ten sweeps bias the steppingstone's logarithm.
    assert abs(mean - exact[0]) < 5 * error + 0.05
    memory = memory["objective$memory"]
    np.testing.assert_allclose(memory["temperatures"], (np.arange(6) / 5) ** 3)
    assert np.all((memory["rejection"] > 0) & (memory["rejection"] < 0.9))


@pytest.mark.long
def test_a_schedule_moves_the_ladder(params):
    objective = ThermodynamicMLE(
        4, num_sweeps=1, num_local_steps=1, power=lambda step: jnp.where(step < 5, 1, 3)
    )
    *_, memory = repeated(objective, params, 6)
    ladder = memory["objective$memory"]["temperatures"]
    np.testing.assert_allclose(ladder, (np.arange(4) / 3) ** 3, rtol=1e-5)


# --- an encoder ----------------------------------------------------------------------


class Encoder(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(self.linear)(x)


@pytest.mark.float64
def test_bound_and_its_gradient(params, exact):
    """At a fitted encoder the bound is near the likelihood; its gradient is its own."""
    encoder = Encoder(eqx.nn.Linear(2, 2, key=jax.random.key(3)))
    objective = AmortisedELBO(encoder, num_particles=20)
    params, bound = repeated_bound(objective, params, 400)
    value, gradient = bound(params)
    mean, error = mean_and_error(value)
    assert mean < exact[0] + 4 * error
    # Finite differences of the bound itself, at the same keys.
    flat, unravel = ravel_pytree({name: params[name] for name in initial_params()})
    step = 1e-2
    for i in (0, 9):
        ends = [
            bound({**params, **unravel(flat.at[i].add(s))})[0].mean()
            for s in (step, -step)
        ]
        difference = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(
            gradient[:, i].mean(), difference, rtol=2e-3, atol=2e-3
        )


def repeated_bound(objective, params, num_steps):
    """All parameters, and a function of them: values of the bound and gradients."""
    guide = objective.guide(model)
    svi = SVI(model, guide, Adam(0.1), loss=objective)
    params = {**svi.get_params(jax.jit(svi.init)(jax.random.key(1), X)), **params}

    @jax.jit
    def run(params):
        def one(key):
            def value(p):
                return -objective.loss(key, p, model, guide, X) / len(X)

            value, gradient = jax.value_and_grad(value)(params)
            known = {name: gradient[name] for name in initial_params()}
            return value, ravel_pytree(known)[0]

        return jax.lax.map(one, jax.random.split(jax.random.key(2), num_steps))

    return params, lambda params: [np.asarray(x, np.float64) for x in run(params)]
