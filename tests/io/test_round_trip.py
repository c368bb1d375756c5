"""What is saved comes back: every bit, every class, and so every value."""

import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.distributions import transforms
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro

import numpyro_kaem as kaem
from numpyro_kaem.references import ReferenceParameters
from tests.bases.cases import CASES as BASES
from tests.distributions.cases import REFERENCES
from tests.io.cases import (
    DECODERS,
    LAWS,
    OTHERS,
    Scale,
    described,
    header_of,
    names_of,
    prior,
    same,
)

pytestmark = pytest.mark.float64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.npz"


def saved_and_loaded(path, tree, **options):
    kaem.save(path, tree, **options)
    return kaem.load(path, **options)


def make(basis, reference, grid=None):
    """Density of a basis and a reference, without its quadrature."""
    case, law = BASES[basis], REFERENCES[reference]
    rng = np.random.default_rng([*basis.encode(), *reference.encode()])
    low, high = grid or law.grid
    coefficients = jnp.asarray(rng.normal(size=case.num_features))
    energy = kaem.Energy(case.make(low, high), coefficients)
    law = law.make()
    parameters = None if law is None else ReferenceParameters.of(law)
    return kaem.KAEMPrior.tree_unflatten((1, False), (energy, parameters))


# --- densities -----------------------------------------------------------------------


def test_every_basis_with_every_reference(path):
    pairs = {f"{b} {r}": make(b, r) for b in BASES for r in REFERENCES}
    pairs["columns"] = make("bspline-3", "normal", ([-0.7, 1.5], [2.6, 1.9]))
    loaded = saved_and_loaded(path, pairs)
    for name, density in pairs.items():
        assert same(loaded[name], density), name
    # And each was checked when it was loaded.
    assert '"(complete)": false' not in json.dumps(header_of(path))


@pytest.mark.parametrize(
    ("basis", "reference"),
    [
        ("rbf", "default"),
        ("bspline-3", "normal"),
        # Beside them, all pairs as they are stored.
        pytest.param("fourier", "laplace", marks=pytest.mark.long),
        pytest.param("chebyshev", "student-t", marks=pytest.mark.long),
        pytest.param("rswaf", "gamma", marks=pytest.mark.long),
        pytest.param("mexican-hat", "cauchy", marks=pytest.mark.long),
        pytest.param("dog", "beta", marks=pytest.mark.long),
    ],
)
def test_log_prob_of_bases_and_references(path, basis, reference):
    density = make(basis, reference)
    loaded = saved_and_loaded(path, density)
    z = np.linspace(*REFERENCES[reference].grid, 7)[1:-1]
    # Compiled once: both have one structure.
    log_prob = jax.jit(lambda d: d.log_prob(z))
    assert np.all(np.isfinite(log_prob(density)))
    np.testing.assert_array_equal(log_prob(loaded), log_prob(density))


@pytest.mark.parametrize("name", LAWS)
def test_laws(path, name):
    law = LAWS[name]()
    loaded = saved_and_loaded(path, law)
    assert same(loaded, law)
    assert loaded.batch_shape == law.batch_shape
    assert loaded.event_shape == law.event_shape
    assert '"(complete)": false' not in json.dumps(header_of(path))


@pytest.mark.parametrize("name", ["mixture", "deep", "multivariate"])
def test_log_prob_and_draws_of_laws(path, name):
    law = LAWS[name]()
    loaded = saved_and_loaded(path, law)
    both = jax.jit(lambda d: (d.log_prob(z := d.sample(jax.random.key(3))), z))
    expected, actual = both(law), both(loaded)
    assert np.all(np.isfinite(expected[0]))
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize("name", ["mixture-of-products", "autoregressive"])
def test_log_prob_of_joint_laws(path, name):
    law = LAWS[name]()
    loaded = saved_and_loaded(path, law)
    log_prob = jax.jit(lambda d: d.log_prob(jnp.array([0.2, -0.4, 0.5])))
    assert np.isfinite(log_prob(law))
    np.testing.assert_array_equal(log_prob(loaded), log_prob(law))


