"""Read CoNLL files, which have one word per line with its columns, and blank lines between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kdplug_tasks.data.table import Table, did_you_mean

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U."""

_IN_CONLLU = {"tokens": "form", "tags": "upos"}

_LACKING = ("upos", "xpos", "head", "deprel")
"""Columns in which ``_`` means unknown; in the others it may be a word or mean "no feature"."""

_NUMBER = re.compile("[1-9][0-9]{0,8}")
_NO_WORD = re.compile("[1-9][0-9]*-[1-9][0-9]*|[0-9]+[.][1-9][0-9]*")
_IN_CONLL = "select the columns by number, such as data.columns: {tokens: 1, tags: 4}"


class Line(NamedTuple):
    """A non-blank line: its number in the file and its columns."""

    number: int
    cells: list[str]


def conllu_columns(text: str, table: Table, names: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return ``tokens`` (FORM), ``tags`` (UPOS) and the other columns in ``names``.

    Ranges (``1-2``) and empty nodes (``8.1``) are skipped: the words of a range have their own lines. A sentence in
    which no word has a tag (``_``) has ``None`` for tags.

    Source: https://universaldependencies.org/format.html

    Raises: ``ConfigError`` for an unknown column, a line that is not CoNLL-U, or a sentence in which only some words
    have a tag.
    """
    own = [*(name for name in _IN_CONLLU if name not in names), *names.values()]
    wanted = {name: _IN_CONLLU.get(name, name) for name in own}
    for name in wanted.values():
        if name not in CONLLU:
            raise table.error(
                f"there is no column {name!r}.{did_you_mean(name, CONLLU)} CoNLL-U has {', '.join(CONLLU)}. Correct data.columns"
            )
    sentences = [_words(sentence, table) for sentence in _sentences(text, "#", _by_tabs)]
    sentences = [sentence for sentence in sentences if sentence]
    return {key: [_column(sentence, name, table) for sentence in sentences] for key, name in wanted.items()}


def _words(sentence: list[Line], table: Table) -> list[Line]:
    found: list[Line] = []
    for line in sentence:
        if len(line.cells) != len(CONLLU) or "" in line.cells:
            raise table.error(
                f"line {line.number} must have {len(CONLLU)} non-empty columns, separated by single tabs, got "
                f"{sum(map(bool, line.cells))}. For another CoNLL format, write data.format: conll and {_IN_CONLL}"
            )
        if _NO_WORD.fullmatch(line.cells[0]):
            continue
        if not _NUMBER.fullmatch(line.cells[0]) or int(line.cells[0]) != len(found) + 1:
            raise table.error(
                f"line {line.number} has the ID {line.cells[0]!r}, but the next ID of this sentence must be "
                f"{len(found) + 1}. Separate sentences by blank lines"
            )
        found.append(line)
    return found


def _column(sentence: list[Line], name: str, table: Table) -> list[str] | None:
    place = CONLLU.index(name)
    found = [line.cells[place] for line in sentence]
    if name not in _LACKING or "_" not in found:
        return found
    if set(found) == {"_"}:
        return None
    line = sentence[found.index("_")]
    raise table.error(
        f"line {line.number}: the word {line.cells[1]!r} has no {name.upper()}, but other words of its sentence have one. Add "
        f"the {name.upper()}, or remove the sentence"
    )


def conll_columns(text: str, table: Table, names: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return ``tokens`` (first column), ``tags`` (last) and the columns that ``names`` selects by number, from 1.

    Columns are separated by tabs if a line has one, else by spaces. Comments (``# `` before the first word of a
    sentence) and ``-DOCSTART-`` lines are skipped.

    Raises: ``ConfigError`` if a line lacks a column; if ``names`` does not select the tags and lines differ in their
    number of columns; if it does not select the words and the first column numbers them.
    """
    sentences = [
        kept
        for sentence in _sentences(text, "# ", _by_any)
        if (kept := [line for line in sentence if line.cells[0] != "-DOCSTART-"])
    ]
    numbers = {own: _number(own, table) for own in names.values() if own not in ("tokens", "tags")}
    chosen = {name for name, own in names.items() if own in numbers}
    if "tags" not in chosen:
        _check_even(sentences, table)
        numbers["tags"] = len(sentences[0][0].cells) if sentences else 1
    if "tokens" not in chosen:
        _check_words(sentences, table)
        numbers["tokens"] = 1
    return {name: [[_cell(line, at, table) for line in one] for one in sentences] for name, at in numbers.items()}


def _number(own: str, table: Table) -> int:
    if not _NUMBER.fullmatch(own):
        raise table.error(
            f"there is no column {own!r}: the columns of a CoNLL file are numbered from 1. S{_IN_CONLL[1:]}"
        )
    return int(own)


def _check_even(sentences: list[list[Line]], table: Table) -> None:
    """Raise ``ConfigError`` if lines differ in their number of columns, or a word has no tag."""
    first: Line | None = None
    for line in (line for sentence in sentences for line in sentence):
        if len(line.cells) < 2:
            raise table.error(f"line {line.number} has the word {line.cells[0]!r} but no tag. Add one")
        first = first or line
        if len(line.cells) != len(first.cells):
            raise table.error(
                f"line {line.number} has {len(line.cells)} columns and line {first.number} has {len(first.cells)}, so it is not clear "
                f"which columns contain words and tags. S{_IN_CONLL[1:]}"
            )


def _check_words(sentences: list[list[Line]], table: Table) -> None:
    """Raise ``ConfigError`` if the first column numbers the words, as in CoNLL-U and CoNLL-X."""
    is_counted = any(len(sentence) > 1 for sentence in sentences)
    for sentence in sentences:
        numbers = [line.cells[0] for line in sentence if not _NO_WORD.fullmatch(line.cells[0])]
        is_counted = is_counted and numbers == [str(place) for place in range(1, len(numbers) + 1)]
    if is_counted:
        raise table.error(
            "the first column contains the numbers of the words in their sentence, not the words. For CoNLL-U, write data.format: "
            f"conllu; otherwise {_IN_CONLL}"
        )


def _cell(line: Line, number: int, table: Table) -> str:
    found = line.cells[number - 1] if number <= len(line.cells) else ""
    if not found:
        raise table.error(
            f"line {line.number}: column {number} is {'empty' if number <= len(line.cells) else 'missing'}. Correct the line, or "
            "data.columns"
        )
    return found


def with_line_feeds(text: str) -> str:
    """Return the text with LF line endings, converted from CR LF or from the CR of old Macs."""
    return text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")


def _sentences(text: str, comment: str, divided: Any) -> Iterator[list[Line]]:
    """Yield the lines of each sentence. Comments come before its first word; after that, the comment sign is a word."""
    found: list[Line] = []
    for number, line in enumerate([*with_line_feeds(text).split("\n"), ""], 1):
        if not line.strip():
            if found:
                yield found
            found = []
        elif found or not line.startswith(comment):
            found.append(Line(number, divided(line.rstrip("\r"))))


def _by_tabs(line: str) -> list[str]:
    return line.split("\t")


def _by_any(line: str) -> list[str]:
    """Split at tabs if there are any, else at ASCII spaces; other spaces are part of a word."""
    if "\t" in line:
        return [cell.strip(" ") for cell in line.split("\t")]
    return [cell for cell in line.split(" ") if cell]
