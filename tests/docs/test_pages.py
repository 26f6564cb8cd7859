"""What the pages promise as a whole."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import kdplug

DOCS = Path(__file__).parents[2] / "docs"
MODULES = [found.name for found in pkgutil.walk_packages(kdplug.__path__, "kdplug.")]


@pytest.mark.parametrize("folder", ["tutorials", "how-to", "reference", "explanation", "explanation/decisions"])
def test_every_page_is_reached_from_its_index(folder):
    index = (DOCS / folder / "index.md").read_text(encoding="utf-8")
    toctree = index.split("```{toctree}")[1].split("```")[0].split()
    pages = {page.stem for page in (DOCS / folder).glob("*.md")} - {"index"}
    assert pages == {name for name in toctree if "/" not in name and not name.startswith(":")}


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_say_what_they_print(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0
