"""English text as sequences of characters."""

import re
import unicodedata
from typing import NamedTuple

import numpy as np

from numpyro_kaem._checks import as_count, check_alphabet, check_name

__all__ = [
    "ALPHABET",
    "TextWindows",
    "character_windows",
    "clean_text",
    "decode_characters",
    "load_text",
]

ALPHABET = " abcdefghijklmnopqrstuvwxyz.,;:'()-"
"""Characters of :func:`load_text`; the token of a character is its index here."""

# How typographic apostrophes and dashes are typed.
_TYPED = str.maketrans("\N{LEFT SINGLE QUOTATION MARK}’–\N{EM DASH}", "''--")


class TextWindows(NamedTuple):
    """Pieces of a text, all of one length; made by :func:`load_text`."""

    tokens: np.ndarray
    """Indices into the alphabet, int32, shape ``(num_windows, length)``."""
    alphabet: str
    """The characters, each once."""

    def decode(self, tokens: np.ndarray) -> str | list[str]:
        """Text of tokens of this alphabet, as by :func:`decode_characters`."""
        return decode_characters(tokens, self.alphabet)


def load_text(
    length: int = 32, *, stride: int | None = None, alphabet: str = ALPHABET
) -> TextWindows:
    """Load English prose as sequences of characters: Python's own documentation.

    The text is that of ``pydoc_data.topics``, which Python ships for ``help()``,
    without code, tables and repeated paragraphs: about 170,000 characters.

    Parameters
    ----------
    length
        Number of characters per sequence.
    stride
        Number of characters between the starts of sequences; by default ``length``, so
        that none overlap.
    alphabet
        Characters to keep, as of :func:`clean_text`.

    Raises
    ------
    ImportError
        If this Python was installed without the text.
    TypeError
        If an argument is of the wrong type.
    ValueError
        If a number is not positive, the text is shorter than ``length``, or
        ``alphabet`` is empty or has a character twice.

    Notes
    -----
    The text changes with the version of Python: compare results of one version only.
    It is copyright of the Python Software Foundation, under its licence, version 2
    (https://docs.python.org/3/license.html).

    Examples
    --------
    >>> from numpyro_kaem.datasets import load_text
    >>> text = load_text(length=24)
    >>> text.tokens.shape[1], len(text.decode(text.tokens[0]))
    (24, 24)
    """
    # Before the text is read, to fail early.
    length, alphabet = as_count("length", length), check_alphabet(alphabet)
    text = clean_text(_documentation(), alphabet)
    tokens = character_windows(text, length, stride=stride, alphabet=alphabet)
    return TextWindows(tokens, alphabet)


def clean_text(text: str, alphabet: str = ALPHABET) -> str:
    """Write a text in the characters of an alphabet.

    A character that is not in it becomes its lower case or its letter without accents,
    if that is in it, or else a space. Runs of spaces become one. An alphabet without
    the space drops such characters.

    Parameters
    ----------
    text
        Any text.
    alphabet
        Characters to keep, each once.

    Raises
    ------
    TypeError
        If ``text`` or ``alphabet`` is not a string.
    ValueError
        If ``alphabet`` is empty or has a character twice.

    Examples
    --------
    >>> from numpyro_kaem.datasets import clean_text
    >>> clean_text("Kolmogorov–Arnold: “Théorème” 1957, p. 3")
    'kolmogorov-arnold: theoreme, p.'
    """
    alphabet = check_alphabet(alphabet)
    check_name("text", text, "a string")
    if not set(text) <= set(alphabet):
        # Decomposed, letters are followed by their accents, which are then left out.
        text = unicodedata.normalize("NFKD", text.translate(_TYPED))
        text = "".join(c for c in text if not unicodedata.combining(c))
    space = " " if " " in alphabet else ""
    table = {}
    for character in set(text) - set(alphabet):
        lower = character.lower()
        table[ord(character)] = lower if lower in alphabet else space
    text = text.translate(table)
    if not space:
        return text
    # What was left out may have stood between a word and its punctuation.
    text = re.sub(r" +(?=[.,;:)])|(?<=\() +", "", text)
    return re.sub(r" +", " ", text).strip(" ")


