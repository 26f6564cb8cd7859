"""The messages that the page of errors explains are those that kdplug raises."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import kdplug

PAGE = Path(__file__).parents[2] / "docs/reference/errors.md"
HEADINGS = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def _text(node: ast.AST) -> str | None:
    """The text of a literal, one blank where an f-string holds a value; ``None`` of anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "\0" for part in node.values)
    return None


def _source() -> str:
    files = Path(kdplug.__path__[0]).rglob("*.py")
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return "\n".join(text for node in nodes if (text := _text(node)))


SOURCE = _source()


def fixed_words(heading: str) -> list[str]:
    """What stands between the placeholders of a heading."""
    return [words for part in re.split(r"‹[^›]*›", heading) if re.search(r"\w", words := part.strip(" '\"(),:"))]


def test_the_page_explains_messages():
    assert len(HEADINGS) > 20
    assert len(set(HEADINGS)) == len(HEADINGS)


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_fixed_words_of_a_heading_stand_in_the_source(heading):
    found = fixed_words(heading)
    assert found
    for words in found:
        assert words in SOURCE


@pytest.mark.parametrize("words", ["is offered by 3 packages", "which the engine provides not"])
def test_words_that_nobody_raises_are_not_found(words):
    assert words not in SOURCE