def test_univariate_laws_of_numpyro(path):
    location = [dist.Normal, dist.Cauchy, dist.Gumbel, dist.Laplace, dist.Logistic]
    location += [dist.SoftLaplace, dist.LogNormal, dist.VonMises, dist.Levy]
    scale = [dist.HalfNormal, dist.HalfCauchy, dist.Exponential, dist.Chi2]
    two = [dist.Gamma, dist.InverseGamma, dist.Weibull, dist.Beta, dist.Kumaraswamy]
    two += [dist.Pareto, dist.Gompertz]
    laws = [cls(jnp.array([0.1, 0.7]), 1.3) for cls in location]
    laws += [cls(0.37) for cls in scale]
    laws += [cls(0.37, jnp.array([[1.3], [0.9]])) for cls in two]
    laws += [
        dist.Uniform(-1, 2.5),
        dist.LogUniform(0.1, 2.5),
        dist.StudentT(3, 0.2, 1.1),
        dist.AsymmetricLaplace(0.3, 1.2, 0.4),
        dist.AsymmetricLaplaceQuantile(0.3, 1.2, 0.4),
        dist.TruncatedNormal(0.3, 1.2, low=-0.5, high=0.75),
        dist.TruncatedCauchy(0.3, 1.2, high=0.75),
        dist.FoldedDistribution(dist.Normal(0.3, 1.2)),
        dist.Delta(0.3),
        dist.TransformedDistribution(
            dist.Gumbel(0.3, 1.2), transforms.PowerTransform(3.0)
        ),
        # Made by one form of its parameters, and kept in another.
        dist.Normal(0.1, 0.2).expand([3]),
    ]
    assert all(map(same, saved_and_loaded(path, laws), laws))


# --- modules -------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(path, name):
    decoder = DECODERS[name]()
    loaded = saved_and_loaded(path, decoder)
    assert same(loaded, decoder)
    assert '"(complete)": false' not in json.dumps(header_of(path))
    z = jnp.array([[0.3, -0.2]])
    tokens = jnp.array([[0, 2, 1, 1]])

    def value(decoder):
        return decoder.logits(z, tokens) if name == "sequence" else decoder(z)

    np.testing.assert_array_equal(value(loaded), value(decoder))


@pytest.mark.parametrize("name", OTHERS)
def test_other_modules(path, name):
    tree = OTHERS[name]()
    assert same(saved_and_loaded(path, tree), tree)
    incomplete = name in ("filtered", "gradient", "batch-of-layers")
    assert ('"(complete)": false' in json.dumps(header_of(path))) == incomplete


def test_a_module_of_the_user(path):
    decoder = Scale(jnp.array([0.5, -1.5]), (1, 2))
    model = kaem.KAEM(prior(2), decoder, kaem.NormalLikelihood(0.5))
    assert same(saved_and_loaded(path, model, classes=[Scale]), model)
    with pytest.raises(ValueError, match=r"tree.decoder .* pass classes=\[Scale\]"):
        kaem.load(path)
    with pytest.raises(TypeError, match=r"tree.decoder cannot .* pass classes=\[Scale"):
        kaem.save(path, model)


# --- fits and states -----------------------------------------------------------------


def test_a_fit(path):
    model = OTHERS["model"]()
    memory = {"ess": jnp.array(2.5), "position": jnp.ones((4, 1, 2))}
    losses = np.array([3.5, np.nan, 2.5])
    fit = kaem.FitResult(model, model.params, losses, 1, memory, "num_steps")
    loaded = saved_and_loaded(path, fit)
    assert type(loaded) is kaem.FitResult
    assert same(loaded.model, model)
    assert described(loaded) == described(fit)
    assert type(loaded.losses) is np.ndarray


@pytest.mark.parametrize(
    "optimizer",
    [
        numpyro.optim.Adam(0.1),
        optax_to_numpyro(optax.chain(optax.clip(1.0), optax.adamw(0.1))),
    ],
    ids=["numpyro", "optax"],
)
def test_the_state_of_an_optimiser_goes_on(path, optimizer):
    decoder = OTHERS["layers"]()

    def model():
        decode = eqx_module("decoder", decoder)
        law = dist.Normal(decode(jnp.array([0.3, 0.1])), 1.0).to_event(1)
        numpyro.sample("x", law, obs=jnp.ones(3))

    svi = SVI(model, lambda: None, optimizer, Trace_ELBO())
    state = svi.init(jax.random.key(0))
    update = jax.jit(lambda state: svi.update(state)[0])
    state = update(state)
    loaded = saved_and_loaded(path, state)
    assert same(loaded, state)
    assert same(update(loaded), update(state))


def test_posterior_of_units(path):
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 0.5), jnp.array([0.3, 1]))
    posterior = kaem.unit_posterior(prior(), units)
    loaded = saved_and_loaded(path, posterior)
    np.testing.assert_array_equal(loaded.mean, posterior.mean)
    np.testing.assert_array_equal(loaded.sd, posterior.sd)


# --- plain values --------------------------------------------------------------------


