"""The next token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import kdplug
from kdplug_tasks.batch import Batch, Examples, features
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.models.config import text_part
from kdplug_tasks.models.family import Family, Side
from kdplug_tasks.problem import Adapt
from kdplug_tasks.text.dual_reader import DualTokenReader
from kdplug_tasks.text.frame import Frame
from kdplug_tasks.text.generation import Sampler
from kdplug_tasks.text.next_token import Logits, figures, loss_sum, shifted
from kdplug_tasks.text.processor import TextProcessor, texts_of
from kdplug_tasks.text.reader import Form, OneReader
from kdplug_tasks.text.setting import TokenizerSettings
from kdplug_tasks.text.tokenizer import classes_of


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


@dataclass(slots=True)
class Perplexity:
    """What was predicted so far: ``nats`` in all, the tokens that came first, all tokens, and the bytes of text that they are."""

    nats: float = 0.0
    right: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, batch: Batch, logits: Logits, vocabulary: int | None) -> None:
        """What a model gave for a batch, of whose classes the first ``vocabulary`` are read."""
        found = figures(*shifted(logits, batch.targets["labels"], vocabulary))
        self.nats, self.right, self.tokens = self.nats + found[0], self.right + found[1], self.tokens + found[2]
        if (sizes := batch.targets.get("sizes")) is not None:
            self.bytes += int(sizes[:, 1:][batch.targets["labels"][:, 1:] != NO_LABEL].sum())

    @property
    def figures(self) -> dict[str, float]:
        """Perplexity, the loss that it is the exponential of in nats per token, and the share of tokens that come first."""
        loss = self.nats / self.tokens
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": self.right / self.tokens}

    @property
    def bits_per_byte(self) -> float:
        """All nats in bits, for each byte of text; no number where there is no text."""
        return self.nats / math.log(2) / (self.bytes or math.nan)


@dataclass(slots=True)
class Vocabulary:
    """How many of a model's outputs are read; ``None`` for all of them."""

    size: int | None = None


