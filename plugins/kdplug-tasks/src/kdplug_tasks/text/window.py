"""Split contexts that exceed a model's maximum sequence length into overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kdplug_tasks.data.label import NO_LABEL, is_missing
from kdplug_tasks.data.table import Table


class Answer(NamedTuple):
    """A correct answer and its character offset in the context."""

    text: str
    start: int


class Window(NamedTuple):
    """The inputs of a question with part of its context.

    ``question`` is the question's number, ``offsets`` are the characters of the context that each token covers, ``(0,
    0)`` for tokens outside the context; ``start`` and ``end`` are the tokens of the answer, 0 if it is not in this
    window, ``-100`` if it is unknown.
    """

    inputs: dict[str, list[int]]
    question: int
    offsets: list[tuple[int, int]]
    start: int
    end: int


def answers_of(table: Table, contexts: Sequence[str], *, optional: bool) -> list[list[Answer] | None]:
    """Return the correct answers of each row; ``None`` if it has no such cell, an empty list if there is no answer.

    They are in ``answers``, as ``{"text": […], "answer_start": […]}``, or in ``answer`` and ``answer_start``.

    Raises: ``ConfigError`` if the answer does not start at ``answer_start``.
    """
    found: list[list[Answer] | None] = []
    for row, context in enumerate(contexts):
        answers = _cell(table, row)
        if answers is None and not optional:
            raise table.error("there are no answers; write an empty list if the question has none", row)
        for answer in answers or ():
            if context[answer.start : answer.start + len(answer.text)] != answer.text:
                real = context.find(answer.text)
                where = f"it starts at {real}" if real >= 0 else "the context does not contain it"
                raise table.error(
                    f"the answer {answer.text!r} does not start at answer_start {answer.start}: {where}", row
                )
        found.append(answers)
    return found


def _cell(table: Table, row: int) -> list[Answer] | None:
    columns = table.columns
    if "answers" in columns:
        cell = columns["answers"][row]
        if cell is None:
            return None
        pairs = _pairs(cell, table, row)
    elif "answer" in columns and "answer_start" in columns:
        text, start = columns["answer"][row], columns["answer_start"][row]
        pairs = [] if is_missing(text) else [(text, start)]
    else:
        return None
    return [Answer(_text(text, table, row), _whole(start, table, row)) for text, start in pairs]


_FORM = 'answers must be {"text": […], "answer_start": […]}, or a list of such objects, one per answer'


def _pairs(cell: Any, table: Table, row: int) -> list[tuple[Any, Any]]:
    """Return the text and start of each answer."""
    parts = cell if isinstance(cell, list) else [cell]
    pairs: list[tuple[Any, Any]] = []
    for part in parts:
        if not isinstance(part, dict) or not {"text", "answer_start"} <= part.keys():
            raise table.error(f"{_FORM}, got {_shortened(part)}", row)
        texts, starts = (one if isinstance(one, list) else [one] for one in (part["text"], part["answer_start"]))
        if len(texts) != len(starts):
            raise table.error(
                f"text and answer_start differ in length, {len(texts)} and {len(starts)}. Each answer needs one text and one answer_start",
                row,
            )
        pairs += zip(texts, starts, strict=True)
    return pairs


def _shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"


def _text(text: Any, table: Table, row: int) -> str:
    if not isinstance(text, str):
        raise table.error(f"the text of an answer must be a string, got {_shortened(text)}", row)
    return text


def _whole(start: Any, table: Table, row: int) -> int:
    """Return an offset, which CSV files hold as text and some tables as a float."""
    try:
        found = int(start)
    except (TypeError, ValueError, OverflowError):
        found = -1
    if isinstance(start, bool) or found < 0 or (isinstance(start, float) and start != found):
        raise table.error(f"answer_start must be a whole number of at least 0, got {_shortened(start)}", row)
    return found


def windows(encoded: Any, names: Sequence[str], answers: Sequence[list[Answer] | None], first: int) -> list[Window]:
    """Return the windows of encoded questions, which are numbered from ``first``."""
    found = []
    for place, row in enumerate(encoded["overflow_to_sample_mapping"]):
        is_context = [part == 1 for part in encoded.sequence_ids(place)]
        spans = zip(encoded["offset_mapping"][place], is_context, strict=True)
        offsets = [tuple(span) if inside else (0, 0) for span, inside in spans]
        start, end = _tokens(answers[row], offsets)
        inputs = {name: encoded[name][place] for name in names}
        found.append(Window(inputs, first + row, offsets, start, end))
    return found


def _tokens(answers: list[Answer] | None, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the first and last token of the first answer if the window contains all of it, else zeros."""
    if answers is None:
        return NO_LABEL, NO_LABEL
    if not answers:
        return 0, 0
    begin, stop = answers[0].start, answers[0].start + len(answers[0].text)
    inside = [place for place, (a, b) in enumerate(offsets) if a < b and a < stop and b > begin]
    if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < stop:
        return 0, 0
    return inside[0], inside[-1]
