"""Read, check and write ``predictions.jsonl``: one JSON object for each example, seed and arm."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from kdplug.errors import ConfigError, did_you_mean, nearest
from kdplug.host.bounded_json import Bounds, json_value

LINE = Bounds(characters=1 << 22, values=1 << 18, key=1000)
"""Size limits for one line of a file of rows."""

MOST_ROWS = 5_000_000
"""Maximum number of lines of a file."""

KEYS = ("arm", "seed", "id", "score", "weight", "unit", "label", "prediction", "probability", "input")
"""Known keys of a row. A key that looks like a misspelling of one of them raises an error; other keys are ignored."""

Row = dict[str, Any]
"""A row with ``seed`` and ``id``, whose values are checked."""


class Place(Protocol):
    """A function that returns the place of a row, or of one of its keys, for error messages."""

    def __call__(self, number: int, key: str = "", /) -> str:
        """Return the place of row ``number``, counted from 0."""
        ...


def read_rows(path: Path | str, arm: str | None = None) -> list[Row]:
    """Read the rows of one arm. ``arm`` may be omitted if the file contains only one.

    Raises: ``ConfigError`` with file, line and key if the file cannot be read, or a row is invalid.
    """
    found: list[Row] = []
    numbered = _Numbered()
    arms: dict[str | None, None] = {}
    for number, line in _lines(Path(path)):
        place = _in_file(path)
        row = check_row(_parsed(line, place(number)), number, place)
        arms[row.get("arm")] = None
        if row.get("arm") == (arm if arm is not None else next(iter(arms))):
            found.append(numbered.complete(row))
    if not arms:
        raise ConfigError("contains no rows", field=str(path))
    if arm is None and len(arms) > 1:
        raise ConfigError(
            f"contains several arms: {_listed(arms)}. Compare one of them: kdplug verdict has --arm-a and --arm-b, and in Python pass its rows",
            field=str(path),
        )
    if not found:
        names = [name for name in arms if name is not None]
        held = f"its arms are {_listed(arms)}" if names else "its rows have no key 'arm'"
        raise ConfigError(f"has no row of the arm {arm!r}: {held}.{did_you_mean(arm or '', names)}", field=str(path))
    return found


def checked_rows(rows: Iterable[Mapping[str, Any]], name: str) -> list[Row]:
    """Check rows from Python, and fill in ``seed`` and ``id``. ``name`` is the argument's name for errors.

    Raises: ``ConfigError``.
    """
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable) or getattr(rows, "ndim", None) == 0:
        raise ConfigError(
            f"must be the path of a .jsonl file or a list of rows, got {type(rows).__name__}. A row is a mapping such as "
            '{"seed": 0, "id": 17, "score": 1.0}',
            field=name,
        )
    numbered = _Numbered()

    def place(number: int, key: str = "") -> str:
        return ".".join(filter(None, (name, str(number), key)))

    return [numbered.complete(check_row(row, number, place)) for number, row in enumerate(rows)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write each row as a JSON object on one line; numbers that are not finite become ``null``.

    Raises: ``ConfigError`` if a value cannot be written as JSON.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for number, row in enumerate(rows):
            try:
                text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False, default=_plain)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"row {number} cannot be written: {error}", field=str(path)) from error
            file.write(text + "\n")


def check_row(row: object, number: int, place: Place) -> Row:
    """Return a copy of a row whose numbers are Python numbers.

    Raises: ``ConfigError`` with the place and the nearest fix.
    """
    if not isinstance(row, Mapping):
        raise ConfigError(f"a row must be a mapping, got {type(row).__name__}", field=place(number))
    found = dict(row)
    for key in found.keys() - set(KEYS):
        known = nearest(key, KEYS) if isinstance(key, str) else None
        if known is not None and known not in found:
            raise ConfigError(f"unknown key {key!r}. Did you mean {known!r}?", field=place(number))
    for key, read in _READ.items():
        if key in found:
            try:
                found[key] = read(found[key])
            except (TypeError, ValueError) as error:
                raise ConfigError(str(error), field=place(number, key)) from None
    return found


class _Numbered:
    """Fills in a missing seed as 0, and a missing id as the position of the row among the rows of its seed."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def complete(self, row: Row) -> Row:
        seed = row.setdefault("seed", 0)
        position = self._counts.get(seed, 0)
        self._counts[seed] = position + 1
        row.setdefault("id", position)
        return row


def _in_file(path: Path | str) -> Place:
    def place(number: int, key: str = "") -> str:
        return f"{path}, line {number + 1}" + (f", {key}" if key else "")

    return place


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their number from 0."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError("is not a regular file. Pass a .jsonl file", field=str(path))
        with path.open("rb") as file:
            for number in range(MOST_ROWS + 1):
                line = file.readline(LINE.characters + 1)
                if not line:
                    return
                if number == MOST_ROWS:
                    raise ConfigError(f"contains more than {MOST_ROWS:,} lines, the maximum", field=str(path))
                if len(line) > LINE.characters:
                    problem = f"the line is longer than {LINE.characters:,} bytes, the maximum"
                    raise ConfigError(problem, field=_in_file(path)(number))
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", field=str(path)) from error


def _parsed(line: bytes, place: str) -> object:
    try:
        return json_value(line.decode("utf-8-sig"), LINE, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", field=place) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not a JSON object: {error.msg} at character {error.pos + 1}", field=place) from error
    except ConfigError as error:
        raise ConfigError(error.message, field=place) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"has the key {_short(repeated)} twice")
    return found


def _score(value: object) -> float:
    return math.nan if value is None else _number(value)


def _number(value: object) -> float:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"must be a number, got the string {value!r}")
    try:
        return float(value)  # type: ignore[arg-type]  # numbers of numpy and torch too
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"must be a number, got {_short(value)}") from None


def _weight(value: object) -> float:
    number = _number(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"must be a finite number of at least 0, got {number}")
    return number


def _seed(value: object) -> int:
    index = getattr(value, "__index__", None)
    if isinstance(value, bool) or index is None:
        raise TypeError(f"must be a whole number, got {_short(value)}")
    return int(index())


def _key(value: object) -> str | int:
    if isinstance(value, str):
        return value
    try:
        return _seed(value)
    except TypeError:
        raise TypeError(f"must be a whole number or a string, got {_short(value)}") from None


def _arm(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a string, got {_short(value)}")
    return str(value)


_READ = {"arm": _arm, "seed": _seed, "id": _key, "score": _score, "weight": _weight, "unit": _key}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _listed(arms: Iterable[str | None]) -> str:
    return ", ".join("rows without an arm" if name is None else repr(name) for name in arms)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """Convert numbers and arrays of numpy and torch to Python values."""
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    raise TypeError(f"a value of type {type(value).__name__} has no form in JSON")
