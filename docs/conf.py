"""Sphinx: Markdown (MyST), furo, nothing fetched from elsewhere."""

import re
from pathlib import Path

_about = Path(__file__).parents[1].joinpath("everstate", "__init__.py").read_text("utf-8")
_version = re.search(r'__version__ = "(.+)"', _about)
assert _version is not None

project = "Everstate"
author = "The Everstate developers"
copyright = "the Everstate developers, Apache-2.0"
release = version = _version[1]

extensions = ["myst_parser"]
myst_heading_anchors = 4
# Logs of how issues were worked on are not for readers of the documentation.
exclude_patterns = ["_build", "progress"]
html_theme = "furo"
html_title = f"Everstate {release}"
