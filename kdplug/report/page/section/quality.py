"""Report sections: agreement of student and teacher, confusion matrices, calibration, and metrics of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdplug.report.page.chart import Reliability, reliability
from kdplug.report.page.results import CONTROL, DISTILLED, NAMES, TEACHER, Confusion, PerClass, Results
from kdplug.report.page.section.verdict import signed

_MATRIX = 25
"""Maximum number of classes of a matrix; if there are more, the most frequent confusions are listed."""

_PAIRS = 15
_CLASSES = 200
_SHADES = 8


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix: for each true class its cells (count and shade), or a list of the most frequent confusions."""

    key: str
    name: str
    classes: list[str]
    rows: list[tuple[str, list[tuple[int, int]]]]
    pairs: list[tuple[str, str, int]]
    errors: int


def matrices(results: Results) -> list[Matrix]:
    """Return the confusion matrix of each arm that has one."""
    return [
        _matrix(name, arm.confusion)
        for name, arm in results.ordered.items()
        if arm.confusion is not None and arm.confusion.classes
    ]


def _matrix(arm: str, confusion: Confusion) -> Matrix:
    classes, counts = confusion.classes, confusion.counts
    errors = sum(sum(row) - row[place] for place, row in enumerate(counts))
    if len(classes) <= _MATRIX:
        rows = [
            (classes[place], [(count, _shade(count, sum(row))) for count in row]) for place, row in enumerate(counts)
        ]
        return Matrix(f"confusion-{arm}", NAMES[arm], classes, rows, [], errors)
    found = [
        (count, classes[true], classes[predicted])
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    found.sort(key=lambda one: -one[0])
    pairs = [(true, predicted, count) for count, true, predicted in found[:_PAIRS]]
    return Matrix(f"confusion-{arm}", NAMES[arm], classes, [], pairs, errors)


def _shade(count: int, total: int) -> int:
    return 0 if not count else max(1, round(_SHADES * count / total))


def reliability_diagrams(results: Results) -> list[Reliability]:
    """Return the reliability diagram of each arm that has one."""
    found = []
    for name, arm in results.ordered.items():
        if arm.calibration is None:
            continue
        bins = [
            (one.confidence, one.accuracy, one.count)
            for one in arm.calibration.bins
            if one.count > 0 and one.confidence is not None and one.accuracy is not None
        ]
        if bins:
            found.append(reliability(f"reliability-{name}", NAMES[name], f"arm-{name}", arm.calibration.error, bins))
    return found


@dataclass(frozen=True, slots=True)
class ClassTable:
    """F1, precision and recall of each class for each arm; ``total`` is the number of all classes."""

    arms: list[tuple[str, str]]
    rows: list[tuple[str, str, list[str], str]]
    details: list[tuple[str, list[tuple[str, str]]]]
    total: int


def class_table(results: Results) -> ClassTable | None:
    """Return the table of classes, or of the most frequent ones; ``None`` if no arm has metrics of each class."""
    arms = {
        name: arm.per_class
        for name, arm in results.ordered.items()
        if arm.per_class is not None and arm.per_class.classes
    }
    if not arms:
        return None
    first = next(iter(arms.values()))
    places = sorted(range(len(first.classes)), key=lambda place: -first.support[place])[:_CLASSES]
    found: dict[str, dict[str, int]] = {
        name: {label: place for place, label in enumerate(one.classes)} for name, one in arms.items()
    }
    rows, details = [], []
    for place in sorted(places):
        label = first.classes[place]
        here = {name: found[name].get(label) for name in arms}
        rows.append(
            (
                label,
                f"{first.support[place]:,.4g}",
                [_share(_at(arms[name].f1, here[name])) for name in arms],
                _difference(arms, here),
            )
        )
        pairs = [(_share(_at(arms[n].precision, here[n])), _share(_at(arms[n].recall, here[n]))) for n in arms]
        details.append((label, pairs))
    return ClassTable([(f"arm-{name}", NAMES[name]) for name in arms], rows, details, len(first.classes))


def _difference(arms: dict[str, PerClass], here: dict[str, int | None]) -> str:
    pair = [_at(arms[name].f1, here[name]) if name in arms else None for name in (DISTILLED, CONTROL)]
    return "" if pair[0] is None or pair[1] is None else signed(pair[0] - pair[1])


def _at(values: Sequence[float | None], place: int | None) -> float | None:
    return None if place is None else values[place]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


@dataclass(frozen=True, slots=True)
class AgreementView:
    """Rows of name, share and meaning: the share of items for which student and teacher predict the same."""

    rows: list[tuple[str, float, str]]


def agreement(results: Results) -> AgreementView | None:
    """Return the agreement of student and teacher, if the run measured it."""
    if results.agreement is None or TEACHER not in results.arms:
        return None
    rows = [
        ("Where the teacher is right", results.agreement.teacher_right, "the student is right too"),
        ("Where the teacher is wrong", results.agreement.teacher_wrong, "the student repeats its error"),
    ]
    known = [(name, share, meaning) for name, share, meaning in rows if share is not None]
    return AgreementView(known) if known else None
