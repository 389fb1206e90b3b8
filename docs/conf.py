"""How Sphinx builds these pages: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # rooms.py

import gluon_resnetv2

project = "gluon_resnetv2"
version = release = gluon_resnetv2.__version__
html_title = f"{project} {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "rooms"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False
smartquotes = False  # which would take -- of options for a dash

myst_heading_anchors = 3
highlight_language = "none"
default_role = "code"  # what docstrings have in single backticks
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 90
