"""Language modelling: predict the next token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdplug
from kdplug_tasks.batch import Batch, Examples, features, with_inputs
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import WHOLE, Table
from kdplug_tasks.models.config import text_part
from kdplug_tasks.models.family import Family, Side
from kdplug_tasks.problem import Adapt
from kdplug_tasks.text.document import UNKNOWN
from kdplug_tasks.text.dual_reader import DualTokenReader
from kdplug_tasks.text.frame import Frame
from kdplug_tasks.text.generation import Sampler
from kdplug_tasks.text.next_token import Logits, after_end, figures, loss_sum, shifted
from kdplug_tasks.text.processor import TextProcessor, texts_of
from kdplug_tasks.text.reader import Form, OneReader
from kdplug_tasks.text.setting import TokenizerSettings
from kdplug_tasks.text.tokenizer import classes_of

_UNEXPECTED = 5.0
"""Nats above the mean loss from which a warning is logged.

A new paragraph costs a language model about 3, the first token after a chat turn about 10.
"""


def check_direction(config: Any, side: str) -> None:
    """Raise ``ConfigError`` for a model that attends to the tokens it predicts."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise kdplug.ConfigError(f"transformers has no causal language model of type {config.model_type!r}", field=side)
    if kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise kdplug.ConfigError(
            f"a {config.model_type} model attends to the tokens that it predicts, unless its config has is_decoder: true. Use a "
            "causal language model",
            field=side,
        )


@dataclass(slots=True)
class Vocabulary:
    """Number of a model's outputs to read; ``None`` for all."""

    size: int | None = None


