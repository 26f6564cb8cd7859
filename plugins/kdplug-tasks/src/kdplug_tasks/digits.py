"""Handwritten digits with few labels: a task that needs no download."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import torch
from pydantic import Field
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, default_collate

from kdplug import LossSum, Prediction, Predictions, new_recipe
from kdplug_tasks.setting import Count, Settings, WholeNumber


class ConvNetOutputs(TypedDict):
    """``logits [B, classes]``, one ``hidden [B, positions, width]`` per block, and ``losses`` if labels were given."""

    logits: Tensor
    hidden: tuple[Tensor, ...]
    losses: NotRequired[LossSum]


class ConvNet(nn.Module):
    """Blocks of convolution, batch norm and ReLU, with 2x2 max pooling in between, then mean pooling and a linear
    layer.

    ``widths`` are the channels of the blocks. The last block is not pooled, so that its feature map keeps several
    positions for a hidden match to compare.
    """

    def __init__(self, widths: tuple[int, ...], *, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Identity() if place == 0 else nn.MaxPool2d(2),
                nn.Conv2d(inner, outer, 3, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
            )
            for place, (inner, outer) in enumerate(pairwise((1, *widths)))
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> ConvNetOutputs:
        """Return logits, feature maps as sequences of positions and, given ``labels``, the cross-entropy in nats.

        The cross-entropy covers the images that have a label (``-100`` = none).

        Shapes: ``images [B, 1, H, W]``, ``labels [B]``.
        """
        hidden = []
        state = images
        for block in self.blocks:
            state = block(state)
            hidden.append(state.flatten(2).transpose(1, 2))
        logits = self.head(hidden[-1].mean(dim=1))
        outputs = ConvNetOutputs(logits=logits, hidden=tuple(hidden))
        if labels is not None:
            total = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
            outputs["losses"] = LossSum(total, (labels != -100).sum())
        return outputs


_SPLIT_SEED = 0
_TEST_IMAGES = 597
_VALIDATION_IMAGES = 200
_TEACHER_WIDTHS = (32, 64, 128)
_STUDENT_WIDTHS = (6, 12, 20)
_NO_LABEL = -100


class Example(TypedDict):
    """``images [1, 8, 8]`` in [0, 1] and ``labels``, a scalar, ``-100`` = none; batched along a new first dimension."""

    images: Tensor
    labels: Tensor


class Images(Dataset[Example]):
    """Images with their labels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"images": self.images[index], "labels": self.labels[index]}


class Split(TypedDict):
    """The images of each part."""

    teacher: Images
    distillation: Images
    baseline: Images
    validation: Images
    test: Images


class DigitsStudent(Settings):
    """Size of the student. A mapping with ``widths``."""

    widths: tuple[Count, Count, Count] = _STUDENT_WIDTHS
    """Channels of the student's three blocks."""


_STUDENT = DigitsStudent()


