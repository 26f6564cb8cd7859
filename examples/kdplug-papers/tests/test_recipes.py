"""Each method trains, moves the student towards the teacher, and resumes after a kill to the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from all_recipes import RECIPES
from recipe import EVERY, train

FOLDER = Path(__file__).parent
every = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of a method by name, run once."""
    folder, runs = tmp_path_factory.mktemp("whole"), {}

    def run(name):
        if name not in runs:
            runs[name] = train(RECIPES[name], folder / name)
        return runs[name]

    return run


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder in which every method was killed one step after its first checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(FOLDER / "killed_runs.py"), str(folder), str(EVERY + 1)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@every
def test_training_lowers_the_loss_and_the_distance_from_the_teacher(whole, name):
    run = whole(name)
    assert sum(run.losses[-3:]) < sum(run.losses[:3])
    assert run.after < 0.9 * run.before


@every
def test_a_killed_run_resumes_to_the_same_bits(whole, killed, name):
    resumed, expected = train(RECIPES[name], killed / name, resume="auto"), whole(name)
    assert resumed.losses == expected.losses[EVERY:]
    assert list(resumed.state) == list(expected.state)
    different = [key for key, value in expected.state.items() if not torch.equal(resumed.state[key], value)]
    assert different == []
