"""Read targets that are one of several classes, and compute their loss and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from typing import Any

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from torch.nn import functional

from kdplug import LossSum, Outputs, Prediction, Predictions
from kdplug_tasks.data.classes import find_labels
from kdplug_tasks.data.label import NO_LABEL, Labels
from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.models.config import check_problem

_PROBLEM = "single_label_classification"


class Category:
    """A class for each row. ``names``, if given, are the classes in the order of the outputs."""

    columns: tuple[str, ...] = ("label",)
    metric = "accuracy"

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = names
        self.labels = Labels(())

    def settle(self, source: Source, teacher: Any) -> dict[str, Any]:
        """Determine the classes; return their config values."""
        check_problem(teacher, _PROBLEM)
        self.labels = find_labels(self.names, teacher, source, "label", may_lack=True)
        return {**self.labels.to_config, "problem_type": _PROBLEM}

    def read(self, table: Table, *, optional: bool) -> list[int]:
        """Return the class number of each row, ``-100`` if it has none."""
        return self.labels.indices(table, "label", optional=optional)

    def collate(self, values: Sequence[int]) -> Tensor:
        """Return class numbers ``[batch]``."""
        return torch.tensor(values, dtype=torch.long)

    def adapted(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the cross-entropy in nats over the rows that have a class."""
        return {"losses": cross_entropy_sum(logits, targets), "labels": targets}

    def rows(self, logits: Tensor, targets: Tensor) -> list[Prediction]:
        """Return 1 or 0 for each row, whether the class with the largest logit is right, and both classes."""
        names = self.labels.names
        chances, found = logits.softmax(dim=-1).max(dim=-1)
        return [
            {"score": float(one == true), "label": names[true], "prediction": names[one], "probability": chance}
            for true, one, chance in zip(targets.tolist(), found.tolist(), chances.tolist(), strict=True)
        ]

    def predictions(self, rows: Sequence[Prediction]) -> Predictions:
        """Return the rows with accuracy, and F1 averaged over the classes that occur."""
        true, found = [row["label"] for row in rows], [row["prediction"] for row in rows]
        macro = f1_score(true, found, average="macro", zero_division=0)
        return Predictions({"accuracy": float(accuracy_score(true, found)), "macro_f1": float(macro)}, rows)

    def review(self, source: Source) -> Iterator[tuple[str, str]]:
        """Yield warnings about the classes."""
        return self.labels.review(source)

    def about(self) -> str:
        """Describe the classes."""
        shown = ", ".join(self.labels.names[:5]) + (", …" if len(self.labels) > 5 else ".")
        return f"{len(self.labels)} classes{self.labels.about}: {shown}{self.labels.about_untrained}"


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> LossSum:
    """Return the summed cross-entropy of items with a label, in nats and at least float32, and their number.

    Shapes: ``logits [*items, classes]``, ``labels [*items]``, ``-100`` = none.
    """
    flat, chosen = at_least_float32(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)
    total = functional.cross_entropy(flat, chosen, reduction="sum", ignore_index=NO_LABEL)
    return LossSum(total, (chosen != NO_LABEL).sum())


_WITHIN, _DISTINCT = 2.0, 6.0
"""Standard deviations from chance: an accuracy within the first is noise; a perfect teacher must reach the second."""


def review_accuracy(outputs: Iterable[Outputs]) -> Iterator[tuple[str, str]]:
    """Yield a warning if a trained teacher predicts no better than the most frequent class, up to noise.

    Yield nothing if there are too few labels to judge, or outputs without class labels.
    """
    found, true = [], []
    for one in outputs:
        logits, labels = (one.logits or (None,))[0], (one.labels or (None,))[0]
        if not isinstance(logits, Tensor) or labels is None:
            return
        counts = labels != NO_LABEL
        found.append(logits.argmax(dim=-1)[counts].cpu())
        true.append(labels[counts].cpu())
    classes = torch.cat(true)
    count = len(classes)
    if not count:
        return
    accuracy = float((torch.cat(found) == classes).double().mean())
    most = int(classes.bincount().max()) / count
    noise = sqrt(most * (1 - most) / count)
    if noise and 1 - most >= _DISTINCT * noise and accuracy <= most + _WITHIN * noise:
        message = (
            f"the teacher is right on {accuracy:.1%} of the {count} labelled items in the first batches, no better than chance: the "
            f"most frequent class has {most:.1%}. Check that the teacher was trained for these classes, in this order; set teacher.train: true "
            "to train the teacher first"
        )
        yield "teacher.path", message
