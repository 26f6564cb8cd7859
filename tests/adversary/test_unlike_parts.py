"""One process of a run has other heads or losses than the rest: every process raises an error that says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from small_run import *
from leave_group import leave_group
from torch.utils.data import DataLoader, TensorDataset
from kdplug.errors import RunError

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
found, data = {}, torch.cat(make_batches(16, size=4))

def parts(heads, losses):
    return lambda batch, outputs: {"logits": [outputs["logits"]] * heads, "losses": [outputs["losses"]] * losses}

def train(name, heads, losses, accumulation):
    student = make_student()
    training = {"gradient_accumulation_steps": accumulation}
    both = parts(heads, losses)
    made = make_distiller(folder / name, student, adaptors=(both, both), training=training, hard_label_weight=1.0)
    loader = DataLoader(TensorDataset(data), batch_size=4, collate_fn=lambda items: torch.stack([one for (one,) in items]))
    try:
        made.train(sgd(student), loader, num_steps=4)
        found[name] = "trained"
    except RunError as error:
        found[name] = str(error)

other = rank == 1
for accumulation in (1, 2):
    train(f"alike {accumulation}", 2, 2, accumulation)
    train(f"heads {accumulation}", 1 + other, 1, accumulation)
    train(f"losses {accumulation}", 1, 1 + other, accumulation)
    train(f"swapped {accumulation}", 1 + other, 2 - other, accumulation)  # as many in all
(folder / f"{rank}.json").write_text(json.dumps(found))
leave_group()
"""

pytestmark = pytest.mark.attack("one process has other heads or losses")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two gloo processes met, by name of the run."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*launch, str(folder)], cwd=folder, env=environment, timeout=180, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


LINES = {
    "heads": ["rank 1: student.logits: 2 tensors, on rank 0 1 tensor"],
    "losses": ["rank 1: student.losses: 2 tensors, on rank 0 1 tensor"],
    "swapped": [
        "rank 1: student.logits: 2 tensors, on rank 0 1 tensor",
        "rank 1: student.losses: 1 tensor, on rank 0 2 tensors",
    ],
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("what", LINES)
def test_every_process_says_how_many_parts_each_has(found, what, accumulation):
    texts = [one[f"{what} {accumulation}"] for one in found]
    assert texts[0] == texts[1]
    for line in LINES[what]:
        assert line in texts[0]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_with_equally_many_train(found, accumulation):
    assert [one[f"alike {accumulation}"] for one in found] == ["trained", "trained"]
