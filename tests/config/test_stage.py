"""Stages of a recipe: what each inherits, what it starts from, and mistakes in them."""

from __future__ import annotations

import pytest

from kdplug import KdplugError, Recipe
from kdplug.errors import UnknownKeyError

BASE = {
    "task": {"name": "digits", "labels_per_class": 20},
    "distillation": {"temperature": 3, "kd_loss_type": {"name": "blend", "alpha": 2.0}, "hard_label_weight": 0.5},
    "training": {"num_epochs": 2, "lr": 0.01},
}
SMALL, FRESH = {"student": {"widths": [2, 3, 4]}}, {"student": "fresh"}


def recipe(*stages, **changes):
    return Recipe.from_dict({**BASE, **changes, "stages": list(stages)})


def planned(*stages, **changes):
    return recipe(*stages, **changes).planned_stages()


def test_a_recipe_has_no_stages_by_default():
    assert Recipe.from_dict(BASE).planned_stages() == ()


def test_what_a_stage_leaves_out_is_the_recipes_own():
    first, last = planned(
        {"name": "general", "distillation": {"temperature": 1}, "training": {"lr": 0.1}}, {"name": "task"}
    )
    assert (first.recipe.distillation.temperature, last.recipe.distillation.temperature) == (1, 3)
    assert first.recipe.distillation.hard_label_weight == 0.5
    assert (first.recipe.training.lr, last.recipe.training.lr, first.recipe.training.num_epochs) == (0.1, 0.01, 2)


def test_a_length_and_a_precision_replace_those_of_the_recipe():
    (only,) = planned({"name": "task", "training": {"num_steps": 7, "fp16": True}})
    assert (only.recipe.training.num_steps, only.recipe.training.num_epochs) == (7, None)
    assert only.recipe.training.precision == "fp16"


def test_terms_replace_the_kd_loss_of_the_recipe_and_the_other_way_round():
    terms = {"terms": [{"loss": "blend", "weight": 2}]}
    (only,) = planned({"name": "task", "distillation": terms})
    assert only.recipe.distillation.terms[0].weight == 2
    back = {"temperature": 3, **terms}
    (only,) = planned({"name": "task", "distillation": {"kd_loss_type": "blend"}}, distillation=back)
    assert only.recipe.distillation.terms is None


def test_a_stage_starts_from_the_last_one_with_the_same_student():
    stages = planned(
        {"name": "one"},
        {"name": "ta", **SMALL},
        {"name": "ta2", **SMALL},
        {"name": "two", "teacher": {"stage": "ta2"}},
    )
    assert [stage.start for stage in stages] == [None, None, "ta", "one"]
    assert [stage.teacher for stage in stages] == [None, None, None, "ta2"]


def test_a_stage_may_name_where_it_starts():
    stages = planned(
        {"name": "one"},
        {"name": "two", "student": {"stage": "one"}},
        {"name": "three", **FRESH, "teacher": {"stage": "two"}},
    )
    assert [stage.start for stage in stages] == [None, "one", None]


def test_the_student_setting_of_a_wrapped_task_is_that_of_its_base():
    task = {"name": "digits", "base": {"name": "digits", "student": {"widths": [1, 1, 1]}}}
    stages = planned({"name": "ta", **SMALL}, {"name": "final", **FRESH, "teacher": {"stage": "ta"}}, task=task)
    assert stages[0].recipe.task.settings["base"]["student"] == {"widths": (2, 3, 4)}
    assert stages[1].recipe.task.settings["base"]["student"] == {"widths": (1, 1, 1)}


def test_a_staged_recipe_survives_json_and_yaml():
    made = recipe({"name": "ta", **SMALL, "freeze": ["a.*"]}, {"name": "final", **FRESH, "teacher": {"stage": "ta"}})
    assert Recipe.from_json(made.to_json()) == made
    assert Recipe.from_yaml(made.to_yaml()) == made


def test_set_changes_a_key_of_a_stage():
    made = recipe({"name": "one", "training": {"lr": 0.1}}).with_overrides(
        ["stages.0.training.lr=0.2", "stages.0.training.num_steps=3"]
    )
    (only,) = made.planned_stages()
    assert (only.recipe.training.lr, only.recipe.training.num_steps) == (0.2, 3)


