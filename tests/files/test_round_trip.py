"""What is saved comes back: every bit, every class, and so every value."""

import json
import os
import signal
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
from numpyro.distributions import transforms
from numpyro.infer.svi import SVIState
from numpyro.optim import optax_to_numpyro

import numpyro_kaem as kaem
from numpyro_kaem.references import ReferenceParameters
from tests.bases.cases import CASES as BASES
from tests.distributions.cases import REFERENCES
from tests.files.cases import (
    DECODERS,
    DISTRIBUTIONS,
    OTHERS,
    Scale,
    bits,
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
    case, chosen = BASES[basis], REFERENCES[reference]
    rng = np.random.default_rng([*basis.encode(), *reference.encode()])
    low, high = grid or chosen.grid
    coefficients = jnp.asarray(rng.normal(size=case.num_features))
    energy = kaem.Energy(case.make(low, high), coefficients)
    made = chosen.make()
    parameters = None if made is None else ReferenceParameters.of(made)
    return kaem.KAEMPrior.tree_unflatten((1, False), (energy, parameters))


# --- densities -----------------------------------------------------------------------


def test_every_basis_and_every_reference(path):
    pairs = {basis: make(basis, "normal") for basis in BASES}
    pairs |= {reference: make("rbf", reference) for reference in REFERENCES}
    pairs["columns"] = make("bspline-3", "normal", ([-0.7, 1.5], [2.6, 1.9]))
    loaded = saved_and_loaded(path, pairs)
    for name, density in pairs.items():
        assert same(loaded[name], density), name
    # And each was checked when it was loaded.
    assert '"(complete)": false' not in json.dumps(header_of(path))


def test_distributions_and_modules(path):
    """And all were checked when they were loaded, but for those that are not whole."""
    trees = {name: make() for name, make in (DISTRIBUTIONS | DECODERS | OTHERS).items()}
    loaded = saved_and_loaded(path, trees)
    parts = header_of(path)["tree"]["parts"]
    for name, tree in trees.items():
        assert same(loaded[name], tree), name
        incomplete = name in ("filtered", "gradient", "batch-of-layers")
        assert ('"(complete)": false' in json.dumps(parts[name])) == incomplete, name
    for name in DISTRIBUTIONS:
        assert loaded[name].batch_shape == trees[name].batch_shape
        assert loaded[name].event_shape == trees[name].event_shape
    # What is not complete may be made so again.
    network = trees["deep"].network
    network_parts = eqx.partition(network, eqx.is_array)
    assert same(eqx.combine(*saved_and_loaded(path, network_parts)), network)


def test_univariate_distributions_of_numpyro(path):
    location = [dist.Normal, dist.Cauchy, dist.Gumbel, dist.Laplace, dist.Logistic]
    location += [dist.SoftLaplace, dist.LogNormal, dist.VonMises, dist.Levy]
    scale = [dist.HalfNormal, dist.HalfCauchy, dist.Exponential, dist.Chi2]
    two = [dist.Gamma, dist.InverseGamma, dist.Weibull, dist.Beta, dist.Kumaraswamy]
    two += [dist.Pareto, dist.Gompertz]
    made = [cls(jnp.array([0.1, 0.7]), 1.3) for cls in location]
    made += [cls(0.37) for cls in scale]
    made += [cls(0.37, jnp.array([[1.3], [0.9]])) for cls in two]
    made += [
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
    assert all(map(same, saved_and_loaded(path, made), made))


def test_what_is_computed_from_python_numbers_stays_weakly_typed(path):
    """Else functions of it would be compiled anew."""
    grid = jnp.array([[1.3], [0.9]])
    for made in (
        dist.Pareto(0.37, grid),
        dist.Pareto(grid, 0.37),
        dist.LogUniform(0.1, grid),
        dist.StudentT(0.37, grid),
        dist.NegativeBinomialProbs(grid, 0.37),
        dist.Gamma(np.array([[0.37]]), grid),
    ):
        loaded = saved_and_loaded(path, made)
        assert same(loaded, made)
        assert kinds(loaded) == kinds(made)


def kinds(tree):
    # NumPyro's leaves have no fixed order.
    leaves = jax.tree.leaves(tree)
    return sorted((str(bits(x)), getattr(x, "weak_type", None)) for x in leaves)


def test_a_module_of_the_user(path):
    decoder = Scale(jnp.array([0.5, -1.5]), (1, 2))
    model = kaem.KAEM(prior(2), decoder, kaem.NormalLikelihood(0.5))
    assert same(saved_and_loaded(path, model, classes=[Scale]), model)
    with pytest.raises(ValueError, match=r"tree.decoder .* pass classes=\[Scale\]"):
        kaem.load(path)
    with pytest.raises(TypeError, match=r"tree.decoder cannot .* pass classes=\[Scale"):
        kaem.save(path, model)


# --- fits and states -----------------------------------------------------------------


def test_a_fit_and_a_posterior_of_units(path):
    model = OTHERS["model"]()
    memory = {"ess": jnp.array(2.5), "position": jnp.ones((4, 1, 2))}
    losses = np.array([3.5, np.nan, 2.5])
    fit = kaem.FitResult(model, model.params, losses, 1, memory, "num_steps")
    loaded = saved_and_loaded(path, fit)
    assert type(loaded) is kaem.FitResult
    assert same(loaded.model, model)
    assert described(loaded) == described(fit)
    assert type(loaded.losses) is np.ndarray
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 0.5), np.array([0.3, 1]))
    posterior = kaem.unit_posterior(prior(), units)
    loaded = saved_and_loaded(path, posterior)
    assert described(loaded) == described(posterior)
    np.testing.assert_array_equal(loaded.mean, posterior.mean)


