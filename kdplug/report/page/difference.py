"""Find the test examples for which the saved student and the teacher predict differently, in ``predictions.jsonl``."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from kdplug.report.page.file import damaged, missing, read_lines
from kdplug.report.page.results import DISTILLED, TEACHER, Results

PREDICTIONS = "predictions.jsonl"

SHOWN = 200
"""Maximum number of rows to show."""

_LONGEST = 200
_PLACES = 8
_NOT_COMPARED = (None, "tokens")


@dataclass(frozen=True, slots=True)
class Row:
    """One example: its input, label and both predictions as text, and which model is right."""

    id: int | str
    input: str
    label: str
    teacher: str
    student: str
    probability: float | None
    right: str


@dataclass(slots=True)
class Differences:
    """The rows to show, the number of all differing rows, and the number of test examples."""

    rows: list[Row] = field(default_factory=list)
    total: int = 0
    examples: int = 0
    right: Counter[str] = field(default_factory=Counter)
    order: str = ""


def read_differences(folder: Path, results: Results) -> Differences | None:
    """Return the differences; ``None`` if the task returns no predictions that can be compared.

    Raises: ``RunError`` for a missing or damaged file.
    """
    if results.target in _NOT_COMPARED or TEACHER not in results.arms:
        return None
    file = folder / PREDICTIONS
    try:
        teacher = {line["id"]: line["prediction"] for line in _rows(file, TEACHER, None)}
        return _compared(file, teacher, results)
    except FileNotFoundError:
        raise missing(file) from None
    except OSError as error:
        raise damaged(file, error.strerror) from error


def _compared(file: Path, teacher: dict[int | str, Any], results: Results) -> Differences | None:
    is_number = results.target == "number"
    found, place = Differences(), count()
    kept: list[tuple[float, int, Row]] = []
    for line in _rows(file, DISTILLED, results.saved):
        if line["id"] not in teacher:
            continue
        found.examples += 1
        other = teacher[line["id"]]
        if _is_same(line["prediction"], other, results.target):
            continue
        found.total += 1
        right = "" if is_number else _right(line, other, results.target)
        found.right[right] += 1
        rank = abs(_number(line["prediction"]) - _number(other)) if is_number else _confidence(line)
        item = (rank, -next(place), _row(line, other, right, results.target))
        (heapq.heappush if len(kept) < SHOWN else heapq.heappushpop)(kept, item)
    if not found.examples:
        return None
    found.rows = [row for _, _, row in sorted(kept, reverse=True)]
    if is_number:
        found.order = "largest difference first"
    elif any(row.probability is not None for row in found.rows):
        found.order = "highest probability of the student's prediction first"
    else:
        found.order = "in the order of the test part"
    return found


def _rows(file: Path, arm: str, seed: int | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of one arm, and of one seed if given, that have a prediction."""
    for number, line in read_lines(file, with_text=arm):
        if not isinstance(line.get("id"), (int, str)) or not isinstance(line.get("arm"), str):
            raise damaged(file, f"line {number} must have the keys arm (a string) and id (a whole number or a string)")
        if line["arm"] == arm and seed in (None, line.get("seed")) and line.get("prediction") is not None:
            yield line


def _is_same(one: Any, other: Any, target: str | None) -> bool:
    if target == "classes" and isinstance(one, list) and isinstance(other, list):
        return sorted(map(str, one)) == sorted(map(str, other))
    return bool(one == other)


def _right(line: dict[str, Any], teacher: Any, target: str | None) -> str:
    label = line.get("label")
    if label is None:
        return ""
    if _is_same(teacher, label, target):
        return TEACHER
    return "student" if _is_same(line["prediction"], label, target) else "neither"


def _row(line: dict[str, Any], teacher: Any, right: str, target: str | None) -> Row:
    label, student = line.get("label"), line["prediction"]
    if target == "tags" and isinstance(teacher, list) and isinstance(student, list) and len(teacher) == len(student):
        texts = _differing(label, teacher, student)
    else:
        texts = (_text(label), _text(teacher), _text(student))
    probability = line.get("probability")
    return Row(
        line["id"],
        _text(line.get("input")),
        *texts,
        float(probability) if isinstance(probability, (int, float)) else None,
        right,
    )


def _differing(label: Any, teacher: list[Any], student: list[Any]) -> tuple[str, str, str]:
    """Return labels and predictions at the positions at which the predictions differ, each with its position."""
    labels = label if isinstance(label, list) and len(label) == len(teacher) else [""] * len(teacher)
    places = [place for place, (one, other) in enumerate(zip(teacher, student, strict=True)) if one != other]
    more = f" … {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    texts = [
        ", ".join(f"{place + 1}: {_text(values[place])}" for place in places[:_PLACES]) + more
        for values in (labels, teacher, student)
    ]
    return texts[0], texts[1], texts[2]


def _text(value: Any) -> str:
    if isinstance(value, list):
        text = ", ".join(map(str, value)) or "none"
    elif isinstance(value, float):
        text = f"{value:.5g}"
    else:
        text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _confidence(line: dict[str, Any]) -> float:
    value = line.get("probability")
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else 0.0
