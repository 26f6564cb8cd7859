"""SIGKILL at random moments, SIGTERM and SIGINT: what a run loses is nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


def inject(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "fault_injection.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-500:]
    return json.loads(done.stdout.splitlines()[-1])


def test_twenty_kills_at_random_moments_change_no_bit():
    report = inject("--kills", "20")
    assert report["kills"] >= 20
    assert report["inside a write"] >= 8
    assert report["unequal"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("added", ["hook", "transform"])
def test_twenty_kills_change_no_bit_of_a_run_with_acting_hooks_or_a_student_transform(added):
    report = inject("--kills", "20", "--with", added)
    assert report["kills"] >= 20
    assert report["unequal"] == 0


@pytest.mark.slow
def test_two_hundred_kills_at_random_moments_change_no_bit():
    report = inject("--kills", "200", "--seed", "1")
    assert report["left half written"] >= 30
    assert report["unequal"] == 0


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 1)])
def test_a_run_that_is_asked_to_stop_saves_and_ends(tmp_path, name, status):
    code = f"""
import os, signal, sys
from pathlib import Path
import fault_injection
class Stopper:
    def run_start(self, run): pass
    def run_end(self, run, error): pass
    def step_end(self, run, step, report):
        if step == 7: os.kill(os.getpid(), signal.{name})
make = fault_injection.make_distiller
def stopped(*places, training, **more):
    return make(*places, training={{**training, "ckpt_steps": 1000}}, options={{"observers": [Stopper()]}}, **more)
fault_injection.make_distiller = stopped
fault_injection.train(Path(sys.argv[1]))
"""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == status or (name == "SIGINT" and done.returncode == -2), done.stderr
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-7"]
