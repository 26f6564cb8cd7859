"""A recipe with stages: what each starts from and passes on, its control, caches, edits and the files of a run."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdplug
from kdplug.errors import ConfigError, KdplugError
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe
from kdplug.recipes.stages.record import unranked_student


def sized(signs):
    """A ``Signs`` with a student of one or two layers, which counts what is asked of its teacher."""

    class Sized(signs):
        built = 0
        asked = 0

        def __init__(self, *, student: dict[str, int] | None = None):
            self.student = student

        def build_student(self):
            width = (self.student or {}).get("width")
            return nn.Linear(4, 2) if width is None else nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))

        def build_teacher(self):
            Sized.built += 1
            return Counting()

    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.load_state_dict(signs().build_teacher().state_dict())

        def forward(self, batch):
            Sized.asked += 1
            return super().forward(batch)

    return Sized


@pytest.fixture
def staged(signs, tmp_path):
    """Makes a recipe with stages for ``Sized``."""
    task = sized(kdplug.tasks.load("signs"))
    kdplug.tasks.register("sized")(task)

    def make(*stages, **changes):
        data = {
            "task": "sized",
            "distillation": {"kd_loss_type": "soft"},
            "training": {"num_steps": 4, "batch_size": 16, "device": "cpu", "lr": 0.05, "evaluations": 2},
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        return kdplug.Recipe.from_dict({**data, "stages": list(stages)})

    make.task = task
    return make


TA = {"name": "ta", "student": {"width": 3}}
FINAL = {"name": "final", "student": "fresh", "teacher": {"stage": "ta"}}
GENERAL, TASK = {"name": "general"}, {"name": "task"}
LAST = {"best_checkpoint": False}


def weights(folder, stage, seed=0):
    """The weights that a stage passes on, by its own record."""
    place = folder / f"seed-{seed}" / "distilled" / f"stage-{stage}"
    result = json.loads((place / "stage.json").read_text())["result"]
    return load_file(place / f"step-{result['best_step'] or result['steps']}" / "student.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_stages_are_one_long_run_if_nothing_differs_but_the_name(staged):
    """SGD without momentum has no state, and a constant batch no order: the split changes nothing."""
    training = {"num_steps": 6, "batch_size": 40, "device": "cpu", "optimizer": "SGD", "lr": 0.1, "evaluations": 0}
    stages = [{**GENERAL, "training": {"num_steps": 2}}, {**TASK, "training": {"num_steps": 4}}]
    split = run_recipe(staged(*stages, training=training, controls=[]))
    mine = load_file(split.output_dir / "student.safetensors")
    whole = run_recipe(staged(training=training, controls=[]), overwrite=True)
    theirs = load_file(whole.output_dir / "student.safetensors")
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name])
    assert split.steps == whole.steps == 6


def test_the_student_that_is_passed_on_is_the_one_that_the_stage_chose(staged, monkeypatch):
    started = []
    monkeypatch.setattr(
        "kdplug.recipes.stages.student.frozen_parameters",
        lambda student, stage: (
            started.append((stage.name, {k: v.clone() for k, v in student.state_dict().items()})) or {}
        ),
    )
    folder = run_recipe(staged({**GENERAL, "training": {"lr": 5.0}}, TASK)).output_dir
    begun = dict(started)  # of the run itself: the last ones
    assert same(begun["task"], weights(folder, "general"))
    assert same(weights(folder, "task"), load_file(folder / "student.safetensors"))


def test_the_control_takes_the_steps_of_all_stages(staged):
    result = run_recipe(staged({**GENERAL, "training": {"num_steps": 3}}, {**TASK, "training": {"num_steps": 2}}))
    assert [run.steps for run in result.no_teacher.runs] == [5]
    assert [run.steps for run in result.distilled.runs] == [5]
    stages = result.to_data()["arms"]["distilled"]["runs"][0]["stages"]
    assert [(one["name"], one["steps"]) for one in stages] == [("general", 3), ("task", 2)]


def test_an_assistant_teaches_the_next_stage(staged):
    folder = run_recipe(staged(TA, FINAL)).output_dir
    assert set(weights(folder, "ta")) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert set(weights(folder, "final")) == {"weight", "bias"}


def test_an_assistants_student_is_the_same_in_both_stages_as_without_the_other(staged):
    """A stage gets the seed's random numbers, whatever ran before it."""
    training = {"num_steps": 4, "batch_size": 16, "device": "cpu", "lr": 0.05, "evaluations": 0}
    alone = run_recipe(staged(TASK, training=training)).output_dir
    theirs = weights(alone, "task")
    two = run_recipe(staged(TA, FINAL, training=training), overwrite=True).output_dir
    assert not same(weights(two, "final"), theirs)  # another teacher
    fresh = [{"name": "one"}, {"name": "two", "student": "fresh", "teacher": {"stage": "one"}}]
    again = run_recipe(staged(*fresh, training=training), overwrite=True).output_dir
    assert same(weights(again, "one"), theirs)


