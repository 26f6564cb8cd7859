"""One student with two heads; each head has its own teacher and data.

python examples/multi_task.py [STEPS]

One teacher recognizes digits, the other detects digits above four. The student gets no labels of either task.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import kdplug

CLASSES = {"digit": 10, "large": 2}
TRAIN = 1200


class Student(nn.Module):
    """A shared body, and a head for each task."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.heads = nn.ModuleDict({task: nn.Linear(width, classes) for task, classes in CLASSES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        hidden = self.body(images)
        return {task: head(hidden) for task, head in self.heads.items()}


def head_of(task: str) -> Any:
    """Return the adaptor of a task, which selects the logits of its head."""
    return lambda _batch, outputs: {"logits": outputs[task]}


def data() -> tuple[Tensor, dict[str, Tensor]]:
    """Return 1797 pictures of 8 by 8 pixels in a random order, and the labels of both tasks."""
    images, digit = map(torch.from_numpy, load_digits(return_X_y=True))
    order = torch.randperm(len(digit))
    digit = digit[order].long()
    return images[order].float() / 16, {"digit": digit, "large": (digit > 4).long()}


def teacher_of(images: Tensor, labels: Tensor, classes: int, steps: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,))
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def distil(
    teachers: dict[str, nn.Module], student: Student, images: dict[str, Tensor], steps: int, folder: str
) -> None:
    distiller = kdplug.MultiTaskDistiller(
        kdplug.TrainingConfig(output_dir=folder, device="cpu", ckpt_frequency=0, seed=0),
        kdplug.DistillationConfig(temperature=2, kd_loss_type={"name": "ce", "t2": True}),  # or one for each task
        teachers,
        student,
        adaptor_S={task: head_of(task) for task in CLASSES},
    )
    loaders = {task: DataLoader(rows, batch_size=64, shuffle=True) for task, rows in images.items()}
    distiller.train(torch.optim.AdamW(student.parameters(), lr=3e-3), loaders, num_steps=steps)


def main(steps: int = 1000) -> None:
    torch.manual_seed(0)
    images, labels = data()
    teachers = {
        task: teacher_of(images[:TRAIN], labels[task][:TRAIN], classes, steps) for task, classes in CLASSES.items()
    }
    student, half = Student(16), TRAIN // 2
    with tempfile.TemporaryDirectory() as folder:
        distil(teachers, student, {"digit": images[:half], "large": images[half:TRAIN]}, steps, folder)
    with torch.no_grad():
        read = student.eval()(images[TRAIN:])
        for task, logits in read.items():
            found = {"teacher": teachers[task].eval()(images[TRAIN:]), "student": logits}
            right = {
                name: (one.argmax(-1) == labels[task][TRAIN:]).float().mean().item() for name, one in found.items()
            }
            print(f"{task}: teacher {right['teacher']:.3f}, student {right['student']:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
