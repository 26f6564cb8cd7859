"""The package as the host sees it: entry points that resolve, documented, with settings pydantic can read."""

from __future__ import annotations

import inspect
from importlib.metadata import distribution
from typing import Any, get_type_hints

import pytest
from pydantic import create_model

INPUTS = {
    "kdplug.losses": [
        {"student_logits", "teacher_logits", "temperature"},
        {"student_features", "teacher_features", "mask"},
    ],
    "kdplug.projections": [{"in_dim", "out_dim"}],
    "kdplug.weight_schedulers": [{"progress"}],
    "kdplug.temperature_schedulers": [{"student_logits", "teacher_logits", "temperature"}],
    "kdplug.layer_maps": [{"student_layers", "teacher_layers"}],
    "kdplug.teacher_combiners": [
        {"teacher_logits_list"},
        {"teacher_logits_list", "temperature"},
        {"teacher_logits_list", "labels"},
    ],
}
ENTRIES = [entry for entry in distribution("kdplug-presets").entry_points if entry.group in INPUTS]
named = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.group}:{entry.name}")


@named
def test_an_entry_asks_for_inputs_by_position_and_settings_by_keyword(entry: Any) -> None:
    parameters = inspect.signature(entry.load()).parameters.values()
    inputs = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert inputs in INPUTS[entry.group]
    assert {p.kind for p in parameters} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@named
def test_settings_become_a_pydantic_model(entry: Any) -> None:
    target = entry.load()
    hints = get_type_hints(target, include_extras=True)
    parameters = inspect.signature(target).parameters.values()
    fields: Any = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY
    }
    assert create_model("Settings", **fields).model_json_schema()


@named
def test_an_entry_says_what_it_is_and_where_it_comes_from(entry: Any) -> None:
    text = inspect.getdoc(entry.load()) or ""
    assert text.splitlines()[0].endswith(".")
    assert "Source:" in text


def test_aliases_are_one_function() -> None:
    losses = {entry.name: entry.load() for entry in ENTRIES if entry.group == "kdplug.losses"}
    assert losses["gram"] is losses["fsp"]
    assert losses["mmd"] is losses["nst"]
