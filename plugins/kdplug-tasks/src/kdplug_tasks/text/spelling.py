"""Determine which characters of a text each token covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import kdplug
from kdplug_tasks.text.alignment import Span


class Spelled(NamedTuple):
    """A text as tokens: their ids and character ranges."""

    ids: list[int]
    spans: list[Span]


class Speller:
    """Tokenizes texts like ``tokenizer``, without special tokens, and returns the characters of each token.

    ``field`` is the setting that errors name. A tokenizer's option to trim whitespace from token offsets is disabled.

    Raises: ``ConfigError`` for a tokenizer without character offsets.
    """

    def __init__(self, tokenizer: Any, field: str) -> None:
        if not tokenizer.is_fast:
            raise kdplug.ConfigError(
                f"{type(tokenizer).__name__} has no character offsets, which are needed to align two tokenizers. Use a fast tokenizer "
                "(tokenizer.json)",
                field=field,
            )
        self._tokenizer = tokenizer
        self._field = field
        self._whole = _untrimmed(tokenizer.backend_tokenizer, field)

    def spell(self, texts: Sequence[str]) -> list[Spelled]:
        """Return each text as tokens.

        Raises: ``ConfigError`` if the ids with offsets differ from those of the tokenizer.
        """
        if not texts:
            return []
        ids = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        found = self._whole.encode_batch(list(texts), add_special_tokens=False)
        if any(one.ids != own for one, own in zip(found, ids, strict=True)):
            raise kdplug.ConfigError(
                f"{type(self._tokenizer).__name__} changes the ids of its fast tokenizer, so the characters of its tokens are "
                "unknown. Use another tokenizer",
                field=self._field,
            )
        return [Spelled(own, list(one.offsets)) for own, one in zip(ids, found, strict=True)]


def flaw(text: str, spans: Sequence[Span]) -> str | None:
    """Return why the spans do not show which characters of ``text`` each token covers; ``None`` if they do.

    Spans must be in order and together cover every character that is not whitespace. Characters that a tokenizer
    normalizes (case, ligatures) are still covered; characters that it drops are not.
    """
    before, reached = (0, 0), 0
    for span in spans:
        begin, end = span
        if begin < before[0] or end < before[1] or not begin <= end <= len(text):
            return (
                f"gives a token the characters {begin} to {end}, after a token with {before[0]} to {before[1]}, so its "
                "tokens cannot be aligned. Use another tokenizer"
            )
        if begin > reached and (lost := text[reached:begin].strip()):
            return _dropped(lost)
        before, reached = span, max(reached, end)
    lost = text[reached:].strip()
    return _dropped(lost) if lost else None


def _dropped(lost: str) -> str:
    return (
        f"has no token for {lost[:20]!r} (U+{ord(lost[0]):04X}), so the two models would not get the same text. Remove these "
        "characters from the text, or use a tokenizer that drops no characters"
    )


def _untrimmed(backend: Any, field: str) -> Any:
    """Return a copy of the tokenizer without truncation, padding, special tokens and trimmed offsets."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    try:
        made = Tokenizer.from_str(backend.to_str())
    except Exception as error:  # tokenizers raises plain Exception for components written in Python
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise kdplug.ConfigError(
            f"the tokenizer cannot be copied to read its offsets: {first}. Use another tokenizer", field=field
        ) from error
    made.encode_special_tokens = backend.encode_special_tokens
    made.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    made.no_truncation()
    made.no_padding()
    return made
