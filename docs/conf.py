"""How Sphinx builds the docs: prose, a reference from docstrings, a gallery from examples/."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from class_pages import GroupedMembers

project = "sklcam"
author = "The sklcam developers"
copyright = "2026, The sklcam developers"
version = release = installed_version("sklcam")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "changelog",
    "mathml",
]
exclude_patterns = ["_build", "sg_execution_times.rst"]
templates_path = ["_templates"]
default_role = "literal"
nitpicky = True  # a link to a name that is not there is an error
nitpick_ignore_regex = [("py:.*", r"(sklearn|skorch)\..*")]  # documented elsewhere

autosummary_generate = True
autosummary_context = {"grouped_members": GroupedMembers()}
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which say more
autodoc_inherit_docstrings = False  # skorch documents its own methods
numpydoc_show_class_members = False  # the class template lists them
toc_object_entries_show_parents = "hide"  # explain(), as the page's title has the class

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("sklcam",),
    "reference_url": {"sklcam": None},
    "remove_config_comments": True,
    "capture_repr": (),  # what is printed, and no objects
    "show_signature": False,
    "show_memory": False,
}

html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = "sklcam"
html_show_sourcelink = False
pages_alone = ("index", "getting_started", "glossary", "changes")  # none below them to list
html_sidebars = {page: [] for page in pages_alone}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