class Language:
    """Predict each token from those before it. With ``form.has_prompts``, only the tokens of completions count.

    A student with a different vocabulary gets its own tokens of the same texts.
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
        documents: str = WHOLE,
    ) -> None:
        self.columns = Columns(("prompt", "completion") if form.has_prompts else ("text",), (), documents=documents)
        self.form = form
        self.sampler = sampler
        self.read: dict[Side, Vocabulary] = {"teacher": Vocabulary(), "student": Vocabulary()}
        self._settings = tokenizer
        self._settings_of_student = student_tokenizer
        self._reader: OneReader | DualTokenReader | None = None
        self._side_of: Callable[[nn.Module], Side] | None = None

    @property
    def reader(self) -> OneReader | DualTokenReader:
        """The reader of examples; available after ``settle``."""
        assert self._reader is not None
        return self._reader

    def processor_of(self, side: Side) -> TextProcessor:
        """Return the tokenizer of one side; available after ``settle``."""
        return self.reader.processor if isinstance(self.reader, OneReader) else self.reader.processors[side]

    def frame_of(self, side: Side) -> Frame:
        """Return the special tokens around one side's documents; available after ``settle``."""
        return self.reader.frame if isinstance(self.reader, OneReader) else self.reader.frames[side]

    @property
    def processor(self) -> TextProcessor:
        """The teacher's tokenizer."""
        return self.processor_of("teacher")

    @property
    def spans_vocabularies(self) -> bool:
        """True if the student's vocabulary differs from the teacher's."""
        return isinstance(self._reader, DualTokenReader)

    @property
    def metric(self) -> str:
        """The main metric; perplexities over different vocabularies are not comparable."""
        return "bits_per_byte" if self.spans_vocabularies else "perplexity"

    @property
    def unit(self) -> str:
        """Unit of throughput, of which both sides have the same number."""
        return "bytes" if self.spans_vocabularies else "tokens"

    def settle(self, source: Source, family: Family) -> None:
        """Determine the tokenizers, and how many outputs of each model are read."""
        if self.columns.documents != WHOLE and all(table.documents is None for table in source.tables):
            raise kdplug.ConfigError(
                "divides plain text files and has no effect on rows of other formats. Remove documents",
                field="documents",
            )
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
        """Raise ``ConfigError`` for settings that require both sides to have the same tokens."""
        if family.student.from_teacher is not None:
            raise kdplug.ConfigError(
                "copies embeddings and head of the teacher, but the student's tokenizer has a different vocabulary, so the "
                "rows would belong to other tokens. Replace from_teacher by config",
                field="student.from_teacher",
            )
        if self.sampler is not None:
            raise kdplug.ConfigError(
                "cannot be used with two tokenizers: the student generates its own tokens, which the teacher does not have. "
                "Remove generate",
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
        """Return blocks of tokens, or documents."""
        return self.reader.examples(table)

    def examples_of_teacher(self, examples: Examples) -> Examples:
        """Return the teacher's training examples, given the student's."""
        return self.reader.of_teacher(examples) if isinstance(self.reader, DualTokenReader) else examples

    def collate(self, examples: list[Any]) -> Batch | Mapping[str, Batch]:
        """Return a batch, or one for each side."""
        return self.reader.collate(examples)

    def adaptor(self, side: Side = "student") -> Adapt:
        """Return the adaptor, which aligns logits with the tokens they predict.

        Position ``i`` has the logits and label of token ``i + 1``. Features stay at the positions of their tokens. If the
        student generates batches, extras hold what it wrote.
        """
        vocabulary, sampler = self.read[side], self.sampler

        def adapt(batch: Batch, outputs: Any) -> dict[str, Any]:
            logits, labels = shifted(outputs.logits, batch.targets["labels"], vocabulary.size)
            return {
                "logits": logits,
                "logits_mask": counted(batch, labels),
                "labels": labels,
                "losses": loss_sum(logits, labels),
                "inputs_mask": batch["attention_mask"],
                **({} if sampler is None else {"extras": sampler.extras(batch)}),
                **features(outputs),
            }

        return adapt

    def review_teacher(self, outputs: Iterable[kdplug.Outputs]) -> Iterator[tuple[str, str]]:
        """Yield a warning if the teacher does not expect the text that follows an end token inside an example."""
        frame, one = self.frame_of("teacher"), next(iter(outputs))
        logits = (one.logits or (None,))[0]
        if not self.form.is_packed or not frame.end or one.labels is None:
            return
        if not isinstance(logits, Tensor | kdplug.FactoredLogits):
            return
        mean, first, count = after_end(logits, one.labels[0], frame.end[-1], len(frame.begin))
        if first - mean < _UNEXPECTED:
            return
        token = self.processor.tokenizer.decode(frame.end[-1:])
        fix = "packing" if self.columns.documents == WHOLE else "documents: whole for a running text, or packing"
        message = (
            f"after the end token {token!r} between documents, the teacher's loss on the next token is {first:.1f} nats (mean of "
            f"{count}; all tokens: {mean:.1f}), so the teacher was not trained on text after an end token, and the student learns from such "
            f"predictions. Set {fix}: false so that nothing follows an end token"
        )
        yield "documents", message

    @property
    def samples(self) -> bool:
        """True if the student generates some batches."""
        return self.sampler is not None

    def sampled(self, batch: Batch, student: nn.Module) -> Batch:
        """Return a batch that the student generated, or ``batch`` itself, at random."""
        if self.sampler is None or not self.sampler.is_due():
            return batch
        return self.sampler.sample(batch, student, self.processor.tokenizer, self.frame_of("student").end)

    def count(self, batch: Any) -> int:
        """Return the number of tokens without padding; bytes of text if the vocabularies differ."""
        return self.reader.count(batch)

    def part_of(self, batch: Any, model: nn.Module) -> Batch:
        """Return the part of a batch that is the input of ``model``."""
        found: Batch = batch[self._side(model)] if self.spans_vocabularies else batch
        return found

    def _side(self, model: nn.Module) -> Side:
        """Return the side of a model if the vocabularies differ, else the student's."""
        return self._side_of(model) if self.spans_vocabularies and self._side_of is not None else "student"

    def predict(self, model: nn.Module, batches: Iterable[Any]) -> kdplug.Predictions:
        """Return perplexity, loss in nats per token, and accuracy; and the loss of each example.

        With two vocabularies, also bits per byte of text, which is comparable between the sides. An example that
        predicts no text, such as only an end token, counts as one byte.

        The unit of an example is its document. Blocks that are packed, or cut from a running text, are units themselves:
        the best available, although neighbouring blocks are not independent.
        """
        side = self._side(model)
        totals = torch.zeros(4, dtype=torch.float64)
        rows: list[kdplug.Prediction] = []
        for batch in batches:
            part = self.part_of(batch, model)
            found = self._figures(part, model(**part).logits, self.read[side].size)
            totals += found.sum(dim=0)
            scored = [self._row(*one) for one in zip(found.tolist(), part.targets["document"].tolist(), strict=True)]
            rows += with_inputs(scored, self.processor_of(side).shown(part))
        nats, right, tokens, size = totals.tolist()
        loss = nats / tokens
        metrics = {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": right / tokens}
        if not self.spans_vocabularies:
            return kdplug.Predictions(metrics, rows, "exp_mean", "tokens")
        return kdplug.Predictions({"bits_per_byte": nats / math.log(2) / size, **metrics}, rows, target="tokens")

    def _figures(self, part: Batch, logits: Logits, vocabulary: int | None) -> Tensor:
        """Return nats, tokens predicted correctly, tokens, and bytes of text (at least 1) of each row of a batch.

        ``vocabulary`` is the number of classes that are read.
        """
        labels = part.targets["labels"]
        found = figures(*shifted(logits, labels, vocabulary))
        sizes = (
            torch.ones(len(labels)) if (of_tokens := part.targets.get("sizes")) is None else _bytes(of_tokens, labels)
        )
        return torch.cat([found, sizes.to(found).unsqueeze(1)], dim=1)

    def _row(self, counted: list[float], document: int) -> kdplug.Prediction:
        nats, _, tokens, size = counted
        row: kdplug.Prediction = {"score": nats / tokens, "weight": tokens}
        if self.spans_vocabularies:
            row = {"score": nats / math.log(2) / size, "weight": size}
        return row if document == UNKNOWN else {**row, "unit": document}

    def about(self) -> str:
        """Describe how texts became examples, and how many outputs are read."""
        form = (
            "Documents are packed into blocks" if self.form.is_packed else "Each document is cut separately into pieces"
        )
        only = " Only the tokens of completions count." if self.form.has_prompts else ""
        sampling = "" if self.sampler is None else self.sampler.about(has_prompts=self.form.has_prompts)
        return f"{form} of at most {self.form.max_length} tokens.{only}{self._about_vocabulary}{sampling}{self.reader.sketch}"

    @property
    def _about_vocabulary(self) -> str:
        own, theirs = self.read["student"].size, self.read["teacher"].size
        if isinstance(self.reader, DualTokenReader):
            return (
                f" The student has its own tokenizer, with {own} tokens (teacher: {theirs}). Predictions are compared where "
                f"the tokens of both end at the same character: {self.reader.compared:,} of {self.reader.predicted:,} "
                "predictions of the student."
            )
        if own:
            return f" The models differ in vocabulary size; only the outputs of the tokenizer's {own} tokens are read."
        return ""

    def save(self, folder: Path, side: Side) -> None:
        """Write the tokenizer of one side."""
        self.processor_of(side).save(folder)


def _bytes(sizes: Tensor, labels: Tensor) -> Tensor:
    """Return the bytes of text of the tokens that count in each row, at least 1."""
    return (sizes[:, 1:] * (labels[:, 1:] != NO_LABEL)).sum(dim=1).clamp_min(1)


def counted(batch: Batch, labels: Tensor) -> Tensor:
    """Return the mask of items that count for losses on logits: those with a label, or generated. Shape: as ``labels``."""
    written = batch.targets.get("counts")
    return labels != NO_LABEL if written is None else written[:, 1:].to(labels.device)
