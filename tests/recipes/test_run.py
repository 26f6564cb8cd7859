"""Carrying out a recipe: a fair comparison, and files that belong together."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import kdplug
from kdplug.engine.checkpoint.in_use import in_use
from kdplug.errors import ConfigError, RunError
from kdplug.recipes.data import training_loader
from kdplug.recipes.output_folder import FILES, LIST
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import run_recipe
from kdplug_presets.balancer import Share


def _runner(recipe):
    return RecipeRunner(recipe, kdplug.tasks.build(recipe.task).target, print, show_progress=False)


def _metrics(result):
    return [figures.metrics for figures in result.arms.values()]


def test_a_task_with_a_trained_teacher_needs_no_fit(signs, capsys):
    assert run_recipe(signs()).teacher.metrics == {"accuracy": 1.0, "error": 0.0}


def test_the_history_has_the_weights_that_a_share_was_given(signs):
    kdplug.balancers.register("share")(Share)
    data = signs().to_dict()
    terms = [{"loss": "soft", "weight": {"share": 0.25}}]
    del data["distillation"]
    recipe = kdplug.Recipe.from_dict({**data, "distillation": {"terms": terms, "hard_label_weight": 2}})
    run_recipe(recipe)
    (file,) = Path(recipe.output_dir).rglob("distilled/history.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    weights = [line["weights"] for line in lines if "weights" in line]
    assert {found["hard_label_loss"] for found in weights} == {2}
    assert len({found["soft"] for found in weights}) == 1
    assert weights[0]["soft"] not in (0, 1)


def test_a_run_without_console_prints_nothing(signs, capsys):
    run_recipe(signs())
    assert capsys.readouterr() == ("", "")


def test_the_baseline_shows_its_progress_like_the_distillation(signs, capsys):
    run_recipe(signs("training.num_epochs=1"), console=Console(file=io.StringIO()))
    lines = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [step for step in lines if step.partition("/")[0] == step.partition("/")[2]] == ["3/3", "3/3"]


def test_the_same_seed_gives_the_same_figures(signs):
    assert _metrics(run_recipe(signs("seed=5"))) == _metrics(run_recipe(signs("seed=5"), overwrite=True))


def test_a_run_leaves_the_students_of_other_seeds_different(signs):
    assert not torch.equal(_runner(signs("seed=1")).student(None).weight, _runner(signs("seed=2")).student(None).weight)


def test_both_students_start_from_the_same_weights(signs):
    runner = _runner(signs())
    first = runner.student(None)
    torch.rand(3)
    assert torch.equal(first.weight, runner.student(None).weight)


def test_the_baseline_gets_as_many_batches_of_the_same_sizes(signs):
    task = kdplug.tasks.build(signs().task).target
    sizes = [
        [len(batch[0]) for batch in training_loader(task, part, batch_size=16, seed=0, like="distillation")]
        for part in ("distillation", "baseline")
    ]
    assert sizes == [[16, 16, 8], [16, 16, 8]]


def test_a_part_that_is_gone_through_several_times_shows_each_example_equally_often(signs):
    task = kdplug.tasks.build(signs().task).target
    batches = list(training_loader(task, "baseline", batch_size=6, seed=0, like="distillation"))
    assert all(torch.equal(batch[0].sort(0).values, task.data("baseline").sort(0).values) for batch in batches[:6])


@pytest.mark.parametrize(
    "changes",
    [
        ["training.num_epochs=2"],
        ["training.num_epochs=null", "training.num_steps=7"],
        ["training.num_epochs=3", "training.gradient_accumulation_steps=2"],
        ["training.num_epochs=null", "training.num_steps=5", "training.gradient_accumulation_steps=2"],
    ],
)
def test_distillation_and_baseline_take_equally_many_steps(signs, changes):
    recipe = signs(*changes)
    runner = _runner(recipe)
    teacher = runner.teacher()
    distilled, control = runner.distilled(teacher), runner.no_teacher(teacher)
    assert distilled.steps == control.steps == len(distilled.history.terms["kd_loss"])


def test_evaluations_are_spread_evenly_over_the_run_and_end_with_it(signs):
    runner = _runner(signs("training.num_epochs=10", "training.evaluations=4"))
    assert [step for step, _ in runner.distilled(runner.teacher()).history.validation] == [8, 15, 23, 30]


def test_evaluating_during_a_run_does_not_change_it(signs, tmp_path):
    found = []
    for count in (4, 0):
        runner = _runner(
            signs(f"training.evaluations={count}", "training.best_checkpoint=false", f"output_dir={tmp_path}/{count}")
        )
        found.append(runner.distilled(runner.teacher()).model.weight)
    assert torch.equal(*found)


def test_a_run_replaces_the_files_of_an_earlier_one(signs):
    recipe = signs()
    folder = Path(recipe.output_dir)
    run_recipe(recipe)
    run_recipe(signs("seed=1"), overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, LIST, "teacher", "seed-0", "seed-1"])
    assert json.loads((folder / "kdplug-run.json").read_text())["seed"] == 1


def test_a_run_that_fails_leaves_no_results_of_an_earlier_one(signs, monkeypatch):
    recipe = signs()
    run_recipe(recipe)
    monkeypatch.setattr(RecipeRunner, "distilled", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, overwrite=True)
    assert {path.name for path in Path(recipe.output_dir).iterdir() if path.is_file()} == {"kdplug-run.json", LIST}


def test_files_that_are_not_of_a_run_stay(signs):
    recipe = signs()
    note = Path(recipe.output_dir) / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    run_recipe(recipe)
    assert note.read_text() == "mine"


def test_without_matplotlib_nothing_is_trained_or_written(signs, monkeypatch):
    monkeypatch.setattr("kdplug.report.curve.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r'pip install "kdplug\[report\]"'):
        run_recipe(signs())
    assert not Path(signs().output_dir).exists()


def test_several_processes_are_refused(signs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="a recipe runs in one process, but 2 were launched"):
        run_recipe(signs())


def test_a_task_that_lacks_a_method_is_an_error_that_names_it(signs):
    kdplug.tasks.register("signs")(type("Nothing", (), {"__init__": lambda self: None, "metric": "accuracy"}))
    with pytest.raises(ConfigError, match="local:signs is not a task: it lacks about, build_teacher, "):
        run_recipe(signs())


def test_an_evaluate_without_the_metric_is_an_error(signs, monkeypatch):
    recipe = signs()
    monkeypatch.setattr(kdplug.tasks.load("signs"), "metric", "f1")
    with pytest.raises(RunError, match="must return the metric 'f1', got"):
        run_recipe(recipe)


def test_a_student_without_losses_cannot_be_trained_on_labels(signs, monkeypatch):
    recipe = signs()
    monkeypatch.setattr(kdplug.tasks.load("signs"), "student_adaptor", lambda self, batch, logits: {"logits": logits})
    with pytest.raises(RunError, match=r"(?s)a control failed.*the model returned no losses, only logits"):
        run_recipe(recipe)


def test_the_checksums_of_the_student_are_as_sha256sum_reads_them(signs):
    folder = run_recipe(signs()).output_dir
    digest = hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()
    assert (folder / "SHA256SUMS").read_text() == f"{digest}  student.safetensors\n"


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_no_run_wrote_is_not_replaced(signs, name):
    recipe = signs()
    file = Path(recipe.output_dir) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("precious", encoding="utf-8")
    with pytest.raises(RunError, match=f"output_dir: .* contains '{name}', which was not written by a run"):
        run_recipe(recipe)
    assert file.read_text(encoding="utf-8") == "precious"


def test_what_a_killed_run_left_is_removed_and_files_of_the_user_are_not(signs):
    folder = Path(signs().output_dir)
    run_recipe(signs())
    left = [".curves-abcd1234.png", ".student-abcd1234.safetensors", ".model-abcd1234/weights"]
    kept = [".curves-mine.txt", "step-keep/notes", ".model-cards-of-mine/one"]
    for name in left + kept:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text", encoding="utf-8")
    run_recipe(signs(), overwrite=True)
    assert [name for name in left + kept if (folder / name).exists()] == kept
    assert not (folder / ".model-abcd1234").exists()


def test_a_folder_in_use_is_refused_before_anything_is_deleted(signs):
    result = run_recipe(signs())
    before = (result.output_dir / "metrics.json").read_bytes()
    with in_use(result.output_dir), pytest.raises(RunError, match="in use by another run"):
        run_recipe(signs(), overwrite=True)
    assert (result.output_dir / "metrics.json").read_bytes() == before


def test_results_of_an_earlier_run_are_replaced_only_if_asked(signs):
    folder = run_recipe(signs()).output_dir
    mine = folder / "seed-0" / "distilled" / "step-9" / "notes"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(RunError, match=r"output_dir: .*kdplug-run\.json' of an earlier run.*--resume.*--overwrite"):
        run_recipe(signs("seed=1"))
    assert (folder / "metrics.json").read_bytes() == before
    (folder / "kdplug-run.json").unlink()
    with pytest.raises(RunError, match=r"metrics\.json' of an earlier run but no kdplug-run\.json to resume from"):
        run_recipe(signs("seed=1"), resume=True)
    run_recipe(signs("seed=1", "training.num_epochs=1"), overwrite=True)
    assert [path.name for path in (folder / "seed-0" / "distilled").glob("step-*")] == ["step-9"]
    assert mine.read_text() == "mine"


def test_a_run_does_not_both_resume_and_overwrite(signs):
    with pytest.raises(ConfigError, match="overwrite: cannot be combined with resume"):
        run_recipe(signs(), resume=True, overwrite=True)
