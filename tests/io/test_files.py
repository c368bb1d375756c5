"""Files that are damaged, made to deceive, from elsewhere, or only half written."""

import json
import os
import signal
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from numpyro_kaem import array_file
from tests.io.cases import DECODERS, header_of, prior, rewrite, same


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.npz"


@pytest.fixture(scope="module")
def tree():
    return {
        "prior": prior(2, reference=dist.Normal(0.0, 1.0)),
        "decoder": DECODERS["kan"](),
        "weights": np.array([0.5, 0.25]),
        "key": jax.random.key(0),
    }


# --- by accident ---------------------------------------------------------------------


def flipped(rng, sound):
    changed = bytearray(sound)
    for position in rng.integers(len(sound), size=rng.integers(1, 4)):
        changed[position] ^= rng.integers(1, 256)
    return bytes(changed)


def truncated(rng, sound):
    return sound[: rng.integers(len(sound))]


def inserted(rng, sound):
    position = rng.integers(len(sound) + 1)
    return sound[:position] + rng.bytes(rng.integers(1, 9)) + sound[position:]


def removed(rng, sound):
    position = rng.integers(len(sound))
    return sound[:position] + sound[position + rng.integers(1, 65) :]


def swapped(rng, sound):
    size = rng.integers(1, 65)
    first, second = np.sort(rng.integers(len(sound) - size, size=2))
    changed = bytearray(sound)
    one, other = sound[first : first + size], sound[second : second + size]
    changed[first : first + size] = other
    changed[second : second + size] = one
    return bytes(changed)


def zeroed(rng, sound):
    position, size = rng.integers(len(sound)), rng.integers(1, 4097)
    return (sound[:position] + bytes(size))[: len(sound)] + sound[position + size :]


def test_a_thousand_damaged_files(path, tree):
    kaem.save(path, tree)
    sound = path.read_bytes()
    rng = np.random.default_rng(20)
    damages = [flipped, truncated, inserted, removed, swapped, zeroed]
    count = 0
    while count < 1000:
        damage = damages[count % len(damages)]
        changed = damage(rng, sound)
        if changed == sound:
            continue
        count += 1
        path.write_bytes(changed)
        with pytest.raises(
            ValueError, match=rf"the file {path} is damaged, or was not"
        ):
            kaem.load(path)
    path.write_bytes(sound)
    assert same(kaem.load(path), tree)


def test_every_bit_of_a_small_file_counts(path):
    kaem.save(path, 0.5)
    sound = path.read_bytes()
    for position in range(0, 8 * len(sound), 41):
        changed = bytearray(sound)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged"):
            kaem.load(path)


# --- from elsewhere ------------------------------------------------------------------


def test_a_newer_format(path, monkeypatch):
    monkeypatch.setattr(array_file, "FORMAT_VERSION", 2)
    kaem.save(path, 0.5)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format 2, .* formats up to 1; .*numpyro_ka"):
        kaem.load(path)


def test_files_of_others(path):
    np.savez(path, a=np.ones(3))
    with pytest.raises(ValueError, match="not written by numpyro_kaem: it has no head"):
        kaem.load(path)
    path.write_text("not an archive")
    with pytest.raises(
        ValueError, match=r"not written by numpyro_kaem.*not a zip file"
    ):
        kaem.load(path)


def test_checkpoints_and_saved_files_differ(tmp_path):
    checkpoint = kaem.Checkpoint(tmp_path)
    checkpoint.save(1, jnp.ones(2))
    with pytest.raises(
        ValueError, match=r"a checkpoint of training; use Checkpoint\.lat"
    ):
        kaem.load(tmp_path / "step-00000001.npz")
    kaem.save(tmp_path / "step-00000002.npz", jnp.ones(2))
    with pytest.warns(UserWarning, match="no checkpoint; numpyro_kaem.load may read"):
        assert checkpoint.latest(jnp.ones(2))[0] == 1


def test_no_file(path):
    with pytest.raises(FileNotFoundError):
        kaem.load(path)


# --- on purpose: the checksum is right -----------------------------------------------


class Bomb:
    """Something that runs code when it is read from a pickle."""

    def __reduce__(self):
        return os._exit, (1,)


