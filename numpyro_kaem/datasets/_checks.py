"""Checks of arguments that several data sets share."""

from pathlib import Path
from typing import Any

import numpy as np

from numpyro_kaem._checks import as_path

__all__ = ["as_generator", "as_positive", "check_alphabet", "existing_file"]


def as_generator(rng: Any) -> np.random.Generator:
    """Return a generator itself, or the one that a seed starts.

    Parameters
    ----------
    rng
        A NumPy generator, or a whole number from 0.

    Returns
    -------
    numpy.random.Generator

    Raises
    ------
    TypeError
        If it is neither: without a seed nothing could be drawn again.
    ValueError
        If a seed is negative.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool | np.bool_) or not isinstance(rng, int | np.integer):
        raise TypeError(
            "rng must be a numpy.random.Generator or an integer seed, got "
            f"{rng!r} of type {type(rng).__name__}."
        )
    if rng < 0:
        raise ValueError(f"rng must be a seed >= 0, got {rng}.")
    return np.random.default_rng(int(rng))


def as_positive(name: str, value: Any) -> float:
    """Return a positive and finite number as a ``float``.

    Parameters
    ----------
    name
        Name of the argument, for the message.
    value
        Its value.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not positive and finite.
    """
    numeric = isinstance(value, int | float | np.integer | np.floating)
    if not numeric or isinstance(value, bool):
        raise TypeError(
            f"{name} must be a positive number, got {value!r} of type "
            f"{type(value).__name__}."
        )
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return float(value)


def check_alphabet(alphabet: Any) -> str:
    """Return an alphabet: a string of different characters.

    Parameters
    ----------
    alphabet
        What should be one.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        If it is not a string.
    ValueError
        If it is empty, or has a character twice.
    """
    if not isinstance(alphabet, str):
        raise TypeError(
            f"alphabet must be a string of characters, got {alphabet!r} of type "
            f"{type(alphabet).__name__}."
        )
    if not alphabet:
        raise ValueError("alphabet must have at least one character, got ''.")
    twice = [character for character in alphabet if alphabet.count(character) > 1]
    if twice:
        raise ValueError(
            f"alphabet must have each character once, got {twice[0]!r} "
            f"{alphabet.count(twice[0])} times."
        )
    return alphabet


def existing_file(path: Any, expected: str) -> Path:
    """Return the path of a file that is there.

    Parameters
    ----------
    path
        Path, as a string or path object.
    expected
        What the file should be, for the message, such as ``"an IDX file"``.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    TypeError
        If it is not a path.
    FileNotFoundError
        If nothing is there.
    ValueError
        If it is a folder.
    """
    path = as_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {expected}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected {expected}.")
    return path
