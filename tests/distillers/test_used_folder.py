"""A new run in the folder of an earlier one: an error, unless it resumes or is asked to overwrite."""

from __future__ import annotations

import shutil

import pytest
from cache_scene import Rowwise, loader
from killer import Killed, Killer
from resume_scene import LOADERS, STEPS, distiller, rows
from small_run import AUTO, make_batches, make_distiller, make_student, make_teacher, sgd

from kdplug.engine.checkpoint.checkpoint import begin, latest
from kdplug.engine.evaluation import Evaluation
from kdplug.errors import ConfigError, RunError

KINDS = ["trainer", "basic", "general", "several teachers", "several tasks"]


def go(kind, folder, teacher=None, **train):
    """Train 6 steps with a checkpoint after each."""
    made, student = distiller(kind, folder, teacher or make_teacher())
    data = LOADERS["tensors"](rows())
    data = {"a": data, "b": data} if kind == "several tasks" else data
    return made.train(sgd(student), data, num_steps=STEPS, **train)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_is_an_error_before_a_model_runs_and_changes_no_file(tmp_path, kind):
    go(kind, tmp_path)
    before, teacher = content(tmp_path), Rowwise()
    says = r"^output_dir: '.*' contains 'step-6' of an earlier run\. Resume that run with resume='auto', choose another .*overwrite=True$"
    with pytest.raises(RunError, match=says):
        go(kind, tmp_path, teacher)
    assert content(tmp_path) == before
    assert not teacher.calls


@pytest.mark.parametrize("kind", KINDS)
def test_it_deletes_the_earlier_checkpoints_if_asked_and_nothing_else(tmp_path, kind):
    go(kind, tmp_path)
    shutil.copytree(tmp_path / "step-6", tmp_path / "step-8")
    kept = ["student.safetensors", "step-keep/notes", "step-9/notes"]
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine", encoding="utf-8")
    result = go(kind, tmp_path, overwrite=True)
    assert {file.parent for file in result.checkpoints} == set(tmp_path.glob("step-[0-8]"))
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in kept] == ["mine"] * 3


def test_no_cache_is_filled_for_a_run_that_cannot_start(tmp_path):
    def train(**more):
        student, teacher = make_student(), Rowwise()
        training = {"teacher_cache": str(tmp_path / "cache")}
        made = make_distiller(tmp_path / "out", student, teacher, training=training, is_caching_logits=True)
        try:
            made.train(sgd(student), loader(), num_epochs=1, **more)
        finally:
            calls.append(teacher.calls)

    calls = []
    train()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(RunError, match="of an earlier run"):
        train()
    assert calls == [6, 0]
    assert not (tmp_path / "cache").exists()


def test_overwritten_checkpoints_stay_if_the_run_cannot_start(tmp_path):
    go("general", tmp_path)
    before = {path: data for path, data in content(tmp_path).items() if path.parent != tmp_path}
    student = make_student()
    with pytest.raises(TypeError):
        make_distiller(tmp_path, student, matches=[AUTO]).train(
            sgd(student), make_batches(2), num_steps=2, overwrite=True, no_such_argument=1
        )
    assert before.items() <= content(tmp_path).items()


def test_a_run_does_not_both_resume_and_overwrite(tmp_path):
    with pytest.raises(ConfigError, match=r"^overwrite: cannot be combined with resume"):
        go("general", tmp_path, resume="auto", overwrite=True)
    with pytest.raises(ConfigError, match=r"^overwrite: must be true or false, got 'yes'"):
        go("general", tmp_path, overwrite="yes")


def test_a_folder_without_checkpoints_is_not_in_use(tmp_path):
    """A run that ended before its first checkpoint, as one with a mistake in its first batch."""
    student = make_student()
    with pytest.raises(Killed):
        make_distiller(tmp_path, student, options={"observers": [Killer(1)]}).train(
            sgd(student), make_batches(2), num_steps=2
        )
    assert go("general", tmp_path).step == STEPS


def test_a_checkpoint_elsewhere_is_not_resumed_from_over_those_of_another_run(tmp_path):
    go("general", tmp_path / "one")
    go("general", tmp_path / "two")
    before = content(tmp_path)
    with pytest.raises(RunError, match="two' contains 'step-6' of an earlier run"):
        go("general", tmp_path / "two", resume=tmp_path / "one" / "step-5")
    assert content(tmp_path) == before
    assert go("general", tmp_path / "three", resume=tmp_path / "one" / "step-5").step == STEPS
    assert go("general", tmp_path / "one", resume=tmp_path / "one" / ".." / "one" / "step-5").step == STEPS


def test_checkpoints_that_the_last_run_did_not_write_are_not_replaced_by_auto(tmp_path):
    """A kill while ``overwrite`` deletes them leaves some."""
    go("general", tmp_path)
    begin(tmp_path, is_main=True)
    with pytest.raises(RunError, match=r"earlier run\. Choose another .*with overwrite=True instead of resume$"):
        go("general", tmp_path, resume="auto")
    assert latest(tmp_path) is None
    assert go("general", tmp_path, overwrite=True).step == STEPS


def test_by_default_the_last_two_checkpoints_and_the_best_one_stay(tmp_path):
    numbers = iter([1.0, 9.0, 3.0, 4.0, 5.0, 6.0])
    best = Evaluation(function=lambda model: {"score": next(numbers)}, best="score", every=1)
    result = go("general", tmp_path, evaluation=best)
    names = ["step-2", "step-5", "step-6"]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == names
    assert [path.parent.name for path in result.checkpoints] == names
    assert result.best == tmp_path / "step-2"


def test_all_checkpoints_stay_if_the_config_says_so(tmp_path):
    student = make_student()
    made = make_distiller(tmp_path, student, training={"ckpt_steps": 1, "keep_last": None})
    result = made.train(sgd(student), make_batches(4), num_steps=4)
    assert [path.parent.name for path in result.checkpoints] == ["step-1", "step-2", "step-3", "step-4"]
