"""A recipe whose teacher is not the task's: none, an external one, the student without adapters, or a copy that follows."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import kdplug
from kdplug import Recipe
from kdplug.cli.plan import plan_lines
from kdplug.config.schema.build import schema_of
from kdplug.errors import ConfigError, EntryError, RunError
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe

from .conftest import Signs

QUICK = ("training.num_epochs=1", "training.evaluations=2")


class Knows:
    """An external teacher that computes the answer; it may fail at its call number ``fails_at``."""

    calls = 0

    def __init__(self, *, scale: float = 1.0, fails_at: int = 0) -> None:
        self.scale = scale
        self.fails_at = fails_at

    def __call__(self, batch):
        type(self).calls += 1
        if type(self).calls == self.fails_at:
            raise TimeoutError("no answer in 10 s")
        total = batch[0].sum(-1)
        return {"logits": torch.stack([-total, total], -1) * self.scale}

    def fingerprint(self):
        return {"scale": self.scale}


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 2).requires_grad_(False)
        self.adapter = nn.Linear(4, 2)
        self.is_on = True

    @contextmanager
    def disable_adapter(self):
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True

    def forward(self, x):
        return self.base(x) + self.adapter(x) if self.is_on else self.base(x)


class AdaptedSigns(Signs):
    def build_student(self):
        return Adapted()


def alone(student_logits, labels=None):
    return student_logits.logsumexp(-1).mean()


def midpoint(teacher_tensor, student_tensor):
    return (teacher_tensor + student_tensor) / 2


@pytest.fixture
def recipe(signs):
    Knows.calls = 0
    kdplug.teachers.register("knows")(Knows)
    kdplug.losses.register("alone")(alone)
    kdplug.teacher_updates.register("midpoint")(midpoint)
    kdplug.tasks.register("adapted")(AdaptedSigns)
    return lambda *changes: signs(*QUICK, *changes)


COPY = ("teacher=copy", "distillation.teacher_update=midpoint", "distillation.hard_label_weight=1")
KINDS = {
    "none": ("teacher=none", "distillation.kd_loss_type=alone", "distillation.hard_label_weight=1"),
    "external": ("teacher=knows",),
    "self": ("teacher=self", "task=adapted", "distillation.hard_label_weight=1"),
    "copy": COPY,
}


WORDS = {
    "none": "teacher: none: no term reads one",
    "external": "teacher: local:knows",
    "self": "teacher: the student with its adapters off",
    "copy": "teacher: a copy of the untrained student, changed after each optimizer step by local:midpoint",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_teacher_is_planned_run_and_reported(recipe, kind):
    made = recipe(*KINDS[kind], "seeds=2")
    plan = plan_recipe(made)
    assert plan.teacher == {"external": "local:knows"}.get(kind, kind)
    lines = [str(line) for line in plan_lines(plan)]
    assert WORDS[kind] in lines
    text = io.StringIO()
    result = run_recipe(made, console=Console(file=text, width=200))
    assert list(result.arms) == ["no_teacher", "distilled"]
    assert result.compared.verdict is not None
    assert len(result.arms["distilled"].runs) == 2
    folder = Path(made.output_dir)
    record = json.loads((folder / "kdplug-run.json").read_text())
    written = {"name": "local:knows", "scale": 1.0, "fails_at": 0} if kind == "external" else kind
    assert record["recipe"]["teacher"] == written
    assert (folder / "report.html").is_file()
    before = [run.metrics for run in result.arms["distilled"].runs]
    again = run_recipe(made, resume=True)
    assert [run.metrics for run in again.arms["distilled"].runs] == before


def test_an_external_teacher_is_asked_once_for_all_seeds_and_its_cache_belongs_to_it(recipe, tmp_path):
    run_recipe(recipe(*KINDS["external"], "seeds=3"))
    assert Knows.calls < 3 * 3
    cached = tmp_path / "cache"
    cache_recipe(recipe(*KINDS["external"]), cached)
    Knows.calls = 0
    keys = (f"training.teacher_cache={cached}", "distillation.is_caching_logits=true", f"output_dir={tmp_path / 'two'}")
    run_recipe(recipe("teacher=knows", *keys))
    assert Knows.calls == 0
    with pytest.raises(RunError, match=r"fingerprint\.scale 1\.0 -> 2\.0"):
        run_recipe(recipe("teacher={name: knows, scale: 2}", *keys), overwrite=True)


def test_a_recipe_whose_teacher_fails_resumes(recipe):
    external = "teacher={name: knows, fails_at: 6}"
    made = recipe(external, "controls=[]", "training.num_epochs=4")
    with pytest.raises(
        RunError, match=r"the teacher Knows failed on a batch: TimeoutError: no answer in 10 s\. .*--resume"
    ):
        run_recipe(made)
    Knows.calls = 100
    found = run_recipe(made, resume=True)
    Knows.calls = 100
    whole = run_recipe(made, overwrite=True)
    assert found.arms["distilled"].metrics == whole.arms["distilled"].metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("teacher=none",), r"teacher: is none, and these terms read a teacher: kd_loss \(teacher_logits\)"),
        (("teacher=self",), r"model_T: is self, but the student, a Linear, has no disable_adapter"),
        (("teacher=copy",), r"teacher: is copy, .* nothing changes it"),
        ((*COPY, "teacher=self"), r"distillation\.teacher_update: 'midpoint' needs a model to update"),
        ((*COPY, "teacher=none"), r"distillation\.teacher_update: 'midpoint' needs a model to update"),
        ((*COPY, "distillation.is_caching_logits=true"), r"teacher_update: 'midpoint' changes the teacher"),
        (("teacher={name: self, rank: 3}",), r"teacher: self has no settings"),
        (("teacher={name: knows, scales: 3}",), r"teacher: .*scales"),
        (("teacher=known",), r"teacher: no teacher named 'known'. Did you mean 'knows'"),
    ],
)
def test_a_teacher_that_cannot_be_is_an_error_before_training(recipe, changes, message):
    with pytest.raises((ConfigError, EntryError), match=message):
        run_recipe(recipe(*changes))


def test_a_task_that_starts_the_student_from_its_teacher_needs_that_teacher(recipe):
    class Starts(Signs):
        starts_student = True

        def start_student(self, student, teacher):
            pass

    kdplug.tasks.register("starts")(Starts)
    with pytest.raises(ConfigError, match=r"teacher: is knows, but task 'starts' starts the student from the teacher"):
        run_recipe(recipe("teacher=knows", "task=starts"))


def test_the_key_is_written_and_read_back(recipe):
    for value in ("task", "self", "none", "knows", {"name": "knows", "scale": 2.0}):
        data = {**recipe().to_dict(), "teacher": value}
        assert Recipe.from_dict(data).to_dict()["teacher"] == value
    assert recipe().to_dict()["teacher"] == "task"


def test_the_schema_knows_the_words_and_the_entries(recipe):
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft7Validator(schema_of("recipe").data)
    data = recipe().model_dump(mode="json", exclude_unset=True)
    for value in ("task", "self", "copy", "none", None, "knows", {"name": "local:knows", "scale": 2}):
        assert not list(check.iter_errors({**data, "teacher": value})), value
    for value in ("selves", {"name": "knows", "scales": 2}, 3):
        assert list(check.iter_errors({**data, "teacher": value})), value
