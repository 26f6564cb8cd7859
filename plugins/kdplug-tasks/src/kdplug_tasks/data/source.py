"""The tables of a task: for training, distillation and testing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    """The three tables, with the task's column names."""

    train: Table
    distillation: Table
    test: Table

    @property
    def tables(self) -> tuple[Table, ...]:
        """All distinct tables."""
        rest = () if self.distillation is self.train else (self.distillation,)
        return (self.train, self.test, *rest)


def tests_on_training_data(settings: DataSettings) -> Iterator[tuple[str, str]]:
    """Warn if ``data.test`` is the file or split of ``data.train``."""
    train, test = settings.train or "train", settings.test
    if not isinstance(test, str):
        return
    same = train == test if settings.dataset is not None else Path(train).resolve() == Path(test).resolve()
    if same:
        message = (
            f"the test data and the training data are both {test!r}: the metrics are measured on examples that the models "
            "were trained on. Use other data, or a fraction such as test: 0.2 to hold out rows"
        )
        yield "data.test", message


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
    train = _read(settings, settings.train or "train", "train", columns)
    if isinstance(settings.test, str):
        test = _read(settings, settings.test, "test", columns)
    else:
        if train.is_running and "split_seed" in settings.model_fields_set:
            raise kdplug.ConfigError(
                f"has no effect on {train.origin}, which is one running text: its end is held out. Remove data.split_seed, or "
                "set documents to divide the text",
                field="data.split_seed",
            )
        divide = _parted if train.is_running else _divided
        train, test = divide(train, settings.test, settings.split_seed)
    if settings.distillation is None:
        return Source(train, train, test)
    return Source(train, _read(settings, settings.distillation, "distillation", columns), test)


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


def _divided(table: Table, share: float, seed: int) -> tuple[Table, Table]:
    """Split off the fraction ``share`` of the rows, selected by ``seed``; return the rest and this part, in order."""
    size = max(1, round(share * len(table)))
    if size >= len(table):
        raise table.error(
            f"the number of rows, {len(table)}, is too small to hold out a fraction of {share:g} for testing. Add rows, or set "
            "data.test to other data"
        )
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: Sequence[int] = sorted(order[:size])
    return table.take(sorted(order[size:])), table.take(chosen)


_NEAR = 1000


def _parted(table: Table, share: float, seed: int) -> tuple[Table, Table]:  # noqa: ARG001
    """Split off the end of a running text, the fraction ``share`` of its characters, at a line break if one is near."""
    ((name, (text,)),) = table.columns.items()
    held = round(share * len(text))
    place = len(text) - held
    line_break = text.find("\n", place, place + min(_NEAR, held // 2))
    place = place if line_break < 0 else line_break + 1
    parts = text[:place], text[place:]
    if not all(part.strip() for part in parts):
        raise table.error(
            f"the text is too short to hold out a fraction of {share:g} for testing (length in characters: {len(text)}). Add text, or "
            "set data.test to other data"
        )
    train, test = (replace(table, columns={name: [part]}) for part in parts)
    return train, test
