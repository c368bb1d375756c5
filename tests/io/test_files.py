"""Files that are damaged, from elsewhere, or only half written."""

import json
import os
import stat
import threading
import time

import jax
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
    here, parent = array_file._place(), os.getppid()
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