def test_frozen_parameters_do_not_change_and_others_do(staged):
    folder = run_recipe(staged({**GENERAL, "training": LAST}, {**TASK, "freeze": ["b*"]})).output_dir
    before, after = weights(folder, "general"), load_file(folder / "student.safetensors")
    assert torch.equal(before["bias"], after["bias"])
    assert not torch.equal(before["weight"], after["weight"])


def test_a_stage_after_one_with_frozen_parameters_trains_them_again(staged):
    folder = run_recipe(
        staged({**GENERAL, "freeze": ["bias"], "training": LAST}, {**TASK, "training": LAST})
    ).output_dir
    first = folder / "seed-0" / "distilled" / "stage-general"
    assert list(load_file(first / "step-4" / "student_trainable.safetensors")) == ["weight"]
    assert set(weights(folder, "task")) == {"weight", "bias"}


@pytest.mark.parametrize("glob", ["biass", "0.*"])
def test_a_pattern_that_freezes_nothing_is_an_error_before_anything_is_written(staged, glob, tmp_path):
    with pytest.raises(ConfigError, match=r"^stages\.1\.freeze\.0: .* matches no parameter of the student\."):
        run_recipe(staged(GENERAL, {**TASK, "freeze": [glob]}))
    assert not (tmp_path / "out" / "kdplug-run.json").exists()


def test_freezing_everything_is_an_error(staged):
    with pytest.raises(ConfigError, match=r"^stages\.0\.freeze: leaves no parameter"):
        run_recipe(staged({**TASK, "freeze": ["*"]}))


def test_an_error_in_a_stage_names_its_path_in_the_recipe(staged):
    match = {"layer_S": "nowhere", "layer_T": "", "loss": "soft"}
    with pytest.raises(KdplugError, match=r"^stages\.1\.distillation\."):
        run_recipe(staged(GENERAL, {**TASK, "distillation": {"intermediate_matches": [match]}}))


def test_an_error_of_the_first_batch_names_its_path_in_the_recipe(staged):
    @kdplug.losses.register("wide")
    def wide(student_logits, teacher_logits):
        raise kdplug.ShapeError("too wide")

    with pytest.raises(KdplugError, match=r"^stages\.1\.distillation\.kd_loss_type"):
        run_recipe(staged(GENERAL, {**TASK, "distillation": {"kd_loss_type": "wide"}}))


def test_a_student_setting_that_the_task_does_not_have_names_its_path(staged):
    with pytest.raises(KdplugError, match=r"^stages\.0\.student\.width: "):
        run_recipe(staged({**TA, "student": {"width": "wide"}}, FINAL))


