"""What holds for every decoder: shapes, transformations, leaves, use in NumPyro."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpy.testing import assert_array_equal
from numpyro import handlers
from numpyro.contrib.module import eqx_module, random_eqx_module
from numpyro.infer import SVI, Trace_ELBO

from numpyro_kaem import RBF, BSpline, parameter_priors
from numpyro_kaem.decoders import ConvDecoder, KANDecoder, SequenceDecoder
from tests.helpers import assert_close

NUM_LATENTS = 3
TOKENS = jnp.array([2, 0, 3, 1])


class Logits(eqx.Module):
    """A sequence decoder as a function of latents alone."""

    decoder: SequenceDecoder

    def __call__(self, z):
        return self.decoder.logits(z, TOKENS)


CASES = {
    "kan": lambda key: KANDecoder(
        key, NUM_LATENTS, (2, 4), hidden=(6,), layer_norm=True, output_activation="tanh"
    ),
    "kan-outer": lambda key: KANDecoder(
        key, NUM_LATENTS, (2, 4), hidden=(), basis=BSpline([-4.0, 0.0, 1.0], 5.0, 6)
    ),
    "conv": lambda key: ConvDecoder(
        key, NUM_LATENTS, (2, 4), channels=(4, 3), output_activation="sigmoid"
    ),
    "sequence": lambda key: Logits(
        SequenceDecoder(key, NUM_LATENTS, num_tokens=4, length=4, width=8, num_heads=2)
    ),
}
SHAPES = {"sequence": (4, 4)}
NAMES = {
    "kan": [
        f"layers[{i}].{name}"
        for i in range(2)
        for name in ("basis.bandwidth", "coefficients", "base_weight")
    ],
    "kan-outer": ["layers[0].coefficients", "layers[0].base_weight"],
    "conv": [f"{kind}[{i}]" for kind in ("weights", "biases") for i in range(3)],
    "sequence": [
        f"decoder.{name}"
        for name in """
            token_embedding position_embedding latent_embedding.weight
            blocks[0].attention_norm.weight blocks[0].attention_norm.bias
            blocks[0].query_key_value.weight blocks[0].attention_output.weight
            blocks[0].attention_output.bias blocks[0].perceptron_norm.weight
            blocks[0].perceptron_norm.bias blocks[0].perceptron_input.weight
            blocks[0].perceptron_input.bias blocks[0].perceptron_output.weight
            blocks[0].perceptron_output.bias norm.weight norm.bias head.weight head.bias
        """.split()
    ],
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param, CASES[request.param](jax.random.key(0))


evaluate = jax.jit(lambda decoder, z: decoder(z))


def latents(*batch):
    return jnp.asarray(np.random.default_rng(4).normal(size=(*batch, NUM_LATENTS)))


def test_batches(case):
    name, decoder = case
    shape, z = SHAPES.get(name, (2, 4)), latents(2, 3)
    rounding = dict(rtol=(1e-4, 1e-10), atol=(1e-5, 1e-12))
    whole = evaluate(decoder, z)
    assert whole.shape == (2, 3, *shape)
    assert whole.dtype == z.dtype
    row, single = evaluate(decoder, z[0]), evaluate(decoder, z[1, 2])
    assert row.shape == (3, *shape)
    assert_close(row, whole[0], **rounding)
    assert single.shape == shape
    assert_close(single, whole[1, 2], **rounding)
    assert jax.eval_shape(decoder, z[:0]).shape == (0, 3, *shape)
    assert not np.allclose(whole[0, 0], whole[0, 1])
    integers = np.array([1, 0, -2])
    floats = integers.astype(z.dtype)
    assert_array_equal(evaluate(decoder, integers), evaluate(decoder, floats))
    for wrong in (np.zeros((3, 2)), np.asarray(1.0)):
        with pytest.raises(ValueError, match=r"z must have shape \(\.\.\., 3\)"):
            decoder(wrong)
    # Over latents, and over decoders too.
    other = CASES[name](jax.random.key(1))
    both = jax.tree.map(lambda *leaves: np.stack(leaves), decoder, other)
    mapped, values = jax.jit(
        lambda both, z: (jax.vmap(decoder)(z), jax.vmap(lambda f, z: f(z))(both, z))
    )(both, z)
    assert_close(mapped, whole, **rounding)
    assert_close(values[0], whole[0], **rounding)
    assert_close(values[1], evaluate(other, z[1]), **rounding)


def test_leaves(case):
    name, decoder = case
    leaves = jax.tree_util.tree_leaves_with_path(decoder)
    assert [jax.tree_util.keystr(path)[1:] for path, _ in leaves] == NAMES[name]
    default = jnp.result_type(float)
    assert all(isinstance(leaf, jax.Array) for _, leaf in leaves)
    assert all(leaf.dtype == default and not leaf.weak_type for _, leaf in leaves)
    same = CASES[name](jax.random.key(1))
    assert jax.tree.structure(same) == jax.tree.structure(decoder)
    assert hash(jax.tree.structure(same)) == hash(jax.tree.structure(decoder))
    again = CASES[name](jax.random.key(0))
    jax.tree.map(assert_array_equal, again, decoder)
    z = latents(3)
    assert not np.allclose(evaluate(same, z), evaluate(decoder, z))
    copy = pickle.loads(pickle.dumps(decoder))
    assert jax.tree.structure(copy) == jax.tree.structure(decoder)
    assert_array_equal(evaluate(copy, z), evaluate(decoder, z))


def test_gradient_reaches_every_parameter(case):
    name, decoder = case
    weights = jnp.asarray(
        np.random.default_rng(5).normal(size=SHAPES.get(name, (2, 4)))
    )

    def loss(decoder, z):
        return jnp.sum(weights * decoder(z) ** 2)

    gradients, by_latents = jax.jit(jax.grad(loss, argnums=(0, 1)))(decoder, latents(5))
    assert np.all(by_latents != 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path


def test_svi_reduces_the_loss(case):
    """Latents and decoder are fitted together to data of another decoder."""
    name, decoder = case
    data = evaluate(CASES[name](jax.random.key(7)), latents(3))

    def model(data):
        decode = eqx_module("decoder", decoder)
        with numpyro.plate("units", len(data)):
            prior = dist.Normal(0.0, 1.0).expand([NUM_LATENTS]).to_event(1)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(decode(z), 0.1).to_event(2), obs=data)

    def guide(data):
        loc = numpyro.param("loc", jnp.zeros((len(data), NUM_LATENTS)))
        with numpyro.plate("units", len(data)):
            numpyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    svi = SVI(model, guide, optax.adam(0.02), Trace_ELBO())
    result = jax.jit(lambda key: svi.run(key, 60, data, progress_bar=False))(
        jax.random.key(1)
    )
    assert np.mean(result.losses[-10:]) < 0.8 * np.mean(result.losses[:5])
    before = jax.tree.leaves(decoder)
    after = jax.tree.leaves(result.params["decoder$params"])
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        assert not np.allclose(old, new)


def test_random_module(case):
    """Parameters named as NumPyro names them, each with a prior."""
    name, decoder = case
    chosen = NAMES[name][-2:]
    priors = parameter_priors(decoder, {n: dist.Normal(2.0, 0.1) for n in chosen})

    def model(z):
        return random_eqx_module("decoder", decoder, priors)(z)

    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        value = model(latents(3))
    sampled = [site for site in trace if trace[site]["type"] == "sample"]
    assert sampled == [f"decoder/{n}" for n in chosen]
    for site in sampled:
        assert np.all(np.abs(trace[site]["value"] - 2.0) < 1.0)
    assert not np.allclose(value, evaluate(decoder, latents(3)))


@pytest.mark.parametrize("make", [KANDecoder, ConvDecoder])
def test_output_activations(key, make):
    options = {"hidden": (), "basis": RBF(-3.0, 3.0, 4)}
    if make is ConvDecoder:
        options = {"channels": (2,)}
    z = latents(3)[:, :2]
    plain = np.asarray(evaluate(make(key, 2, (2, 4), **options), z), float)
    for name, function in [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("softplus", lambda x: np.log1p(np.exp(x))),
    ]:
        active = make(key, 2, (2, 4), output_activation=name, **options)
        assert_close(evaluate(active, z), function(plain))
    match = "output_activation must be one of None, 'sigmoid', 'tanh', 'softplus', got "
    for name, error in [("exp", ValueError), (3, TypeError), (["tanh"], TypeError)]:
        with pytest.raises(error, match=match):
            make(key, 2, (2, 4), output_activation=name)


def test_number_of_latents(key):
    for make, options in [
        (KANDecoder, {"output_shape": 4}),
        (ConvDecoder, {"output_shape": (4, 4)}),
        (SequenceDecoder, {"num_tokens": 3, "length": 4}),
    ]:
        for wrong, error in [(0, ValueError), (2.0, TypeError), (True, TypeError)]:
            with pytest.raises(error, match="num_latents must be a positive integer"):
                make(key, wrong, **options)