class Language:
    """Each token from those before it. With ``has_prompts`` the tokens of completions alone count.

    A student whose tokenizer has another vocabulary than the teacher's is given its own tokens of the same texts.
    """

    auto = "AutoModelForCausalLM"
    is_lower_better = True

    def __init__(
        self,
        tokenizer: TokenizerSettings | None,
        form: Form,
        *,
        student_tokenizer: TokenizerSettings | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.columns = Columns(("prompt", "completion") if form.has_prompts else ("text",), ())
        self.form = form
        self.sampler = sampler
        self.read: dict[Side, Vocabulary] = {"teacher": Vocabulary(), "student": Vocabulary()}
        self._settings = tokenizer
        self._settings_of_student = student_tokenizer
        self._reader: OneReader | DualTokenReader | None = None
        self._side_of: Callable[[nn.Module], Side] | None = None

    @property
    def reader(self) -> OneReader | DualTokenReader:
        """What makes examples of texts, once ``settle`` was called."""
        assert self._reader is not None
        return self._reader

    def processor_of(self, side: Side) -> TextProcessor:
        """The tokenizer of one side, once ``settle`` was called."""
        return self.reader.processor if isinstance(self.reader, OneReader) else self.reader.processors[side]

    def frame_of(self, side: Side) -> Frame:
        """What documents of one side begin and end with, once ``settle`` was called."""
        return self.reader.frame if isinstance(self.reader, OneReader) else self.reader.frames[side]

    @property
    def processor(self) -> TextProcessor:
        """The teacher's tokenizer."""
        return self.processor_of("teacher")

    @property
    def spans_vocabularies(self) -> bool:
        """Whether the student has a vocabulary of its own."""
        return isinstance(self._reader, DualTokenReader)

    @property
    def metric(self) -> str:
        """What can be compared: perplexities of two vocabularies cannot."""
        return "bits_per_byte" if self.spans_vocabularies else "perplexity"

    @property
    def unit(self) -> str:
        """What both sides have equally many of."""
        return "bytes" if self.spans_vocabularies else "tokens"

    def settle(self, source: Source, family: Family) -> None:
        """Find the tokenizers, and what each model has of its vocabulary."""
        texts = [text for name in self.columns.inputs for text in texts_of(source.train, name)]
        length = self.form.max_length
        shared = TextProcessor.find(self._settings, family, texts, length, is_framed=False)
        own = shared.of_student(self._settings_of_student, family, texts)
        family.from_scratch = shared.from_scratch
        self._side_of = family.side_of
        if own is None:
            self._reader = OneReader(shared, self.form)
        else:
            self._check_apart(family)
            family.of_student = own.from_scratch
            self._reader = DualTokenReader(own, shared, self.form)
        self._check_models(family)

    def _check_apart(self, family: Family) -> None:
        """Raises: ``ConfigError`` for what takes the tokens of one side for those of the other."""
        if family.student.from_teacher is not None:
            raise kdplug.ConfigError(
                "takes embeddings and head of the teacher, and the student's tokenizer has another vocabulary, so that the rows "
                "would stand for other tokens. Give the student a config",
                field="student.from_teacher",
            )
        if self.sampler is not None:
            raise kdplug.ConfigError(
                "does not go with two tokenizers: what the student writes are its own tokens, which the teacher does not have. "
                "Leave it out",
                field="generate",
            )

    def _check_models(self, family: Family) -> None:
        configs: dict[Side, Any] = {"teacher": family.teacher_config, "student": family.student_config}
        for side, config in configs.items():
            self.processor_of(side).check_model(config, side)
            check_direction(config, side)
        embeddings = {side: text_part(config, side).vocab_size for side, config in configs.items()}
        is_padded = self.spans_vocabularies or len(set(embeddings.values())) > 1
        for side, vocabulary in self.read.items():
            vocabulary.size = classes_of(self.processor_of(side).tokenizer) if is_padded else None

    def examples(self, table: Table, *, optional: bool) -> Examples:  # noqa: ARG002
        """Blocks of tokens, or documents."""
        return self.reader.examples(table)

    def examples_of_teacher(self, examples: Examples) -> Examples:
        """What the teacher is fitted on, where that is not what the student is trained on."""
        return self.reader.of_teacher(examples) if isinstance(self.reader, DualTokenReader) else examples

    def collate(self, examples: list[Any]) -> Batch | Mapping[str, Batch]:
        """A batch, or one for each side."""
        return self.reader.collate(examples)

    def adaptor(self, side: Side = "student") -> Adapt:
        """Logits beside the tokens that they are about: position ``i`` holds the logits for token ``i + 1``, and its label.

        Features stay at the positions of their own tokens.
        """
        vocabulary = self.read[side]

        def adapt(batch: Batch, outputs: Any) -> dict[str, Any]:
            logits, labels = shifted(outputs.logits, batch.targets["labels"], vocabulary.size)
            return {
                "logits": logits,
                "logits_mask": counted(batch, labels),
                "labels": labels,
                "losses": loss_sum(logits, labels),
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
        return self.sampler.sample(batch, student, self.processor.tokenizer, self.frame_of("student").end)

    def count(self, batch: Any) -> int:
        """The tokens, without padding; the bytes of text where the sides differ in tokens."""
        return self.reader.count(batch)

    def part_of(self, batch: Any, model: nn.Module) -> Batch:
        """What ``model`` is given of a batch."""
        found: Batch = batch[self._side(model)] if self.spans_vocabularies else batch
        return found

    def _side(self, model: nn.Module) -> Side:
        """Which side a model is on, where that makes a difference."""
        return self._side_of(model) if self.spans_vocabularies and self._side_of is not None else "student"

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """Perplexity, loss in nats per token, and the share of tokens that come first.

        With two vocabularies first of all the bits for each byte of text, which both sides have alike.
        """
        found, vocabulary = Perplexity(), self.read[self._side(model)].size
        for batch in batches:
            part = self.part_of(batch, model)
            found.add(part, model(**part).logits, vocabulary)
        return {"bits_per_byte": found.bits_per_byte, **found.figures} if self.spans_vocabularies else found.figures

    def about(self) -> str:
        """How texts became examples, and what is left out of the vocabulary."""
        form = (
            "Documents are packed into blocks" if self.form.is_packed else "Each document stands alone, cut to pieces"
        )
        only = " Only the tokens of completions count." if self.form.has_prompts else ""
        sampling = "" if self.sampler is None else self.sampler.about(has_prompts=self.form.has_prompts)
        return f"{form} of at most {self.form.max_length} tokens.{only}{self._about_vocabulary}{sampling}{self.reader.sketch}"

    @property
    def _about_vocabulary(self) -> str:
        own, theirs = self.read["student"].size, self.read["teacher"].size
        if isinstance(self.reader, DualTokenReader):
            return (
                f" The student has a tokenizer of its own, {own} tokens beside the teacher's {theirs}: what they predict is "
                f"compared where both have read the same characters, {self.reader.compared:,} of {self.reader.predicted:,} times."
            )
        if own:
            return f" The models differ in embeddings; both are read up to the tokenizer's {own} tokens."
        return ""

    def save(self, folder: Path) -> None:
        """Write the student's tokenizer."""
        self.processor_of("student").save(folder)


def counted(batch: Batch, labels: Tensor) -> Tensor:
    """Which items count for losses on logits: what has a label, or what a student wrote. Shape: that of ``labels``."""
    written = batch.targets.get("counts")
    return labels != NO_LABEL if written is None else written[:, 1:].to(labels.device)