def test_with_a_teacher_cache_a_stage_taught_by_an_assistant_does_not_cache():
    stages = planned(
        {"name": "ta", **SMALL},
        {"name": "final", **FRESH, "teacher": {"stage": "ta"}},
        training={**BASE["training"], "teacher_cache": "somewhere"},
    )
    assert [stage.recipe.distillation.is_caching_logits for stage in stages] == [True, False]
    assert stages[1].recipe.training.teacher_cache is None


ONE, TWO = {"name": "one"}, {"name": "two"}
MISTAKES = {
    "a repeated name": ([ONE, {"name": "One"}], "stages.1.name: 'One' is already the name of stages.0"),
    "no name": ([{}], "stages.0.name: is required"),
    "a path as a name": ([{"name": "../x"}], "stages.0.name: must be a name of at most 64 letters"),
    "an unknown stage": (
        [{"name": "general"}, {**TWO, "student": {"stage": "genral"}}],
        "stages.1.student.stage: there is no stage 'genral'. Did you mean 'general'?",
    ),
    "an unknown teacher": ([{**ONE, "teacher": {"stage": "x"}}], "stages.0.teacher.stage: there is no stage 'x'"),
    "itself": ([{**ONE, "teacher": {"stage": "one"}}], "in a cycle: one -> one"),
    "a cycle": (
        [{**ONE, "teacher": {"stage": "two"}}, {**TWO, "student": {"stage": "one"}}],
        "stages.0.teacher.stage: the stages depend on each other in a cycle: one -> two -> one",
    ),
    "a later stage": (
        [{**ONE, "teacher": {"stage": "two"}}, {**TWO, **FRESH}],
        "stages.0.teacher.stage: stage 'two' comes later",
    ),
    "a student that does not fit": (
        [{"name": "ta", **SMALL}, {"name": "final", "student": {"stage": "ta"}}],
        "stages.1.student: the student of stage 'ta' has other settings ({'widths': [2, 3, 4]}) than that of this stage",
    ),
    "a last stage with another student": ([{"name": "ta", **SMALL}], "stages.0.student: the last stage trains"),
    "a stage without effect": ([ONE, {**TWO, **FRESH}], "stages.0: stage 'one' has no effect: no later stage"),
    "an unknown key": ([{**ONE, "trainig": {}}], "stages.0.trainig: unknown key. Did you mean 'training'?"),
    "an unknown key of training": ([{**ONE, "training": {"lrr": 1}}], "stages.0.training.lrr: unknown key. Did you mean 'lr'?"),
    "a wrong value": ([{**ONE, "training": {"lr": "big"}}], "stages.0.training.lr: must be a number, got 'big'"),
    "two lengths": (
        [{**ONE, "training": {"num_steps": 1, "num_epochs": 1}}],
        "stages.0.training: set exactly one of num_epochs and num_steps",
    ),
    "an unknown loss": ([{**ONE, "distillation": {"kd_loss_type": "blendx"}}], "stages.0.distillation.kd_loss_type: no loss named 'blendx'"),
    "its own cache": ([{**ONE, "training": {"teacher_cache": "x"}}], "stages.0.training.teacher_cache: holds for all stages"),
    "its own caching": (
        [{**ONE, "distillation": {"is_caching_logits": True}}],
        "stages.0.distillation.is_caching_logits: holds for all stages",
    ),
    "a misspelt fresh": ([{**ONE, "student": "frsh"}], "Did you mean 'fresh'?"),
    "an empty student": ([{**ONE, "student": {}}], "stages.0.student: must be fresh, {stage: NAME}"),
    "a reference with more": ([ONE, {**TWO, "student": {"stage": "one", "x": 1}}], "must be {stage: NAME} with nothing else"),
    "a teacher by settings": ([{**ONE, "teacher": {"widths": [1]}}], "stages.0.teacher: must be {stage: NAME}"),
    "the shuffled control": ([ONE], "controls: the control shuffled cannot be combined with stages"),
    "a glob twice": ([{**ONE, "freeze": ["a", "a"]}], "stages.0.freeze: contains 'a' more than once"),
    "text for keys": ([{**ONE, "training": "fast"}], "stages.0.training: must be a mapping, got 'fast'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_path_and_a_fix(name):
    stages, message = MISTAKES[name]
    changes = {"controls": ["no_teacher", "shuffled"]} if name == "the shuffled control" else {}
    with pytest.raises(KdplugError) as caught:
        recipe(*stages, **changes)
    assert message in str(caught.value)


def test_an_unknown_key_is_an_unknown_key_error():
    with pytest.raises(UnknownKeyError):
        recipe({"name": "one", "distillation": {"temprature": 1}})
