"""Read rows from files (CSV, TSV, JSON, Parquet, CoNLL, text, NPZ) and from folders of images."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import kdplug
from kdplug_tasks.data.conll import conll_columns, conllu_columns, with_line_feeds
from kdplug_tasks.data.table import BLANK_LINE, LINE, WHOLE, Table, did_you_mean, without_rows
from kdplug_tasks.regular_file import NOT_REGULAR, is_broken_link, is_special

_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def read_folder(folder: Path, table: Table) -> Table:
    """Return ``image``, a path, and ``label``, the name of its subfolder, sorted by path.

    Images directly in the folder have no label.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.casefold() in _PICTURE_ENDINGS)
    if not files:
        raise table.error("it is a folder without images. To read rows, give the path of a file in this folder")
    columns: dict[str, list[Any]] = {"image": [str(file) for file in files]}
    labels = [None if file.parent == folder else file.relative_to(folder).parts[0] for file in files]
    if any(labels):
        columns["label"] = labels
    return Table(table.origin, table.field, columns)


def read_arrays(file: Path, table: Table) -> dict[str, Any]:
    """Return the arrays of an NPZ file, such as ``image`` and ``label``, with rows along the first axis.

    Raises: ``ConfigError`` if the file is not NPZ, or its arrays differ in length.
    """
    import numpy

    try:
        with file.open("rb") as stream, numpy.load(stream, allow_pickle=False) as archive:
            arrays = {name: numpy.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # zipfile, zlib and the parser of array headers raise many types of exceptions
        raise table.error(f"it cannot be read as an NPZ file of arrays without pickles: {error}") from error
    for name, array in arrays.items():
        if not array.ndim:
            raise table.error(
                f"its array {name!r} is a single value; a column needs one value per row. Remove the array"
            )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise table.error(
            f"its arrays differ in length: {', '.join(f'{name} {size}' for name, size in lengths.items())}. "
            "Each array must have one value per row"
        )
    return {name: array if array.ndim > 1 else array.tolist() for name, array in arrays.items()}


_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".conll": "conll",
    ".conllu": "conllu",
    ".bio": "conll",
    ".iob": "conll",
    ".txt": "text",
    ".npz": "npz",
}


_SHOWN = 200


def read_file(
    path: str,
    file_format: str | None,
    field: str,
    header: Sequence[str] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
    *,
    delimiter: str | None = None,
    documents: str = BLANK_LINE,
) -> Table:
    """Read the table in a file. ``field`` is the setting that errors name; ``names`` selects columns of CoNLL files.

    ``delimiter`` separates the columns of CSV files; ``documents`` is how a plain text file is divided into rows.

    Raises: ``ConfigError`` if the file does not exist, its format is unknown, or it is malformed, not UTF-8 or empty, or
    a text file lacks the separator of its documents.
    """
    file = Path(path)
    try:
        if file.is_dir() and file_format in (None, "pictures"):
            return read_folder(file, Table(path, field, {}))
        if not file.is_file():
            raise _no_file(file, field)
    except OSError as error:  # name too long, folder not readable
        raise kdplug.ConfigError(f"cannot read {path[:_SHOWN]!r}: {error.strerror}", field=field) from error
    file_format = _format(file, file_format, field, {"header": header, "delimiter": delimiter})
    table = Table(path, field, {})
    columns: Mapping[str, Sequence[Any]]
    lines: list[int] = []
    if file_format in ("parquet", "npz"):
        columns = (_parquet if file_format == "parquet" else read_arrays)(file, table)
    elif file_format in ("csv", "tsv"):
        columns = _separated(_text(file, table), table, lines, file_format, header, delimiter)
    elif file_format == "jsonl":
        columns = _json_lines(_text(file, table), table, lines)
    elif file_format == "text":
        columns = {"text": _documents(_text(file, table), table, documents)}
    else:
        columns = _READERS[file_format](_text(file, table), table, names)
    found = Table(path, field, columns, documents=documents if file_format == "text" else None, lines=lines)
    if not len(found):
        raise without_rows(found)
    return found


