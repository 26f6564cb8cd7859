"""Read the tables of a task: for training, distillation, validation and testing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import kdplug
from kdplug_tasks.data.file import read_file
from kdplug_tasks.data.hub import read_split
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.data.table import BLANK_LINE, Table, did_you_mean


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a task. Rows for distillation may lack ``targets``.

    ``documents`` is how a plain text file is divided into rows.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    optional: tuple[str, ...] = ()
    documents: str = BLANK_LINE

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.inputs, *self.optional, *self.targets)


@dataclass(frozen=True, slots=True)
class Source:
    """The four tables, with the task's column names."""

    train: Table
    distillation: Table
    validation: Table
    test: Table

    @property
    def tables(self) -> tuple[Table, ...]:
        """All distinct tables: for training, validation, testing and, if it is another one, distillation."""
        rest = () if self.distillation is self.train else (self.distillation,)
        return (self.train, self.validation, self.test, *rest)

    def is_from_train(self, table: Table) -> bool:
        """Return whether a table is ``train``, or was held out of it."""
        return table.field == self.train.field


def shared_data(settings: DataSettings) -> Iterator[tuple[str, str]]:
    """Warn if validation or test data are the file or split of another part."""
    for part, other, effect in _SHARED:
        one, two = _place(settings, part), _place(settings, other)
        if one is not None and two is not None and _is_same(settings, one, two):
            names = f"{_NAMES[part]} and {_NAMES[other]}"
            share = 0.2 if part == "test" else 0.1
            fix = f"Use other data, or a fraction such as {part}: {share} to hold out rows of train"
            yield f"data.{part}", f"{names} are both {one!r}: {effect}. {fix}"


_NAMES = {
    "train": "the training data",
    "distillation": "the data for distillation",
    "validation": "the validation data",
    "test": "the test data",
}
_SHARED = (
    ("test", "train", "the metrics are measured on examples that the models were trained on"),
    ("test", "distillation", "the metrics are measured on examples that the student was distilled on"),
    ("validation", "train", "checkpoints are chosen on examples that the models were trained on"),
    ("validation", "distillation", "checkpoints are chosen on examples that the student was distilled on"),
    ("validation", "test", "checkpoints are chosen on the test data, so the final metrics are too optimistic"),
)
"""Pairs of parts that must not be the same data, and what happens if they are."""


_REPEATED_SHARE = 0.01


