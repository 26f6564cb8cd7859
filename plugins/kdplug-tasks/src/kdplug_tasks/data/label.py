"""The names of classes, and what a label in the data means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import kdplug
from kdplug_tasks.data.table import Table
from kdplug_tasks.nearest import did_you_mean

NO_LABEL = -100
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Labels:
    """Class names in the order of a model's outputs. ``are_placeholders`` says that they are ``LABEL_0``, ``LABEL_1``…"""

    names: tuple[str, ...]
    are_placeholders: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def index(self, value: Any, table: Table, row: int) -> int:
        """The class that a label means: by name, else by number.

        Raises: ``ConfigError`` for a label that is unknown or out of range.
        """
        text = str(value).strip()
        if text in self.names:
            return self.names.index(text)
        if text.removeprefix("-").isdigit():
            number = int(text)
            if 0 <= number < len(self.names):
                return number
            raise table.error(f"label id {number} is out of range: there are {len(self.names)} ({self._shown})", row)
        if self.are_placeholders:
            raise table.error(
                f"the label {text!r} is a name, and the teacher knows its {len(self.names)} classes by number only. "
                "Write labels: their names, in the order of the teacher's outputs",
                row,
            )
        near = did_you_mean(text, self.names)
        raise table.error(f"unknown label {text!r}.{near} The labels are {self._shown}", row)

    def indices(self, table: Table, column: str, *, optional: bool) -> list[int]:
        """The class of each row, ``-100`` where it has none, which ``optional`` allows.

        A number means what the source says of it, where it does; the teacher's own numbers may be others.

        Raises: ``ConfigError``.
        """
        names, values = table.classes.get(column), table.columns.get(column)
        if values is None:
            return [NO_LABEL] * len(table)
        found = []
        for row, value in enumerate(values):
            if is_missing(value) or value == NO_LABEL or (str(value).strip() == "-1" and "-1" not in self.names):
                if not optional:
                    raise table.error("there is no label", row)
                found.append(NO_LABEL)
            else:
                is_named = names is not None and isinstance(value, int) and 0 <= value < len(names)
                found.append(self.index(names[value] if names and is_named else value, table, row))
        return found

    @property
    def to_config(self) -> dict[str, Any]:
        """What a transformers config says of them."""
        ids = dict(enumerate(self.names))
        return {"num_labels": len(ids), "id2label": ids, "label2id": {name: place for place, name in ids.items()}}

    @property
    def _shown(self) -> str:
        return ", ".join(self.names[:_SHOWN]) + (", …" if len(self.names) > _SHOWN else "")


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
    )


def find_labels(
    given: Sequence[str] | None, teacher: Any, classes: Sequence[str] | None, values: Iterable[Any]
) -> Labels:
    """The classes: those that were ``given``, else a trained teacher's, else the source's, else what the data holds.

    ``teacher`` is the config of a teacher whose head is trained, else ``None``. Names found in the data are sorted, numbers
    by size.

    Raises: ``ConfigError`` where what is given does not fit the teacher, or there are fewer than two.
    """
    if given is not None:
        if len(set(given)) < len(given):
            raise kdplug.ConfigError(f"a name is there twice: {', '.join(given)}", field="labels")
        if teacher is not None and teacher.num_labels != len(given):
            raise kdplug.ConfigError(f"are {len(given)}, and the teacher has {teacher.num_labels}", field="labels")
        return Labels(tuple(given))
    if teacher is not None:
        return _of_teacher(teacher, classes)
    if classes is not None:
        return Labels(tuple(classes))
    names = {str(value).strip() for value in values if not is_missing(value)}
    if len(names) < 2:
        raise kdplug.ConfigError(f"must hold at least two labels, got {', '.join(names) or 'none'}", field="data.train")
    is_number = all(name.removeprefix("-").isdigit() for name in names)
    return Labels(tuple(sorted(names, key=int if is_number else None)))


def _of_teacher(teacher: Any, classes: Sequence[str] | None) -> Labels:
    names = [str(teacher.id2label[place]) for place in range(teacher.num_labels)]
    are_placeholders = all(name == f"LABEL_{place}" for place, name in enumerate(names))
    if are_placeholders and classes is not None and len(classes) == len(names):
        return Labels(tuple(classes))
    return Labels(tuple(names), are_placeholders)