def test_arrays_numbers_and_containers(path):
    special = [-0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38]
    tree = {
        "special": jnp.asarray(special, jnp.float32),
        "double": np.array(special),
        "half": jnp.array([1.5], jnp.float16),
        "brain": jnp.array([[1.5], [-2.25]], jnp.bfloat16),
        "integers": jnp.arange(-3, 3),
        "flags": np.array([[True, False]]),
        "complex": np.array([1 + 2j]),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">f8"),
        "empty": jnp.zeros((0, 4)),
        "scalar": np.float32(0.1),
        "counter": jnp.array(0),
        "keys": jax.random.split(jax.random.key(5), 4),
        "other keys": jax.random.key(6, impl="rbg"),
        "old key": jax.random.PRNGKey(3),
        "numbers": [1, -0.5, True, None, 2**80, 1e308, float("inf"), -float("inf")],
        "text": ("", "ä\n\x00", "\ud800"),
        "a/../\u00e4']\x00": [[], (), {}, np.float64(2.5)],
        "function": jax.nn.gelu,
        "support": dist.constraints.positive,
    }
    loaded = saved_and_loaded(path, tree)
    assert same(loaded, tree)
    # One after the other in memory, and writable.
    loaded["double"][0] = 1.0
    assert loaded["counter"].weak_type
    assert loaded["numbers"] == tree["numbers"]
    assert np.isnan(saved_and_loaded(path, float("nan")))


def test_names_and_header_of_a_file(path):
    kaem.save(path, {"prior": prior(2, reference=dist.Normal(0.0, jnp.array(2.0)))})
    assert names_of(path) == [
        "header.npy",
        "tree['prior'].energy.coefficients.npy",
        "tree['prior'].reference.scale.npy",
    ]
    header = header_of(path)
    assert header["format"] == 1
    assert header["versions"]["numpyro_kaem"] == kaem.__version__
    assert set(header["versions"]) >= {"jax", "numpyro"}
    parts = header["tree"]["parts"]["prior"]["parts"]
    assert parts["energy"]["kind"] == "numpyro_kaem.Energy"
    assert parts["energy"]["parts"]["basis"] == {
        "kind": "numpyro_kaem.BSpline",
        "parts": {
            "(complete)": True,
            "low": -1.0,
            "high": 2.0,
            "num_basis": 5,
            "degree": 3,
        },
    }
    shape = header["arrays"]["tree['prior'].energy.coefficients"]["shape"]
    assert shape == [2, 5]


# --- other processes -----------------------------------------------------------------

# With the settings of the tests, so that both processes compile alike.
LOAD = """
import conftest
import sys, numpy as np, jax, numpyro_kaem as kaem
tree = kaem.load(sys.argv[1])
assert "optax" not in sys.modules
value = jax.jit(lambda d, z: d.log_prob(z))(tree["prior"], tree["z"])
assert np.array_equal(value, tree["log_prob"]), value - tree["log_prob"]
kaem.save(sys.argv[2], tree)
"""


def test_a_process_with_other_hashes(tmp_path, x64):
    density = prior(reference=dist.StudentT(3.5, 0.25, 1.5))
    z = jnp.linspace(-3.0, 3.0, 7)
    tree = {
        "prior": density,
        "z": z,
        "log_prob": jax.jit(lambda d, z: d.log_prob(z))(density, z),
        "numpyro": [dist.Normal(0.1, 0.2), dist.Gamma(jnp.array([1.0, 2.0]), 3.0)],
        "state": numpyro.optim.Adam(0.1).init({"b": jnp.ones(2), "a": 0.5}),
    }
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    kaem.save(here, tree)
    environment = {
        **os.environ,
        # Not the one of this process: by chance once in 2 ** 32.
        "PYTHONHASHSEED": "1",
        "JAX_ENABLE_X64": str(int(x64)),
    }
    command = [sys.executable, "-c", LOAD, str(here), str(there)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # The same bytes, whatever the hashes.
    assert here.read_bytes() == there.read_bytes()
    assert same(kaem.load(there), kaem.load(here))


def test_arrays_are_on_the_default_device(path):
    device = jax.devices()[-1]
    kaem.save(path, jax.device_put(jnp.ones(2), jax.devices()[0]))
    with jax.default_device(device):
        assert kaem.load(path).devices() == {device}


def test_a_module_that_is_not_complete_may_be_filtered_again(path):
    network = LAWS["deep"]().network
    parts = eqx.partition(network, eqx.is_array)
    assert same(eqx.combine(*saved_and_loaded(path, parts)), network)
