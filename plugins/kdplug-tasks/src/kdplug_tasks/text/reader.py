"""Rows of a language task as examples, and examples as batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kdplug_tasks.batch import Batch
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.data.table import Table
from kdplug_tasks.example import Examples
from kdplug_tasks.text.document import Tokens, divided, packed, shortened
from kdplug_tasks.text.processor import TextProcessor, padded, texts_of


@dataclass(frozen=True, slots=True)
class Form:
    """How texts become examples of at most ``max_length`` tokens: with ``has_prompts`` the tokens of completions alone count;
    packed, they stand one after the other. ``needs_prompts`` says that an empty prompt is an error.
    """

    max_length: int
    has_prompts: bool
    is_packed: bool
    needs_prompts: bool = False

    def nothing_left(self, table: Table) -> Exception:
        """That the rows are too short, or prompts too long."""
        return table.error(f"nothing is left to predict in the first {self.max_length} tokens of any row")


class Reader(Protocol):
    """What makes examples of a table, and batches of examples."""

    def examples(self, table: Table) -> Examples:
        """Blocks of tokens, or documents. Raises: ``ConfigError``."""
        ...

    def collate(self, examples: list[Any]) -> Batch | Mapping[str, Batch]:
        """A padded batch, or one for each side."""
        ...

    def count(self, batch: Any) -> int:
        """How much a batch holds, padding left out."""
        ...


class Counting(Protocol):
    """Tokens of which some count."""

    @property
    def ids(self) -> list[int]:
        """What they are."""
        ...

    @property
    def counts(self) -> list[bool]:
        """Which of them are to be predicted."""
        ...


class OneReader:
    """One tokenizer for both sides. An example is ``Tokens``."""

    def __init__(self, processor: TextProcessor, form: Form) -> None:
        self.processor = processor
        self.form = form

    def examples(self, table: Table) -> Examples:
        """Blocks of tokens, or documents."""
        form = self.form
        documents = self._prompted(table) if form.has_prompts else self._plain(table)
        if form.is_packed:
            found = packed(documents, form.max_length)
        else:
            found = (shortened if form.has_prompts else divided)(documents, form.max_length)
        if not found:
            raise form.nothing_left(table)
        return Examples(found)

    def collate(self, examples: list[Tokens]) -> Batch:
        """Ids and mask; ``labels [batch, length]`` are the ids that count, at their own position, ``-100`` elsewhere."""
        return batch_of(examples, self.processor)

    def count(self, batch: Batch) -> int:
        """The tokens, without padding."""
        return int(batch["attention_mask"].sum())

    def _plain(self, table: Table) -> list[Tokens]:
        ids = self._ids(texts_of(table, "text"))
        end = end_of(self.processor)
        return [Tokens([*one, *end], [True] * (len(one) + len(end))) for one in ids]

    def _prompted(self, table: Table) -> list[Tokens]:
        prompts, completions = (self._ids(texts_of(table, name)) for name in ("prompt", "completion"))
        found = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if not prompt and self.form.needs_prompts:
                raise table.error("the prompt is empty, so the student has nothing to go on from (generate)", row)
            answer = [*completion, *end_of(self.processor)]
            found.append(Tokens([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)))
        return found

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.processor.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return found


def batch_of(examples: Sequence[Counting], processor: TextProcessor) -> Batch:
    """Ids and mask of tokens of which some count, and those as labels, ``[batch, length]`` each."""
    longest = max(len(one.ids) for one in examples)
    labels = [
        [token if counts else NO_LABEL for token, counts in zip(one.ids, one.counts, strict=True)] for one in examples
    ]
    inputs = {
        "input_ids": padded([one.ids for one in examples], longest, processor.tokenizer.pad_token_id),
        "attention_mask": padded([[1] * len(one.ids) for one in examples], longest, 0),
    }
    return Batch(inputs, {"labels": padded(labels, longest, NO_LABEL)})


def end_of(processor: TextProcessor) -> list[int]:
    """What ends a text, as ids."""
    end = processor.tokenizer.eos_token_id
    return [] if end is None else [end]
