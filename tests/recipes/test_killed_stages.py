"""A staged recipe that is killed 20 times ends with the same bits as one that is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_stages import RECIPE
from safetensors.torch import load_file

import kdplug

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "killed_stages.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of a run that was left alone, and of one that was killed 20 times."""
    root = tmp_path_factory.mktemp("stages")
    kept = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(root)],
        capture_output=True, text=True, timeout=1800, env={**kept, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "whole", root / "killed"


def _metrics(folder):
    found = json.loads((folder / "metrics.json").read_text())
    for figures in found["arms"].values():
        del figures["seconds_per_example"], figures["units_per_second"]
        for run in figures["runs"]:
            for one in (run, *run.get("stages", [])):
                for cost in ("seconds", "cache_seconds", "peak_memory"):
                    one.pop(cost, None)
    return found


def test_the_metrics_are_the_same(folders):
    whole, killed = map(_metrics, folders)
    assert killed == whole


def test_the_student_is_the_same_to_the_bit(folders):
    whole, killed = (load_file(folder / "student.safetensors") for folder in folders)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_predictions_histories_and_logs_are_the_same(folders):
    whole, killed = folders
    files = [whole / "predictions.jsonl", *whole.glob("seed-*/**/history.jsonl"), *whole.glob("seed-*/**/log.jsonl")]
    assert len(files) >= 1 + 2 * (2 + 3 + 1 + 3)
    for file in files:
        assert (killed / file.relative_to(whole)).read_bytes() == file.read_bytes(), file


@pytest.mark.filterwarnings("ignore:.*got no gradient in the first")
def test_workers_train_the_same_students(folders, tmp_path):
    recipe = kdplug.Recipe.from_dict({**RECIPE, "output_dir": str(tmp_path / "jobs")})
    whole, jobs = folders[0], kdplug.run_recipe(recipe, jobs=2).output_dir
    for file in (whole / "predictions.jsonl", *whole.glob("seed-*/**/history.jsonl")):
        assert (jobs / file.relative_to(whole)).read_bytes() == file.read_bytes(), file
