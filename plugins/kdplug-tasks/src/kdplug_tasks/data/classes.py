"""Determine the class names of a task from its settings, a trained teacher or the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias
from unicodedata import category, normalize

import kdplug
from kdplug_tasks.data.label import Labels, Written, is_missing, written
from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table

_WHOLE = re.compile("(-?[0-9]+)[.]0*")
_JOINERS = "\u200c\u200d"

Cells: TypeAlias = Callable[[Table], Iterator[tuple[int, Any]]]
"""Yields the row and value of each label in a table."""


def find_labels(
    given: Sequence[str] | None,
    teacher: Any,
    source: Source,
    column: str,
    cells: Cells | None = None,
    *,
    may_lack: bool = False,
) -> Labels:
    """Return the classes: ``given``, else a trained teacher's, else the source's, else those in the training data.

    The latter include rows that are held out of them for validation or testing.

    ``teacher`` is the config of a teacher with a trained head, else ``None``; ``cells`` yields the labels of a table,
    by default the cells of the column; ``may_lack`` allows values that mean "no label". Classes found in the data are
    sorted, numbers numerically. All parts of the data must use names, or all must use numbers.

    Raises: ``ConfigError`` if ``given`` does not match the teacher, there are fewer than two classes, or the data mix
    names and numbers, or write one class in two ways.
    """
    cells = cells or (lambda table: enumerate(table.columns.get(column, ())))
    parts, repeated = zip(*(_seen(table, column, cells) for table in source.tables), strict=True)
    of_train: dict[str, Written] = {}
    for table, part in zip(source.tables, parts, strict=True):
        of_train = {**part, **of_train} if source.is_from_train(table) else of_train
    labels = _named(given, teacher, source.train.classes.get(column), of_train)
    names = list(map(str.strip, labels.names))
    if len(set(names)) < len(names):
        repeated_name = next(name for name in names if names.count(name) > 1)
        raise kdplug.ConfigError(
            f"several classes have the name {repeated_name!r}. Set labels to distinct names, in output order",
            field="labels",
        )
    seen: dict[str, Written] = {}
    for text, one in (pair for part in parts for pair in part.items()):
        seen.setdefault(text, one)
    labels = labels.settled([one for one in seen.values() if not (may_lack and labels.says_none(one))])
    train, validation, test = (
        {labels.index(one) for one in part.values() if not (may_lack and labels.says_none(one))} for part in parts[:3]
    )
    is_named = given is not None or teacher is not None or source.train.classes.get(column) is not None
    once = (one for text, one in parts[0].items() if text not in repeated[0])
    single = {labels.index(one) for one in once if not (may_lack and labels.says_none(one))}
    return replace(
        labels,
        untrained=tuple(labels.names[place] for place in sorted((validation | test) - train)),
        unvalidated=tuple(labels.names[place] for place in sorted((train | test) - validation)),
        single=tuple(labels.names[place] for place in sorted(single)),
        like_missing=() if is_named else tuple(name for name in labels.names if name.casefold() in _LIKE_MISSING),
    )


_LIKE_MISSING = ("nan", "none", "na", "n/a", "<na>", "null")


def _seen(table: Table, column: str, cells: Cells) -> tuple[dict[str, Written], set[str]]:
    """Return the first occurrence of each label in a table, and the labels that occur in more than one row."""
    found: dict[str, Written] = {}
    repeated: set[str] = set()
    for row, value in cells(table):
        if not is_missing(value):
            one = written(value, table, column, row)
            if found.setdefault(one.text, one).row != row:
                repeated.add(one.text)
    return found, repeated


def _named(
    given: Sequence[str] | None, teacher: Any, classes: Sequence[str] | None, train: Mapping[str, Written]
) -> Labels:
    if given is not None:
        if teacher is not None:
            _check_order(given, teacher)
        return Labels(tuple(given))
    if teacher is not None:
        return replace(_of_teacher(teacher, classes), origin=f". They are the teacher's outputs.{_about_head(teacher)}")
    if classes is not None:
        return Labels(tuple(classes))
    if len(train) < 2:
        raise kdplug.ConfigError(
            f"must have at least two different labels, got {', '.join(train) or 'none'}", field="data.train"
        )
    _check_spellings(train)
    is_number = all(one.is_number for one in train.values())
    origin = ". They are those of data.train. To allow others, write labels: all names, in output order"
    return Labels(tuple(sorted(train, key=int if is_number else None)), origin=origin)


def _about_head(teacher: Any) -> str:
    """Return sentences about the head of a teacher whose outputs do not match the data, and how to train one."""
    classes = [str(one) for one in getattr(teacher, "architectures", None) or ()]
    fix = "write teacher: {path: …, train: true} to train one"
    if classes and not any("Classification" in name for name in classes):
        return (
            f" The teacher has no trained head: its config.json names {', '.join(classes)}. W{fix[1:]} for these labels"
        )
    return f" If the teacher has no trained head for these labels, {fix}"


def _check_spellings(train: Mapping[str, Written]) -> None:
    """Raise ``ConfigError`` if two labels are equal as numbers or truth values, or look equal, but differ as text."""
    found: dict[str, str] = {}
    for text, one in train.items():
        other = found.setdefault(_meaning(text), text)
        if other != text:
            raise one.table.error(
                f"the label {text!r} is {other!r} written differently, and would become a separate class. "
                "Write both in the same way",
                one.row,
            )


def _meaning(text: str) -> str:
    """Return the label without invisible characters, as an integer if it is one: ``1.0`` and ``true`` are ``1``.

    Zero-width joiners are kept: they distinguish emoji and words.
    """
    plain = "".join(one for one in normalize("NFC", text) if one in _JOINERS or category(one) != "Cf").strip()
    whole = _WHOLE.fullmatch(plain)
    return whole[1] if whole else {"true": "1", "false": "0"}.get(plain.casefold(), plain)


def _check_order(given: Sequence[str], teacher: Any) -> None:
    """Raise ``ConfigError`` if ``labels`` and the teacher's class names differ in number, or in order ignoring case."""
    if teacher.num_labels != len(given):
        raise kdplug.ConfigError(
            f"has {len(given)} names, but the teacher has {teacher.num_labels} outputs.{_about_head(teacher)}",
            field="labels",
        )
    names = _names_of(teacher)
    places = {name.strip().casefold(): place for place, name in enumerate(names)}
    for place, name in enumerate(given):
        output = places.get(name.strip().casefold(), place)
        if output != place and name.strip() != names[place].strip():
            raise kdplug.ConfigError(
                f"is not in the order of the teacher's outputs: {', '.join(names)}. labels[{place}] is {name!r}, "
                f"which is output {output}. Remove labels, or write them in the teacher's order",
                field="labels",
            )


