"""Files that are damaged, from elsewhere, or only half written."""

import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from numpyro_kaem import array_file
from tests.io.cases import DECODERS, header_of, prior, same


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
