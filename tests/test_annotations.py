"""Annotations hold for what a user's script passes and gets, also between functions."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "typing/user_script.py"
CHECKED = """
import runpy, sys
from jaxtyping import install_import_hook

install_import_hook("numpyro_kaem", "beartype.beartype")
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.long
def test_arguments_and_results_have_the_types_that_are_annotated():
    done = subprocess.run(
        [sys.executable, "-c", CHECKED, SCRIPT],
        capture_output=True,
        text=True,
        cwd=SCRIPT.parents[2],
    )
    assert done.returncode == 0, done.stderr
