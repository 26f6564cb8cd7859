"""The package as the host sees it: every entry resolves, and its formula and laws are under test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from vision_recipes import RECIPES

import kdplug

LOSSES = sorted(entry.name for entry in kdplug.losses.entries() if entry.dist == "kdplug-vision")
SOURCES = "\n".join(file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("test_*.py")))


@pytest.mark.parametrize("name", LOSSES)
def test_an_entry_loads_and_is_documented(name):
    target = kdplug.losses.entry(f"kdplug-vision:{name}").load()
    assert "Source: " in target.__doc__
    assert "Shapes: " in target.__doc__


def test_every_first_party_entry_is_under_laws():
    under_laws = set(re.findall(r'entry = "kdplug-vision:(\w+)"', SOURCES))
    assert under_laws | {"srrl"} == {*LOSSES, "conv"}  # srrl's laws need the teacher's classifier: TestSRRL


def test_every_loss_has_a_run_that_is_killed_and_resumed():
    assert set(RECIPES) == set(LOSSES)
