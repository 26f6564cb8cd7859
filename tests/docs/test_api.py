"""The whole public face is documented."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import kdplug
import kdplug.testing

REFERENCE = Path(__file__).parents[2] / "docs/reference"
DIRECTIVE = re.compile(r"^\.\. (?:auto\w+|data):: ([\w.]+)$", re.MULTILINE)
CLASSES = [name for name in kdplug.__all__ if inspect.isclass(getattr(kdplug, name))]


def listed(page: str) -> list[str]:
    return DIRECTIVE.findall((REFERENCE / page).read_text(encoding="utf-8"))


def documented(cls: type) -> list[object]:
    own = [value for name, value in vars(cls).items() if not name.startswith("_")]
    return [
        v.__func__ if isinstance(v, classmethod) else v for v in own if inspect.isroutine(v) or isinstance(v, property)
    ]


def test_the_api_page_lists_exactly_the_public_names():
    assert sorted(name for name in listed("api.md") if "." not in name) == sorted(kdplug.__all__)


def test_the_testing_page_lists_exactly_the_names_of_the_kit():
    assert sorted(listed("testing.md")) == sorted(f"kdplug.testing.{name}" for name in kdplug.testing.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_a_docstring_of_its_own(name):
    assert vars(getattr(kdplug, name)).get("__doc__")


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_has_a_docstring(name):
    cls = getattr(kdplug, name)
    ours = [base for base in cls.__mro__ if base.__module__.startswith("kdplug")]
    bare = [value for base in ours for value in documented(base) if not inspect.getdoc(value)]
    assert bare == []
