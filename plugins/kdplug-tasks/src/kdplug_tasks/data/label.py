"""The names of classes, and what a label in the data means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import kdplug
from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table, did_you_mean

NO_LABEL = -100
UNLABELLED = ("-1", "-100")
"""How data write that a row has no label, unless a class has this name."""

_NUMBER = re.compile("0|-?[1-9][0-9]{0,17}")
_SHOWN = 8

Cells: TypeAlias = Callable[[Table], Iterator[tuple[int, Any]]]
"""The row and the value of each label in a table."""


class Written(NamedTuple):
    """A label as the data write it, and the row that it is first seen in."""

    text: str
    table: Table
    row: int

    @property
    def is_number(self) -> bool:
        """Whether it may be the number of a class. One with leading zeros is a name."""
        return _NUMBER.fullmatch(self.text) is not None


@dataclass(frozen=True, slots=True)
class Labels:
    """Class names in the order of a model's outputs.

    ``are_placeholders`` says that they are ``LABEL_0``, ``LABEL_1``…; ``by_number``, that the data write each class as its place
    in that order, counted from 0. ``untrained`` are those that the test part has and the training part has not.
    """

    names: tuple[str, ...]
    are_placeholders: bool = False
    by_number: bool = False
    untrained: tuple[str, ...] = ()
    _places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {name.strip(): place for place, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.names)

    def index(self, one: Written) -> int:
        """The class that a label means.

        Raises: ``ConfigError`` for a label that is unknown or out of range.
        """
        if self.by_number and one.is_number and 0 <= int(one.text) < len(self.names):
            return int(one.text)
        if not self.by_number and one.text in self._places:
            return self._places[one.text]
        raise self._error(one, ())

    def indices(self, table: Table, column: str, *, optional: bool) -> list[int]:
        """The class of each row, ``-100`` where it has none, which ``optional`` allows.

        Raises: ``ConfigError``.
        """
        if column not in table.columns:
            return [NO_LABEL] * len(table)
        found = []
        for row, value in enumerate(table.columns[column]):
            one = None if is_missing(value) else written(value, table, column, row)
            if one is not None and not self.says_none(one):
                found.append(self.index(one))
            elif optional:
                found.append(NO_LABEL)
            else:
                raise table.error("there is no label", row)
        return found

    def says_none(self, one: Written) -> bool:
        """Whether a label says that the row has none."""
        return one.text in UNLABELLED and one.text not in self._places

    def settled(self, seen: Sequence[Written]) -> Labels:
        """The same classes, once it is clear how the data write them: all of them by name, or else all of them by number.

        So no two labels can mean one class. Numbers are places only where no name is a number itself.

        Raises: ``ConfigError`` that names the first label that is neither.
        """
        unknown = [one for one in seen if one.text not in self._places]
        if not unknown:
            return self
        if all(one.is_number and 0 <= int(one.text) < len(self) for one in seen) and not self._has_numbers:
            return replace(self, by_number=True)
        misfits = [one for one in unknown if not one.is_number] or unknown
        out_of_range = [one for one in misfits if one.is_number and not 0 <= int(one.text) < len(self)]
        raise self._error((out_of_range or misfits)[0], seen)

    @property
    def to_config(self) -> dict[str, Any]:
        """What a transformers config says of them."""
        ids = dict(enumerate(self.names))
        return {"num_labels": len(ids), "id2label": ids, "label2id": {name: place for place, name in ids.items()}}

    @property
    def about(self) -> str:
        """Says that the data write numbers where the classes have names; the empty string where they write the names."""
        return ", which the data write by number" if self.by_number and not self.are_placeholders else ""

    @property
    def about_untrained(self) -> str:
        """Says which classes are tested and not trained on; the empty string where all are."""
        if not self.untrained:
            return ""
        shown = ", ".join(self.untrained[:_SHOWN]) + (", …" if len(self.untrained) > _SHOWN else "")
        return f" data.test has {len(self.untrained)} of them that never occur in data.train: {shown}."

    @property
    def _has_numbers(self) -> bool:
        return any(_NUMBER.fullmatch(name) for name in self._places)

    @property
    def _shown(self) -> str:
        return ", ".join(self.names[:_SHOWN]) + (", …" if len(self.names) > _SHOWN else "")

    def _error(self, one: Written, seen: Iterable[Written]) -> kdplug.ConfigError:
        named = next((other for other in seen if other.text in self._places), None)
        if one.is_number and self._has_numbers:
            message = (
                f"unknown label {one.text!r}. The labels are {self._shown}. Since these are numbers themselves, a number is the name "
                "of a class and not its place. Write labels: the names as the data have them, in the order of the outputs"
            )
        elif one.is_number and named is not None:
            message = (
                f"the label {one.text!r} is a number, and {named.table.place(named.row)} has the name {named.text!r}. A column writes "
                f"all classes by name or all by number, in every part. The labels are {self._shown}"
            )
        elif one.is_number:
            message = f"label id {one.text} is out of range: there are {len(self.names)} ({self._shown})"
        elif self.are_placeholders:
            message = (
                f"the label {one.text!r} is a name, and the teacher knows its {len(self.names)} classes by number only. "
                "Write labels: their names, in the order of the teacher's outputs"
            )
        else:
            near = did_you_mean(one.text, self.names)
            message = f"unknown label {one.text!r}.{near} The labels are {self._shown}"
        return one.table.error(message, one.row)


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
    )


def written(value: Any, table: Table, column: str, row: int) -> Written:
    """A label as text. A whole number means a class of the source by name, where the source names the classes of the column.

    Raises: ``ConfigError`` for a number that is none of the source's classes.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text, names = str(value).strip(), table.classes.get(column)
    if names is None or not isinstance(value, int) or text in UNLABELLED:
        return Written(text, table, row)
    if not 0 <= value < len(names):
        shown = ", ".join(names[:_SHOWN])
        raise table.error(f"label id {value} is out of range: the data name {len(names)} classes ({shown})", row)
    return Written(names[value].strip(), table, row)


