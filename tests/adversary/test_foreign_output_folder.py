"""An output folder with links and files of others in it, or with two runs at once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killer import Killed, Killer
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug.engine.checkpoint.checkpoint import latest
from kdplug.engine.checkpoint.in_use import LOCK, in_use
from kdplug.engine.evaluation import Evaluation
from kdplug.errors import RunError


def train(folder, callback=None, **options):
    student = make_student()
    training = {"ckpt_steps": 1, "keep_last": 1}
    distiller = make_distiller(folder, student, training=training)
    return distiller.train(sgd(student), make_batches(4), num_steps=4, callback=callback, **options)


@pytest.fixture
def folder(tmp_path):
    """An empty output folder next to a folder ``elsewhere``, which holds a file."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("kept", encoding="utf-8")
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


PLACE = {
    "a file": lambda place, elsewhere: place.write_text("kept", encoding="utf-8"),
    "a folder": lambda place, elsewhere: shutil.copytree(elsewhere, place),
    "an empty folder": lambda place, elsewhere: place.mkdir(),
    "a link": lambda place, elsewhere: place.symlink_to(elsewhere),
    "a broken link": lambda place, elsewhere: place.symlink_to(elsewhere / "nothing"),
}


def everything(folder):
    """Each path below ``folder``, with where it points to or what it holds."""
    return {
        path.relative_to(folder): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


@pytest.mark.attack("links and files in the place of checkpoint folders")
@pytest.mark.parametrize("name", [".step-2.tmp", ".step-9.old"])
@pytest.mark.parametrize("kind", ["a file", "a link"])
def test_those_with_a_temporary_name_are_deleted_and_what_they_point_to_stays(folder, name, kind):
    PLACE[kind](folder / name, folder.parent / "elsewhere")
    assert train(folder).step == 4
    assert not os.path.lexists(folder / name)
    assert (folder.parent / "elsewhere" / "precious").read_text(encoding="utf-8") == "kept"


@pytest.mark.attack("a folder of the user in the place of a checkpoint")
@pytest.mark.parametrize("kind", PLACE)
def test_a_run_that_would_replace_it_does_not_start(folder, kind):
    PLACE[kind](folder / "step-3", folder.parent / "elsewhere")
    before = everything(folder.parent)
    with pytest.raises(RunError, match=r"^output_dir: '.*step-3' was not written by a run, and a checkpoint would"):
        train(folder)
    assert everything(folder.parent) == before


@pytest.mark.attack("a folder of the user in the place of a checkpoint")
def test_one_that_is_in_the_place_of_a_best_checkpoint_is_an_error_before_the_first_step(folder):
    (folder / "step-3").mkdir()
    seen = []
    student, best = make_student(), Evaluation(function=lambda model: {"score": 1}, best="score", every=3)
    distiller = make_distiller(folder, student, options={"observers": [Steps(seen)]})
    with pytest.raises(RunError, match=r"step-3' was not written by a run"):
        distiller.train(sgd(student), make_batches(4), num_steps=4, evaluation=best)
    assert not seen


class Steps(Killer):
    """Keeps the steps that were taken."""

    def __init__(self, seen):
        super().__init__(None)
        self.seen = seen

    def step_end(self, run, step, report):
        self.seen.append(step)


@pytest.mark.attack("a folder of the user in the place of a checkpoint")
def test_one_that_appears_during_a_run_is_an_error_and_the_last_checkpoint_stays(folder):
    def make(model, step):
        if step == 2:
            PLACE["a folder"](folder / "step-3", folder.parent / "elsewhere")

    with pytest.raises(RunError, match=r"step-3' was not written by a run"):
        train(folder, make)
    assert [path.name for path in (folder / "step-3").iterdir()] == ["precious"]
    assert not list(folder.glob(".step-*"))
    assert latest(folder) == folder / "step-2"
    shutil.rmtree(folder / "step-3")
    assert train(folder, resume="auto").step == 4


@pytest.mark.attack("a folder of the user in the place of a checkpoint")
@pytest.mark.parametrize("kind", PLACE)
def test_one_in_no_place_of_this_run_survives_and_is_not_resumed_from(folder, kind):
    names = ["step-0", "step-01", "step-7", "step-\u0661"]
    for name in names:
        PLACE[kind](folder / name, folder.parent / "elsewhere")
    before = everything(folder)
    train(folder)
    assert latest(folder) == folder / "step-4"
    assert train(folder, resume="auto").step == 4
    assert before.items() <= everything(folder).items()


@pytest.mark.attack("a folder of the user in the place of a checkpoint")
def test_one_at_a_step_before_the_checkpoint_to_resume_from_survives(folder):
    def kill(model, step):
        if step == 2:
            raise Killed

    with pytest.raises(Killed):
        train(folder, kill)
    PLACE["a folder"](folder / "step-1", folder.parent / "elsewhere")
    assert train(folder, resume="auto").step == 4
    assert [path.name for path in (folder / "step-1").iterdir()] == ["precious"]


@pytest.mark.attack("a folder of the user with a file named as one of a checkpoint")
@pytest.mark.parametrize("name", ["run.json", "objective.safetensors", "checksums.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"run": "mine", "step": 2}', '{"run.json": {}}'])
@pytest.mark.parametrize("step", ["step-2", "step-9"])
def test_overwrite_deletes_no_folder_that_only_resembles_a_checkpoint(folder, name, content, step):
    (folder / step).mkdir()
    (folder / step / name).write_text(content, encoding="utf-8")
    (folder / step / "data.csv").write_text("kept", encoding="utf-8")
    before = everything(folder)
    if step == "step-2":
        with pytest.raises(RunError, match=r"step-2' was not written by a run"):
            train(folder, overwrite=True)
        assert everything(folder) == before
    else:
        assert train(folder, overwrite=True).step == 4
        assert before.items() <= everything(folder).items()


@pytest.mark.attack("a checkpoint of another run in the folder of a run")
def test_a_resumed_run_deletes_only_its_own_checkpoints(folder):
    train(folder.parent / "other")

    def kill(model, step):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(folder, kill)
    shutil.copytree(folder.parent / "other" / "step-4", folder / "step-1")
    before = everything(folder / "step-1")
    assert train(folder, resume="auto").step == 4
    assert everything(folder / "step-1") == before
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-1", "step-4"]


@pytest.mark.attack("a kill during the deletion of an old checkpoint")
def test_it_leaves_no_part_of_it_under_its_name(folder, monkeypatch):
    def kill(path, **_):
        if (Path(path) / "run.json").is_file():
            (Path(path) / "objective.safetensors").unlink()
            (Path(path) / "run.json").unlink()
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(Killed):
        train(folder)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.glob("*step-*")) == [".step-1.old", "step-2"]
    assert train(folder, resume="auto").step == 4
    assert [path.name for path in folder.glob("*step-*")] == ["step-4"]


@pytest.mark.attack("an output folder that cannot be made")
def test_a_file_in_its_place_is_an_error(tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(RunError, match="output_dir: cannot write to"):
        train(tmp_path / "out")


def meanwhile(folder, first):
    """Start a run in ``folder`` from the first checkpoint of another one there."""
    other = []

    def start_another(model, step):
        if not other:
            other.append(None)
            first()
            torch.manual_seed(1)
            other[0] = train(folder, overwrite=True).checkpoints[-1]

    return start_another, other


@pytest.mark.attack("two runs in one output folder at once")
def test_the_second_one_is_refused_and_names_the_process_of_the_first(tmp_path):
    start_another, _ = meanwhile(tmp_path, lambda: None)
    with pytest.raises(
        RunError, match=f"in use by another run: process {os.getpid()} on host '{socket.gethostname()}'"
    ):
        train(tmp_path, start_another)
    assert train(tmp_path, overwrite=True).step == 4


@pytest.mark.attack("two runs in one output folder at once, after the lock was deleted")
def test_the_first_one_does_not_overwrite_the_second(tmp_path):
    start_another, other = meanwhile(tmp_path, (tmp_path / LOCK).unlink)
    with pytest.raises(RunError, match="another run has started in"):
        train(tmp_path, start_another)
    assert other[0].is_file()


HOLD = """
import os, sys, time
from pathlib import Path
from kdplug.engine.checkpoint.in_use import in_use
with in_use(Path(sys.argv[1])):
    child = os.fork()  # as a loader's worker, which may survive the run for a while
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path``, with a child that survives it."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


@pytest.mark.attack("the lock of a killed run")
def test_a_killed_process_leaves_no_lock(tmp_path, holder):
    with pytest.raises(RunError, match=f"output_dir: .* is in use by another run: process {holder.pid} on host"):
        train(tmp_path)
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).is_file()
    assert train(tmp_path).step == 4
    assert not (tmp_path / LOCK).exists()


@pytest.mark.attack("the lock of a killed run")
@pytest.mark.parametrize("text", ["", "{", '{"host": "another", "pid": 1}'])
def test_what_is_in_the_file_of_a_killed_run_does_not_matter(tmp_path, text):
    (tmp_path / LOCK).write_text(text, encoding="utf-8")
    assert train(tmp_path).step == 4


@pytest.mark.attack("a lock of a run at work")
def test_a_file_that_its_holder_damaged_is_still_locked(tmp_path, holder):
    (tmp_path / LOCK).write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match="is in use by another run: its process is unknown"):
        train(tmp_path)
    assert holder.poll() is None


@pytest.mark.attack("a lock of a run at work")
def test_a_refused_run_in_the_same_process_does_not_release_the_lock(tmp_path):
    with in_use(tmp_path):
        with pytest.raises(RunError, match=f"is in use by another run: process {os.getpid()} on host"):
            train(tmp_path)
        other = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "is in use by another run" in other.stderr


@pytest.mark.attack("links and files in the place of checkpoint folders")
@pytest.mark.parametrize("make", [lambda lock, other: lock.symlink_to(other), lambda lock, _: lock.mkdir()])
def test_a_link_or_a_folder_in_the_place_of_the_lock_is_an_error(tmp_path, make):
    other = tmp_path / "other"
    other.write_text("kept", encoding="utf-8")
    make(tmp_path / LOCK, other)
    with pytest.raises(RunError, match="output_dir: cannot write to"):
        train(tmp_path)
    assert other.read_text(encoding="utf-8") == "kept"


@pytest.mark.attack("files of the user with names like those of checkpoints")
@pytest.mark.parametrize("name", ["step-keep", ".step-notes", ".step-1.tmp.bak"])
def test_a_folder_of_the_user_survives(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("kept", encoding="utf-8")
    train(tmp_path)
    assert (tmp_path / name / "precious").read_text(encoding="utf-8") == "kept"
