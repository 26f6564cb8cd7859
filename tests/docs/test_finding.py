"""The page of commands explains every word that ``kdplug plugins check`` may print in brackets."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import kdplug

PAGE = Path(__file__).parents[2] / "docs/reference/cli.md"
STATUS = {"ambiguous", "shadowed"}
"""Words that a finding takes over from the status of an entry."""


def words():
    """The texts that stand as a finding's second argument, or are assigned to it by name."""
    found = set(STATUS)
    for file in (Path(kdplug.__path__[0]) / "host" / "check").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 6]
        found |= {
            part.value
            for call in calls
            if ast.unparse(call.func) == "Finding"
            for part in ast.walk(call.args[1])
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        }
    return found


def test_every_word_of_a_finding_is_in_the_table():
    table = PAGE.read_text(encoding="utf-8").split("## Findings of `kdplug plugins check`")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \|", table)
    assert rows == sorted(rows)
    assert len(rows) > 20
    assert set(rows) == words()
