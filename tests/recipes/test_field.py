"""An error of a recipe's run names its field as the recipe does, whenever it comes."""

from __future__ import annotations

import pytest

import kdplug
from kdplug import Recipe
from kdplug.config.error_path import qualify_errors
from kdplug.errors import ConfigError, KdplugError, OutputsError, RunError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe

MATCH = "distillation.intermediate_matches=[{layer_T: 0, layer_S: 3, feature: hidden, loss: own}]"


class Reads:
    """A task by its settings alone."""

    def __init__(self, *, data: dict[str, str], precision: int = 1):
        raise AssertionError("it is not made")


def _field(carry_out, *args):
    with pytest.raises(KdplugError) as caught:
        carry_out(*args)
    return caught.value.field


@qualify_errors
def _fails(recipe, error):
    raise error


@pytest.mark.parametrize("carry_out", [run_recipe, plan_recipe])
def test_what_the_first_batch_lacks(signs, carry_out):
    kdplug.losses.register("own")(lambda student_features: student_features.sum())
    assert _field(carry_out, signs(MATCH)) == "distillation.intermediate_matches.0.feature"


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (ConfigError("", field="kd_loss_type"), "distillation.kd_loss_type"),
        (RunError("", field="is_caching_logits"), "distillation.is_caching_logits"),
        (RunError("", field="teacher_cache"), "training.teacher_cache"),
        (ConfigError("", field="data.train"), "task.data.train"),
        (ConfigError("", field="precision"), "training.precision"),
        (ConfigError("", field="task.data.train"), "task.data.train"),
        (RunError("", field="output_dir"), "output_dir"),
        (OutputsError("", field="data"), "data"),
        (ConfigError("", field="model_T"), "model_T"),
        (RunError(""), ""),
    ],
)
def test_a_field_is_completed_where_it_is_one_of_the_recipe(no_plugins, error, field):
    kdplug.tasks.register("reads")(Reads)
    distillation = {"kd_loss_weight": 0, "hard_label_weight": 1}
    data = {"task": {"name": "reads", "data": {}}, "distillation": distillation, "training": {"num_steps": 1}}
    assert _field(_fails, Recipe.from_dict(data), error) == field


@pytest.mark.parametrize("method", ["build_teacher", "build_student", "data"])
def test_what_a_task_refuses_late(signs, monkeypatch, method):
    def refuse(*args):
        raise ConfigError("must be > 0", field="precision")

    recipe = signs()
    monkeypatch.setattr(kdplug.tasks["signs"], method, refuse)
    assert _field(plan_recipe, recipe) == "task.precision"


def test_how_a_task_would_have_its_teacher_fitted(signs, monkeypatch):
    fit = {"epochs": 0, "batch_size": 4, "learning_rate": 0.1}
    monkeypatch.setattr(kdplug.tasks["signs"], "teacher_fit", lambda task: fit)
    assert _field(run_recipe, signs()) == "task.teacher_fit.num_epochs"


@pytest.mark.parametrize("fit", [{}, {"epochs": 1, "batch_size": 4}, 3, [1, 4, 0.1]])
def test_a_teacher_fit_that_lacks_a_key_is_named(signs, monkeypatch, fit):
    monkeypatch.setattr(kdplug.tasks["signs"], "teacher_fit", lambda task: fit)
    assert _field(run_recipe, signs()) == "task.teacher_fit"
