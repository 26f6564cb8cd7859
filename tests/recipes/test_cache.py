"""A recipe whose teacher is asked once: ``kdplug cache``, and the run that needs no teacher."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from codec_specimen import register
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

import kdplug
from kdplug.engine.cache import layout
from kdplug.engine.cache.report import CacheReport
from kdplug.engine.checkpoint.archive import CHECKSUMS, write_checksums
from kdplug.errors import RunError, SettingError
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.cache_provenance import CacheProvenance
from kdplug.recipes.measure import Figures
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import run_recipe
from kdplug.recipes.task import build_task

BATCHES = 3


@pytest.fixture
def out(tmp_path):
    register()
    return tmp_path / "cache"


@pytest.fixture
def recipe(signs, out):
    """The recipe with its cache in ``out``, and changes."""
    return lambda *changes: signs(
        f"training.teacher_cache={json.dumps(str(out))}", "training.teacher_cache_codec=whole", *changes
    )


def no_teacher(monkeypatch, name="signs"):
    def build(self):
        raise AssertionError("a teacher was built")

    monkeypatch.setattr(kdplug.tasks.load(name), "build_teacher", build)


def figures(result):
    return [one.metrics for one in result.arms.values()]


def test_a_run_from_a_cache_needs_no_teacher_and_gives_the_same_figures(signs, recipe, out, monkeypatch):
    plain = run_recipe(signs())
    cache_recipe(recipe(), out)
    no_teacher(monkeypatch)
    assert figures(run_recipe(recipe(), overwrite=True)) == figures(plain)


def test_the_teachers_figures_are_those_of_when_it_was_asked(recipe, out, monkeypatch):
    cache_recipe(recipe(), out)
    said = json.loads((out / "origin.json").read_text())
    no_teacher(monkeypatch)
    result = run_recipe(recipe())
    assert result.teacher.metrics == said["teacher"]["metrics"] == {"accuracy": 1.0, "error": 0.0}
    assert result.teacher.figures.parameters == 10


def _other_test(monkeypatch, change):
    """Change the test part of the recipe's task."""
    base = kdplug.tasks.load("signs")
    data = base.data
    monkeypatch.setattr(
        base, "data", lambda self, part: change(data(self, part)) if part == "test" else data(self, part)
    )


@pytest.mark.parametrize("is_known", [True, False])
def test_a_teacher_is_evaluated_again_for_another_test_part(recipe, out, monkeypatch, is_known):
    cache_recipe(recipe(), out)
    path = out / "origin.json"
    if is_known:
        _other_test(monkeypatch, lambda data: data[:7] * 3)
        assert _count_teachers(monkeypatch, lambda: run_recipe(recipe())) == 1
        return
    CacheProvenance("accuracy", {"accuracy": 0.25}, Figures(10, 0.1, 40, 2.0)).write(out)
    assert json.loads(path.read_text())["test"] is None
    assert run_recipe(recipe()).teacher.metrics["accuracy"] == 1.0


def _count_teachers(monkeypatch, carry_out):
    """Return how many teachers are built."""
    base, built = kdplug.tasks.load("signs"), []
    build = base.build_teacher
    monkeypatch.setattr(base, "build_teacher", lambda self: built.append(1) or build(self))
    carry_out()
    return len(built)


def test_a_cache_that_a_run_filled_itself_says_nothing_of_the_teacher(recipe, out):
    run_recipe(recipe())
    assert (out / "manifest.json").is_file()
    assert not (out / "origin.json").exists()
    assert run_recipe(recipe(), overwrite=True).teacher.metrics["accuracy"] == 1.0


def test_a_second_call_asks_nothing(recipe, out):
    assert cache_recipe(recipe(), out).batches == BATCHES
    assert cache_recipe(recipe(), out).batches == 0


