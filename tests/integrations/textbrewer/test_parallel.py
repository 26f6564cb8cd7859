"""Several processes on CPUs with gloo, and ``data_parallel`` without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from textbrewer_twin import Case, run, weight_gap

import kdplug.integrations.textbrewer as textbrewer

MATCH = {"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 6, 8]}
SCRIPT = """
import sys, warnings
import torch
from torch.utils.data import DataLoader, DistributedSampler
from functools import partial
from leave_group import leave_group
from textbrewer_twin import TinyEncoder, adaptor, make_examples
import kdplug.integrations.textbrewer as textbrewer

warnings.simplefilter("ignore")
folder, match = sys.argv[1], eval(sys.argv[2])
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
examples = make_examples(16, is_full=True)
read = partial(adaptor, keys="whole hidden")
student, teacher = TinyEncoder(6, dropout=0.0), TinyEncoder(8, dropout=0.0).requires_grad_(False)
training = textbrewer.TrainingConfig(output_dir=folder, device="cpu", local_rank=rank, gradient_accumulation_steps=2)
config = textbrewer.DistillationConfig(intermediate_matches=[match])
distiller = textbrewer.GeneralDistiller(training, config, teacher, student, read, read)
loader = DataLoader(examples, batch_size=2, sampler=DistributedSampler(examples, shuffle=False))
steps = []
distiller.train(torch.optim.SGD(student.parameters(), lr=0.1), loader, num_epochs=2,
                callback=lambda model, step: steps.append((type(model).__name__, step)))
assert steps == [("DistributedDataParallel", 2), ("DistributedDataParallel", 4)], steps
torch.save([student.state_dict(), distiller.projs[0].module.state_dict()], f"{folder}/rank{rank}.pt")
leave_group()
"""


def test_two_processes_train_one_student_and_one_projection(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    done = subprocess.run(
        [*launch, str(tmp_path), repr(MATCH)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for one, other in zip(first, second, strict=True) for name in one)
    saved = torch.load(tmp_path / "gs4.pkl")
    assert all(torch.equal(saved[name], value) for name, value in first[0].items())


@pytest.mark.parametrize("distiller", ["Basic", "MultiTeacher", "MultiTask", "Train"])
def test_data_parallel_without_a_gpu_changes_nothing(tmp_path: Path, distiller: str) -> None:
    train: dict[str, Any] = {"num_steps": 3, **({"num_epochs": 0} if distiller == "Train" else {})}
    found = []
    for place, options in enumerate(({}, {"data_parallel": True})):
        case = Case(distiller, "whole losses", train=train, training=options)
        found.append(run(textbrewer, case, tmp_path / str(place)))
    assert weight_gap(*found) == 0
    assert found[0].checkpoints == found[1].checkpoints == ["gs3.pkl"]