def _format(file: Path, file_format: str | None, field: str, of_columns: Mapping[str, Any]) -> str:
    """Return the format of a file, and check that it takes the settings ``of_columns`` that are set."""
    found = file_format or _ENDINGS.get(file.suffix.casefold())
    if found is None:
        formats = ", ".join(dict.fromkeys(_ENDINGS.values()))
        fix = f"Rename the file, or set data.format to one of {formats}"
        if not field.startswith("data."):  # an option without a format
            fix = f"Rename the file; the known extensions are {', '.join(_ENDINGS)}"
        raise kdplug.ConfigError(f"cannot infer the format of {str(file)!r} from its extension. {fix}", field=field)
    for name, value in of_columns.items():
        formats_of = ("csv", "tsv") if name == "header" else ("csv",)
        if value is not None and found not in formats_of:
            raise kdplug.ConfigError(
                f"has no effect on {str(file)!r}, which is read as {found}. Remove data.{name}, or set "
                f"data.format to {' or '.join(formats_of)}",
                field=f"data.{name}",
            )
    return found


def _no_file(file: Path, field: str) -> kdplug.ConfigError:
    if is_special(file):
        return kdplug.ConfigError(f"{str(file)!r} {NOT_REGULAR}", field=field)
    if file.is_dir():
        return kdplug.ConfigError(f"{str(file)!r} is a folder. Give the path of a file in this folder", field=field)
    if is_broken_link(file):
        return kdplug.ConfigError(f"{str(file)!r} is a broken link", field=field)
    folder = file.parent
    near = did_you_mean(file.name, [one.name for one in folder.iterdir()] if folder.is_dir() else [])
    there = "" if folder.is_dir() else f" There is no folder {str(folder)!r} either."
    if not file.is_absolute():
        there += f" Relative paths start in the current folder, {str(Path.cwd())!r}."
    return kdplug.ConfigError(f"there is no file {str(file)!r}.{near}{there}", field=field)


def _text(file: Path, table: Table) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise table.error(f"it cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise table.error(
            f"it is not UTF-8: line {line} contains the byte 0x{raw[error.start]:02x}. Convert the file, for example with iconv -f LATIN1 -t UTF-8"
        ) from error


def _separated(  # noqa: PLR0917  the settings of one file
    text: str, table: Table, lines: list[int], file_format: str, header: Sequence[str] | None, delimiter: str | None
) -> dict[str, list[Any]]:
    """Return the columns, and append the line on which each row begins to ``lines``."""
    dialect = _DIALECTS[file_format] | ({} if delimiter is None else {"delimiter": delimiter})
    rows = csv.reader(io.StringIO(text, newline=""), **dialect)
    try:
        names = list(header) if header is not None else next(rows, [])
        if file_format == "csv" and header is None and len(names) == 1:
            _check_delimiter(names[0], table)
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise table.error(
                f"several columns have the same name: {', '.join(map(repr, repeated))}. Rename all but one of each"
            )
        found, line = [], rows.line_num + 1
        quoting = ". Quote cells that contain the delimiter" if file_format == "csv" else ""
        for row in rows:
            if len(row) != len(names) and row:
                raise table.error(
                    f"line {rows.line_num} must have one cell for each column ({', '.join(names)}), got {len(row)}{quoting if len(row) > len(names) else ''}"
                )
            if row:
                found.append(row)
                lines.append(line)
            line = rows.line_num + 1
    except csv.Error as error:
        raise table.error(f"line {rows.line_num} cannot be parsed: {error}") from error
    return {name: [row[place] for row in found] for place, name in enumerate(names)}


def delimiter_of(file: Path) -> str | None:
    """Return the delimiter of a CSV file whose first line is a single column that contains another one than the comma."""
    if file.suffix.casefold() != ".csv" or not file.is_file():
        return None
    with file.open(encoding="utf-8", errors="replace", newline="") as text:
        line = text.readline(_FIRST_LINE)
    try:
        names = next(csv.reader([line]), [])
    except csv.Error:
        return None
    return _delimiter_in(names[0]) if len(names) == 1 else None


_FIRST_LINE = 10_000
"""Characters of a first line that are read to find the delimiter."""