def test_a_cache_serves_other_students_steps_and_losses(recipe, out, monkeypatch):
    cache_recipe(recipe(), out)
    no_teacher(monkeypatch)
    run_recipe(recipe("training.batch_size=7", "training.lr=0.1", "distillation.hard_label_weight=1", "seed=3"))


def test_a_folder_that_nothing_is_read_from_is_not_what_a_recipe_means(signs, recipe):
    assert recipe().distillation.is_caching_logits
    assert not signs().distillation.is_caching_logits
    assert not recipe("distillation.is_caching_logits=false").distillation.is_caching_logits
    assert type(recipe()).from_dict(recipe().to_dict()) == recipe()


class Fingerprinted:
    def fingerprint(self):
        return {"tokenizer": {"vocabulary": self.vocabulary}, "teacher": "one"}


def offer(monkeypatch, vocabulary):
    """The task of the recipe, with a setting for its student and a vocabulary."""
    base = kdplug.tasks.load("signs")

    class Told(base, Fingerprinted):
        def __init__(self, *, width: int = 1) -> None:
            self.vocabulary = vocabulary

    kdplug.tasks.register("signs")(Told)


def test_what_a_task_says_of_itself_has_to_be_the_same_and_its_other_settings_do_not(recipe, out, monkeypatch):
    offer(monkeypatch, 100)
    cache_recipe(recipe(), out)
    no_teacher(monkeypatch)
    run_recipe(recipe("task={name: signs, width: 2}"))
    offer(monkeypatch, 101)
    with pytest.raises(RunError, match=r"the tokenizer: vocabulary 100 -> 101"):
        run_recipe(recipe(), overwrite=True)


class Fitted:
    """How a teacher is fitted, and data with the labels that it is fitted on."""

    def teacher_fit(self):
        return {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2}

    def teacher_adaptor(self, batch, outputs):
        return self.student_adaptor(batch, outputs)


def fit(monkeypatch):
    base = kdplug.tasks.load("signs")
    kdplug.tasks.register("signs")(type("FittedSigns", (Fitted, base), {"build_teacher": lambda self: nn.Linear(4, 2)}))


def test_a_teacher_that_the_recipe_fits_is_fitted_once_and_stays(recipe, out, monkeypatch):
    fit(monkeypatch)
    monkeypatch.setattr(layout, "SHARD_BATCHES", 1)
    cache_recipe(recipe(), out)
    (out / "shard-00001.json").unlink()
    steps = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_: steps.append(1))
    assert cache_recipe(recipe(), out).batches == 1
    assert not steps


def test_a_teacher_that_was_fitted_from_another_seed_is_another_teacher(recipe, out, monkeypatch):
    fit(monkeypatch)
    cache_recipe(recipe(), out)
    no_teacher(monkeypatch)
    with pytest.raises(RunError, match="how the teacher is trained: seed 0 -> 1"):
        run_recipe(recipe("seed=1"))


def test_a_student_never_starts_from_another_teacher_than_that_of_the_cache(recipe, out, monkeypatch):
    fit(monkeypatch)
    starts = {
        "starts_student": True,
        "start_student": lambda self, student, teacher: student.load_state_dict(teacher.state_dict()),
    }
    base = kdplug.tasks.load("signs")
    kdplug.tasks.register("signs")(type("Starting", (base,), starts))
    cache_recipe(recipe(), out)
    (file,) = (out / "teacher").glob("step-*/student.safetensors")
    before = load_file(file)
    save_file({name: 2 * tensor for name, tensor in before.items()}, file)
    with pytest.raises(RunError, match=r"student\.safetensors does not match its checksum"):
        run_recipe(recipe(), overwrite=True)
    listed = [part for part in file.parent.iterdir() if part.name != CHECKSUMS]
    write_checksums(file.parent, listed)
    with pytest.raises(
        RunError, match=r"(?s)^training\.teacher_cache: .* is not the one .*weights: teacher\.weight, teacher\.bias"
    ):
        run_recipe(recipe(), overwrite=True)
    save_file(before, file)
    write_checksums(file.parent, listed)
    run_recipe(recipe(), overwrite=True)


