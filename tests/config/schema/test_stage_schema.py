"""The JSON Schema of stages: it refuses what kdplug refuses, at the same place."""

from __future__ import annotations

import pytest
from jsonschema import Draft7Validator

from kdplug import KdplugError, Recipe
from kdplug.config.schema.build import schema_of


@pytest.fixture
def validator(host):
    return Draft7Validator(schema_of("recipe").data)


def read(stage):
    return {"task": "digits", "distillation": {}, "training": {"num_epochs": 1}, "stages": [{"name": "one", **stage}]}


RIGHT = {
    "nothing": {},
    "a length": {"training": {"num_steps": 3}},
    "fp16": {"training": {"fp16": True}},
    "a part of a distillation that is none alone": {"distillation": {"kd_loss_weight": 0, "hard_label_weight": 1}},
    "a new student": {"student": "fresh", "teacher": None, "freeze": ["a.*"]},
}
WRONG = {
    "an unknown key": ({"trainig": {}}, []),
    "an unknown key of training": ({"training": {"lrr": 1}}, ["training"]),
    "text for a rate": ({"training": {"lr": "big"}}, ["training", "lr"]),
    "its own cache": ({"training": {"teacher_cache": "x"}}, ["training"]),
    "its own caching": ({"distillation": {"is_caching_logits": True}}, ["distillation"]),
    "an unknown loss": ({"distillation": {"kd_loss_type": "cee"}}, ["distillation", "kd_loss_type"]),
    "a path as a name": ({"name": "a/b"}, ["name"]),
    "a misspelt student": ({"student": "frsh"}, ["student"]),
    "a reference with more": ({"teacher": {"stage": "one", "x": 1}}, ["teacher"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_stage_may_say_is_accepted(validator, name):
    assert not list(validator.iter_errors(read(RIGHT[name])))
    Recipe.from_dict(read(RIGHT[name]))


@pytest.mark.parametrize("name", WRONG)
def test_what_kdplug_refuses_is_refused_at_the_same_place(validator, name):
    stage, place = WRONG[name]
    assert [list(error.absolute_path) for error in validator.iter_errors(read(stage))] == [["stages", 0, *place]]
    with pytest.raises(KdplugError, match=r"^stages\.0"):
        Recipe.from_dict(read(stage))
