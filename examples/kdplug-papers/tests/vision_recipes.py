"""Recipes on images: a small convolutional network learns from a wider one."""

from __future__ import annotations

import torch
from recipe import Recipe
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset


class ConvNet(nn.Module):
    """Two stages, global pooling and a classifier; images ``[B, 3, 8, 8]``, 5 classes."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stage1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            self.stage2 = nn.Sequential(
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()
            )
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(2 * width, 5)

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of every part by its name."""
        found, value = {}, images
        for name, part in self.named_children():
            found[name] = value = part(value)
        return found

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return logits, and labels for the losses that request them."""
        return {"logits": self.stages(images)["fc"], "labels": labels}


def student(trained: tuple[str, ...] = ("stage1", "stage2", "pool", "fc")) -> nn.Module:
    """Return an untrained network, of which only the named parts are trained."""
    made = ConvNet(4, seed=1)
    for name, part in made.named_children():
        part.requires_grad_(name in trained)
    return made


def teacher() -> nn.Module:
    """Return a wider network whose features have been normalised on the images; random weights give enough to learn."""
    made = ConvNet(7, seed=2)
    with torch.no_grad():
        for _ in range(30):
            made.stages(images()[:][0])  # type: ignore[index]
    return made


def images(seed: int = 3, count: int = 24) -> Dataset[tuple[Tensor, ...]]:
    """Return images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 3, 8, 8, generator=generator), torch.randint(5, (count,), generator=generator)
    )


@torch.no_grad()
def outputs(model: nn.Module, part: str) -> Tensor:
    """Return a part's outputs for all images, one row for each image, as an evaluation computes them."""
    training = model.training
    found = model.eval().stages(images()[:][0])[part].flatten(1).double()  # type: ignore[index,operator]
    model.train(training)
    return found


def logits_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the KL divergence of the students' predictions from the teacher's, in nats."""
    own, other = (outputs(model, "fc").log_softmax(-1) for model in (student, teacher))
    return float((other.exp() * (other - own)).sum(-1).mean())


CTKD = {
    "terms": [{"loss": {"name": "dkd", "alpha": 1, "beta": 2}}],
    "temperature_scheduler": {"name": "ctkd", "ramp": 0.5},
}
KD = {"temperature": 2}
RECIPES = {
    "ctkd": Recipe(CTKD, student, teacher, images, logits_apart),
    "fake_quantize": Recipe(
        KD, student, teacher, images, logits_apart, transforms=({"name": "fake_quantize", "bits": 4},)
    ),
    "lora": Recipe(KD, student, teacher, images, logits_apart, transforms=({"name": "lora", "rank": 2},)),
}
