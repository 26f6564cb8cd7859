"""The next token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import kdplug
from kdplug_tasks.batch import Batch
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.example import Examples
from kdplug_tasks.models.family import Family
from kdplug_tasks.output import features
from kdplug_tasks.problem import Adapt
from kdplug_tasks.text.document import Tokens, divided, packed, shortened
from kdplug_tasks.text.generation import Sampler
from kdplug_tasks.text.next_token import figures, mean_loss, shifted
from kdplug_tasks.text.processor import TextProcessor, padded, texts_of, vocabulary_of
from kdplug_tasks.text.setting import TokenizerSettings


@dataclass(slots=True)
class Vocabulary:
    """How many of the models' outputs are read; ``None`` for all of them."""

    size: int | None = None


class Language:
    """Each token from those before it. With ``has_prompts`` the tokens of completions alone count."""

    auto = "AutoModelForCausalLM"
    metric = "perplexity"
    is_lower_better = True
    unit = "tokens"

    def __init__(
        self,
        tokenizer: TokenizerSettings | None,
        max_length: int,
        *,
        has_prompts: bool,
        is_packed: bool,
        sampler: Sampler | None = None,
    ) -> None:
        self.columns = Columns(("prompt", "completion") if has_prompts else ("text",), ())
        self.has_prompts = has_prompts
        self.is_packed = is_packed
        self.sampler = sampler
        self.shared = Vocabulary()
        self._settings = tokenizer
        self._max_length = max_length
        self._processor: TextProcessor | None = None

    @property
    def processor(self) -> TextProcessor:
        """The tokenizer, once ``settle`` was called."""
        assert self._processor is not None
        return self._processor

    def settle(self, source: Source, family: Family) -> None:
        """Find the tokenizer, and what both models have of the vocabulary."""
        texts = (text for name in self.columns.inputs for text in texts_of(source.train, name))
        self._processor = TextProcessor.find(self._settings, family, texts, self._max_length, is_framed=False)
        family.from_scratch = self._processor.from_scratch
        self._processor.check(family)
        configs = {"teacher": family.teacher_config, "student": family.student_config}
        for side, config in configs.items():
            check_direction(config, side)
        is_padded = len({vocabulary_of(config) for config in configs.values()}) > 1
        self.shared.size = len(self.processor.tokenizer) if is_padded else None

    def examples(self, table: Table, *, optional: bool) -> Examples:  # noqa: ARG002
        """Blocks of tokens, or documents."""
        documents = self._prompted(table) if self.has_prompts else self._plain(table)
        if self.is_packed:
            found = packed(documents, self._max_length)
        else:
            found = (shortened if self.has_prompts else divided)(documents, self._max_length)
        if not found:
            raise table.error(f"nothing is left to predict in the first {self._max_length} tokens of any row")
        return Examples(found)

    def collate(self, examples: list[Tokens]) -> Batch:
        """Ids and mask; ``labels [batch, length]`` are the ids that count, at their own position, ``-100`` elsewhere."""
        longest = max(len(one.ids) for one in examples)
        labels = [
            [token if counts else NO_LABEL for token, counts in zip(one.ids, one.counts, strict=True)]
            for one in examples
        ]
        inputs = {
            "input_ids": padded([one.ids for one in examples], longest, self.processor.tokenizer.pad_token_id),
            "attention_mask": padded([[1] * len(one.ids) for one in examples], longest, 0),
        }
        return Batch(inputs, {"labels": padded(labels, longest, NO_LABEL)})

    def adaptor(self) -> Adapt:
        """Logits beside the tokens that they are about: position ``i`` holds the logits for token ``i + 1``, and its label.

        Features stay at the positions of their own tokens.
        """
        shared = self.shared

        def adapt(batch: Batch, outputs: Any) -> dict[str, Any]:
            logits, labels = shifted(outputs.logits, batch.targets["labels"], shared.size)
            return {
                "logits": logits,
                "logits_mask": counted(batch, labels),
                "labels": labels,
                "losses": mean_loss(logits, labels),
                "inputs_mask": batch["attention_mask"],
                **features(outputs),
            }

        return adapt

    @property
    def samples(self) -> bool:
        """Whether some batches are written by the student."""
        return self.sampler is not None

    def sampled(self, batch: Batch, student: nn.Module) -> Batch:
        """A batch that the student wrote, or ``batch`` itself, as chance has it."""
        if self.sampler is None or not self.sampler.is_due():
            return batch
        return self.sampler.sample(batch, student, self.processor.tokenizer)

    def count(self, batch: Batch) -> int:
        """The tokens, without padding."""
        return int(batch["attention_mask"].sum())

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Perplexity, the loss that it is the exponential of in nats per token, and the share of tokens that come first."""
        total, right, count = 0.0, 0, 0
        for batch in batches:
            logits, labels = shifted(model(**batch).logits, batch.targets["labels"], self.shared.size)
            found = figures(logits, labels)
            total, right, count = total + found[0], right + found[1], count + found[2]
        loss = total / count
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": right / count}

    def about(self) -> str:
        """How texts became examples, and what is left out of the vocabulary."""
        form = "Documents are packed into blocks" if self.is_packed else "Each document stands alone, cut to pieces"
        only = " Only the tokens of completions count." if self.has_prompts else ""
        cut = (
            f" The models differ in embeddings; both are read up to the tokenizer's {self.shared.size} tokens."
            if self.shared.size
            else ""
        )
        return f"{form} of at most {self._max_length} tokens.{only}{cut}{self._sampling}"

    @property
    def _sampling(self) -> str:
        if self.sampler is None:
            return ""
        asked = self.sampler.settings
        origin = "each prompt" if self.has_prompts else f"the first {asked.prompt_length} tokens of each text"
        return (
            f" The student writes {asked.fraction:.0%} of the batches itself, up to {asked.max_new_tokens} tokens after {origin}; "
            "these have no labels."
        )

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.processor.save(folder)

    def _plain(self, table: Table) -> list[Tokens]:
        ids = self._ids(texts_of(table, "text"))
        return [Tokens([*one, *self._end], [True] * (len(one) + len(self._end))) for one in ids]

    def _prompted(self, table: Table) -> list[Tokens]:
        prompts, completions = (self._ids(texts_of(table, name)) for name in ("prompt", "completion"))
        found = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if not prompt and self.samples:
                raise table.error("the prompt is empty, so the student has nothing to go on from (generate)", row)
            answer = [*completion, *self._end]
            found.append(Tokens([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)))
        return found

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.processor.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    @property
    def _end(self) -> list[int]:
        end = self.processor.tokenizer.eos_token_id
        return [] if end is None else [end]


def counted(batch: Batch, labels: Tensor) -> Tensor:
    """Which items count for losses on logits: what has a label, or what a student wrote. Shape: that of ``labels``."""
    written = batch.targets.get("counts")
    return labels != NO_LABEL if written is None else written[:, 1:].to(labels.device)


def check_direction(config: Any, side: str) -> None:
    """Raises: ``ConfigError`` for a model that sees the tokens it is to predict."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise kdplug.ConfigError(f"transformers has no causal language model of type {config.model_type!r}", field=side)
    if kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise kdplug.ConfigError(
            f"a {config.model_type} model sees the tokens that it is to predict, unless its config says is_decoder: true",
            field=side,
        )
