"""``kdplug run --jobs``: students in worker processes, with the results of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest

from kdplug import Recipe
from kdplug.errors import RunError
from kdplug.recipes import jobs
from kdplug.recipes.arm import Arm, ArmRun
from kdplug.recipes.run import run_recipe

DIGITS = Path(__file__).parents[2] / "examples" / "digits.yaml"
SMALL = [
    "training.num_epochs=1",
    "training.device=cpu",
    "task.teacher_epochs=1",
    "task.labels_per_class=20",
    "seeds=2",
    'controls=["no_teacher","shuffled"]',
]


HISTORIES = [f"seed-{seed}/{arm}/history.jsonl" for seed in range(2) for arm in ("distilled", "shuffled")]


def recipe(folder, *changes):
    return Recipe.from_file(DIGITS).with_overrides([*SMALL, f"output_dir='{folder}'", *changes])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run without worker processes."""
    return run_recipe(recipe(tmp_path_factory.mktemp("alone") / "out")).output_dir


def test_worker_processes_give_the_same_results_to_the_bit(alone, tmp_path):
    folder = run_recipe(recipe(tmp_path / "out"), jobs=2).output_dir
    for name in ("predictions.jsonl", "student.safetensors", *HISTORIES):
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name


def test_the_error_of_a_distilled_student_stops_the_others(tmp_path):
    wrong = recipe(tmp_path / "out", "training.on_nonfinite=stop", "training.lr=1e30", "controls=[]")
    with pytest.raises(RunError, match="student, distilled, seed"):
        run_recipe(wrong, jobs=2)
    assert not (tmp_path / "out" / "metrics.json").exists()


class Dying:
    """Stands for a worker whose process dies in its first run."""

    started = 0

    def __init__(self):
        self.connection, self.other = Pipe()
        self.run = None
        self.dies = Dying.started == 0
        Dying.started += 1

    @classmethod
    def start(cls, work):
        return cls()

    def begin(self, run):
        self.run = run
        self.other.send(("died", "exit status -9") if self.dies else ("done", None))

    def receive(self):
        return self.connection.recv()

    def stop(self):
        pass


def test_the_others_go_on_when_a_worker_dies(monkeypatch):
    monkeypatch.setattr(Dying, "started", 0)
    monkeypatch.setattr(jobs, "Worker", Dying)
    runs, ended = [ArmRun(Arm.NO_TEACHER, seed) for seed in range(4)], {}
    shown = type("Shown", (), {"step": lambda self, step: None})()
    jobs.train_side_by_side(None, runs, jobs=2, say=print, shown=shown, run_steps=3, ended=ended.__setitem__)
    assert [None if error is None else str(error) for error in ended.values()].count("exit status -9") == 1
    assert set(ended) == set(runs)
    assert Dying.started == 3


def _children(process):
    found = subprocess.run(["ps", "--ppid", str(process), "-o", "pid="], capture_output=True, text=True, check=False)
    return [int(one) for one in found.stdout.split()]


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed_and_the_run_can_be_resumed(alone, tmp_path):
    words = [
        "run", str(DIGITS), "--output-dir", str(tmp_path / "out"), "--jobs", "2",
        *(word for change in SMALL for word in ("--set", change)),
    ]  # fmt: skip
    code = "from kdplug.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not list((tmp_path / "out").glob("seed-*/*/history.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    workers = _children(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline and any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.2)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    run_recipe(recipe(tmp_path / "out"), resume=True)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == (alone / "predictions.jsonl").read_bytes()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["seeds"] == [0, 1]
    assert os.getpid() not in workers
