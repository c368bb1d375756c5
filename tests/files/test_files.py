"""Files that are damaged, from elsewhere, only half written, or made to deceive."""

import json
import os
import stat
import threading
import time
import zipfile

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from numpyro_kaem.files import container
from tests.files.cases import DECODERS, header_of, prior, rewrite, same


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.npz"


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


def test_damaged_files(path):
    tree = {
        "prior": prior(2, reference=dist.Normal(0.0, 1.0)),
        "decoder": DECODERS["kan"](),
        "weights": np.array([0.5, 0.25]),
        "key": jax.random.key(0),
    }
    kaem.save(path, tree)
    # The header can be read with NumPy and JSON alone.
    assert json.dumps(header_of(path), allow_nan=False)
    sound = path.read_bytes()
    rng = np.random.default_rng(20)
    damages = [flipped, truncated, inserted, removed]
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
    # Every bit counts, also those that neither NumPy nor zipfile looks at.
    kaem.save(path, 0.5)
    sound = path.read_bytes()
    for position in range(0, 8 * len(sound), 41):
        changed = bytearray(sound)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged"):
            kaem.load(path)


def test_files_from_elsewhere(tmp_path):
    """Of others, none, and checkpoints of training, which are not saved files."""
    path = tmp_path / "step-00000002.npz"
    with pytest.raises(FileNotFoundError):
        kaem.load(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(ValueError, match="not written by numpyro_kaem: it has no head"):
        kaem.load(path)
    path.write_text("not an archive")
    message = r"not written by numpyro_kaem.*not a zip file"
    with pytest.raises(ValueError, match=message):
        kaem.load(path)
    checkpoint = kaem.Checkpoint(tmp_path)
    checkpoint.save(1, np.ones(2))
    message = r"a checkpoint of training; use Checkpoint\.lat"
    with pytest.raises(ValueError, match=message):
        kaem.load(tmp_path / "step-00000001.npz")
    kaem.save(path, np.ones(2))
    with pytest.warns(UserWarning, match="no checkpoint; numpyro_kaem.load may read"):
        assert checkpoint.latest(np.ones(2))[0] == 1


# --- by several at once --------------------------------------------------------------

# No process has this number. Elsewhere is another host, container or start of a host.
ENDED = 2**22 + 1
ELSEWHERE = "0123456789abcdef"


@pytest.mark.skipif(os.name != "posix", reason="needs numbers of processes")
def test_only_the_files_of_writers_that_have_ended_are_removed(path):
    """A file that another thread, process or host is writing must not be taken away."""
    here, parent = container._place(), os.getppid()
    days_and_whether_it_stays = {
        f".numpyro_kaem-{here}-{ENDED}-{ELSEWHERE}.tmp": (0, False),
        f".numpyro_kaem-{here}-{parent}-{ELSEWHERE}.tmp": (0, True),
        # Of root, whose processes may not be asked.
        f".numpyro_kaem-{here}-1-{ELSEWHERE}.tmp": (0, True),
        f".numpyro_kaem-{ELSEWHERE}-{ENDED}-{ELSEWHERE}.tmp": (0, True),
        f".numpyro_kaem-{ELSEWHERE}-{ENDED + 1}-{ELSEWHERE}.tmp": (2, False),
        f"numpyro_kaem-{here}-{ENDED}-{ELSEWHERE}.tmp": (2, True),
        ".saved.npz.123.tmp": (2, True),
        "mine.tmp": (2, True),
    }
    for name, (days, _) in days_and_whether_it_stays.items():
        path.with_name(name).write_text("half of it")
        then = time.time() - days * 86400
        os.utime(path.with_name(name), (then, then))
    kaem.save(path, 1)
    left = [name for name, (_, stays) in days_and_whether_it_stays.items() if stays]
    assert names(path.parent) == sorted([*left, path.name])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_threads_that_save_one_path_do_not_harm_each_other(path):
    """Every read is of one whole file, and no writer fails."""
    kaem.save(path, {"by": 1, "values": np.zeros(300)})
    failures, reads = [], []
    writing = {1, 2}

    def write(number):
        try:
            for i in range(150):
                kaem.save(path, {"by": number, "values": np.full(300 * number, i)})
        except Exception as error:
            failures.append(error)
        writing.remove(number)

    def read():
        try:
            while writing:
                reads.append(kaem.load(path))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in sorted(writing)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(reads) > 100
    for tree in reads:
        assert tree["values"].shape == (300 * tree["by"],)
        assert np.ptp(tree["values"]) == 0
    assert names(path.parent) == [path.name]


# --- what a plain open would do ------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs permissions and links of POSIX")
def test_permissions_and_links_are_as_of_any_file(path, tmp_path):
    """An existing file keeps its own permissions, and a link leads where it led."""
    before = os.umask(0o027)
    try:
        kaem.save(path, 1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        kaem.save(path, 2)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # Also a link whose file and folder are not there yet.
    link, chain = tmp_path / "latest.npz", tmp_path / "current.npz"
    link.symlink_to("runs/7/saved.npz")
    chain.symlink_to(link)
    for number in (1, 2):
        kaem.save(chain, number)
        assert link.is_symlink()
        assert chain.is_symlink()
        assert kaem.load(tmp_path / "runs/7/saved.npz") == number
    assert names(tmp_path) == ["current.npz", "latest.npz", "runs", "saved.npz"]


# --- sound by their checksum, and made to deceive -------------------------------------


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
        checksum = container._checksum(file)
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
    """No room is made for what a file does not hold, and no pickle is opened."""
    kaem.save(path, np.ones(3))
    header, (name, array) = entries_of(path)
    pack(path, [header, (name, array)])
    np.testing.assert_array_equal(kaem.load(path), np.ones(3))
    huge = npy(np.ones(3), shape=(10**13,))
    pickled = npy(np.ones(3), descr="|O")
    cases = [
        ([header, (name, huge)], "an array has another size than it says"),
        ([header, (name, pickled)], "it holds pickled objects"),
        ([header, (name, array), (name, array)], "two arrays have one name"),
        ([header, (name, b"\x93NUMPY\x09\x00")], "cannot be read"),
    ]
    headers = ["[" * 100_000, "[]", '"format"', '{"format": "1"}']
    cases += [
        ([("header.npy", npy(np.array(text)))], "its header cannot be read")
        for text in [*headers, '{"format": 1, "format": 1}']
    ]
    for entries, message in cases:
        pack(path, entries)
        with pytest.raises(ValueError, match=rf"is damaged, .*{message}"):
            kaem.load(path)
    pack(path, [header, (name, npy(np.zeros(10**6)))], zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"is damaged, .*its arrays are compressed"):
        kaem.load(path)
    with path.open("wb") as file:
        np.savez(file, header=np.array([Bomb()], object))
    with pytest.raises(ValueError, match="holds pickled objects"):
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


REFERENCE_SCALE = {"kind": "array", "parts": "tree.energy.coefficients"}
CHANGES = [
    (set_kind("os.system"), r"tree.energy.basis .* cannot load, 'os.system'"),
    (set_kind("numpyro_kaem.files.saving"), "cannot load, 'numpyro_kaem.files"),
    (set_kind("optax.adam"), "cannot load, 'optax.adam'"),
    (set_kind(["list"]), "basis is not a description"),
    (set_tree({"kind": "list"}), "tree is not a description of a value"),
    (set_tree([1]), "tree is not a description of a value"),
    (set_tree(float("inf")), "tree is not a description of a value"),
    (set_tree({"kind": "float", "parts": "1e5"}), "cannot load, 'float'"),
    (set_tree({"kind": "constant", "parts": "os.system"}), "cannot load, 'constant'"),
    (set_tree(nested(101)), "nested more than 100 deep"),
    (set_parts("energy", "basis", num_basis=6), "coefficients must have shape"),
    (
        set_parts("energy", "basis", num_basis="5"),
        "expected num_basis of type .*int.*, got '5'",
    ),
    (set_parts("energy", "basis", degree=True), "degree of type"),
    (set_parts("energy", "basis", low=3.0), "low must be less than high"),
    (set_parts("energy", base_activation="eval"), "base_activation must be one of"),
    (set_parts("energy", extra=1), r"tree.energy .* expected the parts"),
    (set_parts(refinement=0), "expected a positive refinement, got 0"),
    (set_parts(validate_args="no"), "expected validate_args, got 'no'"),
    (set_parts(energy=None), "expected an energy, got NoneType"),
    (set_parts(reference=[]), "tree.reference is not a description"),
    (
        set_parts("reference", **{"(law)": "Gamma"}),
        r"tree.reference .* unexpected keyword",
    ),
    (set_parts("reference", **{"(law)": "os"}), "expected the name of a distribution"),
    (set_array(shape=[2, 4]), r"expected .* of shape \(2, 4\), got .*\(2, 5\)"),
    (set_array(dtype="float16"), "expected float16 of shape"),
    (set_array(dtype="O"), "tree.energy.coefficients: expected object"),
    (set_array(container="bytes"), "expected an array, got 'bytes'"),
    (set_array(key="threefry2x32"), "tree.energy.coefficients: "),
    (resize, "coefficients must have shape"),
    (add_array, r"\['more'\] are not used"),
    (
        set_parts("reference", scale=REFERENCE_SCALE),
        "expected the name of an array, got 'tree.energy.coefficients'",
    ),
    (lambda _, arrays: arrays.clear(), "its arrays are not those of its header"),
    (lambda header, _: header.pop("arrays"), "its arrays are not those of its header"),
]


def test_headers_that_contradict_themselves(path):
    kaem.save(path, prior(2, reference=dist.Normal(0.0, 1.0)))
    sound = path.read_bytes()
    for change, message in CHANGES:
        path.write_bytes(sound)
        rewrite(path, change)
        message = f"the file {path} cannot be loaded: .*{message}"
        with pytest.raises(ValueError, match=message):
            kaem.load(path)
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
