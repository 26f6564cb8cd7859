"""A table of rows: columns of equal length, and the file or split that they are from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import kdplug

WHOLE, BLANK_LINE, LINE = "whole", "blank_line", "line"
"""Ways to divide a plain text file into documents; any other text is a separator."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest choice to ``name``; empty if none is close."""
    found = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


class Chosen(Sequence[Any]):
    """Selected rows of a column, read lazily."""

    def __init__(self, column: Sequence[Any], rows: Sequence[int]) -> None:
        self.column = column
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.column[self.rows[place]]

    def __iter__(self) -> Iterator[Any]:
        return (self.column[row] for row in self.rows)


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """``columns`` by name; ``origin`` is the file or split, ``field`` the setting that names it.

    ``classes`` are the names of integer labels by column, if the source has them; ``rows`` are the row numbers in the
    origin, ``None`` if all its rows are here; ``documents`` is how a plain text file was divided into rows, ``None`` if
    the origin is not such a file; ``lines`` are the lines on which the rows of the origin begin, empty if unknown.
    """

    origin: str
    field: str
    columns: Mapping[str, Sequence[Any]]
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    rows: Sequence[int] | None = None
    documents: str | None = None
    lines: Sequence[int] = ()

    @property
    def is_running(self) -> bool:
        """True if the rows are parts of one running text, which have no end tokens."""
        return self.documents == WHOLE

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def error(self, message: str, row: int | None = None) -> kdplug.ConfigError:
        """Return an error about the table, or about one row of it."""
        where = self.origin if row is None else self.place(row)
        return kdplug.ConfigError(f"{where}: {message}", field=self.field)

    def place(self, row: int) -> str:
        """Return ``row 3 of train.csv (line 4)``, counted from 1 in the origin; the line only if it is different."""
        own = row if self.rows is None else self.rows[row]
        line = self.lines[own] if self.lines else own + 1
        return f"row {own + 1} of {self.origin}{'' if line == own + 1 else f' (line {line})'}"

    def take(self, rows: Sequence[int]) -> Table:
        """Return the given rows as a table."""
        columns = {name: Chosen(column, rows) for name, column in self.columns.items()}
        rows = Chosen(self.rows, rows) if self.rows is not None else rows
        return dataclasses.replace(self, columns=columns, rows=rows)

    def renamed(self, names: Mapping[str, str], wanted: Iterable[str], *, required: Iterable[str]) -> Table:
        """Return the ``wanted`` columns under the task's names, which ``names`` maps to the table's names.

        Raises: ``ConfigError`` if a column that is required, or listed in ``names``, does not exist.
        """
        found: dict[str, Sequence[Any]] = {}
        classes: dict[str, tuple[str, ...]] = {}
        must = set(required) | set(names)
        for name in wanted:
            own = names.get(name, name)
            if own in self.columns:
                found[name] = self.columns[own]
                classes |= {name: self.classes[own]} if own in self.classes else {}
            elif name in must:
                near = did_you_mean(own, self.columns)
                has = ", ".join(self.columns)
                raise self.error(
                    f"there is no column {own!r}.{near} The columns are {has}. If another column contains the {name}, "
                    f"set data.columns: {{{name}: …}}"
                )
        return dataclasses.replace(self, columns=found, classes=classes)


def without_rows(table: Table) -> kdplug.ConfigError:
    """Return the error for an empty table."""
    return table.error("it has no rows")
