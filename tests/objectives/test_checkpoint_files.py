"""Files of checkpoints: which are kept, and what is refused."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_kaem import RBF, BSpline, Energy, array_file
from numpyro_kaem.objectives import Checkpoint


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def make_energy(low=-1.0):
    return Energy(BSpline(low, 3.0, 6), jnp.arange(12.0).reshape(2, 6))


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
    monkeypatch.setattr(array_file, "FORMAT_VERSION", 2)
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
