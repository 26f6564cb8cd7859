"""Memory banks of two processes in the Trainer and in Lightning: each keeps its own, also when a run is resumed."""

from __future__ import annotations

import pytest
import torch
from integrations.test_process import launch

SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
from bert_run import config, examples, make_trainer
from leave_group import leave_group
from loop_run import lightning_trainer, make_module
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from kdplug import LossSum, losses

class Bank(nn.Module):
    def __init__(self, num_examples):
        super().__init__()
        self.register_buffer("bank", torch.rand(num_examples, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(num_examples, dtype=torch.long))

    def forward(self, student_logits, teacher_logits, example_ids) -> LossSum:
        kept = self.bank[example_ids]
        with torch.no_grad():
            self.bank[example_ids] = 0.5 * kept + 0.5 * teacher_logits[:, 0]
            self.seen[example_ids] += 1
        return LossSum(((student_logits - teacher_logits).square().mean(1) * kept).sum(), len(kept))

losses.register("bank")(Bank)
folder, found = Path(sys.argv[1]), {}
rows = [{**row, "example_ids": place} for place, row in enumerate(examples(12))]
distill = config(None, kd_loss_type="bank", temperature=1, hard_label_weight=0.5)

def buffers(objective):
    return {name: one.clone() for name, one in objective.named_buffers()}

def trainer(place, resume=None):
    saving = {"save_strategy": "steps", "save_steps": 4, "ddp_backend": "gloo", "max_steps": 6}
    made = make_trainer(folder / place, distill_config=distill, rows=rows, per_device_train_batch_size=2, **saving)
    made.train(resume_from_checkpoint=resume)
    return buffers(made.objective)

found["trainer"] = trainer("whole")
found["trainer resumed"] = trainer("resumed", str(folder / "whole" / "checkpoint-4"))

def lightning(place, steps, resume=None):
    module = make_module(distill_config=distill, start=False)
    module.materialize(next(iter(DataLoader(rows, batch_size=2))), num_examples=12)
    keeps = ModelCheckpoint(folder / place, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    run = lightning_trainer(folder, max_steps=steps, devices=2, strategy="ddp", use_distributed_sampler=False,
                            enable_checkpointing=True, callbacks=[keeps])
    run.fit(module, DataLoader(rows, batch_size=2, sampler=DistributedSampler(rows, shuffle=False)), ckpt_path=resume)
    return buffers(module.objective)

found["lightning"] = lightning("light", 6)
torch.distributed.barrier()
found["lightning resumed"] = lightning("again", 6, str(folder / "light" / "step=3.ckpt"))
torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
leave_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = launch(tmp_path_factory.mktemp("banks"), SCRIPT)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("loop", ["trainer", "lightning"])
def test_each_process_keeps_its_own_bank(found, loop):
    first, second = (rank[loop]["configured.0.loss.seen"] for rank in found)
    assert (first + second).tolist() == [2] * 12
    assert (first * second).tolist() == [0] * 12


@pytest.mark.parametrize("loop", ["trainer", "lightning"])
def test_a_resumed_run_has_the_same_banks(found, loop):
    for rank in found:
        for name, value in rank[loop].items():
            assert torch.equal(rank[f"{loop} resumed"][name], value)
