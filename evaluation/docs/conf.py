"""Sphinx's settings; ``build.py`` makes the pages."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "isomax"
version = release = version_of("isomax")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "mathml"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
html_theme = "furo"
html_title = f"isomax {version}"
html_math_renderer = "mathml"
html_static_path = html_css_files = ["style.css"]
html_copy_source = html_show_copyright = smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False
add_module_names = False
