"""Token classification: predict a tag for each word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

import kdplug
from kdplug_tasks.batch import Batch, Examples, features, with_inputs
from kdplug_tasks.data.classes import find_labels
from kdplug_tasks.data.label import NO_LABEL, Labels, is_missing, written
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.models.family import Family, Side
from kdplug_tasks.problem import Adapt
from kdplug_tasks.targets.category import at_least_float32, cross_entropy_sum, review_accuracy
from kdplug_tasks.text.processor import TextProcessor, padded
from kdplug_tasks.text.setting import TokenizerSettings

_BEGINS, _ENDS = ("B", "S", "U"), ("E", "L", "S", "U")


class Span(NamedTuple):
    """An entity of type ``kind``: words ``start`` to ``end``, inclusive."""

    kind: str
    start: int
    end: int


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the spans encoded by tags in IOB1, IOB2, BIOES or BILOU, as the CoNLL-2000 evaluation interprets them.

    An invalid continuation begins a new span: ``I-PER`` after ``O`` or after ``I-LOC``.

    Source: Tjong Kim Sang and Buchholz 2000, "Introduction to the CoNLL-2000 Shared Task: Chunking", ``conlleval``.
    """
    found: list[Span] = []
    begun: tuple[str, int] | None = None
    before = ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        is_inside = mark not in ("O", *_BEGINS) and before[0] not in ("O", *_ENDS) and before[1] == kind
        if begun is not None and not is_inside:
            found.append(Span(begun[0], begun[1], place - 1))
            begun = None
        if mark != "O" and begun is None:
            begun = (kind, place)
        before = (mark, kind)
    return found


def has_spans(tags: Sequence[str]) -> bool:
    """Return whether tags follow such a scheme: ``O``, and prefixed entity types."""
    marked = [tag for tag in tags if tag != "O"]
    return "O" in tags and bool(marked) and all(tag[:2] in _PREFIXES and len(tag) > 2 for tag in marked)


_PREFIXES = tuple(f"{mark}-" for mark in "BIESLU")


class SpanCounts(NamedTuple):
    """Numbers of spans that are ``right``, that were ``predicted``, and that were ``expected``."""

    right: int
    predicted: int
    expected: int

    @classmethod
    def of(cls, true: Sequence[str], found: Sequence[str]) -> SpanCounts:
        """Count the spans of a sentence."""
        mine, theirs = set(spans(true)), set(spans(found))
        return cls(len(mine & theirs), len(theirs), len(mine))

    @property
    def f1(self) -> float:
        """Twice the right spans over all predicted and expected ones; 0 if there are none."""
        total = self.predicted + self.expected
        return 2 * self.right / total if total else 0.0


