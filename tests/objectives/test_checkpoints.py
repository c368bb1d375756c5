"""Checkpoints: every bit comes back, in any process, or an error says why not."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.optim
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro

from numpyro_kaem import BSpline, Energy, KAEMPrior
from numpyro_kaem.objectives import Checkpoint
from numpyro_kaem.objectives.named_leaves import name_leaves


class State(NamedTuple):
    first: object
    second: object


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf))
    return str(np.asarray(leaf).dtype), np.shape(leaf), np.asarray(leaf).tobytes()


def assert_same(actual, desired):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True)
    for one, other in pairs:
        assert type(one) is type(other)
        assert getattr(one, "weak_type", None) == getattr(other, "weak_type", None)
        np.testing.assert_equal(bits(one), bits(other))


def make_energy(low=-1.0, scale=1.0):
    return Energy(BSpline(low, 3.0, 6), scale * jnp.arange(12.0).reshape(2, 6))


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    special = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38], np.float32)
    return {
        "special": jnp.asarray(special),
        "double": rng.normal(size=(2, 3)),
        "integers": jnp.arange(-3, 3, dtype=jnp.int32).reshape(2, 3),
        "flags": jnp.array([True, False]),
        "old key": jax.random.PRNGKey(3),
        "keys": jax.random.split(jax.random.key(5), 4),
        "other keys": jax.random.key(6, impl="rbg"),
        "empty": jnp.zeros((0, 4)),
        "half": jnp.array([1.5, -2.25], jnp.float16),
        "brain": jnp.array([[1.5], [-2.25]], jnp.bfloat16),
        "brain scalar": jnp.array(0.5, jnp.bfloat16),
        "complex": np.array([1 + 2j]),
        "fortran": np.asfortranarray(rng.normal(size=(3, 2))),
        "counter": jnp.array(0),
        "weak": jax.lax.full_like(jnp.array(1), 2, shape=(3,)),
        "numpy scalar": np.float32(0.1),
        "python": (3, 0.1, True, 2j, None),
        "module": State(
            make_energy(), [KAEMPrior(make_energy(), dist.Normal(1.0, 2.0))]
        ),
        "a/../\u00e4'\n": jnp.array(3.5),
    }


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_bit_comes_back(tmp_path, tree):
    assert tree["weak"].weak_type
    metadata = {"loss": 0.1, "steps": [1, 2], "nested": {"text": "ä", "none": None}}
    checkpoint = Checkpoint(tmp_path / "new" / "folder")
    assert checkpoint.latest(tree) is None
    checkpoint.save(1000, tree, metadata)
    assert files(tmp_path / "new" / "folder") == ["step-00001000.npz"]
    like = jax.tree.map(lambda x: x, tree)
    like["special"] = jnp.zeros(7, jnp.float32)
    like["keys"] = jax.random.split(jax.random.key(0), 4)
    step, restored, read = checkpoint.latest(like)
    assert step == 1000
    assert read == metadata
    assert_same(restored, tree)


def test_a_single_array_and_an_empty_pytree(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(0, jnp.array([1.5, -2.0]))
    step, restored, metadata = checkpoint.latest(jnp.zeros(2))
    assert (step, metadata) == (0, {})
    assert_same(restored, jnp.array([1.5, -2.0]))
    checkpoint.save(1, {})
    assert checkpoint.latest({})[1] == {}


def test_shapes_are_enough_to_restore(tmp_path, tree):
    tree = {k: v for k, v in tree.items() if isinstance(v, jax.Array)}
    Checkpoint(tmp_path).save(3, tree)
    restored = Checkpoint(tmp_path).latest(jax.eval_shape(lambda x: x, tree))[1]
    assert_same(restored, tree)


def test_restored_keys_draw_the_same(tmp_path, key):
    Checkpoint(tmp_path).save(1, key)
    restored = Checkpoint(tmp_path).latest(jax.random.key(9))[1]
    np.testing.assert_array_equal(
        jax.random.normal(restored, (3,)), jax.random.normal(key, (3,))
    )


def test_arrays_return_to_their_devices(tmp_path):
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    spec = jax.sharding.PartitionSpec("data")
    sharding = jax.sharding.NamedSharding(mesh, spec)
    tree = {"sharded": jax.device_put(jnp.arange(4.0), sharding), "free": jnp.ones(2)}
    Checkpoint(tmp_path).save(1, tree)
    restored = Checkpoint(tmp_path).latest(tree)[1]
    assert_same(restored, tree)
    assert restored["sharded"].sharding == sharding
    assert not restored["free"].committed


def test_no_pickle_and_a_readable_header(tmp_path):
    Checkpoint(tmp_path).save(7, {"energy": make_energy(), "key": jax.random.key(0)})
    with np.load(tmp_path / "step-00000007.npz", allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        coefficients = file["state['energy'].coefficients"]
    np.testing.assert_array_equal(coefficients, make_energy().coefficients)
    assert header["format"] == 1
    assert header["step"] == 7
    assert header["versions"].keys() >= {"numpyro_kaem", "numpyro", "jax", "numpy"}
    arrays = header["arrays"]
    assert arrays.keys() == {"state['energy'].coefficients", "state['key']"}
    assert arrays["state['energy'].coefficients"]["shape"] == [2, 6]
    assert arrays["state['key']"]["dtype"] == "key<fry>"
    assert header["structure"]["state['energy'].basis"] == "BSpline"
    assert header["structure"]["state['energy'].basis.low"] == -1.0


# --- names ---------------------------------------------------------------------------


def test_names_follow_the_order_of_the_leaves(tree):
    state = numpyro.optim.Adam(1e-2).init({"b": make_energy(), "a": jnp.ones(3)})
    for one in (tree, state, [tree, (state,)]):
        named = list(name_leaves(one).leaves.values())
        leaves = jax.tree.leaves(one)
        assert all(x is y for x, y in zip(named, leaves, strict=True))


def test_names_of_optimizer_states():
    params = {"net": make_energy()}
    state = numpyro.optim.Adam(1e-2).init(params)
    names = [f"[1]['net'].coefficients[{i}]" for i in range(3)]
    assert list(name_leaves(state).leaves) == ["[0]", *names]
    state = optax_to_numpyro(optax.adam(1e-2)).init(params)
    assert "[1][1][0].mu['net'].coefficients" in name_leaves(state).leaves


@pytest.mark.parametrize("inside_an_optimizer", [False, True])
def test_numpyro_distributions_are_refused(tmp_path, inside_an_optimizer):
    tree = {"law": dist.Normal(1.0, 2.0)}
    if inside_an_optimizer:
        tree = numpyro.optim.Adam(1e-2).init({"law": dist.Normal(jnp.ones(2), 2.0)})
    with pytest.raises(ValueError, match=r"no NumPyro distribution, got a Normal at"):
        Checkpoint(tmp_path).save(1, tree)
    assert files(tmp_path) == []


def test_equal_names_are_refused(tmp_path):
    class Key:
        def __init__(self, value):
            self.value = value

        def __lt__(self, other):
            return self.value < other.value

        def __repr__(self):
            return "Key"

    with pytest.raises(
        ValueError, match=r"must differ, got two with the name '\[Key\]'"
    ):
        Checkpoint(tmp_path).save(1, {Key(1): jnp.ones(2), Key(2): jnp.ones(2)})


@pytest.mark.parametrize(
    "leaf", ["text", jax.nn.relu, np.array(["a"]), np.array([None])]
)
def test_leaves_that_are_not_arrays_are_refused(tmp_path, leaf):
    with pytest.raises(TypeError, match=r"state\['a'\] must be an array of numbers"):
        Checkpoint(tmp_path).save(1, {"a": leaf})


def test_traced_leaves_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"state\['a'\] must be concrete"):
        jax.jit(lambda x: Checkpoint(tmp_path).save(1, {"a": x}))(1.0)


# --- arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"directory": 3}, TypeError, "directory must be a path, got 3"),
        ({"every": 0}, ValueError, "every must be a positive integer, got 0"),
        ({"every": 1.5}, TypeError, "every must be a positive integer, got 1.5"),
        ({"keep": 0}, ValueError, "keep must be a positive integer, got 0"),
        ({"keep": True}, TypeError, "keep must be a positive integer, got True"),
    ],
)
def test_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        Checkpoint(**{"directory": tmp_path} | arguments)


def test_arguments_of_save(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(ValueError, match="step must be an integer >= 0, got -1"):
        checkpoint.save(-1, jnp.ones(2))
    with pytest.raises(TypeError, match=r"step must be an integer >= 0, got 1.0"):
        checkpoint.save(1.0, jnp.ones(2))
    with pytest.raises(TypeError, match=r"metadata must be a dictionary, got \[1\]"):
        checkpoint.save(1, jnp.ones(2), [1])
    with pytest.raises(TypeError, match="metadata must be made of what JSON can hold"):
        checkpoint.save(1, jnp.ones(2), {"loss": jnp.ones(2)})
    checkpoint.save(1, jnp.ones(2))
    with pytest.raises(TypeError, match="must be an array of numbers"):
        checkpoint.latest("text")


def test_is_static(tmp_path):
    one, other = Checkpoint(str(tmp_path)), Checkpoint(tmp_path, every=1000, keep=2)
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises(AttributeError):
        one.every = 3


# --- training ------------------------------------------------------------------------

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam
import numpyro_kaem as kaem
from numpyro_kaem.objectives import Checkpoint

folder, action = sys.argv[1:]
initial = kaem.Energy(kaem.RBF(-4.0, 6.0, 5), jnp.linspace(0.0, 1.0, 5))
x, y = jnp.array([0.5, 1.5, -2.0]), jnp.array([1.0, 2.0, 0.5])

def model():
    energy = eqx_module("energy", initial)
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(offset + energy(x), scale).to_event(1), obs=y)

def guide():
    numpyro.sample("offset", dist.Normal(numpyro.param("loc", 0.0), 0.5))

svi = SVI(model, guide, Adam(0.01), Trace_ELBO())
start = state = jax.jit(svi.init)(jax.random.key(1))
update = jax.jit(svi.update)
checkpoint = Checkpoint(folder)
for step in range(5):
    if step == 3 and action == "save":
        checkpoint.save(3, state)
    elif step == 3:
        found, state, _ = checkpoint.latest(start)
        assert found == 3
    state, _ = update(state)
leaves = jax.tree.leaves(svi.get_params(state))
print([np.asarray(leaf).tobytes().hex() for leaf in leaves])
normal = dist.Normal(jnp.array(1.0), jnp.array(2.0))
print([float(leaf) for leaf in jax.tree.leaves(normal)])
"""


