"""How Sphinx builds the docs: prose, a reference from docstrings, a gallery from examples/."""

from importlib.metadata import version as installed_version

project = "sklcam"
author = "The sklcam developers"
copyright = "2026, The sklcam developers"
version = release = installed_version("sklcam")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "sg_execution_times.rst"]
templates_path = ["_templates"]
default_role = "literal"
nitpicky = True  # a link to a name that is not there is an error
nitpick_ignore_regex = [("py:.*", r"(sklearn|skorch)\..*")]  # documented elsewhere

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which say more
autodoc_inherit_docstrings = False  # skorch documents its own methods
numpydoc_show_class_members = False  # the class template lists them

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
html_static_path = ["_static"]
html_css_files = ["columns.css"]
html_title = "sklcam"
html_show_sourcelink = False
html_sidebars = {"getting_started": []}  # it has no pages below it to list
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
