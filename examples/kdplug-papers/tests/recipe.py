"""A method as a run: its config, two models, data, and a distance that training must reduce."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import kdplug

KILLED = 9
"""Exit status of a process that a recipe ends."""

EVERY = 8
"""Steps between checkpoints; an epoch has 3 steps, so that a run resumes within one."""

SHORT: Mapping[str, Any] = {"lr": 0.03, "epochs": 8}
"""A run that is long enough for most methods."""


@dataclass(frozen=True)
class Recipe:
    """``distance`` of the trained student from the teacher, independent of the loss: lower is closer.

    ``generates`` makes a function that lets the student rewrite a batch. ``entries`` are those that are used in Python.
    """

    distillation: Mapping[str, Any]
    student: Callable[[], nn.Module]
    teacher: Callable[[], Any]
    data: Callable[[], Dataset[Any]]
    distance: Callable[[nn.Module, Any], float]
    adaptor: Callable[..., Mapping[str, Any]] | None = None
    lr: float = 0.02
    epochs: int = 12
    training: Mapping[str, Any] = field(default_factory=dict)
    generates: Callable[[nn.Module], Callable[[Any], Any]] | None = None
    transforms: tuple[Any, ...] = ()
    entries: tuple[str, ...] = ()


class Losses:
    """Records the total of each step; ends the process after step ``killed_at``."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.killed_at = killed_at
        self.totals: list[Tensor] = []

    def run_start(self, run: Any) -> None:
        """Do nothing."""

    def step_end(self, run: Any, step: int, report: Any) -> None:
        """Keep the total; die without cleaning up, as a killed process does."""
        self.totals.append(report.total.detach())
        if step == self.killed_at:
            os._exit(KILLED)

    def run_end(self, run: Any, error: Any) -> None:
        """Do nothing."""


class Trained(NamedTuple):
    """A run's student and every tensor of its state, by name, with the losses and distances from the teacher."""

    state: dict[str, Tensor]
    losses: list[float]
    before: float
    after: float


def train(recipe: Recipe, folder: Path, *, killed_at: int | None = None, resume: str | None = None) -> Trained:
    """Train the student of ``recipe``; or until step ``killed_at``, with a checkpoint every ``EVERY`` steps."""
    torch.manual_seed(0)
    student, teacher, losses = recipe.student(), recipe.teacher(), Losses(killed_at)
    transforms = kdplug.StudentTransforms(recipe.transforms)
    student = transforms.prepare(student)
    saves = {"ckpt_frequency": 0} if killed_at is None else {"ckpt_steps": EVERY}
    distiller = kdplug.GeneralDistiller(
        kdplug.TrainingConfig(output_dir=str(folder), device="cpu", seed=5, **saves, **recipe.training),
        kdplug.DistillationConfig(**recipe.distillation),
        teacher,
        student,
        recipe.adaptor if isinstance(teacher, nn.Module) else None,
        recipe.adaptor,
        observers=[losses],
        strict=True,
        show_progress=False,
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.lr)
    before = recipe.distance(student, teacher)
    loader = DataLoader(recipe.data(), batch_size=8, shuffle=True)
    distiller.train(
        optimizer,
        loader,
        num_steps=recipe.epochs * len(loader),
        resume=resume,
        batch_postprocessor=recipe.generates and recipe.generates(student),
    )
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    if isinstance(teacher, nn.Module):
        state |= {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
    state |= {f"objective.{name}": value for name, value in distiller.objective.state_dict().items()}
    for place, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{place}.{name}": torch.as_tensor(value) for name, value in values.items()}
    finished = transforms.finish(student)
    return Trained(state, [total.item() for total in losses.totals], before, recipe.distance(finished, teacher))
