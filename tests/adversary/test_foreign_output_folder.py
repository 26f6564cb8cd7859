"""An output folder with links and files of others in it, or with two runs at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug.engine.checkpoint.in_use import LOCK
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


def gone():
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.attack("the lock of a killed run")
@pytest.mark.parametrize("kind", ["ended", "reused", "own", "damaged", "empty"])
def test_a_lock_of_a_process_that_is_gone_is_replaced(tmp_path, kind):
    lock = {"host": socket.gethostname(), "pid": gone(), "started": "1"}
    lock |= {"reused": {"pid": os.getppid()}, "own": {"pid": os.getpid()}}.get(kind, {})
    text = {"damaged": "{", "empty": ""}.get(kind, json.dumps(lock))
    (tmp_path / LOCK).write_text(text, encoding="utf-8")
    assert train(tmp_path).step == 4
    assert not (tmp_path / LOCK).exists()


@pytest.mark.attack("a lock of a run at work")
@pytest.mark.parametrize("lock", [{"host": "another"}, {"pid": os.getppid(), "started": None}], ids=["host", "process"])
def test_a_lock_of_another_process_or_host_is_kept(tmp_path, lock):
    text = json.dumps({"host": socket.gethostname(), "pid": 1, "started": None, **lock})
    (tmp_path / LOCK).write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"output_dir: .* is in use by another run.*delete"):
        train(tmp_path)
    assert (tmp_path / LOCK).read_text(encoding="utf-8") == text


@pytest.mark.attack("files of the user with names like those of checkpoints")
@pytest.mark.parametrize("name", ["step-keep", ".step-notes", ".step-1.tmp.bak"])
def test_a_folder_of_the_user_survives(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("kept", encoding="utf-8")
    train(tmp_path)
    assert (tmp_path / name / "precious").read_text(encoding="utf-8") == "kept"
