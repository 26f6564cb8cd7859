"""Examples of the pages that authors copy into typed packages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _registered(cls: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(cls):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.register_buffer":
            yield ast.literal_eval(node.args[0])


CLASSES = [
    pytest.param(node, id=f"{page.stem}:{node.name}")
    for page in sorted(DOCS.rglob("*.md"))
    for block in _BLOCK.findall(page.read_text(encoding="utf-8"))
    for node in ast.walk(ast.parse(block))
    if isinstance(node, ast.ClassDef) and any(_registered(node))
]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_annotates_its_buffers_which_strict_mypy_takes_for_modules_otherwise(cls):
    annotated = {
        ast.unparse(node.target): ast.unparse(node.annotation) for node in cls.body if isinstance(node, ast.AnnAssign)
    }
    assert annotated == dict.fromkeys(_registered(cls), "Tensor")
