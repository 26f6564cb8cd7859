"""Time and memory of the runs of a recipe."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from torch import nn

import kdplug
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.cost import Clock, peak_memory, seconds_of
from kdplug.recipes.run import run_recipe


def runs_of(recipe, arm):
    return json.loads((Path(recipe.output_dir) / "metrics.json").read_text())["arms"][arm]["runs"]


@pytest.fixture
def time(monkeypatch):
    """A clock that the test moves."""
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr("kdplug.recipes.cost.time", SimpleNamespace(monotonic=lambda: now.value))
    return now


def part(clock, folder, time, begin, end, *, each):
    """Run the steps after ``begin`` up to ``end``, each in ``each`` seconds."""
    run = SimpleNamespace(step=begin, output_dir=folder)
    clock.run_start(run)
    for step in range(begin + 1, end + 1):
        time.value += each
        run.step = step
        clock.step_end(run, step, None)
    clock.run_end(run, None)


def test_the_seconds_of_a_resumed_run_are_those_of_both_parts_without_the_steps_that_are_repeated(tmp_path, time):
    part(Clock(), tmp_path, time, 0, 10, each=2)
    assert seconds_of(tmp_path) == 20
    again = Clock()
    part(again, tmp_path, time, 6, 10, each=3)
    assert again.before == 12
    assert seconds_of(tmp_path) == 12 + 12


def test_the_seconds_are_unknown_if_those_of_an_earlier_process_are(tmp_path, time):
    clock = Clock()
    part(clock, tmp_path, time, 6, 10, each=3)
    assert clock.before is None
    assert seconds_of(tmp_path) is None


def test_a_truncated_line_is_left_out(tmp_path, time):
    part(Clock(), tmp_path, time, 0, 4, each=2)
    with (tmp_path / "seconds.jsonl").open("a") as file:
        file.write('{"step": 5, "sec')
    assert seconds_of(tmp_path) == 8


def test_a_run_that_starts_again_counts_from_0(tmp_path, time):
    part(Clock(), tmp_path, time, 0, 4, each=2)
    part(Clock(), tmp_path, time, 0, 4, each=1)
    assert seconds_of(tmp_path) == 4


def test_the_peak_memory_of_a_process_is_known_on_a_cpu():
    assert peak_memory(nn.Linear(2, 2)) > 10_000_000


@pytest.fixture
def fitted(signs, monkeypatch):
    """The recipe trains the task's teacher."""
    task = kdplug.tasks.load("signs")
    monkeypatch.setattr(task, "teacher_fit", lambda self: {"epochs": 1, "batch_size": 8, "learning_rate": 0.1})
    monkeypatch.setattr(task, "teacher_adaptor", task.student_adaptor)
    return signs


def test_every_run_has_its_seconds_and_memory_and_the_teacher_those_of_its_cache(fitted):
    recipe, out = fitted("seeds=2"), io.StringIO()
    run_recipe(recipe, console=Console(file=out, width=300))
    for arm in ("teacher", "no_teacher", "distilled"):
        for run in runs_of(recipe, arm):
            assert run["seconds"] > 0
            assert run["peak_memory"] > 0
    assert runs_of(recipe, "teacher")[0]["cache_seconds"] > 0
    assert "Training time: teacher " in out.getvalue()
    assert "storing teacher outputs" in out.getvalue()
    page = (Path(recipe.output_dir) / "report.html").read_text()
    assert "4 students and the teacher" in page
    assert "to store teacher outputs" in page
    before = runs_of(recipe, "teacher")
    run_recipe(recipe, resume=True)
    assert runs_of(recipe, "teacher") == before


def test_a_trained_teacher_has_no_seconds(signs):
    run_recipe(signs())
    assert runs_of(signs(), "teacher")[0]["seconds"] is None


def test_a_cache_keeps_the_cost_of_its_teacher(fitted, tmp_path):
    recipe = fitted()
    cache_recipe(recipe, tmp_path / "cache")
    again = recipe.with_overrides([f"training.teacher_cache={tmp_path / 'cache'}"])
    run_recipe(again)
    (found,) = runs_of(again, "teacher")
    assert found["seconds"] > 0
    assert found["cache_seconds"] > 0
