"""The ready model: its draws, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_kaem.bases import RBF
from numpyro_kaem.distributions import AutoregressiveKAEMPrior
from numpyro_kaem.distributions.autoregressive import MaskedConditioner
from numpyro_kaem.distributions.deep import DeepEnergyPrior
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    NormalLikelihood,
)
from tests.helpers import assert_close
from tests.models.cases import Decoder, X, linear_model, simple, trace_of


@pytest.fixture(scope="module")
def linear():
    return linear_model()


# --- draws ---------------------------------------------------------------------------


def test_draws_follow_the_model(linear, key):
    x, z = linear.sample(key, 4000), linear.latents(key, 4000)
    assert (x.shape, z.shape) == ((4000,), (4000, 1))
    u = np.asarray(jax.jit(linear.prior.cdf)(z)[:, 0], float)
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    # With one key, data and latents belong together.
    noise = (np.asarray(x, float) - 1.5 * np.asarray(z[:, 0], float) - 0.3) / 0.4
    assert stats.kstest(noise, "norm").pvalue > 1e-4


def test_one_compiled_pass_for_all_draws():
    num_runs = []

    def decoder(z):
        num_runs.append(z.shape)
        return z

    model = KAEM(simple(2), decoder, NormalLikelihood())
    num_runs.clear()
    for seed in range(3):
        assert model.sample(jax.random.key(seed), 7).shape == (7, 2)
    assert num_runs == [(7, 2)]


def loops(jaxpr):
    """Lengths of the loops, infinite where data decide; random bits are one step."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            found.append(np.inf)
        if equation.primitive.name == "scan":
            found.append(equation.params["length"])
        is_program = lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")  # noqa: E731
        for inner in jax.tree.leaves(equation.params, is_leaf=is_program):
            if is_program(inner):
                found += loops(getattr(inner, "jaxpr", inner))
    return found


def autoregressive():
    basis = RBF(-1.0, 1.0, 6)
    conditioner = MaskedConditioner(jax.random.key(0), 4, basis.num_features, width=8)
    return AutoregressiveKAEMPrior(basis, conditioner, dist.Normal(0.2, 0.8))


def mixture():
    mixing = dist.Categorical(logits=jnp.zeros(3))
    return dist.MixtureSameFamily(mixing, simple(3, 4).to_event(1))


def program_of_draws(prior, joint, key):
    decoder = Decoder(prior.shape()[0], (3,))
    model = KAEM(prior, decoder, NormalLikelihood(), joint=joint)
    return jax.make_jaxpr(lambda key: model.sample(key, 10))(key).jaxpr


def test_draws_take_a_fixed_number_of_steps(key):
    """Loops are bisections, and one over the four dimensions of the chain."""
    for prior, joint in (
        (simple(4), None),
        (mixture(), None),
        (simple(5, 2), "kart"),
        (autoregressive(), None),
    ):
        assert max(loops(program_of_draws(prior, joint, key)), default=0) <= 10
    # Loops are seen where there are some.
    deep = DeepEnergyPrior.init(key, 4, width=4)
    assert 60 in loops(program_of_draws(deep, None, key))
    search = jax.jit(lambda x: jax.lax.while_loop(lambda y: y < 9, jnp.exp, x))
    assert loops(jax.make_jaxpr(search)(1.0).jaxpr) == [np.inf]


def test_decode():
    z = jnp.ones((2, 3, 2))
    categorical = KAEM(simple(2), Decoder(2, (3, 4)), CategoricalLikelihood())
    probabilities = categorical.decode(z)
    assert probabilities.shape == (2, 3, 3, 4)
    assert_close(probabilities.sum(-1), np.ones((2, 3, 3)), rtol=1e-5)
    binary = KAEM(simple(2), Decoder(2, (3, 4)), BernoulliLikelihood())
    expected = jax.nn.sigmoid(binary.decoder(z))
    assert_close(binary.decode(z), expected, rtol=1e-5)
    data = binary.conditional(z)
    assert (data.batch_shape, data.event_shape) == ((2, 3), (3, 4))
    with pytest.raises(ValueError, match=r"z must have shape \(..., 2\), got \(2, 3\)"):
        binary.decode(jnp.ones((2, 3)))


# --- errors --------------------------------------------------------------------------


