"""Class names, and the mapping from labels in the data to classes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import kdplug
from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table, did_you_mean

UNLABELLED_ROW = (
    "there is no label. Write one, remove the row, or move rows without a label to a file named in data.distillation"
)
"""The message of an error for a row that must have a label."""

NO_LABEL = -100
UNLABELLED = ("-1", "-100")
"""Values that mean "no label", unless a class has this name."""

_NUMBER = re.compile("0|-?[1-9][0-9]{0,17}")
_SHOWN = 8


class Written(NamedTuple):
    """A label as written in the data, and the row where it first occurs."""

    text: str
    table: Table
    row: int

    @property
    def is_number(self) -> bool:
        """True if it may be a class number. A number with leading zeros is a name."""
        return _NUMBER.fullmatch(self.text) is not None


@dataclass(frozen=True, slots=True)
class Labels:
    """Class names in the order of a model's outputs.

    ``are_placeholders``: the names are ``LABEL_0``, ``LABEL_1``…; ``by_number``: the data use class numbers, counted
    from 0, instead of names; ``untrained``: classes that occur in held-out data but not in the training data;
    ``unvalidated``: classes that occur in other data but not in the validation data; ``single``: classes with one row of the training data; ``like_missing``: classes found in the data whose name is that of
    a missing value in some program;
    ``origin``: a sentence for errors about the origin of the names, and how to change them.
    """

    names: tuple[str, ...]
    are_placeholders: bool = False
    by_number: bool = False
    untrained: tuple[str, ...] = ()
    unvalidated: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    like_missing: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    _places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {name.strip(): place for place, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.names)

    def index(self, one: Written) -> int:
        """Return the class number of a label.

        Raises: ``ConfigError`` for a label that is unknown or out of range.
        """
        if self.by_number and one.is_number and 0 <= int(one.text) < len(self.names):
            return int(one.text)
        if not self.by_number and one.text in self._places:
            return self._places[one.text]
        raise self._error(one)

    def indices(self, table: Table, column: str, *, optional: bool) -> list[int]:
        """Return the class number of each row, ``-100`` for a row without a label, which ``optional`` allows.

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
                raise table.error(UNLABELLED_ROW, row)
        return found

    def says_none(self, one: Written) -> bool:
        """Return whether a label means that the row has none."""
        return one.text in UNLABELLED and one.text not in self._places

    def settled(self, seen: Sequence[Written]) -> Labels:
        """Return the same classes with ``by_number`` set from the labels ``seen``: all are names, or all are numbers.

        Therefore no two labels can mean the same class. Labels are read as class numbers only if no class name is a
        number.

        Raises: ``ConfigError`` for the first label that is neither.
        """
        unknown = [one for one in seen if one.text not in self._places]
        if not unknown:
            return self
        if all(one.is_number and 0 <= int(one.text) < len(self) for one in seen) and not self._has_numbers:
            return replace(self, by_number=True)
        misfits = [one for one in unknown if not one.is_number] or unknown
        out_of_range = [one for one in misfits if one.is_number and not 0 <= int(one.text) < len(self)]
        wrong = out_of_range or misfits
        raise self._error(wrong[0], seen, tuple(one.text for one in wrong[1:]))

    @property
    def to_config(self) -> dict[str, Any]:
        """The corresponding keys of a transformers config."""
        ids = dict(enumerate(self.names))
        return {"num_labels": len(ids), "id2label": ids, "label2id": {name: place for place, name in ids.items()}}

    @property
    def about(self) -> str:
        """A note if the data use numbers although the classes have names; otherwise empty."""
        return ", given by number in the data" if self.by_number and not self.are_placeholders else ""

    @property
    def about_untrained(self) -> str:
        """Sentence listing the classes that are only in held-out data; empty if there are none."""
        if not self.untrained:
            return ""
        shown = ", ".join(self.untrained[:_SHOWN]) + (", …" if len(self.untrained) > _SHOWN else "")
        return f" Classes in the validation or test data but not in the training data: {shown}."

    def review(self, source: Source) -> Iterator[tuple[str, str]]:
        """Yield a setting and a warning about it, for classes that are probably unintended or in too few rows."""
        train = source.train
        if self.single:
            message = (
                f"the {_classes(self.single)} {'occurs in only one row' if len(self.single) == 1 else 'occur in only one row each'} of "
                f"the training data in {train.origin}. Add rows, or correct the label if it is misspelled"
            )
            yield train.field, message
        if self.like_missing:
            message = (
                f"{train.origin} has the {_classes(self.like_missing)}, as some programs write a missing value. Leave "
                "such cells empty; if such a value is a class, write labels: all names, in output order"
            )
            yield train.field, message
        if self.unvalidated:
            verb = "does" if len(self.unvalidated) == 1 else "do"
            fix = f"Add rows to {source.validation.origin}"
            if source.is_from_train(source.validation):
                fix = "Increase data.validation, or set it to a file or split with rows of each class"
            message = (
                f"the {_classes(self.unvalidated)} {verb} not occur in the validation data, on which checkpoints and settings are "
                f"chosen. {fix}"
            )
            yield "data.validation", message

    @property
    def _has_numbers(self) -> bool:
        return any(_NUMBER.fullmatch(name) for name in self._places)

    @property
    def _shown(self) -> str:
        return ", ".join(self.names[:_SHOWN]) + (", …" if len(self.names) > _SHOWN else "")

    def _error(self, one: Written, seen: Iterable[Written] = (), others: Sequence[str] = ()) -> kdplug.ConfigError:
        """Return the error for a label; ``others`` are more labels with the same flaw."""
        named = next((other for other in seen if other.text in self._places), None)
        if one.is_number and self._has_numbers:
            message = (
                f"unknown label {one.text!r}. Since some class names are numbers, a number is read as a class name, not as an output "
                f"index. The labels are {self._shown}"
            )
            if not self.origin:
                message += ". Write labels: the names as they appear in the data, in output order"
        elif one.is_number and named is not None:
            message = (
                f"the label {one.text!r} is a number, but {named.table.place(named.row)} has the name {named.text!r}. A column must use "
                f"only names or only numbers, in every part. The labels are {self._shown}"
            )
        elif one.is_number:
            message = (
                f"label id {one.text} is out of range: there are {len(self.names)} classes ({self._shown}), with ids 0 to "
                f"{len(self.names) - 1}"
            )
        elif self.are_placeholders:
            message = (
                f"the label {one.text!r} is a name, but the teacher has no names for its {len(self.names)} classes. "
                f"Write labels: the names of the classes, in the order of the teacher's outputs. Without labels, the names are {self._shown}"
            )
        else:
            near = did_you_mean(one.text, self.names)
            message = f"unknown label {one.text!r}.{near} The labels are {self._shown}"
            if not self.origin:
                message += ". Correct the label, or write labels: all names, in output order"
        message += self.origin
        if others:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            message += f". The same applies to {', '.join(map(repr, others[:_SHOWN]))}{more}"
        return one.table.error(message, one.row)


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def written(value: Any, table: Table, column: str, row: int) -> Written:
    """Return a label as text. An integer is converted to a class name if the source names the classes of the column.

    Raises: ``ConfigError`` for an integer that is not a class of the source, or a value that is not a single name or
    number.
    """
    is_single = isinstance(value, str) or not (value is None or hasattr(value, "__len__"))
    if not is_single or (isinstance(value, float) and not math.isfinite(value)):
        raise table.error(f"{column} must be one name or number, got {type(value).__name__} {str(value)[:40]}", row)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text, names = str(value).strip(), table.classes.get(column)
    if names is None or not isinstance(value, int) or text in UNLABELLED:
        return Written(text, table, row)
    if not 0 <= value < len(names):
        shown = ", ".join(names[:_SHOWN])
        raise table.error(
            f"label id {value} is out of range: the dataset names {len(names)} classes ({shown}), with ids 0 to {len(names) - 1}",
            row,
        )
    return Written(names[value].strip(), table, row)


def _classes(names: Sequence[str]) -> str:
    """Return ``class 'a'``, or ``classes 'a', 'b'``."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ("class " if len(names) == 1 else "classes ") + ", ".join(map(repr, names[:_SHOWN])) + more
