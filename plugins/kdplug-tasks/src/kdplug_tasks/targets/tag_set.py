"""Read targets with any number of classes, and compute their loss and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional

from kdplug import LossSum, Prediction, Predictions
from kdplug_tasks.data.classes import find_labels
from kdplug_tasks.data.label import NO_LABEL, Labels, is_missing, written
from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.models.config import check_problem
from kdplug_tasks.targets.category import at_least_float32

_PROBLEM = "multi_label_classification"
_SIDES: tuple[Literal["label"], Literal["prediction"]] = ("label", "prediction")


class TagSet:
    """The classes of each row, as independent binary decisions.

    In the data they are a list, or text split at ``separator``; empty text means no class. A row for distillation whose
    cell is null, or whose table has no such column, has no target.
    """

    columns: tuple[str, ...] = ("labels",)
    metric = "micro_f1"

    def __init__(self, names: Sequence[str] | None, separator: str) -> None:
        self.names = names
        self.separator = separator
        self.labels = Labels(())

    def settle(self, source: Source, teacher: Any) -> dict[str, Any]:
        """Determine the classes; return their config values."""
        check_problem(teacher, _PROBLEM)
        self.labels = find_labels(self.names, teacher, source, "labels", self._cells)
        self._check_one_hot(source.tables)
        return {**self.labels.to_config, "problem_type": _PROBLEM}

    def read(self, table: Table, *, optional: bool) -> list[list[int]]:
        """Return zeros and ones for each row; all ``-100`` if it has no target."""
        none = [NO_LABEL] * len(self.labels)
        if "labels" not in table.columns:
            return [none] * len(table)
        found = []
        for row, cell in enumerate(table.columns["labels"]):
            if cell is None and not optional:
                fix = "Write an empty list if no class applies, or move rows without labels to a file named in data.distillation"
                raise table.error(f"there are no labels. {fix}", row)
            found.append(none if cell is None else self._row(cell, table, row))
        return found

    def collate(self, values: Sequence[list[int]]) -> Tensor:
        """Return zeros and ones ``[batch, classes]``."""
        return torch.tensor(values, dtype=torch.long)

    def adapted(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the binary cross-entropy in nats over the classes of rows that have a target."""
        given = targets != NO_LABEL
        wide = at_least_float32(logits)
        loss = functional.binary_cross_entropy_with_logits(
            wide, targets.where(given, 0).to(wide.dtype), reduction="none"
        )
        return {"losses": LossSum(loss.where(given, 0.0).sum(), given.sum())}

    def rows(self, logits: Tensor, targets: Tensor) -> list[Prediction]:
        """Return the F1 of each row, with the number of its true and predicted classes as weight, and these classes.

        The weighted mean is micro F1.
        """
        found: list[Prediction] = []
        for true, predicted in zip(targets.bool().tolist(), (logits > 0).tolist(), strict=True):
            label, prediction = self._names(true), self._names(predicted)
            right, total = len({*label} & {*prediction}), len(label) + len(prediction)
            score = 2 * right / total if total else 0.0
            found.append({"score": score, "weight": float(total), "label": label, "prediction": prediction})
        return found

    def predictions(self, rows: Sequence[Prediction]) -> Predictions:
        """Return the rows with micro F1, macro F1, and the share of rows with all classes correct."""
        true, found = ([[name in row[key] for name in self.labels.names] for row in rows] for key in _SIDES)
        scores = {
            f"{kind}_f1": float(f1_score(true, found, average=kind, zero_division=0)) for kind in ("micro", "macro")
        }
        right = sum(row["label"] == row["prediction"] for row in rows)
        return Predictions({**scores, "exact_match": right / len(rows)}, rows, target="classes")

    def review(self, source: Source) -> Iterator[tuple[str, str]]:
        """Yield warnings about the classes."""
        return self.labels.review(source)

    def about(self) -> str:
        """Describe the classes."""
        return f"{len(self.labels)} classes{self.labels.about}, any number per row.{self.labels.about_untrained}"

    def _names(self, chosen: Sequence[bool]) -> list[str]:
        return [name for name, is_chosen in zip(self.labels.names, chosen, strict=True) if is_chosen]

    def _check_one_hot(self, tables: Iterable[Table]) -> None:
        """Raise ``ConfigError`` if there are two classes and all rows are ``[0, 1]`` or ``[1, 0]``.

        As class numbers, both mean "both classes"; as a value per class, each means one of them.
        """
        if len(self.labels) != 2:
            return
        cells = [
            (table, row, cell)
            for table in tables
            for row, cell in enumerate(table.columns.get("labels", ()))
            if not is_missing(cell)
        ]
        if cells and all(_is_one_hot_pair(self._parts(cell)) for _, _, cell in cells):
            table, row, cell = cells[0]
            raise table.error(
                f"labels is {str(cell)[:40]}. With two classes, [0, 1] and [1, 0] in every row may be a value per class or the numbers of "
                "both classes. Write the names of the classes that apply, or [0] for the first and [1] for the second class",
                row,
            )

    def _row(self, cell: Any, table: Table, row: int) -> list[int]:
        found = [0] * len(self.labels)
        for value in self._parts(cell):
            found[self.labels.index(written(value, table, "labels", row))] = 1
        return found

    def _cells(self, table: Table) -> Iterator[tuple[int, Any]]:
        for row, cell in enumerate(table.columns.get("labels", ())):
            parts = self._parts(cell)
            if _is_multi_hot(parts):
                raise table.error(
                    f"{str(cell)[:40]} looks like a multi-hot vector, but labels lists the classes that apply. Write their "
                    "names or numbers, such as [1, 2] instead of [0, 1, 1]",
                    row,
                )
            yield from ((row, value) for value in parts)

    def _parts(self, cell: Any) -> list[Any]:
        if is_missing(cell):
            return []
        if isinstance(cell, str):
            return [part.strip() for part in cell.split(self.separator) if part.strip()]
        return list(cell) if isinstance(cell, (list, tuple)) else [cell]


def _is_multi_hot(parts: list[Any]) -> bool:
    """Return whether the cell holds truth values, or repeats 0 or 1, as no list of class numbers does."""
    written = [str(part) for part in parts]
    if any(isinstance(part, bool) for part in parts):
        return True
    return len(set(written)) < len(written) and set(written) <= {"0", "1", "0.0", "1.0"}


def _is_one_hot_pair(parts: list[Any]) -> bool:
    return sorted(str(part) for part in parts) in (["0", "1"], ["0.0", "1.0"])
