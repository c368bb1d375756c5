"""Imports between the folders of the package point one way."""

import ast
from pathlib import Path

import numpyro_kaem

# From the bottom up. A file sees its own folder and what stands in rows above its own:
# folders of one row do not see each other.
ORDER = """
_version _checks _quadrature
files.container
bases references
energy
numerics
distributions
decoders estimation
closed_forms empirical_bayes models
infer
objectives
training
diagnostics
plotting datasets files
"""
ROW = {name: i for i, row in enumerate(ORDER.splitlines()) for name in row.split()}


def place(module):
    """Name in the table of a module of the package: its own, or its folder's."""
    return next(name for name in (module, module.split(".")[0]) if name in ROW)


def imported(tree):
    """Modules of the package that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_imports_point_one_way():
    root = Path(numpyro_kaem.__path__[0])
    paths = root.rglob("*.py")
    files = {path.relative_to(root).with_suffix(""): path for path in paths}
    modules = {".".join(name.parts).removesuffix(".__init__") for name in files}
    wrong = []
    for name, path in files.items():
        own = ".".join(name.parts).removesuffix(".__init__")
        if own == "__init__":
            continue
        for target in imported(ast.parse(path.read_text())):
            target = target.removeprefix("numpyro_kaem.")
            if target not in modules or place(target) == place(own):
                continue
            if ROW[place(target)] >= ROW[place(own)]:
                wrong.append(f"{own} imports {target}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_the_map_of_contributors_is_this_table_and_names_all_files():
    root = Path(numpyro_kaem.__path__[0])
    text = (root.parent / "CONTRIBUTING.md").read_text()
    package = text.split("## The package")[1].split("## Recipes")[0]
    rows = [line.split("  ")[0] for line in package.split("```")[1].splitlines()[1:]]
    assert rows[::-1] == ORDER.split("\n")[1:-1]
    for path in root.glob("*/*.py"):
        if path.name != "__init__.py":
            paragraph = package.split(f"**`{path.parent.name}/`**")[1].split("- **")[0]
            assert f"`{path.stem}`" in paragraph, path
