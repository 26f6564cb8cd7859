"""Extractive question answering: find the span of the context that answers a question."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import kdplug
from kdplug_tasks.batch import Batch, Examples, features, with_inputs
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.models.family import Family, Side
from kdplug_tasks.problem import Adapt
from kdplug_tasks.targets.category import cross_entropy_sum
from kdplug_tasks.text.processor import TextProcessor, padded, texts_of
from kdplug_tasks.text.setting import TokenizerSettings
from kdplug_tasks.text.window import Answer, Window, answers_of, windows

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(found: str, answers: Sequence[str]) -> float:
    """Return 1 if the normalized answer is among the correct ones, else 0.

    If there are none, the empty answer is right.
    """
    return float(any(normalised(found) == normalised(answer) for answer in answers or ("",)))


def overlap(found: str, answers: Sequence[str]) -> float:
    """Return the best word F1 of an answer over the correct ones.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1; 2018, arXiv:1806.03822, for questions without an
    answer.
    """
    return max(_f1(normalised(found).split(), normalised(answer).split()) for answer in answers or ("",))


def normalised(text: str) -> str:
    """Return the text in lower case without punctuation, English articles and extra whitespace."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(found: list[str], answer: list[str]) -> float:
    if not found or not answer:
        return float(found == answer)
    shared = sum((Counter(found) & Counter(answer)).values())
    return 2 * shared / (len(found) + len(answer))


OUTSIDE = -1e4
"""Logit of positions outside the context. Finite, so that any loss can compare two of them, even in float16."""


class Question(NamedTuple):
    """The data needed to score an answer."""

    context: str
    answers: list[Answer]


