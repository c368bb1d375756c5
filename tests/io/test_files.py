"""Files that are damaged, from elsewhere, or only half written."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from numpyro_kaem import array_file
from tests.io.cases import DECODERS, header_of, prior, same

pytestmark = pytest.mark.float64


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
    assert len(list(path.parent.iterdir())) == 2
    # Of any file in the folder.
    kaem.save(path.with_name("other.npz"), {"a": 2})
    assert names(path.parent) == ["other.npz", "saved.npz"]


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    kaem.save(path, 1)

    def replace(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="cannot write the file, No space left"):
        kaem.save(path, 2)
    assert kaem.load(path) == 1
    assert names(path.parent) == [path.name]


# No process has this number. Elsewhere is another host, container or start of a host.
ENDED = 2**22 + 1
ELSEWHERE = "0123456789abcdef"


@pytest.mark.skipif(os.name != "posix", reason="needs numbers of processes")
@pytest.mark.parametrize(
    ("name", "days", "stays"),
    [
        (f".numpyro_kaem-{{here}}-{ENDED}-{ELSEWHERE}.tmp", 0, False),
        (f".numpyro_kaem-{{here}}-{os.getppid()}-{ELSEWHERE}.tmp", 0, True),
        (f".numpyro_kaem-{{here}}-1-{ELSEWHERE}.tmp", 0, True),
        (f".numpyro_kaem-{ELSEWHERE}-{ENDED}-{ELSEWHERE}.tmp", 0, True),
        (f".numpyro_kaem-{ELSEWHERE}-{ENDED}-{ELSEWHERE}.tmp", 2, False),
        (f"numpyro_kaem-{{here}}-{ENDED}-{ELSEWHERE}.tmp", 2, True),
        (".saved.npz.123.tmp", 2, True),
        ("mine.tmp", 2, True),
    ],
    ids=[
        "ended",
        "running",
        "of-root",
        "elsewhere",
        "old",
        "not-hidden",
        "dot",
        "mine",
    ],
)
def test_only_the_files_of_writers_that_have_ended_are_removed(path, name, days, stays):
    """A file that another thread, process or host is writing must not be taken away."""
    other = path.with_name(name.format(here=array_file._place()))
    other.write_text("half of it")
    then = time.time() - days * 86400
    os.utime(other, (then, then))
    kaem.save(path, 1)
    assert other.exists() == stays


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- by several at once --------------------------------------------------------------


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


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of POSIX")
def test_permissions_are_those_of_any_new_file(path):
    """And those that an existing file was given stay."""
    before = os.umask(0o027)
    try:
        kaem.save(path, 1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        kaem.save(path, 2)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_saving_through_a_link_writes_what_it_leads_to(path, tmp_path):
    """The link stays, also one whose file and folder are not there yet."""
    link, chain = tmp_path / "latest.npz", tmp_path / "current.npz"
    link.symlink_to("runs/7/saved.npz")
    chain.symlink_to(link)
    for number in (1, 2):
        kaem.save(chain, number)
        assert link.is_symlink()
        assert chain.is_symlink()
        assert kaem.load(tmp_path / "runs/7/saved.npz") == number
    assert names(tmp_path) == ["current.npz", "latest.npz", "runs"]


def test_the_header_is_text(path, tree):
    """The header can be read with NumPy and JSON alone."""
    kaem.save(path, tree)
    assert json.dumps(header_of(path), allow_nan=False)
