"""Factors through the engine: accumulation, processes and shards train what dense logits train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factored_run import CLASSES, Headed, adaptor, data, dense_adaptor, distill
from small_run import weights
from torch.utils.data import DataLoader

from kdplug import DistillationConfig, Evaluation, GeneralDistiller, OutputsError, SparseLogits, TrainingConfig

SCRIPT = """
import os
import sys
import torch
from leave_group import leave_group
from torch.utils.data import DataLoader

kind, folder = sys.argv[1:]
if kind != "ddp":
    import fsdp_on_cpu
    fsdp_on_cpu.enable()
if kind == "blocks":  # the head is gathered alone, and given back before the objective asks for it
    os.environ.update(FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_TRANSFORMER_CLS_TO_WRAP="Linear")
from factored_run import data, distill
from kdplug.engine.parallel.fsdp import gathered

student = distill(folder, DataLoader(data(), batch_size=4), gradient_accumulation_steps=2)
state = gathered(student).state_dict()
if os.environ["RANK"] == "0":
    torch.save(torch.cat([state[name].flatten() for name in sorted(state)]), f"{folder}/weights.pt")
leave_group()
"""


@pytest.fixture(autouse=True)
def _loss():
    import factored_run

    from kdplug.host import registry

    registry.losses.register("factored_kl")(factored_run.factored_kl)


def flat(student):
    state = student.state_dict()
    return torch.cat([state[name].flatten() for name in sorted(state)])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_factors_train_what_dense_logits_train(tmp_path, accumulation):
    found = [
        distill(
            tmp_path / make.__name__, DataLoader(data(), batch_size=4), make, gradient_accumulation_steps=accumulation
        )
        for make in (adaptor, dense_adaptor)
    ]
    torch.testing.assert_close(weights(found[0]), weights(found[1]), rtol=0, atol=1e-12)
    assert (weights(found[0]) - weights(Headed(3, seed=1))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["ddp", pytest.param("root", marks=pytest.mark.slow), "blocks"])
def test_two_processes_train_what_one_does(tmp_path, kind):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py", kind]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*launch, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = distill(tmp_path / "alone", DataLoader(data(), batch_size=8), gradient_accumulation_steps=2)
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), flat(alone), rtol=0, atol=1e-12)


class Widest:
    """A metric that notes how wide the logits were."""

    def reset(self):
        self.width = 0

    def to(self, device):
        return self

    def update(self, logits, labels):
        self.width = logits.shape[-1]

    def compute(self):
        return float(self.width)


def test_a_metric_reads_the_logits_multiplied_out(tmp_path):
    student, teacher = Headed(3, seed=1), Headed(5, seed=2)

    def labelled(batch, hidden):
        return {**adaptor(student)(batch, hidden), "labels": torch.zeros(len(hidden), dtype=torch.int64)}

    distiller = _distiller(tmp_path, teacher, student, labelled)
    metric = Widest()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    evaluation = Evaluation(dataloader=[data()], metrics={"width": metric})
    distiller.train(optimizer, [data()], num_epochs=1, evaluation=evaluation)
    assert metric.width == CLASSES


@pytest.mark.parametrize("codec", [None, "hidden"], ids=["multiplied out", "as hidden states"])
def test_a_teacher_that_returns_factors_is_kept(tmp_path, codec):
    ends = []
    for caching in (False, True):
        student, teacher = Headed(3, seed=1), Headed(5, seed=2)
        distiller = _distiller(
            tmp_path, teacher, student, adaptor(student), codec if caching else None, is_caching_logits=caching
        )
        distiller.train(torch.optim.SGD(student.parameters(), lr=0.1), [data()], num_epochs=2, overwrite=True)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in student.parameters()]))
    torch.testing.assert_close(*ends)


def test_a_teacher_that_is_sparse_already_is_not_kept(tmp_path):
    student, teacher = Headed(3, seed=1), Headed(5, seed=2)
    distiller = _distiller(tmp_path, teacher, student, adaptor(student), is_caching_logits=True)
    distiller._teacher.adaptor = lambda batch, hidden: {
        "logits": SparseLogits.top(torch.zeros(len(hidden), CLASSES), 2)
    }
    with pytest.raises(OutputsError, match=r"is_caching_logits: stores full logits.*returned SparseLogits"):
        distiller.train(torch.optim.SGD(student.parameters(), lr=0.1), [data()], num_epochs=2)


def _distiller(folder, teacher, student, adaptor_S, codec=None, **distillation):
    return GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", teacher_cache_codec=codec),
        DistillationConfig(kd_loss_type="factored_kl", **distillation),
        teacher,
        student,
        adaptor(teacher),
        adaptor_S,
        show_progress=False,
    )
