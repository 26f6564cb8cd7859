"""SimKD: a student that reuses the teacher's classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import kdplug


class Reuser(nn.Module):
    """A student whose last feature map is projected to the teacher's width and classified by the teacher's classifier.

    The projector is 1x1, 3x3, 1x1 convolutions with batch norm and ReLU; its middle has the teacher's width divided by
    ``factor``. ``own`` is the name of the student's classifier, which is not used.
    """

    def __init__(
        self, student: nn.Module, classifier: nn.Module, own: str, widths: tuple[int, int], factor: int
    ) -> None:
        super().__init__()
        student.get_submodule(own).requires_grad_(False)
        narrow, middle = widths[0], max(1, widths[1] // factor)
        steps = ((narrow, middle, 1), (middle, middle, 3), (middle, widths[1], 1))
        self.student, self.classifier = student, classifier.requires_grad_(False)
        self.projector = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inner, outer, size, padding=size // 2, bias=False), nn.BatchNorm2d(outer), nn.ReLU()
                )
                for inner, outer, size in steps
            )
        )

    def forward(self, *inputs: Any, labels: Tensor | None = None, **more: Any) -> dict[str, Any]:
        """Return logits, the student's features followed by the projected one, and the losses on labels."""
        hidden = self.student(*inputs, **more)["hidden"]
        side = math.isqrt(hidden[-1].shape[1])
        maps: Tensor = self.projector(hidden[-1].transpose(1, 2).unflatten(2, (side, side)))
        projected = maps.flatten(2).transpose(1, 2)
        logits = self.classifier(projected.mean(dim=1))
        found = {"logits": logits, "hidden": (*hidden, projected)}
        if labels is None:
            return found
        total = cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        return {**found, "losses": kdplug.LossSum(total, (labels != -100).sum())}


class SimKD(kdplug.WrappedTask):
    """The student gets a projector and the trained teacher's classifier; the loss is a match of the projected features.

    The models of ``base`` return ``hidden`` as [batch, positions, width], and their classifier reads the mean over the
    positions of the last one, as those of the task digits do. Match the student's last feature with the teacher's last.

    Settings: ``base``, the task; ``classifier``, the name of the models' classifier; ``factor``, by which the projector
    is narrower than the teacher, 2 in the paper.

    Source: Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier", arXiv:2203.14001, section 3.
    """

    starts_student = True

    def __init__(self, *, base: kdplug.BaseTask, classifier: str = "head", factor: int = 2) -> None:
        super().__init__(base=base)
        self.classifier, self.factor = classifier, factor

    def build_student(self) -> nn.Module:
        """Return the student of the base with a projector and an untrained classifier of the teacher's size."""
        student, teacher = self.base.build_student(), self.base.build_teacher()
        own, reused = (model.get_submodule(self.classifier) for model in (student, teacher))
        widths = own.in_features, reused.in_features
        return Reuser(student, reused, self.classifier, widths, self.factor)

    def start_student(self, student: nn.Module, teacher: nn.Module) -> None:
        """Copy the weights of the trained teacher's classifier."""
        weights: Mapping[str, Tensor] = teacher.get_submodule(self.classifier).state_dict()
        student.get_submodule("classifier").load_state_dict(weights)
