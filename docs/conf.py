# SPDX-License-Identifier: MIT
"""The site: ``pip install ".[docs]" && sphinx-build -W -b html docs build/site``.

The pages are the Markdown files beside this one; they stay readable on GitHub.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import cpuattn

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "cpuattn"
author = "the cpuattn authors"
project_copyright = f"{author}, MIT license"
version = release = cpuattn.__version__

extensions = ["cli_help", "myst_parser", "numpydoc", "sphinx.ext.autodoc"]
default_role = "py:obj"
smartquotes = False
exclude_patterns = ["_ext", "*.py"]

myst_heading_anchors = 3
myst_fence_as_directive: set[str] = set()

autodoc_typehints = "none"  # numpydoc's sections say shapes and dtypes, hints do not
python_maximum_signature_line_length = 80
numpydoc_show_class_members = False
numpydoc_validation_exclude = {r"AttentionOutputs\."}  # fields of a named tuple
numpydoc_validation_checks = {
    "GL01",
    "GL03",
    "GL08",
    "SS01",
    "SS03",
    "PR02",
    "PR04",
    "RT04",
    "YD01",
}

html_theme = "furo"
html_title = f"cpuattn {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
highlight_language = "text"
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Files outside of docs/ that have a page here. Links to them are those of GitHub.
PAGES = {
    "../CHANGELOG.md": "changelog.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../README.md": "index.md",
    "../bench/README.md": "benchmark-method.md",
    "../cpp/include/cpuattn/cpuattn.h": "api/c.md",
    "../examples/embed_c": "examples.md#a-decode-loop-in-c",
    "../examples/embed_cpp": "examples.md#prefill-on-threads-of-the-apps-own-in-c",
    "../examples/sentence_embeddings.py": "examples.md#a-model-in-numpy",
}


def link_inside(app: Sphinx, page: str, source: list[str]) -> None:
    """Make links to files that have a page here point to that page."""
    depth = "../" * page.count("/")
    for outside, inside in PAGES.items():
        pattern = re.escape(f"]({depth}{outside}") + r"/?(?=[)#])"
        source[0] = re.sub(pattern, f"]({depth}{inside}", source[0])


def setup(app: Sphinx) -> None:
    """Register the hook that rewrites links."""
    app.connect("source-read", link_inside)
