"""Tokenize and pad texts for the models of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kdplug
from kdplug_tasks.batch import INPUT_LENGTH
from kdplug_tasks.models.config import positions, text_part
from kdplug_tasks.models.family import Family
from kdplug_tasks.text.setting import TokenizerSettings
from kdplug_tasks.text.tokenizer import (
    check_agreement,
    check_vocabulary,
    classes_of,
    difference,
    has_tokenizer,
    load_tokenizer,
    make_tokenizer,
)

_CHECKED = 2000
"""Rows whose length is checked for a warning."""


class TextProcessor:
    """Tokenizes texts and pads batches to their longest text.

    Texts are truncated to ``max_length`` tokens.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def find(
        cls,
        settings: TokenizerSettings | None,
        family: Family,
        texts: Iterable[str],
        max_length: int,
        *,
        is_framed: bool = True,
        is_split: bool = False,
    ) -> TextProcessor:
        """Return the tokenizer of ``settings``, by default the teacher's. ``is_split``: inputs will be words.

        Raises: ``ConfigError`` if there is none, or it differs from a trained teacher's.
        """
        if settings is None:
            if family.teacher.path is None:
                raise kdplug.ConfigError(
                    "is required, since the teacher is built from scratch. Set it to a folder, a hub name, or {train: bytes-bpe, vocab: 512}",
                    field="tokenizer",
                )
            return cls(load_tokenizer(family.teacher.path, "teacher.path", is_split=is_split), max_length)
        if settings.path is not None:
            found = load_tokenizer(settings.path, "tokenizer", is_split=is_split)
        else:
            found = make_tokenizer(settings, texts, is_framed=is_framed, is_split=is_split)
        _check_trained(found, family)
        return cls(found, max_length)

    def of_student(
        self, settings: TokenizerSettings | None, family: Family, texts: Iterable[str]
    ) -> TextProcessor | None:
        """Return the student's own tokenizer: that of ``settings``, else that of its folder.

        Return ``None`` if there is none, or if its vocabulary equals the teacher's, so that both can share this one.

        Raises: ``ConfigError`` if both exist and differ.
        """
        path, own = family.student.path, None
        if path is not None and has_tokenizer(path):
            own = load_tokenizer(path, "student.path")
        if settings is not None:
            brought = own
            if settings.path is None:
                own = make_tokenizer(settings, texts, is_framed=False)
            else:
                own = load_tokenizer(settings.path, "student_tokenizer")
            if brought is not None and (reason := difference(brought, own)):
                raise kdplug.ConfigError(
                    f"has a different vocabulary from the tokenizer of {path!r}: {reason}. Remove student_tokenizer",
                    field="student_tokenizer",
                )
        if own is None or not difference(self.tokenizer, own):
            return None
        return TextProcessor(own, self.max_length)

    @property
    def from_scratch(self) -> dict[str, Any]:
        """Config values for a model from scratch."""
        ids = {f"{name}_token_id": getattr(self.tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        return {"vocab_size": classes_of(self.tokenizer), **ids}

    def check_places(self) -> None:
        """Raise ``ConfigError`` if the tokenizer cannot map tokens to words or characters."""
        if not self.tokenizer.is_fast:
            raise kdplug.ConfigError(
                f"{type(self.tokenizer).__name__} cannot map tokens to positions in the text. Use a fast tokenizer (tokenizer.json)",
                field="tokenizer",
            )

    def check(self, family: Family) -> None:
        """Raise ``ConfigError`` if the tokenizer does not match the models, or ``max_length`` is too large for one."""
        path = family.student.path
        if path is not None and has_tokenizer(path):
            check_agreement(self.tokenizer, load_tokenizer(path, "student.path"), "student.path")
        self.check_model(family.teacher_config, "teacher")
        self.check_model(family.student_config, "student")

    def check_model(self, config: Any, side: str) -> None:
        """Raise ``ConfigError`` if the tokenizer does not match the model, or ``max_length`` is too large for it."""
        text = text_part(config, side)
        check_vocabulary(self.tokenizer, text.vocab_size, side)
        limit = positions(text)
        if limit is not None and self.max_length > limit:
            raise kdplug.ConfigError(
                f"is {self.max_length}, but the {side} takes sequences of at most {limit} tokens. Set max_length to {limit} or less",
                field="max_length",
            )
        if getattr(text, "pad_token_id", None) is None:
            text.pad_token_id = self.tokenizer.pad_token_id

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
        """Return the inputs of each text or pair, truncated to ``max_length``; in a pair, the longer text is truncated."""
        if not texts:
            return []
        given = [list(texts)] if pairs is None else [list(texts), list(pairs)]
        found = self.tokenizer(*given, truncation=True, max_length=self.max_length)
        names = [name for name in self.tokenizer.model_input_names if name in found]
        return [{name: found[name][row] for name in names} for row in range(len(texts))]

    def review_length(self, *texts: Sequence[Any], is_split: bool = False) -> Iterator[tuple[str, str]]:
        """Yield a warning if rows are longer than ``max_length``, judged by at most about 2,000 of them, evenly spaced."""
        step = max(1, len(texts[0]) // _CHECKED)
        given = [list(column[::step]) for column in texts]
        found = self.tokenizer(*given, is_split_into_words=is_split, truncation=False, verbose=False)["input_ids"]
        lengths = [len(ids) for ids in found]
        cut = sum(length > self.max_length for length in lengths)
        if cut:
            of = "" if step == 1 else f" (of {len(lengths)} that were checked)"
            message = (
                f"{cut / len(lengths):.1%} of the rows{of} are longer than max_length, {self.max_length} tokens, and "
                f"are truncated; the longest has {max(lengths)} tokens"
            )
            yield "max_length", message

    def pad(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """Return the inputs of a batch, padded on the right. Shapes: ``[batch, length]`` each."""
        longest = max(len(example["input_ids"]) for example in examples)
        values = {"input_ids": self.tokenizer.pad_token_id}
        return {
            name: padded([example[name] for example in examples], longest, values.get(name, 0)) for name in examples[0]
        }

    def shown(self, batch: Mapping[str, Tensor]) -> list[str]:
        """Return the start of each example's text on one line; several texts are separated by a bar."""
        special = {getattr(self.tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep", "pad")}
        found = []
        for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
            kept = [token for token, is_kept in zip(ids, mask, strict=True) if is_kept][:INPUT_LENGTH]
            texts = [list(part) for is_special, part in groupby(kept, special.__contains__) if not is_special]
            found.append(" | ".join(" ".join(self.tokenizer.decode(part).split()) for part in texts))
        return found

    def save(self, folder: Path) -> None:
        """Write the tokenizer, without the truncation and padding that its last call set."""
        if self.tokenizer.is_fast:
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.save_pretrained(folder)


def _check_trained(tokenizer: Any, family: Family) -> None:
    path = family.teacher.path
    if path is None or family.teacher.train or not has_tokenizer(path):
        return
    if reason := difference(load_tokenizer(path, "teacher.path"), tokenizer):
        raise kdplug.ConfigError(
            f"has a different vocabulary from the tokenizer that the teacher in {path!r} was trained with: {reason}. Remove tokenizer; to give only "
            "the student another tokenizer, use the student_tokenizer of causal-lm",
            field="tokenizer",
        )


def padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    """Return rows of integers as a tensor ``[rows, length]``, padded on the right with ``value``."""
    found = torch.full((len(rows), length), value, dtype=torch.long)
    for place, row in enumerate(rows):
        found[place, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return found


def texts_of(table: Any, column: str) -> list[str]:
    """Return a column of texts.

    Raises: ``ConfigError`` for a cell that is not text.
    """
    if column not in table.columns:
        raise table.error(f"there is no column {column!r}, but the training data have one")
    found = list(table.columns[column])
    for row, text in enumerate(found):
        if not isinstance(text, str):
            raise table.error(f"column {column!r} must hold text, got {type(text).__name__} {str(text)[:40]}", row)
    return found
