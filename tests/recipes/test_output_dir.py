"""``plan`` finds an ``output_dir`` that ``run`` could not write into, and a learning rate at which no run ends well."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdplug.engine.checkpoint.archive import SUMS
from kdplug.errors import RunError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe
from kdplug.recipes.saved_student import forget_student
from kdplug.report.record import RECORD


@pytest.mark.parametrize("carry_out", [plan_recipe, run_recipe])
@pytest.mark.parametrize("blocked", ["", "seed-0", "seed-0/distilled", "teacher"])
def test_a_file_in_the_place_of_a_folder_is_an_error(signs, tmp_path, carry_out, blocked):
    file = tmp_path / "file" / blocked
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    for folder in (tmp_path / "file", file / "below" / "it"):
        with pytest.raises(RunError, match=r"^output_dir: cannot write to .*file.* is not a folder"):
            carry_out(signs(f"output_dir={folder}"))


@pytest.mark.parametrize("carry_out", [plan_recipe, run_recipe])
def test_a_folder_without_permission_is_an_error(signs, tmp_path, monkeypatch, carry_out):
    monkeypatch.setattr(os, "access", lambda path, _: str(path) != str(tmp_path))  # root may write anywhere
    with pytest.raises(RunError, match=r"^output_dir: cannot write to .*: no permission to write to"):
        carry_out(signs(f"output_dir={tmp_path}/new/out"))


def test_a_plan_writes_no_folder(signs, tmp_path):
    plan_recipe(signs(f"output_dir={tmp_path}/new/out"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("rate", "is_warned_of"), [("1e308", True), ("11.0", True), ("1.0", False)])
def test_a_learning_rate_that_destroys_the_weights_is_warned_of(signs, rate, is_warned_of):
    plan = plan_recipe(signs(f"training.lr={rate}"))
    assert [one.field for one in plan.warnings if one.check == "large_learning_rate"] == ["training.lr"] * is_warned_of


@pytest.mark.parametrize("deleted", range(4))
def test_a_kill_while_an_earlier_student_is_deleted_leaves_its_record(tmp_path, monkeypatch, deleted):
    """Without its record it would be taken for a folder of the user, and the next run would not start."""
    (tmp_path / "model").mkdir()
    names = ("more", "weights", SUMS, RECORD)
    for name in names:
        (tmp_path / "model" / name).touch()
    (tmp_path / "model" / SUMS).write_text("".join(f"{'0' * 64}  {name}\n" for name in names if name != SUMS))
    left, unlink = iter(range(deleted)), Path.unlink

    def kill(path):
        if next(left, None) is None:
            raise KeyboardInterrupt
        unlink(path)

    monkeypatch.setattr(Path, "unlink", kill)
    with pytest.raises(KeyboardInterrupt):
        forget_student(tmp_path)
    monkeypatch.undo()
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == sorted(names[deleted:])
    forget_student(tmp_path)
    assert list(tmp_path.iterdir()) == []
