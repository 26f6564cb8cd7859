"""Text that the student writes itself, to be judged by the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

import kdplug
from kdplug_tasks.batch import Batch
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.setting import Count, Settings
from kdplug_tasks.text.processor import padded


class GenerateSettings(Settings):
    """A share of the batches is written by the student, which goes on from their prompts."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    """The share of the batches that the student writes."""
    max_new_tokens: Count
    """The most tokens after a prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sampling."""
    top_k: Count | None = None
    """Sample from so many of the likeliest tokens; from all unless it is given."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    prompt_length: Count | None = None
    """How many tokens of a text serve as its prompt, where rows have none; those that it begins with (BOS) are among them."""


class Sampler:
    """Writes batches with a student. An example that it writes is no longer than ``max_length`` tokens.

    Each batch is written with probability ``fraction``, all of its rows or none; torch's global generators decide that, and what is
    written.

    Source: Agarwal et al. 2024, arXiv:2306.13649, algorithm 1.
    """

    def __init__(self, settings: GenerateSettings, max_length: int) -> None:
        self.settings = settings
        self._max_length = max_length

    def about(self, *, has_prompts: bool) -> str:
        """A sentence for the start of a run."""
        asked = self.settings
        origin = "each prompt" if has_prompts else f"the first {asked.prompt_length} tokens of each text"
        return (
            f" The student writes {asked.fraction:.0%} of the batches itself, up to {asked.max_new_tokens} tokens after {origin}; "
            "these have no labels."
        )

    def is_due(self) -> bool:
        """Whether the next batch is to be written; each call draws once."""
        return bool(torch.rand(()) < self.settings.fraction)

    def sample(self, batch: Batch, student: Any, tokenizer: Any, end: list[int]) -> Batch:
        """The prompts of ``batch`` with what ``student`` writes after each, up to the last token of ``end``, which documents end
        with, or what else ends a text.

        Nobody wrote labels for that: all are ``-100``, and ``counts`` says which tokens the student wrote.
        """
        starts = self._starts(batch)
        longest = max(starts)
        rows = batch["input_ids"].tolist()
        prompts = [row[:start] for row, start in zip(rows, starts, strict=True)]
        ids, mask = (_on_the_right(prompts, longest, value) for value in (tokenizer.pad_token_id, None))
        stops = _stops(student, tokenizer, end)
        with _generating(student, self._config(stops, tokenizer.pad_token_id, self._max_length - longest)):
            found = student.generate(ids.to(student.device), attention_mask=mask.to(student.device))
        written = [_ended(row, stops) for row in found[:, longest:].tolist()]
        return _joined(prompts, written, tokenizer.pad_token_id)

    def _starts(self, batch: Batch) -> list[int]:
        """Where in each row the prompt ends."""
        if self.settings.prompt_length is None:
            first: list[int] = (batch.targets["labels"] != NO_LABEL).int().argmax(dim=1).tolist()
            return first
        lengths: list[int] = batch["attention_mask"].sum(dim=1).tolist()
        return [min(self.settings.prompt_length, length) for length in lengths]

    def _config(self, stops: list[int], pad: int, room: int) -> Any:
        from transformers import GenerationConfig

        settings = self.settings
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=min(settings.max_new_tokens, room),
            do_sample=True,
            temperature=settings.temperature,
            top_k=settings.top_k or 0,
            top_p=settings.top_p,
            eos_token_id=stops or None,
            pad_token_id=pad,
            use_cache=True,
        )


def check_generation(
    settings: GenerateSettings | None, max_length: int, *, has_prompts: bool, is_packed: bool
) -> Sampler | None:
    """The sampler that the settings ask for.

    Raises: ``ConfigError`` where there is nothing that the student could go on from.
    """
    if settings is None:
        return None
    if has_prompts and settings.prompt_length is not None:
        raise kdplug.ConfigError("has no effect with prompts: true", field="generate.prompt_length")
    if has_prompts and is_packed:
        raise kdplug.ConfigError(
            "puts several prompts into one example, of which the student could go on from one only. Write packing: false",
            field="packing",
        )
    if not has_prompts and settings.prompt_length is None:
        raise kdplug.ConfigError(
            "is required where rows have no prompts: so many tokens of a text are then its prompt",
            field="generate.prompt_length",
        )
    if settings.max_new_tokens + (settings.prompt_length or 1) > max_length:
        raise kdplug.ConfigError(
            f"is {settings.max_new_tokens}; with {settings.prompt_length or 'at least 1'} of a prompt that is more than "
            f"max_length, {max_length}",
            field="generate.max_new_tokens",
        )
    return Sampler(settings, max_length)


def _on_the_right(rows: list[list[int]], length: int, value: int | None) -> Tensor:
    """Rows that end together, ``value`` before each; without a value the mask of that."""
    found = torch.full((len(rows), length), 0 if value is None else value, dtype=torch.long)
    for place, row in enumerate(rows):
        found[place, length - len(row) :] = 1 if value is None else torch.tensor(row, dtype=torch.long)
    return found


def _stops(student: Any, tokenizer: Any, end: list[int]) -> list[int]:
    """What ends a text: what ends documents, the tokenizer's end, and what the model itself takes for one."""
    own = student.generation_config.eos_token_id
    found = [*end[-1:], tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return list(dict.fromkeys(one for one in found if one is not None))


@contextmanager
def _generating(student: Any, config: Any) -> Iterator[None]:
    """``config`` and nothing else decides how the student samples: what it was saved with may rule tokens out."""
    before, student.generation_config = student.generation_config, config
    try:
        yield
    finally:
        student.generation_config = before


def _ended(row: list[int], stops: list[int]) -> list[int]:
    """The row up to its first end, which belongs to it."""
    ends = [place for place, token in enumerate(row) if token in stops]
    return row[: ends[0] + 1] if ends else row


def _joined(prompts: list[list[int]], written: list[list[int]], pad: int) -> Batch:
    rows = [[*prompt, *text] for prompt, text in zip(prompts, written, strict=True)]
    counts = [[0] * len(prompt) + [1] * len(text) for prompt, text in zip(prompts, written, strict=True)]
    longest = max(map(len, rows))
    inputs = {
        "input_ids": padded(rows, longest, pad),
        "attention_mask": padded([[1] * len(row) for row in rows], longest, 0),
    }
    nothing = torch.full_like(inputs["input_ids"], NO_LABEL)
    return Batch(inputs, {"labels": nothing, "counts": padded(counts, longest, 0).bool()})
