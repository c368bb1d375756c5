"""Checkpoints: every bit comes back, or an error says why not; and their files."""

import json
import os
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.optim
import optax
import pytest
from numpyro.optim import optax_to_numpyro

from numpyro_kaem import RBF, BSpline, Energy, KAEMPrior
from numpyro_kaem.files import container
from numpyro_kaem.training import Checkpoint
from numpyro_kaem.training.checkpoint import name_leaves
from tests.files.cases import bits


class State(NamedTuple):
    first: object
    second: object


def assert_same(actual, desired):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True)
    for one, other in pairs:
        assert getattr(one, "weak_type", None) == getattr(other, "weak_type", None)
        assert bits(one) == bits(other)


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

    # Shapes are enough to restore arrays, and a pytree may be one array or empty.
    arrays = {k: v for k, v in tree.items() if isinstance(v, jax.Array)}
    checkpoint.save(1001, arrays)
    shapes = jax.eval_shape(lambda x: x, arrays)
    assert_same(checkpoint.latest(shapes)[1], arrays)
    checkpoint.save(1002, arrays["special"])
    step, restored, metadata = checkpoint.latest(jnp.zeros(7, jnp.float32))
    assert (step, metadata) == (1002, {})
    assert_same(restored, arrays["special"])
    checkpoint.save(1003, {})
    assert checkpoint.latest({})[1] == {}


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
        assert file.files == ["header", "state['energy'].coefficients", "state['key']"]
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
        named = list(name_leaves(one)[0].values())
        leaves = jax.tree.leaves(one)
        assert all(x is y for x, y in zip(named, leaves, strict=True))
    state = numpyro.optim.Adam(1e-2).init({"net": make_energy()})
    names = [f"[1]['net'].coefficients[{i}]" for i in range(3)]
    assert list(name_leaves(state, "")[0]) == ["[0]", *names]
    state = optax_to_numpyro(optax.adam(1e-2)).init({"net": make_energy()})
    assert "[1][1][0].mu['net'].coefficients" in name_leaves(state, "")[0]


# --- arguments -----------------------------------------------------------------------


def test_what_cannot_be_saved(tmp_path):
    class Key:
        def __init__(self, value):
            self.value = value

        def __lt__(self, other):
            return self.value < other.value

        def __repr__(self):
            return "Key"

    normal = {"normal": dist.Normal(np.ones(2), 2.0)}
    no_numpyro = r"no NumPyro distribution, got a Normal at state"
    same_names = r"must differ, got two with the name 'state\[Key\]'"
    no_array = r"state\['a'\] must be an array of numbers"
    cases = [
        (1, normal, {}, ValueError, no_numpyro),
        (1, numpyro.optim.Adam(1e-2).init(normal), {}, ValueError, no_numpyro),
        (1, {Key(1): np.ones(2), Key(2): np.ones(2)}, {}, ValueError, same_names),
        (1, {"a": "text"}, {}, TypeError, no_array),
        (1, {"a": jax.nn.relu}, {}, TypeError, no_array),
        (1, {"a": np.array(["a"])}, {}, TypeError, no_array),
        (1, {"a": np.array([None])}, {}, TypeError, no_array),
        (-1, 1.0, {}, ValueError, "step must be an integer >= 0, got -1"),
        (1.0, 1.0, {}, TypeError, r"step must be an integer >= 0, got 1.0"),
        (1, 1.0, [1], TypeError, r"metadata must be a dictionary, got \[1\]"),
        (1, 1.0, {"a": np.ones(2)}, TypeError, "metadata must be made of what JSON"),
    ]
    checkpoint = Checkpoint(tmp_path)
    for *arguments, error, message in cases:
        with pytest.raises(error, match=message):
            checkpoint.save(*arguments)
    with pytest.raises(TypeError, match=r"state\['a'\] must be concrete"):
        jax.jit(lambda x: checkpoint.save(1, {"a": x}))(1.0)
    assert files(tmp_path) == []
    checkpoint.save(1, jnp.ones(2))
    with pytest.raises(TypeError, match="must be an array of numbers"):
        checkpoint.latest("text")


def test_arguments(tmp_path):
    for arguments, error, message in (
        ({"directory": 3}, TypeError, "directory must be a path, got 3"),
        ({"every": 0}, ValueError, "every must be a positive integer, got 0"),
        ({"every": 1.5}, TypeError, "every must be a positive integer, got 1.5"),
        ({"keep": 0}, ValueError, "keep must be a positive integer, got 0"),
        ({"keep": True}, TypeError, "keep must be a positive integer, got True"),
    ):
        with pytest.raises(error, match=message):
            Checkpoint(**{"directory": tmp_path} | arguments)
    # They are static.
    one, other = Checkpoint(str(tmp_path)), Checkpoint(tmp_path, every=1000, keep=2)
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises(AttributeError):
        one.every = 3


# --- training ------------------------------------------------------------------------


def test_restored_state_goes_on_and_does_not_compile_anew(tmp_path):
    params = {"energy": make_energy(scale=0.1)}
    chain = optax_to_numpyro(optax.chain(optax.clip(1.0), optax.adamw(0.1)))
    for optimizer in (numpyro.optim.ClippedAdam(0.1), chain):
        traces = []

        @jax.jit
        def update(state, optimizer=optimizer, traces=traces):
            traces.append(1)
            return optimizer.update(params, state, 1.0)

        start = optimizer.init(params)
        state = update(update(start))
        Checkpoint(tmp_path).save(2, state)
        restored = Checkpoint(tmp_path).latest(start)[1]
        assert_same(restored, state)
        expected, before = update(state), len(traces)
        assert_same(update(restored), expected)
        assert len(traces) == before


