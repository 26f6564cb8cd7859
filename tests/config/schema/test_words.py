"""The words of the JSON Schema: draft 07, every key with its meaning, every setting with its doc, bounds and default."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel, Field
from schema_place import changed, places

from kdplug.config.schema.build import every_entry, no_entry, schema_of
from kdplug.host.registry import losses

MODERN = {"$defs", "prefixItems", "unevaluatedProperties", "unevaluatedItems", "dependentRequired", "dependentSchemas"}


@pytest.mark.parametrize("load", [every_entry, no_entry], ids=["with settings", "names"])
@pytest.mark.parametrize("part", ["recipe", "distillation", "training"])
def test_it_is_a_draft_07_schema_with_none_of_the_newer_words(part, load):
    data = schema_of(part, load).data
    Draft7Validator.check_schema(data)
    assert data["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert not MODERN & set(_words(data))


def _words(data: Any) -> Any:
    if isinstance(data, dict):
        yield from data
        if "$ref" in data:
            assert set(data) == {"$ref"}, "draft-07 ignores what stands beside $ref"
    for part in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _words(part)


def test_no_field_for_a_component_is_forgotten():
    def unnamed(data):
        if isinstance(data, dict):
            if data.get("properties") == {"name": {"type": "string", "minLength": 1}}:
                yield data
            data = data.values()
        for part in data if not isinstance(data, (str, int, float, type(None))) else ():
            yield from unnamed(part)

    assert list(unnamed(schema_of("recipe").data)) == []


def test_the_parts_check_what_the_configs_read():
    distillation = Draft7Validator(schema_of("distillation").data)
    training = Draft7Validator(schema_of("training").data)
    assert distillation.is_valid({"kd_loss_type": "ce"})
    assert not distillation.is_valid({"task": "digits"})
    assert training.is_valid({"output_dir": "out", "seed": None})
    assert not training.is_valid({"num_epochs": 3})


def test_without_imports_names_are_checked_and_settings_are_not(recipe):
    validator = Draft7Validator(schema_of("recipe", no_entry).data)
    assert places(validator, changed(recipe, distillation={"kd_loss_type": {"name": "ce", "x": 1}})) == set()
    assert places(validator, changed(recipe, distillation={"kd_loss_type": ["cee"]})) == {"distillation.kd_loss_type.0"}


def test_a_broken_entry_is_named_and_keeps_its_name(recipe):
    schema = schema_of("recipe")
    assert [error.split(" is installed")[0] for error in schema.errors] == ["'kdplug-presets:broken'"]
    assert "'kdplug-presets:broken' is installed but failed to load" in schema.data["$comment"]
    (const,) = [c for c in schema.data["definitions"]["match_loss_name"]["anyOf"] if c["const"] == "broken"]
    assert const["description"].startswith("cannot be used: 'kdplug-presets:broken'")


def test_a_setting_comes_with_its_doc_its_bounds_and_its_default():
    scheduler = schema_of("recipe").data["definitions"]["temperature_schedulers.kdplug-presets:flsw"]
    assert scheduler["properties"]["gamma"] == {"minimum": 0, "type": "number"}
    assert scheduler["properties"]["eps"] == {"default": 1e-4, "type": "number"}
    assert scheduler["description"] == "A temperature scheduler with two required settings. (kdplug-presets 0.1.0)"


def test_a_doc_is_found_in_a_field_and_in_the_paragraph_on_settings(host):
    @losses.register("documented")
    def documented(student_logits, *, a: Annotated[int, Field(description="the first")] = 1, b=2, c=3):
        """A loss.

        Settings: ``b``, the second, of two lines
        even; ``c`` the third.
        Source: none.
        """

    found = schema_of("recipe").data["definitions"]["losses.local:documented"]["properties"]
    docs = {name: found[name].get("description") for name in "abc"}
    assert docs == {"a": "the first", "b": "the second, of two lines even", "c": "the third"}


def test_types_that_json_cannot_hold_are_left_open(recipe):
    @losses.register("odd")
    def odd(
        student_logits, *, top: float = math.inf, pick: Callable[[int], int] = abs, pair: tuple[int, str] = (1, "a")
    ):
        """A loss."""

    schema = schema_of("recipe").data
    properties = schema["definitions"]["losses.local:odd"]["properties"]
    assert properties["pair"]["items"] == [{"type": "integer"}, {"type": "string"}]
    assert "default" not in properties["top"]
    validator = Draft7Validator(schema)
    assert places(validator, changed(recipe, distillation={"kd_loss_type": ["odd", 1, "any", [1, "b"]]})) == set()
    assert places(validator, changed(recipe, distillation={"kd_loss_type": ["odd", 1, "any", ["b", 1]]})) == {
        "distillation.kd_loss_type.3.0",
        "distillation.kd_loss_type.3.1",
    }


class Inner(BaseModel, extra="forbid"):
    depth: int
    more: list[Inner] = []


class Nested:
    class Settings(BaseModel):
        inner: Inner

    def __init__(self, inner): ...

    def forward(self, student_logits): ...


class Unfinished(Nested):
    class Settings(BaseModel):
        inner: Nowhere  # noqa: F821


def test_a_settings_class_that_pydantic_cannot_read_costs_only_itself():
    losses.register("unfinished")(Unfinished)
    schema = schema_of("recipe")
    assert any(error.startswith("the settings of local:unfinished: PydanticUserError: ") for error in schema.errors)
    assert "losses.kdplug-presets:blend" in schema.data["definitions"]


def test_a_settings_class_with_models_inside_is_described_whole(recipe):
    losses.register("nested")(Nested)
    validator = Draft7Validator(schema_of("recipe").data)

    def at(inner):
        data = changed(recipe, distillation={"kd_loss_type": {"name": "nested", "inner": inner}})
        return places(validator, data)

    assert at({"depth": 1, "more": [{"depth": 2}]}) == set()
    assert at({"depth": 1, "more": [{"depth": "x"}]}) == {"distillation.kd_loss_type.inner.more.0.depth"}
