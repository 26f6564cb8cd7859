"""An output folder with links and files of others in it, or with two runs at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug.engine.checkpoint.in_use import LOCK, in_use
from kdplug.errors import RunError


def train(folder, callback=None):
    student = make_student()
    training = {"ckpt_steps": 1, "keep_last": 1}
    distiller = make_distiller(folder, student, training=training)
    return distiller.train(sgd(student), make_batches(4), num_steps=4, callback=callback)


@pytest.mark.attack("links and files in the place of checkpoint folders")
@pytest.mark.parametrize("name", ["step-1", ".step-2.tmp", ".step-9.old"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_they_are_replaced_and_what_they_point_to_stays(tmp_path, name, kind):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "precious").write_text("kept", encoding="utf-8")
    if kind == "file":
        (folder / name).write_text("a file", encoding="utf-8")
    else:
        (folder / name).symlink_to(elsewhere)
    assert train(folder).step == 4
    assert (elsewhere / "precious").read_text(encoding="utf-8") == "kept"


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
            other[0] = train(folder).checkpoints[-1]

    return start_another, other


@pytest.mark.attack("two runs in one output folder at once")
def test_the_second_one_is_refused_and_names_the_process_of_the_first(tmp_path):
    start_another, _ = meanwhile(tmp_path, lambda: None)
    with pytest.raises(
        RunError, match=f"in use by another run: process {os.getpid()} on host '{socket.gethostname()}'"
    ):
        train(tmp_path, start_another)
    assert train(tmp_path).step == 4


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
