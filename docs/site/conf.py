"""Sphinx settings of the site; tools/site.py stages the pages and calls Sphinx."""

import os
import re
from importlib.metadata import distribution
from pathlib import Path

project = "Generate to Ground, in notebooks"
author = "The Generate-to-Ground notebooks authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
numfig = True
numfig_format = {"figure": "Figure %s"}
suppress_warnings = [
    "myst.header",  # pages that begin below a first heading: the changelog
    "toc.not_included",  # pages that others link to
]

# Notebooks are shown as they were executed.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True
nb_ipywidgets_js = {}  # else widgets would ask a CDN
nb_code_prompt_show = "Show {type}"
nb_code_prompt_hide = "Hide {type}"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4

# Reading asks no other machine: MathJax with its fonts is one file of a locked package.
MATHJAX = "sphinx-mathjax-offline"
vendored = distribution(MATHJAX).locate_file(f"{MATHJAX}/static/mathjax/tex-svg.js")
mathjax_path = "mathjax/tex-svg.js"

html_theme = "sphinx_book_theme"
html_title = "Generate to Ground"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"use_download_button": False, "show_toc_level": 2}
if repository := os.environ.get("G2G_REPOSITORY"):  # the workflow that publishes knows its address
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        },
    }

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures name types; the text says shapes and units
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain English: marks that reStructuredText would read are escaped."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        lines[number] = "".join(
            p if p.startswith("`") or p.lstrip().startswith((":", "..")) else escaped(p)
            for p in parts
        )


def escaped(text):
    """Text with stars, bars and trailing underscores as letters."""
    bullet = re.match(r"\s*[*-] ", text)
    head = bullet.group() if bullet else ""
    return head + re.sub(r"([*|])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", text[len(head) :])


def setup(app):
    """Put MathJax beside the site's own files."""
    target = Path(app.outdir) / "_static" / mathjax_path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(Path(vendored).read_bytes())
    app.connect("autodoc-process-docstring", plain, priority=800)
