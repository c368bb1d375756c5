"""The pages of the reference hold every public name, once, and nothing else."""

import importlib
import inspect
import re
from pathlib import Path

import numpyro_kaem as kaem

DOCS = Path(__file__).parents[1] / "docs"
# Folders with public names beside those of ``numpyro_kaem`` itself.
FOLDERS = (
    "infer",
    "bases",
    "closed_forms",
    "datasets",
    "decoders",
    "diagnostics",
    "distributions",
    "empirical_bayes",
    "objectives",
    "plotting",
    "training",
)
# Without public names, or theirs are those of ``numpyro_kaem`` itself.
INTERNAL = {"estimation", "files", "models", "numerics", "references"}
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: ([\w.]+)$", re.MULTILINE)


def documented():
    """Name to directive, of all pages."""
    found = [
        (name, kind)
        for page in sorted((DOCS / "api").glob("*.rst"))
        for kind, name in DIRECTIVE.findall(page.read_text())
        if kind != "module"
    ]
    names = [name for name, _ in found]
    assert len(set(names)) == len(names), "a name is on two pages"
    return dict(found)


def public():
    """Name to object; an object has the name nearest to ``numpyro_kaem``."""
    modules = {"numpyro_kaem": kaem}
    for folder in FOLDERS:
        module = f"numpyro_kaem.{folder}"
        modules[module] = importlib.import_module(module)
    names, seen = {}, set()
    for path, module in modules.items():
        for name in module.__all__:
            thing = getattr(module, name)
            if name == "__version__" or inspect.ismodule(thing) or id(thing) in seen:
                continue
            seen.add(id(thing))
            names[f"{path}.{name}"] = thing
    return names


def test_pages_hold_every_public_name_and_nothing_else():
    pages, names = documented(), public()
    assert not set(names) - set(pages), "not in docs/api"
    assert not set(pages) - set(names), "in docs/api, and not public"
    for name, kind in pages.items():
        thing = names[name]
        if inspect.isclass(thing):
            expected = "class"
        else:
            expected = "function" if callable(thing) else "data"
        assert kind == expected, name


def test_each_folder_has_its_page():
    package = Path(kaem.__path__[0])
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert folders - INTERNAL == set(FOLDERS)
    for folder in FOLDERS:
        page = (DOCS / "api" / f"{folder}.rst").read_text()
        assert f".. automodule:: numpyro_kaem.{folder}\n" in page
    listed = re.findall(r"^   (\w+)$", (DOCS / "api" / "index.rst").read_text(), re.M)
    pages = {path.stem for path in (DOCS / "api").glob("*.rst")} - {"index"}
    assert sorted(listed) == sorted(pages)


def test_every_public_name_says_what_it_is():
    for name, thing in public().items():
        if not (inspect.isclass(thing) or callable(thing)):
            continue
        summary = (inspect.getdoc(thing) or "").split("\n\n")[0]
        assert summary.endswith("."), f"{name} has no summary: {summary!r}"
        assert inspect.getdoc(thing) != inspect.getdoc(type(thing)), name


def test_every_example_is_a_tutorial_whose_figures_say_what_they_show():
    examples = DOCS.parent / "examples"
    scripts = {path.stem: path.read_text() for path in examples.glob("[!_]*.py")}
    index = (examples / "index.rst").read_text()
    shown = re.findall(r"^   \.\./examples/(\w+)\.py$", index, re.MULTILINE)
    listed = re.findall(r"^   (\w+)$", index, re.MULTILINE)
    assert sorted(shown) == sorted(listed) == sorted(scripts)
    for name, text in scripts.items():
        assert text.count('"Description": ') == text.count(".savefig("), name
