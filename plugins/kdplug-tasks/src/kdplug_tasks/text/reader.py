"""Make examples and batches of a language task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kdplug_tasks.batch import Batch, Examples
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.data.table import Table
from kdplug_tasks.text.document import UNKNOWN, Tokens, divided, packed, shortened
from kdplug_tasks.text.frame import departure, find_frame, sketch, stretch
from kdplug_tasks.text.processor import TextProcessor, padded, texts_of


@dataclass(frozen=True, slots=True)
class Form:
    """Rules for making examples of at most ``max_length`` tokens from texts.

    ``has_prompts``: only tokens of completions count; ``is_packed``: documents are concatenated; ``needs_prompts``:
    prompts must not be empty; ``add_bos_token``: whether documents get start tokens, ``None`` lets the tokenizer
    decide.
    """

    max_length: int
    has_prompts: bool
    is_packed: bool
    needs_prompts: bool = False
    add_bos_token: bool | None = None

    def nothing_left(self, table: Table) -> Exception:
        """Return the error for rows that are too short, or prompts that are too long."""
        return table.error(
            f"no row has a token to predict in its first {self.max_length} tokens (max_length). Increase max_length, or add longer rows"
        )


class Reader(Protocol):
    """Makes examples from a table, and batches from examples."""

    def examples(self, table: Table) -> Examples:
        """Return blocks of tokens, or documents. Raises: ``ConfigError``."""
        ...

    def collate(self, examples: list[Any]) -> Batch | Mapping[str, Batch]:
        """Return a padded batch, or one for each side."""
        ...

    def count(self, batch: Any) -> int:
        """Return the number of units in a batch, without padding."""
        ...


class Counting(Protocol):
    """Tokens with a flag for each, and the number of their document."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        ...

    @property
    def counts(self) -> list[bool]:
        """For each token, whether its prediction counts."""
        ...

    @property
    def document(self) -> int:
        """Number of the document, ``-1`` if it is unknown or there are several."""
        ...


class OneReader:
    """One tokenizer for both sides. An example is ``Tokens``."""

    def __init__(self, processor: TextProcessor, form: Form) -> None:
        self.processor = processor
        self.form = form
        self.frame = find_frame(processor.tokenizer, form.add_bos_token, "tokenizer")
        self.frame.check_room(form.max_length)
        self._first: Tokens | None = None
        self._stretch = ""

    @property
    def sketch(self) -> str:
        """Describes the first document, and shows an excerpt of the training data."""
        if self._first is None:
            return ""
        tokenizer = self.processor.tokenizer
        shown = f" The first document is {sketch(tokenizer, self._first.ids, self._first.counts)}.{self._stretch}"
        return shown + departure(tokenizer, self.frame)

    def examples(self, table: Table) -> Examples:
        """Return blocks of tokens, or documents."""
        form, begin = self.form, self.frame.begin
        documents = self._prompted(table) if form.has_prompts else self._plain(table)
        if form.has_prompts and not form.is_packed:
            documents = found = shortened(documents, form.max_length)
        else:
            found = (packed if form.is_packed else divided)(documents, form.max_length, begin)
        if not found:
            raise form.nothing_left(table)
        if self._first is None:
            self._first = next((one for one in documents if one.is_something), None)
            self._stretch = stretch(self.processor.tokenizer, [one.ids for one in found], self.frame.end)
        return Examples(found)

    def collate(self, examples: list[Tokens]) -> Batch:
        """Return ids, mask and ``labels [batch, length]``: the ids that count, not shifted, ``-100`` elsewhere."""
        return batch_of(examples, self.processor)

    def count(self, batch: Batch) -> int:
        """Return the number of tokens, without padding."""
        return int(batch["attention_mask"].sum())

    def _plain(self, table: Table) -> list[Tokens]:
        begin, end = self.frame.around(table)
        ids = self._ids(texts_of(table, "text"))
        return [
            Tokens([*begin, *one, *end], [False] * len(begin) + [True] * (len(one) + len(end)), number_of(table, row))
            for row, one in enumerate(ids)
        ]

    def _prompted(self, table: Table) -> list[Tokens]:
        prompts, completions = (self._ids(texts_of(table, name)) for name in ("prompt", "completion"))
        found = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            start = [*self.frame.begin, *prompt]
            if not start and self.form.needs_prompts:
                raise table.error(
                    "the prompt is empty, so there is nothing for the student to continue (generate). Write a prompt, or remove the row",
                    row,
                )
            answer = [*completion, *self.frame.end]
            found.append(Tokens([*start, *answer], [False] * len(start) + [True] * len(answer), row))
        return found

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.processor.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return found


def batch_of(examples: Sequence[Counting], processor: TextProcessor) -> Batch:
    """Return ids, mask, and labels of the tokens that count, ``[batch, length]`` each, and documents ``[batch]``."""
    longest = max(len(one.ids) for one in examples)
    labels = [
        [token if counts else NO_LABEL for token, counts in zip(one.ids, one.counts, strict=True)] for one in examples
    ]
    inputs = {
        "input_ids": padded([one.ids for one in examples], longest, processor.tokenizer.pad_token_id),
        "attention_mask": padded([[1] * len(one.ids) for one in examples], longest, 0),
    }
    documents = torch.tensor([one.document for one in examples])
    return Batch(inputs, {"labels": padded(labels, longest, NO_LABEL), "document": documents})


def number_of(table: Table, row: int) -> int:
    """Return the number of the document in a row; the pieces of a running text are not one document."""
    return UNKNOWN if table.is_running else row
