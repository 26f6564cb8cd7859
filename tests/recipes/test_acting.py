"""Acting hooks of a recipe: in the runs of every student, named by the recipe or its distillation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from acting_plugin import install, installed
from recipes.conftest import Signs, soft_cross_entropy

import kdplug
from kdplug import Recipe
from kdplug.cli.plan import plan_lines
from kdplug.errors import KdplugError, RunError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe

SOURCE = """
def kdplug_step_end(run, step):
    if step == 3:
        run.stop("three steps are enough")
"""


@pytest.fixture
def stopped(fake_site, tmp_path):
    install(fake_site.folder, SOURCE, "kdplug-own", "")
    with installed():
        kdplug.tasks.register("signs")(Signs)
        kdplug.losses.register("soft")(soft_cross_entropy)

        def make(**keys):
            data = {
                "task": "signs",
                "distillation": {"kd_loss_type": "soft"},
                "training": {"num_steps": 8, "batch_size": 16, "device": "cpu", "evaluations": 2},
                "output_dir": str(tmp_path / "out"),
            }
            return Recipe.from_dict({**data, **keys})

        yield make


def runs(recipe):
    arms = json.loads((Path(recipe.output_dir) / "metrics.json").read_text())["arms"]
    return {name: arm["runs"][0] for name, arm in arms.items()}


@pytest.mark.parametrize(
    "named",
    [
        {"plugins": {"hooks": ["kdplug-own"]}},
        {"distillation": {"kd_loss_type": "soft", "plugins": {"hooks": ["kdplug-own"]}}},
    ],
)
def test_a_hook_stops_both_students_and_the_reason_is_reported(stopped, named):
    recipe = stopped(**named)
    run_recipe(recipe)
    found = runs(recipe)
    for arm in ("no_teacher", "distilled"):
        assert found[arm]["steps"] == 3
        assert found[arm]["stop_reason"] == "three steps are enough (kdplug-own:hooks)"
        assert found[arm]["validation"]
    assert "three steps are enough" in (Path(recipe.output_dir) / "report.html").read_text()
    run_recipe(recipe, resume=True)
    assert runs(recipe) == found


def test_a_stopped_student_without_evaluations_is_the_one_of_its_last_step(stopped):
    training = {"num_steps": 8, "batch_size": 16, "device": "cpu", "evaluations": 0}
    recipe = stopped(plugins={"hooks": ["kdplug-own"]}, training=training, controls=[])
    run_recipe(recipe)
    assert runs(recipe)["distilled"]["steps"] == 3


@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_a_run_does_not_resume_with_hooks_that_it_did_not_have(stopped):
    run_recipe(stopped())
    with pytest.raises(RunError, match="hooks"):
        run_recipe(stopped(plugins={"hooks": ["kdplug-own"]}), resume=True)


def test_a_plan_lists_hooks_transforms_and_evaluators(stopped):
    kdplug.student_transforms.register("same")(
        type("Same", (), {"prepare": lambda self, one: one, "finish": lambda self, one: one})
    )
    kdplug.evaluators.register("none")(type("None_", (), {"__call__": lambda self, model, task: {"a": 1.0}}))
    recipe = stopped(plugins={"hooks": ["kdplug-own"]}, student={"transforms": ["same"]}, evaluators=["none"])
    plan = plan_recipe(recipe)
    shown = "\n".join(str(line) for line in plan_lines(plan))
    assert "student transforms: local:same" in shown
    assert "evaluators: local:none" in shown
    assert "hooks that may change the run: kdplug-own" in shown
    assert plan.to_data()["acting_hooks"] == ["kdplug-own"]
    assert plan.parameters["student, trained"] == plan.parameters["student, finished"] == 10


def test_a_name_that_is_not_installed_is_an_error_of_the_recipe(stopped):
    with pytest.raises(KdplugError, match=r"^plugins\.hooks\.0: no plugin 'kdplug-won' is installed"):
        stopped(plugins={"hooks": ["kdplug-won"]})
    assert torch.is_grad_enabled()
