"""Sphinx: `python -m sphinx -n -W -b html docs docs/_build`."""

from __future__ import annotations

import kdplug

project = "kdplug"
author = "the kdplug developers"
copyright = author  # noqa: A001 Sphinx requires this name
version = release = kdplug.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"kdplug {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # most hints refer to torch and pydantic, whose inventories need the network
python_use_unqualified_type_names = True

nitpick_ignore = [  # parts of annotations, which have no page
    ("py:class", "kdplug.host.wrapped_task._read_base"),
    ("py:class", "kdplug.testing.entry.evaluator.SmallTask"),
    ("py:class", "pydantic.functional_validators.PlainValidator"),
    ("py:class", "pydantic.json_schema.WithJsonSchema"),
]