def test_figures_of_another_cache_are_refused(recipe, out, monkeypatch, tmp_path):
    fit(monkeypatch)
    cache_recipe(recipe(), out)
    cache_recipe(recipe("seed=1"), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "origin.json", out / "origin.json")
    with pytest.raises(
        RunError, match=r"^training\.teacher_cache: .*origin\.json belongs to a different cache from the manifest\.json"
    ):
        run_recipe(recipe(), overwrite=True)


def test_several_processes_do_not_fit_a_teacher(recipe, out, monkeypatch):
    fit(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="2 processes were launched, but the recipe's teacher must be trained first"):
        cache_recipe(recipe(), out)


def test_other_data_are_found_when_they_are_used(recipe, out, monkeypatch):
    cache_recipe(recipe(), out)
    no_teacher(monkeypatch)
    more_data(monkeypatch)
    with pytest.raises(RunError, match="the data that the teacher receives: examples 0 to 15"):
        run_recipe(recipe(), overwrite=True)


def more_data(monkeypatch):
    data = kdplug.tasks.load("signs").data
    monkeypatch.setattr(kdplug.tasks.load("signs"), "data", lambda self, part: data(self, part) + 1)


@pytest.mark.parametrize("go", [run_recipe, plan_recipe, lambda made: cache_recipe(made, made.training.teacher_cache)])
def test_a_cache_of_something_else_is_refused_before_any_model_is_built(recipe, out, monkeypatch, go):
    cache_recipe(recipe(), out)
    (out / "origin.json").unlink()  # as where a run filled it
    written = {file: file.stat().st_mtime_ns for file in out.parent.rglob("*") if file.is_file()}
    more_data(monkeypatch)
    for side in ("teacher", "student"):
        monkeypatch.setattr(kdplug.tasks.load("signs"), f"build_{side}", lambda self: 1 / 0)
    with pytest.raises(RunError, match=r"was built from different inputs.*\n.*the data that the teacher receives"):
        go(recipe())
    assert {file: file.stat().st_mtime_ns for file in out.parent.rglob("*") if file.is_file()} == written


def test_a_folder_that_is_no_cache_is_refused_before_any_model_is_built(recipe, out, monkeypatch):
    out.mkdir()
    (out / "thesis.txt").touch()
    no_teacher(monkeypatch)
    with pytest.raises(RunError, match=r"holds 'thesis\.txt' and no manifest\.json"):
        run_recipe(recipe(), overwrite=True)


def near(student_features, teacher_features):
    return (student_features - teacher_features).square().mean()


def test_a_cache_without_a_layer_that_is_read_is_refused_before_any_model_is_built(recipe, out, monkeypatch):
    kdplug.losses.register("near")(near)
    cache_recipe(recipe(), out)
    (out / "origin.json").unlink()
    for side in ("teacher", "student"):
        monkeypatch.setattr(kdplug.tasks.load("signs"), f"build_{side}", lambda self: 1 / 0)
    match = "[{layer_T: 0, layer_S: 0, feature: hidden, loss: near}]"
    with pytest.raises(RunError, match=r"lacks hidden, .*which the objective reads"):
        run_recipe(recipe(f"distillation.intermediate_matches={match}"))


def told(recipe, *, resume):
    """What is said while a recipe's models are trained."""
    said = []
    runner = RecipeRunner(recipe, build_task(recipe)[1], said.append, show_progress=False, resume=resume)
    teacher = runner.teacher()
    runner.distilled(teacher)
    runner.no_teacher(teacher)
    return said


def test_a_run_says_what_it_trains_and_what_lies_there_from_before(signs, monkeypatch):
    fit(monkeypatch)
    made = signs()
    assert [line.partition(":")[2] for line in told(made, resume=False)] == [f" {n} optimizer steps" for n in (5, 6, 6)]
    teacher, student, baseline = told(made, resume=True)
    assert teacher == f"Teacher already trained (5 optimizer steps in {made.output_dir}/teacher)"
    assert student.startswith("Student already distilled (6 optimizer steps")
    assert baseline.startswith("Student without distillation already trained (6 optimizer steps")


