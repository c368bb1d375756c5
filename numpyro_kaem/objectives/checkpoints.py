"""A folder of checkpoints, from which training goes on where it was stopped."""

import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from numpyro_kaem.bases._checks import as_count, as_path
from numpyro_kaem.objectives.state_file import (
    DamagedFileError,
    StateFile,
    read_state,
    restore_state,
    write_state,
)

__all__ = ["Checkpoint"]

_NAME = re.compile(r"step-(\d{8,})\.npz")


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often to keep the state of training.

    The state is any pytree of arrays: an ``SVIState`` with the state of an optimiser
    of :mod:`numpyro.optim` or optax, random keys of both kinds, Equinox modules. Files
    are called ``step-00001000.npz``. They hold arrays by name and a header in JSON, and
    no pickled objects, so they can be read by another process with another order of
    hashes, on another device, and by a later version of this package.

    Parameters
    ----------
    directory
        Folder for the files; made when the first is written. One run writes to it at a
        time; other files in it are left alone.
    every
        Number of steps from one checkpoint to the next.
    keep
        Number of newest checkpoints that are kept. With two or more, a damaged file
        costs ``every`` steps and not the run.

    Raises
    ------
    TypeError
        If ``directory`` is not a path, or a number not an integer.
    ValueError
        If ``directory`` is a file, or a number not positive.

    Notes
    -----
    A checkpoint holds the numbers, and not the code: :meth:`latest` is given a pytree
    of the same structure, such as the state before the first step. Names, shapes, data
    types, the classes of modules and their static numbers, such as the ends of a grid,
    must be those of the checkpoint. Each array comes back bit for bit.

    Examples
    --------
    >>> import tempfile
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from numpyro_kaem.objectives.checkpoints import Checkpoint
    >>> state = {"coefficients": jnp.array([0.5, -1.0]), "key": jax.random.key(0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(folder, every=100)
    ...     checkpoint.save(100, state, {"loss": 2.5})
    ...     step, restored, metadata = checkpoint.latest(state)
    >>> step, restored["coefficients"], metadata
    (100, Array([ 0.5, -1. ], dtype=...), {'loss': 2.5})
    """

    directory: Path
    """Folder of the files."""
    _: KW_ONLY
    every: int = 1000
    """Number of steps from one checkpoint to the next."""
    keep: int = 2
    """Number of newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        directory = as_path("directory", self.directory)
        if directory.exists() and not directory.is_dir():
            raise ValueError(
                f"directory must be a folder for checkpoints, got the file {directory}."
            )
        object.__setattr__(self, "directory", directory)
        object.__setattr__(self, "every", as_count("every", self.every))
        object.__setattr__(self, "keep", as_count("keep", self.keep))

    def save(
        self, step: int, tree: Any, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write a checkpoint, and remove those that are no longer kept.

        Parameters
        ----------
        step
            Number of the step, at least 0. A checkpoint of this step is replaced.
        tree
            A pytree of arrays of any shapes, random keys and Python numbers.
        metadata
            What else to keep, by name, of what JSON can hold. Tuples come back as
            lists, and names as text.

        Raises
        ------
        TypeError
            If a leaf is not an array, ``metadata`` is not for JSON, or ``step`` is not
            an integer.
        ValueError
            If ``step`` is negative, if the folder holds a later checkpoint, or if the
            pytree holds a NumPyro distribution, whose arrays have no names.
        OSError
            If the file cannot be written; no other checkpoint is touched then.
        """
        step = as_count("step", step, minimum=0)
        for later, path in self._files():
            if later <= step:
                break
            # Of a run that went on from an earlier one. A sound file is not ours to
            # remove, and would be taken for the newest.
            if _is_sound(path, later):
                raise ValueError(
                    f"directory must hold no checkpoint later than step {step}, got "
                    f"{path}; resume from it, or use another folder."
                )
            path.unlink()
        write_state(self.directory / f"step-{step:08d}.npz", step, tree, metadata)
        for _, path in self._files()[self.keep :]:
            path.unlink(missing_ok=True)

    def latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Read the newest checkpoint that is sound.

        Parameters
        ----------
        like
            A pytree of the structure, shapes and data types that were saved; its
            values do not matter. Leaves may be :class:`jax.ShapeDtypeStruct`. Or a
            plain function from the metadata to such a pytree.

        Returns
        -------
        tuple or None
            Step, pytree and metadata; None if there is no checkpoint.

        Raises
        ------
        TypeError
            If a leaf of ``like`` is not an array.
        ValueError
            If all checkpoints are damaged, if the newest is of another model (the
            first differences are listed) or of a newer format, or if ``like`` holds a
            NumPyro distribution.

        Warns
        -----
        UserWarning
            If a damaged checkpoint is passed over.
        """
        damaged = []
        for step, path in self._files():
            try:
                state = _read(path, step)
            except DamagedFileError as error:
                damaged.append(f"{path.name}: {error}")
                warnings.warn(
                    f"the checkpoint {path} is damaged: {error}; going back to "
                    "the one before it.",
                    UserWarning,
                    stacklevel=2,
                )
                continue
            metadata = state.header["metadata"]
            tree = like(metadata) if inspect.isroutine(like) else like
            return step, restore_state(path, state, tree), metadata
        if damaged:
            raise ValueError(
                f"all checkpoints in {self.directory} are damaged ("
                f"{'; '.join(damaged)}); remove them to start anew."
            )
        return None

    def _files(self) -> list[tuple[int, Path]]:
        """List steps and files of the checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        files = [
            (int(match[1]), path)
            for path in self.directory.iterdir()
            if (match := _NAME.fullmatch(path.name)) and path.is_file()
        ]
        return sorted(files, reverse=True)


def _read(path: Path, step: int) -> StateFile:
    """Contents of the checkpoint of a step.

    Raises
    ------
    DamagedFileError
        If it is not as it was written, or was renamed.
    """
    state = read_state(path)
    if state.header["step"] != step:
        raise DamagedFileError(f"it is of step {state.header['step']}")
    return state


def _is_sound(path: Path, step: int) -> bool:
    try:
        _read(path, step)
    except DamagedFileError:
        return False
    return True
