"""Which characters of a text each token is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import kdplug
from kdplug_tasks.text.alignment import Span


class Spelled(NamedTuple):
    """A text as tokens: their ids, and the characters of each."""

    ids: list[int]
    spans: list[Span]


class Speller:
    """Turns texts to ids as ``tokenizer`` does, without special tokens around them, and knows the characters of each token.

    ``field`` names the setting of the tokenizer, for messages. Whole characters are asked for: where a tokenizer is told to
    leave the white space of a token out of its span, it is not.

    Raises: ``ConfigError`` for a tokenizer that does not know.
    """

    def __init__(self, tokenizer: Any, field: str) -> None:
        if not tokenizer.is_fast:
            raise kdplug.ConfigError(
                f"{type(tokenizer).__name__} does not say which characters a token is of, and two tokenizers need that to be "
                "aligned. A fast tokenizer is needed (tokenizer.json)",
                field=field,
            )
        self._tokenizer = tokenizer
        self._field = field
        self._whole = _untrimmed(tokenizer.backend_tokenizer, field)

    def spell(self, texts: Sequence[str]) -> list[Spelled]:
        """Each text as tokens.

        Raises: ``ConfigError`` where the tokenizer gives other ids when it is asked for characters.
        """
        if not texts:
            return []
        ids = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        found = self._whole.encode_batch(list(texts), add_special_tokens=False)
        if any(one.ids != own for one, own in zip(found, ids, strict=True)):
            raise kdplug.ConfigError(
                f"{type(self._tokenizer).__name__} changes what its fast tokenizer gives, so the characters of its tokens are not "
                "known",
                field=self._field,
            )
        return [Spelled(own, list(one.offsets)) for own, one in zip(ids, found, strict=True)]


def flaw(text: str, spans: Sequence[Span]) -> str | None:
    """Why the spans do not tell what has been read of ``text`` after each token; ``None`` where they do.

    They have to follow each other and, together, to hold every character that is not white space. What a tokenizer writes
    otherwise (case, ligatures) is known by the characters that it stands for; what it drops is not.
    """
    before, reached = (0, 0), 0
    for span in spans:
        begin, end = span
        if begin < before[0] or end < before[1] or not begin <= end <= len(text):
            return f"says that a token is of the characters {begin} to {end}, after one of {before[0]} to {before[1]}"
        if begin > reached and (lost := text[reached:begin].strip()):
            return _dropped(lost)
        before, reached = span, max(reached, end)
    lost = text[reached:].strip()
    return _dropped(lost) if lost else None


def _dropped(lost: str) -> str:
    return (
        f"has no token for {lost[:20]!r} (U+{ord(lost[0]):04X}), so that what it has read and what the other one has read are not "
        "the same. Take it out of the text, or take a tokenizer that drops nothing"
    )


def _untrimmed(backend: Any, field: str) -> Any:
    """The same tokenizer without what cuts, pads, frames or trims afterwards."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    try:
        made = Tokenizer.from_str(backend.to_str())
    except Exception as error:  # tokenizers raises Exception itself, for parts that are written in Python
        first = (str(error).strip().splitlines() or [""])[0]
        raise kdplug.ConfigError(f"its tokenizer cannot be copied: {first}", field=field) from error
    made.encode_special_tokens = backend.encode_special_tokens
    made.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    made.no_truncation()
    made.no_padding()
    return made
