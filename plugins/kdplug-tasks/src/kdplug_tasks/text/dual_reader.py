"""Make examples and batches of a language task in which teacher and student have different tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from torch import Tensor

import kdplug
from kdplug_tasks.batch import Batch, Examples
from kdplug_tasks.data.table import Table
from kdplug_tasks.models.family import Side
from kdplug_tasks.text.alignment import Cut, cuts, sizes
from kdplug_tasks.text.dual_tokenization import DualTokens, SideTokens, joined, pieces
from kdplug_tasks.text.frame import Frame, departure, find_frame, sketch, stretch
from kdplug_tasks.text.processor import TextProcessor, padded, texts_of
from kdplug_tasks.text.reader import Form, batch_of, number_of
from kdplug_tasks.text.spelling import Spelled, Speller, flaw

SIDES: tuple[Side, Side] = ("student", "teacher")


class DualTokenReader:
    """One tokenizer per side. An example is a ``DualTokens``, or the ``SideTokens`` of the teacher only.

    Each side gets the whole text and predicts all of it. Predictions are compared at the positions where the tokens of
    both sides end at the same character. ``compared`` and ``predicted`` count the student's tokens in all examples so
    far: those that are compared, and all that it predicts.

    Source: Boizard et al. 2024, arXiv:2402.12030, compare token by token and truncate the longer side; the pieces of
    equal text are those of TRL's GOLD trainer, which also multiplies by the probabilities of a piece's other tokens.

    Raises: ``ConfigError`` for a tokenizer without character offsets, or if only one of the two has an end token.
    """

    def __init__(self, student: TextProcessor, teacher: TextProcessor, form: Form) -> None:
        self.form = form
        self.compared = self.predicted = 0
        self.processors: dict[Side, TextProcessor] = {"student": student, "teacher": teacher}
        self._spellers: dict[Side, Speller] = {
            "student": Speller(student.tokenizer, "student_tokenizer"),
            "teacher": Speller(teacher.tokenizer, "tokenizer"),
        }
        fields = {"student": "student_tokenizer", "teacher": "tokenizer"}
        self.frames: dict[Side, Frame] = {
            side: find_frame(self.processors[side].tokenizer, form.add_bos_token, fields[side]) for side in SIDES
        }
        for frame in self.frames.values():
            frame.check_room(form.max_length)
        self._begins = self.frames["student"].begin, self.frames["teacher"].begin
        self._first: DualTokens | None = None
        self._stretch = ""
        with_end = [side for side in SIDES if self.frames[side].end]
        if len(with_end) == 1:
            raise kdplug.ConfigError(
                f"only the {with_end[0]}'s tokenizer has an end token, so texts would end for one side only. Set an eos_token "
                f"in the {'teacher' if with_end[0] == 'student' else 'student'}'s tokenizer",
                field="student_tokenizer",
            )

    @property
    def sketch(self) -> str:
        """Describes the first document as tokens of each side."""
        if self._first is None:
            return ""
        halves: dict[Side, SideTokens] = {"student": self._first.student, "teacher": self._first.teacher}
        shown = "".join(
            f" For the {side} the first document is {sketch(self.processors[side].tokenizer, half.ids, half.counts)}."
            for side, half in halves.items()
        )
        return shown + self._stretch + departure(self.processors["student"].tokenizer, self.frames["student"])

    def examples(self, table: Table) -> Examples:
        """Return pieces of text, cut at the same characters for both sides."""
        form = self.form
        documents = self._twins(table)
        most = 1 if form.has_prompts and not form.is_packed else None
        duals = [joined(documents)] if form.is_packed else documents
        found = [piece for row, dual in enumerate(duals) for piece in self._pieces(table, row, dual, most)]
        if not found:
            raise form.nothing_left(table)
        if self._first is None:
            self._first = next((one for one in (found if most else documents) if one.is_something), None)
            own, end = self.processors["student"].tokenizer, self.frames["student"].end
            self._stretch = stretch(own, [one.student.ids for one in found], end)
        compared = sum(len(dual.compared) for dual in found)
        if not compared:
            raise table.error(
                "the two tokenizers never end a token at the same character, so no predictions can be compared. Use another "
                "tokenizer for the student"
            )
        self.compared += compared
        self.predicted += sum(sum(dual.student.counts[1:]) for dual in found)
        return Examples(found)

    def of_teacher(self, examples: Examples) -> Examples:
        """Return the teacher's side of ``examples``, to train it on."""
        return Examples([dual.teacher for dual in examples.items])

    def collate(self, examples: list[Any]) -> Any:
        """Return a batch for each side that the examples have.

        Each has ids, mask and, per token, ``labels``, ``counts`` (which predictions are compared) and ``sizes`` (bytes
        of text). Both sides have the same number of compared predictions, in the same order.
        """
        if isinstance(examples[0], SideTokens):
            return self._batch("teacher", examples, None)
        sides: list[list[SideTokens]] = [[dual.student for dual in examples], [dual.teacher for dual in examples]]
        places = [dual.compared for dual in examples]
        return {
            side: self._batch(side, halves, [[cut[at] for cut in row] for row in places])
            for at, (side, halves) in enumerate(zip(SIDES, sides, strict=True))
        }

    def count(self, batch: Any) -> int:
        """Return the number of bytes of text."""
        own: Batch = batch["student"]
        return int(own.targets["sizes"].sum())

    def _batch(self, side: Side, halves: Sequence[SideTokens], places: list[list[int]] | None) -> Batch:
        made = batch_of(halves, self.processors[side])
        longest = made["input_ids"].shape[1]
        targets = {**made.targets, "sizes": padded([half.sizes for half in halves], longest, 0)}
        if places is not None:
            targets["counts"] = _marked(places, longest)
        return Batch(made.inputs, targets)

    def _pieces(self, table: Table, row: int, dual: DualTokens, most: int | None) -> Iterator[DualTokens]:
        try:
            yield from (
                piece for piece in islice(pieces(dual, self.form.max_length, self._begins), most) if piece.is_something
            )
        except ValueError as error:
            raise table.error(
                f"{error} lie between two common token boundaries of the tokenizers, more than an example has room for after its start "
                f"tokens (max_length {self.form.max_length}). Increase max_length",
                None if self.form.is_packed else row,
            ) from None

    def _twins(self, table: Table) -> list[DualTokens]:
        names = ("prompt", "completion") if self.form.has_prompts else ("text",)
        columns = [self._aligned(table, name) for name in names]
        found = []
        for row, parts in enumerate(zip(*columns, strict=True)):
            dual = DualTokens.empty(number_of(table, row))
            dual.extend(*self._around("begin", counts=False))
            for name, part in zip(names, parts, strict=True):
                own, theirs = part.as_halves(counts=name != "prompt")
                dual.extend(own, theirs, part.cuts)
            if not table.is_running:
                dual.extend(*self._around("end", counts=True))
            found.append(dual)
        return found

    def _around(self, which: Literal["begin", "end"], *, counts: bool) -> tuple[SideTokens, SideTokens, list[Cut]]:
        """Return the special tokens of each side, and the cut after them if both have some."""
        own, theirs = (getattr(self.frames[side], which) for side in SIDES)
        cut = (len(own), len(theirs))
        return _special(own, counts=counts), _special(theirs, counts=counts), [cut] if all(cut) else []

    def _aligned(self, table: Table, column: str) -> Iterator[_Aligned]:
        texts = texts_of(table, column)
        spelled = [self._spellers[side].spell(texts) for side in SIDES]
        for row, (text, *sides) in enumerate(zip(texts, *spelled, strict=True)):
            for side, one in zip(SIDES, sides, strict=True):
                if (reason := flaw(text, one.spans)) is not None:
                    raise table.error(f"the {side}'s tokenizer {reason}", row)
            yield _Aligned(text, sides[0], sides[1])


class _Aligned(NamedTuple):
    """A text with its tokens of each side."""

    text: str
    student: Spelled
    teacher: Spelled

    @property
    def cuts(self) -> list[tuple[int, int]]:
        return cuts(self.student.spans, self.teacher.spans, len(self.text))

    def as_halves(self, *, counts: bool) -> tuple[SideTokens, SideTokens]:
        own, theirs = (
            SideTokens(one.ids, [counts] * len(one.ids), sizes(self.text, one.spans))
            for one in (self.student, self.teacher)
        )
        return own, theirs


def _special(ids: list[int], *, counts: bool) -> SideTokens:
    return SideTokens(ids, [counts] * len(ids), [0] * len(ids))


def _marked(places: list[list[int]], length: int) -> Tensor:
    rows = [[0] * length for _ in places]
    for row, marked in zip(rows, places, strict=True):
        for place in marked:
            row[place] = 1
    return padded(rows, length, 0).bool()
