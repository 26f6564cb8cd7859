"""Distillation in your own training loop: ``kdplug.Objective`` is a module that computes the loss.

python examples/own_loop.py [STEPS]
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import kdplug

TRAIN, LABELLED = 1200, 100


class Net(nn.Module):
    """A network with one hidden layer; returns it and the logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> dict[str, Tensor | list[Tensor]]:
        hidden = torch.relu(self.hidden(images))
        return {"logits": self.head(hidden), "hidden": [hidden]}


def digits() -> tuple[Tensor, Tensor]:
    """Return 1797 pictures of 8 by 8 pixels in a random order, and their digits."""
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    return images[order].float() / 16, labels[order].long()


def fit(model: Net, images: Tensor, labels: Tensor, steps: int) -> Net:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,))
        loss = functional.cross_entropy(model(images[chosen])["logits"], labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def distil(teacher: Net, student: Net, images: Tensor, labels: Tensor, steps: int) -> Net:
    """Distil on all training images; only the first ``LABELLED`` have a label for the student."""
    config = kdplug.DistillationConfig(
        temperature=4,
        kd_loss_type={"name": "ce", "t2": True},
        hard_label_weight=0.2,
        intermediate_matches=[
            {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", 12, 256]}
        ],
    )
    objective = kdplug.Objective(config)
    # The projection trains with the student; `param_groups` returns it with its options from the config.
    optimizer = torch.optim.AdamW([{"params": student.parameters()}, *objective.param_groups()], lr=3e-3)
    teacher.eval()
    for step in range(steps):
        chosen = torch.randint(TRAIN, (64,))
        with torch.no_grad():
            given = teacher(images[chosen])
        made = student(images[chosen])
        known = chosen < LABELLED
        made["losses"] = functional.cross_entropy(made["logits"][known], labels[chosen[known]], reduction="sum") / 64
        report = objective(student=made, teacher=given, progress=step / steps, step=step, total_steps=steps)
        optimizer.zero_grad()
        report.total.backward()
        optimizer.step()
        if step % 100 == 0:
            print(step, {name: f"{term.value.item():.3f} x {term.weight}" for name, term in report.terms.items()})
    return student


@torch.no_grad()
def accuracy(model: Net, images: Tensor, labels: Tensor) -> float:
    return (model.eval()(images)["logits"].argmax(dim=-1) == labels).float().mean().item()


def main(steps: int = 600) -> None:
    torch.manual_seed(0)
    images, labels = digits()
    test = images[TRAIN:], labels[TRAIN:]
    teacher = fit(Net(256), images[:TRAIN], labels[:TRAIN], steps)
    distilled = distil(teacher, Net(12), images, labels, steps)
    alone = fit(Net(12), images[:LABELLED], labels[:LABELLED], steps)
    for name, model in {"teacher": teacher, "student, distilled": distilled, "student, alone": alone}.items():
        print(f"{name}: {accuracy(model, *test):.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