def test_bad_data(linear):
    for x, error, match in (
        (np.zeros((5, 1)), ValueError, r"x must have shape \(num_data,\).*\(5, 1\)"),
        (np.zeros(()), ValueError, r"x must have shape \(num_data,\).*got \(\)"),
        (np.zeros(0), ValueError, "x must have at least one datum"),
        ([0.0, np.nan], ValueError, r"x must be finite, got nan at index \(1,\)"),
        ([np.inf], ValueError, "x must be finite, got inf"),
        (["a"], TypeError, "x must be an array of numbers"),
        (([[1.0]], [1]), ValueError, "one array, got a tuple of 2 parts that differ"),
    ):
        with pytest.raises(error, match=match):
            trace_of(linear, x)
        with pytest.raises(error, match=match):
            linear.check_data(x)
    # Traced data have their shape checked.
    check = jax.jit(lambda x: linear.check_data(x))
    assert check(np.array([np.nan])).shape == (1,)
    with pytest.raises(ValueError, match=r"got \(3, 1\)"):
        check(np.zeros((3, 1)))


def test_data_outside_of_the_support():
    binary = KAEM(simple(2), Decoder(2, (3,)), BernoulliLikelihood())
    categorical = KAEM(simple(2), Decoder(2, (3, 4)), CategoricalLikelihood())
    assert categorical.event_shape == (3,)
    binary.check_data(np.array([[0, 1, 1]]))
    binary.check_data(np.array([[True, False, True]]))
    categorical.check_data(np.array([[0, 3, 1]]))
    outside = r"x must lie in the support of BernoulliLogits.*got 0.5 at index \(0, 1\)"
    above = r"CategoricalLogits.*got 4 at index \(0, 1\)"
    classes = "x must be integers, the classes of Categ"
    for model, x, error, match in (
        (binary, [[0, 0.5, 1]], ValueError, outside),
        (binary, [0, 1, 1], ValueError, r"For a single datum pass x\[None\]"),
        (categorical, [[0, 4, 1]], ValueError, above),
        (categorical, [[0.0, 1.0, 1.0]], TypeError, classes),
    ):
        with pytest.raises(error, match=match):
            model.check_data(np.array(x))


def test_bad_counts(linear, key):
    for kwargs, error, match in (
        ({"num_data": 4}, ValueError, "num_data must be the number of data, 3, got 4"),
        ({"num_data": 0}, ValueError, "num_data must be a positive integer"),
        ({"num_data": 1.5}, TypeError, "num_data must be a positive integer"),
        ({"subsample_size": 4}, ValueError, "subsample_size must be at most.*3, got 4"),
        ({"subsample_size": 0}, ValueError, "subsample_size must be a positive"),
    ):
        with pytest.raises(error, match=match):
            trace_of(linear, X, **kwargs)
    for count, error in ((0, ValueError), (2.5, TypeError)):
        for method in (linear.sample, linear.latents):
            with pytest.raises(error, match="num_samples must be"):
                method(key, count)


def test_bad_parts():
    noisy = lambda z: dist.Normal(z, 1.0)  # noqa: E731
    table = dist.Normal(jnp.zeros((3, 1)), 1.0)
    kart = {"joint": "kart"}
    for args, kwargs, error, match in (
        ((3, jnp.tanh), {}, TypeError, "prior must be a continuous NumPyro"),
        ((dist.Poisson(1.0), jnp.tanh), {}, TypeError, "got Poisson"),
        ((simple(2), 3), {}, TypeError, "decoder must be an Equinox module"),
        ((simple(2), jnp.tanh, 3), {}, TypeError, "likelihood must be such as"),
        ((simple(), jnp.tanh), {}, ValueError, r"shape \(Q,\) or \(Q, P\).*got \(\)"),
        ((simple(1, 1, 2), jnp.tanh), {}, ValueError, r"got \(1, 1, 2\)"),
        ((simple(2), jnp.tanh), {"joint": "a"}, ValueError, "None or 'kart', got 'a'"),
        (
            *((simple(5, 3), jnp.tanh), kart, ValueError),
            r"shape \(2 \* P \+ 1, P\), .*got \(5, 3\)",
        ),
        ((table, jnp.tanh), kart, TypeError, "with joint='kart', got Normal"),
        ((simple(2), jnp.tanh), {}, TypeError, "decoder must return a NumPyro distrib"),
        (
            (simple(2), lambda z: noisy(z).to_event(1), NormalLikelihood()),
            *({}, TypeError, "likelihood must be None where the decoder"),
        ),
        ((simple(2), jnp.tanh, jnp.tanh), {}, TypeError, "likelihood must return"),
        ((simple(2), noisy), {}, ValueError, r"got batch shape \(3, 2\).*use to_event"),
        ((simple(2), jnp.sum, noisy), {}, ValueError, r"got batch shape \(\)"),
        (
            (simple(2), Decoder(3, (4,)), NormalLikelihood()),
            *({}, ValueError, r"decoder must take latents of shape \(\*batch, 2\)"),
        ),
    ):
        with pytest.raises(error, match=match):
            KAEM(*args, **kwargs)
