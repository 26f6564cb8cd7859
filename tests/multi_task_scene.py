"""Two tasks and loaders for them, for tests of distillers of several tasks."""

from __future__ import annotations

import torch
from small_run import Net, make_student, sgd
from torch.utils.data import DataLoader, Dataset

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.multi_task import MultiTaskDistiller


class Examples(Dataset):
    """Rows of four numbers, the same for the same seed."""

    def __init__(self, count, seed=3):
        self.rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Notes:
    """An observer that keeps the task and the terms of each step."""

    def __init__(self):
        self.tasks, self.reports = [], []

    def run_start(self, run):
        pass

    def step_end(self, run, step, report):
        self.tasks.append(next(iter(report.terms)).split("/")[0])
        self.reports.append(report.detach())

    def run_end(self, run, error):
        pass


def loaders(**sizes):
    """A loader for each task, of so many examples in batches of so many."""
    return {task: DataLoader(Examples(count), size) for task, (count, size) in sizes.items()}


TWO = {"a": (8, 4), "b": (8, 4)}


def make(
    folder, student, teachers=None, adaptor_T=None, adaptor_S=None, *, config=None, notes=(), shown=False, **training
):
    distiller = MultiTaskDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", **training),
        config or DistillationConfig(),
        teachers or {"a": Net(5, seed=2), "b": Net(5, seed=4)},
        student,
        adaptor_T,
        adaptor_S,
        observers=notes,
        show_progress=shown,
    )
    distiller.objective.double()
    return distiller


def drawn(folder, data, steps, seed=0, **options):
    """The tasks of so many steps."""
    student, notes = make_student(), Notes()
    teachers = {task: Net(5, seed=2) for task in data}
    make(folder, student, teachers, notes=[notes], seed=seed).train(
        sgd(student), data, steps, overwrite=True, **options
    )
    return notes.tasks