def character_windows(
    text: str, length: int, *, stride: int | None = None, alphabet: str = ALPHABET
) -> np.ndarray:
    """Cut a text into sequences: indices into the alphabet, ``(num_windows, length)``.

    Parameters
    ----------
    text
        Text in the characters of the alphabet; see :func:`clean_text`.
    length
        Number of characters per sequence.
    stride
        Number of characters between the starts of sequences; by default ``length``. A
        shorter rest at the end is dropped.
    alphabet
        Characters, each once.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If a number is not positive, the text is shorter than ``length`` or has a
        character that is not in the alphabet, or ``alphabet`` is empty or has a
        character twice.

    Examples
    --------
    >>> from numpyro_kaem.datasets import character_windows
    >>> character_windows("abcab", 3, stride=1, alphabet="abc")
    array([[0, 1, 2],
           [1, 2, 0],
           [2, 0, 1]], dtype=int32)
    """
    length, alphabet = as_count("length", length), check_alphabet(alphabet)
    stride = length if stride is None else as_count("stride", stride)
    check_name("text", text, "a string")
    if len(text) < length:
        raise ValueError(
            f"text must have at least length={length} characters, got {len(text)}."
        )
    strangers = set(text) - set(alphabet)
    if strangers:
        place = min(text.index(character) for character in strangers)
        raise ValueError(
            f"text must consist of characters of the alphabet, got {text[place]!r} at "
            f"index {place}; clean_text replaces such characters."
        )
    index_of = {character: i for i, character in enumerate(alphabet)}
    tokens = np.fromiter((index_of[c] for c in text), np.int32, len(text))
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length)
    return windows[::stride].copy()


def decode_characters(tokens: np.ndarray, alphabet: str = ALPHABET) -> str | list[str]:
    """Text of tokens, or a list of one text per sequence.

    Parameters
    ----------
    tokens
        Indices into the alphabet, integers of shape ``(length,)`` or
        ``(num_sequences, length)``.
    alphabet
        Characters, each once.

    Raises
    ------
    TypeError
        If tokens are not integers, or ``alphabet`` is not a string.
    ValueError
        If tokens are of another shape or not indices into the alphabet, or ``alphabet``
        is empty or has a character twice.

    Examples
    --------
    >>> from numpyro_kaem.datasets import decode_characters
    >>> decode_characters([[0, 1], [2, 2]], alphabet="abc")
    ['ab', 'cc']
    """
    alphabet = check_alphabet(alphabet)
    tokens = np.asarray(tokens)
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}.")
    if tokens.ndim not in (1, 2):
        raise ValueError(
            "tokens must have shape (length,) or (num_sequences, length), got "
            f"{tokens.shape}."
        )
    bad = tokens[(tokens < 0) | (tokens >= len(alphabet))]
    if bad.size:
        raise ValueError(
            f"tokens must be from 0 to {len(alphabet) - 1}, the last index of the "
            f"alphabet, got {bad[0]}."
        )
    texts = ["".join(alphabet[i] for i in row) for row in np.atleast_2d(tokens)]
    return texts if tokens.ndim == 2 else texts[0]


def _documentation() -> str:
    """Prose of Python's documentation, paragraphs joined by spaces."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError(
            "load_text needs pydoc_data.topics, a part of Python's standard library "
            "that this installation lacks."
        ) from error
    # In order, and each once: some stand in several chapters.
    paragraphs: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            paragraph = " ".join(paragraph.split())
            # Prose ends in a full stop and is nearly all letters; code, grammar,
            # tables and headings are not.
            ordinary = sum(c.isalpha() or c in " ,.'-" for c in paragraph)
            long = len(paragraph) >= 80
            if long and paragraph[-1] == "." and ordinary > 0.93 * len(paragraph):
                paragraphs[paragraph] = None
    return " ".join(paragraphs)
