"""Recipes of the vision methods: a small convolutional network learns from a wider one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from vision_recipe import Recipe


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


def teacher(width: int = 7) -> nn.Module:
    """Return a wider network whose features have been normalised on the images; random weights give enough to learn."""
    made = ConvNet(width, seed=2)
    with torch.no_grad():
        for _ in range(30):
            made.stages(images()[:][0])  # type: ignore[index]
    return made


def peer() -> nn.Module:
    """Return a teacher with as many channels as the student."""
    return teacher(4)


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


def features_apart(part: str):
    """Return the distance 1 − CKA of a part's outputs: 0 if they are equal up to rotation and scale."""

    def distance(student: nn.Module, teacher: nn.Module) -> float:
        own, other = (outputs(model, part) for model in (student, teacher))
        own, other = own - own.mean(0), other - other.mean(0)
        return 1 - float((own.T @ other).square().sum() / ((own.T @ own).norm() * (other.T @ other).norm()))

    return distance


def unpredictable(student: nn.Module, teacher: nn.Module) -> float:
    """Return the share of the variance of the teacher's pooled features that the student's do not predict linearly."""
    own, other = (outputs(model, "pool") for model in (student, teacher))
    own, other = own - own.mean(0), other - other.mean(0)
    predicted = own @ torch.linalg.lstsq(own, other).solution
    return float((predicted - other).square().sum() / other.square().sum())


def attention_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return 1 − the mean cosine of where the second stages are strong."""
    own, other = (outputs(model, "stage2").unflatten(1, (-1, 16)).square().mean(1) for model in (student, teacher))
    return 1 - float(torch.nn.functional.cosine_similarity(own, other).mean())


def class_maps_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the squared error of the pooled features times the classifiers' weights, relative to the teacher's."""
    own, other = (outputs(model, "pool") @ model.fc.weight.detach().double().T for model in (student, teacher))  # type: ignore[union-attr,operator]
    return float((own - other).square().sum() / other.square().sum())


def classes_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the share of images for which the models predict different classes."""
    own, other = (outputs(model, "fc").argmax(1) for model in (student, teacher))
    return float((own != other).double().mean())


def logits_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the KL divergence of the students' predictions from the teacher's, in nats."""
    own, other = (outputs(model, "fc").log_softmax(-1) for model in (student, teacher))
    return float((other.exp() * (other - own)).sum(-1).mean())


def on(part: str, loss, **keys) -> Recipe:
    """Return a recipe with one term on the output of one part of both models."""
    term = {"loss": loss, "layer_S": part, "layer_T": part, **keys}
    return Recipe({"terms": [term]}, partial(student, ("stage1", "stage2")), teacher, images, features_apart(part))


def on_stages(loss, **keys) -> Recipe:
    """Return a recipe with one term on both stages."""
    return replace(
        on("stage2", loss), distillation={"terms": [{"loss": loss, "layer_S": STAGES, "layer_T": STAGES, **keys}]}
    )


STAGES = ["stage1", "stage2"]
BATCH_NORMS = ["stage1.1", "stage2.1"]
OFD = on(
    "stage2",
    "ofd",
    layer_S=BATCH_NORMS,
    layer_T=BATCH_NORMS,
    weight=1e-3,
    reads_T=[f"{path}:parameter.{name}" for path in BATCH_NORMS for name in ("weight", "bias")],
)
SRRL = replace(
    on("stage2", "srrl", reads_T=["fc:parameter.weight", "fc:parameter.bias"]), distance=features_apart("pool")
)
CLASSIFIERS = {"reads_S": ["fc:parameter.weight"], "reads_T": ["fc:parameter.weight"]}
CONV = ["conv", "auto", "auto"]
RECIPES = {
    "ab": on("stage2", "ab", weight=3e-2),
    "at": on_stages("at", weight=1000),
    "at_paper": on_stages("at_paper", weight=10),
    "cat_kd": replace(on("stage2", "cat_kd", weight=15, **CLASSIFIERS), distance=class_maps_apart),
    "cc": replace(on("pool", {"name": "cc", "width": 8}, weight=0.02), distance=unpredictable),
    "cc_paper": on("pool", "cc_paper", weight=10),
    "crd": replace(on("pool", {"name": "crd", "width": 8, "negatives": 20}, weight=0.8), lr=0.005),
    "crd_in_batch": on("pool", {"name": "crd_in_batch", "width": 8}, weight=0.8),
    "cwd": on("stage2", {"name": "cwd", "tau": 1}, weight=3, proj=CONV),
    "deit_hard": Recipe({"terms": [{"loss": "deit_hard"}]}, student, teacher, images, classes_apart),
    "deit_soft": Recipe({"terms": [{"loss": "deit_soft"}]}, student, teacher, images, logits_apart),
    "diffkd": on("stage2", "diffkd"),
    "fitnet": on("stage2", "fitnet", weight=100, loss_options={"lr": 0.02}),
    "fsp_map": replace(on_stages("fsp_map", weight=50), teacher=peer),
    "ft": replace(on("stage2", "ft", weight=200), distance=attention_apart),
    "ickd": replace(on("stage2", "ickd", weight=2.5), distance=unpredictable),
    "lightly_v1": on("pool", {"name": "lightly_v1", "queue": 16}),
    "mgd": on("stage2", {"name": "mgd", "masked": 0.15}, weight=7e-5),
    "nst_map": on_stages("nst_map", weight=50),
    "ofd": OFD,
    "pearson_kd": on("stage2", "pearson_kd", weight=6, proj=CONV),
    "pkt": on("pool", "pkt", weight=30_000),
    "reviewkd": on_stages("reviewkd", weight=5),
    "rkd": on("pool", "rkd"),
    "semckd": on_stages({"name": "semckd", "batch_size": 8}, weight=400),
    "simkd": on("stage2", "simkd"),
    "sp": on("stage2", "sp", weight=3000),
    "srd": on("pool", "srd", weight=2),
    "srd_corr": on("pool", "srd_corr"),
    "srrl": SRRL,
    "vid": on("stage2", "vid"),
    "vit_tokens": on("stage2", "vit_tokens", proj=CONV),
}
