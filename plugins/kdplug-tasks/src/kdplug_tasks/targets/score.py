"""Read targets that are numbers, and compute their loss and metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

import kdplug
from kdplug import Prediction, Predictions
from kdplug_tasks.data.label import UNLABELLED_ROW, is_missing
from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.models.config import check_problem
from kdplug_tasks.targets.category import at_least_float32


def pearson(found: Tensor, true: Tensor) -> float:
    """Return the Pearson correlation; 0 if one side is constant, where it is undefined."""
    from scipy.stats import pearsonr

    if _is_constant(found) or _is_constant(true):
        return 0.0
    return float(pearsonr(found.double().numpy(), true.double().numpy()).statistic)


def spearman(found: Tensor, true: Tensor) -> float:
    """Return the Spearman rank correlation; 0 if one side is constant, where it is undefined."""
    from scipy.stats import spearmanr

    if _is_constant(found) or _is_constant(true):
        return 0.0
    return float(spearmanr(found.double().numpy(), true.double().numpy()).statistic)


def _is_constant(values: Tensor) -> bool:
    spread = float(values.max() - values.min()) if len(values) else 0.0
    return len(values) < 2 or spread <= 1e-7 * float(values.abs().max())


_NONE = math.nan
_SIDES: tuple[Literal["label"], Literal["prediction"]] = ("label", "prediction")
_PROBLEM = "regression"


class Score:
    """A number for each row, predicted by a model's single output with squared error."""

    columns: tuple[str, ...] = ("label",)
    metric = "pearson"

    def settle(self, source: Source, teacher: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return the config values of a model with one output."""
        check_problem(teacher, _PROBLEM)
        if teacher is not None and teacher.num_labels != 1:
            raise kdplug.ConfigError(
                f"the teacher has {teacher.num_labels} outputs, but the task needs one. Use the task of the teacher, or set teacher.train: "
                "true to train the teacher for this task",
                field="teacher.path",
            )
        return {"num_labels": 1, "problem_type": _PROBLEM}

    def read(self, table: Table, *, optional: bool) -> list[float]:
        """Return the number of each row, ``nan`` if it has none."""
        if "label" not in table.columns:
            return [_NONE] * len(table)
        return [_number(value, table, row, optional=optional) for row, value in enumerate(table.columns["label"])]

    def collate(self, values: Sequence[float]) -> Tensor:
        """Return numbers ``[batch]``."""
        return torch.tensor(values, dtype=torch.float32)

    def adapted(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the squared error over the rows that have a number."""
        given = ~targets.isnan()
        error = (at_least_float32(logits.squeeze(-1)) - targets.where(given, 0.0)).square()
        return {"losses": kdplug.LossSum(error.where(given, 0.0).sum(), given.sum())}

    def rows(self, logits: Tensor, targets: Tensor) -> list[Prediction]:
        """Return both numbers of each row, from which the correlation follows. Its score is the negative squared error."""
        pairs = zip(targets.tolist(), logits.squeeze(-1).tolist(), strict=True)
        return [{"score": -((found - true) ** 2), "label": true, "prediction": found} for true, found in pairs]

    def predictions(self, rows: Sequence[Prediction]) -> Predictions:
        """Return the rows with Pearson and Spearman correlation, and root mean squared error."""
        true, found = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in _SIDES)
        error = (found - true).square().mean().sqrt()
        metrics = {"pearson": pearson(found, true), "spearman": spearman(found, true), "rmse": float(error)}
        return Predictions(metrics, rows, "pearson", "number")

    def review(self, source: Source) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """Return no warnings: numbers have no classes."""
        return ()

    def about(self) -> str:
        """Return an empty string: there are no classes to describe."""
        return ""


def _number(value: Any, table: Table, row: int, *, optional: bool) -> float:
    if is_missing(value):
        if optional:
            return _NONE
        raise table.error(UNLABELLED_ROW, row)
    try:
        found = math.inf if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.inf
    if not abs(found) <= torch.finfo(torch.float32).max:
        raise table.error(f"the label must be a finite number in the range of float32, got {str(value)[:40]!r}", row)
    return found
