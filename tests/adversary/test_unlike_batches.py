"""Two processes whose batches differ, or one that fails, ends or is killed: both stop in time and name the cause."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, signal, sys, time, warnings
from pathlib import Path
import torch
from small_run import *
from leave_group import leave_group
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from kdplug import LossSum
from kdplug.errors import KdplugError

folder, how, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
data, other, found = torch.cat(make_batches(8, size=4)), rank == 1, {}

def rows(items):
    return torch.stack([one for (one,) in items])

class Short(IterableDataset):
    def __len__(self):
        return len(data)

    def __iter__(self):
        return iter(data[: len(data) // 2 if other else len(data)])

def train(name, student=None, teacher=None, loader=None, num_steps=4, epochs=None, **options):
    torch.manual_seed(0)
    model = make_student()
    distiller = make_distiller(folder / name, model, adaptors=(teacher, student), **options)
    loader = loader or DataLoader(TensorDataset(data), batch_size=4, collate_fn=rows)
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            distiller.train(sgd(model), loader, num_steps=None if epochs else num_steps, num_epochs=epochs)
            found[name] = "trained"
        except (RuntimeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    found[name + " seconds"] = time.monotonic() - start
    found[name + " warnings"] = [str(one.message) for one in caught if "counted no items" in str(one.message)]

def given(key, value, everywhere=False):
    return lambda batch, outputs: {**outputs, key: value} if everywhere or other else outputs

def per_item(keep):
    return lambda batch, outputs: {"logits": outputs["logits"], "losses": LossSum(outputs["logits"].square().sum() * keep, torch.tensor(4.0 * keep))}

steps = 0

def failing(batch, outputs):
    global steps
    steps += 1
    if other and steps == 3:
        if how == "fails":
            raise ValueError("a fault in step 3")
        os.kill(os.getpid(), signal.SIGKILL)
    return outputs

if how == "outputs":
    train("losses", lambda batch, outputs: {"logits": outputs["logits"]} if other else outputs, hard_label_weight=1)
    train("labels", given("labels", torch.zeros(4, dtype=torch.long)))
    train("mask", given("logits_mask", torch.ones(4)))
    train("teacher", teacher=given("logits_mask", torch.ones(4)))
    train("micro", given("logits_mask", torch.ones(4)), training={"normalization": "micro_batch"})
    train("accumulated", given("logits_mask", torch.ones(4)), training={"gradient_accumulation_steps": 2})
    train("one counts", per_item(0 if other else 1), hard_label_weight=1, num_steps=6)
    train("main counts", per_item(1 if other else 0), hard_label_weight=1, num_steps=6)
    train("none counts", per_item(0), hard_label_weight=1, num_steps=6)
elif how == "short":
    train(how, loader=DataLoader(Short(), batch_size=4), epochs=1)
else:
    train(how, failing)
(folder / f"{rank}.json").write_text(json.dumps(found))
if how == "outputs":
    leave_group()
sys.exit(found[how] != "trained")
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Run the script on two gloo processes; return what each one met, ``None`` for a killed one."""

    def run(how):
        folder = tmp_path_factory.mktemp(how)
        (folder / "script.py").write_text(SCRIPT)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        done = subprocess.run(
            [*command, str(folder), how],
            cwd=folder,
            env=environment,
            timeout=180,
            capture_output=True,
            text=True,
            check=False,
        )
        files = [folder / f"{rank}.json" for rank in (0, 1)]
        assert how != "outputs" or done.returncode == 0, done.stderr[-3000:]
        return [json.loads(file.read_text()) if file.is_file() else None for file in files]

    return run


@pytest.fixture(scope="module")
def found(launch):
    return launch("outputs")


KEYS = {
    "losses": "rank 1: student.losses: missing, on rank 0 1 tensor",
    "labels": "rank 1: student.labels: 1 tensor, on rank 0 missing",
    "mask": "rank 1: student.logits_mask: 1 tensor, on rank 0 missing",
    "teacher": "rank 1: teacher.logits_mask: 1 tensor, on rank 0 missing",
    "micro": "rank 1: student.logits_mask: 1 tensor, on rank 0 missing",
    "accumulated": "rank 1: student.logits_mask: 1 tensor, on rank 0 missing",
}


@pytest.mark.attack("one process lacks an output that the others have")
@pytest.mark.parametrize("what", KEYS)
def test_every_process_names_the_rank_and_the_output_that_differs(found, what):
    assert found[0][what] == found[1][what]
    assert KEYS[what] in found[0][what]


@pytest.mark.attack("one process counts no item while another does")
@pytest.mark.parametrize("what", ["one counts", "main counts"])
def test_a_process_without_items_does_not_warn_if_another_has_some(found, what):
    assert [one[what] for one in found] == ["trained", "trained"]
    assert [one[f"{what} warnings"] for one in found] == [[], []]


@pytest.mark.attack("no process counts an item")
def test_the_main_process_warns_if_no_process_counts_an_item(found):
    (message,) = found[0]["none counts warnings"]
    assert message.startswith("hard_label_loss has counted no items in its first 3 batches")
    assert found[1]["none counts warnings"] == []


@pytest.mark.attack("one process fails")
def test_a_process_whose_peer_fails_ends_with_the_cause(launch):
    mine, theirs = launch("fails")
    assert mine["fails"] == "RunError: rank 1 failed with ValueError: a fault in step 3"
    assert theirs["fails"] == "ValueError: a fault in step 3"
    assert mine["fails seconds"] < 60


@pytest.mark.slow
@pytest.mark.attack("one process is killed")
def test_a_process_whose_peer_is_killed_says_so(launch):
    mine, theirs = launch("killed")
    assert mine["killed"].startswith("RunError: the connection to rank 1 was lost, and that process reported no error")
    assert theirs is None
    assert mine["killed seconds"] < 60


@pytest.mark.slow
@pytest.mark.attack("one process runs out of batches before the others")
def test_both_processes_end_with_the_cause_if_one_has_fewer_batches(launch):
    mine, theirs = launch("short")
    assert "rank 1 has no batch left after step 2 of 4" in theirs["short"]
    assert mine["short"] == f"RunError: rank 1 failed with {theirs['short']}"
    assert mine["short seconds"] < 60
