"""Every hook, every input and every adaptor key stands in the docs and in a test."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from kdplug.contracts.vocabulary import ADAPTOR_KEYS, ALIASES, INPUTS
from kdplug.host import hookspec
from kdplug.host.kind import KINDS

ROOT = Path(__file__).parents[2]
HOOKS = [name for name in vars(hookspec) if name.startswith(hookspec.PREFIX)]


@cache
def sources():
    """The text of every test but this one."""
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "plugins").glob("*/tests/**/*.py")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file != Path(__file__))


def page(name):
    return (ROOT / "docs/reference" / name).read_text(encoding="utf-8")


def missing(names, text, form):
    return [name for name in names if not re.search(form.format(re.escape(name)), text)]


@pytest.mark.parametrize("names", [INPUTS, ADAPTOR_KEYS, ALIASES], ids=["inputs", "adaptor keys", "aliases"])
def test_every_word_is_explained_in_a_table_of_the_page_of_inputs(names):
    assert missing(names, page("inputs.md"), r"(?m)^\| `{}` \|") == []


def test_every_input_is_given_at_a_place_of_a_config():
    rows = page("inputs.md").split("<!-- generated: inputs by site -->")[1].split("<!-- end of generated -->")[0]
    assert missing(INPUTS, rows, r"`{}`") == []
    assert set(INPUTS) == {name for kind in KINDS.values() for name in (*kind.inputs, *kind.built_with)}


@pytest.mark.parametrize("names", [INPUTS, ADAPTOR_KEYS, ALIASES], ids=["inputs", "adaptor keys", "aliases"])
def test_every_word_is_in_a_test(names):
    assert missing(names, sources(), r"\b{}\b") == []


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_is_asked_for_by_a_callable_in_a_test(name):
    asked = rf"def \w+\([^)]*\b{name}\b|lambda [^:]*\b{name}\b|inputs?=.*\b{name}\b"
    assert re.search(asked, sources()), (
        f"no test has a function that takes {name}: write one that looks at what it gets"
    )


def test_every_hook_has_a_heading_in_the_docs():
    assert missing(HOOKS, page("hooks.md"), r"(?m)^## `{}\(") == []


def test_every_hook_is_implemented_in_a_test():
    of_kinds = {kind.hook for kind in KINDS.values()}  # tests/host/test_hook_plugin.py goes through the kinds
    assert "def {kind.hook}()" in sources()
    assert missing([name for name in HOOKS if name not in of_kinds], sources(), r"def {}\(") == []