def find_labels(
    given: Sequence[str] | None,
    teacher: Any,
    source: Source,
    column: str,
    cells: Cells | None = None,
    *,
    may_lack: bool = False,
) -> Labels:
    """The classes: those that were ``given``, else a trained teacher's, else the source's, else what the training data hold.

    ``teacher`` is the config of a teacher whose head is trained, else ``None``; ``cells`` gives the labels of a table, each cell of
    the column unless it is given, and ``may_lack`` says that some may stand for no label. Names found in the data are sorted,
    numbers by size. All parts of the data write the classes in one way, by name or by number.

    Raises: ``ConfigError`` where what is given does not fit the teacher, there are fewer than two, or the data write them in more
    than one way.
    """
    cells = cells or (lambda table: enumerate(table.columns.get(column, ())))
    parts = [_seen(table, column, cells) for table in source.tables]
    labels = _named(given, teacher, source.train.classes.get(column), parts[0])
    if len(set(map(str.strip, labels.names))) < len(labels):
        raise kdplug.ConfigError(
            f"two classes have one name: {', '.join(labels.names)}. Write labels: names that differ, in the order of the outputs",
            field="labels",
        )
    seen: dict[str, Written] = {}
    for text, one in (pair for part in parts for pair in part.items()):
        seen.setdefault(text, one)
    labels = labels.settled([one for one in seen.values() if not (may_lack and labels.says_none(one))])
    train, test = (
        {labels.index(one) for one in part.values() if not (may_lack and labels.says_none(one))} for part in parts[:2]
    )
    return replace(labels, untrained=tuple(labels.names[place] for place in sorted(test - train)))


def _seen(table: Table, column: str, cells: Cells) -> dict[str, Written]:
    """Each label of a table where it comes first."""
    found: dict[str, Written] = {}
    for row, value in cells(table):
        if not is_missing(value):
            one = written(value, table, column, row)
            found.setdefault(one.text, one)
    return found


def _named(
    given: Sequence[str] | None, teacher: Any, classes: Sequence[str] | None, train: Mapping[str, Written]
) -> Labels:
    if given is not None:
        if teacher is not None:
            _check_order(given, teacher)
        return Labels(tuple(given))
    if teacher is not None:
        return _of_teacher(teacher, classes)
    if classes is not None:
        return Labels(tuple(classes))
    if len(train) < 2:
        raise kdplug.ConfigError(f"must hold at least two labels, got {', '.join(train) or 'none'}", field="data.train")
    is_number = all(one.is_number for one in train.values())
    return Labels(tuple(sorted(train, key=int if is_number else None)))


def _check_order(given: Sequence[str], teacher: Any) -> None:
    """Raises: ``ConfigError`` where ``labels`` are not as many as the teacher's, or one is the name of another output of it, case
    and blanks around it aside.
    """
    if teacher.num_labels != len(given):
        raise kdplug.ConfigError(f"are {len(given)}, and the teacher has {teacher.num_labels}", field="labels")
    names = _names_of(teacher)
    places = {name.strip().casefold(): place for place, name in enumerate(names)}
    for place, name in enumerate(given):
        if places.get(name.strip().casefold(), place) != place and name.strip() != names[place].strip():
            raise kdplug.ConfigError(
                f"are in another order than the teacher's outputs, which are {', '.join(names)}: {name!r} is number {place}. Leave "
                "them out, or write them in the teacher's order",
                field="labels",
            )


def _of_teacher(teacher: Any, classes: Sequence[str] | None) -> Labels:
    names = _names_of(teacher)
    are_placeholders = all(name == f"LABEL_{place}" for place, name in enumerate(names))
    if are_placeholders and classes is not None and len(classes) == len(names):
        return Labels(tuple(classes))
    return Labels(tuple(names), are_placeholders)


def _names_of(teacher: Any) -> list[str]:
    """Raises: ``ConfigError`` where the ids in ``id2label`` are not the places of the outputs."""
    places = range(teacher.num_labels)
    if set(teacher.id2label) != set(places):
        raise kdplug.ConfigError(
            f"the id2label of its config.json has the ids {', '.join(map(str, teacher.id2label))}, and its outputs are counted from 0 to "
            f"{len(places) - 1}: correct it",
            field="teacher.path",
        )
    names = [str(teacher.id2label[place]) for place in places]
    for place, name in enumerate(names):
        if (other := (getattr(teacher, "label2id", None) or {}).get(name, place)) != place and names.count(name) == 1:
            raise kdplug.ConfigError(
                f"id2label and label2id of its config.json disagree: {name!r} is output {place} in the one and {other} in the other. "
                "Correct one of them",
                field="teacher.path",
            )
    return names
