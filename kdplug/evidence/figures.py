"""Compute statistics from a model's predictions: metrics per class, confusion matrix, calibration, teacher agreement.

Each function returns plain data for ``metrics.json``. It returns ``None`` if the statistic is undefined: for another
kind of target, for rows without labels or probabilities, or for more than ``MOST_CLASSES`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdplug.errors import ConfigError
from kdplug.evidence.rows import Row, checked_rows

if TYPE_CHECKING:
    from torch import Tensor

    from kdplug.contracts.task import Target

MOST_CLASSES = 1000
BINS = 15

Rows = Iterable[Mapping[str, Any]]


def per_class(rows: Rows, target: Target) -> dict[str, list[Any]] | None:
    """Return the lists ``classes``, ``precision``, ``recall``, ``f1`` and ``support``, with one value for each class.

    The values are means over seeds. A precision of ``None`` means that the class was never predicted, and a recall of
    ``None`` that no example has the class. Targets: ``class``, ``tags``, ``classes``.
    """
    if target not in ("class", "tags", "classes"):
        return None
    seeds = _by_seed(_labelled(rows))
    classes = _classes((row for part in seeds for row in part), target)
    if classes is None:
        return None
    counts = [_stat_scores(part, classes, target) for part in seeds]
    ratios = [[_ratios(*scores) for scores in seed] for seed in counts]
    names = ("precision", "recall", "f1", "support")
    columns: dict[str, list[Any]] = {"classes": list(classes)}
    for place, name in enumerate(names):
        columns[name] = [_mean([seed[number][place] for seed in ratios]) for number in range(len(classes))]
    columns["support"] = [round(value) if float(value).is_integer() else value for value in columns["support"]]
    return columns


def confusion(rows: Rows, target: Target) -> dict[str, list[Any]] | None:
    """Return ``classes`` and ``counts``. For each true class, ``counts`` has a list with the count of each predicted class.

    Counts are summed over seeds. Targets: ``class``, ``tags``.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    if target not in ("class", "tags"):
        return None
    found = _labelled(rows)
    classes = _classes(found, target)
    if classes is None:
        return None
    labels, predictions = _indices(found, classes, target)
    counts = multiclass_confusion_matrix(predictions, labels, num_classes=max(len(classes), 2), validate_args=False)
    return {"classes": list(classes), "counts": counts[: len(classes), : len(classes)].tolist()}


def calibration(rows: Rows, target: Target) -> dict[str, Any] | None:
    """Return the expected calibration ``error`` and the ``bins`` with their ``confidence``, ``accuracy`` and ``count``.

    The bins have equal widths, and bins without predictions are omitted. All seeds are pooled. Targets: ``class``,
    ``tags``.

    Raises: ``ConfigError`` if a probability is not between 0 and 1.
    """
    import torch
    from scipy.stats import binned_statistic
    from torchmetrics.functional.classification import binary_calibration_error

    if target not in ("class", "tags"):
        return None
    confidence: list[float] = []
    is_correct: list[bool] = []
    for row in _labelled(rows):
        if row.get("probability") is None:
            continue
        items = list(items_of(row, target))
        confidence += _probabilities(row, target, len(items))
        is_correct += [label == prediction for label, prediction in items]
    if not confidence:
        return None
    # torchmetrics puts a probability of exactly 1 into a bin above the last one
    chances = torch.tensor(confidence, dtype=torch.float32).clamp(max=1 - torch.finfo(torch.float32).eps)
    hits, edges = torch.tensor(is_correct, dtype=torch.int64), torch.linspace(0, 1, BINS + 1)
    error = binary_calibration_error(chances, hits, n_bins=BINS, norm="l1", validate_args=False)
    count, mean, accuracy = (
        binned_statistic(chances, values, statistic, bins=edges).statistic
        for values, statistic in ((hits, "count"), (confidence, "mean"), (hits, "mean"))
    )
    bins = [
        {"confidence": float(mean[place]), "accuracy": float(accuracy[place]), "count": int(count[place])}
        for place in range(BINS)
        if count[place]
    ]
    return {"error": float(error), "bins": bins}


def agreement(student: Rows, teacher: Rows, target: Target = "class") -> dict[str, float | None] | None:
    """Return the share of items on which the student agrees with the teacher, if the teacher is right and if it is wrong.

    The keys are ``teacher_right`` and ``teacher_wrong``. An item is an example, or a tag of it. The student's rows may
    have several seeds, the teacher's only one. A share of no items is ``None``. Targets: ``class``, ``tags``,
    ``classes``.
    """
    if target not in ("class", "tags", "classes"):
        return None
    agreed: dict[bool, list[bool]] = {True: [], False: []}
    for one, other in _matched(student, teacher):
        for (label, prediction), (_, by_teacher) in zip(items_of(one, target), items_of(other, target), strict=True):
            agreed[by_teacher == label].append(prediction == by_teacher)
    if not (agreed[True] or agreed[False]):
        return None
    return {"teacher_right": _mean(agreed[True]), "teacher_wrong": _mean(agreed[False])}


def disagreements(student: Rows, teacher: Rows, target: Target = "class") -> list[tuple[int, str | int]] | None:
    """Return the seed and id of each row of the student whose prediction differs from the teacher's.

    Targets: ``class``, ``tags``, ``classes``.
    """
    if target not in ("class", "tags", "classes"):
        return None
    return [
        (one["seed"], one["id"])
        for one, other in _matched(student, teacher)
        if [item[1] for item in items_of(one, target)] != [item[1] for item in items_of(other, target)]
    ]


