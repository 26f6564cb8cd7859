"""A recipe that was killed and resumed ends where one that was left alone ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import kdplug
from kdplug.engine.loop import Loop
from kdplug.errors import RunError
from kdplug.recipes.arm import HISTORY, RESULT
from kdplug.recipes.history import History
from kdplug.recipes.output_folder import begun_record
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import run_recipe
from kdplug.report.record import RECORD

DIGITS = Path(__file__).parents[2] / "examples" / "digits.yaml"
SMALL = {
    "training.num_epochs": 2,
    "training.ckpt_frequency": 4,
    "training.keep_last": 2,
    "task.teacher_epochs": 1,
    "task.labels_per_class": 2,
    "seeds": 2,
}
RUN = """
import os, signal
from kdplug.cli.app import main
from kdplug.engine.loop import Loop

stage, step = os.environ["KILL_AT"].split(":")
usual = Loop._step

def mortal(self, window):
    usual(self, window)
    if self.run.output_dir.match("*/" + stage) and self.run.step == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

Loop._step = mortal
main()
"""


def _run(folder, *more, kill_at=":0"):
    """``kdplug run`` in a process of its own that is killed after a step of a stage; its exit status."""
    words = ["run", str(DIGITS), "--output-dir", str(folder), *more]
    words += [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    kept = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        capture_output=True, text=True, timeout=300, env={**kept, "OMP_NUM_THREADS": "1", "KILL_AT": kill_at}, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert _run(folder) == 0
    return folder


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run that was killed during the first control, and again during the second distillation."""
    folder = tmp_path_factory.mktemp("killed")
    assert _run(folder, kill_at="seed-0/no_teacher:11") == -signal.SIGKILL
    assert _run(folder, "--resume", kill_at="seed-1/distilled:22") == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    assert _run(folder, "--resume") == 0
    return folder


def _metrics(folder):
    found = json.loads((folder / "metrics.json").read_text())
    for figures in found["arms"].values():
        del figures["seconds_per_example"], figures["units_per_second"]
        for run in figures["runs"]:
            for cost in ("seconds", "cache_seconds", "peak_memory"):
                run.pop(cost, None)
    return found


def test_a_killed_and_resumed_recipe_has_the_same_metrics(whole, resumed):
    assert _metrics(resumed) == _metrics(whole)