def _of_teacher(teacher: Any, classes: Sequence[str] | None) -> Labels:
    names = _names_of(teacher)
    are_placeholders = all(name == f"LABEL_{place}" for place, name in enumerate(names))
    if are_placeholders and classes is not None and len(classes) == len(names):
        return Labels(tuple(classes))
    return Labels(tuple(names), are_placeholders)


def _names_of(teacher: Any) -> list[str]:
    """Return the teacher's class names. Raises: ``ConfigError`` if the ids in ``id2label`` are not the output indices."""
    places = range(teacher.num_labels)
    if set(teacher.id2label) != set(places):
        raise kdplug.ConfigError(
            f"id2label in the teacher's config.json has the ids {', '.join(map(str, teacher.id2label))}, but the outputs are numbered 0 to "
            f"{len(places) - 1}. Correct id2label",
            field="teacher.path",
        )
    names = [str(teacher.id2label[place]) for place in places]
    for place, name in enumerate(names):
        if (other := (getattr(teacher, "label2id", None) or {}).get(name, place)) != place and names.count(name) == 1:
            raise kdplug.ConfigError(
                f"id2label and label2id in the teacher's config.json disagree: {name!r} is output {place} in id2label and {other} in label2id. "
                "Correct one of them",
                field="teacher.path",
            )
    return names
