"""Settings of the documentation: ``make docs``, or ``make docs DOCS_FLAGS='-t full'``.

The tutorials are the scripts in ``examples/``. They and the code of the other pages run
at every build that does not leave them out; with the tag ``full`` the scripts run in
full, without it with ``--quick``. An error in any of them fails the build, and so does
a warning of Sphinx.
"""

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
# For the processes that run the tutorials.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE / "_ext"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# What runs here shows no progress bars, and computes on the CPU as everywhere else.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TQDM_DISABLE", "1")

import tutorial_pages  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.util.nodes import make_refnode  # noqa: E402

from numpyro_kaem import __version__  # noqa: E402

project = "numpyro_kaem"
author = "The numpyro_kaem developers"
project_copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "myst_nb",
]
exclude_patterns = ["_build", "tutorials/*.ipynb"]

# Prose pages: Markdown, with code cells that run.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
# Some pages only: with DOCS_PART=3/4 the third of four parts of those that have code.
if "DOCS_PART" in os.environ:
    index, count = map(int, os.environ["DOCS_PART"].split("/"))
    paths = sorted([*HERE.glob("*.md"), *HERE.glob("guides/*.md")])
    with_code = [path for path in paths if "{code-cell}" in path.read_text()]
    nb_execution_excludepatterns = [
        path.relative_to(HERE).as_posix()
        for i, path in enumerate(with_code)
        if i % count != index - 1
    ]
nb_merge_streams = True
# Markdown that a cell makes may hold tables, which CommonMark has not.
nb_render_markdown_format = "myst"

# Reference: what the docstrings say, in the order of the pages.
napoleon_google_docstring = False
napoleon_attr_annotations = False
autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    # What JAX and NumPyro call, not users.
    "exclude-members": "step, tree_flatten, tree_unflatten, infer_shapes",
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
maximum_signature_line_length = 80
add_module_names = False

# Internal references are checked; those to other libraries stay plain text, so that a
# build needs no network.
nitpicky = True
OTHERS = "arviz|collections|equinox|jax|jaxlib|jaxtyping|numpy|numpyro|pathlib"
nitpick_ignore_regex = [
    (r"py:.*", rf"({OTHERS})(\..*)?"),
    (r"py:.*", r"(matplotlib|optax)(\..*)?"),
    # As the docstrings call them.
    (r"py:class", r"Array|Axes|callable|DataTree|Distribution|InferenceData|ndarray"),
    (r"py:class", r"MixtureSameFamily|TransformedDistribution|AnnealedState|''"),
]

# Tutorials.
FORM = "full" if tags.has("full") else "quick"  # noqa: F821
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"[/\\][^_/\\][^/\\]*\.py$",
    "ignore_pattern": r"^_",
    "copyfile_regex": r"index\.rst",
    # A notebook has no command line, which the scripts read.
    "notebook_extensions": set(),
    # In two processes.
    "parallel": 2,
    "reset_argv": f"tutorial_pages.{FORM}_arguments",
    "image_scrapers": ("tutorial_pages.saved_figures",),
    "capture_repr": (),
    "backreferences_dir": "_build/backreferences",
    "doc_module": ("numpyro_kaem",),
    "minigallery_sort_order": "tutorial_pages.as_listed",
    # The scripts say themselves how long they take on two cores.
    "min_reported_time": 1e9,
    "run_stale_examples": True,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
    "remove_config_comments": True,
}

# Site.
html_theme = "furo"
html_title = "numpyro_kaem"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
suppress_warnings = ["config.cache"]


def attribute_without_type(app, what, name, obj, options, lines) -> None:
    """Keep napoleon from reading a type in front of a colon in an attribute's words."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def without_private(app, what, name, obj, options, signature, returned):
    """Leave out the fields of a result that are not for its readers.

    Returns
    -------
    tuple or None
        The signature, and what it returns.
    """
    if what != "class" or not signature:
        return None
    return re.sub(r", _\w+(=[^,)]*)?", "", signature), returned


def without_folder(app, docname, source) -> None:
    """Show no path of this machine in what a tutorial has printed."""
    if docname.startswith("tutorials/"):
        text = re.sub(r"(?m)^( +Figures: )/.*", r"\1figures", source[0])
        source[0] = text.replace(f"{HERE.parent}/", "")


def spread_out(app, env, docnames) -> None:
    """Order pages so that each process that reads some runs as much code as others."""
    texts = {name: Path(env.doc2path(name)).read_text() for name in docnames}
    runs = [name for name in docnames if "{code-cell}" in texts[name]]
    reads = [name for name in docnames if name not in runs]
    parts = ((part, i, name) for part in (runs, reads) for i, name in enumerate(part))
    place = {name: (i + 0.5) / len(part) for part, i, name in parts}
    docnames.sort(key=place.get)


def with_notes(app, docname, source) -> None:
    """Say on the page of a tutorial in which form it ran, and what it imports."""
    if docname.startswith("tutorials/") and docname != "tutorials/index":
        source[0] = tutorial_pages.with_notes(source[0], FORM == "full")


def under_its_public_name(app, env, node, contnode):
    """Find what a docstring names as its module does under its public name.

    Returns
    -------
    Node or None
        A link, where just one public name ends like this.
    """
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.get_domain("py")
    if target.startswith("numpyro_kaem."):
        target = target.rsplit(".", 1)[1]
    kinds = domain.objtypes_for_role(node["reftype"]) or ()
    found = [
        name
        for name, entry in domain.objects.items()
        if name.endswith(f".{target}") and entry.objtype in kinds
    ]
    if len(found) != 1:
        return None
    entry = domain.objects[found[0]]
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0]
    )


def describe_thumbnails(app, doctree, docname) -> None:
    """Give the small figures in the list of tutorials their words."""
    for image in doctree.findall(nodes.image):
        match = re.search(r"sphx_glr_(\w+)_thumb", image["uri"])
        if match and not image.get("alt"):
            title = app.env.titles[f"tutorials/{match[1]}"].astext()
            image["alt"] = f"The first figure of: {title}"


def setup(app) -> None:
    """Connect what is defined here."""
    # It names a file of MathJax and copies it, but does not declare that pages may be
    # read in several processes all the same.
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
    app.connect("autodoc-process-signature", without_private)
    app.connect("env-before-read-docs", spread_out)
    app.connect("source-read", without_folder)
    app.connect("source-read", with_notes)
    app.connect("missing-reference", under_its_public_name)
    app.connect("doctree-resolved", describe_thumbnails)
    # Before napoleon, which has the priority 500.
    app.connect("autodoc-process-docstring", attribute_without_type, priority=400)