def _delimiter_in(name: str) -> str | None:
    return next((mark for mark in (";", "\t", "|", ",") if mark in name), None)


def _check_delimiter(name: str, table: Table) -> None:
    """Raise ``ConfigError`` for the name of a single column that contains a separator other than the one in use."""
    found = _delimiter_in(name)
    if found is not None:
        shown = json.dumps(found)
        raise table.error(
            f"its first line is a single column, {name[:_SHOWN]!r}, which contains {shown}. If this separates columns, "
            f"set data.delimiter: {shown}; otherwise rename the column"
        )


_DIALECTS: dict[str, dict[str, Any]] = {
    "csv": {"strict": True},
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},  # text in TSV datasets often contains bare quotes
}


def _json_lines(text: str, table: Table, lines: list[int]) -> dict[str, list[Any]]:
    """Return the columns, and append the line of each object to ``lines``, unless they are in a list."""
    rows = []
    for line, row in _objects(text, table):
        rows.append(row)
        if line is not None:
            lines.append(line)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys}


def _objects(text: str, table: Table) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Yield each non-blank line with its object, or the objects of a single list without a line."""
    if text.lstrip().startswith("["):
        values = [(1, text)]
    else:
        values = [(place, line) for place, line in enumerate(text.split("\n"), 1) if line.strip()]
    for place, line in values:
        try:
            value = json.loads(line, object_pairs_hook=_unique)
            _check_characters(value if "\\u" in line else "")
        except RecursionError:
            raise table.error(f"line {place} is nested too deeply") from None
        except UnicodeEncodeError as error:
            raise table.error(
                f"line {place} contains half of a surrogate pair, {error.object[error.start]!a}, which is not a character. Remove the escape sequence"
            ) from error
        except json.JSONDecodeError as error:
            raise table.error(
                f"line {place + error.lineno - 1} is not valid JSON: {error.msg} (column {error.colno}). The file must have one object "
                "per line, or be a single list of objects"
            ) from error
        except ValueError as error:
            raise table.error(f"line {place} is not valid JSON: {error}") from error
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                what = "each item of the list" if isinstance(value, list) else f"line {place}"
                raise table.error(f"{what} must be an object, got {json.dumps(one)[:40]}")
            yield None if isinstance(value, list) else place, one


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return found


def _check_characters(value: Any) -> None:
    """Raise ``UnicodeEncodeError`` for text in which an escape is half of a surrogate pair, which tokenizers reject."""
    json.dumps(value, ensure_ascii=False).encode()


def _parquet(file: Path, table: Table) -> dict[str, list[Any]]:
    from pyarrow import ArrowException, parquet

    try:
        columns: dict[str, list[Any]] = parquet.read_table(file).to_pydict()
    except (
        ArrowException,
        OSError,
        ValueError,
        OverflowError,
    ) as error:  # ValueError and OverflowError for an invalid text or date
        raise table.error(f"it cannot be read as Parquet: {error}") from error
    return columns


def _documents(text: str, table: Table, documents: str) -> list[str]:
    """Return the documents of a plain text file, each as it is between its separators, without blank ones."""
    text = with_line_feeds(text)
    if documents == WHOLE:
        found = [text]
    elif documents == BLANK_LINE:
        found = [part.strip("\n") for part in re.split(r"\n(?:[ \t]*\n)+", text)]
    else:
        separator = "\n" if documents == LINE else with_line_feeds(documents)
        if separator not in text and documents != LINE:
            near = did_you_mean(documents, (WHOLE, BLANK_LINE, LINE))
            raise kdplug.ConfigError(
                f"the separator {documents!r} does not occur in {table.origin}.{near} A file with one document must end with "
                f"the separator. To divide the text in another way, write {WHOLE}, {BLANK_LINE} or {LINE}",
                field="documents",
            )
        found = text.split(separator)
    return [part for part in found if part.strip()]


_READERS: dict[str, Callable[[str, Table, Mapping[str, str]], dict[str, list[Any]]]] = {
    "conll": conll_columns,
    "conllu": conllu_columns,
}
