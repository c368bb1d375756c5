"""Save a model or a fit to a file, and load it."""

import os
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from numpyro_kaem._checks import as_path
from numpyro_kaem.files.arrays import LoadedArrays, describe_for_file, to_stored
from numpyro_kaem.files.container import DamagedFileError, read_arrays, write_arrays
from numpyro_kaem.files.description import Registry, build, describe

__all__ = ["load", "save"]

_ROOT = "tree"


def save(path: str | os.PathLike, tree: Any, *, classes: Iterable[type] = ()) -> None:
    """Save a model, a fit or any tree of them to one file, without pickle.

    Parameters
    ----------
    path
        Where to write; folders are made, and an existing file is replaced when the new
        one is complete, of a symbolic link the file it leads to. Several threads,
        processes and hosts may save and load one path.
    tree
        A prior, energy, basis, decoder, likelihood, :class:`KAEM`, :class:`FitResult`,
        :class:`UnitPosterior`, a distribution of NumPyro, the parameters or the state
        of ``SVI``, arrays, random keys, numbers, text and None, in tuples, lists and
        dictionaries.
    classes
        Classes of your own Equinox modules that occur in ``tree``.

    Raises
    ------
    TypeError
        If something in ``tree`` is of another class, such as a function, or is a
        distribution that does not keep its arguments: its place is named. If something
        is traced, ``path`` is not a path, or ``classes`` are not
        classes of Equinox modules.
    ValueError
        If something could not be loaded again, such as a distribution whose parameters
        its constructor refuses, or if two classes have one name.
    OSError
        If the file cannot be written; a file that was there is not touched then.

    Notes
    -----
    - The file is an ``.npz`` archive, whatever its name: each array by its place in the
      tree, such as ``tree.energy.coefficients``, and a header in JSON with the classes,
      static values such as the ends of grids, shapes, and versions. It ends with a
      checksum of all its bytes.
    - A fit with code in it cannot be saved as a whole. Of a :class:`MarginalFit` save
      ``fit.prior``, of a guide the parameters, of a model of your own the parameters.
      To go on training from where it stopped, use :class:`Checkpoint`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> energy = kaem.Energy(
    ...     kaem.BSpline(-1.0, 3.0, 4), jnp.array([0.0, 1.0, 2.0, 0.0])
    ... )
    >>> prior = kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "effects.npz")
    ...     kaem.save(path, {"prior": prior, "source": "trial of 2019"})
    ...     saved = kaem.load(path)
    >>> saved["source"], bool(saved["prior"].log_prob(0.5) == prior.log_prob(0.5))
    ('trial of 2019', True)
    """
    path = as_path("path", path)
    registry = Registry(classes)
    arrays: dict[str, Any] = {}
    description = describe(tree, _ROOT, arrays, registry)
    described = {name: describe_for_file(name, a) for name, a in arrays.items()}
    stored = {name: to_stored(name, a) for name, a in arrays.items()}
    try:
        build(description, _ROOT, LoadedArrays(described, stored, None), registry)
    except ValueError as error:
        raise ValueError(f"tree could not be loaded again: {error}.") from error
    write_arrays(path, {"tree": description, "arrays": described}, stored)


def load(
    path: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    classes: Iterable[type] = (),
) -> Any:
    """Load what :func:`save` wrote, in any process and on any device.

    Nothing in the file is executed: classes are looked up in a list, never imported by
    a name in the file.

    Parameters
    ----------
    path
        A file of :func:`save`.
    dtype
        Floating-point format for all real JAX arrays; ``None`` keeps that of each.
    classes
        Classes of your own Equinox modules, as given to :func:`save`.

    Returns
    -------
    Any
        The tree, with arrays on the default device.

    Raises
    ------
    TypeError
        If ``path`` is not a path, or ``classes`` are not classes of Equinox modules.
    ValueError
        If the file is truncated, damaged or changed, is from a newer version, or was
        not written by :func:`save`; if it holds a class that is not known; if a number
        is too large for the precision; if ``dtype`` is not a floating-point format that
        is enabled.
    OSError
        If the file cannot be read.

    Warns
    -----
    UserWarning
        If numbers are rounded because 64-bit formats are not enabled.

    Notes
    -----
    - In the precision in which it was saved, every array and every ``log_prob`` comes
      back bit for bit.
    - Arrays in float32 stay so in a process with float64, where they act as in any
      expression of JAX; ``dtype="float64"`` widens them. Where 64-bit formats are not
      enabled, JAX arrays are rounded to the nearest 32-bit number, with a warning if
      digits are lost, and none if ``dtype="float32"`` asks for it.
    - NumPy's arrays, and static numbers such as the ends of grids, keep all digits.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import jax.numpy as jnp
    >>> import numpyro_kaem as kaem
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "basis.npz")
    ...     kaem.save(path, (kaem.Fourier(-1.0, 1.0, 3), jnp.arange(3)))
    ...     kaem.load(path)
    (Fourier(low=-1.0, high=1.0, num_frequencies=3), Array([0, 1, 2], dtype=...))
    """
    path = as_path("path", path)
    registry = Registry(classes)
    dtype = _as_format(dtype)
    try:
        header, stored = read_arrays(path)
    except DamagedFileError as error:
        raise ValueError(
            f"the file {path} is damaged, or was not written by numpyro_kaem: {error}."
        ) from error
    if _ROOT not in header:
        raise ValueError(
            f"the file {path} is a checkpoint of training; use Checkpoint.latest."
        )
    try:
        arrays = LoadedArrays(header.get("arrays"), stored, dtype)
        tree = build(header[_ROOT], _ROOT, arrays, registry)
        arrays.check_all_taken()
    except ValueError as error:
        raise ValueError(f"the file {path} cannot be loaded: {error}.") from error
    if arrays.num_rounded:
        warnings.warn(
            f"{arrays.num_rounded} arrays of {path} were rounded to 32 bits; call "
            "numpyro.enable_x64() before loading to keep all digits, or pass "
            "dtype='float32'.",
            UserWarning,
            stacklevel=2,
        )
    return tree


def _as_format(dtype: Any) -> Any:
    """Convert to a floating-point format.

    Raises
    ------
    ValueError
        If it is none, or needs 64 bits that are not enabled.
    """
    if dtype is None:
        return None
    try:
        wanted = jnp.dtype(dtype)
    except TypeError:
        wanted = None
    if wanted is None or not jnp.issubdtype(wanted, jnp.floating):
        raise ValueError(
            f"dtype must be a floating-point format such as 'float32', got {dtype!r}."
        )
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"dtype must be enabled, got {wanted}; call numpyro.enable_x64() first."
        )
    return wanted