def test_a_killed_and_resumed_recipe_has_the_same_student_to_the_bit(whole, resumed):
    mine, theirs = (load_file(folder / "student.safetensors") for folder in (resumed, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_killed_and_resumed_recipe_has_the_same_predictions(whole, resumed):
    assert (resumed / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_a_killed_and_resumed_recipe_has_the_same_curves(whole, resumed):
    assert (resumed / "seed-0" / "distilled" / HISTORY).read_text() == (
        whole / "seed-0" / "distilled" / HISTORY
    ).read_text()
    assert (resumed / "curves.png").read_bytes() == (whole / "curves.png").read_bytes()


def test_each_stage_has_the_same_log(whole, resumed):
    for stage in ("teacher", "seed-0/distilled", "seed-0/no_teacher", "seed-1/distilled"):
        assert (resumed / stage / "log.jsonl").read_text() == (whole / stage / "log.jsonl").read_text()


def test_a_recipe_that_is_done_is_not_trained_again(signs, monkeypatch):
    done = run_recipe(signs())
    monkeypatch.setattr("kdplug.engine.loop.Loop._step", lambda *_: 1 / 0)
    again = run_recipe(signs(), resume=True)
    assert again.distilled.metrics == done.distilled.metrics
    assert again.steps == done.steps


def test_a_student_with_frozen_weights_is_resumed_and_saved_whole(signs, monkeypatch):
    def half_frozen(_):
        student = torch.nn.Linear(4, 2)
        student.bias.requires_grad_(False)
        return student

    monkeypatch.setattr(kdplug.tasks.load("signs"), "build_student", half_frozen)
    folder = run_recipe(signs("training.evaluations=0")).output_dir
    (checkpoint,) = (folder / "seed-0" / "distilled").glob("step-*")
    assert load_file(checkpoint / "student_trainable.safetensors").keys() == {"weight"}
    whole = load_file(folder / "student.safetensors")
    assert whole.keys() == {"weight", "bias"}
    run_recipe(signs("training.evaluations=0"), resume=True)
    torch.testing.assert_close(load_file(folder / "student.safetensors"), whole, rtol=0, atol=0)


def test_resuming_where_nothing_was_begun_starts(signs):
    assert run_recipe(signs(), resume=True).steps == run_recipe(signs(), overwrite=True).steps


def test_without_resume_nothing_is_gone_on_with(signs, monkeypatch):
    run_recipe(signs())
    steps, usual = [], Loop._step

    def step(loop, window):
        steps.append(loop.run.step)
        usual(loop, window)

    monkeypatch.setattr(Loop, "_step", step)
    run_recipe(signs(), overwrite=True)
    assert steps == [*range(6), *range(6)]


def test_a_fresh_start_that_dies_early_leaves_nothing_to_go_on_with(signs, monkeypatch):
    run_recipe(signs())
    with monkeypatch.context() as patch:
        patch.setattr(RecipeRunner, "distilled", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_recipe(signs("seed=1"), overwrite=True)
    fresh = run_recipe(signs("seed=1"), resume=True)
    assert fresh.distilled.metrics == run_recipe(signs("seed=1"), overwrite=True).distilled.metrics


def test_a_changed_recipe_is_refused_with_what_differs(signs):
    run_recipe(signs())
    with pytest.raises(RunError, match=r"recipe\.training\.batch_size: 16 -> 8"):
        run_recipe(signs("training.batch_size=8"), resume=True)


def test_a_refused_recipe_leaves_the_results_as_they_are(signs):
    folder = run_recipe(signs()).output_dir
    before = (folder / "metrics.json").read_text()
    with pytest.raises(RunError):
        run_recipe(signs("training.lr=1"), resume=True)
    assert (folder / "metrics.json").read_text() == before


def test_data_that_shrank_is_refused_though_the_recipe_is_the_same(signs, monkeypatch):
    run_recipe(signs())
    task, usual = kdplug.tasks.load("signs"), kdplug.tasks.load("signs").data
    monkeypatch.setattr(task, "data", lambda self, part: usual(self, part)[:20])
    with pytest.raises(RunError, match=r"data\.distillation\.examples: 40 -> 20"):
        run_recipe(signs(), resume=True)


def test_a_change_that_is_meant_is_let_through(signs):
    run_recipe(signs())
    assert run_recipe(signs("training.num_epochs=4"), resume=True, resume_changed=True).steps == 12


def test_what_changes_nothing_in_the_results_is_no_change(signs):
    run_recipe(signs())
    run_recipe(signs("training.logging_steps=3", "training.keep_last=1", "training.ckpt_frequency=2"), resume=True)


def test_a_damaged_record_is_an_error(signs):
    folder = run_recipe(signs()).output_dir
    (folder / "kdplug-run.json").write_text("{")
    with pytest.raises(RunError, match=r"kdplug-run\.json is damaged"):
        run_recipe(signs(), resume=True)


def test_a_history_that_a_kill_cut_short_is_taken_up_to_the_step_of_the_checkpoint(signs):
    folder = run_recipe(signs()).output_dir
    path = folder / "seed-0" / "distilled" / HISTORY
    whole = path.read_text()
    (path.parent / RESULT).unlink()
    path.write_text(whole + '{"step": 7, "terms": {"kd_loss": 1.0}}\n{"step": 8, "te')
    run_recipe(signs(), resume=True)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "change", [["training.ckpt_frequency=2"], ["training.num_epochs=null", "training.num_steps=5"]]
)
def test_the_recipe_says_when_the_student_is_saved(signs, change):
    folder = run_recipe(signs(*change, "training.keep_last=null", "training.evaluations=0")).output_dir
    steps = sorted(int(path.name.removeprefix("step-")) for path in (folder / "seed-0" / "distilled").glob("step-*"))
    assert steps == ([1, 3, 4, 6] if "ckpt_frequency" in change[0] else [5])


def test_of_the_baseline_only_the_last_checkpoint_stays(signs):
    folder = run_recipe(signs("training.ckpt_frequency=2", "training.evaluations=0")).output_dir
    assert [path.name for path in (folder / "seed-0" / "no_teacher").glob("step-*")] == ["step-6"]


def test_losses_on_an_accelerator_are_written_before_the_checkpoint_that_follows(tmp_path):
    """Its tensors stand in for ones that are not on the CPU; nothing else asks where they are."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    history = History(None, lambda step: step == 3)
    run = SimpleNamespace(output_dir=tmp_path, step=0, total_steps=100, model=None)
    history.run_start(run)
    written = []
    for step in range(1, 5):
        value = torch.tensor(float(step)).as_subclass(Elsewhere)
        history.step_end(
            run, step, SimpleNamespace(terms={"kd_loss": SimpleNamespace(value=value, weight=1.0, balance=None)})
        )
        written.append(len((tmp_path / HISTORY).read_text().splitlines()))
    history.run_end(run, None)
    assert written == [0, 0, 3, 3]
    assert history.terms["kd_loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": "x"}',
        '{"step": 1, "made": 3}',
        '{"step": 1, "terms": []}',
        '{"step": 1, "terms": {"kd_loss": "a"}}',
        "[]",
    ],
)
def test_a_history_is_read_up_to_the_first_line_that_is_none(tmp_path, line):
    (tmp_path / HISTORY).write_text(f'{{"step": 1, "terms": {{"kd_loss": 2.0}}}}\n{line}\n')
    history = History(None, lambda step: True)
    history.run_start(SimpleNamespace(output_dir=tmp_path, step=2, model=None))
    history.run_end(None, None)
    assert history.terms == {"kd_loss": [(1, 2.0)]}


@pytest.mark.parametrize(
    "record", [{"recipe": {"training": []}}, {"entries": [{"name": 3}]}, {"plugins": [3]}, {"entries": 1}]
)
def test_a_damaged_record_is_one_error(tmp_path, record):
    whole = {"kdplug": "", "torch": "", "entries": [], "plugins": [], "recipe": {"training": {}}}
    (tmp_path / RECORD).write_text(json.dumps({**whole, **record}))
    with pytest.raises(RunError, match=r"kdplug-run.json is damaged: .*Start over with --overwrite"):
        begun_record(tmp_path, whole)