def test_the_teacher_runs_once_for_all_stages_and_seeds_that_share_it(staged):
    recipe = staged(GENERAL, {**TASK, "training": {"num_steps": 9}}, seeds=2)
    run_recipe(recipe)
    passes = staged.task.asked
    staged.task.asked = 0
    run_recipe(staged(GENERAL, {**TASK, "training": {"num_steps": 90}}, seeds=2), overwrite=True)
    assert staged.task.asked == passes
    assert (kdplug.Recipe.from_dict(recipe.to_dict()).planned_stages()) == recipe.planned_stages()


def test_the_student_is_the_same_with_and_without_a_cache(staged, monkeypatch):
    stages = [{**GENERAL, "distillation": {"temperature": 1}}, TASK, TA, {**FINAL, "student": {"stage": "task"}}]
    cached = run_recipe(staged(*stages)).output_dir
    assert (cached / "teacher-cache").is_dir()
    theirs = load_file(cached / "student.safetensors")
    monkeypatch.setattr("kdplug.recipes.run.ArmsRun.may_share_cache", lambda *_: False)
    live = run_recipe(staged(*stages), overwrite=True).output_dir
    mine = load_file(live / "student.safetensors")
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name])


def test_a_cache_made_beforehand_serves_all_stages(staged, tmp_path):
    stages = [GENERAL, {**TASK, "distillation": {"temperature": 1}}]
    recipe = staged(*stages)
    cache_recipe(recipe, tmp_path / "cache")
    training = {**recipe.to_dict()["training"], "teacher_cache": str(tmp_path / "cache")}
    staged.task.built = 0
    result = run_recipe(staged(*stages, training=training))
    assert staged.task.built == 0
    assert [run.steps for run in result.distilled.runs] == [8]


def edit(staged, first, second, **changes):
    with pytest.raises(ZeroDivisionError):
        run_recipe(staged(*first))
    return run_recipe(staged(*second, **changes), resume=True)


@pytest.fixture
def dies_in_task(monkeypatch):
    """The run dies in the stage ``task``, once."""
    from kdplug.recipes.recipe_runner import RecipeRunner

    usual = RecipeRunner.distilled

    def distilled(self, *args, **more):
        if self.stage == "task":
            monkeypatch.setattr(RecipeRunner, "distilled", usual)
            raise ZeroDivisionError
        return usual(self, *args, **more)

    monkeypatch.setattr(RecipeRunner, "distilled", distilled)


