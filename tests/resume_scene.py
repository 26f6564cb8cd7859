"""A run that is killed and resumed, with data, teacher or script that may have changed in between."""

from __future__ import annotations

import pytest
import torch
from killer import Killed, Killer
from small_run import make_student, make_teacher
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.distillers.general import GeneralDistiller
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.distillers.trainer import BasicTrainer

STEPS = 6


def rows(count=24):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Own(Dataset):
    """A dataset as users write it."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, place):
        return self.data[place]


class Identified(Own):
    """One that knows a fingerprint of its own, and cannot be read by place."""

    def __getitem__(self, place):
        return self.data[place["row"]]

    def fingerprint(self):
        return {"labels": float(self.data[:, 3].sum()), "texts": float(self.data[:, :3].sum())}


class Places:
    def __len__(self):
        return 24

    def __iter__(self):
        return iter([{"row": row} for row in range(24)])


def batch_of(items):
    return torch.stack([torch.as_tensor(item, dtype=torch.float64) for item in items])


LOADERS = {
    "tensors": lambda data: DataLoader(TensorDataset(data), batch_size=4, shuffle=True),
    "one tensor": lambda data: DataLoader(data, batch_size=4),
    "an array": lambda data: DataLoader(data.numpy(), batch_size=4, collate_fn=batch_of),
    "a list": lambda data: DataLoader([row.tolist() for row in data], batch_size=4, collate_fn=batch_of),
    "own dataset": lambda data: DataLoader(Own(data), batch_size=4, shuffle=True),
    "own dataset, workers": lambda data: DataLoader(Own(data), batch_size=4, num_workers=1),
    "a list of batches": lambda data: list(data.split(4)),
    "own fingerprint": lambda data: DataLoader(Identified(data), batch_size=4, sampler=Places()),
}


def distiller(kind, folder, teacher, adaptor=None, observers=()):
    config = TrainingConfig(output_dir=str(folder), device="cpu", ckpt_steps=1, seed=7)
    student, options = make_student(), {"show_progress": False, "observers": observers}
    adaptor = adaptor or (lambda batch, outputs: outputs)
    if kind == "trainer":
        return BasicTrainer(config, student, adaptor, **options), student
    if kind == "basic":
        return BasicDistiller(config, DistillationConfig(), teacher, student, adaptor, **options), student
    if kind == "several teachers":
        made = MultiTeacherDistiller(
            config, DistillationConfig(), [make_teacher(), teacher], student, adaptor, **options
        )
        return made, student
    if kind == "several tasks":
        teachers = {"a": make_teacher(), "b": teacher}
        made = MultiTaskDistiller(config, DistillationConfig(), teachers, student, {"b": adaptor}, **options)
        return made, student
    return GeneralDistiller(config, DistillationConfig(), teacher, student, adaptor, **options), student


def go(kind, folder, *, loader=None, teacher=None, adaptor=None, killed=False, optimizer=None, **train):
    """Train 6 steps, or 3 until the kill; each script builds everything anew."""
    observers = [Killer(3)] if killed else []
    made, student = distiller(kind, folder, teacher or make_teacher(), adaptor, observers)
    loader = loader or LOADERS["tensors"](rows())
    data = {"a": LOADERS["tensors"](rows()), "b": loader} if kind == "several tasks" else loader
    optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    made.train(optimizer(student.parameters()), data, num_steps=STEPS, resume=None if killed else "auto", **train)
    return student


def kill(kind, folder, **options):
    with pytest.raises(Killed):
        go(kind, folder, killed=True, **options)


def flipped(tensor, place, bit):
    """A copy in which one bit of the memory is the other way round."""
    copy = tensor.detach().clone()
    copy.view(-1).view(torch.uint8)[place] ^= 1 << bit
    return copy
