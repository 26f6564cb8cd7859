"""Read ``history.jsonl`` of a training run: the loss terms and the validation metrics, by optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdplug.report.page.file import damaged, read_lines

HISTORY = "history.jsonl"
Series = list[tuple[float, float]]
"""Pairs of an optimizer step and the value at it."""

_LARGEST = 1e100
"""Values above this are omitted, like infinite ones."""

_POINTS = 250
"""Maximum number of points of a term; if there are more steps, they are averaged in groups."""


@dataclass(slots=True)
class History:
    """A run's loss terms and validation metric. Each point of a term is the mean of ``group`` steps.

    ``is_weighted`` is true if the weight of each term is known. ``left_out`` counts values that were not finite.
    """

    terms: dict[str, Series] = field(default_factory=dict)
    validation: Series = field(default_factory=list)
    group: int = 1
    is_weighted: bool = True
    left_out: int = 0


def read_history(file: Path, metric: str, weights: Mapping[str, float]) -> History | None:
    """Read a history; return ``None`` if the file does not exist. ``weights`` apply to lines that contain no weights.

    ``metric`` is the name of the metric to read from evaluations.

    Raises: ``RunError`` for a damaged file.
    """
    try:
        with file.open("rb") as stream:
            steps = sum(b'"terms"' in line for line in stream)
        found = History(group=max(1, math.ceil(steps / _POINTS)))
        for group in _groups(file, metric, found):
            _average(group, found, weights)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise damaged(file, error.strerror) from error
    found.terms = {name: series for name, series in found.terms.items() if series}
    return found


def _groups(file: Path, metric: str, found: History) -> Iterator[list[dict[str, Any]]]:
    """Yield the lines with terms in groups; validation metrics are stored in ``found``."""
    group: list[dict[str, Any]] = []
    for _, line in _checked(file):
        if metric in line.get("validation", {}):
            value = line["validation"][metric]
            if value is not None and abs(value) < _LARGEST:
                found.validation.append((line["step"], value))
            else:
                found.left_out += 1
        if "terms" in line:
            group.append(line)
            if len(group) == found.group:
                yield group
                group = []
    if group:
        yield group


def _average(group: Sequence[dict[str, Any]], found: History, weights: Mapping[str, float]) -> None:
    step = sum(line["step"] for line in group) / len(group)
    sums: dict[str, tuple[float, int]] = {}
    for line in group:
        for name, value in line["terms"].items():
            weight = line.get("weights", weights).get(name)
            if weight is None:
                found.is_weighted = False
            weighted = value if weight is None else value * weight
            if not abs(weighted) < _LARGEST:
                found.left_out += 1
                continue
            total, count = sums.get(name, (0.0, 0))
            sums[name] = total + weighted, count + 1
    for name, (total, count) in sums.items():
        found.terms.setdefault(name, []).append((step, total / count))


def _checked(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(file):
        for problem in _problems(line):
            raise damaged(file, f"line {number}: {problem}")
        yield number, line


def _problems(line: Mapping[str, Any]) -> Iterator[str]:
    if type(line.get("step")) is not int or line["step"] < 0:
        yield "step must be a whole number of at least 0"
    for key in ("validation", "terms", "weights"):
        values = line.get(key, {})
        is_known = isinstance(values, dict) and all(
            _is_number(value) or (value is None and key == "validation") for value in values.values()
        )
        if not is_known:
            yield f"{key} must be an object whose values are numbers"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