EDITS = {
    "a rate": ({**GENERAL, "training": {"lr": 0.5}}, r"^stages\.0\.training\.lr: was 0\.05, now 0\.5, but stage 'general' is complete"),
    "a loss": ({**GENERAL, "distillation": {"temperature": 2}}, r"^stages\.0\.distillation\.temperature: was 4\.0, now 2\.0"),
    "frozen": ({**GENERAL, "freeze": ["bias"]}, r"^stages\.0\.freeze: .* stage 'general' is complete"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.usefixtures("dies_in_task")
def test_an_edited_stage_that_is_complete_is_an_error(staged, name):
    changed, message = EDITS[name]
    with pytest.raises(ConfigError, match=message):
        edit(staged, (GENERAL, TASK), (changed, TASK))


@pytest.mark.usefixtures("dies_in_task")
def test_a_complete_stage_that_is_left_out_is_an_error(staged):
    with pytest.raises(ConfigError, match=r"^stages: lacks the stage 'general', which is complete in "):
        edit(staged, (GENERAL, TASK), (TASK,))


@pytest.mark.usefixtures("dies_in_task")
def test_a_stage_that_has_begun_is_not_edited_either(staged):
    with pytest.raises(ConfigError, match=r"^stages\.1\.training\.lr: .* stage 'task' has begun"):
        edit(staged, (GENERAL, TASK), (GENERAL, {**TASK, "training": {"lr": 0.5}}))


@pytest.mark.usefixtures("dies_in_task")
def test_a_stage_that_has_not_begun_may_be_edited(staged):
    more = {"name": "more", "training": {"lr": 0.01}}
    result = edit(staged, (GENERAL, TASK, {"name": "more"}), (GENERAL, TASK, more))
    assert [one["name"] for one in result.distilled.runs[0].stages] == ["general", "task", "more"]


def test_a_complete_stage_is_not_repeated(staged, monkeypatch):
    done = run_recipe(staged(GENERAL, TASK))
    (done.output_dir / "seed-0" / "distilled" / "result.json").unlink()
    monkeypatch.setattr("kdplug.engine.loop.Loop._step", lambda *_: 1 / 0)
    again = run_recipe(staged(GENERAL, TASK), resume=True)
    assert again.distilled.metrics == done.distilled.metrics


def test_a_new_run_overwrites_the_stages_of_an_earlier_one(staged):
    folder = run_recipe(staged(GENERAL, TASK)).output_dir
    with pytest.raises(KdplugError, match="of an earlier run"):
        run_recipe(staged(TASK))
    run_recipe(staged(TASK), overwrite=True)
    left = folder / "seed-0" / "distilled" / "stage-general"
    assert not list(left.glob("step-*"))
    assert not (left / "stage.json").exists()


def test_the_history_of_the_run_is_that_of_all_stages(staged):
    folder = run_recipe(staged({**GENERAL, "training": {"num_steps": 3}}, TASK)).output_dir
    lines = [json.loads(line) for line in (folder / "seed-0" / "distilled" / "history.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["stage"]) for line in lines if "terms" in line]
    assert steps == [*((step, "general") for step in (1, 2, 3)), *((step, "task") for step in (4, 5, 6, 7))]


def test_the_record_holds_every_stage_with_what_it_inherits(staged):
    folder = run_recipe(staged(TA, FINAL)).output_dir
    record = json.loads((folder / "kdplug-run.json").read_text())
    assert [(one["name"], one["start"], one["teacher"]) for one in record["stages"]] == [
        ("ta", None, None), ("final", None, "ta"),
    ]  # fmt: skip
    assert "stages.1.distillation.terms.0.loss" in [entry["path"] for entry in record["entries"]]


def test_a_plan_prices_every_stage(staged):
    plan = plan_recipe(staged(TA, FINAL, seeds=2))
    assert [(stage.name, stage.plan.steps["distilled"]) for stage in plan.stages] == [("ta", 4), ("final", 4)]
    assert plan.steps == {"teacher": 0, "no_teacher": 8, "distilled": 8}
    assert plan.total_steps == 2 * (8 + 8)
    assert [one["name"] for one in plan.to_data()["stages"]] == ["ta", "final"]
    assert plan.stages[0].plan.parameters["student"] == 23
    assert plan.stages[1].plan.parameters["teacher"] == 23


def test_a_stage_that_chooses_by_a_metric_that_it_does_not_train_is_warned_of(staged):
    general, task = staged(GENERAL, {**TASK, "training": LAST}).planned_stages()
    assert "Set best_checkpoint: false" in (unranked_student(general, {"hidden"}) or "")
    assert unranked_student(general, {"hidden", "losses"}) is None
    assert unranked_student(task, {"hidden"}) is None


def test_an_inherited_setting_that_a_stage_does_not_use_is_no_warning(staged):
    silent = {"kd_loss_weight": 0, "hard_label_weight": 1}
    plan = plan_recipe(staged({**GENERAL, "distillation": silent}, TASK))
    assert "stages.0.distillation.kd_loss_type" not in [one.field for one in plan.warnings]


def test_a_teacher_that_changes_cannot_be_combined_with_stages(staged):
    kdplug.teacher_updates.register("follow")(lambda teacher_tensor, student_tensor: student_tensor)
    with pytest.raises(ConfigError, match=r"^distillation\.teacher_update: .* cannot be combined with stages"):
        staged({"name": "one"}, distillation={"kd_loss_type": "soft", "teacher_update": "follow"})
