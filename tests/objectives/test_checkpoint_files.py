"""Files of checkpoints: which are kept, and what is refused."""

import json
import os
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_kaem import RBF, BSpline, Energy, array_file
from numpyro_kaem.objectives import Checkpoint, state_file


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


def test_a_step_is_replaced(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(5, jnp.array(1.0))
    checkpoint.save(5, jnp.array(2.0))
    assert checkpoint.latest(jnp.array(0.0))[:2] == (5, 2.0)


def test_a_later_sound_checkpoint_is_not_lost(tmp_path):
    checkpoint = Checkpoint(tmp_path, keep=1)
    checkpoint.save(50, jnp.array(1.0))
    with pytest.raises(ValueError, match=r"later than step 10, got .*step-00000050"):
        checkpoint.save(10, jnp.array(2.0))
    assert files(tmp_path) == ["step-00000050.npz"]


def test_a_run_goes_on_from_before_a_damaged_checkpoint(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(10, jnp.array(1.0))
    (tmp_path / "step-00000050.npz").write_bytes(b"")
    checkpoint.save(20, jnp.array(2.0))
    assert files(tmp_path) == ["step-00000010.npz", "step-00000020.npz"]


# --- damage --------------------------------------------------------------------------


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def damage_empty(path):
    path.write_bytes(b"")


def damage_text(path):
    path.write_text("not an archive")


def damage_foreign(path):
    np.savez(path, a=np.ones(3))


def damage_pickled(path):
    with path.open("wb") as file:
        np.savez(file, header=np.array([{}], object))


def rewrite(path, change):
    """Write the entries anew, so that the archive itself is sound."""
    with np.load(path) as file:
        entries = dict(file)
    header = json.loads(str(entries["header"]))
    change(entries, header)
    entries["header"] = np.array(json.dumps(header))
    with path.open("wb") as file:
        np.savez(file, **entries)


def damage_value(path):
    rewrite(path, lambda entries, _: entries.update(state=entries["state"] + 1))


def damage_metadata(path):
    rewrite(path, lambda _, header: header["metadata"].update(loss=0.0))


def damage_lost_array(path):
    rewrite(path, lambda entries, _: entries.pop("state"))


def damage_header(path):
    rewrite(path, lambda _, header: header.pop("format"))


def damage_renamed(path):
    older = path.with_name("step-00000001.npz")
    path.write_bytes(older.read_bytes())


DAMAGES = {
    damage_truncated: "not a zip file",
    damage_empty: "not a zip file",
    damage_text: "not a zip file",
    damage_foreign: "no header",
    damage_pickled: "cannot be read",
    damage_value: "checksum does not match",
    damage_metadata: "checksum does not match",
    damage_lost_array: "checksum does not match",
    damage_header: "header cannot be read",
    damage_renamed: "it is of step 1",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_files_are_passed_over(tmp_path, damage):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(1, jnp.array([1.0, 2.0]), {"loss": 1.5})
    checkpoint.save(2, jnp.array([3.0, 4.0]), {"loss": 2.5})
    damage(tmp_path / "step-00000002.npz")
    message = f"step-00000002.npz is damaged: .*{DAMAGES[damage]}"
    with pytest.warns(UserWarning, match=message):
        step, restored, metadata = checkpoint.latest(jnp.zeros(2))
    assert (step, metadata) == (1, {"loss": 1.5})
    np.testing.assert_array_equal(restored, [1.0, 2.0])


def test_any_damaged_byte_is_found(tmp_path):
    """A changed byte is either noticed, or of no importance to the contents."""
    checkpoint = Checkpoint(tmp_path)
    tree = {"a": jnp.arange(3.0), "b": jnp.array(7)}
    path = tmp_path / "step-00000001.npz"
    checkpoint.save(1, tree, {"loss": 1.5})
    sound = path.read_bytes()
    found = 0
    for position in range(0, len(sound), 7):
        changed = bytearray(sound)
        changed[position] ^= 0x41
        path.write_bytes(changed)
        try:
            state = state_file.read_state(path)
        except state_file.DamagedFileError:
            found += 1
            continue
        restored = state_file.restore_state(path, state, tree)
        np.testing.assert_array_equal(restored["a"], tree["a"])
        np.testing.assert_array_equal(restored["b"], tree["b"])
        assert state.header["metadata"] == {"loss": 1.5}
    assert found > len(sound) / 7 / 2


def test_all_damaged(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    for step in (1, 2):
        checkpoint.save(step, jnp.ones(2))
        damage_truncated(tmp_path / f"step-{step:08d}.npz")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=f"all checkpoints in {tmp_path} are damaged"),
    ):
        checkpoint.latest(jnp.ones(2))


def test_newer_format(tmp_path, monkeypatch):
    monkeypatch.setattr(array_file, "FORMAT_VERSION", 2)
    Checkpoint(tmp_path).save(1, jnp.ones(2))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 2, and this version .* up to 1"):
        Checkpoint(tmp_path).latest(jnp.ones(2))


# --- another model -------------------------------------------------------------------


class Layer(eqx.Module):
    coefficients: jax.Array


@pytest.mark.parametrize(
    ("saved", "like", "message"),
    [
        (
            {"a": np.ones((2, 3))},
            {"a": np.ones((4, 3))},
            r"state\['a'\]: expected float64\[4, 3\], found float64\[2, 3\]",
        ),
        (
            {"a": np.ones(2, np.float32)},
            {"a": np.ones(2)},
            r"expected float64\[2\], found float32\[2\]",
        ),
        (
            {"a": np.ones(2)},
            {"a": np.ones(2), "b": np.ones(1)},
            r"state\['b'\]: expected float64\[1\], found nothing",
        ),
        (
            {"a": np.ones(2), "b": np.ones(1)},
            {"a": np.ones(2)},
            r"state\['b'\]: expected nothing, found float64\[1\]",
        ),
        (
            jax.random.key(0),
            jax.random.key(0, impl="rbg"),
            r"state: expected key<rbg>\[\], found key<fry>\[\]",
        ),
        (jax.random.key(0), jax.random.PRNGKey(0), r"expected uint32\[2\], found key"),
        (
            {str(i): np.ones(2) for i in range(7)},
            {str(i): np.ones(3) for i in range(7)},
            r"'0'.*\n.*'1'.*\n.*'2'.*\n.*'3'.*\n.*'4'.*\n  and 2 more",
        ),
        (
            {"f": make_energy()},
            {"f": make_energy(low=-2.0)},
            r"state\['f'\].basis.low: expected -2.0, found -1.0",
        ),
        (
            make_energy(),
            Layer(jnp.zeros((2, 6))),
            r"state: expected 'Layer', found 'Energy'",
        ),
    ],
    ids=["shape", "dtype", "more", "fewer", "key", "old-key", "many", "grid", "class"],
)
def test_a_checkpoint_of_another_model(tmp_path, saved, like, message):
    Checkpoint(tmp_path).save(1, saved)
    with pytest.raises(ValueError, match=rf"of another model.*:\n(.*\n)*.*{message}"):
        Checkpoint(tmp_path).latest(like)


def test_another_basis(tmp_path):
    coefficients = jnp.zeros(5)
    Checkpoint(tmp_path).save(1, Energy(BSpline(-1.0, 1.0, 5), coefficients))
    with pytest.raises(ValueError, match="basis: expected 'RBF', found 'BSpline'"):
        Checkpoint(tmp_path).latest(Energy(RBF(-1.0, 1.0, 5), coefficients))


# --- the folder ----------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path, keep=1)
    checkpoint.save(1, jnp.ones(2))

    def replace(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match=r"cannot write the file, No space left"):
        checkpoint.save(2, jnp.ones(2))
    assert files(tmp_path) == ["step-00000001.npz"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def fsync(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PermissionError, match=r"cannot write .* denied.*step-00000002"):
        Checkpoint(tmp_path).save(2, jnp.ones(2))
    assert files(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the file, Not a directory"):
        Checkpoint(tmp_path / "file" / "folder").save(2, jnp.ones(2))


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"directory must be a folder .*, got the file"
    ):
        Checkpoint(tmp_path / "file")


def test_only_zip_entries_with_names(tmp_path):
    Checkpoint(tmp_path).save(1, {"a": jnp.ones(2)})
    with zipfile.ZipFile(tmp_path / "step-00000001.npz") as archive:
        assert archive.namelist() == ["header.npy", "state['a'].npy"]
