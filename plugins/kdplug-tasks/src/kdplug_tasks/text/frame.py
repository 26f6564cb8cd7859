"""Find the special tokens around a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import kdplug
from kdplug_tasks.data.table import Table

_PROBES = ("a", "the end")
_FIRST, _LAST = 5, 3
_STRETCH = 48


class Frame(NamedTuple):
    """The ids before a document, which are never predicted, and those after it, which are."""

    begin: list[int]
    end: list[int]

    def around(self, table: Table) -> Frame:
        """Return the tokens around the documents of ``table``. A running text does not end."""
        return self._replace(end=[]) if table.is_running else self

    def check_room(self, max_length: int) -> None:
        """Raise ``ConfigError`` if the start tokens leave room for fewer than two tokens."""
        if max_length - len(self.begin) < 2:
            starts = "1 special token" if len(self.begin) == 1 else f"{len(self.begin)} special tokens"
            raise kdplug.ConfigError(
                f"must be at least {len(self.begin) + 2}, got {max_length}: each example begins with {starts} and needs 2 more tokens",
                field="max_length",
            )


def find_frame(tokenizer: Any, add_bos_token: bool | None, field: str) -> Frame:
    """Return the special tokens around a document: those that ``tokenizer`` adds, or its end token if it adds no end.

    ``add_bos_token`` sets whether documents get start tokens; with ``None``, the tokenizer decides.
    The tokens are detected by encoding, since attributes such as ``add_bos_token`` are not reliable.

    Raises: ``ConfigError`` if the tokenizer inserts special tokens inside a text (naming ``field``), or start tokens
    are requested and it has none.
    """
    found = _added(tokenizer)
    if found is None and add_bos_token is None:
        raise kdplug.ConfigError(
            "the tokenizer also inserts special tokens inside a text, so the start of a document cannot be detected. Set "
            "add_bos_token to true or false",
            field=field,
        )
    begin, end = found or Frame([], [])
    if add_bos_token is False:
        begin = []
    elif add_bos_token and not begin:
        if tokenizer.bos_token_id is None:
            raise kdplug.ConfigError(
                "is true, but the tokenizer has no bos_token. Set add_bos_token to false, or use a tokenizer with a bos_token",
                field="add_bos_token",
            )
        begin = [tokenizer.bos_token_id]
    if not end and tokenizer.eos_token_id is not None:
        end = [tokenizer.eos_token_id]
    return Frame(begin, end)


def _added(tokenizer: Any) -> Frame | None:
    """Return the tokens around all probes, ``None`` if they differ."""
    frames: list[Frame] | None = None
    for probe in _PROBES:
        bare: list[int] = tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"]
        whole: list[int] = tokenizer(probe, verbose=False)["input_ids"]
        size = len(bare)
        places = [place for place in range(len(whole) - size + 1) if whole[place : place + size] == bare]
        here = [Frame(whole[:place], whole[place + size :]) for place in places]
        frames = here if frames is None else [one for one in frames if one in here]
    return frames[0] if frames else None


def departure(tokenizer: Any, frame: Frame) -> str:
    """Return a warning, for users of a saved student, if documents begin differently from texts of ``tokenizer``."""
    own = (_added(tokenizer) or Frame([], [])).begin
    if own == frame.begin:
        return ""
    text = tokenizer.decode(own or frame.begin)
    return (
        f" The saved tokenizer {'adds' if own else 'does not add'} {text!r} before a text, unlike this task (add_bos_token). "
        "Account for this when you use the student."
    )


def sketch(tokenizer: Any, ids: Sequence[int], counts: Sequence[bool]) -> str:
    """Describe a document: its first and last tokens, and how many tokens enter the loss.

    The others are in parentheses, among them always the first, which cannot be predicted.
    """
    entering = [False, *counts[1:]]
    is_short = len(ids) <= _FIRST + _LAST + 1
    parts = [slice(None)] if is_short else [slice(_FIRST), slice(-_LAST, None)]
    shown = " … ".join(_words(tokenizer, ids[part], entering[part]) for part in parts)
    return f"{shown}: {sum(entering):,} of {len(ids):,} tokens enter the loss, those in parentheses do not"


def stretch(tokenizer: Any, examples: Sequence[Sequence[int]], end: Sequence[int]) -> str:
    """Return decoded tokens of an example: around the first end of a document inside one, else of the first example."""
    shown, start = examples[0], 0
    if end:
        places = ((ids, ids.index(end[-1])) for ids in examples if end[-1] in ids)
        shown, place = next(((ids, place) for ids, place in places if place < len(ids) - 1), (shown, 0))
        start = max(0, min(place - _STRETCH // 2, len(shown) - _STRETCH))
    text = tokenizer.decode(shown[start : start + _STRETCH])
    return f" An excerpt of the training data: {text!r}."


def _words(tokenizer: Any, ids: Sequence[int], entering: Sequence[bool]) -> str:
    return " ".join(_written(tokenizer, token, enters=enters) for token, enters in zip(ids, entering, strict=True))


def _written(tokenizer: Any, token: int, *, enters: bool) -> str:
    text = tokenizer.decode([token])
    if not text or "\ufffd" in text:  # empty, or part of a character
        text = str(tokenizer.convert_ids_to_tokens(token))
    return repr(text) if enters else f"({text!r})"