def test_the_state_of_an_optimiser(path):
    """Also in the containers that it has after a step."""
    params = {"layers": eqx.filter(OTHERS["layers"](), eqx.is_inexact_array)}
    chain = optax_to_numpyro(optax.chain(optax.clip(1.0), optax.adamw(0.1)))
    for optimizer in (numpyro.optim.Adam(0.1), chain):
        start = SVIState(optimizer.init(params), None, jax.random.PRNGKey(0))
        leaves, structure = jax.tree.flatten(start)
        numbers = [np.asarray(x) + np.asarray(i, x.dtype) for i, x in enumerate(leaves)]
        later = structure.unflatten(map(jnp.asarray, numbers))
        for state in (start, later):
            assert same(saved_and_loaded(path, state), state)


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
    # Where an array was does not matter.
    device = jax.devices()[-1]
    kaem.save(path, jax.device_put(np.ones(2), jax.devices()[0]))
    with jax.default_device(device):
        assert kaem.load(path).devices() == {device}


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

# With the settings of the tests, so that both processes compile alike. It is killed
# when it has written half of what it has read.
LOAD = """
import conftest
import os, signal, sys, numpy as np, jax, numpyro_kaem as kaem
from numpyro_kaem.files import container
tree = kaem.load(sys.argv[1])
assert "optax" not in sys.modules
value = jax.jit(lambda d, z: d.log_prob(z))(tree["prior"], tree["z"])
assert np.array_equal(value, tree["log_prob"]), value - tree["log_prob"]
kaem.save(sys.argv[2], tree)
container.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
kaem.save(sys.argv[1], tree)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal of POSIX")
def test_a_process_with_other_hashes_that_is_killed(tmp_path, x64):
    """It reads and writes the same bytes, and a file half written does not appear."""
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
    before = here.read_bytes()
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
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert here.read_bytes() == before
    assert there.read_bytes() == before
    assert same(kaem.load(there), kaem.load(here))
    # What it has left is removed by the next writer of any file in the folder.
    assert len(list(tmp_path.iterdir())) == 3
    kaem.save(tmp_path / "other.npz", 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["here.npz", "other.npz", "there.npz"]
