"""Compare student and teacher logits, head by head."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kdplug.config.weight import base_weight
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import KdplugError, OutputsError, ShapeError
from kdplug.objective.batch import Batch, gathered
from kdplug.objective.chunked.factored_kd import combined, compared
from kdplug.objective.logit_loss import LogitLoss
from kdplug.objective.numerics import connected_zero, full, target
from kdplug.objective.projection import not_built
from kdplug.objective.report import TermValue, over_heads
from kdplug.objective.selection import (
    HeadLogits,
    MultiTeacherLogits,
    check_pair,
    head_masks,
    heads_of,
    is_ignored,
    select,
    select_several,
)
from kdplug.objective.sequences import flatten
from kdplug.objective.teacher import Combiner, Names, place_of, side
from kdplug.objective.term import term_value

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.config.term import WrittenTerm
    from kdplug.contracts.outputs import Logits


Trained = Callable[[], Iterable[Tensor]]
"""Returns the trainable parameters of a term."""

_HEADS = ("head_S", "head_T")


class Vocabulary:
    """Reconciles logits with different numbers of classes if ``padded_vocabulary`` declares the surplus to be padding.

    Classes that only one side has are dropped, as if that side gave them probability 0. Models of one family pad one
    tokenizer's vocabulary to different lengths (151,936 and 152,064 classes, say), and the padding represents no token.
    A loss that ``is_across`` receives the logits unchanged unless padding is declared.
    """

    def __init__(self, padding: Literal["refuse", "drop"], *, is_across: bool = False) -> None:
        self._drops = padding == "drop"
        self._is_across = is_across
        self._told: set[tuple[int, int]] = set()

    def __call__(self, pair: HeadLogits) -> HeadLogits:
        """Return the pair with the same number of classes on both sides; warn once about dropped classes.

        Raises: ``ShapeError`` if the numbers differ and dropping is not allowed.
        """
        ours, theirs = pair.student.shape, pair.teacher.shape
        if not ours or not theirs or ours[-1] == theirs[-1] or ours[:-1] != theirs[:-1]:
            return pair
        if not self._drops and self._is_across:
            return pair
        if not self._drops:
            raise ShapeError(
                f"the student's {list(ours)} and the teacher's {list(theirs)} must have the same shape, with classes "
                "last. If both models use the same tokenizer and the additional classes are padding, set "
                "padded_vocabulary: drop; for two different vocabularies, use a loss that declares across_vocabularies, "
                "such as uld (kdplug plugins list --load lists them)",
                field="logits",
            )
        classes = min(ours[-1], theirs[-1])
        self._tell(ours[-1], theirs[-1])
        return pair._replace(student=_first(pair.student, classes), teacher=_first(pair.teacher, classes))

    def _tell(self, ours: int, theirs: int) -> None:
        if (ours, theirs) not in self._told:
            self._told.add((ours, theirs))
            side = "teacher" if theirs > ours else "student"
            extra = abs(ours - theirs)
            warnings.warn(
                f"padded_vocabulary: the student has {ours} classes and the teacher {theirs}; the {side}'s last "
                f"{'class is' if extra == 1 else f'{extra} classes are'} dropped",
                stacklevel=2,
            )


def _first(logits: Logits, classes: int) -> Logits:
    if logits.shape[-1] == classes:
        return logits
    if isinstance(logits, Tensor):
        return logits[..., :classes]
    if isinstance(logits, FactoredLogits):
        return logits.first(classes)
    try:
        return replace(logits, classes=classes)  # the tail holds the mass of the dropped classes
    except OutputsError as error:
        raise OutputsError(
            f"the teacher's SparseLogits contain a class outside the student's {classes} classes: {error.message}",
            field="teacher.logits",
        ) from None


class LogitComparison(nn.Module):
    """Computes a loss on the logits of each head, or of one. Several teachers' logits are combined first.

    With ``teacher``, only that teacher is read: the one that the batch holds first.
    """

    def __init__(
        self, written: WrittenTerm, loss: LogitLoss, config: DistillationConfig, teachers: Names, trained: Trained
    ) -> None:
        super().__init__()
        term = written.config
        self.logit_loss = loss
        self._trained = trained
        self.owner = loss.owner
        self.heads = (term.head_S, term.head_T)
        self.weight, self.weight_key = base_weight(term.weight), written.place.key("weight")
        self.vocabulary = Vocabulary(config.padded_vocabulary, is_across=loss.is_across)
        self.chunk = config.logit_chunk
        self.teachers = teachers
        self.sides = (
            tuple(side(teachers, place) for place in range(len(teachers)))
            if term.teacher is None
            else (side(teachers, place_of(term.teacher, teachers)),)
        )
        self.combiner = Combiner(config, teachers, loss.temperature.base) if len(self.sides) > 1 else None
        combines_by_label = self.combiner is not None and self.combiner.wants_labels
        self.wants_labels = loss.shifts or "labels" in loss.inputs or combines_by_label
        combines_at_temperature = self.combiner is not None and self.combiner.wants_temperature
        self.reads_temperature = combines_at_temperature or loss.coarsens or loss.takes_sparse
        self.wants_ids = "example_ids" in loss.inputs
        self.reads_teacher = any(name.startswith("teacher_") for name in (*loss.inputs, *loss.temperature.inputs))
        self._has_warned = False

    def value(self, batch: Batch, weight: float) -> TermValue:
        """Return the loss, summed over heads.

        Raises: ``OutputsError`` if logits, labels or masks are missing or differ in number; ``ShapeError``.
        """
        if not self.logit_loss.is_built:
            raise not_built(self.owner, self.logit_loss.widths)
        pairs = self._pairs(batch) if self.combiner is None else self._combined(batch)
        if len(pairs) == 1:
            return self._compared(pairs[0], batch, weight)
        return over_heads([self._compared(pair, batch, weight) for pair in pairs])

    def student_tensors(self, batch: Batch) -> list[Tensor]:
        """Return the student's logits that the loss reads."""
        heads = batch.student.logits or ()
        chosen = self.heads[0]
        if chosen is not None and chosen < len(heads):
            heads = (heads[chosen],)
        return [tensor for head in heads for tensor in _tensors(head)]

    def read(self, batch: Batch) -> list[Tensor]:
        """Return the student tensors that ``value`` would read. Raises: ``OutputsError`` if there are none."""
        logits, _, _ = self._student(batch)
        return [tensor for head in logits for tensor in _tensors(head)]

    def _pairs(self, batch: Batch) -> list[HeadLogits]:
        """Return the selected items of each head."""
        student, labels, mine = self._student(batch)
        teacher: tuple[Logits, ...]
        if not self.reads_teacher and batch.teacher.logits is None:
            teacher, theirs = tuple(one.detach() for one in student if not isinstance(one, SparseLogits)), mine
        else:
            teacher, theirs = self._teacher(batch, 0, len(student))
        pairs = map(HeadLogits, student, teacher, labels)
        if self.logit_loss.takes_sequences:
            return [
                self._in_sequences((own, other), label, masks, batch)
                for own, other, label, *masks in zip(student, teacher, labels, mine, theirs, strict=True)
            ]
        if self.wants_ids:
            pairs = map(partial(self._identified, batch), pairs)
        if batch.student.logits_mask is None and batch.teacher.logits_mask is None:
            return list(pairs)
        return [
            select(pair, self._effective(own, pair.student), self._effective(other, pair.teacher))
            for pair, own, other in zip(pairs, mine, theirs, strict=True)
        ]

    def _combined(self, batch: Batch) -> list[HeadLogits]:
        """Return the selected items of each head, each teacher with its own mask, with the teachers' logits combined."""
        student, labels, mine = self._student(batch)
        read = [self._teacher(batch, place, len(student)) for place in range(len(batch.teachers))]
        teachers = zip(*(logits for logits, _ in read), strict=True)
        masks = zip(*(masks for _, masks in read), strict=True)
        found = []
        for own, theirs, label, mask, their_masks in zip(student, teachers, labels, mine, masks, strict=True):
            if self.logit_loss.takes_sequences:
                found.append(self._in_sequences((own, *theirs), label, (mask, *their_masks), batch))
                continue
            effective = [self._effective(one, logits) for one, logits in zip(their_masks, theirs, strict=True)]
            chosen = select_several(
                own,
                theirs,
                label,
                student_mask=self._effective(mask, own),
                teacher_masks=effective,
                names=self.teachers,
                ids=self._ids(own, batch) if self.wants_ids else None,
            )
            found.append(self._combined_items(chosen, batch))
        return found

    def _combined_items(self, group: MultiTeacherLogits, batch: Batch) -> HeadLogits:
        assert self.combiner is not None
        if not group.student.shape.numel():
            return group.first
        return combined(group, self.combiner, self.logit_loss, batch, self.chunk)

    def _in_sequences(
        self, sides: tuple[Logits, ...], labels: Tensor | None, masks: Sequence[Tensor | None], batch: Batch
    ) -> HeadLogits:
        """Return the selected items with their places; several teachers' logits are combined."""
        flat = flatten(sides, masks, ("student", *self.sides), labels, self.owner)
        own, *theirs = flat.sides
        if self.combiner is None:
            pair = HeadLogits(own, theirs[0], flat.labels)
        else:
            pair = self._combined_items(MultiTeacherLogits(own, tuple(theirs), flat.labels), batch)
        ids = batch.ids_of(sides[0], self.owner, "logits") if self.wants_ids else None
        return pair._replace(sequences=flat.sequences._replace(ids=ids))

    def _identified(self, batch: Batch, pair: HeadLogits) -> HeadLogits:
        return pair._replace(ids=self._ids(pair.student, batch))

    def _ids(self, student: Logits, batch: Batch) -> Tensor:
        """Return the id of the example of each item, ``[*items]``."""
        ids, items = batch.ids_of(student, self.owner, "logits"), student.shape[:-1]
        return ids.view(-1, *[1] * (len(items) - 1)).expand(items)

    def _student(self, batch: Batch) -> tuple[tuple[Logits, ...], tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Return logits, labels and masks of the heads that are compared."""
        logits = self._logits(batch.student, "student")
        if any(isinstance(head, SparseLogits) for head in logits):
            raise OutputsError("are SparseLogits, which only a teacher may return", field="student.logits")
        labels = self._labels(batch.student, len(logits)) if self.wants_labels else (None,) * len(logits)
        masks = head_masks(batch.student, len(logits), "student")
        chosen = self._chosen(0, len(logits), "student")
        return tuple(map(gathered, logits[chosen])), labels[chosen], masks[chosen]

    def _teacher(self, batch: Batch, place: int, heads: int) -> tuple[tuple[Logits, ...], tuple[Tensor | None, ...]]:
        """Return logits and masks of the heads that are compared."""
        name = self.sides[place]
        logits = self._logits(batch.teachers[place], name)
        masks = head_masks(batch.teachers[place], len(logits), name)
        chosen = self._chosen(1, len(logits), name)
        if heads != len(logits[chosen]):
            raise OutputsError(
                f"the numbers of heads differ: the student returned logits of {heads}, the {name} of {len(logits)}. Return "
                "logits of the same number of heads, or select one of each with head_S and head_T, keys of a term",
                field="loss",
            )
        return tuple(map(gathered, logits[chosen])), masks[chosen]

    def _chosen(self, place: int, count: int, name: str) -> slice:
        """Return the heads of one side to compare: one if ``head_S`` or ``head_T`` is set, otherwise all.

        Raises: ``OutputsError`` for a head that does not exist, and for several without a choice.
        """
        if self.heads == (None, None):
            return slice(None)
        head = self.heads[place]
        if head is None and count == 1:
            return slice(1)
        key = _HEADS[place]
        valid = f"the {name} returned logits of {heads_of(count)}"
        if head is None:
            raise OutputsError(f"must select a head, as {_HEADS[1 - place]} does: {valid}", field=key)
        if head >= count:
            raise OutputsError(f"there is no head {head}: {valid}", field=key)
        return slice(head, head + 1)

    def _logits(self, outputs: Outputs, side: str) -> tuple[Logits, ...]:
        if outputs.logits is not None:
            return outputs.logits
        given = ", ".join(outputs.given) or "nothing"
        raise OutputsError(
            f"is {self.weight:g}, but the {side} returned no logits, only {given}. Return logits from the adaptor, "
            f"or set {self.weight_key}: 0 to train without this term",
            field="weight",
        )

    def _labels(self, student: Outputs, heads: int) -> tuple[Tensor | None, ...]:
        labels = student.labels
        if labels is None:
            if self.logit_loss.shifts:
                raise OutputsError(
                    "needs labels, but the student returned none. Set probability_shift to false, or return labels from the "
                    "student's adaptor",
                    field="probability_shift",
                )
            return (None,) * heads
        if len(labels) != heads:
            raise OutputsError(
                f"the numbers of heads differ: {heads} for logits, {len(labels)} for labels. Return labels for each head",
                field="student.labels",
            )
        return labels

    def _effective(self, mask: Tensor | None, logits: Logits) -> Tensor | None:
        if mask is None or not is_ignored(mask, logits):
            return mask
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"logits_mask {list(mask.shape)} has no effect: the logits {list(logits.shape)} have one row per "
                "example, not one per position",
                stacklevel=2,
            )
        return None

    def _compared(self, pair: HeadLogits, batch: Batch, weight: float) -> TermValue:
        differs = pair.student.shape != pair.teacher.shape
        if differs:
            pair = self.vocabulary(pair)
        check_pair(pair, is_across=self.logit_loss.is_across)
        if differs:
            self.logit_loss.check_classes(pair)
        student, teacher, labels, *_ = pair
        if not student.shape.numel():
            named = self.logit_loss.named
            read = [] if named is None else named.student_tensors(batch)
            return TermValue(connected_zero([*_tensors(student), *read, *self._trained()]), 0, weight)
        self.logit_loss.check(teacher, labels)
        if isinstance(teacher, SparseLogits):
            teacher = teacher.at_temperature(self.logit_loss.temperature.base)
            pair = pair._replace(teacher=teacher)
        if 1 in (student.shape[-1], teacher.shape[-1]):
            self.logit_loss.check_number("student" if student.shape[-1] == 1 else "teacher")
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
            return self._valued(compared(pair, self.logit_loss, batch, self.chunk, list(self._trained())), weight)
        dense = pair._replace(student=full(student), teacher=target(teacher))
        if not batch.autocast(student):
            return self._valued(self.logit_loss.of(dense, batch), weight)
        with torch.autocast(student.device.type, enabled=False):
            return self._valued(self.logit_loss.of(dense, batch), weight)

    def _valued(self, result: Any, weight: float) -> TermValue:
        try:
            return term_value(result, weight, self.owner)
        except KdplugError as error:
            raise error.at("loss") from error.__cause__


def _tensors(logits: Logits) -> tuple[Tensor, ...]:
    """Return the tensors of a student's logits that require grad."""
    assert not isinstance(logits, SparseLogits)
    return (logits,) if isinstance(logits, Tensor) else logits.tensors