@new_recipe(training={"lr": 1e-2, "num_epochs": 60})
class Digits:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels; the student sees few of the labels.

    A fixed stratified split has 1000 images for training, 200 for validation and 597 for testing. The teacher is trained
    on all 1000 labels. The student gets ``labels_per_class`` labels of each of the ten classes. Without distillation it is trained
    on those images alone. With distillation it also sees the other training images, without labels, and the teacher's
    outputs for them. The gain is large because the teacher was trained on all labels and the student has none for most
    images. The more labels the student has, the smaller the gain; with 90 of each class there is hardly any.

    Teacher and student are convolutional nets of three blocks, widths (32, 64, 128) and (6, 12, 20): 94,186 and 3,148
    parameters. ``hidden`` holds one feature map for each block, as ``[batch, positions, width]``.

    Settings: ``labels_per_class``, number of labels of each class that the student sees; ``label_seed``, seed that
    selects them; ``teacher_epochs``, passes over the training images in the teacher's training; ``student``, the
    student's size.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
    """

    metric = "accuracy"

    def __init__(
        self,
        *,
        labels_per_class: Annotated[int, Field(ge=1, le=90)] = 10,
        label_seed: WholeNumber = 0,
        teacher_epochs: Count = 10,
        student: DigitsStudent = _STUDENT,
    ) -> None:
        self.labels_per_class = labels_per_class
        self.label_seed = label_seed
        self.teacher_epochs = teacher_epochs
        self.student = student

    def about(self) -> str:
        """Describe the task, for printing at the start of a run."""
        train, labelled = len(self._parts["teacher"]), len(self._parts["baseline"])
        return (
            f"The teacher is trained on all {train} training images and their labels. The student gets the labels of only "
            f"{labelled} of them ({self.labels_per_class} of each digit). With distillation it also learns from the teacher's "
            f"outputs on all {train} images; without, it sees only those {labelled} images. "
            f"Checkpoints are chosen on {len(self._parts['validation'])} other images, and the accuracy is measured on "
            f"{len(self._parts['test'])} more."
        )

    def build_teacher(self) -> nn.Module:
        """Return an untrained net of 94,186 parameters."""
        return ConvNet(_TEACHER_WIDTHS, classes=10)

    def teacher_fit(self) -> dict[str, Any]:
        """Return the teacher's training settings: ``teacher_epochs`` with batches of 64."""
        return {"epochs": self.teacher_epochs, "batch_size": 64, "learning_rate": 3e-3}

    def build_student(self) -> nn.Module:
        """Return an untrained net, of 3,148 parameters with the default widths."""
        return ConvNet(self.student.widths, classes=10)

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that the teacher's outputs depend on: all settings but the student's."""
        return {
            "labels_per_class": self.labels_per_class,
            "label_seed": self.label_seed,
            "teacher_epochs": self.teacher_epochs,
        }

    def data(self, part: Literal["teacher", "distillation", "baseline", "validation", "test"]) -> Images:
        """Return the images of one part; in ``distillation`` most labels are ``-100``."""
        return self._parts[part]

    def collate(self, examples: list[Example]) -> Example:
        """Return a batch: ``images [B, 1, 8, 8]``, ``labels [B]``."""
        batch: Example = default_collate(examples)
        return batch

    def teacher_adaptor(self, batch: Example, outputs: ConvNetOutputs) -> dict[str, Any]:
        """Return logits, feature maps, labels and the cross-entropy."""
        return _adapt(batch, outputs)

    def student_adaptor(self, batch: Example, outputs: ConvNetOutputs) -> dict[str, Any]:
        """Return logits, feature maps, labels and the cross-entropy."""
        return _adapt(batch, outputs)

    def predict(self, model: nn.Module, batches: Iterable[Example]) -> Predictions:
        """Return the accuracy, the share of images whose largest logit is that of their label, and each image's digit."""
        rows: list[Prediction] = []
        for batch in batches:
            chances, digits = model(batch["images"])["logits"].softmax(dim=-1).max(dim=-1)
            columns = zip(batch["labels"].tolist(), digits.tolist(), chances.tolist(), strict=True)
            rows += [
                {"score": float(digit == label), "label": label, "prediction": digit, "probability": chance}
                for label, digit, chance in columns
            ]
        accuracy = accuracy_score([row["label"] for row in rows], [row["prediction"] for row in rows])
        return Predictions({"accuracy": float(accuracy)}, rows)

    def evaluate(self, model: nn.Module, batches: Iterable[Example]) -> dict[str, float]:
        """Return the accuracy."""
        return dict(self.predict(model, batches).metrics)

    @cached_property
    def _parts(self) -> Split:
        return _split(self.labels_per_class, self.label_seed)


def _adapt(batch: Example, outputs: ConvNetOutputs) -> dict[str, Any]:
    losses = {"losses": outputs["losses"]} if "losses" in outputs else {}
    return {"logits": outputs["logits"], "hidden": outputs["hidden"], "labels": batch["labels"], **losses}


def _split(labels_per_class: int, label_seed: int) -> Split:
    bundle = load_digits()
    images = torch.as_tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(bundle.target, dtype=torch.long)
    rest, test = train_test_split(range(len(labels)), test_size=_TEST_IMAGES, stratify=labels, random_state=_SPLIT_SEED)
    train, validation = train_test_split(
        rest, test_size=_VALIDATION_IMAGES, stratify=labels[rest], random_state=_SPLIT_SEED
    )
    shown = torch.zeros(len(labels), dtype=torch.bool)
    shown[_chosen(torch.as_tensor(train), labels, labels_per_class, label_seed)] = True
    visible = labels.masked_fill(~shown, _NO_LABEL)
    return {
        "teacher": Images(images[train], labels[train]),
        "distillation": Images(images[train], visible[train]),
        "baseline": Images(images[shown], labels[shown]),
        "validation": Images(images[validation], labels[validation]),
        "test": Images(images[test], labels[test]),
    }


def _chosen(train: Tensor, labels: Tensor, per_class: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = train[torch.randperm(len(train), generator=generator)]
    return torch.cat([mixed[labels[mixed] == digit][:per_class] for digit in range(10)])
