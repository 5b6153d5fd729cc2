"""How Sphinx builds the documentation: `make docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "python")]

import torch  # noqa: E402, F401  # first, so that the public names of dissim_kernels are there (see its __init__)

import dissim_kernels  # noqa: E402, F401

project = "dissim-kernels"
author = "the dissim-kernels authors"
copyright = f"2026, {author}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_design"]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["figures"]

# Signatures as they are written in the source; defaults of torch types are then short.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
#: `name` in a docstring is a link where there is such an object, else plain code.
default_role = "py:obj"
add_module_names = False
smartquotes = False  # quotes are Python's

html_theme = "furo"
html_title = "dissim-kernels"
html_static_path = ["static"]
html_css_files = ["site.css"]
