"""Each known defect of TextBrewer has its row in the explanation, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/differences-from-textbrewer.md").read_text(encoding="utf-8")
DIFFERENCES, SHOWN_BY = PAGE.split("## Tests of these differences")
NUMBERS = [f"2.{part}.{n}" for part, last in ((1, 14), (2, 21), (3, 10)) for n in range(1, last + 1)]
TESTS = {
    node.name.removeprefix("test_")
    for folder in ("tests", "plugins")
    for file in (ROOT / folder).rglob("test_*.py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
}


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (2\.\d\.\d+) \|(.*)\|$", text, re.MULTILINE))


def test_every_known_defect_has_its_row():
    assert list(rows(DIFFERENCES)) == NUMBERS


def test_every_row_has_tests():
    assert list(rows(SHOWN_BY)) == NUMBERS


@pytest.mark.parametrize("number", rows(SHOWN_BY))
def test_the_tests_that_a_row_names_are_there(number):
    named = re.findall(r"`(\w+)`", rows(SHOWN_BY)[number])
    assert named
    assert set(named) <= TESTS


def test_a_test_with_the_number_of_a_defect_is_in_its_row():
    for name in TESTS:
        if numbers := re.match(r"(?:defect_)?2_([12])_(\d+)_", name):
            assert f"`{name}`" in rows(SHOWN_BY)[f"2.{numbers[1]}.{numbers[2]}"]