def span_scores(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return precision, recall and F1 over the spans of all sentences; 0 if the denominator is 0."""
    counts = [SpanCounts.of(one, other) for one, other in zip(true, found, strict=True)]
    whole = SpanCounts(*map(sum, zip(*counts, strict=True)))
    precision, recall = whole.right / max(whole.predicted, 1), whole.right / max(whole.expected, 1)
    return {"f1": whole.f1, "precision": precision, "recall": recall}


_SHOWN = 8
"""Number of words of a sentence shown in a plan."""


class Sentence(NamedTuple):
    """Inputs of a sentence; ``firsts`` marks the first sub-word of each word; ``labels`` has the class there, else
    ``-100``.
    """

    inputs: dict[str, list[int]]
    firsts: list[int]
    labels: list[int]


class Words:
    """The prediction for a word is the one for its first sub-word."""

    auto = "AutoModelForTokenClassification"
    is_lower_better = False
    unit = "examples"
    columns = Columns(("tokens",), ("tags",))

    def __init__(self, tokenizer: TokenizerSettings | None, max_length: int, names: Sequence[str] | None) -> None:
        self.names = names
        self.labels = Labels(())
        self.metric = "f1"
        self.cut_words = 0
        self._first: tuple[list[str], list[int], list[int]] | None = None
        self._settings = tokenizer
        self._max_length = max_length
        self._processor: TextProcessor | None = None

    @property
    def processor(self) -> TextProcessor:
        """The tokenizer; available after ``settle``."""
        assert self._processor is not None
        return self._processor

    def settle(self, source: Source, family: Family) -> None:
        """Determine the tags and the tokenizer, and whether the tags encode spans."""
        train = source.train
        self.labels = find_labels(self.names, family.trained, source, "tags", _tags)
        self.metric = "f1" if has_spans(self.labels.names) else "accuracy"
        family.changes = self.labels.to_config
        texts = (" ".join(words) for words in _words(train))
        self._processor = TextProcessor.find(self._settings, family, texts, self._max_length, is_split=True)
        family.from_scratch = self._processor.from_scratch
        self._processor.check_places()
        self._processor.check(family)

    def examples(self, table: Table, *, optional: bool) -> Examples:
        """Return each sentence as ids and classes. Words beyond the maximum length are dropped and counted."""
        words = _words(table)
        classes = self._classes(table, words, optional=optional)
        tokenizer = self.processor.tokenizer
        found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=self._max_length)
        names = [name for name in tokenizer.model_input_names if name in found]
        sentences = []
        for row, chosen in enumerate(classes):
            places = found.word_ids(row)
            firsts = [int(_is_first(places, place)) for place in range(len(places))]
            labels = [
                chosen[word] if first and word is not None else NO_LABEL
                for word, first in zip(places, firsts, strict=True)
            ]
            self.cut_words += len(words[row]) - sum(firsts)
            sentences.append(Sentence({name: found[name][row] for name in names}, firsts, labels))
        self._first = self._first or (words[0], classes[0], sentences[0].firsts)
        return Examples(sentences)

    def collate(self, examples: list[Sentence]) -> Batch:
        """Return a padded batch; ``words`` and ``labels`` are ``[batch, length]``."""
        inputs = self.processor.pad([one.inputs for one in examples])
        length = inputs["input_ids"].shape[1]
        targets = {
            "words": padded([one.firsts for one in examples], length, 0).bool(),
            "labels": padded([one.labels for one in examples], length, NO_LABEL),
        }
        return Batch(inputs, targets)

    def adaptor(self) -> Adapt:
        """Return the adaptor: logits of all sub-words, and a mask of the first of each word, labelled or not."""

        def adapt(batch: Batch, outputs: Any) -> dict[str, Any]:
            labels = batch.targets["labels"]
            return {
                "logits": outputs.logits,
                "logits_mask": batch.targets["words"],
                "labels": labels,
                "losses": cross_entropy_sum(outputs.logits, labels),
                "inputs_mask": batch["attention_mask"],
                **features(outputs),
            }

        return adapt

    def count(self, batch: Batch) -> int:
        """Return the number of sentences."""
        return len(batch["input_ids"])

    def predict(self, model: nn.Module, batches: Iterable[Batch]) -> kdplug.Predictions:
        """Return accuracy over words and, if tags encode spans, precision, recall and F1 of spans; and each sentence.

        The score of a sentence is its F1, weighted by its true and predicted spans, or its accuracy, weighted by its
        words, so that the weighted mean is the metric of all sentences.
        """
        rows: list[kdplug.Prediction] = []
        for batch in batches:
            chances, chosen = at_least_float32(model(**batch).logits).softmax(dim=-1).max(dim=-1)
            labels = batch.targets["labels"].cpu()
            sentences = zip(labels, chosen.cpu(), chances.cpu(), strict=True)
            rows += with_inputs([self._row(*one) for one in sentences], self.processor.shown(batch))
        true, found = [row["label"] for row in rows], [row["prediction"] for row in rows]
        words = sum(map(len, true))
        right = sum(a == b for one, two in zip(true, found, strict=True) for a, b in zip(one, two, strict=True))
        metrics = {**(span_scores(true, found) if self.metric == "f1" else {}), "accuracy": right / max(words, 1)}
        return kdplug.Predictions(metrics, rows, target="tags")

    def _row(self, labels: Tensor, chosen: Tensor, chances: Tensor) -> kdplug.Prediction:
        counts = labels != NO_LABEL
        true, found = ([self.labels.names[one] for one in side[counts].tolist()] for side in (labels, chosen))
        if self.metric == "f1":
            spanned = SpanCounts.of(true, found)
            score, weight = spanned.f1, spanned.predicted + spanned.expected
        else:
            weight = len(true)
            score = sum(a == b for a, b in zip(true, found, strict=True)) / max(weight, 1)
        return {
            "score": score,
            "weight": float(weight),
            "label": true,
            "prediction": found,
            "probability": chances[counts].tolist(),
        }

    def review_data(self, source: Source) -> Iterator[tuple[str, str]]:
        """Yield warnings about the tags, and about sentences that are truncated."""
        yield from self.labels.review(source)
        yield from self.processor.review_length(
            [words for table in source.tables for words in _words(table)], is_split=True
        )

    def review_teacher(self, outputs: Iterable[kdplug.Outputs]) -> Iterator[tuple[str, str]]:
        """Yield a warning if the teacher predicts the tags no better than by chance."""
        return review_accuracy(outputs)

    def about(self) -> str:
        """Describe the tags, and how many words were dropped."""
        cut = (
            f" Words beyond the first {self._max_length} sub-words of their sentence are dropped: {self.cut_words}."
            if self.cut_words
            else ""
        )
        return f"{len(self.labels)} tags{self.labels.about}.{self.labels.about_untrained}{cut}{self._sketch}"

    @property
    def _sketch(self) -> str:
        """Describes the first words of the first sentence with their tags, and how many of its sub-words count."""
        if self._first is None:
            return ""
        words, classes, firsts = self._first
        tags = ["no tag" if label == NO_LABEL else self.labels.names[label] for label in classes[:_SHOWN]]
        shown = ", ".join(f"{word} ({tag})" for word, tag in zip(words[:_SHOWN], tags, strict=True))
        more = ", …" if len(words) > _SHOWN else ""
        return f" The first sentence is {shown}{more}: {sum(firsts)} of its {len(firsts)} sub-words enter the loss, the first of each word."

    def save(self, folder: Path, side: Side) -> None:  # noqa: ARG002
        """Write the tokenizer, which both sides share."""
        self.processor.save(folder)

    def _classes(self, table: Table, words: list[list[str]], *, optional: bool) -> list[list[int]]:
        found = []
        for row, sentence in enumerate(words):
            cell = table.columns["tags"][row] if "tags" in table.columns else None
            if is_missing(cell) and not optional:
                raise table.error(
                    "there are no tags. Write them, or move rows without tags to a file named in data.distillation", row
                )
            if is_missing(cell):
                found.append([NO_LABEL] * len(sentence))
                continue
            tags = _list(cell, table, row, "tags")
            if len(tags) != len(sentence):
                raise table.error(
                    f"tokens and tags differ in length, {len(sentence)} and {len(tags)}. Each token needs one tag", row
                )
            found.append([self.labels.index(written(tag, table, "tags", row)) for tag in tags])
        return found


def _tags(table: Table) -> Iterator[tuple[int, Any]]:
    """Yield the row and tag of each word that has one."""
    for row, cell in enumerate(table.columns.get("tags", ())):
        if not is_missing(cell):
            yield from ((row, tag) for tag in _list(cell, table, row, "tags"))


def _is_first(places: Sequence[int | None], place: int) -> bool:
    return places[place] is not None and (place == 0 or places[place - 1] != places[place])


def _words(table: Table) -> list[list[str]]:
    found = []
    for row, cell in enumerate(table.columns["tokens"]):
        words = [_word(word, table, row) for word in _list(cell, table, row, "tokens")]
        if not words:
            raise table.error("there are no tokens. Remove the row", row)
        found.append(words)
    return found


def _word(word: Any, table: Table, row: int) -> str:
    if not isinstance(word, str) and (is_missing(word) or not isinstance(word, (int, float))):
        raise table.error(f"each token must be text, got {word!r}", row)
    return str(word)


def _list(cell: Any, table: Table, row: int, column: str) -> list[Any]:
    """Return the items of a cell: a list, or text split at whitespace."""
    if isinstance(cell, str):
        return cell.split()
    if isinstance(cell, (list, tuple)):
        return list(cell)
    raise table.error(f"the {column} must be a list, or text separated by whitespace, got {type(cell).__name__}", row)