@pytest.mark.long
def test_training_goes_on_in_another_process(tmp_path):
    """Under seeds with which the parameters of a Normal come in two orders."""
    output = {}
    for seed, action in (("0", "save"), ("1", "load")):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), action],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        output[action] = run.stdout.splitlines()
    assert len(output["save"]) == 2
    assert output["save"][0] == output["load"][0]
    assert output["save"][1] != output["load"][1]


@pytest.mark.parametrize(
    "optimizer",
    [
        numpyro.optim.ClippedAdam(0.1),
        optax_to_numpyro(optax.chain(optax.clip(1.0), optax.adamw(0.1))),
    ],
    ids=["numpyro", "optax"],
)
def test_restored_state_goes_on_and_does_not_compile_anew(tmp_path, optimizer):
    def model():
        energy = eqx_module("energy", make_energy(scale=0.1))
        numpyro.sample("x", dist.Normal(energy(1.5), 1.0).to_event(1), obs=jnp.ones(2))

    svi = SVI(model, lambda: None, optimizer, Trace_ELBO())
    traces = []

    @jax.jit
    def update(state):
        traces.append(1)
        return svi.update(state)[0]

    start = jax.jit(svi.init)(jax.random.PRNGKey(0))
    state = update(update(start))
    Checkpoint(tmp_path).save(2, state)
    restored = Checkpoint(tmp_path).latest(start)[1]
    assert_same(restored, state)
    expected, before = update(state), len(traces)
    assert_same(update(restored), expected)
    assert len(traces) == before