class Questions:
    """Two heads predict the first and last token of the answer.

    Windows without the answer have their first token as the target.
    """

    auto = "AutoModelForQuestionAnswering"
    metric = "f1"
    is_lower_better = False
    unit = "examples"
    columns = Columns(("question", "context"), (), ("answers", "answer", "answer_start"))

    def __init__(
        self, tokenizer: TokenizerSettings | None, max_length: int, *, stride: int, max_answer_length: int
    ) -> None:
        self.stride = stride
        self.max_answer_length = max_answer_length
        self.may_be_unanswerable = False
        self._settings = tokenizer
        self._max_length = max_length
        self._questions: list[Question] = []
        self._processor: TextProcessor | None = None

    @property
    def processor(self) -> TextProcessor:
        """The tokenizer; available after ``settle``."""
        assert self._processor is not None
        return self._processor

    def settle(self, source: Source, family: Family) -> None:
        """Determine the tokenizer, and whether some questions have no answer."""
        train = source.train
        texts = (text for name in self.columns.inputs for text in texts_of(train, name))
        self._processor = TextProcessor.find(self._settings, family, texts, self._max_length)
        family.from_scratch = self._processor.from_scratch
        self._processor.check_places()
        self._processor.check(family)
        self.may_be_unanswerable = [] in answers_of(train, texts_of(train, "context"), optional=True)

    def examples(self, table: Table, *, optional: bool) -> Examples:
        """Return the windows of each question."""
        questions, contexts = (texts_of(table, name) for name in self.columns.inputs)
        answers = answers_of(table, contexts, optional=optional)
        self._check_room(table, questions)
        tokenizer, first = self.processor.tokenizer, len(self._questions)
        encoded = tokenizer(
            questions, contexts, truncation="only_second", max_length=self._max_length, stride=self.stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        self._questions += [Question(context, one or []) for context, one in zip(contexts, answers, strict=True)]
        names = [name for name in tokenizer.model_input_names if name in encoded]
        return Examples(windows(encoded, names, answers, first))

    def collate(self, examples: list[Window]) -> Batch:
        """Return a padded batch; ``start``, ``end``, ``question`` are ``[batch]``, ``from``, ``to`` are ``[batch,
        length]``.
        """
        inputs = self.processor.pad([one.inputs for one in examples])
        length = inputs["input_ids"].shape[1]
        targets = {
            name: torch.tensor([getattr(one, name) for one in examples]) for name in ("start", "end", "question")
        }
        for name, side in (("from", 0), ("to", 1)):
            targets[name] = padded([[span[side] for span in one.offsets] for one in examples], length, 0)
        return Batch(inputs, targets)

    def adaptor(self) -> Adapt:
        """Return the adaptor: two heads of logits over positions, ``-10000`` outside the context, and their loss."""

        def adapt(batch: Batch, outputs: Any) -> dict[str, Any]:
            heads = _heads(batch, outputs)
            labels = [batch.targets["start"], batch.targets["end"]]
            # either both ends of a window have a label or neither, so the mean over all ends is the mean of both means
            losses = cross_entropy_sum(torch.cat(heads), torch.cat(labels))
            found = {"logits": heads, "labels": labels, "losses": losses}
            return {**found, "inputs_mask": batch["attention_mask"], **features(outputs)}

        return adapt

    def count(self, batch: Batch) -> int:
        """Return the number of windows."""
        return len(batch["input_ids"])

    def predict(self, model: nn.Module, batches: Iterable[Batch]) -> kdplug.Predictions:
        """Return word F1 and exact match, in [0, 1], of the best span over all windows of each question; and each window.

        A question is a unit. Its first window has its score and its answer; other windows have weight 0 and no answer.
        """
        best: dict[int, tuple[float, str]] = {}
        nothing: dict[int, float] = {}
        inputs: list[tuple[int, str]] = []
        for batch in batches:
            found = self._best(batch, model(**batch))
            for (number, score, answer, null), text in zip(found, self.processor.shown(batch), strict=True):
                if number not in best or score > best[number][0]:
                    best[number] = (score, answer)
                nothing[number] = min(null, nothing.get(number, null))
                inputs.append((number, text))
        answers = {
            number: "" if self.may_be_unanswerable and nothing[number] > score else answer
            for number, (score, answer) in best.items()
        }
        right = {number: [one.text for one in self._questions[number].answers] for number in answers}
        f1 = {number: overlap(answer, right[number]) for number, answer in answers.items()}
        exact = [exact_match(answer, right[number]) for number, answer in answers.items()]
        units = {number: unit for unit, number in enumerate(answers)}
        rows: list[kdplug.Prediction] = []
        shown: set[int] = set()
        for number, text in inputs:
            row: kdplug.Prediction = {"score": f1[number], "unit": units[number]}
            if number in shown:
                rows.append({**row, "weight": 0.0})
            else:
                label = (right[number] or [""])[0]
                rows += with_inputs([{**row, "label": label, "prediction": answers[number]}], [text])
            shown.add(number)
        count = max(1, len(answers))
        return kdplug.Predictions(
            {"f1": sum(f1.values()) / count, "exact_match": sum(exact) / count}, rows, target="text"
        )

    def about(self) -> str:
        """Describe how contexts are split into windows."""
        return f"Contexts are split into windows of {self._max_length} tokens with an overlap of {self.stride}."

    def save(self, folder: Path, side: Side) -> None:  # noqa: ARG002
        """Write the tokenizer, which both sides share."""
        self.processor.save(folder)

    def _best(self, batch: Batch, outputs: Any) -> Iterable[tuple[int, float, str, float]]:
        """Yield question, score and text of each window's best span, and the score of no answer."""
        starts, ends = (head.float().cpu() for head in _heads(batch, outputs))
        begins, stops, numbers = (batch.targets[name].cpu() for name in ("from", "to", "question"))
        for row, number in enumerate(numbers.tolist()):
            scores = _allowed(starts[row].unsqueeze(1) + ends[row], begins[row] < stops[row], self.max_answer_length)
            place = int(scores.argmax())
            start, end = divmod(place, scores.shape[1])
            text = self._questions[number].context[int(begins[row, start]) : int(stops[row, end])]
            yield number, float(scores.flatten()[place]), text, float(starts[row, 0] + ends[row, 0])

    def _check_room(self, table: Table, questions: list[str]) -> None:
        tokenizer = self.processor.tokenizer
        taken = tokenizer.num_special_tokens_to_add(pair=True) + self.stride
        for row, ids in enumerate(tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]):
            if len(ids) + taken >= self._max_length:
                raise table.error(
                    f"a question of length {len(ids)} (in tokens) leaves no room for its context with max_length {self._max_length} and "
                    f"stride {self.stride}. Shorten the question, or increase max_length{' or decrease stride' if self.stride else ''}",
                    row,
                )


def _heads(batch: Batch, outputs: Any) -> list[Tensor]:
    """Return logits of start and end, masked to the context and the first token, which means no answer."""
    allowed = batch.targets["from"] < batch.targets["to"]
    allowed[:, 0] = True
    return [head.masked_fill(~allowed, OUTSIDE) for head in (outputs.start_logits, outputs.end_logits)]


def _allowed(scores: Tensor, is_context: Tensor, length: int) -> Tensor:
    """Return scores ``[start, end]``, ``-inf`` for spans that are empty, longer than ``length`` or outside the context."""
    size = len(scores)
    band = torch.ones(size, size, dtype=torch.bool).triu() & torch.ones(size, size, dtype=torch.bool).tril(length - 1)
    return scores.where(band & is_context & is_context.unsqueeze(1), -torch.inf)
