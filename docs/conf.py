"""Configuration of Sphinx: python -m sphinx -W --keep-going docs FOLDER; FOLDER/index.html opens from the disk."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "cryotrans-jax"
html_title = "cryotrans-jax"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = html_show_sourcelink = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "jobs", "mathml"]
exclude_patterns = ["_ext", "_made"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # browsers show MathML without scripts, fonts or downloads

smartquotes = False  # they would turn the two hyphens of a flag into one dash
default_role = "code"  # docstrings write `x` for code, as Markdown does
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes such as "*targets 3" would be read as markup
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
