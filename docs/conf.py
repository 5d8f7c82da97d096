"""The site: ``make docs`` builds it into output/site with Sphinx, MyST and Furo. A warning is an error.

The source folder is the repository itself, so that DATASETS.md and SWEEPS.md are pages too and every link
works on GitHub as on the site. ``docs/reference.py`` fills the reference pages in as they are read.
"""

import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import dassl  # noqa: E402
from docs import reference  # noqa: E402

project = "PLOT"
author = "the authors of plot-prompt-learning"
version = release = dassl.__version__
html_title = "PLOT"

root_doc = "docs/index"
include_patterns = ["docs/*.md", "DATASETS.md", "SWEEPS.md", "CONTRIBUTING.md", "published/README.md"]
exclude_patterns = [".*", "output", "data", "*.egg-info"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a fragment that is filled in may begin at a lower heading

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
add_module_names = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]  # index.html, which leads to docs/index.html
html_copy_source = False
html_show_copyright = False
smartquotes_action = "qe"  # --flag keeps its dashes
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def setup(app: Any) -> None:
    app.connect("source-read", reference.fill_in)
