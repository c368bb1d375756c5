"""What is saved, by name; and what "the same" means for it."""

import json
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import transforms

import numpyro_kaem as kaem
from numpyro_kaem.distributions import TruncatedKAEM
from numpyro_kaem.files.container import describe_array, to_stored, write_arrays
from numpyro_kaem.files.kinds import Registry
from numpyro_kaem.files.saving import describe
from numpyro_kaem.references import ReferenceParameters
from tests.helpers import random_leaves


class Scale(eqx.Module):
    """A decoder that is not of the package."""

    weight: jax.Array
    powers: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, z):
        return jnp.concatenate([(self.weight * z) ** p for p in self.powers], -1)


def energy(*shape, low=-1.0, high=2.0, num_basis=5, base=None):
    rng = np.random.default_rng(sum(shape))
    coefficients = jnp.asarray(rng.normal(size=(*shape, num_basis)))
    weight = None if base is None else jnp.asarray(rng.normal(size=shape))
    basis = kaem.BSpline(low, high, num_basis)
    return kaem.Energy(basis, coefficients, weight, base or "silu")


def prior(*shape, reference=None):
    # Not by its constructor, so that no quadrature is compiled.
    parameters = None if reference is None else ReferenceParameters.of(reference)
    return kaem.KAEMPrior.tree_unflatten((2, False), (energy(*shape), parameters))


def autoregressive():
    conditioner = random_leaves(
        lambda key: kaem.MaskedConditioner(key, 3, 5, width=4, depth=1)
    )
    basis = kaem.BSpline([-1.0, -2.0, -1.5], [2.0, 1.0, 2.5], 5)
    reference = dist.StudentT(jnp.array([3.0, 4.0, 5.0]), 0.5, 1.0)
    return kaem.AutoregressiveKAEMPrior(basis, conditioner, reference, refinement=2)


def deep():
    start = kaem.DeepEnergyPrior.init(jax.random.key(0), 2, width=3, num_steps=7)
    return start.replace(start.network, jnp.array([0.5, 2.0]))


DECODERS = {
    "kan": lambda: random_leaves(
        lambda key: kaem.KANDecoder(
            key,
            2,
            (2, 3),
            hidden=(4,),
            basis=kaem.BSpline(-2.0, 2.0, 4),
            layer_norm=True,
        )
    ),
    "convolutional": lambda: random_leaves(
        lambda key: kaem.ConvDecoder(
            key, 2, (4, 4, 1), channels=(3, 2), output_activation="sigmoid"
        )
    ),
    "sequence": lambda: random_leaves(
        lambda key: kaem.SequenceDecoder(key, 2, 3, 4, width=8, num_heads=2)
    ),
}

DISTRIBUTIONS = {
    "prior": lambda: prior(3, reference=dist.Normal(jnp.array([0.1, 0.2, 0.3]), 0.7)),
    "without-reference": prior,
    "base-activation": lambda: kaem.KAEMPrior.tree_unflatten(
        (1, False), (energy(2, base="tanh"), None)
    ),
    "validated": lambda: kaem.KAEMPrior(energy(), validate_args=True),
    "derived-parameters": lambda: prior(reference=dist.BetaProportion(0.3, 2.7)),
    "truncated": lambda: prior(reference=dist.TruncatedNormal(0.1, 1.1, low=-2.0)),
    "transformed-reference": lambda: prior(
        reference=dist.TransformedDistribution(
            dist.Normal(0.3, 0.9),
            [transforms.AffineTransform(0.1, 2.0), transforms.ExpTransform()],
        )
    ),
    "mixture": lambda: kaem.KAEMMixture(jnp.array([0.3, -0.2]), prior(3, 2)),
    "atoms": lambda: kaem.PriorWithAtoms([0.0, 0.1], [0.3, 0.2], prior()),
    "cut": lambda: TruncatedKAEM(prior(3), jnp.array([-0.5, 0.1, 0.3]), 1.5),
    "cut-mixture": lambda: TruncatedKAEM(DISTRIBUTIONS["mixture"](), low=0.25),
    "mixture-of-products": lambda: dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.25, 0.75])), prior(2, 3).to_event(1)
    ),
    "mixture-by-logits": lambda: dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.array([0.25, 0.75])), prior(2)
    ),
    "expanded": lambda: prior().expand([2, 3]).to_event(1),
    "masked": lambda: prior(2).mask(jnp.array([True, False])),
    "autoregressive": autoregressive,
    "deep": deep,
    "tokens": lambda: kaem.TokenSequence(DECODERS["sequence"](), jnp.zeros((5, 2))),
    "uniform-base": lambda: prior(2).as_transformed(),
    "normal-base": lambda: prior(2).as_transformed("normal"),
    "multivariate": lambda: dist.MultivariateNormal(
        jnp.array([0.1, 0.2]), covariance_matrix=jnp.array([[2.0, 0.3], [0.3, 1.0]])
    ),
}

OTHERS = {
    "learned-noise": lambda: kaem.NormalLikelihood(0.3, learn_scale=True),
    "likelihoods": lambda: (
        kaem.NormalLikelihood(0.3),
        kaem.BernoulliLikelihood(),
        kaem.CategoricalLikelihood(),
    ),
    "layers": lambda: eqx.nn.Sequential(
        [
            eqx.nn.MLP(2, 3, 4, 1, activation=jnp.tanh, key=jax.random.key(0)),
            eqx.nn.Lambda(jax.nn.softplus),
            eqx.nn.LayerNorm(3),
        ]
    ),
    "model": lambda: kaem.KAEM(
        prior(2, reference=dist.Normal(0.0, 1.0)),
        DECODERS["kan"](),
        kaem.NormalLikelihood(0.3, learn_scale=True),
        learn_reference=True,
    ),
    "kart": lambda: kaem.KAEM(
        prior(5, 2), eqx.nn.Lambda(jnp.tanh), kaem.BernoulliLikelihood(), joint="kart"
    ),
    "filtered": lambda: eqx.filter(deep().network, eqx.is_inexact_array),
    "batch-of-layers": lambda: eqx.filter_vmap(
        lambda key: kaem.KANLayer.init(key, kaem.RBF(-1.0, 1.0, 3), 2, 2)
    )(jax.random.split(jax.random.key(1), 3)),
    "gradient": lambda: jax.tree.map(lambda x: -x, kaem.RBF(-1.0, 1.0, 3)),
}


def same(one, other):
    """Whether two trees have the same classes, static values and bits.

    Then every compiled function of them is the same too.
    """
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(bits(a) == bits(b) for a, b in leaves) and (
        described(one) == described(other)
    )


def bits(leaf):
    if not hasattr(leaf, "dtype"):
        return type(leaf), repr(leaf)
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    # In the order of bytes of this machine.
    numbers = array.astype(array.dtype.name).tobytes()
    return type(leaf), leaf.dtype.name, leaf.shape, numbers


def described(tree, classes=(Scale,)):
    arrays = {}
    description = describe(tree, "tree", arrays, Registry(classes))
    bits = {
        name: (describe_array(name, a), to_stored(name, a).tobytes())
        for name, a in arrays.items()
    }
    return description, bits


def header_of(path):
    with np.load(path) as file:
        return json.loads(str(file["header"]))


def rewrite(path, change):
    """Change the header and the arrays of a file, and write a sound file of them."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    change(header, arrays)
    write_arrays(path, header, arrays)


def names_of(path):
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