def test_a_run_that_was_interrupted_says_how_much_is_done(signs, monkeypatch):
    fit(monkeypatch)
    made = signs("training.ckpt_frequency=3")
    told(made, resume=False)
    shutil.rmtree(Path(made.output_dir) / "seed-0" / "distilled" / "step-6")
    assert "Distilling the student: 6 optimizer steps, 5 already done" in told(made, resume=True)


def test_a_cache_that_is_resumed_fits_no_teacher_again_and_reports_it(recipe, out, monkeypatch):
    fit(monkeypatch)
    said = [io.StringIO(), io.StringIO()]
    for one in said:
        cache_recipe(recipe(), out, console=Console(file=one, width=200))
    assert "Training the teacher: 5 optimizer steps" in said[0].getvalue()
    assert "Fitting" not in said[1].getvalue()
    assert f"Teacher already trained (5 optimizer steps in {out}/teacher)" in said[1].getvalue()


def test_a_damaged_origin_is_an_error_that_says_how_to_mend_it(recipe, out):
    cache_recipe(recipe(), out)
    (out / "origin.json").write_text("{")
    with pytest.raises(
        RunError, match=r"^training.teacher_cache: .*origin\.json has no digest.*kdplug cache RECIPE --out"
    ):
        run_recipe(recipe())


def test_a_codec_that_cannot_be_used_is_reported_before_anything_is_trained(recipe, out):
    with pytest.raises(SettingError, match=r"^training\.teacher_cache_codec\.shift: "):
        run_recipe(recipe("training.teacher_cache_codec={name: whole, shift: far}"))


def test_the_record_names_the_codec_with_every_setting(recipe, out):
    cache_recipe(recipe(), out)
    run_recipe(recipe())
    record = json.loads((Path(recipe().output_dir) / "kdplug-run.json").read_text())
    assert record["recipe"]["training"]["teacher_cache_codec"] == {"name": "local:whole", "shift": 0.0}
    assert {"path": "training.teacher_cache_codec", "name": "local:whole", "settings": {"shift": 0.0}} in record[
        "entries"
    ]


def test_a_report_counts_what_is_there(recipe, out):
    cache_recipe(recipe(), out)
    report = CacheReport.read(out, checks=True)
    assert (report.is_complete, report.examples, report.tally.items) == (True, 40, 40)
    assert report.bytes == sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert report.to_data()["kept_mass"] == report.to_data()["coverage"] == 1.0


LAUNCHED = """
import sys
import kdplug
from codec_specimen import register
from pathlib import Path
from kdplug.engine.cache import layout
from recipes.conftest import Signs, soft_cross_entropy
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.cache import cache_recipe

layout.SHARD_BATCHES = 1
kdplug.tasks.register("signs")(Signs)
kdplug.losses.register("soft")(soft_cross_entropy)
register()
training = {"num_epochs": 1, "batch_size": 8, "device": "cpu", "teacher_cache_codec": "whole"}
recipe = kdplug.Recipe.from_dict({"task": "signs", "distillation": {"kd_loss_type": "soft"}, "training": training})
print(cache_recipe(recipe, Path(sys.argv[1])).batches)
"""


def test_two_processes_divide_the_examples(tmp_path):
    (tmp_path / "script.py").write_text(LAUNCHED)
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "script.py", "cache"],
        cwd=tmp_path,
        env=environment,
        timeout=150,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split()) == ["2", "3"]
    report = CacheReport.read(tmp_path / "cache", checks=True)
    assert (report.shards, report.examples, report.is_complete) == (5, 40, True)
    assert (tmp_path / "cache" / "origin.json").is_file()
