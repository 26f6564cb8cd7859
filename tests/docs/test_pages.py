"""What the pages promise as a whole."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import kdplug

DOCS = Path(__file__).parents[2] / "docs"
MODULES = [found.name for found in pkgutil.walk_packages(kdplug.__path__, "kdplug.")]


def test_every_known_defect_of_textbrewer_has_its_row():
    page = (DOCS / "explanation/differences-from-textbrewer.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (2\.[12]\.\d+) \|", page, re.MULTILINE)
    assert rows == [f"2.1.{n}" for n in range(1, 15)] + [f"2.2.{n}" for n in range(1, 22)]


@pytest.mark.parametrize("folder", ["tutorials", "how-to", "reference", "explanation", "explanation/decisions"])
def test_every_page_is_reached_from_its_index(folder):
    index = (DOCS / folder / "index.md").read_text(encoding="utf-8")
    toctree = index.split("```{toctree}")[1].split("```")[0].split()
    pages = {page.stem for page in (DOCS / folder).glob("*.md")} - {"index"}
    assert pages == {name for name in toctree if "/" not in name}


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_say_what_they_print(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0
