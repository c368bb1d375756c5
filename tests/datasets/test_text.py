"""Text: there and back, cleaning, and what holds in every version of Python."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numpyro_kaem.datasets import (
    ALPHABET,
    character_windows,
    clean_text,
    decode_characters,
    load_text,
)

TEXT = "it's a text, one (of many); of two-line: a."


def test_characters_to_tokens_and_back():
    tokens = character_windows(TEXT, 5)
    assert tokens.dtype == np.int32
    assert tokens.shape == (len(TEXT) // 5, 5)
    assert decode_characters(tokens) == [
        TEXT[i : i + 5] for i in range(0, len(TEXT) - 4, 5)
    ]
    assert "".join(decode_characters(tokens)) == TEXT[: tokens.size]
    for stride in (1, 2, 3, 7):
        windows = character_windows(TEXT, 4, stride=stride)
        starts = range(0, len(TEXT) - 3, stride)
        assert decode_characters(windows) == [TEXT[i : i + 4] for i in starts]
    # Tokens are places in the alphabet.
    assert_array_equal(character_windows("cab", 3, alphabet="abc"), [[2, 0, 1]])
    assert_array_equal(character_windows("cab", 3, alphabet="bac"), [[2, 1, 0]])
    assert decode_characters(np.array([2, 1, 0]), "bac") == "cab"


def test_clean_text():
    for text, alphabet, expected in [
        ("Two  Words\n", ALPHABET, "two words"),
        ("one – two—three’s", ALPHABET, "one - two-three's"),
        ("Gödel, Café", ALPHABET, "godel, cafe"),
        ('"x" , ("y") and `z`.', ALPHABET, "x, (y) and z."),
        ("Ab 12 aB", "abAB ", "Ab aB"),
        ("Ab 12 aB", "ab", "abab"),
        ("Gödel", "Gödel", "Gödel"),
        ("", ALPHABET, ""),
        ("123", ALPHABET, ""),
    ]:
        assert clean_text(text, alphabet) == expected
        assert clean_text(expected, alphabet) == expected


def test_documentation():
    text = load_text(length=50)
    assert text.alphabet == ALPHABET
    assert text.tokens.dtype == np.int32
    assert text.tokens.shape[1] == 50
    assert text.tokens.min() == 0
    assert text.tokens.max() < len(ALPHABET)
    # Prose: long, of many letters, with the commonest words of English.
    assert 50_000 < text.tokens.size < 1_000_000
    assert set(range(1, 27)) <= set(np.unique(text.tokens))
    whole = "".join(text.decode(text.tokens))
    words = whole.split()
    assert 0.03 < words.count("the") / len(words) < 0.15
    assert 4 < len(whole) / len(words) < 8
    assert "  " not in whole
    assert whole.count("python") > 10
    assert text.decode(text.tokens[3]) == whole[150:200]
    few = load_text(16, stride=1000, alphabet="abcdefghijklmnopqrstuvwxyz ")
    assert few.alphabet == "abcdefghijklmnopqrstuvwxyz "
    assert_array_equal(
        few.tokens, load_text(16, stride=1000, alphabet=few.alphabet).tokens
    )
    assert few.tokens.shape[0] > 50
    assert few.tokens.max() == 26


def test_errors(monkeypatch):
    for call, error, message in [
        (lambda: load_text(0), ValueError, "length must be a positive integer"),
        (lambda: load_text(8.0), TypeError, "length must be a positive integer"),
        (lambda: load_text(8, stride=0), ValueError, "stride must be a positive"),
        (lambda: load_text(10**8), ValueError, "at least length=100000000 char"),
        (lambda: load_text(8, alphabet=""), ValueError, "at least one character"),
        (lambda: load_text(8, alphabet=["a"]), TypeError, "must be a string of char"),
        (lambda: clean_text("a", "aba"), ValueError, "'a' 2 times"),
        (
            lambda: clean_text(b"a"),
            TypeError,
            "text must be a string, got an object of type bytes",
        ),
        (lambda: character_windows(["a"], 1), TypeError, "text must be a string"),
        (lambda: character_windows("abXd!", 2), ValueError, "got 'X' at index 2"),
        (lambda: character_windows("ab", 3), ValueError, "length=3 characters, got 2"),
        (lambda: decode_characters([0.0]), TypeError, "integers, got dtype float64"),
        (lambda: decode_characters(1), ValueError, r"got \(\)"),
        (lambda: decode_characters([0, 3], "abc"), ValueError, "0 to 2, .* got 3"),
        (lambda: decode_characters([[-1]], "abc"), ValueError, "got -1"),
    ]:
        with pytest.raises(error, match=message):
            call()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ImportError, match="this installation lacks"):
        load_text()
