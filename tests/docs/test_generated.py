"""The generated spans of the reference say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_no_generated_span_is_stale():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_span_that_opens_closes(page):
    marks = re.findall(r"<!-- (generated: |end of generated)", page.read_text(encoding="utf-8"))
    assert marks == ["generated: ", "end of generated"] * (len(marks) // 2)


def test_every_first_party_entry_is_in_the_catalogue():
    from kdplug.host.first_party import FIRST_PARTY

    pages = [ROOT / "docs/reference" / name for name in ("losses.md", "tasks.md")]
    catalogue = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    headings = " ".join(line for line in catalogue.splitlines() if line.startswith("### "))
    for offers in FIRST_PARTY.values():
        for name in (name for names in offers.values() for name in names):
            assert f"`{name}`" in headings


def test_every_declaration_of_a_suite_of_laws_and_every_usual_shape_is_on_the_page_of_the_testing_kit():
    import kdplug.testing
    from kdplug.testing.law import Laws
    from kdplug.testing.loss.case import USUAL_SHAPES

    page = (ROOT / "docs/reference/testing.md").read_text(encoding="utf-8")
    _, *sections = re.split(r"^### ", page, flags=re.MULTILINE)
    rows = {title.splitlines()[0].strip("`"): re.findall(r"^\| `(\w+)` \|", title, re.MULTILINE) for title in sections}
    for name in (name for name in kdplug.testing.__all__ if name.endswith("Laws")):
        owners = [one for one in getattr(kdplug.testing, name).__mro__ if one not in Laws.__mro__]
        declared = {key for one in owners for key in one.__annotations__ if not key.startswith("_")}
        assert sorted(rows[name]) == sorted(declared)
    assert {"entry", "settings", "except_for"} == set(rows["Every suite"])
    assert all(f'| `"{name}"` | `{shape}` |' in page for name, shape in USUAL_SHAPES.items())
