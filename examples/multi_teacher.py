"""Three teachers and one student, which sees no labels.

python examples/multi_teacher.py [STEPS]

Each teacher is trained on a few different images. A combiner merges their logits, here into the mean of their
probabilities; ``kdplug plugins list`` lists the others.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import kdplug

TRAIN, TEACHERS = 1200, 3


def digits() -> tuple[Tensor, Tensor]:
    """Return 1797 pictures of 8 by 8 pixels in a random order, and their digits."""
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    return images[order].float() / 16, labels[order].long()


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def fit(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,))
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def distil(teachers: list[nn.Module], student: nn.Module, images: Tensor, steps: int, folder: str) -> nn.Module:
    config = kdplug.DistillationConfig(
        temperature=4, kd_loss_type={"name": "ce", "t2": True}, teacher_combiner="mean_probs"
    )
    training = kdplug.TrainingConfig(output_dir=folder, device="cpu", ckpt_frequency=0, seed=0)
    distiller = kdplug.MultiTeacherDistiller(training, config, teachers, student)
    loader = DataLoader(
        images, batch_size=64, shuffle=True
    )  # a tensor is a data set; its rows are what the models take
    distiller.train(torch.optim.AdamW(student.parameters(), lr=3e-3), loader, num_steps=steps)
    return student


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model.eval()(images).argmax(dim=-1) == labels).float().mean().item()


def main(steps: int = 600) -> None:
    torch.manual_seed(0)
    images, labels = digits()
    test = images[TRAIN:], labels[TRAIN:]
    parts = list(zip(images[:90].chunk(TEACHERS), labels[:90].chunk(TEACHERS), strict=True))
    teachers = [fit(net(128), *part, steps) for part in parts]
    with tempfile.TemporaryDirectory() as folder:
        student = distil(teachers, net(32), images[:TRAIN], steps, folder)
    for place, teacher in enumerate(teachers):
        print(f"teacher {place}: {accuracy(teacher, *test):.3f}")
    print(f"student of all three: {accuracy(student, *test):.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