# --- which file ----------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path):
    checkpoint = Checkpoint(tmp_path, keep=2)
    strangers = ["notes.txt", "step-1.npz", "step-00000004.npz.bak", "best.npz"]
    for name in strangers:
        (tmp_path / name).write_text("not ours")
    (tmp_path / "step-00000099.npz").mkdir()
    for step in (1, 2, 10, 100_000_000):
        checkpoint.save(step, jnp.array(float(step)))
    kept = ["step-00000010.npz", "step-100000000.npz"]
    assert files(tmp_path) == sorted([*strangers, *kept, "step-00000099.npz"])
    assert checkpoint.latest(jnp.array(0.0))[:2] == (100_000_000, 1e8)


def test_what_a_run_finds_in_its_folder(tmp_path):
    """A step is replaced, and a later checkpoint removed only if it is damaged."""
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(5, jnp.array(1.0))
    checkpoint.save(5, jnp.array(2.0))
    assert checkpoint.latest(jnp.array(0.0))[:2] == (5, 2.0)
    (tmp_path / "step-00000050.npz").write_bytes(b"")
    checkpoint.save(20, jnp.array(2.0))
    assert files(tmp_path) == ["step-00000005.npz", "step-00000020.npz"]
    with pytest.raises(ValueError, match=r"later than step 10, got .*step-00000020"):
        Checkpoint(tmp_path, keep=1).save(10, jnp.array(2.0))
    assert files(tmp_path) == ["step-00000005.npz", "step-00000020.npz"]


# --- damage --------------------------------------------------------------------------


def damage(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_damaged_files_are_passed_over(tmp_path):
    """Also a sound file with the name of another step."""
    checkpoint = Checkpoint(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoint.save(step, jnp.array([step, 2.0]), {"loss": step})
    damage(tmp_path / "step-00000003.npz")
    sound = (tmp_path / "step-00000001.npz").read_bytes()
    (tmp_path / "step-00000002.npz").write_bytes(sound)
    with (
        pytest.warns(UserWarning, match=r"000003.npz is damaged: .*not a zip file"),
        pytest.warns(UserWarning, match=r"000002.npz is damaged: .*it is of step 1"),
    ):
        step, restored, metadata = checkpoint.latest(jnp.zeros(2))
    assert (step, metadata) == (1, {"loss": 1})
    np.testing.assert_array_equal(restored, [1.0, 2.0])
    damage(tmp_path / "step-00000001.npz")
    message = f"all checkpoints in {tmp_path} are damaged"
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=message),
    ):
        checkpoint.latest(jnp.zeros(2))


def test_newer_format(tmp_path, monkeypatch):
    """It is not taken for a damaged file."""
    monkeypatch.setattr(container, "FORMAT_VERSION", 2)
    Checkpoint(tmp_path).save(1, jnp.ones(2))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 2, and this version .* up to 1"):
        Checkpoint(tmp_path).latest(jnp.ones(2))


# --- another model -------------------------------------------------------------------


class Layer(eqx.Module):
    coefficients: jax.Array


def test_a_checkpoint_of_another_model(tmp_path):
    a, b = {"a": np.ones(2)}, {"b": np.ones(1)}
    narrow, wide = {"a": np.ones((2, 3))}, {"a": np.ones((4, 3))}
    many = [{str(i): np.ones(size) for i in range(7)} for size in (2, 3)]
    key, other = jax.random.key(0), jax.random.key(0, impl="rbg")
    spline = Energy(BSpline(-1.0, 1.0, 5), np.zeros(5))
    rbf = Energy(RBF(-1.0, 1.0, 5), np.zeros(5))
    cases = [
        (narrow, wide, r"\['a'\]: expected float64\[4, 3\], found float64\[2, 3\]"),
        ({"a": np.ones(2, np.float32)}, a, r"d float64\[2\], found float32\[2\]"),
        (a, a | b, r"state\['b'\]: expected float64\[1\], found nothing"),
        (a | b, a, r"state\['b'\]: expected nothing, found float64\[1\]"),
        (key, other, r"state: expected key<rbg>\[\], found key<fry>\[\]"),
        (key, jax.random.PRNGKey(0), r"expected uint32\[2\], found key"),
        (*many, r"'0'.*\n.*'1'.*\n.*'2'.*\n.*'3'.*\n.*'4'.*\n  and 2 more"),
        (make_energy(), make_energy(-2.0), r"basis.low: expected -2.0, found -1.0"),
        (make_energy(), Layer(np.zeros((2, 6))), "d 'Layer', found 'Energy'"),
        (spline, rbf, "basis: expected 'RBF', found 'BSpline'"),
    ]
    for saved, like, message in cases:
        Checkpoint(tmp_path).save(1, saved)
        message = rf"of another model.*:\n(.*\n)*.*{message}"
        with pytest.raises(ValueError, match=message):
            Checkpoint(tmp_path).latest(like)


# --- the folder ----------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """And says what and where it was, by the subclass of the error too."""
    checkpoint = Checkpoint(tmp_path, keep=1)
    checkpoint.save(1, jnp.ones(2))

    def replace(*args):
        raise OSError(28, "No space left on device")

    def fsync(*args):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match=r"cannot write the file, No space left"):
            checkpoint.save(2, jnp.ones(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        message = r"cannot write .* denied.*step-00000002"
        with pytest.raises(PermissionError, match=message):
            checkpoint.save(2, jnp.ones(2))
    assert files(tmp_path) == ["step-00000001.npz"]
    file = tmp_path / "step-00000001.npz"
    with pytest.raises(OSError, match=r"cannot write the file, Not a directory"):
        Checkpoint(file / "folder").save(2, jnp.ones(2))
    message = "directory must be a folder .*, got the file"
    with pytest.raises(ValueError, match=message):
        Checkpoint(file)
