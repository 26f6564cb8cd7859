"""One process of a run differs from the others: every one of them raises the same error before anything is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
import torch
from small_run import *
from leave_group import leave_group
from torch.utils.data import DataLoader, TensorDataset
from kdplug import MultiTaskDistiller, BasicTrainer, DistillationConfig, TrainingConfig
from kdplug.distillers import session
from kdplug.errors import RunError

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
data, found = torch.cat(make_batches(8, size=4)), {}

def train(name, *, folder=folder, teacher=None, student=None, data=data, lr=0.1, batch_size=4, training=None, frozen=False, steps=4, adaptor=None, resume=None, **config):
    torch.manual_seed(rank)
    student = student or make_student()
    student.head.bias.requires_grad_(not frozen)
    out = folder / name
    distiller = make_distiller(out, student, teacher, training=training, adaptors=(None, adaptor), **config)
    try:
        distiller.train(sgd(student, lr=lr), DataLoader(TensorDataset(data), batch_size=batch_size, collate_fn=rows), num_steps=steps, resume=resume)
        found[name] = "trained"
    except RunError as error:
        found[name] = str(error)
    found[name + " checkpoints"] = len(list(out.glob("step-*")))

def rows(items):
    return torch.stack([one for (one,) in items])

def version(name):
    return "9.9" if name == "kdplug-presets" and rank == 1 else usual(name)

other = rank == 1
train("the same")
found["the first run"] = found["the same"]
train("the same")
found["used"], found["the same"] = found["the same"], found["the first run"]
RANK = rank
train("rank", adaptor=lambda batch, outputs: outputs if RANK >= 0 else None, steps=6, training={"ckpt_steps": 2})
shutil.rmtree(folder / "rank" / "step-6", ignore_errors=True)
torch.distributed.barrier()
train("rank", adaptor=lambda batch, outputs: outputs if RANK >= 0 else None, steps=6, training={"ckpt_steps": 2}, resume="auto")
train("temperature", temperature=8.0 if other else 4.0)
train("folder", folder=folder / "1" if other else folder)
train("training", training={"gradient_accumulation_steps": 2 if other else 1})
usual, session.installed_version = session.installed_version, version
train("plugin")
session.installed_version = usual
train("data", data=data + other * torch.eye(32, 4))
train("examples", data=data[: 16 if other else 32])
train("batch size", batch_size=2 if other else 4)
teacher = make_teacher()
if other:
    torch.nn.init.zeros_(teacher.head.bias)
train("teacher", teacher=teacher)
train("student", student=Net(7 if other else 3, seed=1))
train("frozen", frozen=other)
train("optimizer", lr=0.5 if other else 0.1)
train("steps", steps=5 if other else 4)
train("adaptor", adaptor=(lambda batch, outputs: {**outputs, "x": 1}) if other else (lambda batch, outputs: outputs))

student, teachers = make_student(), {"a": make_teacher(), "b": make_teacher() if rank == 0 else Net(5, seed=9)}
made = MultiTaskDistiller(TrainingConfig(output_dir=str(folder / "tasks"), device="cpu"), DistillationConfig(), teachers, student, show_progress=False)
try:
    made.train(sgd(student), {task: DataLoader(TensorDataset(data), collate_fn=rows) for task in teachers}, 2)
except RunError as error:
    found["tasks"] = str(error)

made = BasicTrainer(TrainingConfig(output_dir=str(folder / "trainer"), device="cpu"), make_student(), show_progress=False)
try:
    made.train(sgd(made.model), DataLoader(TensorDataset(data + rank), collate_fn=rows), num_steps=2)
except RunError as error:
    found["trainer"] = str(error)

made = make_distiller(folder / "cache", make_student(), Net(5, seed=2 + rank), training={"teacher_cache": str(folder / "kept")}, is_caching_logits=True)
try:
    made.fill_teacher_cache(DataLoader(TensorDataset(data), batch_size=4, collate_fn=rows))
except RunError as error:
    found["cache"] = str(error)
found["cache files"] = len(list((folder / "kept").glob("*")))

# a checkpoint that is damaged: the main process looks, and all of them learn of it
train("damaged", training={"ckpt_steps": 2})
if rank == 0:
    for step in (folder / "damaged").glob("step-*"):
        (step / "process-1.json").write_text("{}")
torch.distributed.barrier()
made = make_distiller(folder / "damaged", student := make_student(), training={"ckpt_steps": 2})
try:
    made.train(sgd(student), DataLoader(TensorDataset(data), batch_size=4, collate_fn=rows), num_steps=4, resume="auto")
except RunError as error:
    found["damaged"] = str(error)
(folder / f"{rank}.json").write_text(json.dumps(found))
leave_group()
"""

FIELDS = {
    "folder": "output_dir: '",
    "temperature": "distillation.temperature: 8.0, on rank 0 4.0",
    "training": "training.gradient_accumulation_steps: 2, on rank 0 1",
    "plugin": "plugins.kdplug-presets: '9.9', on rank 0 ",
    "data": "data.content: '",
    "examples": "data.examples: 16, on rank 0 32",
    "batch size": "data.batch_size: 2, on rank 0 4",
    "teacher": "teacher.weights: '",
    "student": "student.parameters.inner.weight: 'float64 [7, 4]', on rank 0 'float64 [3, 4]'",
    "frozen": "student.parameters.head.bias: 'float64 [3] frozen', on rank 0 'float64 [3]'",
    "optimizer": "optimizer.groups.0.lr: 0.5, on rank 0 0.1",
    "steps": "total_steps: 5, on rank 0 4",
    "adaptor": "student.adaptor: '",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two gloo processes met, by the name of what differed."""
    folder = tmp_path_factory.mktemp("unlike")
    (folder / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*launch, str(folder)], cwd=folder, env=environment, timeout=180, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


pytestmark = pytest.mark.attack("one process of a run is started with something else")


def test_processes_that_are_alike_train(found):
    assert [one["the same"] for one in found] == ["trained", "trained"]


def test_an_adaptor_that_knows_its_rank_trains_and_is_resumed(found):
    assert [one["rank"] for one in found] == ["trained", "trained"]


@pytest.mark.parametrize("what", FIELDS)
def test_every_process_names_the_rank_the_field_and_both_values(found, what):
    assert found[0][what] == found[1][what]
    assert f"rank 1: {FIELDS[what]}" in found[0][what]
    assert found[0][f"{what} checkpoints"] == 0


@pytest.mark.parametrize(
    ("kind", "field"),
    [("tasks", "teacher.b.weights: '"), ("trainer", "data.content: '"), ("cache", "teacher.weights: '")],
)
def test_other_distillers_and_the_capture_of_a_cache_compare_as_well(found, kind, field):
    assert found[0][kind] == found[1][kind]
    assert f"rank 1: {field}" in found[0][kind]


def test_processes_that_differ_write_no_cache(found):
    assert found[0]["cache files"] == 0


def test_every_process_learns_of_a_folder_in_use(found):
    assert found[0]["used"] == found[1]["used"]
    assert "contains 'step-4' of an earlier run" in found[0]["used"]


def test_every_process_learns_of_a_damaged_checkpoint(found):
    assert found[0]["damaged"] == found[1]["damaged"]
    assert "process-1.json has 2 bytes instead of" in found[0]["damaged"]
