"""What the package offers, and that its import is cheap."""

import inspect
import subprocess
import sys

import pytest

from numpyro_kaem import datasets

FUNCTIONS = [name for name in datasets.__all__ if name[0].islower()]


def test_names_are_those_that_are_there():
    assert all(hasattr(datasets, name) for name in datasets.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_has_parameters_errors_and_an_example(name):
    thing = getattr(datasets, name)
    text = inspect.getdoc(thing)
    for section in ("Parameters\n---", "Raises\n---", "Examples\n---"):
        assert section in text, f"{name} has no section {section.split()[0]}"
    for parameter in inspect.signature(thing).parameters:
        assert parameter in text, f"{name} does not document {parameter}"


def test_import_loads_no_other_package():
    code = (
        "import sys, numpyro_kaem; before = set(sys.modules);"
        "import numpyro_kaem.datasets;"
        "print({name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() in ("{'numpyro_kaem'}", "set()")
