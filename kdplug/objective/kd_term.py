"""The distillation loss on logits."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kdplug.config.error_path import prefixed
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import KdplugError, OutputsError, ShapeError
from kdplug.host import registry
from kdplug.objective.batch import Batch, gathered
from kdplug.objective.chunked.factored_kd import combined, compared
from kdplug.objective.logit_loss import LogitLoss
from kdplug.objective.numerics import connected_zero, full, target
from kdplug.objective.report import TermValue, over_heads
from kdplug.objective.schedule import Schedule, Temperature, build_schedule
from kdplug.objective.selection import HeadLogits, check_pair, head_masks, is_ignored, select, select_several
from kdplug.objective.teacher import Combiner, Names, side
from kdplug.objective.term import term_value

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.contracts.outputs import Logits


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
                "last. If both use one tokenizer and the classes beyond the shorter one are padding, set "
                "padded_vocabulary: drop; for two different vocabularies, use a loss declared across_vocabularies",
                field="logits",
            )
        classes = min(ours[-1], theirs[-1])
        self._tell(ours[-1], theirs[-1])
        return HeadLogits(_first(pair.student, classes), _first(pair.teacher, classes), pair.labels)

    def _tell(self, ours: int, theirs: int) -> None:
        if (ours, theirs) not in self._told:
            self._told.add((ours, theirs))
            side = "teacher" if theirs > ours else "student"
            warnings.warn(
                f"padded_vocabulary: the student has {ours} classes and the teacher {theirs}; the last "
                f"{abs(ours - theirs)} of the {side} are dropped",
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
            f"the cache contains a class outside the student's {classes} classes: {error.message}",
            field="teacher.logits",
        ) from None


class KdTerm(nn.Module):
    """The loss between student and teacher logits, summed over heads. Several teachers' logits are combined first."""

    name = "kd_loss"
    mask_key = "logits_mask"

    def __init__(self, config: DistillationConfig, teachers: Names) -> None:
        super().__init__()
        try:
            component = registry.losses.build(config.kd_loss_type, slot="kd")
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__
        self.schedule: Schedule = build_schedule(
            config.kd_loss_weight, config.kd_loss_weight_scheduler, "kd_loss_weight_scheduler"
        )
        self.loss: Any = component.target  # a module if the entry is a class: trained and saved with this one
        self.inputs = component.inputs
        self.owner = component.entry.qualified
        self.temperature = Temperature(config.temperature, config.temperature_scheduler)
        self.shifts = config.probability_shift
        with prefixed("kd_loss_type"):
            self.logit_loss = LogitLoss(component, self.temperature, shifts=self.shifts)
        self.vocabulary = Vocabulary(config.padded_vocabulary, is_across=self.logit_loss.is_across)
        self.chunk = config.logit_chunk
        self.teachers = teachers
        self.sides = tuple(side(teachers, place) for place in range(len(teachers)))
        self.combiner = Combiner(config, teachers) if len(teachers) > 1 else None
        combines_by_label = self.combiner is not None and self.combiner.wants_labels
        self.wants_labels = self.shifts or "labels" in self.inputs or combines_by_label
        self._has_warned = False

    @property
    def weight(self) -> float:
        return self.schedule.base

    def value(self, batch: Batch, weight: float) -> TermValue:
        """Return the loss, summed over heads.

        Raises: ``OutputsError`` if logits, labels or masks are missing or differ in number; ``ShapeError``.
        """
        pairs = self._pairs(batch) if self.combiner is None else self._combined(batch, self.combiner)
        if len(pairs) == 1:
            return self._compared(pairs[0], batch, weight)
        return over_heads([self._compared(pair, batch, weight) for pair in pairs])

    def student_tensors(self, batch: Batch) -> list[Tensor]:
        return [tensor for head in batch.student.logits or () for tensor in _tensors(head)]

    def skipped(self, batch: Batch) -> Tensor:
        logits, _ = self._student(batch)
        return connected_zero([*(tensor for head in logits for tensor in _tensors(head)), *self.parameters()])

    def _pairs(self, batch: Batch) -> list[HeadLogits]:
        """Return the selected items of each head."""
        student, labels = self._student(batch)
        pairs = list(map(HeadLogits, student, self._teacher(batch, 0, len(student)), labels))
        if batch.student.logits_mask is not None or batch.teacher.logits_mask is not None:
            pairs = self._selected(pairs, batch)
        return pairs

    def _combined(self, batch: Batch, combiner: Combiner) -> list[HeadLogits]:
        """Return the selected items of each head, each teacher with its own mask, with the teachers' logits combined."""
        student, labels = self._student(batch)
        heads = len(student)
        places = range(len(batch.teachers))
        teachers = zip(*(self._teacher(batch, place, heads) for place in places), strict=True)
        masks = zip(*(head_masks(one, heads, self.sides[p]) for p, one in enumerate(batch.teachers)), strict=True)
        mine = head_masks(batch.student, heads, "student")
        found = []
        for own, theirs, label, mask, their_masks in zip(student, teachers, labels, mine, masks, strict=True):
            effective = [self._effective(one, logits) for one, logits in zip(their_masks, theirs, strict=True)]
            chosen = select_several(
                own,
                theirs,
                label,
                student_mask=self._effective(mask, own),
                teacher_masks=effective,
                names=self.teachers,
            )
            found.append(
                combined(chosen, combiner, self.logit_loss, batch, self.chunk)
                if chosen.student.shape.numel()
                else chosen.first
            )
        return found

    def _student(self, batch: Batch) -> tuple[tuple[Logits, ...], tuple[Tensor | None, ...]]:
        logits = self._logits(batch.student, "student")
        if any(isinstance(head, SparseLogits) for head in logits):
            raise OutputsError("are SparseLogits, which only a teacher may return", field="student.logits")
        logits = tuple(map(gathered, logits))
        return logits, self._labels(batch.student, len(logits)) if self.wants_labels else (None,) * len(logits)

    def _teacher(self, batch: Batch, place: int, heads: int) -> tuple[Logits, ...]:
        name = self.sides[place]
        logits = self._logits(batch.teachers[place], name)
        if heads != len(logits):
            raise OutputsError(
                f"the student returned logits of {heads} heads, the {name} of {len(logits)}: heads are compared one by one",
                field="kd_loss_type",
            )
        return tuple(map(gathered, logits))

    def _logits(self, outputs: Outputs, side: str) -> tuple[Logits, ...]:
        if outputs.logits is not None:
            return outputs.logits
        given = ", ".join(outputs.given) or "nothing"
        raise OutputsError(
            f"is {self.weight:g}, but the {side} returned no logits, only {given}. Return them from its adaptor, "
            "or set kd_loss_weight: 0",
            field="kd_loss_weight",
        )

    def _labels(self, student: Outputs, heads: int) -> tuple[Tensor | None, ...]:
        labels = student.labels
        if labels is None:
            if self.shifts:
                raise OutputsError("needs labels, but the student returned none", field="probability_shift")
            return (None,) * heads
        if len(labels) != heads:
            raise OutputsError(
                f"the student returned {len(labels)} labels for {heads} logits: each head needs its own",
                field="student.labels",
            )
        return labels

    def _selected(self, pairs: list[HeadLogits], batch: Batch) -> list[HeadLogits]:
        student = head_masks(batch.student, len(pairs), "student")
        teacher = head_masks(batch.teacher, len(pairs), "teacher")
        return [
            select(pair, self._effective(mine, pair.student), self._effective(theirs, pair.teacher))
            for pair, mine, theirs in zip(pairs, student, teacher, strict=True)
        ]

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
        student, teacher, labels, _ = pair
        if not student.shape.numel():
            return TermValue(connected_zero([*_tensors(student), *self.parameters()]), 0, weight)
        self.logit_loss.check(teacher, labels)
        if 1 in (student.shape[-1], teacher.shape[-1]):
            self.logit_loss.check_number("student" if student.shape[-1] == 1 else "teacher")
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return self._valued(compared(pair, self.logit_loss, batch, self.chunk, trained), weight)
        dense = pair._replace(student=full(student), teacher=target(teacher))
        if not batch.autocast(student):
            return self._valued(self.logit_loss.of(dense, batch), weight)
        with torch.autocast(student.device.type, enabled=False):
            return self._valued(self.logit_loss.of(dense, batch), weight)

    def _valued(self, result: Any, weight: float) -> TermValue:
        try:
            return term_value(result, weight, self.owner)
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__


def _tensors(logits: Logits) -> tuple[Tensor, ...]:
    """Return the tensors of a student's logits that carry gradient."""
    assert not isinstance(logits, SparseLogits)
    return (logits,) if isinstance(logits, Tensor) else logits.tensors