def pack(path, entries, compression=zipfile.ZIP_STORED):
    """Write an archive with a checksum of its own."""
    with path.open("w+b") as file:
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, contents in entries:
                archive.writestr(name, contents)
            archive.comment = bytes(64)
        checksum = array_file._checksum(file)
        file.seek(-64, os.SEEK_END)
        file.write(checksum)


def npy(array, **change):
    """Bytes of an array, with another header."""
    header = np.lib.format.header_data_from_array_1_0(array) | change
    text = repr(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(array)


def entries_of(path):
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_made_to_deceive(path):
    kaem.save(path, np.ones(3))
    header, (name, array) = entries_of(path)
    pack(path, [header, (name, array)])
    np.testing.assert_array_equal(kaem.load(path), np.ones(3))
    huge = npy(np.ones(3), shape=(10**13,))
    pickled = npy(np.ones(3), descr="|O")
    cases = [
        ([header, (name, huge)], {}, "an array has another size than it says"),
        ([header, (name, pickled)], {}, "it holds pickled objects"),
        ([header, (name, array), (name, array)], {}, "two arrays have one name"),
        (
            [header, (name, npy(np.zeros(10**6)))],
            {"compression": zipfile.ZIP_DEFLATED},
            "its arrays are compressed",
        ),
        ([header, (name, b"\x93NUMPY\x09\x00")], {}, "cannot be read"),
    ]
    for entries, options, message in cases:
        pack(path, entries, **options)
        with pytest.raises(ValueError, match=rf"is damaged, .*{message}"):
            kaem.load(path)


def test_pickles_are_not_opened(path):
    with path.open("wb") as file:
        np.savez(file, header=np.array([Bomb()], object))
    with pytest.raises(ValueError, match="holds pickled objects"):
        kaem.load(path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", '"format"', '{"format": "1"}', '{"format": 1, "format": 1}'],
    ids=["deep", "list", "text", "version", "twice"],
)
def test_headers_that_are_none(path, text):
    kaem.save(path, 1)
    pack(path, [("header.npy", npy(np.array(text)))])
    with pytest.raises(ValueError, match="its header cannot be read"):
        kaem.load(path)


def basis_of(header):
    return header["tree"]["parts"]["energy"]["parts"]["basis"]


def nested(depth):
    node = None
    for _ in range(depth):
        node = {"kind": "list", "parts": [node]}
    return node


def set_parts(*names, **parts):
    """Change of parts of an object inside of a saved prior."""

    def change(header, arrays):
        node = header["tree"]
        for name in names:
            node = node["parts"][name]
        node["parts"].update(parts)

    return change


def set_array(**changes):
    def change(header, arrays):
        header["arrays"]["tree.energy.coefficients"].update(changes)

    return change


def set_tree(tree):
    return lambda header, arrays: header.update(tree=tree)


def set_kind(kind):
    return lambda header, arrays: basis_of(header).update(kind=kind)


def resize(header, arrays):
    arrays["tree.energy.coefficients"] = np.zeros((2, 4), np.float32)
    header["arrays"]["tree.energy.coefficients"].update(shape=[2, 4], dtype="float32")


def add_array(header, arrays):
    arrays["more"] = np.ones(1)
    header["arrays"]["more"] = {
        "dtype": "float64",
        "shape": [1],
        "weak_type": False,
        "container": "array",
    }


CHANGES = {
    "class": (set_kind("os.system"), r"tree.energy.basis .* cannot load, 'os.system'"),
    "module": (set_kind("numpyro_kaem.io.saving"), "cannot load"),
    "optax-class": (set_kind("optax.adam"), "cannot load, 'optax.adam'"),
    "kind": (set_kind(["list"]), "basis is not a description"),
    "not-a-node": (set_tree({"kind": "list"}), "tree is not a description of a value"),
    "list": (set_tree([1]), "tree is not a description of a value"),
    "infinite": (set_tree(float("inf")), "tree is not a description of a value"),
    "float": (set_tree({"kind": "float", "parts": "1e5"}), "cannot load, 'float'"),
    "function": (
        set_tree({"kind": "constant", "parts": "os.system"}),
        "cannot load, 'constant'",
    ),
    "depth": (set_tree(nested(101)), "nested more than 100 deep"),
    "count": (
        set_parts("energy", "basis", num_basis=6),
        "coefficients must have shape",
    ),
    "static-type": (
        set_parts("energy", "basis", num_basis="5"),
        "expected num_basis of type .*int.*, got '5'",
    ),
    "static-bool": (set_parts("energy", "basis", degree=True), "degree of type"),
    "grid": (set_parts("energy", "basis", low=3.0), "low must be less than high"),
    "activation": (
        set_parts("energy", base_activation="eval"),
        "base_activation must be one of",
    ),
    "more-parts": (set_parts("energy", extra=1), r"tree.energy .* expected the parts"),
    "refinement": (set_parts(refinement=0), "expected a positive refinement, got 0"),
    "validate": (set_parts(validate_args="no"), "expected validate_args, got 'no'"),
    "no-energy": (set_parts(energy=None), "expected an energy, got NoneType"),
    "no-reference": (set_parts(reference=[]), "tree.reference is not a description"),
    "law": (
        set_parts("reference", **{"(law)": "Gamma"}),
        r"tree.reference .* unexpected keyword",
    ),
    "no-law": (set_parts("reference", **{"(law)": "os"}), "expected the name of a law"),
    "shape": (
        set_array(shape=[2, 4]),
        r"expected .* of shape \(2, 4\), got .*\(2, 5\)",
    ),
    "dtype": (set_array(dtype="float16"), "expected float16 of shape"),
    "no-dtype": (set_array(dtype="O"), "tree.energy.coefficients: expected object"),
    "container": (set_array(container="bytes"), "expected an array, got 'bytes'"),
    "key": (set_array(key="threefry2x32"), "tree.energy.coefficients: "),
    "resized": (resize, "coefficients must have shape"),
    "extra-array": (add_array, r"\['more'\] are not used"),
    "array-twice": (
        set_parts(
            "reference",
            scale={"kind": "array", "parts": "tree.energy.coefficients"},
        ),
        "expected the name of an array, got 'tree.energy.coefficients'",
    ),
    "lost-array": (
        lambda header, arrays: arrays.clear(),
        "its arrays are not those of its header",
    ),
    "no-arrays": (
        lambda header, arrays: header.pop("arrays"),
        "its arrays are not those of its header",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_headers_that_contradict_themselves(path, name):
    change, message = CHANGES[name]
    kaem.save(path, prior(2, reference=dist.Normal(0.0, 1.0)))
    rewrite(path, change)
    with pytest.raises(
        ValueError, match=f"the file {path} cannot be loaded: .*{message}"
    ):
        kaem.load(path)


def test_decoders_that_contradict_themselves(path):
    kaem.save(path, DECODERS["kan"]())
    rewrite(path, lambda h, _: h["tree"]["parts"]["output_shape"].update(parts=[5]))
    with pytest.raises(ValueError, match=r"tree has parts that do not fit: .* reshape"):
        kaem.load(path)
    conditioner = kaem.MaskedConditioner(jax.random.key(0), 3, 5, width=4, depth=1)
    kaem.save(path, conditioner)
    # Masks of this size would fill any memory.
    rewrite(path, lambda h, _: h["tree"]["parts"].update(dim=10**9))
    with pytest.raises(ValueError, match="expected weights of shapes"):
        kaem.load(path)


# --- half written --------------------------------------------------------------------

KILLED = """
import os, signal, sys, numpy as np
from pathlib import Path
from numpyro_kaem import array_file
array_file.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
array_file.write_arrays(Path(sys.argv[1]), {}, {"a": np.ones(1000)})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal of POSIX")
def test_a_process_that_is_killed_leaves_the_old_file(path):
    kaem.save(path, {"a": 1})
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    kaem.save(path, {"a": 2})
    assert kaem.load(path) == {"a": 2}


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    kaem.save(path, 1)

    def replace(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="cannot write the file, No space left"):
        kaem.save(path, 2)
    assert kaem.load(path) == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_header_is_text(path, tree):
    """The header can be read with NumPy and JSON alone."""
    kaem.save(path, tree)
    assert json.dumps(header_of(path), allow_nan=False)
