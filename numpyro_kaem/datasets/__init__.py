"""Data to try a model on: some at hand, some simulated, and readers for the rest.

==========================  =========================================================
:func:`load_digits`         handwritten digits, 8×8, from scikit-learn
:func:`load_text`           English prose, from Python's own documentation
:func:`darcy_flow`          pressure fields of flow through a random medium, simulated
:func:`read_idx`            MNIST and others in its format, from a file
:func:`read_svhn`           street view house numbers, from a file
:func:`read_cifar10`        CIFAR-10, from files
:func:`read_image_folder`   images of a folder, such as CelebA's
==========================  =========================================================

Nothing is downloaded. Everything is made of NumPy arrays, images in [0, 1].
"""

from numpyro_kaem.datasets.darcy import (
    DarcyFlow,
    darcy_flow,
    gaussian_random_field,
    solve_darcy,
)
from numpyro_kaem.datasets.images import (
    Digits,
    ImageFolder,
    LabelledImages,
    load_digits,
    read_cifar10,
    read_idx,
    read_image_folder,
    read_svhn,
)
from numpyro_kaem.datasets.text import (
    ALPHABET,
    TextWindows,
    character_windows,
    clean_text,
    decode_characters,
    load_text,
)

__all__ = [
    "ALPHABET",
    "DarcyFlow",
    "Digits",
    "ImageFolder",
    "LabelledImages",
    "TextWindows",
    "character_windows",
    "clean_text",
    "darcy_flow",
    "decode_characters",
    "gaussian_random_field",
    "load_digits",
    "load_text",
    "read_cifar10",
    "read_idx",
    "read_image_folder",
    "read_svhn",
    "solve_darcy",
]
