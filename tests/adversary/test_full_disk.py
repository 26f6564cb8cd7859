"""A disk that is full or too small for a file: an error that names the folder and what is left, and no damaged checkpoint."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
from contextlib import contextmanager

import pytest
import typer
from error_scene import ErrorScene
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug import Recipe
from kdplug.cli.terminal import report_errors
from kdplug.engine.checkpoint.checkpoint import latest
from kdplug.errors import RunError
from kdplug.recipes.run import run_recipe


@contextmanager
def largest_file(size):
    """Let no file grow beyond ``size`` bytes, as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


UNWRITTEN = r"cannot write (the checkpoint .*step-4: .*step-2; make room|.*: File too large)"


def train(folder, epochs, **options):
    student = make_student()
    return make_distiller(folder, student).train(sgd(student), make_batches(2), num_epochs=epochs, **options)


@pytest.mark.attack("a disk that is full when a checkpoint is written")
@pytest.mark.parametrize("size", [100, 300, 700])
def test_a_checkpoint_that_does_not_fit_is_an_error_and_the_run_goes_on_later(tmp_path, size):
    train(tmp_path, 1)
    with (
        largest_file(size),
        pytest.raises(RunError, match=UNWRITTEN),
    ):
        train(tmp_path, 2, resume="auto", resume_changed=True)
    assert latest(tmp_path) == tmp_path / "step-2"
    assert not list(tmp_path.glob(".step-*"))
    assert train(tmp_path, 2, resume="auto", resume_changed=True).step == 4


@pytest.mark.attack("a disk that is full when a command writes")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_command_names_the_file_that_it_cannot_write(capsys, number):
    with pytest.raises(typer.Exit), report_errors():
        raise OSError(number, "is full", "runs/metrics.json")
    assert capsys.readouterr().err.strip() == "error: cannot write runs/metrics.json: is full"


@pytest.mark.attack("a disk that is full when a command writes")
@pytest.mark.parametrize("size", [10, 400, 3000, 20_000])
def test_a_run_whose_files_do_not_fit_ends_with_one_line(tmp_path, capsys, size):
    scene = ErrorScene(tmp_path)
    training = {
        "num_epochs": 1,
        "batch_size": 8,
        "device": "cpu",
        "ckpt_frequency": 1,
        "teacher_cache": str(tmp_path / "cache"),
    }
    file = scene.file("recipe.json", json.dumps(scene.recipe(training=training)))
    scene.accepted(training=training)
    with largest_file(size), pytest.raises(typer.Exit), report_errors():
        run_recipe(Recipe.from_file(file))
    printed = capsys.readouterr().err.strip()
    assert "Traceback" not in printed
    line = printed.splitlines()[-1]  # after the progress of the run
    assert line.startswith("error: ")
    assert re.search(f"cannot write .*: {os.strerror(errno.EFBIG)}", line)


@pytest.mark.attack("a disk that is full when a command writes")
def test_another_error_of_the_system_keeps_its_traceback():
    with pytest.raises(ConnectionError), report_errors():
        raise ConnectionResetError(errno.ECONNRESET, "reset")
