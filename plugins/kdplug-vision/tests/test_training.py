"""Each method trains, moves the student towards the teacher, and resumes after a kill to the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vision_recipe import EVERY, train
from vision_recipes import RECIPES

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


@pytest.fixture(scope="module", autouse=True)
def process(tmp_path_factory):
    """A process that runs every method and ends each run one step after its first checkpoint; it runs next to the tests."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(FOLDER / "vision_killed_runs.py"), str(folder), str(EVERY + 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        yield started, folder
        started.kill()


@pytest.fixture(scope="module")
def killed(process):
    """The folder with the checkpoints of every killed run."""
    started, folder = process
    shown, _ = started.communicate(timeout=600)
    assert started.returncode == 0, shown
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