def gap_closed(distilled: float, no_teacher: float, teacher: float, is_lower_better: bool = False) -> float | None:
    """Return the share of the gap between teacher and control that distillation closes.

    ``None`` if the teacher is not better than the control, or a metric is not finite.
    """
    sign = -1.0 if is_lower_better else 1.0
    gap, gain = sign * (teacher - no_teacher), sign * (distilled - no_teacher)
    return gain / gap if math.isfinite(gap) and math.isfinite(gain) and gap > 0 else None


def _labelled(rows: Rows) -> list[Row]:
    return [
        row for row in checked_rows(rows, "rows") if row.get("label") is not None and row.get("prediction") is not None
    ]


def _by_seed(rows: Iterable[Row]) -> list[list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["seed"], []).append(row)
    return list(found.values())


def _matched(student: Rows, teacher: Rows) -> Iterable[tuple[Row, Row]]:
    """Yield each labelled row of the student with the teacher's row of the same id.

    Raises: ``ConfigError`` if the teacher has no row for an id, or more than one.
    """
    known: dict[str | int, Row] = {}
    for row in _labelled(teacher):
        if row["id"] in known:
            raise ConfigError(f"contains the example {row['id']!r} twice. Pass the rows of one seed", field="teacher")
        known[row["id"]] = row
    if not known:
        return
    for row in _labelled(student):
        if row["id"] not in known:
            raise ConfigError(
                f"lacks the example {row['id']!r}, which the student has. Pass predictions of both for the same examples",
                field="teacher",
            )
        yield row, known[row["id"]]


def items_of(row: Row, target: Target) -> Iterable[tuple[Hashable, Hashable]]:
    """Return the label and the prediction of each item of a row; those of a multi-label example are sets."""
    label, prediction = row["label"], row["prediction"]
    if target == "class":
        return [(_name(label, row), _name(prediction, row))]
    for key in ("label", "prediction"):
        if not isinstance(row[key], (list, tuple)):
            raise ConfigError(
                f"must be a list for the target {target!r}, got {row[key]!r} (example {row['id']!r})", field=key
            )
    if target == "classes":
        return [tuple(frozenset(_name(name, row) for name in names) for names in (label, prediction))]  # type: ignore[list-item]
    if len(label) != len(prediction):
        raise ConfigError(
            f"must have as many entries as label, {len(label)}, got {len(prediction)} (example {row['id']!r})",
            field="prediction",
        )
    return [(_name(one, row), _name(other, row)) for one, other in zip(label, prediction, strict=True)]


def _name(value: object, row: Row) -> Hashable:
    if isinstance(value, (str, int)):
        return value
    index = getattr(value, "__index__", None)  # a numpy integer
    if index is None:
        problem = f"a class must be a string or a whole number, got {value!r} (example {row['id']!r})"
        raise ConfigError(problem, field="label")
    return int(index())


def _classes(rows: Iterable[Row], target: Target) -> dict[Hashable, int] | None:
    """Return the index of each class that occurs as label or prediction, in sorted order."""
    found: set[Hashable] = set()
    for row in rows:
        for pair in items_of(row, target):
            found.update(*pair) if target == "classes" else found.update(pair)  # type: ignore[arg-type]
    if not found or len(found) > MOST_CLASSES:
        return None
    ordered = sorted(found, key=lambda name: (isinstance(name, str), name))
    return {name: number for number, name in enumerate(ordered)}


def _indices(rows: Sequence[Row], classes: Mapping[Hashable, int], target: Target) -> tuple[Tensor, Tensor]:
    import torch

    pairs = [pair for row in rows for pair in items_of(row, target)]
    labels = torch.tensor([classes[label] for label, _ in pairs], dtype=torch.int64)
    return labels, torch.tensor([classes[prediction] for _, prediction in pairs], dtype=torch.int64)


def _stat_scores(rows: Sequence[Row], classes: Mapping[Hashable, int], target: Target) -> list[list[int]]:
    """Return the counts of true and false positives and negatives, and the support, of each class."""
    import torch
    from torchmetrics.functional.classification import multiclass_stat_scores, multilabel_stat_scores

    if target != "classes":
        labels, predictions = _indices(rows, classes, target)
        found = multiclass_stat_scores(
            predictions, labels, num_classes=max(len(classes), 2), average="none", validate_args=False
        )
    else:
        flags = torch.zeros(2, len(rows), len(classes), dtype=torch.int64)
        for number, row in enumerate(rows):
            for side, names in enumerate(next(iter(items_of(row, target)))):
                flags[side, number, [classes[name] for name in names]] = 1  # type: ignore[attr-defined]
        found = multilabel_stat_scores(
            flags[1], flags[0], num_labels=len(classes), average="none", validate_args=False
        ).reshape(len(classes), -1)
    return [[int(value) for value in row] for row in found[: len(classes)].tolist()]


def _ratios(tp: int, fp: int, _: int, fn: int, support: int) -> tuple[float | None, float | None, float | None, int]:
    return _ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn), support


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _probabilities(row: Row, target: Target, count: int) -> list[float]:
    value = row["probability"]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    is_valid = all(isinstance(item, (int, float)) and 0 <= item <= 1 for item in values)
    if len(values) != count or not is_valid:
        shape = "a number between 0 and 1" if target == "class" else f"a list of {count} numbers between 0 and 1"
        raise ConfigError(f"must be {shape}, got {value!r} (example {row['id']!r})", field="probability")
    return [float(item) for item in values]
