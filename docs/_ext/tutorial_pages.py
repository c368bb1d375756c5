"""How the scripts in ``examples/`` become pages: their options, and their figures."""

import os
import re
import shutil
from functools import partialmethod
from pathlib import Path
from textwrap import indent

from PIL import Image
from sphinx_gallery.scrapers import figure_rst
from tqdm.std import tqdm

# Progress bars are for a terminal: what a script writes to it is shown on its page.
NOWHERE = open(os.devnull, "w")  # open as long as the process
tqdm.__init__ = partialmethod(tqdm.__init__, file=NOWHERE)

# The scripts write their figures there.
OUTPUT = Path(__file__).parents[1] / "_build" / "figures"

INDEX = Path(__file__).parents[2] / "examples" / "index.rst"


def as_listed(script: str) -> int:
    """Place of a script in the list of tutorials."""
    return INDEX.read_text().index(f"/{Path(script).name}")


def output_folder(script: str) -> Path:
    """Folder of the figures of one script."""
    return OUTPUT / Path(script).stem


def quick_arguments(gallery_conf: dict, script_vars: dict) -> list[str]:
    """Command line of the short form."""
    return ["--quick", *full_arguments(gallery_conf, script_vars)]


def full_arguments(gallery_conf: dict, script_vars: dict) -> list[str]:
    """Command line of the full form, in an empty folder."""
    folder = output_folder(script_vars["src_file"])
    shutil.rmtree(folder, ignore_errors=True)
    return ["--output", str(folder)]


def with_notes(page: str, is_full: bool) -> str:
    """Say above a script in which form it ran, and which data files it imports.

    Parameters
    ----------
    page
        The page in reStructuredText.
    is_full
        Whether the scripts ran in full.

    Returns
    -------
    str
        The page with what there is to say.
    """
    notes = []
    if not is_full:
        notes.append(
            "This page ran with ``--quick``: numbers are rougher, and times other, "
            "than those of a full run."
        )
    files = [f"{name}.py" for name in re.findall(r"(?m)^ +from (_\w+) import", page)]
    if files:
        links = " and ".join(f":download:`{f} <../../examples/{f}>`" for f in files)
        notes.append(f"The data are in {links}; save that beside the script to run it.")
    first = ".. GENERATED FROM PYTHON SOURCE LINES"
    return page.replace(first, "\n\n".join([*notes, first]), 1)


def saved_figures(block: tuple, block_vars: dict, gallery_conf: dict) -> str:
    """Show the figures that a block of a script has saved, and take them away.

    A figure says in its metadata what it shows, for those who cannot see it:
    ``fig.savefig(path, metadata={"Description": "..."})``.

    Returns
    -------
    str
        The figures in reStructuredText.

    Raises
    ------
    ValueError
        If a figure does not say what it shows.
    """
    pages = []
    folder = output_folder(block_vars["src_file"])
    for path in sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime_ns):
        with Image.open(path) as image:
            description = image.info.get("Description")
        if not description:
            raise ValueError(f"{path.name} has no metadata {{'Description': ...}}")
        target = next(block_vars["image_path_iterator"])
        shutil.move(path, target)
        figure = figure_rst([target], gallery_conf["src_dir"], description)
        # A box of its own, so that a wide figure can be scrolled on a phone.
        pages.append(f"\n.. container:: figures\n{indent(figure, '   ')}\n")
    return "".join(pages)