def repeated_rows(settings: DataSettings, source: Source, inputs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Warn if 1 % or more of the validation or test rows have the same text as rows of another part."""
    tables = {
        part: table
        for part, table in zip(_NAMES, (source.train, source.distillation, source.validation, source.test), strict=True)
        if part != "distillation" or table is not source.train
    }
    texts = {part: _texts(table, inputs) for part, table in tables.items()}
    for part, other, effect in _SHARED:
        one, two = _place(settings, part), _place(settings, other)
        is_known = one is not None and two is not None and _is_same(settings, one, two)
        if is_known or other not in tables or tables[part].is_running:
            continue
        known = set(texts[other])
        rows = [row for row, text in enumerate(texts[part]) if text in known]
        if rows and len(rows) >= _REPEATED_SHARE * len(texts[part]):
            message = (
                f"{len(rows):,} of {len(texts[part]):,} rows of {_NAMES[part]} have the same text as a row of "
                f"{_NAMES[other]}, the first is {tables[part].place(rows[0])}: {effect}. Remove these rows from one of the two"
            )
            yield f"data.{part}", message


def _texts(table: Table, inputs: Iterable[str]) -> list[int]:
    """Return a hash of the text of each row without regard to whitespace; nothing for rows that are no text."""
    columns = [table.columns[name] for name in inputs if name in table.columns]
    if not columns or not all(len(column) and isinstance(column[0], (str, list, tuple)) for column in columns):
        return []
    return [hash(tuple(map(_plain, cells))) for cells in zip(*columns, strict=True)]


def _plain(cell: object) -> tuple[str, ...]:
    return (
        tuple(str(cell).split()) if isinstance(cell, str) or not isinstance(cell, Iterable) else tuple(map(str, cell))
    )


def _place(settings: DataSettings, part: str) -> str | None:
    """Return the file or split of a part; ``None`` if it is held out of another part."""
    found = settings.train or "train" if part == "train" else getattr(settings, part)
    return found if isinstance(found, str) else None


def _is_same(settings: DataSettings, one: str, two: str) -> bool:
    if settings.dataset is None:
        with suppress(OSError, RuntimeError, ValueError):  # a loop of links, a NUL: reported when the file is read
            return Path(one).resolve() == Path(two).resolve()
    return one == two


def read_source(settings: DataSettings, columns: Columns) -> Source:
    """Read the data of a task.

    Raises: ``ConfigError`` that names the setting.
    """
    for name in settings.columns:
        if name not in columns.names:
            near = did_you_mean(name, columns.names)
            raise kdplug.ConfigError(
                f"the task has no column {name!r}.{near} The columns of the task are {', '.join(columns.names)}",
                field="data.columns",
            )
    place = settings.train or "train"
    train = _read(settings, place, "train", columns)
    held: dict[str, Table] = {}
    shares: dict[str, float] = {}
    for part, value in (("validation", settings.validation), ("test", settings.test)):
        if isinstance(value, str):
            held[part] = _read(settings, value, part, columns)
        else:
            shares[part] = value
    if shares:
        if train.is_running and "split_seed" in settings.model_fields_set:
            raise kdplug.ConfigError(
                f"has no effect on {train.origin}, one running text, whose end is held out. Remove data.split_seed, or "
                "set documents to divide the text",
                field="data.split_seed",
            )
        train, more = _parted(train, shares) if train.is_running else _divided(train, shares, settings.split_seed)
        held |= more
    distillation = train
    if settings.distillation is not None and not _is_same(settings, settings.distillation, place):
        distillation = _read(settings, settings.distillation, "distillation", columns)
    return Source(train, distillation, held["validation"], held["test"])


def _read(settings: DataSettings, name: str, part: str, columns: Columns) -> Table:
    field = f"data.{part}"
    names = {column: str(own) for column, own in settings.columns.items()}
    if settings.dataset is not None:
        table = read_split(settings, name, field)
    else:
        table = read_file(
            name,
            settings.format,
            field,
            settings.header,
            names,
            delimiter=settings.delimiter,
            documents=columns.documents,
        )
    required: Iterable[str] = columns.inputs if part == "distillation" else (*columns.inputs, *columns.targets)
    if part == "distillation":
        names = {name: own for name, own in names.items() if name not in columns.targets or own in table.columns}
    return table.renamed(names, columns.names, required=required)


def _divided(table: Table, shares: Mapping[str, float], seed: int) -> tuple[Table, dict[str, Table]]:
    """Split off rows selected by ``seed``; return the rest and each part, in order.

    The rows for testing are the first of a random order and those for validation its last, so that each part depends
    on its own share only.
    """
    sizes = {part: max(1, round(share * len(table))) for part, share in shares.items()}
    last = len(table) - sizes.get("validation", 0)
    first = sizes.get("test", 0)
    if first >= last:
        raise _too_small(table, f"the number of rows, {len(table)}, is too small", "rows", shares)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {"validation": order[last:], "test": order[:first]}
    return table.take(sorted(order[first:last])), {part: table.take(sorted(chosen[part])) for part in shares}


_NEAR = 1000


def _parted(table: Table, shares: Mapping[str, float]) -> tuple[Table, dict[str, Table]]:
    """Split off the end of a running text: the test data, preceded by the validation data.

    Each is a share of all characters, and begins at a line break if one is near.
    """
    ((name, (text,)),) = table.columns.items()
    parts: dict[str, str] = {}
    end = len(text)
    for part in ("test", "validation"):
        if part in shares:
            held = round(shares[part] * len(text))
            place = max(0, end - held)
            line_break = text.find("\n", place, place + min(_NEAR, held // 2))
            place = place if line_break < 0 else line_break + 1
            parts[part], end = text[place:end], place
    if not all(part.strip() for part in (text[:end], *parts.values())):
        raise _too_small(table, f"the text is too short (length in characters: {len(text)})", "text", shares)
    train, *held_out = (replace(table, columns={name: [part]}) for part in (text[:end], *parts.values()))
    return train, dict(zip(parts, held_out, strict=True))


def _too_small(table: Table, what: str, more: str, shares: Mapping[str, float]) -> kdplug.ConfigError:
    purposes = {"validation": "validation", "test": "testing"}
    held = " and ".join(f"a fraction of {share:g} for {purposes[part]}" for part, share in shares.items())
    keys = " and ".join(f"data.{part}" for part in shares)
    return table.error(f"{what} to hold out {held}. Add {more}, or set {keys} to other data")
